"""The report of a study of many users: what is shown one by one of a few is a mean or a distribution of many."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from scipy.stats import t

from bapo.reporting.page import render
from bapo.results import FinishedJob, PromptScores, Provenance, to_rows
from bapo.results.study_draws import RESAMPLES, Draws
from bapo.study import Ledger, Study, logs_by_method, open_study, report, study_page
from tests.results.test_study_report import cell

USERS = 50


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Done, with records of which user number n lost n hundredths of a nat, and logged n at each step."""
    place = tmp_path_factory.mktemp("many")
    rows = [
        {"user": f"user-{user}", "prompt": f"{at}", "chosen": "a", "rejected": "b"}
        for user in range(USERS)
        for at in range(4)
    ]
    (place / "people.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = {
        "recipe": {"preferences": {"held_out": 2}},
        "models": {"m": {"model.name": "somewhere/m"}},
        "grids": {
            "all": {"models": ["m"], "preferences": [f"user:{place}/people.jsonl#*"], "methods": ["dpo", "bapo"]}
        },
        "evaluation": {"benchmarks": ["piqa"], "limit": 4},
    }
    (place / "study.yaml").write_text(yaml.safe_dump(content))
    study = open_study(place / "study.yaml")
    ledger = Ledger(study)
    for job in study.jobs.values():
        user = float(job.of.split("-user-")[1].split("_")[0]) if "-user-" in job.of else 0.0
        log = tuple({"step": float(step), "logps/chosen": user, "logratios/base": -user} for step in (1, 2))
        question = {"benchmark": "piqa", "task": "piqa", "category": "", "right": 0}
        asked = [
            {**question, "document": at, "score": 1.0, "logps": [-user / 100 - at, -1.0], "probabilities": []}
            for at in range(4)
        ]
        items = [{"question": each} for each in asked]
        items += [{"prompt": row} for row in to_rows([PromptScores(((1.0, 0.0),), -user, 10, 1)] * 2)]
        ledger.finish(
            job,
            FinishedJob(job.key, job.of, job.work, 1.0, 1, log=log if job.work == "train" else ()),
            Provenance("m", "w"),
            items if job.work == "evaluate" else [],
        )
    return study


def test_training_is_drawn_as_the_mean_over_preferences(study: Study) -> None:
    (where,) = logs = logs_by_method(study)
    assert where == f"m, mean of {USERS}"
    mean = (USERS - 1) / 2
    assert logs[where] == {
        method: tuple({"step": step, "logps/chosen": mean, "logratios/base": -mean} for step in (1.0, 2.0))
        for method in ("dpo", "bapo")
    }


def test_the_page_names_no_user_in_its_figures_and_stays_small(study: Study) -> None:
    page = study_page(study, report(study))
    by_preference = next(figure for figure in page.figures if "by preference" in figure.title)
    assert "user-" not in "".join(figure.svg for figure in page.figures)
    assert "preferences with at most this change" in by_preference.svg
    assert len(render(page)) < 400_000


@pytest.mark.parametrize("kept", ["preferences", "seeds of one"])
def test_draws_of_few_runs_are_students_t(kept: str) -> None:
    """Of preference a two seeds, of b and c one; or four seeds of one preference."""
    if kept == "preferences":
        drawn = Draws([cell("dpo", "a", 0), cell("dpo", "a", 1), cell("dpo", "b"), cell("dpo", "c")])
        values, means = np.array([1.0, 3.0, 4.0, 9.0]), [2.0, 4.0, 9.0]
    else:
        drawn = Draws([cell("dpo", "a", seed) for seed in range(4)])
        values, means = np.array([1.0, 3.0, 4.0, 9.0]), [1.0, 3.0, 4.0, 9.0]
    draws, count = drawn.mean(values, np.broadcast_to(values, (RESAMPLES, len(values)))), len(means)
    error = np.std(means, ddof=1) / count**0.5
    for level in (0.5, 0.8, 0.95):
        expected = np.mean(means) + t.ppf((0.5 - level / 2, 0.5 + level / 2), count - 1) * error
        assert np.quantile(draws, (0.5 - level / 2, 0.5 + level / 2)) == pytest.approx(
            expected, abs=1.5 * level**4 * error
        )


def test_of_one_run_nothing_is_drawn() -> None:
    assert (Draws([cell("dpo", "a", 0)]).mean(np.array([3.0]), np.full((RESAMPLES, 1), 2.0)) == 2.0).all()
