"""SIQA: social common sense, three choices."""

from __future__ import annotations

from bapo.evaluation.registry import Benchmark, Row, benchmark, by_letter

_ANSWERS = ("answerA", "answerB", "answerC")


@benchmark("siqa")
class Siqa(Benchmark):
    """Sap et al. 2019."""

    title, task = "SIQA", "social_iqa"
    variants = {"letter": by_letter("{{context}} {{question}}", f"[{', '.join(_ANSWERS)}]", "{{(label|int) - 1}}")}
    files, choices = {"validation": "knowledge/siqa.jsonl"}, 3
    size = 1954, 45

    def to_hub(self, row: Row) -> Row:
        """See `Benchmark`."""
        answers = dict(zip(_ANSWERS, row["choices"], strict=True))
        asked = {"context": row.get("context", ""), "question": row["question"]}
        return {**asked, **answers, "label": str(row["answer"] + 1)}

    def from_hub(self, row: Row) -> Row:
        """See `Benchmark`."""
        asked = {"question": row["question"], "context": row["context"]}
        return {**asked, "choices": [row[choice] for choice in _ANSWERS], "answer": int(row["label"]) - 1}
