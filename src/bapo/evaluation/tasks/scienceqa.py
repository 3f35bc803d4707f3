"""ScienceQA: the test questions that need no picture."""

from __future__ import annotations

from bapo.evaluation.registry import Benchmark, Row, benchmark, by_letter


@benchmark("scienceqa")
class ScienceQa(Benchmark):
    """Lu et al. 2022."""

    title, task = "ScienceQA", "scienceqa"
    variants = {"letter": by_letter("{% if hint %}{{hint}}\n{% endif %}{{question}}", "choices", "{{answer}}")}
    files = {"test": "knowledge/scienceqa.test.jsonl"}
    size = 2224, 55

    def to_hub(self, row: Row) -> Row:
        """See `Benchmark`."""
        return {**{key: row[key] for key in self.keys}, "hint": row.get("context", "")}

    def from_hub(self, row: Row) -> Row:
        """See `Benchmark`."""
        context = {"context": row["hint"]} if row.get("hint") else {}
        return {"question": row["question"], "choices": list(row["choices"]), "answer": int(row["answer"]), **context}
