"""MMLU: 57 subjects, five answered questions in front of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bapo.evaluation.registry import Benchmark, Row, benchmark

CATEGORIES = ("stem", "social_sciences", "humanities", "other")


@benchmark("mmlu")
class Mmlu(Benchmark):
    """Hendrycks et al. 2021."""

    title, task, native, shots = "MMLU (5-shot)", "mmlu", "letter", 5
    text_task = "mmlu_continuation"
    files = {"test": "knowledge/mmlu.test.jsonl", "dev": "knowledge/mmlu.dev.jsonl"}
    size = 14042, 105
    keys, choices = ("question", "choices", "answer", "subject"), 4

    def tasks(self, group: str, index: Mapping[str, Any]) -> dict[str, str]:
        """The subjects and their categories by the official assignment, in which anatomy is in other."""
        category_of = {task: category for category in CATEGORIES for task in index[f"mmlu_{category}_tasks"].tags}
        category_of["mmlu_anatomy"] = "other"
        suffix = "_continuation" if group == self.text_task else ""
        return {task + suffix: category for task, category in sorted(category_of.items())}

    def of_task(self, row: Row, task: str) -> bool:
        """See `Benchmark`."""
        return bool(row["subject"] == task.removeprefix("mmlu_").removesuffix("_continuation"))

    def to_hub(self, row: Row) -> Row:
        """See `Benchmark`."""
        return {key: row[key] for key in self.keys}

    def from_hub(self, row: Row) -> Row:
        """See `Benchmark`."""
        return {**self.to_hub(row), "choices": list(row["choices"]), "answer": int(row["answer"])}
