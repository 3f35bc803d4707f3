"""The paper's claims about a study's runs, each with the estimate and the draws that decide it, judged together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from bapo.results.answers import BenchmarkKind
from bapo.results.changes import BUDGET
from bapo.results.estimates import Estimate
from bapo.results.study_cells import ACCURACY, DRIFT, FORGETTING, REWARD_ACCURACY, TEMPERED, Array, EvaluatedCell
from bapo.results.study_draws import (
    LEVEL,
    Draws,
    change_between,
    deviations,
    estimate_of,
    mean_of,
    paired,
    units_of,
    weights_of,
)

DRIFT_HELD = -0.01
"""Nats a token that base responses may lose and still count as held: 1 % of their probability."""

LOSS_HELD = 0.05
"""Nats of the right choice's log-probability that may be lost and still count as nothing: 5 % of its probability."""

MATCHED = 5.0
"""Points by which reward accuracies may differ and still count as matched."""

KINDS: tuple[BenchmarkKind, ...] = ("knowledge", "alignment")
"""Of benchmarks; where both were asked, each stands and is judged by itself, too."""

STRENGTH, RANK = "training.anchor_strength", "lora.rank"

LENGTHS = {"training.max_steps", "training.num_train_epochs"}
"""Settings in which runs at matched reward accuracy may differ."""

Holds = Literal["holds", "does not hold", "cannot tell"]


@dataclass(frozen=True, slots=True)
class Claim:
    """One of the paper's claims, on one model and the preferences of one source.

    Attributes:
        name: C1 to C6.
        model, source: on which.
        says: in words.
        estimate: of what decides it, and ``threshold`` what it is compared with.
        p: of the verdict, corrected for all claims of the study (Holm); 1 where there is none.
        verdict: whether it holds.
    """

    name: str
    model: str
    source: str
    says: str
    estimate: Estimate
    threshold: float
    p: float
    verdict: Holds


@dataclass(frozen=True)
class _Open:
    """A claim that is not judged yet: its value, the draws of it, and what it has to exceed.

    Attributes:
        name, says: as of a claim.
        value, draws, threshold: of what decides it.
        units: independent runs that it is known from; of one nothing can be told.
        also: draws of what must exceed 0 too, for the claim to hold.
    """

    name: str
    says: str
    value: float
    draws: Array
    threshold: float = 0.0
    units: int = 1
    also: tuple[Array, ...] = ()


def judge_claims(cells: Sequence[EvaluatedCell]) -> tuple[Claim, ...]:
    """All claims that the runs of a study can be asked about, corrected together.

    What is known from one run alone, of one preference and seed, is shown with its items' interval and not judged.
    """
    claims: list[Claim] = []
    judged: dict[int, tuple[Array, ...]] = {}
    for place in dict.fromkeys((cell.model, cell.source) for cell in cells):
        for asked in _claims([cell for cell in cells if (cell.model, cell.source) == place]):
            says = asked.says if asked.units > 1 else f"{asked.says} (one run: its items alone, no verdict)"
            if asked.units > 1:
                judged[len(claims)] = (asked.draws - asked.threshold, *asked.also)
            estimate = estimate_of(asked.value, asked.draws)
            claims.append(Claim(asked.name, *place, says, estimate, asked.threshold, 1.0, "cannot tell"))
    for at, claim in zip(judged, holm([(claims[at], parts) for at, parts in judged.items()]), strict=True):
        claims[at] = claim
    return tuple(claims)


def _claims(cells: Sequence[EvaluatedCell]) -> Iterator[_Open]:
    plain = {of: [cell for cell in cells if cell.method == of and not cell.varied] for of in ("bapo", "dpo")}
    if plain["bapo"] and all(DRIFT in cell.prompts for cell in plain["bapo"]):
        means, draws = Draws(plain["bapo"]).of_prompts(DRIFT)
        says = f"BAPO holds base responses: their drift is above {DRIFT_HELD:g} nats a token"
        yield _Open("C1", says, mean_of(means), draws, DRIFT_HELD, units_of(plain["bapo"]))
    pairs = paired(plain["bapo"], plain["dpo"])
    if pairs:
        yield from _against_dpo(pairs, cells)
    yield from _strengths([cell for cell in cells if cell.method == "bapo"])
    yield from _ranks(cells)


def _against_dpo(
    pairs: Sequence[tuple[EvaluatedCell, EvaluatedCell]], cells: Sequence[EvaluatedCell]
) -> Iterator[_Open]:
    units = units_of([a for a, _ in pairs])
    if all(REWARD_ACCURACY in cell.prompts for pair in pairs for cell in pair):
        by_prompt = Draws([a.minus_prompts(b, REWARD_ACCURACY) for a, b in pairs])
        means, draws = by_prompt.of_prompts(REWARD_ACCURACY, -100.0)
        says = f"BAPO's reward accuracy is at least DPO's, less {BUDGET:g} points at most"
        yield _Open("C2", says, mean_of(means), draws, -BUDGET, units)
    if not pairs[0][0].columns:
        return
    says = "BAPO keeps knowledge and alignment better than DPO: mean over benchmarks"
    yield _Open("C3", f"{says}, nats ({FORGETTING})", *change_between(pairs, FORGETTING), units=units)
    for kind, columns in by_kind(pairs[0][0]).items():
        says_it = f"BAPO keeps {kind} better than DPO, nats ({FORGETTING})"
        yield _Open(f"C3 {kind}", says_it, *change_between(pairs, FORGETTING, columns=columns), units=units)
    yield _Open("C3 tempered", f"{says}, nats ({TEMPERED})", *change_between(pairs, TEMPERED), units=units)
    yield _Open("C3 by accuracy", f"{says}, points", *change_between(pairs, ACCURACY), units=units)
    matched = _matched([a for a, _ in pairs], [cell for cell in cells if cell.method == "dpo"])
    if {id(b) for _, b in matched} - {id(b) for _, b in pairs}:
        left = float(np.mean([_reward_accuracy(a) - _reward_accuracy(b) for a, b in matched]))
        among = f"the {len(matched)} of {len(pairs)} runs with a DPO run of the same preference and seed within"
        says = (
            f"the same at matched reward accuracy: {among} {MATCHED:g} points (in the mean {left:+.1f}), "
            f"nats ({FORGETTING})"
        )
        known_from = units_of([a for a, _ in matched])
        yield _Open("C3 matched", says, *change_between(matched, FORGETTING), units=known_from)
    if len({a.preference for a, _ in pairs}) > 3:
        says = "BAPO's accuracies differ less between preferences than DPO's: log ratio of DPO's deviation to BAPO's"
        yield _Open("C4", says, *_spread(pairs), units=units)


def _matched(
    ours: Sequence[EvaluatedCell], theirs: Sequence[EvaluatedCell]
) -> list[tuple[EvaluatedCell, EvaluatedCell]]:
    """Each run with that of the other method, on the same preference with the same seed, however long it was trained,
    whose reward accuracy is nearest; none where no other is near."""
    alike = [each for each in theirs if set(each.varied_keys) <= LENGTHS and REWARD_ACCURACY in each.prompts]
    pairs = []
    for cell in (cell for cell in ours if REWARD_ACCURACY in cell.prompts):
        others = [each for each in alike if (each.preference, each.seed) == (cell.preference, cell.seed)]
        nearest = min(others, key=lambda each: abs(_reward_accuracy(each) - _reward_accuracy(cell)), default=None)
        if nearest is not None and abs(_reward_accuracy(nearest) - _reward_accuracy(cell)) <= MATCHED:
            pairs.append((cell, nearest))
    return pairs


def _reward_accuracy(cell: EvaluatedCell) -> float:
    above, below = cell.prompts[REWARD_ACCURACY].T
    return float(above.sum() / below.sum())


def _spread(pairs: Sequence[tuple[EvaluatedCell, EvaluatedCell]]) -> tuple[float, Array]:
    """Log of DPO's standard deviation over preferences over BAPO's, mean over benchmarks.

    Its draws are those of the jackknife's pseudo-values over preferences (Miller 1968, "Jackknifing variances").
    """

    def table(side: int) -> Array:
        draws = Draws([pair[side] for pair in pairs])
        columns = pairs[0][0].columns
        return np.array([[np.mean(row) for row in draws.of_questions(ACCURACY, column)[0]] for column in columns])

    ours, theirs = table(0), table(1)
    count, least = ours.shape[1], 1e-3  # a tenth of a point

    def log_ratio(kept: Sequence[int]) -> float:
        mine, other = (np.maximum(of[:, kept].std(axis=1, ddof=1), least) for of in (ours, theirs))
        return float(weights_of(pairs[0][0].columns) @ np.log(other / mine))

    value = log_ratio(range(count))
    without = [log_ratio([at for at in range(count) if at != left]) for left in range(count)]
    pseudo = count * value - (count - 1) * np.array(without)
    return value, value + deviations(np.random.default_rng(0), count) @ pseudo / count


def _strengths(cells: Sequence[EvaluatedCell]) -> Iterator[_Open]:
    """C5: from no anchor to a middle strength drift changes by more than twice as much as from there to the largest."""
    by_strength = by_setting(cells, STRENGTH)
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
        f"the effect of the anchor strength levels off: from 0 to {middle:g} drift rises, and by more than twice as "
        f"much as from there to {largest:g} (half of the first rise less the second, nats a token)"
    )
    first, second = draws[1] - draws[0], draws[2] - draws[1]
    yield _Open("C5", says, value, first / 2 - second, units=units_of([here[0][key] for key in common]), also=(first,))


def _ranks(cells: Sequence[EvaluatedCell]) -> Iterator[_Open]:
    """C6: from the smallest to the largest rank that both methods have, DPO loses, BAPO loses less, and no more than
    `LOSS_HELD`."""
    ours, theirs = (by_setting([cell for cell in cells if cell.method == method], RANK) for method in ("bapo", "dpo"))
    ranks = sorted(ours.keys() & theirs.keys())
    if len(ranks) < 2:
        return
    low, high = ranks[0], ranks[-1]
    at = [{(cell.preference, cell.seed): cell for cell in of[rank]} for of in (ours, theirs) for rank in (high, low)]
    common = [key for key in at[0] if all(key in cells for cells in at)]
    if not common or not at[0][common[0]].columns:
        return
    (change, draws), (their_change, their_draws) = (
        change_between([(at[side][key], at[side + 1][key]) for key in common], FORGETTING) for side in (0, 2)
    )
    says = (
        f"forgetting grows with the LoRA rank under DPO and not under BAPO: from rank {low:g} to {high:g} DPO loses, "
        f"BAPO loses less (BAPO's change less DPO's, nats, {FORGETTING}), and its own change is above -{LOSS_HELD:g}"
    )
    units = units_of([at[0][key] for key in common])
    yield _Open(
        "C6", says, change - their_change, draws - their_draws, units=units, also=(-their_draws, draws + LOSS_HELD)
    )


def by_kind(cell: EvaluatedCell) -> dict[BenchmarkKind, tuple[str, ...]]:
    """Columns of the tables by the kind of their benchmarks; none where all are of one kind."""
    kinds = {kind: cell.columns_of(kind) for kind in KINDS}
    return kinds if all(kinds.values()) else {}


def by_setting(cells: Sequence[EvaluatedCell], key: str) -> Mapping[float, list[EvaluatedCell]]:
    """Runs of which only one setting differs, by its value; those that name none have the recipe's own."""
    by_value: dict[float, list[EvaluatedCell]] = {}
    for cell in cells:
        if set(cell.varied_keys) <= {key} and isinstance(cell.settings.get(key), int | float):
            by_value.setdefault(float(cell.settings[key]), []).append(cell)
    return by_value


def holm(claims: Sequence[tuple[Claim, tuple[Array, ...]]]) -> tuple[Claim, ...]:
    """Verdicts: a claim holds, or not, if so few draws say otherwise that it stays so after Holm's correction.

    Args:
        claims: each with draws of what must exceed 0: of several all must, so the claim is as sure as the least sure of
            them, and its contrary as sure as the surest, times their number.
    """
    sides = []
    for _, parts in claims:
        below = max((1 + float(np.sum(draws <= 0))) / (1 + len(draws)) for draws in parts)
        above = len(parts) * min((1 + float(np.sum(draws >= 0))) / (1 + len(draws)) for draws in parts)
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
