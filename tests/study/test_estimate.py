"""What a plan says a study takes: worked out by hand, from a datasheet, and refused where a size is not stated."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml

from bapo.cli.study import _estimated
from bapo.errors import BapoError
from bapo.jobs import stages
from bapo.models import ChatFormat, cache_folder
from bapo.preferences import Message
from bapo.reporting import estimate_rows
from bapo.study import Rates, datasheet_rates, estimate, open_study, with_counted_sizes
from tests.command import bapo
from tests.study.test_study import STUDY, made
from tests.tiny import tiny_model, tiny_tokenizer

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*/study.yaml"))

CONTENT: dict[str, Any] = {
    "recipe": {
        "preferences": {"held_out": 10, "max_train_prompts": 20},
        "training": {"max_steps": 5, "per_device_train_batch_size": 4},
        "lora": {"rank": 4},
    },
    "models": {"m": {"model.name": "somewhere/m"}},
    "grids": {"main": {"models": ["m"], "preferences": ["dsp:academy"], "methods": ["dpo"]}},
    "evaluation": {"benchmarks": ["piqa"], "limit": 7, "answers": 3},
    "sizes": {
        "models": {"m": {"parameters": 1000, "layers": 2, "hidden": 8, "vocabulary": 50, "source": "made up"}},
        "preferences": {
            "dsp:*": {
                "prompts": 40,
                "pairs": 80,
                "prompt_tokens": 10,
                "response_tokens": 20,
                "base_tokens": 30,
                "source": "made up",
            }
        },
        "benchmarks": {"piqa": {"questions": 100, "tokens": 50, "source": "made up"}},
    },
}


def write(folder: Path, content: Any) -> Path:
    (folder / "study.yaml").write_text(yaml.safe_dump(content))
    return folder / "study.yaml"


def test_tokens_and_seconds_are_those_that_one_counts_by_hand(tmp_path: Path) -> None:
    """Two pairs a prompt share their chosen response, so a group has 10 + 3 * 20 + 30 = 100 tokens."""
    rates = Rates(forward=1e4, trained=5e3, generated=1e3, start=2.0, called="slow")
    jobs = {
        each.work: each for each in estimate(open_study(write(tmp_path, CONTENT)), rates, {}) if "base" not in each.key
    }
    assert jobs["anchor"].tokens == 30 * 100
    assert jobs["anchor"].generated == 30 * 30
    assert jobs["train"].tokens == 5 * 2 * 100  # five steps of four pairs, which are two groups
    per_token = 2 * 1000 + 4 * 2 * 8 * (10 + 20 / 2)
    assert jobs["train"].flops == jobs["train"].tokens * 2 * per_token
    assert jobs["train"].seconds == pytest.approx(jobs["train"].flops / 5e3)
    assert jobs["train"].disk == 4 * 20 * 4 * 8 * 2  # an adapter of rank 4 in float32
    assert jobs["evaluate"].tokens == 7 * 50 + 2 * 10 * 100
    assert jobs["evaluate"].generated == 3 * 30
    seconds = per_token * (jobs["evaluate"].tokens / 1e4 + 90 / 1e3)
    assert jobs["evaluate"].seconds == pytest.approx(seconds)
    per_token = 2 * 1000 + 4 * 2 * 8 * (10 + 30 / 2)
    anchoring = 2 + per_token * (30 * 100 / 1e4 + 30 * 30 / 1e3)  # the first job, in which the model is loaded
    assert jobs["anchor"].seconds == pytest.approx(anchoring)


@pytest.mark.parametrize(("shared", "tokens", "generated"), [("prompts", 30 * 70, 0), ("responses", 0, 0)])
def test_what_preferences_share_is_anchored_once(shared: str, tokens: int, generated: int, tmp_path: Path) -> None:
    content = deepcopy(CONTENT)
    content["grids"]["main"]["preferences"] = ["dsp:academy", "dsp:business"]
    content["sizes"]["preferences"]["dsp:*"]["shared"] = shared
    jobs = estimate(open_study(write(tmp_path, content)), datasheet_rates("h100", 0.3), {})
    first, second = (each for each in jobs if each.work == "anchor")
    assert (first.tokens, first.generated) == (30 * 100, 30 * 30)
    assert (second.tokens, second.generated) == (tokens, generated)


def test_candidates_are_counted_and_sampled_once_where_prompts_are_shared(tmp_path: Path) -> None:
    """20 training prompts with 8 candidates of 30 tokens behind 10 of the prompt; trained on two pairs each."""
    content = deepcopy(CONTENT)
    content["grids"]["main"] |= {"preferences": ["dsp:academy", "dsp:business"], "methods": ["dpo", "rso"]}
    content["sampling"] = {"rso": {"reward": "dpo", "candidates": 8, "accept": 4}}
    content["sizes"]["preferences"]["dsp:*"]["shared"] = "prompts"
    jobs = estimate(open_study(write(tmp_path, content)), datasheet_rates("h100", 0.3), {})
    first, second = (each for each in jobs if each.work == "sample")
    scored = 20 * 10 + 20 * 8 * 30
    assert (first.tokens, first.generated) == (2 * scored, 20 * 8 * 30)
    assert (second.tokens, second.generated) == (scored, 0)
    trained = [each.tokens for each in jobs if each.key.startswith("train") and "rso" in each.key]
    assert trained == [5 * 2 * (10 + 4 * 30 + 30)] * 2, "accepted pairs share no response"


def test_pairs_that_are_shuffled_share_no_prompt(tmp_path: Path) -> None:
    content = deepcopy(CONTENT)
    content["recipe"]["training"]["sampler"] = "by-pair"
    rates = datasheet_rates("a100", 0.5)
    (train,) = [each for each in estimate(open_study(write(tmp_path, content)), rates, {}) if each.work == "train"]
    assert train.tokens == 5 * 4 * (10 + 2 * 20 + 30)
    assert train.seconds == pytest.approx(train.flops / (0.5 * 312e12))


@pytest.mark.parametrize("kind", ["models", "preferences", "benchmarks"])
def test_a_size_that_is_not_stated_is_named(kind: str, tmp_path: Path) -> None:
    content = deepcopy(CONTENT)
    content["sizes"][kind] = {}
    with pytest.raises(BapoError, match=rf"does not state how large .*sizes\.{kind}"):
        estimate(open_study(write(tmp_path, content)), datasheet_rates("h100", 0.3), {})


def test_a_gpu_that_nobody_knows_is_refused() -> None:
    with pytest.raises(BapoError, match=r"'a10'.*use one of h100"):
        datasheet_rates("a10", 0.3)
    with pytest.raises(BapoError, match="--share is 30"):
        datasheet_rates("a100", 30)


def test_what_done_jobs_took_stands_beside_what_was_estimated_of_them(tmp_path: Path) -> None:
    study = open_study(write(tmp_path, CONTENT))
    took = {key: 360.0 for key in study.jobs if key.startswith("train")}
    (train,) = (each for each in estimate(study, Rates(1e12, 1.0, 1e12, 720.0, "x"), {}) if each.work == "train")
    header, rows = estimate_rows(estimate(study, Rates(1e12, train.seconds / 720, 1e12, 720.0, "x"), took))
    by_work = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert by_work["train"]["took (hours)"] == "0.10 of 0.20 estimated"
    assert by_work["all"]["done"] == "1"
    assert by_work["anchor"]["took (hours)"] == ""


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.parent.name)
def test_a_shipped_study_is_planned_without_model_data_or_network(path: Path, tmp_path: Path) -> None:
    for cell in open_study(path).cells.values():
        stages.check(cell.recipe)
    environment = {"BAPO_DATA": "", "HF_HUB_OFFLINE": "1", "BAPO_CACHE": str(tmp_path)}
    arguments = ["study", "plan", str(path), "-o", "here", "--gpu", "a6000"]
    planned = json.loads(bapo(*arguments, "--json", cwd=tmp_path, environment=environment).stdout)
    assert sum(each["seconds"] for each in planned["estimates"]) > 0
    assert len(planned["estimates"]) == len(planned["jobs"])
    assert "at 30% of its peak" in bapo(*arguments, cwd=tmp_path, environment=environment).stdout


def test_the_grid_is_shown_where_nothing_can_be_estimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(on_progress: Any) -> Rates:
        raise BapoError("The embedded model is not installed.")

    monkeypatch.setattr("bapo.study.measured_rates", refused)
    study = open_study(write(tmp_path, CONTENT))
    nothing, why = _estimated(study, None, 0.3, quiet=True)
    assert nothing == []
    assert "name a GPU with --gpu. The embedded model is not installed." in why
    nothing, why = _estimated(open_study(write(tmp_path, {**CONTENT, "sizes": {}})), None, 0.3, quiet=True)
    assert nothing == []
    assert "does not state how large m is, which is not on this machine: add it to sizes.models" in why


def test_what_no_file_states_is_counted_in_the_models_and_data_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made(tmp_path, STUDY))
    study = with_counted_sizes(open_study(tmp_path / "study.yaml"))
    model, preferences = study.sizes.models["tiny"], study.sizes.preferences["mine.jsonl"]
    assert model.parameters == sum(parameter.numel() for parameter in tiny_model("llama").parameters())
    assert (model.layers, model.hidden, model.bytes_per_parameter) == (4, 64, 4.0)
    assert (preferences.prompts, preferences.pairs, preferences.base_tokens) == (14, 14, 6)
    chat = ChatFormat(tiny_tokenizer())
    asked = [(Message("user", f"mine {i}"),) for i in range(14)]
    said = [(text, asked[i]) for i in range(14) for text in (f"good {i}", f"bad {i * i}")]
    assert preferences.prompt_tokens == pytest.approx(fmean(len(chat.prompt_ids(prompt)) for prompt in asked))
    assert preferences.response_tokens == pytest.approx(fmean(len(chat.response_ids(*each)) for each in said))
    assert study.sizes.benchmarks["arc_challenge"].questions == 1172
    stated = {"sizes": {"models": {"tiny": {**CONTENT["sizes"]["models"]["m"]}}}}
    (tmp_path / "stated.yaml").write_text(yaml.safe_dump({**STUDY, **stated}))
    assert with_counted_sizes(open_study(tmp_path / "stated.yaml")).sizes.models["tiny"].parameters == 1000
    environment = {"BAPO_DATA": "data"}
    assert (
        "on h100" in bapo("study", "plan", "study.yaml", "--gpu", "h100", cwd=tmp_path, environment=environment).stdout
    )


@pytest.mark.slow
def test_this_machine_is_measured_once(tmp_path: Path) -> None:
    write(tmp_path, CONTENT)
    (cache_folder() / "models").mkdir(exist_ok=True)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/models").symlink_to(cache_folder() / "models")  # which is not unpacked once more
    environment = {"BAPO_CACHE": str(tmp_path / "cache")}
    first = bapo("study", "plan", "study.yaml", cwd=tmp_path, environment=environment)
    assert "this machine" in first.stdout
    assert "calibrating" in first.stderr
    again = bapo("study", "plan", "study.yaml", cwd=tmp_path, environment=environment)
    assert "calibrating" not in again.stderr
    assert again.stdout == first.stdout
