"""The report of a study of many users: what is shown one by one of a few is a mean or a distribution of many."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml

from bapo.reporting.page import render
from bapo.results import FinishedJob, PromptScores, Provenance, to_rows
from bapo.results.study_cells import Draws
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


def test_a_resample_draws_preferences_and_then_as_many_seeds_as_each_has() -> None:
    """Of preference a two seeds, of b and c one: variances of their weights by hand."""
    weights = Draws([cell("dpo", "a", 0), cell("dpo", "a", 1), cell("dpo", "b"), cell("dpo", "c")]).weights
    assert np.allclose(weights.sum(axis=1), 1)
    assert weights.mean(axis=0) == pytest.approx([1 / 6, 1 / 6, 1 / 3, 1 / 3], abs=0.01)
    of_one = (1 / 3) * (2 / 3) / 3
    # a seed's share given N draws of its preference is Binomial(2 N, 1/2) / 2: E[N / 8] + Var(N) / 4, over 3 squared
    of_two = (1 / 8 + (3 * (1 / 3) * (2 / 3)) / 4) / 9
    assert weights.var(axis=0) == pytest.approx([of_two, of_two, of_one, of_one], rel=0.1)
