"""A model that is given to the trainer or the scorer leaves as it came."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from bapo import BAPOConfig, BAPOTrainer
from bapo.anchoring import GenerationSettings, generate_batch
from bapo.evaluation.harness import BapoLM
from bapo.likelihood import ResponseScorer
from bapo.models import ChatFormat, LoadedModel, as_it_came
from tests.likelihood.test_scoring import groups
from tests.tiny import tiny_model, tiny_tokenizer
from tests.training.test_trainer import HELD_OUT, ROWS


def everything(model: torch.nn.Module) -> dict[str, Any]:
    """All that modules and configurations hold but for weights, tables of hooks by what is in them."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key not in ("_parameters", "_modules"):
                found[f"{name}.{key}"] = list(value.items()) if hasattr(value, "items") else value
        found[f"{name}.forward"] = vars(module).get("forward")
        found[f"{name}.config"] = copy.deepcopy(vars(module.config)) if hasattr(module, "config") else None
    found["attention"] = model.config._attn_implementation
    found["trainable"] = [parameter.requires_grad for parameter in model.parameters()]
    return found


def assert_same(model: torch.nn.Module, before: dict[str, Any]) -> None:
    after = everything(model)
    assert after.keys() == before.keys()
    for name, value in before.items():
        now = after[name]
        if name.endswith("._buffers"):
            assert [key for key, _ in now] == [key for key, _ in value]
            assert all(mine is theirs for (_, mine), (_, theirs) in zip(now, value, strict=True)), name
        else:
            assert now is value or now == value, name


def adapted(name: str = "llama", **settings: Any) -> torch.nn.Module:
    """With an adapter, dropout of all kinds, and a hook and an attribute of the caller's own."""
    model = tiny_model(name)
    if name == "gpt2":
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.1
    lora = LoraConfig(r=4, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM", **settings)
    torch.manual_seed(0)
    policy = get_peft_model(model, lora)
    for weight_name, parameter in policy.named_parameters():
        if "lora_B" in weight_name:
            torch.nn.init.normal_(parameter, std=0.05)
    policy.get_input_embeddings().register_forward_hook(lambda *_: None)
    policy.notes = {"mine": 1}
    return policy


class Broken(Exception):
    pass


def breaking(*_: Any) -> None:
    raise Broken


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2-softcap-window", "mamba-recurrent"])
@pytest.mark.parametrize("training", [False, True])
def test_the_scorer_leaves_a_model_as_it_came(name: str, training: bool) -> None:
    model = tiny_model(name) if name == "mamba-recurrent" else adapted(name)
    model.train(training)
    before = everything(model)
    scorer = ResponseScorer(model)
    assert_same(model, before)
    scorer.score(groups())
    assert_same(model, before)
    scorer(groups()).summed().sum().backward()
    assert_same(model, before)
    scorer.made_on()
    assert_same(model, before)
    with scorer, scorer:
        scorer(groups())
        if name == "llama":
            assert everything(model) != before  # or nothing here could fail
    assert_same(model, before)
    hook = model.get_input_embeddings().register_forward_hook(breaking)
    with pytest.raises(Broken), scorer:
        scorer.score(groups())
    with pytest.raises(Broken):
        scorer.score(groups())
    hook.remove()
    assert_same(model, before)


def test_generation_and_the_harness_leave_a_model_as_it_came() -> None:
    model = adapted().bfloat16().train()
    before = everything(model)
    generate_batch(model, [(3, 4, 5), (6, 7)], GenerationSettings(4), [2])
    assert_same(model, before)
    lm = BapoLM(LoadedModel("tiny", model, ChatFormat(tiny_tokenizer()), "bf16"))
    lm._loglikelihood_tokens([(None, [3, 4], [5, 6])])
    assert_same(model, before)


def trainer_of(model: Any, folder: Path, **settings: Any) -> BAPOTrainer:
    args = BAPOConfig(
        str(folder / "out"), max_steps=2, base_max_new_tokens=5, per_device_train_batch_size=4, save_strategy="no",
        disable_tqdm=True, use_cpu=True, **settings,
    )  # fmt: skip
    return BAPOTrainer(
        model, args=args, train_dataset=HELD_OUT.from_list(ROWS), eval_dataset=HELD_OUT,
        processing_class=tiny_tokenizer(None),
    )  # fmt: skip


@pytest.mark.parametrize(
    "settings", [{}, {"activation_checkpointing": True}, {"kernels": "off"}], ids=["plain", "checkpointing", "off"]
)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_trainer_leaves_a_model_as_it_came(
    name: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BAPO_CACHE", str(tmp_path / "cache"))
    model = adapted(name)
    before = everything(model)
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    trainer = trainer_of(model, tmp_path, **settings)
    assert_same(model, before)
    trainer.evaluate()
    assert_same(model, before)
    trainer.train()
    assert_same(model, before)
    trainer.predict(HELD_OUT)
    trainer.save_model(str(tmp_path / "saved"))
    assert_same(model, before)
    assert any(not torch.equal(now, own) for now, own in zip(model.parameters(), weights, strict=True))
    monkeypatch.setattr("bapo.training.trainer.stop_if_broken", breaking)
    for broken in (trainer.train, trainer.evaluate):
        with pytest.raises(Broken):
            broken()
        assert_same(model, before)


def test_changes_of_all_kinds_are_undone() -> None:
    model = adapted()
    before = everything(model)
    with as_it_came(model):
        layer = model.base_model.model.model.layers[0]
        layer.forward = layer.mlp.forward
        layer.register_forward_hook(lambda *_: None)
        layer.mlp.more, layer.mlp.training = 1, not layer.mlp.training
        del model.notes
        model.config._attn_implementation = "eager"
        model.base_model.model.model.rotary_emb.inv_freq = torch.ones(1)
        assert everything(model) != before
    assert_same(model, before)
