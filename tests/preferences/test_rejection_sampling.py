"""Statistical rejection sampling against the probabilities it is defined by."""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import permutations

import pytest

from bapo.errors import BapoError
from bapo.preferences.rejection_sampling import rejection_sample, sample_pairs

DRAWS = 20_000


def shares(rewards: list[float], count: int, beta: float) -> dict[int, float]:
    """How often each candidate is accepted, over many draws."""
    rng = random.Random(0)
    counts = Counter(i for _ in range(DRAWS) for i in rejection_sample(rewards, count, beta, rng))
    return {i: counts[i] / DRAWS for i in range(len(rewards))}


def four_sigma(p: float) -> float:
    return 4 * math.sqrt(p * (1 - p) / DRAWS) + 1e-12


def test_one_of_two_is_accepted_as_often_as_worked_out() -> None:
    # The worse is accepted if it comes first (1/2), with probability exp((0 - 1) / 2); else the best, which always is.
    worse = 0.5 * math.exp(-1 / 2)
    found = shares([0.0, 1.0], count=1, beta=2.0)
    assert found[0] == pytest.approx(worse, abs=four_sigma(worse))
    assert found[1] == pytest.approx(1 - worse, abs=four_sigma(worse))


def test_one_of_three_is_accepted_as_often_as_worked_out() -> None:
    rewards, beta = [0.5, 2.0, 1.0], 1.0
    accept = [math.exp((r - 2.0) / beta) for r in rewards]
    expected = [0.0, 0.0, 0.0]
    for order in permutations(range(3)):
        reached = 1 / 6
        for i in order:  # the first to be accepted is taken, and one always is: the best
            expected[i] += reached * accept[i]
            reached *= 1 - accept[i]
    found = shares(rewards, 1, beta)
    for i in range(3):
        assert found[i] == pytest.approx(expected[i], abs=four_sigma(expected[i]))


def test_large_beta_accepts_any_whatever_its_place() -> None:
    found = shares([5.0, 4.0, 3.0, 2.0, 1.0], count=2, beta=1e9)
    assert all(share == pytest.approx(2 / 5, abs=four_sigma(2 / 5)) for share in found.values())


def test_small_beta_picks_the_best_in_their_order() -> None:
    rewards = [0.1, 0.9, 0.5, 0.7]
    for seed in range(50):
        assert rejection_sample(rewards, 3, beta=1e-6, rng=random.Random(seed)) == [1, 3, 2]


def test_no_more_are_accepted_than_asked_for_however_many_a_round_accepts() -> None:
    for seed in range(200):
        accepted = rejection_sample([0.0, 1.0, 0.5, 0.2, 0.9, 0.4], 4, 1.0, random.Random(seed))
        assert len(set(accepted)) == len(accepted) == 4


def test_every_candidate_is_accepted_once_when_all_are_asked_for() -> None:
    for seed in range(50):
        accepted = rejection_sample([0.0, 3.0, 3.0, -2.0], 4, 0.5, random.Random(seed))
        assert sorted(accepted) == [0, 1, 2, 3]


def test_adding_to_all_rewards_changes_nothing() -> None:
    rewards = [0.25, 1.5, -3.0, 2.0]
    moved = [r + 1024 for r in rewards]
    assert rejection_sample(rewards, 3, 0.5, random.Random(7)) == rejection_sample(moved, 3, 0.5, random.Random(7))


def test_a_seed_is_all_the_randomness_there_is() -> None:
    rewards = [random.Random(1).random() for _ in range(20)]
    random.seed(1)
    first = sample_pairs(rewards, 8, 0.5, random.Random(3))
    random.seed(2)
    assert first == sample_pairs(rewards, 8, 0.5, random.Random(3))


def test_pairs_are_two_by_two_as_accepted_and_the_better_is_chosen() -> None:
    rewards = [0.1, 0.9, 0.5, 0.7, 0.3]
    # Towards beta 0 the accepted are 1, 3, 2, 4, in order: the pairs are (1, 3) and (2, 4).
    assert sample_pairs(rewards, 4, 1e-6, random.Random(0)) == [(1, 3), (2, 4)]


def test_pairs_at_random_are_disjoint_and_ranked() -> None:
    rewards = [float(i % 7) + i / 100 for i in range(64)]
    pairs = sample_pairs(rewards, 8, 2.0, random.Random(0))
    assert len({i for pair in pairs for i in pair}) == 2 * len(pairs) == 8
    assert all(rewards[chosen] > rewards[rejected] for chosen, rejected in pairs)


def test_ties_and_odd_ones_make_no_pair() -> None:
    assert sample_pairs([1.0, 1.0], 2, 1.0, random.Random(0)) == []
    assert sample_pairs([3.0, 2.0, 1.0], 3, 1e-6, random.Random(0)) == [(0, 1)]
    assert sample_pairs([], 0, 1.0, random.Random(0)) == []


@pytest.mark.parametrize(
    ("rewards", "count", "beta"),
    [
        ([1.0, 2.0], 3, 1.0),
        ([1.0, 2.0], -1, 1.0),
        ([1.0, 2.0], 1, 0.0),
        ([1.0, 2.0], 1, float("nan")),
        ([1.0, float("nan")], 1, 1.0),
        ([1.0, float("inf")], 1, 1.0),
    ],
)
def test_refused(rewards: list[float], count: int, beta: float) -> None:
    with pytest.raises(BapoError, match="Rejection sampling"):
        rejection_sample(rewards, count, beta, random.Random(0))
