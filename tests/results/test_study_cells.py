"""From the items of a study's records to what tables and verdicts are made of: values worked by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from bapo.results import (
    FINISHED_JOB,
    EvaluatedCell,
    FinishedJob,
    Provenance,
    evaluated_cell,
    flipped_questions,
)
from bapo.results.study_cells import ACCURACY, RIGHT_CHOICE, TEMPERED

LOG_HALF = math.log(0.5)


def question(document: int, *, score: float, logps: tuple[float, ...], benchmark: str = "piqa") -> dict[str, Any]:
    return {
        "question": {
            "benchmark": benchmark,
            "task": f"task of {benchmark}",
            "document": document,
            "category": "stem" if benchmark == "mmlu" else "",
            "right": 1,
            "logps": list(logps),
            "probabilities": [0.25, 0.75] if score else [0.75, 0.25],
            "score": score,
        }
    }


ROWS: list[dict[str, Any]] = [
    {"prompt": {"pairs": [[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]], "drift": -3.0, "base_tokens": 6, "bases": 1}},
    {"prompt": {"pairs": [[1.0, 0.0]], "drift": 1.0, "base_tokens": 4, "bases": 1}},
    question(5, score=1.0, logps=(LOG_HALF - 9, LOG_HALF - 9)),
    question(8, score=0.0, logps=(-4.0, -4.0 - math.log(3))),
    question(3, score=1.0, logps=(-1.0, -1.0), benchmark="mmlu"),
    {"moved": {"topic": "held-out", "divergence": 0.5, "tokens": 10}},
    {"moved": {"topic": "other", "divergence": 0.25, "tokens": 5}},
    {"answer": {"chosen_like": 0.25, "words": 12, "repeated": 0.5}},
    {"answer": {"chosen_like": 0.75, "words": 8, "repeated": 0.0}},
]


def cell(folder: Path, rows: list[dict[str, Any]]) -> EvaluatedCell:
    content = FinishedJob("key", "of", "evaluate", 1.0, 2)
    made_from = Provenance(model="m", weights="w")
    record = FINISHED_JOB.write(folder / "a.json", content, identity="i", made_from=made_from, items=rows)
    where: dict[str, Any] = {"model": "m", "preference": "p", "method": "dpo", "seed": 3}
    varied, settings = {"lora.rank": 8}, {"lora.rank": 8, "training.max_steps": 9}
    return evaluated_cell(record, **where, varied=varied, settings=settings)


def test_a_cell_holds_what_each_prompt_and_each_question_says(tmp_path: Path) -> None:
    found = cell(tmp_path, ROWS)
    assert (found.row, found.seed, found.varied_keys) == (("m", "", "dpo", "rank 8"), 3, ("lora.rank",))
    assert found.settings == {"lora.rank": 8, "training.max_steps": 9}
    prompts = {measure: values.tolist() for measure, values in found.prompts.items()}
    assert prompts == {
        "reward accuracy": [[150.0, 3.0], [100.0, 1.0]],  # of three pairs one is right and one a tie
        "drift": [[-3.0, 6.0], [1.0, 4.0]],
        "divergence, held-out": [[0.5, 10.0]],
        "divergence, other": [[0.25, 5.0]],
        "chosen-like answers": [[25.0, 1.0], [75.0, 1.0]],
        "words an answer": [[12.0, 1.0], [8.0, 1.0]],
        "repeated runs of words": [[50.0, 1.0], [0.0, 1.0]],
    }
    assert found.columns == ("piqa", "mmlu: stem")
    of_piqa = {measure: dict(found.questions[measure]["piqa"]) for measure in (ACCURACY, RIGHT_CHOICE)}
    first, second = ("task of piqa", 5, 1, 2), ("task of piqa", 8, 1, 2)
    assert of_piqa[ACCURACY] == {first: 1.0, second: 0.0}
    assert of_piqa[RIGHT_CHOICE] == {first: pytest.approx(LOG_HALF), second: pytest.approx(math.log(0.25))}
    ((key, tempered),) = found.questions[TEMPERED]["mmlu: stem"].items()
    assert key[:2] == ("task of mmlu", 3)
    assert tempered == pytest.approx(LOG_HALF)


def test_what_was_not_measured_is_not_there(tmp_path: Path) -> None:
    found = cell(tmp_path, ROWS[:2])
    assert set(found.prompts) == {"reward accuracy", "drift"}
    assert found.columns == ()


def test_questions_that_one_of_two_models_has_right(tmp_path: Path) -> None:
    before = [question(1, score=1.0, logps=(0, 0)), question(2, score=0.0, logps=(0, 0)), ROWS[0]]
    before += [question(3, score=1.0, logps=(0, 0))]
    after = [question(1, score=0.0, logps=(0, 0)), question(2, score=1.0, logps=(0, 0))]
    after += [question(3, score=1.0, logps=(0, 0)), question(4, score=1.0, logps=(0, 0)), ROWS[0]]
    lost, gained = flipped_questions(cell(tmp_path, ROWS), before, after)
    assert lost == {
        "model": "m",
        "preference": "p",
        "method": "dpo",
        "varied": "rank 8",
        "seed": 3,
        "benchmark": "piqa",
        "task": "task of piqa",
        "document": 1,
        "outcome": "lost",
        "right": 1,
        "before": [0.25, 0.75],
        "after": [0.75, 0.25],
    }
    assert (gained["document"], gained["outcome"], gained["after"]) == (2, "gained", [0.25, 0.75])
