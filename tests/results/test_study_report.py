"""A study's tables and verdicts: values worked by hand, intervals that cover, verdicts that are seldom wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from bapo.errors import BapoError
from bapo.reporting import study as drawn
from bapo.results import Behaviour, Estimate, EvaluatedCell, PromptScores, study_report
from bapo.results.study_cells import ACCURACY, right_of
from bapo.results.study_claims import RANK, STRENGTH, Claim, holm, judge_claims
from bapo.results.study_draws import Draws, estimate_of, mean_of
from bapo.results.study_report import _table_cell

QUESTIONS = 200


def cell(
    method: str,
    preference: str = "a",
    seed: int = 0,
    right: Sequence[float] = (1, 1, 0, 0),
    pairs: Sequence[tuple[float, float]] = ((1.0, 0.0), (0.0, 1.0)),
    drift: float = 0.0,
    settings: Mapping[str, float] | None = None,
    *,
    lift: float = 0.0,
    varied: Sequence[str] = (),
) -> EvaluatedCell:
    """A run whose questions are right or wrong; the right choice's log-prob is -0.5 or -1.5, and so much above."""
    scores = [PromptScores((pair,), drift, 10, 1) for pair in pairs]
    numbers: list[float] = [float(score) for score in right]
    prompts = {}
    if scores:
        prompts = {
            "reward accuracy": np.array([right_of(prompt) for prompt in scores]),
            "drift": np.array([(prompt.drift, 10.0) for prompt in scores]),
        }

    def asked(values: Sequence[float]) -> dict[str, dict[tuple[str, int], float]]:
        return {"arc": {("arc", number): value for number, value in enumerate(values)}}

    logps = [lift + score - 1.5 for score in numbers]
    questions = {"accuracy": asked(numbers), "right choice": asked(logps), "right choice, tempered": asked(logps)}
    named = ", ".join(f"{key} {(settings or {})[key]}" for key in varied)
    return EvaluatedCell("m", preference, method, named, seed, prompts, questions, settings or {}, tuple(varied))


def test_a_tables_numbers_are_means_over_preferences_of_means_over_seeds() -> None:
    """Preference a: seeds with 50 % and 100 %, mean 75; preference b: 25 %. Mean 50, deviation 25 * sqrt(2)."""
    cells = [
        cell("dpo", "a", 0, (1, 1, 0, 0)),
        cell("dpo", "a", 1, (1, 1, 1, 1)),
        cell("dpo", "b", 0, (1, 0, 0, 0), pairs=((1.0, 0.0), (2.0, 1.0)), drift=-2.0),
    ]
    base = cell("base", "", 0, (1, 1, 1, 0), pairs=())
    of_base, row = study_report({"m": base}, cells, jobs=9, done=4).rows
    accuracy = row.accuracy["arc"]
    assert accuracy.mean.value == pytest.approx(50)
    assert accuracy.deviation == pytest.approx(25 * math.sqrt(2))
    assert accuracy.change is not None
    assert accuracy.change.value == pytest.approx(50 - 75)
    assert accuracy.mean.low < 50 < accuracy.mean.high
    assert accuracy.by_preference == {"a": pytest.approx(75), "b": pytest.approx(25)}
    assert row.prompts["reward accuracy"].mean.value == pytest.approx((50 + 100) / 2)
    assert row.prompts["drift"].mean.value == pytest.approx((0 - 0.2) / 2)
    assert row.logps["right choice"]["arc"].mean.value == pytest.approx(0.5 - 0.75)
    assert row.overall["accuracy"].value == pytest.approx(50 - 75)
    assert row.by_preference == {"a": pytest.approx(0.75 - 0.75), "b": pytest.approx(0.25 - 0.75)}
    assert row.overall["right choice, tempered"].value == pytest.approx(0.5 - 0.75)
    assert (row.preferences, row.runs) == (2, 3)
    assert (of_base.method, of_base.accuracy["arc"].mean.value, of_base.prompts) == ("base", 75, {})
    assert of_base.accuracy["arc"].deviation is None


def test_beside_a_right_choices_change_stands_what_rounding_makes_of_it() -> None:
    cells = [cell("dpo", "a"), cell("dpo", "b")]
    base = replace(cell("base", "", 0, pairs=()), rounding={"arc": 0.03, "piqa": 9.0})
    report = study_report({"m": base}, cells, jobs=3, done=3)
    _, row = report.rows
    assert row.logps["right choice"]["arc"].floor == pytest.approx(2 * 0.03 / math.sqrt(4))
    assert row.logps["right choice, tempered"]["arc"].floor is None
    header, (first, *others) = drawn.logp_table(report)
    assert dict(zip(header, first, strict=True)) == {
        **dict.fromkeys(header, ""), "model": "m", "method": "rounding alone", "arc": "0.03",
    }  # fmt: skip
    assert [line[2] for line in others] == ["dpo"]
    unknown = study_report({"m": replace(base, rounding={})}, cells, jobs=3, done=3)
    assert [line[2] for line in drawn.logp_table(unknown)[1]] == ["dpo"]


def test_a_row_says_what_was_varied_and_without_a_base_nothing_of_changes() -> None:
    varied = cell("bapo", settings={STRENGTH: 5, "objective": "bapo", "more": None}, varied=[STRENGTH])  # type: ignore[dict-item]
    (row,) = study_report({}, [varied], jobs=1, done=1).rows
    assert (row.varied, row.settings) == (f"{STRENGTH} 5", {STRENGTH: 5, "objective": "bapo"})
    assert (row.overall, row.logps, row.by_preference, row.accuracy["arc"].change) == ({}, {}, {}, None)


def test_few_items_that_all_agree_are_not_known_exactly() -> None:
    base = cell("base", "", 0, (1, 1, 1, 1))
    (_, row) = study_report({"m": base}, [cell("dpo", right=(1, 1, 1, 1))], jobs=1, done=1).rows
    accuracy = row.accuracy["arc"]
    assert accuracy.mean.low < 90
    assert accuracy.change is not None
    assert accuracy.change.low < -10 < 10 < accuracy.change.high
    assert accuracy.change.low == pytest.approx(-accuracy.change.high, abs=1), "losses are as likely as gains"


@pytest.mark.parametrize("preferences", ["ab", "abcdef"])
def test_intervals_cover_what_is_drawn_from_preferences_and_questions(preferences: str) -> None:
    """Accuracy 0.6, of preferences 0.1 more or less: 95 % intervals hold it 95 times of 100, however few there are."""
    generator, covered = np.random.default_rng(0), 0
    for _ in range(200):
        cells = []
        for preference in preferences:
            share = 0.6 + 0.1 * generator.standard_normal()
            cells.append(cell("dpo", preference, right=(generator.random(50) < share).astype(float)))
        means, draws = Draws(cells).of_questions(ACCURACY, "arc")
        estimate = estimate_of(mean_of(means), draws)
        covered += estimate.low <= 0.6 <= estimate.high
    assert covered >= 181  # fewer come once in 200


def test_models_that_were_asked_other_questions_are_refused() -> None:
    with pytest.raises(BapoError, match="not asked the same questions of arc"):
        study_report({}, [cell("dpo", "a"), cell("dpo", "b", right=(1, 0))], jobs=1, done=1)
    with pytest.raises(BapoError, match="not asked the same questions of arc"):
        study_report({"m": cell("base", "", right=(1,))}, [cell("dpo")], jobs=1, done=1)


def study_of(generator: np.random.Generator, gain: float, drift: float = -0.5, run: float = 0.0) -> list[EvaluatedCell]:
    """Four preferences: BAPO answers so many more of the questions, and loses so much of its base responses; one run
    differs from another by so much."""
    cells = []
    for preference in "abcd":
        known = generator.random(QUESTIONS)
        for method, share, of in (("dpo", 0.5, -4.0), ("bapo", 0.5 + gain, drift)):
            pairs = [(float(generator.random()), 0.3) for _ in range(30)]
            right = known < share + run * generator.standard_normal()
            cells.append(cell(method, preference, right=right.astype(float), pairs=pairs, drift=of))
    return cells


def test_verdicts_say_what_is_so_and_that_they_cannot_tell() -> None:
    generator = np.random.default_rng(1)
    claims = {claim.name: claim for claim in study_report({}, study_of(generator, 0.2, 0.0), jobs=1, done=1).claims}
    assert list(claims) == ["C1", "C2", "C3", "C3 tempered", "C3 by accuracy", "C4"]
    assert (claims["C1"].verdict, claims["C1"].estimate.value) == ("holds", 0.0)
    assert claims["C3"].verdict == "holds"
    assert claims["C3"].estimate.value == pytest.approx(0.2, abs=0.05)
    assert claims["C3 by accuracy"].estimate.value == pytest.approx(20, abs=5)
    assert claims["C2"].verdict == "cannot tell"
    claims = {claim.name: claim for claim in study_report({}, study_of(generator, -0.2), jobs=1, done=1).claims}
    assert (claims["C1"].verdict, claims["C1"].estimate.value) == ("does not hold", pytest.approx(-0.05))
    assert claims["C3"].verdict == "does not hold"


def test_of_studies_without_a_difference_few_find_one() -> None:
    generator = np.random.default_rng(2)
    found = []
    for _ in range(60):
        claims = judge_claims(study_of(generator, 0.0, run=0.1))
        found.append({claim.name for claim in claims if claim.verdict != "cannot tell"} & {"C3", "C4"})
    assert sum(map(bool, found)) <= 8  # 5 % of 60 are 3; more than 8 come once in 300


def test_claims_are_corrected_together() -> None:
    """Holm: the smallest of p is multiplied by all, the next by one less, and none comes below one before it."""
    (claim,) = [
        c for c in study_report({}, study_of(np.random.default_rng(3), 0.1), jobs=1, done=1).claims if c.name == "C3"
    ]

    def with_p(p: float, *others: float) -> tuple[object, tuple[np.ndarray, ...]]:
        parts = []
        for each in (p, *others):
            draws = np.ones(1999)
            draws[: round(each * 1000) - 1] = -1.0
            parts.append(draws)
        return claim, tuple(parts)

    corrected = holm([with_p(0.01), with_p(0.04), with_p(0.03)])  # type: ignore[list-item]
    assert [c.p for c in corrected] == pytest.approx([0.03, 0.06, 0.06])
    assert [c.verdict for c in corrected] == ["holds", "cannot tell", "cannot tell"]
    (both,) = holm([with_p(0.01, 0.04)])  # type: ignore[list-item]
    assert (both.p, both.verdict) == (pytest.approx(0.04), "holds"), "two that must hold are as sure as the less sure"


def test_a_report_is_drawn_as_it_is_stored_in_three_forms() -> None:
    report = study_report(
        {"m": cell("base", "", right=[1, 0] * (QUESTIONS // 2), pairs=())},
        study_of(np.random.default_rng(4), 0.1),
        jobs=12,
        done=11,
    )
    page = drawn.as_markdown(report, "Study 50 %_&")
    for header, rows in drawn.tables(report).values():
        assert "| " + " | ".join(header) + " |" in page
        assert all("| " + " | ".join(row) + " |" in page for row in rows)
    assert "11 of 12 jobs are done" in page
    table = (("a_b", "50 %"), [("x & y", '1, "2"')])
    assert drawn.as_csv(table) == 'a_b,50 %\nx & y,"1, ""2"""\n'
    assert r"x \& y & 1, " in drawn.as_latex(table)
    assert r"a\_b & 50 \% \\" in drawn.as_latex(table)


def test_no_interval_of_a_share_is_beyond_all_or_nothing() -> None:
    all_right, none = ((1.0, 0.0),) * 4, ((0.0, 1.0),) * 4
    cells = [cell("dpo", "a", right=(1, 1), pairs=all_right), cell("dpo", "b", right=(1, 0), pairs=none)]
    (row,) = study_report({}, cells, jobs=1, done=1).rows
    for found in (row.accuracy["arc"].mean, row.prompts["reward accuracy"].mean):
        assert (found.low, found.high) == (0.0, 100.0)


def test_a_mean_of_one_preference_has_no_deviation() -> None:
    draws = Draws([cell("dpo", seed=0), cell("dpo", seed=1)])
    assert _table_cell(draws, [[0.5, 1.0]], np.array([0.5, 1.0])).deviation is None


def strengths(drifts: Mapping[float, float]) -> list[EvaluatedCell]:
    return [
        cell(
            "bapo",
            preference,
            drift=10 * drift + shift,
            settings={STRENGTH: strength},
            varied=[STRENGTH] if strength != 5 else (),
        )
        for strength, drift in drifts.items()
        for preference, shift in (("a", 0.01), ("b", -0.01))
    ]


def test_an_effect_that_levels_off_is_told_from_one_that_goes_on() -> None:
    """C5: half of the rise from 0 to the middle strength, less the rise from there to the largest."""
    level = {claim.name: claim for claim in judge_claims(strengths({0: -1.0, 0.5: -0.5, 5: -0.2, 20: -0.19}))}["C5"]
    assert level.verdict == "holds"
    assert level.estimate.value == pytest.approx(0.8 / 2 - 0.01)
    steady = {claim.name: claim for claim in judge_claims(strengths({0: -1.0, 0.5: -0.9, 5: -0.8, 20: 0.0}))}["C5"]
    assert steady.verdict == "does not hold"
    assert not [claim for claim in judge_claims(strengths({0.5: -1, 5: -0.2, 20: -0.1})) if claim.name == "C5"]


def ranks(lost: Mapping[str, float]) -> list[EvaluatedCell]:
    """What each method loses from rank 8 to 128, nats; at rank 32, the recipe's own, half of it."""
    generator = np.random.default_rng(5)
    right = generator.integers(0, 2, QUESTIONS)
    return [
        cell(
            method,
            preference,
            right=right,
            lift=-share * loss + 0.002 * float(generator.standard_normal()),
            settings={RANK: rank},
            varied=[RANK] if rank != 32 else (),
        )
        for method, loss in lost.items()
        for rank, share in ((8, 0.0), (32, 0.5), (128, 1.0))
        for preference in "abcd"
    ]


def test_forgetting_that_grows_with_the_rank_under_one_method_only() -> None:
    """C6: BAPO's change from the smallest to the largest rank, less DPO's."""
    claim = {claim.name: claim for claim in judge_claims(ranks({"dpo": 0.3, "bapo": 0.0}))}["C6"]
    assert claim.verdict == "holds"
    assert claim.estimate.value == pytest.approx(0.3, abs=0.02)
    other = {claim.name: claim for claim in judge_claims(ranks({"dpo": 0.0, "bapo": 0.3}))}["C6"]
    assert other.verdict == "does not hold"


def named(cells: Sequence[EvaluatedCell]) -> dict[str, Claim]:
    return {claim.name: claim for claim in judge_claims(cells)}


def test_ranks_that_only_one_method_has_are_not_compared() -> None:
    """Both lose 0.1 from 8 to 32; what only one of them loses to 128 says nothing of a difference."""
    cells = ranks({"dpo": 0.2, "bapo": 0.2})
    claim = named([each for each in cells if (each.method, each.settings[RANK]) != ("bapo", 128)])["C6"]
    assert claim.estimate.value == pytest.approx(0.0, abs=0.02)
    assert "from rank 8 to 32" in claim.says


def test_along_a_setting_the_same_runs_are_compared() -> None:
    """At rank 32 there are two preferences more, which the others do not have."""
    cells = ranks({"dpo": 0.3, "bapo": 0.0})
    more = [replace(each, preference=f"{each.preference} too") for each in cells if each.settings[RANK] == 32]
    report = study_report({"m": cell("base", "", right=(0,) * QUESTIONS)}, [*cells, *more], jobs=1, done=1)
    found = [(row.method, row.settings[RANK], sorted(row.by_preference)) for row in report.along[RANK]]
    assert found == [(method, rank, list("abcd")) for method in ("dpo", "bapo") for rank in (8, 32, 128)]
    assert report.along[STRENGTH] == ()


def test_a_claim_of_two_parts_needs_both() -> None:
    """BAPO's gain is not DPO's loss, a loss that is below DPO's is one, and a collapse is no levelling off."""
    assert named(ranks({"dpo": 0.5, "bapo": 0.3}))["C6"].verdict == "does not hold"
    assert named(ranks({"dpo": 0.0, "bapo": -0.3}))["C6"].verdict != "holds"
    assert named(strengths({0: -0.2, 5: -0.3, 20: -0.6}))["C5"].verdict != "holds"


def test_of_one_run_nothing_is_judged_and_others_are_not_corrected_for_it() -> None:
    one = [cell("bapo", lift=1.0), cell("dpo")]
    assert {(claim.p, claim.verdict) for claim in judge_claims(one)} == {(1.0, "cannot tell")}
    assert all("one run: its items alone, no verdict" in claim.says for claim in judge_claims(one))
    several = study_of(np.random.default_rng(1), 0.2, 0.0)
    alone = [replace(each, model="other") for each in one]
    before, after = judge_claims(several), judge_claims([*several, *alone])
    assert [(claim.p, claim.verdict) for claim in after[: len(before)]] == [(c.p, c.verdict) for c in before]


def test_preferences_of_two_sources_are_two_rows_and_judged_apart() -> None:
    """As the paper's tables have P-Soups and DSP one below the other."""
    cells = [
        replace(each, preference=f"{source}:{each.preference}")
        for source, gain in (("dsp", 0.2), ("psoups", -0.2))
        for each in study_of(np.random.default_rng(1), gain, 0.0)
    ]
    report = study_report({"m": cell("base", "", right=(0,) * QUESTIONS, pairs=())}, cells, jobs=1, done=1)
    assert [(row.source, row.method, row.preferences) for row in report.rows] == [
        ("dsp", "base", 1),
        ("psoups", "base", 1),
        *((source, method, 4) for source in ("dsp", "psoups") for method in ("dpo", "bapo")),
    ]
    found = {(claim.source, claim.verdict) for claim in report.claims if claim.name == "C3"}
    assert found == {("dsp", "holds"), ("psoups", "does not hold")}


def test_knowledge_and_alignment_are_judged_apart_where_both_were_asked() -> None:
    """BAPO loses 0.2 nats of the one and gains 0.6 of the other: 0.2 in the mean."""

    def asked(cell: EvaluatedCell, knowledge: float, alignment: float) -> EvaluatedCell:
        own = {"arc": knowledge, **dict.fromkeys(("hhh: honest", "hhh: helpful"), alignment)}
        values = {name: {(name, at): value for at in range(5)} for name, value in own.items()}
        measures = dict.fromkeys(("accuracy", "right choice", "right choice, tempered"), values)
        return replace(cell, questions=measures, kinds={"arc": "knowledge", "hhh": "alignment"})

    cells = [asked(cell("dpo", name), 0.0, 0.0) for name in "abcd"]
    cells += [asked(cell("bapo", name), -0.2, 0.6) for name in "abcd"]
    claims = named(cells)
    assert [claims[name].estimate.value for name in ("C3", "C3 knowledge", "C3 alignment")] == pytest.approx(
        [0.2, -0.2, 0.6]
    )
    assert (claims["C3 knowledge"].verdict, claims["C3 alignment"].verdict) == ("does not hold", "holds")
    base = asked(cell("base", "", pairs=()), 0.0, 0.0)
    row = study_report({"m": base}, cells, jobs=1, done=1).rows[-1]
    means = [row.overall[name].value for name in ("right choice", "right choice, knowledge", "right choice, alignment")]
    assert means == pytest.approx([0.2, -0.2, 0.6])


def test_methods_with_other_preferences_are_compared_on_those_that_all_have() -> None:
    cells = [
        *(cell(method, preference, drift=-1.0) for method in ("dpo", "bapo") for preference in "ab"),
        cell("ipo", "a", drift=-3.0),
        replace(cell("prompt-only", "b"), trained=False),
    ]
    common = study_report({}, cells, jobs=1, done=1).common
    assert [(row.method, row.preferences, row.prompts["drift"].mean.value) for row in common] == [
        ("dpo", 1, pytest.approx(-0.1)),
        ("bapo", 1, pytest.approx(-0.1)),
        ("ipo", 1, pytest.approx(-0.3)),
    ]
    assert study_report({}, cells[:4], jobs=1, done=1).common == ()


def test_runs_that_are_right_on_the_same_pairs_are_not_known_to_be_equal() -> None:
    claim = named([cell(method, preference) for method in ("bapo", "dpo") for preference in "abc"])["C2"]
    assert claim.estimate.value == 0
    assert claim.estimate.low < -10 < 10 < claim.estimate.high
    assert claim.verdict == "cannot tell"


def test_prompts_that_preferences_share_are_resampled_together() -> None:
    """Twenty prompts of one kind or the other: four preferences over the same ones know no more of them than one."""
    generator = np.random.default_rng(3)
    drifts = generator.standard_normal(20)

    def half_width(preferences: str, tokens: Mapping[str, Sequence[float]]) -> float:
        cells = []
        for preference in preferences:
            prompts = {"drift": np.stack([drifts, np.array(tokens[preference])], axis=1)}
            cells.append(replace(cell("bapo", preference), prompts=prompts))
        means, draws = Draws(cells).of_prompts("drift")
        estimate = estimate_of(mean_of(means), draws)
        return (estimate.high - estimate.low) / 2

    same = {preference: [10.0] * 20 for preference in "abcd"}
    other = {preference: [10.0] * 19 + [10.0 + 0.001 * at] for at, preference in enumerate("abcd")}
    assert half_width("abcd", same) == pytest.approx(half_width("a", same), rel=0.1)
    assert half_width("abcd", other) == pytest.approx(half_width("a", same) / 2, rel=0.15)


def test_prompts_of_other_topics_are_the_same_for_all_preferences() -> None:
    """Whatever prompts of their own preferences have."""
    generator = np.random.default_rng(3)
    moved = np.stack([generator.random(20), np.ones(20)], axis=1)

    def half_width(preferences: str) -> float:
        own = {
            preference: np.stack([np.ones(20), np.full(20, 10.0 + at)], axis=1) for at, preference in enumerate("abcd")
        }
        cells = [
            replace(cell("bapo", preference), prompts={"divergence, other": moved, "drift": own[preference]})
            for preference in preferences
        ]
        means, draws = Draws(cells).of_prompts("divergence, other")
        estimate = estimate_of(mean_of(means), draws)
        return (estimate.high - estimate.low) / 2

    assert half_width("abcd") == pytest.approx(half_width("a"), rel=0.1)


def test_a_benchmark_counts_once_however_many_categories_it_has() -> None:
    """A loss of 1 nat in one of two benchmarks, of which the other has three categories: 0.5, and not 0.25."""
    columns = {"piqa": -1.0, **{f"mmlu: {name}": 0.0 for name in ("humanities", "stem", "other")}}

    def asked(cell: EvaluatedCell, change: Mapping[str, float]) -> EvaluatedCell:
        values = {name: {(name, at): change[name] for at in range(5)} for name in columns}
        return replace(cell, questions=dict.fromkeys(("accuracy", "right choice", "right choice, tempered"), values))

    base = asked(cell("base", "", pairs=()), dict.fromkeys(columns, 0.0))
    cells = [
        asked(cell(method), columns if method == "dpo" else dict.fromkeys(columns, 0.0)) for method in ("bapo", "dpo")
    ]
    rows = {row.method: row for row in study_report({"m": base}, cells, jobs=3, done=3).rows}
    assert rows["dpo"].overall["right choice"].value == pytest.approx(-0.5)
    assert rows["dpo"].by_preference == {"a": pytest.approx(-0.5)}
    claims = {claim.name: claim for claim in judge_claims(cells)}
    assert claims["C3"].estimate.value == pytest.approx(0.5)


def test_a_divergence_has_its_floor_beside_it() -> None:
    moved = {"divergence, other": np.ones((4, 2))}
    cells = [
        replace(cell("dpo", seed=seed), prompts=moved, floors={"divergence, other": f})
        for seed, f in enumerate((1e-9, 2e-3))
    ]
    report = study_report({}, cells, jobs=2, done=2)
    assert "1.0000 [1.0000, 1.0000], floor 2e-03" in drawn.preference_table(report)[1][0]


def test_at_matched_reward_accuracy_the_nearest_run_of_the_other_method_is_taken_however_it_was_trained() -> None:
    half, all_right = ((1.0, 0.0), (0.0, 1.0)), ((1.0, 0.0), (1.0, 0.0))
    steps = "training.max_steps"
    cells = [
        *(cell("bapo", preference, pairs=half) for preference in "ab"),
        *(cell("dpo", preference, pairs=all_right, lift=-1.0, settings={steps: 50}) for preference in "ab"),
        *(cell("dpo", preference, pairs=half, lift=-0.2, settings={steps: 9}, varied=[steps]) for preference in "a"),
    ]
    claims = {claim.name: claim for claim in judge_claims(cells)}
    assert claims["C3"].estimate.value == pytest.approx(1.0)
    assert claims["C3 matched"].estimate.value == pytest.approx(0.2)
    assert "the 1 of 2 runs" in claims["C3 matched"].says


def test_the_base_speaks_too() -> None:
    """Within preferences half-widths 0.1 and 0.05, as if dependent; between two values 0.1 apart t(1) is 12.706."""

    def spoken(value: float, half: float) -> Behaviour:
        estimate = Estimate(value, value - half, value + half)
        return Behaviour(estimate, Estimate(70.0, 60.0, 80.0), estimate, 50)

    base = cell("base", "", pairs=())
    of_preferences = {"a": spoken(0.25, 0.1), "b": spoken(0.35, 0.05)}
    row, _ = study_report({"m": base}, [cell("dpo")], jobs=1, done=1, spoken={"m": of_preferences}).rows
    found = row.prompts["chosen-like answers"]
    half = 100 * math.hypot(0.075, 12.7062 * 0.1 / math.sqrt(2) / math.sqrt(2))
    assert (found.mean.value, found.mean.low, found.mean.high) == pytest.approx((30.0, 30.0 - half, 30.0 + half))
    assert found.by_preference == {"a": pytest.approx(25.0), "b": pytest.approx(35.0)}
    assert found.deviation == pytest.approx(10 / math.sqrt(2))
    assert row.preferences == 2
    row, _ = study_report({"m": base}, [cell("dpo")], jobs=1, done=1, spoken={"m": {"a": spoken(0.25, 0.1)}}).rows
    assert row.prompts["chosen-like answers"].deviation is None
    assert row.prompts["chosen-like answers"].mean.low == pytest.approx(15.0)
    assert row.prompts["words an answer"].mean.value == 70.0
    assert set(row.prompts) == {"chosen-like answers", "words an answer", "repeated runs of words"}
