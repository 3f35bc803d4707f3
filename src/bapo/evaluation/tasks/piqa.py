"""PIQA: physical common sense, two choices."""

from __future__ import annotations

from bapo.evaluation.registry import Benchmark, Row, benchmark, by_letter


@benchmark("piqa")
class Piqa(Benchmark):
    """Bisk et al. 2020."""

    title, task = "PIQA", "piqa"
    variants = {"letter": by_letter("{{goal}}", "[sol1, sol2]", "{{label}}")}
    files, choices = {"validation": "knowledge/piqa.jsonl"}, 2
    size = 1838, 60

    def to_hub(self, row: Row) -> Row:
        """See `Benchmark`."""
        first, second = row["choices"]
        return {"goal": row["question"], "sol1": first, "sol2": second, "label": row["answer"]}

    def from_hub(self, row: Row) -> Row:
        """See `Benchmark`."""
        return {"question": row["goal"], "choices": [row["sol1"], row["sol2"]], "answer": int(row["label"])}
