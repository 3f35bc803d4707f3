"""Configurations that ask for more than their weights explain are refused before memory is taken."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bapo.errors import BapoError
from bapo.models import gguf_files, load_model
from bapo.models.adapters import put_on
from bapo.models.claims import check_expressions, check_model_claims
from tests.fuzz.model_targets import _adapter_files, _model_files
from tests.tiny import tiny_model


def written(files: dict[str, bytes], folder: Path, name: str, **changes: Any) -> str:
    for file, content in files.items():
        (folder / file).write_bytes(content)
    (folder / name).write_text(json.dumps({**json.loads(files[name]), **changes}))
    return str(folder)


@pytest.mark.parametrize(
    "claim",
    [{"num_hidden_layers": 10**9}, {"vocab_size": 10**8}, {"hidden_size": 10**6, "intermediate_size": 10**6}],
    ids=str,
)
def test_a_model_that_claims_to_be_larger_than_its_weights_is_refused(claim: dict[str, int], tmp_path: Path) -> None:
    name = next(iter(claim))
    with pytest.raises(BapoError, match=rf"could not be loaded \(its configuration has {name}=1000.* not of one model"):
        load_model(written(_model_files(), tmp_path, "config.json", **claim), precision="float32", device="cpu")


def test_a_model_with_many_positions_is_what_it_was(tmp_path: Path) -> None:
    folder = written(_model_files(), tmp_path, "config.json", max_position_embeddings=2**26)
    assert load_model(folder, precision="float32", device="cpu").model.config.max_position_embeddings == 2**26


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        ({"r": 10**9}, "has r=1000000000 in its configuration"),
        ({"rank_pattern": {"q_proj": 10**9}}, "has q_proj=1000000000"),
        ({"target_modules": "(.*)*_proj.*x"}, "regular expression .* takes more than 1 s of"),
        ({"target_modules": "["}, "regular expression .*unterminated character set"),
        ({"megatron_config": {"a": 1}, "megatron_core": "os"}, "names code to be imported"),
        ({"lora_alpha": 1e308}, "multiplies with"),
        ({"layer_replication": [[0, 10**9]]}, "repeats layers"),
    ],
    ids=str,
)
def test_an_adapter_that_asks_for_too_much_is_refused(claim: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = written(_adapter_files(), tmp_path, "adapter_config.json", **claim)
    model = tiny_model("llama", num_hidden_layers=1, hidden_size=16, intermediate_size=16)
    with pytest.raises(BapoError, match=said):
        put_on(model, folder, trainable=False)


def test_an_expression_that_ends_is_used(tmp_path: Path) -> None:
    folder = written(
        _adapter_files(), tmp_path, "adapter_config.json", target_modules=r".*\.(q|k|v|o|gate|up|down)_proj"
    )
    model = tiny_model("llama", num_hidden_layers=1, hidden_size=16, intermediate_size=16)
    put_on(model, folder, trainable=False)


HANGS = "((([a-z._]+)*)*)*!"


@pytest.mark.parametrize(
    "setting",
    [
        {"modules_to_save": [HANGS]},
        {"feedforward_modules": HANGS},
        {"n_frequency_pattern": {HANGS: 4}},
        {"a setting of tomorrow": [{"of": ("q_proj", {HANGS: 4})}]},
        {"rank_pattern": {"(?<=mode)(([a-z._0-9]+)*)*!": 4}},  # where it is searched for, as for OSF
        {"layers_pattern": ["(?<!.)(([a-z._0-9]+)*)*!"]},  # where it may be the whole beginning of a name
        {"target_modules": "(?s)(([a-z._0-9]+)*)*!"},
    ],
    ids=str,
)
def test_whatever_may_be_an_expression_is_tried_in_all_ways_in_which_peft_matches(setting: dict[str, Any]) -> None:
    model = tiny_model("llama", num_hidden_layers=1, hidden_size=16, intermediate_size=16)
    with pytest.raises(BapoError, match=r"expression in the configuration of the adapter x .* takes more than 1 s of"):
        check_expressions(SimpleNamespace(**setting), model, "the adapter x")


def test_what_is_no_expression_need_not_be_one_and_many_get_their_time(tmp_path: Path) -> None:
    model = tiny_model("llama", num_hidden_layers=1, hidden_size=16, intermediate_size=16)
    patterns = {rf"^model\.layers\.{at}\..*_proj": 4 for at in range(2000)}
    check_expressions(SimpleNamespace(rank_pattern=patterns), model, "the adapter x")
    name = "drafts/[a(b*"
    folder = written(_adapter_files(), tmp_path, "adapter_config.json", base_model_name_or_path=name)
    put_on(model, folder, trainable=False)


def test_tensors_without_elements_explain_no_claim(tmp_path: Path) -> None:
    model = tiny_model("llama", num_hidden_layers=1, hidden_size=16, intermediate_size=16)
    model.config.vocab_size = 10**8
    shapes = [tuple(tensor.shape) for tensor in model.state_dict().values()]
    with pytest.raises(BapoError, match=r"has vocab_size=100000000, and the longest side of its .* tensors is 2"):
        check_model_claims(model.config, [*shapes, (2**27, 0)], "It could not be loaded")
    folder = written(_adapter_files(), tmp_path, "adapter_config.json", r=2**13)
    add_to_adapter(tmp_path, x=torch.empty(2**14, 0))
    with pytest.raises(BapoError, match="has r=8192 in its configuration"):
        put_on(model, folder, trainable=False)


def add_to_adapter(folder: Path, **tensors: torch.Tensor) -> None:
    path = folder / "adapter_model.safetensors"
    named = {f"base_model.model.{name.replace('__', '.')}.weight": tensor for name, tensor in tensors.items()}
    save_file(load_file(path) | named, path)


@pytest.mark.parametrize("shape", [(2**12, 0), (2**12, 1), ()], ids=str)
def test_embeddings_do_not_grow_by_what_are_no_rows_of_theirs(shape: tuple[int, ...], tmp_path: Path) -> None:
    model = tiny_model("llama", num_hidden_layers=1, hidden_size=16, intermediate_size=16)
    rows = len(model.get_input_embeddings().weight)
    folder = written(_adapter_files(), tmp_path, "adapter_config.json")
    add_to_adapter(tmp_path, model__embed_tokens=torch.ones(shape), lm_head=torch.ones(shape))
    with pytest.raises(BapoError, match="does not fit the model"):
        put_on(model, folder, trainable=False)
    assert len(model.get_input_embeddings().weight) == rows


@pytest.mark.parametrize(
    "claim",
    [
        {"lora_dropout": "0.1"},
        {"base_model_name_or_path": 5},
        {"rank_pattern": 5},
        {"layers_pattern": [5], "layers_to_transform": [0], "target_modules": ["q_proj"]},
    ],
    ids=str,
)
def test_settings_of_another_type_are_one_sentence(claim: dict[str, Any], tmp_path: Path) -> None:
    folder = written(_adapter_files(), tmp_path, "adapter_config.json", **claim)
    model = tiny_model("llama", num_hidden_layers=1, hidden_size=16, intermediate_size=16)
    model.config._name_or_path = "some/model"
    with pytest.raises(BapoError, match=f"adapter {folder} "):
        put_on(model, folder, trainable=False)


def test_what_a_killed_conversion_left_is_cleaned_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAPO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "m.gguf").write_bytes(b"no such thing")
    made: list[Path] = []

    def convert(gguf: Path, folder: Path) -> None:
        made.append(folder)
        (folder / "config.json").touch()
        if len(made) == 1:
            monkeypatch.setattr(gguf_files.shutil, "rmtree", lambda *_, **__: None)  # as if it were killed here
            raise KeyboardInterrupt

    monkeypatch.setattr(gguf_files, "_convert", convert)
    with pytest.raises(KeyboardInterrupt):
        gguf_files.converted_gguf(tmp_path / "m.gguf")
    assert made[0].is_dir()
    monkeypatch.undo()
    monkeypatch.setenv("BAPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(gguf_files, "_convert", convert)
    target = gguf_files.converted_gguf(tmp_path / "m.gguf")
    assert [path.name for path in target.parent.iterdir() if path.is_dir()] == [target.name]


@pytest.mark.parametrize("what", ["gone", "cut"])
def test_a_copy_of_which_the_system_cleaned_up_a_file_is_made_again(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BAPO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "m.gguf").write_bytes(b"no such thing")
    made: list[Path] = []

    def convert(gguf: Path, folder: Path) -> None:
        made.append(folder)
        for name in ("config.json", "model.safetensors"):
            (folder / name).write_bytes(b"whole")

    monkeypatch.setattr(gguf_files, "_convert", convert)
    weights = gguf_files.converted_gguf(tmp_path / "m.gguf") / "model.safetensors"
    assert gguf_files.converted_gguf(tmp_path / "m.gguf") == weights.parent
    assert len(made) == 1
    weights.unlink() if what == "gone" else weights.write_bytes(b"who")
    gguf_files.converted_gguf(tmp_path / "m.gguf")
    assert len(made) == 2
    assert weights.read_bytes() == b"whole"
