"""Statistical rejection sampling of preference pairs (Liu et al. 2023, "RSO": section 3.2, algorithm 1)."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from bapo.errors import BapoError


def rejection_sample(rewards: Sequence[float], count: int, beta: float, rng: random.Random) -> list[int]:
    """Accept candidate responses as if they came from the optimal policy, not from the one that made them.

    Each round goes over the candidates that are left, whose largest reward is r_max, and accepts candidate i with
    probability exp((r_i - r_max) / beta); rounds follow until enough are accepted. Candidates are drawn in random
    order, where algorithm 1 relies on theirs being so: a list sorted by reward must not favour its head.

    Args:
        rewards: reward of each candidate of one prompt.
        count: candidates to accept, at most as many as there are.
        beta: temperature in units of reward: towards 0 the best are taken, towards infinity any.
        rng: source of randomness.

    Returns:
        Indices of the accepted candidates, in the order of their acceptance.

    Raises:
        BapoError: more are asked for than there are, a reward is not a number, or beta is not positive.
    """
    if not 0 <= count <= len(rewards):
        raise BapoError(f"Rejection sampling cannot accept {count} of {len(rewards)} candidates.")
    if not beta > 0 or not all(map(math.isfinite, rewards)):
        raise BapoError("Rejection sampling needs a positive beta and rewards that are finite numbers.")
    left, accepted = list(range(len(rewards))), list[int]()
    while len(accepted) < count:
        rng.shuffle(left)
        best = max(rewards[i] for i in left)
        round_ = [i for i in left if rng.random() < math.exp((rewards[i] - best) / beta)]
        accepted += round_[: count - len(accepted)]
        left = [i for i in left if i not in round_]
    return accepted


def sample_pairs(rewards: Sequence[float], accept: int, beta: float, rng: random.Random) -> list[tuple[int, int]]:
    """Pairs (chosen, rejected) of accepted candidates, by the paper's first-round-rank: two by two as accepted.

    The better of two by reward is chosen. Two of equal reward make no pair, nor does the last of an odd number, so
    that there are at most ``accept // 2`` pairs and no candidate is in two. Raises as `rejection_sample` does.
    """
    accepted = rejection_sample(rewards, accept, beta, rng)
    pairs = zip(accepted[::2], accepted[1::2], strict=False)
    return [(a, b) if rewards[a] > rewards[b] else (b, a) for a, b in pairs if rewards[a] != rewards[b]]
