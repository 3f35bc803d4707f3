"""What the jobs of a study found out, without any text of the data: records that can be shared and reported from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bapo.results.answers import BenchmarkAnswers, BenchmarkKind
from bapo.results.behaviour import Behaviour
from bapo.results.estimates import Estimate
from bapo.results.movement import Movement
from bapo.results.preferences import PreferenceReport
from bapo.results.records import Kind

StudyWork = Literal["anchor", "train", "sample", "evaluate"]
"""What a job of a study does."""


@dataclass(frozen=True, slots=True)
class AskedQuestions:
    """A benchmark that a model was asked.

    Attributes:
        title, kind: of the benchmark.
        questions: how many it has.
        asked: how many of them were asked.
        seconds: that asking took.
        rounding: what that alone moves the right choice's log-probability by, nats a question, root mean square; None
            where it was not measured.
    """

    title: str
    kind: BenchmarkKind
    questions: int
    asked: int
    seconds: float
    rounding: float | None = None


@dataclass(frozen=True, slots=True)
class FinishedJob:
    """A job of a study that is done. Of an evaluation, the items are the held-out prompts and the questions.

    Attributes:
        key: of the job.
        of: the cell, or what is evaluated instead.
        work: what it did.
        seconds: that it took, and ``peak_bytes`` of memory its process had at most.
        counts: what there was, such as prompts, pairs, base tokens, steps.
        log: what the trainer logged, an entry for each logging step.
        preferences: held-out scores; None of the base, whose log-ratios are all zero.
        benchmarks: what was asked, by name.
        movement: how far its distributions have moved, where that was measured.
        judge: share of held-out pairs that the judge of answers tells right.
        behaviour: what its own answers to held-out prompts are like; ``base_behaviour`` the reference's to the same.
        answers: to the study's own questions, in words.
    """

    key: str
    of: str
    work: StudyWork
    seconds: float
    peak_bytes: int
    counts: Mapping[str, float] = field(default_factory=dict)
    log: tuple[Mapping[str, float], ...] = ()
    preferences: PreferenceReport | None = None
    benchmarks: Mapping[str, AskedQuestions] = field(default_factory=dict)
    movement: Movement | None = None
    judge: Estimate | None = None
    behaviour: Behaviour | None = None
    base_behaviour: Behaviour | None = None
    answers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EstimatedJob:
    """What a job of a study will take.

    Attributes:
        key, work: of the job.
        tokens: that are scored or trained on, and ``generated`` ones.
        flops: floating-point operations.
        seconds: on a machine.
        memory, disk: bytes.
        took: seconds that it took, where it is done.
    """

    key: str
    work: StudyWork
    tokens: float
    generated: float
    flops: float
    seconds: float
    memory: float
    disk: float
    took: float | None = None


@dataclass(frozen=True, slots=True)
class FailedJob:
    """A job of a study that failed.

    Attributes:
        key: of the job.
        why: a sentence.
        at: when, ISO 8601.
    """

    key: str
    why: str
    at: str


FINISHED_JOB = Kind("a finished job of a study", 2, FinishedJob)
FAILED_JOB = Kind("a failed job of a study", 1, FailedJob)


def question_rows(answers: BenchmarkAnswers) -> list[dict[str, Any]]:
    """One row a question, by its number and without its text."""
    return [
        {
            "benchmark": answers.benchmark,
            "task": answer.task,
            "document": answer.document,
            "category": answer.category,
            "right": answer.right,
            "logps": list(answer.logps),
            "probabilities": list(answer.probabilities),
            "score": answer.score,
        }
        for answer in answers.answers
    ]
