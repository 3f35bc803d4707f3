"""Every key of a recipe has an effect: each is given a value of its own, and found again where it is used."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback, integrations

import bapo.anchoring
import bapo.models
import bapo.training
from bapo.jobs import Recipe, known_keys, personalize, read_recipe, stages, training
from bapo.models import add_lora
from bapo.objectives import ANCHOR_CONTROLS, ANCHORS
from tests.tiny import tiny_model, tiny_tokenizer

TRACKER = "a-tracker"

TOLD: dict[str, Any] = {
    "preferences.held_out": 4,
    "preferences.max_train_prompts": 7,
    "preferences.protocol": "paper",
    "preferences.data_folder": "data",
    "preferences.source": "dsp:academy",
    "model.precision": "float32",
    "model.kernels": ["fused-lora", "strands"],
    "anchoring.base_temperature": 0.7,
    "anchoring.base_max_new_tokens": 6,
    "training.objective": "dpop",
    "training.objective_settings": {"penalty": 3.0},
    "training.beta": 0.3,
    "training.anchor": "token",
    "training.anchor_strength": 3.5,
    "training.anchor_control": "adaptive",
    "training.lr_scheduler_type": "linear",
    "training.sampler": "by-pair",
    "training.per_device_train_batch_size": 3,
    "training.max_batch_tokens": 999,
    "training.strands": 3,
    "training.num_train_epochs": 2.5,
    "training.max_steps": 2,
    "lora.rank": 5,
    "lora.alpha": 7,
    "training.report_to": [TRACKER],
    "also_train": ["bapo"],
    "generations.prompts": 2,
    "generations.questions": ["new?"],
}
"""What a rule cannot make up; every other key gets another value than its default by `another`."""


def default_of(key: str) -> Any:
    value: Any = Recipe()
    for part in key.split("."):
        value = getattr(value, part)
    return value


def another(value: Any) -> Any:
    """A value that differs from a default."""
    if isinstance(value, bool):
        return not value
    assert isinstance(value, int | float), f"say in TOLD what a key may be whose default is {value!r}"
    return value + 2 if isinstance(value, int) else value / 2 or 0.5


class Tracker(TrainerCallback):
    pass


class Seen:
    """What was handed to the rooms below, and the trainers as they were made."""

    def __init__(self) -> None:
        self.calls: dict[str, list[dict[str, Any]]] = {}
        self.trainers: dict[str, Any] = {}
        self.first_weights: dict[str, torch.Tensor] = {}

    def of(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, whose arguments are noted."""
        own = self.calls.setdefault(name, [])

        def noting(*args: Any, **kwargs: Any) -> Any:
            bound = inspect.signature(function).bind(*args, **kwargs)
            bound.apply_defaults()
            own.append(dict(bound.arguments))
            return function(*args, **kwargs)

        return noting


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Spies on what a personalization calls; the preferences come from a small file whatever it asks for."""
    found = Seen()
    monkeypatch.setenv("BAPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(integrations.integration_utils.INTEGRATION_TO_CALLBACK, TRACKER, Tracker)
    rows = [{"prompt": f"q {i}", "chosen": f"good {i}", "rejected": f"bad {i * i}"} for i in range(15)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    split = stages.read_split(str(tmp_path / "mine.jsonl"), held_out=4)

    def read_split(source: str, **how: Any) -> Any:
        found.calls.setdefault("read_split", []).append({"source": source, **how})
        return split

    class Trainer(bapo.training.BAPOTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            found.trainers[self.args.objective] = self
            trained = [p for p in self.model.parameters() if p.requires_grad]
            found.first_weights[self.args.objective] = trained[0].detach().clone()

    monkeypatch.setattr(stages, "read_split", read_split)
    monkeypatch.setattr(bapo.training, "BAPOTrainer", Trainer)
    for package, name in (
        (bapo.models, "load_model"),
        (bapo.anchoring, "anchor_together"),
        (bapo.anchoring, "generate_batch"),
    ):
        monkeypatch.setattr(package, name, found.of(name, getattr(package, name)))
    return found


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def only(calls: list[dict[str, Any]], name: str, of: Callable[[Any], Any] = lambda value: value) -> Any:
    """What every call was told."""
    values = [of(call[name]) for call in calls]
    assert all(str(value) == str(values[0]) for value in values)
    return values[0]


def own_settings(trainer: Any) -> dict[str, float]:
    """What the pair loss is computed with, beside beta."""
    return {name: value for name, value in trainer.objective.pair_loss.keywords.items() if name != "beta"}


def used(seen: Seen, training: str) -> dict[str, Any]:
    """Each key's value, as what it is for has it: what was read, loaded, anchored, trained and answered."""
    generation, lengths = (only(seen.calls["anchor_together"], name) for name in ("generation", "lengths"))
    trainer = seen.trainers[training]
    args, lora = trainer.args, trainer.model.peft_config["default"]
    (anchor,) = (name for name, own in ANCHORS.items() if own is trainer.objective.anchor)
    (control,) = (name for name, own in ANCHOR_CONTROLS.items() if own.made is type(trainer.objective.control))
    asked = [tiny_tokenizer().decode(prompt) for prompt in seen.calls["generate_batch"][-1]["prompts"]]
    questions = [own for own in TOLD["generations.questions"] if any(own in prompt for prompt in asked)]
    trackers = [own for own in trainer.callback_handler.callbacks if isinstance(own, Tracker)]
    return {
        "model.name": only(seen.calls["load_model"], "name"),
        "model.precision": only(seen.calls["load_model"], "precision"),
        "model.kernels": only(seen.calls["generate_batch"], "kernels"),
        "model.trust_remote_code": only(seen.calls["load_model"], "trust_remote_code"),
        "preferences.source": only(seen.calls["read_split"], "source"),
        "preferences.data_folder": str(only(seen.calls["read_split"], "data_folder")),
        "preferences.protocol": only(seen.calls["read_split"], "protocol"),
        "preferences.plain": only(seen.calls["read_split"], "plain"),
        "preferences.held_out": only(seen.calls["read_split"], "held_out"),
        "preferences.split_seed": only(seen.calls["read_split"], "seed"),
        "preferences.max_train_prompts": len(trainer.train_dataset.preferences.groups),
        "preferences.max_prompt_tokens": lengths.max_prompt_tokens,
        "preferences.max_response_tokens": lengths.max_response_tokens,
        "anchoring.base_max_new_tokens": generation.max_new_tokens,
        "anchoring.base_temperature": generation.temperature,
        "anchoring.base_responses": generation.responses,
        "anchoring.base_seed": generation.seed,
        "anchoring.anchored_store": only(seen.calls["anchor_together"], "store", lambda store: str(store.folder)),
        "training.objective": trainer.objective.name,
        "training.beta": trainer.objective.beta,
        "training.anchor": anchor,
        "training.anchor_strength": args.anchor_strength,
        "training.anchor_control": control,
        "training.objective_settings": own_settings(trainer),
        "training.learning_rate": trainer.lr_scheduler.base_lrs[0],
        "training.lr_scheduler_type": args.lr_scheduler_type,
        "training.warmup_steps": args.warmup_steps,
        "training.max_grad_norm": args.max_grad_norm,
        "training.per_device_train_batch_size": args.train_batch_size,
        "training.max_batch_tokens": args.max_batch_tokens,
        "training.strands": args.strands,
        "training.gradient_accumulation_steps": args.gradient_accumulation_steps,
        "training.num_train_epochs": args.num_train_epochs,
        "training.max_steps": trainer.state.global_step,
        "lora.rank": lora.r,
        "lora.alpha": lora.lora_alpha,
        "lora.dropout": lora.lora_dropout,
        "training.sampler": args.sampler,
        "training.seed": args.seed,
        "training.track_base": args.track_base,
        "training.part_gradient_steps": args.part_gradient_steps,
        "training.gradient_checkpointing": args.checkpoints_activations,
        "training.save_steps": args.save_steps,
        "training.report_to": [TRACKER] * len(trackers),
        "also_train": [name for name in seen.trainers if name != training],
        "generations.questions": questions,
        "generations.prompts": len(asked) - len(questions),
        "generations.max_new_tokens": only(seen.calls["generate_batch"], "settings").max_new_tokens,
    }


ALONE = ("lora.enabled", "model.reference_adapter")
"""Keys without which the adapter's own settings have an effect; each has a test below."""


def test_every_key_arrives_where_it_is_used(seen: Seen, model: Path, tmp_path: Path) -> None:
    told: Mapping[str, Any] = {
        **{key: another(default_of(key)) for key in known_keys() if key not in (*TOLD, *ALONE, *paths_of(tmp_path))},
        **TOLD,
        **paths_of(tmp_path),
    }
    assert all(value != default_of(key) for key, value in told.items())
    personalize(read_recipe(None, dict(told)), tmp_path / "out")
    found = used(seen, "dpop")
    assert found.keys() | set(ALONE) == known_keys().keys(), "say in `used` where the new key is used"
    assert {key: found[key] for key in told} == dict(told)
    seed = told["training.seed"]
    assert {own.args.data_seed for own in seen.trainers.values()} == {None}, "the seed"
    fresh = add_lora(tiny_model("llama"), told["lora.rank"], told["lora.alpha"], 0.0, seed)
    expected = next(parameter for parameter in fresh.parameters() if parameter.requires_grad)
    assert all(torch.equal(weights, expected) for weights in seen.first_weights.values()), "the seed of the adapter"
    assert seen.trainers["dpop"].args.kernels == ",".join(told["model.kernels"])
    assert own_settings(seen.trainers["bapo"]) == {}, "settings of another objective"


def paths_of(folder: Path) -> dict[str, str]:
    return {"model.name": str(folder / "model"), "anchoring.anchored_store": str(folder / "store")}


def trained(tmp_path: Path, **told: Any) -> None:
    short = {
        "preferences.source": str(tmp_path / "mine.jsonl"),
        "training.max_steps": 1,
        "anchoring.base_max_new_tokens": 4,
    }
    recipe = read_recipe(None, {**paths_of(tmp_path), "model.precision": "float32", **short, **told})
    anchored = stages.anchor_split(recipe, stages.read(recipe), stages.load(recipe))
    training.train(recipe, "bapo", anchored.train, tmp_path / "run")


def test_full_trains_all_weights(seen: Seen, model: Path, tmp_path: Path) -> None:
    trained(tmp_path, **{"lora.enabled": False})
    policy = seen.trainers["bapo"].model
    assert not hasattr(policy, "peft_config")
    before = tiny_model("llama").state_dict()
    assert all(parameter.requires_grad for parameter in policy.parameters())
    assert all(not torch.equal(own, before[name]) for name, own in policy.state_dict().items())


def test_an_adapter_that_is_named_is_trained_further(seen: Seen, model: Path, tmp_path: Path) -> None:
    own = add_lora(tiny_model("llama"), rank=3)
    own.save_pretrained(tmp_path / "adapter")
    trained(tmp_path, **{"model.reference_adapter": str(tmp_path / "adapter")})
    policy = seen.trainers["bapo"].model
    assert policy.peft_config["default"].r == 3
    weights = next(parameter for parameter in own.parameters() if parameter.requires_grad)
    assert torch.equal(seen.first_weights["bapo"], weights)
