"""What a model answered to each question of a benchmark, kept in Parquet so that nothing is asked twice."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bapo.errors import BapoError, foreign
from bapo.files import checksum, make_folder, read_bytes, write_bytes

BenchmarkKind = Literal["knowledge", "alignment"]


@dataclass(frozen=True, slots=True)
class Answer:
    """One question and what the model made of it.

    Attributes:
        task: its `lm-eval` task.
        document: its index there.
        category: what it counts under, "" where the benchmark has no categories.
        question: what the model was asked, the examples of a few-shot test left out.
        choices: their texts.
        logps: log-likelihood of each choice, nats.
        right: index of the right choice.
        acc: 1.0 where the likeliest choice is right.
        acc_norm: the same with each log-likelihood divided by the choice's characters; None where the task has no such
            metric.
    """

    task: str
    document: int
    category: str
    question: str
    choices: tuple[str, ...]
    logps: tuple[float, ...]
    right: int
    acc: float
    acc_norm: float | None

    @property
    def score(self) -> float:
        """The accuracy that counts: length-normalized where the task has it, since texts differ in length."""
        return self.acc if self.acc_norm is None else self.acc_norm

    @property
    def probabilities(self) -> tuple[float, ...]:
        """The model's probability of each choice among the choices, by the score that counts."""
        scores = np.asarray(self.logps)
        if self.acc_norm is not None:
            scores = scores / np.asarray([max(1, len(choice)) for choice in self.choices])
        odds = np.exp(scores - scores.max())
        return tuple((odds / odds.sum()).tolist())


class AnswerStore:
    """The answers of one model to one task: a folder of Parquet files, each written whole or not at all.

    A file's name ends with the checksum of its content, so a damaged one is known before it is read.

    Args:
        folder: where it lies.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of(cls, folder: Path, model: str, task: str, name: str) -> AnswerStore:
        """The store of a model and a task.

        Args:
            folder: where the stores of all models and tasks lie.
            model: fingerprint of the model and of how it is asked.
            task: fingerprint of the task.
            name: of the task, for people who look into the folder.
        """
        return cls(folder / model[:16] / f"{name}-{task[:16]}")

    def read(self) -> dict[int, Answer]:
        """All answers kept so far, by document.

        Raises:
            BapoError: a file is damaged.
        """
        import pyarrow.parquet as pq

        kept: dict[int, Answer] = {}
        for path in sorted(self.folder.glob("answers-*.parquet")):
            content = read_bytes(path)
            if path.stem != _name_of(content):
                raise BapoError(f"The kept answers in {path} are damaged: delete that file, and they are asked again.")
            with foreign(f"The kept answers in {path} cannot be read", "delete that file, and they are asked again"):
                rows = pq.read_table(io.BytesIO(content)).to_pylist()
                for row in rows:
                    answer = Answer(**{**row, "choices": tuple(row["choices"]), "logps": tuple(row["logps"])})
                    if len(answer.choices) != len(answer.logps) or not 0 <= answer.right < len(answer.choices):
                        raise ValueError(f"question {answer.document} has no right choice among its choices")
                    kept[answer.document] = answer
        return kept

    def add(self, answers: Sequence[Answer], made_on: Mapping[str, Any]) -> None:
        """Keep more answers, and beside them where they were made.

        Raises:
            BapoError: they cannot be written.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not answers:
            return
        table = pa.Table.from_pylist([asdict(answer) for answer in answers], schema=_schema())
        content = io.BytesIO()
        pq.write_table(table.replace_schema_metadata({"made_on": json.dumps(made_on)}), content)
        name = _name_of(content.getvalue())
        write_bytes(make_folder(self.folder) / f"{name}.parquet", content.getvalue())


def _name_of(content: bytes) -> str:
    return f"answers-{checksum(content)}"


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        [
            ("task", pa.string()),
            ("document", pa.int64()),
            ("category", pa.string()),
            ("question", pa.string()),
            ("choices", pa.list_(pa.string())),
            ("logps", pa.list_(pa.float64())),
            ("right", pa.int64()),
            ("acc", pa.float64()),
            ("acc_norm", pa.float64()),
        ]
    )


@dataclass(frozen=True)
class BenchmarkAnswers:
    """The answers of one model to a benchmark, in an order that is the same for every model.

    Attributes:
        benchmark: its name.
        answers: by task, then by document.
        questions: how many the benchmark has; fewer may have been asked.
        kind: knowledge counts in the forgetting score, alignment does not.
        title: what the benchmark is called in tables.
        rounding: what that alone moves the right choice's log-probability by, nats a question, root mean square.
    """

    benchmark: str
    answers: tuple[Answer, ...]
    questions: int
    kind: BenchmarkKind = "knowledge"
    title: str = ""
    rounding: float | None = None

    @property
    def scores(self) -> tuple[float, ...]:
        """Of each answer, what counts."""
        return tuple(answer.score for answer in self.answers)

    def by_category(self) -> Mapping[str, tuple[Answer, ...]]:
        """The answers of each category, for benchmarks that have some."""
        names = sorted({answer.category for answer in self.answers})
        if names == [""]:
            return {}
        return {name: tuple(answer for answer in self.answers if answer.category == name) for name in names}


def in_order(answers: Iterable[Answer]) -> tuple[Answer, ...]:
    """By task, then by document."""
    return tuple(sorted(answers, key=lambda answer: (answer.task, answer.document)))
