"""Several models on the same benchmarks and the same held-out prompts: the base, a prompt-only rival, adapters."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bapo.errors import BapoError
from bapo.evaluation.bootstrap import Estimate
from bapo.evaluation.comparison import BUDGET, Change, Forgetting, Gate, compare, forgetting, gate, spread
from bapo.evaluation.preference import (
    PreferenceChange,
    compare_preferences,
    evaluate_preferences,
    held_out_logps,
    prompted,
)
from bapo.personalize import stages
from bapo.personalize.recipe import Recipe
from bapo.personalize.run_folder import day_of, record_of

if TYPE_CHECKING:
    from bapo.anchoring import AnchoredPreferences
    from bapo.evaluation.answers import BenchmarkAnswers
    from bapo.evaluation.asking import BenchmarkPlan
    from bapo.evaluation.preference import Logps, PreferenceReport, PromptScores
    from bapo.models import LoadedModel

logger = logging.getLogger(__name__)

BASE = "base"
PROMPT_ONLY = "prompt-only"


@dataclass(frozen=True, slots=True)
class Contestant:
    """A model that is examined: the base, with an adapter, or with a preference as its system prompt."""

    name: str
    adapter: str | None = None
    system: str | None = None


@dataclass(frozen=True)
class Examined:
    """What one contestant made of the questions.

    Attributes:
        contestant: who.
        benchmarks: its answers by benchmark, in the order of the plan.
        preferences: what it learned and how far it drifted; None where no held-out prompts were given, and for the
            base, whose log-ratios are all zero.
        prompts: the scores behind that, prompt by prompt.
        seconds: how long each benchmark took; next to nothing where answers were kept from before.
    """

    contestant: Contestant
    benchmarks: Mapping[str, BenchmarkAnswers] = field(default_factory=dict)
    preferences: PreferenceReport | None = None
    prompts: tuple[PromptScores, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The contestant's name."""
        return self.contestant.name


@dataclass(frozen=True)
class Examination:
    """All contestants, and how each differs from one of them.

    Attributes:
        against: the contestant that changes are counted from.
        others: the rest, in order.
        budget: points of the forgetting score that may be lost.
        least_accuracy: share of held-out pairs that an adapter has to get right; None if its gate asks for none.
        made_on: processor, instruction set, device, threads and versions, and the base's noise floor there.
    """

    against: Examined
    others: tuple[Examined, ...]
    budget: float = BUDGET
    least_accuracy: float | None = None
    made_on: Mapping[str, Any] = field(default_factory=dict)

    def changes(self, own: Examined) -> dict[str, Change]:
        """By benchmark."""
        before = self.against.benchmarks
        return {name: compare(before[name], found, budget=self.budget) for name, found in own.benchmarks.items()}

    def preference_change(self, own: Examined) -> PreferenceChange | None:
        """On held-out prompts; None where there were none, and against the base: a report is the change from it."""
        return compare_preferences(self.against.prompts, own.prompts) if own.prompts and self.against.prompts else None

    def forgetting(self) -> dict[str, Forgetting]:
        """The forgetting score of each of the others; empty where no knowledge benchmark was asked."""
        scores = {
            own.name: forgetting(self.against.benchmarks, own.benchmarks, budget=self.budget) for own in self.others
        }
        return {name: score for name, score in scores.items() if score is not None}

    def trained(self) -> list[Forgetting]:
        """The scores of those with an adapter: what a gate judges, and whose spread counts."""
        scores = self.forgetting()
        return [scores[own.name] for own in self.others if own.contestant.adapter and own.name in scores]

    def learned(self) -> dict[str, Estimate]:
        """The reward accuracies that the gate judges: of those with an adapter, where a least one is asked for."""
        if self.least_accuracy is None:
            return {}
        return {
            own.name: own.preferences.reward_accuracy
            for own in self.others
            if own.contestant.adapter and own.preferences is not None
        }

    def gates(self) -> set[Gate]:
        """Of all adapters, whether too much was lost, and whether too little was learned."""
        lost = {score.gate for score in self.trained()}
        return lost | {gate(accuracy, self.least_accuracy or 0) for accuracy in self.learned().values()}

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        changes = {
            own.name: {
                "benchmarks": {name: _change_to_dict(change) for name, change in self.changes(own).items()},
                "preferences": asdict(change) if (change := self.preference_change(own)) else None,
            }
            for own in self.others
        }
        return {
            "against": self.against.name,
            "made_on": dict(self.made_on),
            "budget": self.budget,
            "least_accuracy": self.least_accuracy,
            "models": {own.name: _examined_to_dict(own) for own in (self.against, *self.others)},
            "changes": changes,
            "forgetting": {name: asdict(score) for name, score in self.forgetting().items()},
            "spread": spread(self.trained()),
        }


def examine(
    recipe: Recipe,
    contestants: Sequence[Contestant],
    *,
    plan: BenchmarkPlan | None = None,
    preferences: bool = False,
    budget: float = BUDGET,
    least_accuracy: float | None = None,
    on_progress: stages.OnProgress = stages.silent,
) -> Examination:
    """Ask all contestants the same, one after the other.

    Args:
        recipe: names the model, and the preferences where they are evaluated.
        contestants: who is asked; changes are counted from the first.
        plan: the benchmarks; None for none.
        preferences: whether held-out preferences are evaluated.
        budget: points of the forgetting score that may be lost.
        least_accuracy: share of held-out pairs that the gate asks of an adapter; None for none.
        on_progress: told the stage, how many are done, and of how many.

    Raises:
        BapoError: an adapter was trained on another model, or what `Examinee.ask` and the stages raise.
    """
    from bapo.likelihood import ResponseScorer
    from bapo.models import tokenizer_fingerprint

    if plan is not None:  # what cannot be read should be known before anything costly is done
        from bapo.evaluation.benchmarks import load_tasks

        for done, name in enumerate(plan.names):
            on_progress("reading benchmarks", done, len(plan.names), name)
            load_tasks(name, asked=plan.asked, data_folder=plan.data_folder)
        on_progress("reading benchmarks", len(plan.names), len(plan.names), "")
    base = stages.load(recipe)
    for own in contestants:
        stages.check_base(recipe, own.adapter, base)
    if preferences:
        _check_split(recipe, contestants)
    today = _day(recipe, contestants, base)
    held_out = None
    if preferences:
        held_out = stages.anchor_split(recipe, stages.read(recipe), base, on_progress, today=today).held_out
    found, reference = [], None
    if held_out is not None and any(own != Contestant(BASE) for own in contestants):
        reference = held_out_logps(base.model, held_out, kernels=base.kernels)
    for own in contestants:
        model = base if own.adapter is None else stages.load(recipe, adapter=own.adapter)
        model = replace(model, chat=model.chat.at(today))
        if held_out is not None and tokenizer_fingerprint(model.tokenizer) != tokenizer_fingerprint(base.tokenizer):
            logger.warning("Preferences are scored in the base model's tokens, which are not those of %s.", own.name)
        found.append(_examine(own, model, plan, held_out, reference, on_progress))
    made_on = ResponseScorer(base.model, base.kernels).made_on()
    return Examination(found[0], tuple(found[1:]), budget, least_accuracy, made_on)


def _examine(
    own: Contestant,
    model: LoadedModel,
    plan: BenchmarkPlan | None,
    held_out: AnchoredPreferences | None,
    reference: Logps | None,
    on_progress: stages.OnProgress,
) -> Examined:
    answers, seconds = {}, {}
    if plan is not None:
        from bapo.evaluation.asking import Examinee

        examinee = Examinee(model, system=own.system, folder=plan.answers_folder)
        examinee.check(plan)
        for name in plan.names:
            start = time.perf_counter()
            answers[name] = examinee.ask(name, plan, stages.counting(on_progress, f"{own.name}: {name}"))
            seconds[name] = time.perf_counter() - start
    from bapo.models import context_length

    if held_out is None or own == Contestant(BASE):
        return Examined(own, answers, seconds=seconds)
    asked = held_out
    if own.system is not None:
        asked = prompted(held_out, model.chat, own.system, reach=context_length(model.model))
    report, scores = evaluate_preferences(
        model.model,
        asked,
        reference=reference,
        kernels=model.kernels,
        on_progress=stages.counting(on_progress, f"{own.name}: preferences"),
    )
    return Examined(own, answers, report, tuple(scores), seconds)


def _day(recipe: Recipe, contestants: Sequence[Contestant], base: LoadedModel) -> datetime | None:
    """What a chat template that writes the date takes for now, for all contestants alike.

    As in the training of the first adapter that says so; else as in the model's store.
    """
    if base.chat.today is None:
        return None
    days = (day_of(Path(own.adapter)) for own in contestants if own.adapter is not None)
    return next((day for day in days if day is not None), None) or stages.open_store(recipe, base).today


def _check_split(recipe: Recipe, contestants: Sequence[Contestant]) -> None:
    """Refuse held-out prompts that an adapter was trained on, because it was trained on another split."""
    told = recipe.preferences.model_dump()
    for own in contestants:
        run = record_of(own.adapter)
        trained_on = run["recipe"].get("preferences") if run else None
        if trained_on is None or trained_on["source"] != told["source"]:
            continue
        other = {key: trained_on[key] for key in ("protocol", "held_out", "seed") if trained_on[key] != told[key]}
        if other:
            settings = " ".join(f"--set preferences.{key}={value}" for key, value in other.items() if value is not None)
            raise BapoError(
                f"The adapter {own.adapter} was trained on another split of {told['source']}, so prompts that it was "
                f"trained on would be asked: use {settings or 'the recipe that it was trained with'}."
            )


def _examined_to_dict(own: Examined) -> dict[str, Any]:
    benchmarks = {
        name: {
            "accuracy": _mean(found.scores),
            "acc": _mean([answer.acc for answer in found.answers]),
            "items": len(found.answers),
            "questions": found.questions,
            "seconds": own.seconds[name],
            "categories": {
                category: {"accuracy": _mean([answer.score for answer in part]), "items": len(part)}
                for category, part in found.by_category().items()
            },
        }
        for name, found in own.benchmarks.items()
    }
    content: dict[str, Any] = {"benchmarks": benchmarks} if benchmarks else {}
    if own.preferences is not None:
        content["preferences"] = asdict(own.preferences)
    return content


def _change_to_dict(change: Change) -> dict[str, Any]:
    return {**asdict(change), "gained": len(change.gained), "lost": len(change.lost)}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
