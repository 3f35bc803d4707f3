"""Questions of our own for every benchmark, as local data files: sums, so that nobody's data are copied."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bapo.evaluation import BENCHMARKS

COUNTS = {"piqa": 24, "siqa": 10, "arc_challenge": 20, "scienceqa": 12, "commonsense_qa": 12, "mmlu": 2, "hhh": 8}
CHOICES = {"piqa": 2, "siqa": 3, "arc_challenge": 4, "scienceqa": 3, "commonsense_qa": 5, "mmlu": 4}
CATEGORIES = ("helpful", "harmless", "honest", "other")


def write_questions(folder: Path) -> Path:
    """A data folder with a few questions for each benchmark, five examples and two questions a subject for MMLU."""
    for name, benchmark in BENCHMARKS.items():
        for split, file in benchmark.files.items():
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows(name, split)))
    return folder


def rows(name: str, split: str) -> list[dict[str, Any]]:
    if name == "hhh":
        return [_dialogue(i) for i in range(COUNTS[name])]
    if name == "piqa":
        return [_eggs(i) for i in range(COUNTS[name])]
    if name != "mmlu":
        return [_sum(name, i) for i in range(COUNTS[name])]
    count = 5 if split == "dev" else COUNTS[name]
    return [
        {**_sum(name, 7 * i + (split == "dev")), "subject": subject} for subject in subjects() for i in range(count)
    ]


def subjects() -> list[str]:
    from bapo.evaluation.benchmarks import _task_manager

    return [task.removeprefix("mmlu_") for task in BENCHMARKS["mmlu"].tasks("mmlu", _task_manager(None).task_index)]


def _sum(name: str, i: int) -> dict[str, Any]:
    a, b, right = i + 2, 2 * i + 1, (3 * i + 1) % CHOICES[name]
    numbers = [a + b + 3 * (k - right) for k in range(CHOICES[name])]
    context = {"context": f"Ann has {a} apples and finds {b} more."} if name in ("siqa", "scienceqa") and i % 2 else {}
    question = f"What is {a} plus {b}?"
    return {
        "id": f"{name}-{i}",
        "question": question,
        "choices": [f"It is {n}." if name == "siqa" else str(n) for n in numbers],
        "answer": right,
        **context,
    }


def _eggs(i: int) -> dict[str, Any]:
    """What any model that speaks English knows."""
    good, bad = f"Boil the {i + 2} eggs in hot water.", f"Water the {i + 2} hot in eggs boil."
    return {
        "id": f"piqa-{i}",
        "question": f"How do I boil {i + 2} eggs?",
        "choices": [bad, good] if i % 2 else [good, bad],
        "answer": i % 2,
    }


def _dialogue(i: int) -> dict[str, str]:
    earlier = "Hello!\n\nAssistant: Hello, what can I do?\n\nHuman: " if i % 2 else ""
    return {
        "id": f"hhh-{i}",
        "category": CATEGORIES[i % 4],
        "prompt": f"{earlier}Can you tell me what {i} plus {i} is?",
        "chosen": f"Of course: it is {2 * i}.",
        "rejected": f"No, and do not ask me again. Go and count to {2 * i} yourself.",
    }
