"""Settings: one default and one range each, wherever they are given."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bapo import BAPOConfig
from bapo.errors import BapoError
from bapo.jobs import Recipe, read_recipe
from bapo.jobs.recipe import TrainingSection
from bapo.jobs.training import training_arguments
from bapo.models.lora import LORA_ALPHA, LORA_DROPOUT, LORA_RANK
from bapo.objectives import ANCHORS, make_objective
from bapo.settings import ANCHOR, ANCHOR_STRENGTH, LEARNING_RATE, RANGES, SETTINGS, Range, check_number

ABSURD = [float("nan"), float("inf"), -float("inf"), True, "many", "1", [1], 10**24, -(10**24), 10**400]


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("value", ABSURD, ids=lambda value: repr(value)[:9] if value != 10**400 else "huge")
def test_no_setting_is_absurd(name: str, value: Any) -> None:
    if name == "stop_at_loss" and value in (float("inf"), 10**24, 10**400):
        assert check_number(name, value) == value  # a run that nothing stops
        return
    with pytest.raises(BapoError, match=rf"^{name} must be a .*number .*, and it is .{{1,70}}\.$"):
        check_number(name, value)


def test_the_ends_of_a_range() -> None:
    half_open = Range(0, 1, "[)")
    assert half_open.number(0) == 0
    assert half_open.number(0.999) == 0.999
    for value in (1, -0.001):
        with pytest.raises(ValueError, match="a number from 0 and below 1"):
            half_open.number(value)
    with pytest.raises(ValueError, match="a number above 0 and at most 1"):
        Range(0, 1, "(]").number(0)
    with pytest.raises(ValueError, match="a whole number from 1 to 1,024"):
        RANGES["strands"].number(1.5)
    assert RANGES["strands"].number(np.int64(8)) == 8
    assert isinstance(RANGES["strands"].number(8.0), int)


def test_yaml_hands_on_numbers_as_text_and_a_recipe_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("training:\n  learning_rate: 1e-5\n  max_steps: 1e2\nlora:\n  rank: '8'\n")
    recipe = read_recipe(str(path))
    assert (recipe.training.learning_rate, recipe.training.max_steps, recipe.lora.rank) == (1e-5, 100, 8)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training.learning_rate", ".inf"),
        ("training.learning_rate", "0"),
        ("training.learning_rate", "true"),
        ("training.num_train_epochs", ".inf"),
        ("training.num_train_epochs", ".nan"),
        ("training.max_steps", "1000000000000000000000000"),
        ("training.seed", "-1"),
        ("preferences.split_seed", "4294967296"),
        ("anchoring.base_seed", "1.5"),
        ("anchoring.base_responses", "18446744073709551616"),
        ("lora.rank", "1099511627776"),
        ("training.per_device_train_batch_size", "4000000000"),
        ("training.beta", "-.1"),
        ("generations.prompts", "-1"),
    ],
)
def test_a_recipe_says_which_number_is_absurd(key: str, value: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    section, name = key.split(".")
    path.write_text(f"{section}:\n  {name}: {value}\n")
    with pytest.raises(BapoError, match=rf"^'{key}' in .*mine.yaml is .*, and it must be a (whole )?number"):
        read_recipe(str(path))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"learning_rate": float("inf")}, "learning_rate must be a number above 0 and at most 1, and it is inf"),
        ({"learning_rate": "1e-5"}, "learning_rate must be a number"),
        ({"max_steps": 10**24}, "max_steps must be a whole number"),
        ({"seed": -1}, "seed must be a whole number from 0 to 4,294,967,295"),
        ({"data_seed": 2**32}, "data_seed must be"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size must be"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be"),
        ({"num_train_epochs": float("nan")}, "num_train_epochs must be"),
        ({"weight_decay": -1}, "weight_decay must be"),
        ({"beta": 0}, "beta must be"),
        ({"anchor_strength": float("nan")}, "anchor_strength must be"),
        ({"base_temperature": float("inf")}, "base_temperature must be"),
        ({"base_responses": 3}, "set a temperature"),
        ({"track_base": "false"}, "track_base must be True or False"),
        ({"bf16": "yes"}, "bf16 must be True or False"),
        ({"lr_scheduler_type": "cosin"}, "The settings do not fit .*cosin"),
    ],
)
def test_a_config_says_which_setting_is_absurd(settings: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(BapoError, match=sentence):
        BAPOConfig(str(tmp_path), **settings)


def test_an_objective_has_one_default_anchor_strength_and_beta() -> None:
    objective, recipe = make_objective("bapo"), Recipe()
    config = BAPOConfig("here").make_objective()
    of_recipe = training_arguments(recipe, recipe.training, 1000, Path("here"), use_cpu=True).make_objective()
    assert objective.anchor is config.anchor is of_recipe.anchor is ANCHORS[ANCHOR]
    assert objective.anchor_strength == config.anchor_strength == of_recipe.anchor_strength == ANCHOR_STRENGTH == 5
    assert objective.beta == config.beta == of_recipe.beta == 0.1


OWN_TO_RECIPES = {
    "output_dir": "the run's folder",
    "num_train_epochs": "as many as make enough steps of the pairs that there are",
    "seed": "transformers' own default is 42",
    "save_steps": "a command that is killed goes on from there",
    "save_total_limit": "only the last checkpoint is gone on from",
    "report_to": "the recipe's list",
    "log_level": "the command shows progress itself",
    "disable_tqdm": "the command shows progress itself",
    "logging_dir": "lies in the output folder",
    "max_steps": "-1 for none",
    "use_cpu": "where the model is on a CPU, so that several processes find each other",
}


def test_a_recipe_and_a_config_have_the_same_defaults(tmp_path: Path) -> None:
    """What `bapo train` hands on where nothing is said is what `BAPOConfig` has where nothing is said."""
    of_recipe = training_arguments(Recipe(), Recipe().training, 1000, tmp_path, use_cpu=True)
    ours = BAPOConfig(str(tmp_path))
    different = {own.name for own in fields(ours) if getattr(ours, own.name) != getattr(of_recipe, own.name)}
    assert different <= OWN_TO_RECIPES.keys()
    assert of_recipe.learning_rate == ours.learning_rate == LEARNING_RATE
    recipe = Recipe()
    lengths, generation = ours.lengths(), ours.generation()
    assert lengths.max_prompt_tokens == recipe.preferences.max_prompt_tokens
    assert lengths.max_response_tokens == recipe.preferences.max_response_tokens
    told = recipe.anchoring
    assert (generation.max_new_tokens, generation.temperature, generation.responses, generation.seed) == (
        told.base_max_new_tokens,
        told.base_temperature,
        told.base_responses,
        told.base_seed,
    )
    assert (recipe.lora.rank, recipe.lora.dropout) == (LORA_RANK, LORA_DROPOUT)
    assert 2 * LORA_RANK == LORA_ALPHA  # what alpha: null means


def test_no_default_is_written_a_second_time() -> None:
    import bapo.jobs.recipe as recipe
    import bapo.objectives.objective as objective
    import bapo.objectives.registry as registry
    import bapo.training.config as config

    for module in (objective, registry, recipe, config):
        code = inspect.getsource(module)
        assert '= "length-normalized"' not in code
        assert "2e-4" not in code


def test_a_bound_on_both_together_is_the_bound_of_each_as_in_trl() -> None:
    assert BAPOConfig("here").lengths().max_prompt_tokens == 1024
    lengths = BAPOConfig("here", max_length=2048, max_response_tokens=100).lengths()
    assert (lengths.max_prompt_tokens, lengths.max_response_tokens, lengths.max_tokens) == (2048, 100, 2048)


def test_a_shared_setting_is_a_key_and_a_field_of_one_name() -> None:
    sections = (type(getattr(Recipe(), name)) for name in Recipe.model_fields if name != "also_train")
    keys = {key for section in sections for key in section.model_fields}
    names = {own.name for own in fields(BAPOConfig)}
    assert set(SETTINGS) <= keys & names
    assert set(TrainingSection.model_fields) <= names
    told = [
        own for own in fields(BAPOConfig) if own.metadata.get("help") == getattr(SETTINGS.get(own.name), "meaning", "")
    ]
    assert len(told) > 20
    documented = " ".join(str(BAPOConfig.__doc__).split())
    assert all(f"{own.name}: {own.metadata['help']}." in documented for own in told)


def test_a_setting_of_its_own_is_not_taken_among_further_ones(tmp_path: Path) -> None:
    for name in ("beta", "anchor", "anchor_strength", "anchor_control"):
        with pytest.raises(BapoError, match=f"{name} is a setting of its own"):
            BAPOConfig(str(tmp_path), objective_settings={name: 3})
