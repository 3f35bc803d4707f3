"""Loading, precision, adapters and fingerprints."""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import pytest
import torch
from peft import PeftModel

from bapo.errors import BapoError
from bapo.likelihood import ResponseScorer, TokenGroup
from bapo.models import add_lora, disable_model_dropout, load_model, model_fingerprint, resolve_precision
from tests.tiny import CONFIGS, tiny_model, tiny_tokenizer, write_tiny_gguf


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def probe(model: torch.nn.Module) -> torch.Tensor:
    return ResponseScorer(model).score([TokenGroup((5, 6, 7), ((8, 9), (10, 11, 12)))]).summed()


def test_the_embedded_model_is_converted_once(smollm2, monkeypatch: pytest.MonkeyPatch) -> None:
    def must_not_run(*_: object) -> None:
        raise AssertionError("converted twice")

    monkeypatch.setattr("bapo.models.gguf_files._convert", must_not_run)
    again = load_model("smollm2", precision="float32", device="cpu")
    assert model_fingerprint(again.model) == model_fingerprint(smollm2.model)


def test_a_gguf_file_is_read_once_and_the_library_is_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BAPO_CACHE", str(tmp_path / "cache"))
    write_tiny_gguf(tmp_path / "m.gguf")
    before, read = dict(vars(gguf)), []

    class Counted(gguf.GGUFReader):
        def __init__(self, path: str) -> None:
            read.append(path)
            super().__init__(path)

    monkeypatch.setattr(gguf, "GGUFReader", Counted)
    load_model(str(tmp_path / "m.gguf"), precision="float32", device="cpu")
    assert len(read) == 1
    monkeypatch.undo()
    assert vars(gguf) == before


def test_accelerators_have_bf16_and_what_is_asked_for_is_what_is_taken() -> None:
    assert resolve_precision("auto", torch.device("cuda")) == "bf16"
    assert resolve_precision("nf4", torch.device("cpu")) == "nf4"


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bf16", torch.bfloat16)])
def test_every_precision_scores_as_the_models_own_weights_in_it(
    folder: Path, precision: str, dtype: torch.dtype
) -> None:
    """4-bit weights have tests of their own in test_nf4."""
    loaded = load_model(str(folder), precision=precision, device="cpu")
    own = tiny_model("llama").to(dtype)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {dtype}
    assert all(map(torch.equal, loaded.model.state_dict().values(), own.state_dict().values()))
    with torch.no_grad():
        logps = own(input_ids=torch.tensor([[5, 6, 7, 10, 11, 12]])).logits[0].float().log_softmax(-1)
    expected = logps[2, 10] + logps[3, 11] + logps[4, 12]
    tolerance = 1e-4 if dtype == torch.float32 else 0.05  # nats of three tokens
    assert float(probe(loaded.model)[1]) == pytest.approx(float(expected), abs=tolerance)


@pytest.mark.parametrize("name", CONFIGS)
def test_lora_reaches_every_linear_layer_but_the_head(name: str) -> None:
    model = tiny_model(name)
    linear = {
        n
        for n, m in model.named_modules()
        if type(m).__name__ in ("Linear", "Conv1D") and m is not model.get_output_embeddings()
    }
    adapted = {n.removeprefix("base_model.model.") for n, m in add_lora(model).named_modules() if hasattr(m, "lora_A")}
    assert adapted == linear


def test_a_fresh_adapter_is_zero_and_keeps_the_fingerprint_while_a_trained_one_does_not(folder: Path) -> None:
    loaded = load_model(str(folder), precision="float32", device="cpu")
    before, logps = model_fingerprint(loaded.model), probe(loaded.model)
    policy = add_lora(loaded.model, rank=4)
    assert model_fingerprint(policy) == before
    assert torch.equal(probe(policy), logps)
    trainable = {n for n, p in policy.named_parameters() if p.requires_grad}
    assert trainable
    assert all(".lora_" in n for n in trainable)
    for n, p in policy.named_parameters():
        if "lora_B" in n:
            torch.nn.init.normal_(p, std=0.1)
    trained = model_fingerprint(policy)
    assert trained != before
    for module in policy.modules():
        if hasattr(module, "lora_A"):
            module.scaling["default"] *= 2
    assert model_fingerprint(policy) not in (before, trained)


def test_a_changed_weight_or_precision_changes_the_fingerprint(folder: Path) -> None:
    loaded = load_model(str(folder), precision="float32", device="cpu")
    before = model_fingerprint(loaded.model)
    assert model_fingerprint(load_model(str(folder), precision="float32", device="cpu").model) == before
    assert model_fingerprint(load_model(str(folder), precision="bf16", device="cpu").model) != before
    with torch.no_grad():
        next(loaded.model.parameters())[0, 0] += 1e-3
    assert model_fingerprint(loaded.model) != before


def test_an_adapter_is_loaded_and_is_part_of_what_the_model_is(folder: Path, tmp_path: Path) -> None:
    policy = add_lora(load_model(str(folder), precision="float32", device="cpu").model, rank=4)
    for n, p in policy.named_parameters():
        if "lora_B" in n:
            torch.nn.init.normal_(p, std=0.1)
    policy.save_pretrained(tmp_path / "adapter")
    loaded = load_model(str(folder), precision="float32", adapter=tmp_path / "adapter", device="cpu")
    assert isinstance(loaded.model, PeftModel)
    assert model_fingerprint(loaded.model) == model_fingerprint(policy)
    torch.testing.assert_close(probe(loaded.model), probe(policy))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("./nowhere", "There is no model folder"),
        ("nowhere.gguf", "no GGUF file"),
        ("no-such-organization/no-such-model", "could not be loaded"),
    ],
)
def test_a_missing_model_is_one_sentence(name: str, sentence: str) -> None:
    with pytest.raises(BapoError, match=sentence):
        load_model(name, device="cpu")


def test_an_adapter_of_another_model_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    add_lora(tiny_model("gpt2"), rank=4).save_pretrained(tmp_path / "adapter")
    with pytest.raises(BapoError, match="does not fit the model"):
        load_model(str(folder), precision="float32", adapter=tmp_path / "adapter", device="cpu")


def test_an_adapter_folder_given_as_a_model_says_so(folder: Path, tmp_path: Path) -> None:
    add_lora(tiny_model("llama"), rank=4).save_pretrained(tmp_path / "adapter")
    with pytest.raises(BapoError, match="holds an adapter"):
        load_model(str(tmp_path / "adapter"), device="cpu")


def test_an_adapter_beside_a_model_is_put_on_by_nobody_unasked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BAPO_CACHE", str(tmp_path / "cache"))
    add_lora(tiny_model("llama"), rank=4).save_pretrained(tmp_path / "adapter")
    (tmp_path / "gguf").mkdir()
    write_tiny_gguf(tmp_path / "gguf" / "m.gguf")
    for path in (tmp_path / "adapter").glob("adapter_*"):
        shutil.copy(path, folder)
        shutil.copy(path, tmp_path / "gguf")
    for name in (folder, tmp_path / "gguf" / "m.gguf"):
        with pytest.raises(BapoError, match="holds an adapter"):
            load_model(str(name), device="cpu")
    monkeypatch.setattr("transformers.utils.find_adapter_config_file", lambda source: source)
    with pytest.raises(BapoError, match="some/adapter holds an adapter"):
        load_model("some/adapter", device="cpu")


def test_sentences_about_a_template_or_a_tokenizer_say_whose(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(BapoError, match=f"The chat template of {folder} hides what"):
        load_model(str(folder), precision="float32", device="cpu")
    (folder / "chat_template.jinja").unlink()
    chat = load_model(str(folder), precision="float32", device="cpu").chat
    with pytest.raises(BapoError, match=f"The tokenizer of {folder} has no chat template"):
        chat.prompt_ids([{"role": "user", "content": "Why?"}])
    with pytest.raises(BapoError, match=f"The tokenizer of {folder} could not decode a response"):
        chat.response_text([-5])


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_no_dropout_of_the_model_is_left_and_loras_stays(name: str) -> None:
    policy = add_lora(tiny_model(name), rank=4, dropout=0.5)
    disable_model_dropout(policy)
    policy.train()
    for module in policy.modules():  # a fresh adapter is zero, so its own dropout cannot be seen in the output
        assert not (isinstance(getattr(module, "dropout", None), float) and module.dropout)
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(policy(input_ids=ids).logits, policy(input_ids=ids).logits)
    assert any(m.p == 0.5 for n, m in policy.named_modules() if "lora_dropout" in n and isinstance(m, torch.nn.Dropout))
