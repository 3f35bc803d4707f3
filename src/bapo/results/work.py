"""What single jobs find out: what was anchored or sampled, held-out scores, answers to a benchmark, generations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bapo.results.answers import AnswerStore, BenchmarkAnswers, BenchmarkKind, in_order
from bapo.results.estimates import Estimate
from bapo.results.preferences import PreferenceReport
from bapo.results.records import Kind


@dataclass(frozen=True, slots=True)
class AnchoredSummary:
    """Preferences that were anchored.

    Attributes:
        folder: the anchored store.
        files: the store's journals and their sizes then, bytes; they only grow.
        prompts, pairs, base_responses: how many there are.
        ended_by_themselves: base responses that came to their end.
        mean_base_tokens: their mean length.
        counts: pairs that were dropped or cut, and ``doubtful`` those that were kept and are worth a look, by reason.
        today: what the chat template took for now, where it writes the date; ISO 8601.
    """

    folder: str
    files: Mapping[str, int]
    prompts: int
    pairs: int
    base_responses: int
    ended_by_themselves: int
    mean_base_tokens: float
    counts: Mapping[str, int]
    doubtful: Mapping[str, int]
    today: str | None

    @property
    def is_whole(self) -> bool:
        """Whether the store has all that it had."""
        paths = [(Path(self.folder) / name, size) for name, size in self.files.items()]
        return all(path.is_file() and path.stat().st_size >= size for path, size in paths)


@dataclass(frozen=True, slots=True)
class HeldOutScores:
    """A policy's scores of held-out prompts; the items are `PromptScores`, prompt by prompt.

    Attributes:
        name: of the policy.
        source: the preferences.
        reference: what log-ratios are counted from.
        report: estimates over prompts.
    """

    name: str
    source: str
    reference: str
    report: PreferenceReport


@dataclass(frozen=True, slots=True)
class ReferenceLogps:
    """What the reference says to held-out prompts, in the rows in which any policy of it is scored.

    Attributes:
        logps: of each prompt those of its responses and, behind them, of its base responses, nats.
    """

    logps: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class AskedBenchmark:
    """A benchmark that a model was asked; the answers lie in their stores.

    Attributes:
        model: the model's name.
        benchmark, title, kind: of the benchmark.
        questions: how many it has.
        seconds: that asking took.
        stores: the folder of answers of each task.
        documents: which of a task's questions were asked.
        rounding: what that alone moves the right choice's log-probability by, nats a question, root mean square; None
            where it was not measured.
    """

    model: str
    benchmark: str
    title: str
    kind: BenchmarkKind
    questions: int
    seconds: float
    stores: Mapping[str, str]
    documents: Mapping[str, tuple[int, ...]]
    rounding: float | None = None

    def read(self) -> BenchmarkAnswers | None:
        """The answers, read from their stores; None where one is there no more.

        Raises:
            BapoError: a file of answers is damaged.
        """
        answers = []
        for task, folder in self.stores.items():
            kept = AnswerStore(Path(folder)).read()
            if any(number not in kept for number in self.documents[task]):
                return None
            answers += [kept[number] for number in self.documents[task]]
        return BenchmarkAnswers(self.benchmark, in_order(answers), self.questions, self.kind, self.title, self.rounding)


@dataclass(frozen=True, slots=True)
class Generations:
    """What a model answered to prompts.

    Attributes:
        model: its name.
        prompts, responses: texts, in the same order; a response that was cut ends with dots.
    """

    model: str
    prompts: tuple[str, ...]
    responses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SampledPreferences:
    """A comparison file of responses that a model said and an adapter judged.

    Attributes:
        prompts, candidates, pairs: how many there are of each.
        mean_reward: of ``all`` candidates, of ``chosen`` and of ``rejected`` responses.
        beta: of the reward.
        counts: what was left out, by reason.
        checksum_of_file: of the file as it was written.
    """

    prompts: int
    candidates: int
    pairs: int
    mean_reward: Mapping[str, float]
    beta: float
    counts: Mapping[str, int]
    checksum_of_file: str


@dataclass(frozen=True, slots=True)
class SideBySide:
    """A prompt and each model's answer to it, by the model's name."""

    prompt: str
    answers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Personalization:
    """What came out of a personalization.

    Attributes:
        source: the preferences' name.
        reference: what log-ratios are counted from: the base, or the adapter that it came with.
        adapters: folder of each finished run by its name, the recipe's own objective first; in the file, as it is
            called in the folder of the report.
        held_out: held-out evaluation by the name of the run.
        likelier: percent by which its base responses became likelier per token, by the name of the run (`likelier`).
        answers: prompts answered by the reference and every run.
        folder: where everything lies; not in the file.
        counts: pairs dropped or cut on the way, by reason.
        doubtful: pairs that were kept and are worth a look, by what is the matter with them.
    """

    source: str
    reference: str
    adapters: Mapping[str, str]
    held_out: Mapping[str, PreferenceReport]
    likelier: Mapping[str, Estimate]
    answers: tuple[SideBySide, ...]
    folder: str
    counts: Mapping[str, int]
    doubtful: Mapping[str, int]


ANCHORED = Kind("anchored preferences", 1, AnchoredSummary)
HELD_OUT = Kind("held-out scores", 1, HeldOutScores)
REFERENCE_LOGPS = Kind("log-probs of the reference", 1, ReferenceLogps)
ASKED = Kind("answers to a benchmark", 1, AskedBenchmark)
SAMPLED = Kind("sampled preferences", 1, SampledPreferences, "delete it and the file beside it")
GENERATIONS = Kind("generations", 1, Generations)
PERSONALIZATION = Kind("a personalization", 2, Personalization)
