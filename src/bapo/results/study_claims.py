"""The paper's claims about a study's runs, each with the estimate and the draws that decide it, judged together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from bapo.results.changes import BUDGET
from bapo.results.estimates import Estimate
from bapo.results.study_cells import (
    ACCURACY,
    DRIFT,
    FORGETTING,
    LEVEL,
    RESAMPLES,
    REWARD_ACCURACY,
    TEMPERED,
    Array,
    Draws,
    EvaluatedCell,
    change_between,
    estimate_of,
    mean_of,
    paired,
)

DRIFT_HELD = -0.01
"""Nats a token that base responses may lose and still count as held: 1 % of their probability."""

MATCHED = 5.0
"""Points by which reward accuracies may differ and still count as matched."""

STRENGTH, RANK = "training.anchor_strength", "lora.rank"

Holds = Literal["holds", "does not hold", "cannot tell"]


@dataclass(frozen=True, slots=True)
class Claim:
    """One of the paper's claims, on one model.

    Attributes:
        name: C1 to C6.
        model: on which.
        says: in words.
        estimate: of what decides it, and ``threshold`` what it is compared with.
        p: of the verdict, corrected for all claims of the study (Holm); 1 where there is none.
        verdict: whether it holds.
    """

    name: str
    model: str
    says: str
    estimate: Estimate
    threshold: float
    p: float
    verdict: Holds


@dataclass(frozen=True)
class _Open:
    """A claim that is not judged yet: its value, the draws of it, and what it has to exceed."""

    name: str
    says: str
    value: float
    draws: Array
    threshold: float = 0.0


def judge_claims(cells: Sequence[EvaluatedCell]) -> tuple[Claim, ...]:
    """All claims that the runs of a study can be asked about, corrected together."""
    claims = []
    for model in dict.fromkeys(cell.model for cell in cells):
        of_model = [cell for cell in cells if cell.model == model]
        for claim in _claims(of_model):
            estimate = estimate_of(claim.value, claim.draws)
            shown = Claim(claim.name, model, claim.says, estimate, claim.threshold, 1.0, "cannot tell")
            claims.append((shown, claim.draws))
    return holm(claims)


def _claims(cells: Sequence[EvaluatedCell]) -> Iterator[_Open]:
    plain = {of: [cell for cell in cells if cell.method == of and not cell.varied] for of in ("bapo", "dpo")}
    if plain["bapo"] and all(DRIFT in cell.prompts for cell in plain["bapo"]):
        means, draws = Draws(plain["bapo"]).of_prompts(DRIFT)
        says = f"BAPO holds base responses: their drift is above {DRIFT_HELD:g} nats a token"
        yield _Open("C1", says, mean_of(means), draws, DRIFT_HELD)
    pairs = paired(plain["bapo"], plain["dpo"])
    if pairs:
        yield from _against_dpo(pairs, cells)
    yield from _strengths([cell for cell in cells if cell.method == "bapo"])
    yield from _ranks(cells)


def _against_dpo(
    pairs: Sequence[tuple[EvaluatedCell, EvaluatedCell]], cells: Sequence[EvaluatedCell]
) -> Iterator[_Open]:
    ours, theirs = Draws([a for a, _ in pairs]), Draws([b for _, b in pairs])
    if all(REWARD_ACCURACY in cell.prompts for pair in pairs for cell in pair):
        (right, draws), (their_right, their_draws) = (side.of_prompts(REWARD_ACCURACY) for side in (ours, theirs))
        says = f"BAPO's reward accuracy is at least DPO's, less {BUDGET:g} points at most"
        yield _Open("C2", says, mean_of(right) - mean_of(their_right), draws - their_draws, -BUDGET)
    if not pairs[0][0].columns:
        return
    says = "BAPO keeps knowledge and alignment better than DPO: mean over benchmarks"
    yield _Open("C3", f"{says}, nats ({FORGETTING})", *change_between(pairs, FORGETTING))
    yield _Open("C3 tempered", f"{says}, nats ({TEMPERED})", *change_between(pairs, TEMPERED))
    yield _Open("C3 by accuracy", f"{says}, points", *change_between(pairs, ACCURACY))
    matched = _matched([a for a, _ in pairs], [cell for cell in cells if cell.method == "dpo"])
    if matched:
        among = f"the {len(matched)} of {len(pairs)} runs with a DPO run of the same preference and seed within"
        says = f"the same at matched reward accuracy: {among} {MATCHED:g} points, nats ({FORGETTING})"
        yield _Open("C3 matched", says, *change_between(matched, FORGETTING))
    if len(ours.cells) > 2:
        says = "BAPO's accuracies differ less between preferences than DPO's: log ratio of deviations"
        yield _Open("C4", says, *_spread(ours, theirs, pairs[0][0].columns))


def _matched(
    ours: Sequence[EvaluatedCell], theirs: Sequence[EvaluatedCell]
) -> list[tuple[EvaluatedCell, EvaluatedCell]]:
    """Each run with that of the other method, on the same preference with the same seed, however long or strong it was
    trained, whose reward accuracy is nearest; none where no other is near."""
    pairs = []
    for cell in ours:
        others = [each for each in theirs if (each.preference, each.seed) == (cell.preference, cell.seed)]
        nearest = min(others, key=lambda each: abs(_reward_accuracy(each) - _reward_accuracy(cell)), default=None)
        if nearest is not None and abs(_reward_accuracy(nearest) - _reward_accuracy(cell)) <= MATCHED:
            pairs.append((cell, nearest))
    return pairs


def _reward_accuracy(cell: EvaluatedCell) -> float:
    above, below = cell.prompts[REWARD_ACCURACY].T
    return float(above.sum() / below.sum())


def _spread(ours: Draws, theirs: Draws, columns: Sequence[str]) -> tuple[float, Array]:
    """Log of DPO's standard deviation over preferences over BAPO's, mean over benchmarks; preferences are resampled."""

    def table(draws: Draws) -> Array:
        return np.array([[np.mean(row) for row in draws.of_questions(ACCURACY, column)[0]] for column in columns])

    def log_ratio(mine: Array, other: Array) -> float:
        least = 1e-3  # a tenth of a point
        return float(np.mean(np.log(np.maximum(other.std(axis=1), least) / np.maximum(mine.std(axis=1), least))))

    our_means, their_means = table(ours), table(theirs)
    generator = np.random.default_rng(0)
    picks = generator.integers(0, our_means.shape[1], (RESAMPLES, our_means.shape[1]))
    return log_ratio(our_means, their_means), np.array(
        [log_ratio(our_means[:, pick], their_means[:, pick]) for pick in picks]
    )


def _strengths(cells: Sequence[EvaluatedCell]) -> Iterator[_Open]:
    """C5: from no anchor to a middle strength drift changes by more than twice as much as from there to the largest."""
    by_strength = _by_setting(cells, STRENGTH)
    if len(by_strength) < 3 or 0 not in by_strength:
        return
    largest = max(by_strength)
    middle = sorted(by_strength)[len(by_strength) // 2]
    here = [
        {(cell.preference, cell.seed): cell for cell in by_strength[strength] if DRIFT in cell.prompts}
        for strength in (0.0, middle, largest)
    ]
    common = [key for key in here[0] if all(key in cells for cells in here)]
    if not common:
        return
    (none, some, most), draws = zip(
        *(Draws([cells[key] for key in common]).of_prompts(DRIFT) for cells in here), strict=True
    )
    value = (mean_of(some) - mean_of(none)) / 2 - (mean_of(most) - mean_of(some))
    says = (
        f"the effect of the anchor strength levels off: from 0 to {middle:g} drift rises by more than twice as much "
        f"as from there to {largest:g} (half of the first rise less the second, nats a token)"
    )
    yield _Open("C5", says, value, (draws[1] - draws[0]) / 2 - (draws[2] - draws[1]))


def _ranks(cells: Sequence[EvaluatedCell]) -> Iterator[_Open]:
    """C6: what is lost from the smallest to the largest rank is more under DPO than under BAPO."""
    grown = {}
    for method in ("bapo", "dpo"):
        by_rank = _by_setting([cell for cell in cells if cell.method == method], RANK)
        if len(by_rank) < 2:
            return
        pairs = paired(by_rank[max(by_rank)], by_rank[min(by_rank)])
        if not pairs or not pairs[0][0].columns:
            return
        grown[method] = (change_between(pairs, FORGETTING), min(by_rank), max(by_rank))
    (ours, low, high), (theirs, *_) = grown["bapo"], grown["dpo"]
    says = (
        f"forgetting grows with the LoRA rank under DPO and not under BAPO: from rank {low:g} to {high:g} BAPO loses "
        f"less, nats ({FORGETTING})"
    )
    yield _Open("C6", says, ours[0] - theirs[0], ours[1] - theirs[1])


def _by_setting(cells: Sequence[EvaluatedCell], key: str) -> Mapping[float, list[EvaluatedCell]]:
    """Runs of which only one setting differs, by its value; those that name none have the recipe's own."""
    by_value: dict[float, list[EvaluatedCell]] = {}
    for cell in cells:
        if set(cell.varied_keys) <= {key} and isinstance(cell.settings.get(key), int | float):
            by_value.setdefault(float(cell.settings[key]), []).append(cell)
    return by_value


def holm(claims: Sequence[tuple[Claim, Array]]) -> tuple[Claim, ...]:
    """Verdicts: a claim holds, or not, if so few draws say otherwise that it stays so after Holm's correction."""
    sides = []
    for claim, draws in claims:
        below = (1 + float(np.sum(draws <= claim.threshold))) / (1 + len(draws))
        above = (1 + float(np.sum(draws >= claim.threshold))) / (1 + len(draws))
        sides.append((min(1.0, 2 * min(below, above)), "holds" if below < above else "does not hold"))
    order = sorted(range(len(sides)), key=lambda at: sides[at][0])
    corrected, most = [1.0] * len(sides), 0.0
    for rank, at in enumerate(order):
        most = max(most, min(1.0, (len(sides) - rank) * sides[at][0]))
        corrected[at] = most
    verdicts: list[Any] = [side if p < LEVEL else "cannot tell" for (_, side), p in zip(sides, corrected, strict=True)]
    return tuple(
        replace(claim, p=p, verdict=verdict) for (claim, _), p, verdict in zip(claims, corrected, verdicts, strict=True)
    )
