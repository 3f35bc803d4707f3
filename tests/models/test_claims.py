"""Configurations that ask for more than their weights explain are refused before memory is taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bapo.errors import BapoError
from bapo.models import embedded, load_model
from bapo.models.adapters import put_on
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


def test_what_a_killed_conversion_left_is_cleaned_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAPO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "m.gguf").write_bytes(b"no such thing")
    made: list[Path] = []

    def convert(gguf: Path, folder: Path) -> None:
        made.append(folder)
        (folder / "config.json").touch()
        if len(made) == 1:
            monkeypatch.setattr(embedded.shutil, "rmtree", lambda *_, **__: None)  # as if it were killed here
            raise KeyboardInterrupt

    monkeypatch.setattr(embedded, "_convert", convert)
    with pytest.raises(KeyboardInterrupt):
        embedded.converted_gguf(tmp_path / "m.gguf")
    assert made[0].is_dir()
    monkeypatch.undo()
    monkeypatch.setenv("BAPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded, "_convert", convert)
    target = embedded.converted_gguf(tmp_path / "m.gguf")
    assert [path.name for path in target.parent.iterdir() if path.is_dir()] == [target.name]
