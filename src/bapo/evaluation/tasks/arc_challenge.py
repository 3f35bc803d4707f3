"""ARC-Challenge: questions of school science."""

from __future__ import annotations

from bapo.evaluation.registry import LETTERS, RIGHT_LABEL, Benchmark, Row, benchmark, by_letter, labelled


@benchmark("arc_challenge")
class ArcChallenge(Benchmark):
    """Clark et al. 2018."""

    title, task = "ARC-Challenge", "arc_challenge"
    variants = {"letter": by_letter("{{question}}", "choices.text", RIGHT_LABEL)}
    files = {"test": "knowledge/arc_challenge.jsonl"}
    size = 1172, 57

    def to_hub(self, row: Row) -> Row:
        """See `Benchmark`."""
        return {"question": row["question"], "choices": labelled(row), "answerKey": LETTERS[row["answer"]]}

    def from_hub(self, row: Row) -> Row:
        """See `Benchmark`."""
        texts, labels = list(row["choices"]["text"]), list(row["choices"]["label"])
        return {"question": row["question"], "choices": texts, "answer": labels.index(row["answerKey"])}
