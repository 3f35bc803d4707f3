"""Recipes: strict keys, overrides, and the paper's settings."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any, get_args

import pytest
import typer

from bapo.cli.app import app
from bapo.cli.options import recipe_from, recipe_of
from bapo.errors import BapoError
from bapo.jobs import known_keys, read_recipe, shipped_recipes
from tests.command import bapo

DEFAULTS: dict[str, Any] = {
    "model.reference_adapter": None,
    "model.trust_remote_code": False,
    "preferences.plain": False,
    "preferences.split_seed": 0,
    "model.kernels": "auto",
    "preferences.max_prompt_tokens": 1024,
    "preferences.max_response_tokens": 1024,
    "anchoring.base_temperature": 0.0,
    "anchoring.base_responses": 1,
    "anchoring.base_seed": 0,
    "training.anchor_control": "constant",
    "training.objective": "bapo",
    "training.objective_settings": {},
    "training.lr_scheduler_type": "cosine",
    "training.warmup_steps": 0,
    "training.max_grad_norm": 1.0,
    "training.max_batch_tokens": None,
    "training.strands": None,
    "training.gradient_accumulation_steps": 1,
    "training.num_train_epochs": 1.0,
    "training.max_steps": None,
    "lora.rank": 32,
    "lora.dropout": 0.05,
    "lora.enabled": True,
    "training.seed": 0,
    "training.track_base": True,
    "training.part_gradient_steps": 0,
    "training.gradient_checkpointing": False,
}
"""What both shipped recipes have, whether they say it or leave it to the defaults."""

SHIPPED: dict[str, dict[str, Any]] = {
    # Section 4.1 and 3.1, and beta 0.1, DPO's usual value, which the paper does not change. Its batches are of pairs.
    "paper": {
        **DEFAULTS,
        "model.name": "microsoft/Phi-3-mini-128k-instruct",
        "model.precision": "nf4",
        "preferences.source": "dsp:academy",
        "preferences.protocol": "paper",
        "preferences.held_out": None,
        "preferences.max_train_prompts": None,
        "anchoring.base_max_new_tokens": 256,
        "training.anchor": "sequence",
        "training.anchor_strength": 5.0,
        "training.beta": 0.1,
        "training.learning_rate": 5e-5,
        "training.per_device_train_batch_size": 8,
        "lora.alpha": 64,
        "training.sampler": "by-pair",
        "also_train": [],
        "generations.questions": [],
        "generations.prompts": 3,
        "generations.max_new_tokens": 160,
    },
    "demo": {
        **DEFAULTS,
        "model.name": "smollm2",
        "model.precision": "auto",
        "preferences.source": "starter:concise",
        "preferences.protocol": "by-prompt",
        "preferences.held_out": 12,
        "preferences.max_train_prompts": 24,
        "anchoring.base_max_new_tokens": 128,
        "training.anchor": None,
        "training.anchor_strength": None,
        "training.beta": None,
        "training.learning_rate": 5e-4,
        "training.per_device_train_batch_size": 5,
        "lora.alpha": None,
        "training.sampler": "by-prompt",
        "also_train": ["dpo"],
        "generations.questions": [
            "Why is the sky blue?",
            "Why should I drink water?",
            "How do I make friends at a new school?",
        ],
        "generations.prompts": 0,
        "generations.max_new_tokens": 128,
    },
}
CHANGE_NO_RESULT = {"preferences.data_folder", "anchoring.anchored_store", "training.save_steps", "training.report_to"}


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_shipped_recipe_has_the_stated_value_of_every_setting_that_determines_a_result(name: str) -> None:
    recipe = read_recipe(name).model_dump()

    def value_of(key: str) -> Any:
        return reduce(lambda section, part: section[part], key.split("."), recipe)

    assert {key: value_of(key) for key in known_keys() if key not in CHANGE_NO_RESULT} == SHIPPED[name]


def test_an_option_that_is_zero_wins_over_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("preferences:\n  split_seed: 7\n")
    assert recipe_from(str(path), None, {"preferences.split_seed": 0}).preferences.split_seed == 0
    assert recipe_from(str(path), None, {"preferences.split_seed": None}).preferences.split_seed == 7


@pytest.mark.parametrize(("told", "trained"), [([], ["dpo"]), (["--also-train", "ipo"], ["ipo"])])
def test_a_repeatable_option_wins_over_the_recipe_only_where_it_is_given(told: list[str], trained: list[str]) -> None:
    command = typer.main.get_command(app).commands["personalize"]  # type: ignore[attr-defined]
    with command.make_context("personalize", ["--recipe", "demo", *told]) as context:
        assert recipe_of(context).also_train == trained


def test_overrides_win_and_empty_ones_do_not() -> None:
    recipe = read_recipe("paper", {"lora.rank": 4, "lora.alpha": None, "also_train": ["dpo"]})
    assert (recipe.lora.rank, recipe.lora.alpha, recipe.also_train) == (4, 64, ["dpo"])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "training:\n  learningrate: 1",
            "Unknown key 'training.learningrate' in .*: did you mean 'training.learning_rate'",
        ),
        ("lora:\n  rank: many", "'lora.rank' in .* is 'many'"),
        ("lora:\n  dropout: 1.5", "'lora.dropout' in .* is 1.5"),
        ("training: [", "not valid YAML"),
        ("- a\n- b", "holds no sections"),
        ("lora:\n  rank: 4\n  rank: 8", r"not valid YAML \(the key 'rank' repeats, line 2\)"),
        ("training: {max_steps: 1}\nalso_train: []\ntraining: {}", "the key 'training' repeats"),
        ("training:\n  num_train_epochs: .inf", "'training.num_train_epochs' in .* is inf"),
        ("training:\n  learning_rate: .nan", "'training.learning_rate' in .* is nan"),
        ("training:\n  objective_settings: {penalty: .inf}", "'training.objective_settings.penalty'"),
        ("lora:\n  rank: 4000000000", "'lora.rank' in .* is 4000000000"),
        ("anchoring:\n  base_responses: 18446744073709551616", "'anchoring.base_responses'"),
        ("training:\n  seed: -1", "'training.seed' in .* is -1"),
        ("training:\n  max_steps: =", "not valid YAML"),
        ("training:\n  max_steps: !!float x", "not valid YAML"),
        ("training: '" + " " * 100_000 + "'", "'training' in .* is ' +.*, and it does not fit"),
        ("a: " + "[" * 10_000, "not valid YAML"),
        ("? [a]\n: b", "not valid YAML"),
        ("{1: 2}", "and it does not fit"),
    ],
)
def test_a_bad_recipe_is_one_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(BapoError, match=sentence) as caught:
        read_recipe(str(path))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("value", ["=", "!!timestamp x", "[", "!!python/object:os.system x", "{a: 1, a: 2}"])
def test_a_setting_that_is_no_yaml_is_one_sentence(value: str) -> None:
    with pytest.raises(BapoError, match=r"value of --set training.max_steps is not valid YAML"):
        recipe_from(None, [f"training.max_steps={value}"])


def test_a_recipe_in_another_encoding_is_read_where_it_says_so(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes("preferences:\n  source: né.jsonl\n".encode("utf-16"))
    assert read_recipe(str(path)).preferences.source == "né.jsonl"
    path.write_bytes("preferences:\n  source: né.jsonl\n".encode("latin-1"))
    with pytest.raises(BapoError, match=r"not UTF-8 text .line 2"):
        read_recipe(str(path))


@pytest.mark.parametrize("value", ["!!timestamp x", "!!float x", "=", "[", "{a: *b}"])
def test_a_value_that_yaml_cannot_read_is_one_sentence(value: str) -> None:
    with pytest.raises(BapoError, match=r"--set .* is not valid YAML"):
        recipe_from(None, [f"lora.rank={value}"])


def test_a_long_key_or_value_is_cut_in_the_sentence() -> None:
    for setting in ("training." + 5000 * "9" + "=1", "lora.rank=" + 5000 * "x", "training=" + 5000 * "x"):
        with pytest.raises(BapoError) as refused:
            recipe_from(None, [setting])
        assert len(str(refused.value)) < 300


def test_a_recipe_that_is_no_text_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"training:\n  rank: 4\x8e")
    with pytest.raises(BapoError, match=r"is not UTF-8 text .*: save it as UTF-8"):
        read_recipe(str(path))


def test_every_schedule_of_a_recipe_needs_no_more_than_its_name() -> None:
    """Those that need settings of their own, or an evaluation, are none of a recipe."""
    import torch
    from transformers import get_scheduler

    from bapo.jobs.recipe import Schedule

    for name in get_args(Schedule):
        optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=1.0)
        schedule = get_scheduler(name, optimizer, num_warmup_steps=1, num_training_steps=4)
        optimizer.step()
        schedule.step()
        assert 0 < schedule.get_last_lr()[0] <= 1
    with pytest.raises(BapoError, match=r"'training.lr_scheduler_type' in the command is 'cosin'"):
        recipe_from(None, ["training.lr_scheduler_type=cosin"])


def test_every_key_says_what_it_means() -> None:
    assert all(known_keys().values())


@pytest.mark.parametrize("name", [None, *shipped_recipes()])
def test_a_printed_recipe_has_every_key_with_its_meaning_and_is_the_same_recipe(
    name: str | None, tmp_path: Path
) -> None:
    printed = bapo("recipe", *([name] if name else []), "--set", "lora.rank=7", cwd=tmp_path).stdout
    (tmp_path / "mine.yaml").write_text(printed)
    assert read_recipe(str(tmp_path / "mine.yaml")) == read_recipe(name, {"lora.rank": 7})
    for key, meaning in known_keys().items():
        assert f"{key.rpartition('.')[2]}:" in printed
        assert f"# {meaning}" in printed
