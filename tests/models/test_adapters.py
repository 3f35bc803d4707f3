"""What comes in by a door: adapters, weights and tokenizers that are whole, and a sentence for those that are not."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from bapo.errors import BapoError
from bapo.models import add_adapter, check_adapter, load_model, model_fingerprint, nonzero_adapters
from tests.tiny import CHATML, NO_END, tiny_model, tiny_tokenizer

LORA = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
IDS = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def trained(config: Any, model: Any = None) -> Any:
    """A model with an adapter that is not zero."""
    torch.manual_seed(3)
    policy = get_peft_model(model or tiny_model("llama"), config)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return policy.eval()


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    trained(LoraConfig(**LORA)).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def load(base: Path, adapter: Path | None = None, **more: Any) -> Any:
    return load_model(str(base), precision="float32", adapter=adapter, device="cpu", **more)


def rewrite(adapter: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}, path)


def reconfigure(adapter: Path, **changes: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ---- adapters that fit --------------------------------------------------------------------------------------------

KINDS = {
    "rslora": LoraConfig(**LORA, use_rslora=True),
    "dora": LoraConfig(**LORA, use_dora=True),
    "whole modules": LoraConfig(**LORA, modules_to_save=["lm_head", "embed_tokens"]),
    "embeddings": LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"], task_type="CAUSAL_LM"),
    "single tokens": LoraConfig(**LORA, trainable_token_indices=[5, 8]),
    "biases": LoraConfig(**LORA, bias="all"),
    "loha": LoHaConfig(r=2, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM"),
    "ia3": IA3Config(task_type="CAUSAL_LM"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_gives_the_numbers_that_it_was_trained_to(kind: str, base: Path, tmp_path: Path) -> None:
    policy = trained(KINDS[kind])
    policy.save_pretrained(tmp_path / "adapter")
    loaded = load(base, tmp_path / "adapter").model
    with torch.no_grad():
        expected = policy(input_ids=IDS).logits
        torch.testing.assert_close(loaded(input_ids=IDS).logits, expected, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(tiny_model("llama")(input_ids=IDS).logits, expected, atol=1e-2)
    assert nonzero_adapters(loaded) == ["default"]


def test_half_precision_and_pickled_weights_are_read(base: Path, adapter: Path) -> None:
    expected = load(base, adapter).model(input_ids=IDS).logits
    rewrite(adapter, lambda weights: {name: tensor.half() for name, tensor in weights.items()})
    torch.testing.assert_close(load(base, adapter).model(input_ids=IDS).logits, expected, atol=0.05, rtol=0.01)
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    torch.testing.assert_close(load(base, adapter).model(input_ids=IDS).logits, expected, atol=0.05, rtol=0.01)


# ---- adapters that do not -----------------------------------------------------------------------------------------


def _renamed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.replace(".model.layers", ".language_model.layers"): tensor for name, tensor in weights.items()}


def _torn(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:3000])


def _one_nan(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    next(iter(weights.values()))[0, 0] = float("nan")
    return weights


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "of a multimodal wrapper": (lambda a: rewrite(a, _renamed), "56 missing, e.g. .*; 56 without a place, e.g. "),
    "without a layer": (
        lambda a: rewrite(a, lambda w: {n: t for n, t in w.items() if "layers.3" not in n}),
        "weights: 14 missing, e.g. .*layers.3",
    ),
    "with a layer too many": (
        lambda a: rewrite(a, lambda w: w | {n.replace("rs.3", "rs.4"): t.clone() for n, t in w.items() if "rs.3" in n}),
        "14 without a place, e.g. .*layers.4",
    ),
    "of another rank": (lambda a: reconfigure(a, r=8), "of another shape, e.g. .*layers.0"),
    "of other modules": (lambda a: reconfigure(a, target_modules=["c_attn"]), "does not fit the model .*c_attn"),
    "with a module that it lacks": (lambda a: reconfigure(a, modules_to_save=["lm_head"]), "1 missing, e.g. .*lm_head"),
    "of a broken pattern": (lambda a: reconfigure(a, target_modules="[a"), "regular expression .* cannot be used"),
    "of an unknown kind": (lambda a: reconfigure(a, peft_type="NEWTUNER"), "cannot be read .*NEWTUNER"),
    "that is drawn": (lambda a: reconfigure(a, init_lora_weights="pissa_niter_4"), "not what was trained"),
    "of prompts": (lambda a: reconfigure(a, peft_type="PROMPT_TUNING", num_virtual_tokens=4), "adds tokens to prompts"),
    "empty": (lambda a: (a / "adapter_model.safetensors").write_bytes(b"") and None, "cannot be read"),
    "torn": (_torn, "cannot be read"),
    "no adapter_config.json that is JSON": (
        lambda a: (a / "adapter_config.json").write_text("{") and None,
        "cannot be",
    ),
    "with what is not a number": (lambda a: rewrite(a, _one_nan), "not a number .in 1 tensors, e.g. "),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_an_adapter_that_is_not_whole_is_one_sentence(fault: str, base: Path, adapter: Path) -> None:
    break_it, sentence = BROKEN[fault]
    break_it(adapter)
    with pytest.raises(BapoError, match=sentence) as told:
        load(base, adapter)
    assert "\n" not in str(told.value)


def test_an_adapter_that_is_nowhere_is_another_sentence_than_one_that_cannot_be_read(adapter: Path) -> None:
    with pytest.raises(BapoError, match="no adapter some/adapter here, and none came from the hub: name a folder with"):
        check_adapter("some/adapter")
    (adapter / "adapter_config.json").write_text("[]")
    with pytest.raises(BapoError, match=f"The adapter_config.json of the adapter {adapter} cannot be read"):
        check_adapter(adapter)


def test_an_adapter_of_another_size_is_one_sentence(base: Path, tmp_path: Path) -> None:
    trained(LoraConfig(**LORA), tiny_model("phi3-fused-window")).save_pretrained(tmp_path / "adapter")
    with pytest.raises(BapoError, match="does not fit the model"):
        load(base, tmp_path / "adapter")


def test_an_adapter_without_effect_is_said_to_be_so(base: Path, tmp_path: Path, caplog: Any) -> None:
    get_peft_model(tiny_model("llama"), LoraConfig(**LORA)).save_pretrained(tmp_path / "adapter")
    with caplog.at_level(logging.WARNING, logger="bapo"):
        load(base, tmp_path / "adapter")
    assert [record.message for record in caplog.records if "is zero" in record.message]


@pytest.mark.parametrize(("alpha", "told"), [(float("nan"), None), (float("inf"), None), (0, "is zero")])
def test_what_an_adapter_is_multiplied_with_is_a_number_and_not_zero(
    alpha: float, told: str | None, base: Path, adapter: Path, caplog: Any
) -> None:
    reconfigure(adapter, lora_alpha=alpha)
    if told is None:
        with pytest.raises(BapoError, match="lora_alpha and r must give a number"):
            load(base, adapter)
    else:
        load(base, adapter)
        assert told in caplog.text


def test_a_whole_module_with_a_scaling_of_its_own_can_be_trained(base: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=["down_proj"], modules_to_save=["self_attn"], task_type="CAUSAL_LM")
    assert not nonzero_adapters(add_adapter(tiny_model("llama"), config))
    policy = trained(config)
    policy.save_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(load(base, tmp_path / "adapter").model(IDS).logits, policy(IDS).logits)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"alora_invocation_tokens": [5, 6]}, "is an activated LoRA"),
        ({"layer_replication": [[0, 4], [2, 4]]}, "repeats layers of the model"),
        ({"lora_dropout": 1.0}, "must lie from 0 to below 1"),
    ],
)
def test_an_adapter_that_does_more_than_its_layers_is_refused(
    settings: dict[str, Any], sentence: str, base: Path, tmp_path: Path
) -> None:
    config = LoraConfig(**{**LORA, **settings})
    with pytest.raises(BapoError, match=f"The peft_config {sentence}|The peft_config has .* {sentence}"):
        add_adapter(tiny_model("llama"), config)
    get_peft_model(tiny_model("llama"), config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(BapoError, match=sentence):
        load(base, tmp_path / "adapter")


def test_settings_that_this_peft_does_not_know_are_named(base: Path, adapter: Path, caplog: Any) -> None:
    reconfigure(adapter, brand_new_option=True, another_one=None)
    with caplog.at_level(logging.WARNING, logger="bapo"):
        load(base, adapter)
    assert [r.message for r in caplog.records if r.message.endswith("does not know and ignores: brand_new_option.")]


# ---- tokenizers and embeddings ------------------------------------------------------------------------------------


def test_the_tokenizer_that_came_with_an_adapter_is_used_and_said(base: Path, adapter: Path, caplog: Any) -> None:
    tiny_tokenizer(NO_END).save_pretrained(adapter)
    with caplog.at_level(logging.WARNING, logger="bapo"):
        loaded = load(base, adapter)
    assert loaded.tokenizer.chat_template == NO_END
    assert "has its own chat template" in caplog.text


def test_the_same_tokenizer_is_nothing_to_speak_of(base: Path, adapter: Path, caplog: Any) -> None:
    tiny_tokenizer(CHATML).save_pretrained(adapter)
    with caplog.at_level(logging.WARNING, logger="bapo"):
        load(base, adapter)
    assert not caplog.records


def larger(name: str, **config: Any) -> Any:
    model = tiny_model(name)
    model.resize_token_embeddings(270, mean_resizing=False)
    return trained(LoraConfig(**LORA, **config), model)


def test_embeddings_grow_with_an_adapter_that_brings_them(base: Path, tmp_path: Path) -> None:
    policy = larger("llama", modules_to_save=["embed_tokens", "lm_head"])
    policy.save_pretrained(tmp_path / "adapter")
    loaded, again = (load(base, tmp_path / "adapter").model for _ in range(2))
    ids = torch.tensor([[5, 265, 269, 8]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=ids).logits, policy(input_ids=ids).logits, atol=1e-4, rtol=1e-4)
    assert model_fingerprint(loaded) == model_fingerprint(again)


def test_embeddings_that_an_adapter_brings_in_part_are_one_sentence(base: Path, tmp_path: Path) -> None:
    larger("llama", modules_to_save=["embed_tokens"]).save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    with pytest.raises(BapoError, match=r"lm_head of none, model.embed_tokens of \[270\]"):
        load(base, tmp_path / "adapter")


# ---- models -------------------------------------------------------------------------------------------------------


def _without(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in weights.items() if "layers.2.mlp.up" not in name}


def _too_many(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return weights | {"model.layers.4.mlp.up_proj.weight": torch.ones(96, 64)}


def _misshapen(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return weights | {"model.layers.2.mlp.up_proj.weight": torch.ones(2, 2)}


def _infinite(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    weights["model.layers.2.mlp.up_proj.weight"][3, 5] = float("inf")
    return weights


@pytest.mark.parametrize("precision", ["bf16", "nf4"])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_without, "1 missing, e.g. model.layers.2.mlp.up_proj"),
        (_too_many, "1 without a place, e.g. model.layers.4"),
        (_misshapen, "1 of another shape, e.g. model.layers.2"),
        (_infinite, "not a number .in 1 tensors, e.g. model.layers.2.mlp.up_proj"),
    ],
)
def test_weights_that_are_not_the_models_are_one_sentence(
    change: Callable[..., Any], sentence: str, precision: str, base: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(base, tmp_path / "model")
    weights = change(load_file(folder / "model.safetensors"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BapoError, match=sentence):
        load_model(str(folder), precision=precision, device="cpu")


def test_buffers_of_older_versions_are_no_weights(base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base, tmp_path / "model")
    old = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
        "model.layers.0.attn.masked_bias": torch.ones(1),
    }
    weights = load_file(folder / "model.safetensors") | old
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert model_fingerprint(load(folder).model) == model_fingerprint(load(base).model)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", None),
        ("model.safetensors", b""),
        ("tokenizer.json", b'{"x":'),
        ("tokenizer.json", b"{}"),
        ("tokenizer_config.json", b"[]"),
        ("config.json", b"{"),
        ("config.json", b"[1]"),
        ("generation_config.json", b'{"eos_token_id": "x"}'),
    ],
)
def test_damaged_files_are_one_sentence(file: str, content: bytes | None, base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base, tmp_path / "model")
    path = folder / file
    path.write_bytes(path.read_bytes()[:1000] if content is None else content)
    with pytest.raises(BapoError):
        load(folder)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"hello\n", b"GGUF\x03\x00\x00\x00" + b"\xff" * 64])
def test_what_is_no_gguf_is_one_sentence(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAPO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "some.gguf").write_bytes(content)
    with pytest.raises(BapoError, match="could not be read as a GGUF model"):
        load_model(str(tmp_path / "some.gguf"), device="cpu")
    assert not list((tmp_path / "cache" / "models").iterdir())


def test_a_cache_that_cannot_be_made_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BAPO_CACHE", str(tmp_path / "file" / "cache"))
    (tmp_path / "some.gguf").write_bytes(b"GGUF")
    with pytest.raises(BapoError, match="set BAPO_CACHE"):
        load_model(str(tmp_path / "some.gguf"), device="cpu")


# ---- what a model is ----------------------------------------------------------------------------------------------


def test_a_model_is_what_it_computes_with() -> None:
    plain = model_fingerprint(tiny_model("llama"))
    policy = trained(LoraConfig(**LORA, modules_to_save=["lm_head"]))
    first = model_fingerprint(policy)
    with policy.disable_adapter():
        assert model_fingerprint(policy) == plain
    policy.add_adapter("other", LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    assert model_fingerprint(policy) == first
    policy.set_adapter("other")
    assert nonzero_adapters(policy) == ["other"]
    assert model_fingerprint(policy) not in (plain, first)


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"]),
        LoraConfig(**LORA, modules_to_save=["lm_head"]),
        LoraConfig(**LORA, init_lora_weights="mica"),
    ],
)
def test_a_fresh_adapter_is_zero_wherever_its_zeros_are(config: LoraConfig) -> None:
    policy = get_peft_model(tiny_model("llama"), config)
    assert nonzero_adapters(policy) == []
    assert model_fingerprint(policy) == model_fingerprint(tiny_model("llama"))


@pytest.mark.parametrize("initial", ["pissa", "pissa_niter_4", "olora"])
def test_an_adapter_that_would_change_the_model_itself_is_refused_and_has_not_done_so(initial: str) -> None:
    model = tiny_model("llama")
    before = model_fingerprint(model)
    with pytest.raises(BapoError, match="changes the weights of the model itself"):
        add_adapter(model, LoraConfig(**LORA, init_lora_weights=initial))
    assert model_fingerprint(model) == before


def test_a_second_adapter_is_refused() -> None:
    policy = trained(LoraConfig(**LORA))
    with pytest.raises(BapoError, match="has an adapter already"):
        add_adapter(policy, LoraConfig(**LORA))
    assert not isinstance(policy.get_base_model(), PeftModel)
