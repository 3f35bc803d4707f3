"""Whose adapter is trained, what it is compared with, and whether what was saved is what was trained."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import IA3Config, LoHaConfig, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file

from bapo import BAPOConfig, BAPOTrainer
from bapo.errors import BapoError
from bapo.training.saved import check_saved
from tests.tiny import CHATML, tiny_model, tiny_tokenizer

LORA = {"r": 4, "target_modules": ["q_proj", "v_proj", "up_proj"], "lora_dropout": 0.0, "task_type": "CAUSAL_LM"}
ROWS = [{"prompt": f"Question {i}.", "chosen": f" Yes, {i}.", "rejected": f" No {i * i}."} for i in range(4)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAPO_CACHE", str(tmp_path / "cache"))


def make(tmp_path: Path, model: Any, tokenizer: Any = None, rows: Any = ROWS, **more: Any) -> BAPOTrainer:
    settings = BAPOConfig(
        output_dir=str(tmp_path / "out"), base_max_new_tokens=4, max_steps=2, per_device_train_batch_size=2,
        use_cpu=True, save_strategy="no", disable_tqdm=True, learning_rate=1e-2, seed=0,
    )  # fmt: skip
    return BAPOTrainer(
        model,
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer or tiny_tokenizer(None),
        **more,
    )


def trained(model: Any = None, **config: Any) -> Any:
    torch.manual_seed(1)
    policy = get_peft_model(model or tiny_model("llama"), LoraConfig(**{**LORA, **config}))
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return policy


@torch.no_grad()
def plain_logp(model: Any, group: Any) -> float:
    """Of a group's first response, through the model's own attention."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    before = inner.config._attn_implementation
    inner.set_attn_implementation("eager")
    model.eval()
    prompt, response = group.tokens.prompt, group.tokens.responses[0]
    logps = model(input_ids=torch.tensor([[*prompt, *response]]), use_cache=False).logits[0].log_softmax(-1)
    inner.set_attn_implementation(before)
    return sum(float(logps[len(prompt) - 1 + i, token]) for i, token in enumerate(response))


def first_group(trainer: BAPOTrainer) -> Any:
    return trainer.train_dataset.preferences.groups[0]


# ---- references ---------------------------------------------------------------------------------------------------


def test_an_adapter_that_came_on_the_model_is_part_of_its_reference(tmp_path: Path) -> None:
    trainer = make(tmp_path, trained())
    group = first_group(trainer)
    assert group.ref_logps[0] == pytest.approx(plain_logp(trained(), group), abs=1e-3)


@pytest.mark.parametrize("config", [{"init_lora_weights": False}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}])
def test_a_fresh_adapter_is_no_part_of_its_reference(config: dict[str, Any], tmp_path: Path) -> None:
    trainer = make(tmp_path, tiny_model("llama"), peft_config=LoraConfig(**LORA, **config))
    group = first_group(trainer)
    assert group.ref_logps[0] == pytest.approx(plain_logp(tiny_model("llama"), group), abs=1e-3)
    trainer.train()
    with trainer._reference.scoring():
        assert plain_logp(trainer.model, group) == pytest.approx(group.ref_logps[0], abs=1e-3)


def test_of_two_adapters_the_active_one_counts(tmp_path: Path) -> None:
    policy = trained()
    policy.add_adapter("other", LoraConfig(r=4, target_modules=["k_proj"], init_lora_weights=False))
    policy.set_adapter("other")
    alone = copy.deepcopy(policy)
    trainer = make(tmp_path, policy)
    group = first_group(trainer)
    assert group.ref_logps[0] == pytest.approx(plain_logp(alone, group), abs=1e-3)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    again = PeftModel.from_pretrained(tiny_model("llama"), str(tmp_path / "saved" / "other"))
    assert plain_logp(again, group) == pytest.approx(plain_logp(trainer.model, group), abs=1e-3)


# ---- refused before anything is done ------------------------------------------------------------------------------


def _frozen() -> Any:
    return tiny_model("llama").requires_grad_(False)


def _for_inference() -> Any:
    return trained().requires_grad_(False)


def _two_active() -> Any:
    policy = trained()
    policy.add_adapter("other", LoraConfig(r=4, target_modules=["k_proj"]))
    policy.base_model.set_adapter(["default", "other"])
    return policy


def _base_thawed() -> Any:
    policy = trained()
    policy.get_base_model().lm_head.weight.requires_grad_(True)
    return policy


def _prompts() -> Any:
    return get_peft_model(tiny_model("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))


def _not_a_number() -> Any:
    model = tiny_model("llama")
    model.get_input_embeddings().weight.data[250, 0] = float("nan")  # of a token that does not occur
    return model


@pytest.mark.parametrize(
    ("model", "config", "sentence"),
    [
        (trained, LoraConfig(**LORA), "has an adapter already"),
        (_frozen, None, "all weights of the model are frozen"),
        (_for_inference, None, "is_trainable=True"),
        (_two_active, None, "2 adapters of the model are active"),
        (_base_thawed, None, "1 weights are trainable that are not the adapter's .*lm_head"),
        (_prompts, None, "adds tokens to prompts"),
        (_not_a_number, None, "not a number"),
        (
            lambda: tiny_model("llama"),
            PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
            "adds tokens to prompts",
        ),
        (lambda: tiny_model("llama"), LoraConfig(r=4, target_modules=["c_attn"]), "check its target_modules"),
        (
            lambda: tiny_model("llama"),
            LoraConfig(**LORA, init_lora_weights="pissa"),
            "would no longer be the reference",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_first(
    model: Any, config: Any, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def costly(*_: Any, **__: Any) -> None:
        raise AssertionError("something was anchored")

    monkeypatch.setattr("bapo.training.reference.anchor", costly)
    with pytest.raises(BapoError, match=sentence):
        make(tmp_path, model(), peft_config=config)


def test_a_token_beyond_the_embeddings_is_named(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(None)
    tokenizer.add_tokens(["<more>"])
    make(tmp_path, tiny_model("llama"), copy.deepcopy(tokenizer))  # it does not occur
    rows = [*ROWS, {"prompt": "What?", "chosen": " This.", "rejected": " <more>"}]
    with pytest.raises(BapoError, match=r"'<more>' has the id 260, .* for 260 tokens.*resize_token_embeddings\(261\)"):
        make(tmp_path, tiny_model("llama"), tokenizer, rows)


def test_an_end_token_beyond_the_embeddings_is_named(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(CHATML)
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})
    with pytest.raises(BapoError, match=r"'<\|im_end\|>' has the id 260"):
        make(tmp_path, tiny_model("llama"), tokenizer)


# ---- what was saved -----------------------------------------------------------------------------------------------

CONFIGS = {
    "lora": LoraConfig(**LORA),
    "dora": LoraConfig(**LORA, use_dora=True),
    "whole modules": LoraConfig(**LORA, modules_to_save=["lm_head"]),
    "biases": LoraConfig(**LORA, bias="all"),
    "single tokens": LoraConfig(**LORA, trainable_token_indices=[5, 8]),
    "loha": LoHaConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "ia3": IA3Config(task_type="CAUSAL_LM"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_is_saved_is_what_was_trained(kind: str, tmp_path: Path) -> None:
    trainer = make(tmp_path, tiny_model("qwen2"), peft_config=copy.deepcopy(CONFIGS[kind]))
    trainer.train()
    after = {name: parameter.requires_grad for name, parameter in trainer.model.named_parameters()}
    trainer.save_model(str(tmp_path / "saved"))
    assert {name: parameter.requires_grad for name, parameter in trainer.model.named_parameters()} == after
    assert trainer.model.active_adapter == "default"
    again = PeftModel.from_pretrained(tiny_model("qwen2"), str(tmp_path / "saved"))
    group = first_group(trainer)
    assert plain_logp(again, group) == pytest.approx(plain_logp(trainer.model, group), abs=1e-3)


@pytest.mark.parametrize("name", ["llama", "llama-tied"])
def test_a_whole_model_is_saved_as_it_was_trained(name: str, tmp_path: Path) -> None:
    trainer = make(tmp_path, tiny_model(name))
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    path = tmp_path / "saved" / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.2.mlp.up_proj.weight"][0, 0] += 1e-3
    save_file(weights, path)
    with pytest.raises(BapoError, match=r"not what was trained: model\.layers\.2"):
        check_saved(trainer.model, trainer.scorer, tmp_path / "saved", ())
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, path)
    with pytest.raises(BapoError, match=r"lacks 1 weights, e\.g\. model\.layers\.2"):
        check_saved(trainer.model, trainer.scorer, tmp_path / "saved", ())


@pytest.mark.parametrize("bias", ["none", "all"])
def test_an_adapter_that_is_not_what_was_trained_is_told(bias: str, tmp_path: Path) -> None:
    trainer = make(tmp_path, tiny_model("qwen2"), peft_config=LoraConfig(**LORA, bias=bias))
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    path = tmp_path / "saved" / "adapter_model.safetensors"
    save_file({name: tensor * 1.01 for name, tensor in load_file(path).items()}, path)
    group = (first_group(trainer).tokens,)
    with pytest.raises(BapoError, match="not what was trained"):
        check_saved(trainer.model, trainer.scorer, tmp_path / "saved", group)
    path.write_bytes(b"")
    with pytest.raises(BapoError, match="cannot be loaded again"):
        check_saved(trainer.model, trainer.scorer, tmp_path / "saved", group)
    assert trainer.model.active_adapter == "default"


def test_a_run_that_saves_something_else_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make(tmp_path, tiny_model("llama"), peft_config=LoraConfig(**LORA))
    trainer.train()

    def another(_: Any, folder: str, __: bool) -> None:
        trained().save_pretrained(folder)

    monkeypatch.setattr("transformers.Trainer.save_model", another)
    with pytest.raises(BapoError, match="not what was trained: a token's log-prob differs by"):
        trainer.save_model(str(tmp_path / "saved"))


def test_a_pissa_adapter_that_came_on_the_model_is_trained_further(tmp_path: Path) -> None:
    policy = get_peft_model(tiny_model("llama"), LoraConfig(**LORA, init_lora_weights="pissa"))
    trainer = make(tmp_path, policy)
    group = first_group(trainer)
    assert group.ref_logps[0] == pytest.approx(plain_logp(tiny_model("llama"), group), abs=1e-2)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    again = PeftModel.from_pretrained(tiny_model("llama"), str(tmp_path / "saved"))
    assert plain_logp(again, group) == pytest.approx(plain_logp(trainer.model, group), abs=1e-2)
