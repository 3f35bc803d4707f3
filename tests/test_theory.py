"""Proposition 1's simulation: the estimate is the maximum, and errors grow as the proposition says."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from bapo.reporting.theory import bound_in_words, draw_proposition, slope_rows
from bapo.theory import FEATURE_BOUND, PROPOSITION, draw, maximum_likelihood, simulate
from tests.command import bapo

FEW = {
    "n": {"d": 24, "k": 3, "values": (500, 1000, 2000)},
    "d": {"k": 3, "n": 2000, "values": (8, 16, 32)},
    "k": {"d": 32, "n": 2000, "values": (2, 4, 8)},
}


def test_of_one_feature_the_maximum_is_the_log_odds_of_its_wins() -> None:
    """70 of 100 comparisons are won by the response that has it: theta = log(70 / 30)."""
    differences = np.array([[1.0]] * 70 + [[-1.0]] * 30)
    assert maximum_likelihood(differences, radius=5)[0] == pytest.approx(math.log(7 / 3), abs=1e-6)
    assert maximum_likelihood(differences, radius=0.5)[0] == pytest.approx(0.5, abs=1e-5)
    known = np.array([0.2] * 70 + [-0.2] * 30)  # of which 0.2 are known
    assert maximum_likelihood(differences, 5, known)[0] == pytest.approx(math.log(7 / 3) - 0.2, abs=1e-6)


def test_comparisons_that_one_direction_explains_are_estimated_on_the_sphere() -> None:
    differences = np.array([[1.0, 0.1], [0.5, -0.1], [2.0, 0.3]])
    theta = maximum_likelihood(differences, radius=2)
    assert np.linalg.norm(theta) == pytest.approx(2, abs=1e-4)
    around = [2 * np.array([math.cos(angle), math.sin(angle)]) for angle in np.linspace(-math.pi, math.pi, 2001)]
    best = min(around, key=lambda point: np.logaddexp(0, -differences @ point).sum())
    assert theta == pytest.approx(best, abs=1e-2)


def test_drawn_features_are_bounded_and_correlated_as_asked_and_rewards_are_their_products() -> None:
    drawn = draw(d=8, k=2, n=20_000, generator=np.random.default_rng(0), correlation=0.8)
    assert np.abs(drawn.differences).max() <= 2 * FEATURE_BOUND * (0.8 + 0.6)
    assert drawn.differences.var(axis=0) == pytest.approx(np.ones(8), abs=0.15)
    correlations = np.corrcoef(drawn.differences.T)
    assert correlations[0, 6] == pytest.approx(0.8, abs=0.03)
    assert correlations[1, 7] == pytest.approx(0.8, abs=0.03)
    assert abs(correlations[2, 7]) < 0.1
    assert drawn.general_reward == pytest.approx(drawn.differences[:, :6] @ drawn.parameter[:6])
    margins = drawn.differences @ drawn.parameter
    assert margins.mean() == pytest.approx(float((np.abs(margins) * np.tanh(np.abs(margins) / 2)).mean()), abs=0.05)
    with pytest.raises(ValueError, match="too few general ones"):
        draw(d=4, k=4, n=10, generator=np.random.default_rng(0))


def test_errors_grow_as_the_proposition_says() -> None:
    found = simulate(repeats=12, seed=1, settings=FEW)
    assert found == simulate(repeats=12, seed=1, settings=FEW)
    for sweep, whole, known in zip(found.sweeps, (-0.5, 0.5, 0.0), (-0.5, 0.0, 0.5), strict=True):
        assert sweep.slopes["whole"].fitted.value == pytest.approx(whole, abs=0.15)
        assert sweep.slopes["general known"].fitted.value == pytest.approx(known, abs=0.3)
        assert (sweep.slopes["whole"].promised, sweep.slopes["general known"].promised) == (whole, known)
    assert found.covered == 1
    assert found.bounds[0] > 10
    assert 1 < found.constants[0] < found.constants[1] < 5


def test_knowing_the_general_reward_is_worth_what_the_correlation_of_features_costs() -> None:
    """The inverse of the information: a correlation r makes the personal part 1 / sqrt(1 - r^2) times as uncertain."""
    settings = {"correlation": {"d": 16, "k": 3, "n": 2000, "values": (0.0, 0.95)}}
    (sweep,) = simulate(repeats=40, seed=1, settings=settings).sweeps
    gains = [point.errors["personal part"].value / point.errors["general known"].value for point in sweep.points]
    assert gains == pytest.approx([1, 1 / math.sqrt(1 - 0.95**2)], rel=0.2)
    assert all(point.errors["general known"].high < point.errors["equation 9"].low for point in sweep.points)


def test_the_command_writes_a_record_and_a_figure_and_reads_the_record_when_started_again(tmp_path: Path) -> None:
    found = json.loads(bapo("theory", "--repeats", "2", "-o", "out", "--json", cwd=tmp_path).stdout)
    record = PROPOSITION.read(tmp_path / "out/proposition.json")
    assert [sweep["varied"] for sweep in found["sweeps"]] == ["n", "d", "k", "correlation"]
    assert (tmp_path / "out/proposition.svg").read_text().lstrip().startswith("<?xml")
    before = record.path.stat().st_mtime_ns
    said = bapo("theory", "--repeats", "2", "-o", "out", cwd=tmp_path)
    assert record.path.stat().st_mtime_ns == before
    assert all(row[2] in said.stdout for row in slope_rows(record.content))
    assert bound_in_words(record.content) in said.stdout
    assert "must be a whole number from 2" in bapo("theory", "--repeats", "1", cwd=tmp_path, code=2).stderr


def test_the_figure_has_every_estimate(tmp_path: Path) -> None:
    found = simulate(repeats=2, settings={"n": {"d": 6, "k": 2, "values": (100, 200)}})
    draw_proposition(found, tmp_path / "figure.svg")
    text = (tmp_path / "figure.svg").read_text()
    assert text.count('id="LineCollection_') == 2 * 4  # each with its intervals
