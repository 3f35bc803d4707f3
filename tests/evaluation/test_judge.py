"""The judge of answers: it learns what the preference is, and says how well it knows it."""

from __future__ import annotations

import pytest

from bapo.errors import BapoError
from bapo.evaluation.judge import train_judge
from bapo.preferences import Pair, Preferences, group_pairs, read_split
from bapo.results.behaviour import behaviour, numbers_of


def made(words: tuple[str, str], count: int, start: int = 0) -> Preferences:
    pairs = [Pair(f"q {i}", f"{words[0]} number {i}", f"{words[1]} number {i}") for i in range(start, start + count)]
    return group_pairs("made", pairs)


def test_it_tells_what_was_preferred_and_knows_how_well() -> None:
    judge = train_judge(made(("aye captain", "yes sir"), 30), made(("aye captain", "yes sir"), 20, 100))
    assert judge.accuracy.value == 1.0
    pirate, plain = judge(["aye, it is noon captain", "yes, it is noon sir"])
    assert pirate > 0.8
    assert plain < 0.2


def test_a_preference_that_no_word_shows_is_one_that_it_cannot_tell() -> None:
    even = group_pairs("even", [Pair(f"q {i}", f"word{7 * i}", f"word{7 * i + 1}") for i in range(40)])
    held_out = group_pairs("even", [Pair(f"r {i}", f"word{5000 + i}", f"word{9000 + i}") for i in range(40)])
    judge = train_judge(even, held_out)
    assert judge.accuracy.low < 0.5 < judge.accuracy.high or judge.accuracy.value == 0.5


def test_it_learns_the_starter_preferences() -> None:
    split = read_split("starter:concise")
    judge = train_judge(split.train, split.held_out)
    assert judge.accuracy.low > 0.6


def test_a_preference_with_one_side_only_is_refused() -> None:
    both_ways = [Pair("q", "a", "b"), Pair("q", "b", "a")]
    with pytest.raises(BapoError, match="no judge can learn from it"):
        train_judge(group_pairs("none", both_ways), group_pairs("none", both_ways))


def test_answers_as_numbers() -> None:
    once, again = numbers_of("a b c d e", 0.25), numbers_of("a b c d a b c d", 0.75)
    assert (once.words, once.repeated) == (5, 0.0)
    assert (again.words, again.repeated) == (8, 0.2)
    assert numbers_of("", 0.0).repeated == 0.0
    assert numbers_of("Go Now And Then go now and then", 0.0).repeated == 0.2, "in capitals or not"
    found = behaviour([once, again])
    assert (found.chosen_like.value, found.words.value, found.repeated.value, found.answers) == (0.5, 6.5, 0.1, 2)
