"""Grouping, its policy, and splits: nothing is lost silently and nothing leaks silently."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import asdict
from pathlib import Path

import pytest

from bapo.errors import BapoError
from bapo.preferences import (
    Message,
    Pair,
    Preferences,
    PromptGroup,
    doubtful,
    group_pairs,
    paper_split,
    read_split,
    split_by_prompt,
    summarize,
)
from bapo.preferences.sources import psoups
from bapo.preferences.sources.psoups import PREFERENCE_PROMPTS


def test_responses_are_distinct_and_pairs_point_at_them() -> None:
    pairs = [Pair("p", "a", "b"), Pair("q", "x", "y"), Pair("p", "a", "c"), Pair("p", "c", "b")]
    found = group_pairs("test", pairs)
    assert found.groups == (
        PromptGroup("p", ("a", "b", "c"), ((0, 1), (0, 2), (2, 1))),
        PromptGroup("q", ("x", "y"), ((0, 1),)),
    )


def test_what_is_dropped_is_counted_by_reason() -> None:
    pairs = [
        Pair("p", "a", "b"),
        Pair("p", "a", "b"),
        Pair("p", "b", "a"),
        Pair("p", "a", "a "),
        Pair("p", " ", "b"),
        Pair("p" * 50, "a", "b"),
    ]
    found = group_pairs("test", pairs)
    assert found.dropped == {"duplicate pair": 1, "equal responses": 1, "empty response": 1}
    kept = group_pairs("test", pairs, drop_duplicates=False)
    assert kept.dropped == {"equal responses": 1, "empty response": 1}
    assert kept.groups[0].pairs == ((0, 1), (0, 1), (1, 0))


@pytest.mark.parametrize("seed", range(20))
def test_every_comparison_is_a_pair_or_counted(seed: int) -> None:
    rng = random.Random(seed)
    pairs = [Pair(rng.choice("pqr"), rng.choice(["a", "b", "", "a "]), rng.choice("abc")) for _ in range(60)]
    for drop_duplicates in (True, False):
        found = group_pairs("test", pairs, drop_duplicates=drop_duplicates)
        assert found.rows == 60 == found.pair_count + sum(found.dropped.values())


def test_a_group_that_makes_no_sense_is_refused() -> None:
    for responses, pairs in ((("a", "a"), ((0, 1),)), (("a", "b"), ((0, 0),)), (("a", "b"), ((0, 2),))):
        with pytest.raises(BapoError):
            PromptGroup("p", responses, pairs)


def test_the_fingerprint_is_of_the_content() -> None:
    pairs = [Pair("p", "a", "b"), Pair("q", "a", "b")]
    assert group_pairs("one", pairs).fingerprint() == group_pairs("two", pairs).fingerprint()
    assert group_pairs("one", pairs).fingerprint() != group_pairs("one", pairs[::-1]).fingerprint()


def many(prompts: int):
    return group_pairs("test", [Pair(f"p{i}", "a", f"b{j}") for i in range(prompts) for j in range(3)])


def test_a_split_is_by_prompt_seeded_and_complete() -> None:
    preferences = many(50)
    split = split_by_prompt(preferences, 10, seed=1)
    assert (len(split.train.groups), len(split.held_out.groups), split.leak) == (40, 10, 0)
    assert {*split.train.groups, *split.held_out.groups} == set(preferences.groups)
    assert split_by_prompt(preferences, 10, seed=1) == split
    assert split_by_prompt(preferences, 10, seed=2).held_out != split.held_out
    assert len(split_by_prompt(preferences).held_out.groups) == 10  # a fifth
    assert len(split_by_prompt(many(900)).held_out.groups) == 100  # and at most 100
    for held_out in (0, 50):
        with pytest.raises(BapoError, match="between 1 and 49"):
            split_by_prompt(preferences, held_out)


def test_the_papers_protocol_splits_rows_and_says_what_leaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(code: str, prompts: range) -> list[dict[str, str]]:
        return [
            {"user_input": f"p{i} {PREFERENCE_PROMPTS[code]}", "completion_a": "a", "completion_b": f"b{i % 2}"}
            for i in prompts
            for _ in range(5)  # the raw files repeat themselves
        ]

    for code in PREFERENCE_PROMPTS:
        extra = 3 if code == "P1A" else 0  # prompts that only this type has are not the original ones
        (tmp_path / f"{code}.json").write_text(json.dumps(rows(code, range(20 + extra))))
    monkeypatch.setattr(psoups, "PAPER_TRAINING", 80)
    split = read_split("psoups:P1A", protocol="paper", data_folder=tmp_path)
    assert (split.train.pair_count, split.held_out.pair_count) == (80, 20)
    assert len({*split.train.groups, *split.held_out.groups}) > 20  # repeated pairs stay repeated
    assert split.leak > 5
    assert read_split("psoups:P1A", data_folder=tmp_path).leak == 0


def test_the_papers_protocol_needs_the_papers_data(tmp_path: Path) -> None:
    with pytest.raises(BapoError, match="is for dsp: and psoups:"):
        paper_split("starter:concise")
    for code in PREFERENCE_PROMPTS:
        row = {"user_input": "p", "completion_a": "a", "completion_b": "b"}
        (tmp_path / f"{code}.json").write_text(json.dumps([row]))
    with pytest.raises(BapoError, match="needs more rows than psoups:P1A has"):
        paper_split("psoups:P1A", data_folder=tmp_path)


def test_a_summary_counts_what_is_there() -> None:
    found = summarize(
        group_pairs("test", [Pair("one two", "a b c", "d"), Pair("one two", "a b c", "e f"), Pair("x", "y", "z")])
    )
    assert (found.prompts, found.responses, found.pairs, found.rows) == (2, 5, 3, 3)
    assert found.pairs_per_prompt == {1: 1, 2: 1}
    assert (found.chosen_words.min, found.chosen_words.max) == (1, 3)
    assert [example.prompt for example in found.examples] == ["one two", "x"]
    assert (found.examples[0].chosen, found.examples[0].rejected) == ("a b c", "d")
    json.dumps(found.to_dict())


def test_pairs_that_are_kept_and_worth_a_look_are_counted() -> None:
    pairs = [
        *(Pair("p1", *own) for own in (("A", "B"), ("B", "A"), ("A", "C"))),
        *(Pair(prompt, "A", "B") for prompt in ("p2", "p2 ", "p2\n", "p2")),
        Pair("p3", "A\r\nx", "A\nx"),
        Pair("p4", "\ufffd", "b"),
        Pair("p5", "a", "b"),
    ]
    found = group_pairs("own", pairs)
    assert dict(found.dropped) == {"duplicate pair": 1}
    assert doubtful(found) == {
        "contradicts another pair": 2,
        "repeats an earlier pair but for white space": 2,
        "responses differ in white space only": 1,
        "holds a letter that could not be read (U+FFFD)": 1,
    }
    assert doubtful(group_pairs("own", pairs[-1:])) == {}


def test_both_sides_of_a_split_are_the_whole() -> None:
    found = group_pairs("own", [Pair(f"p{i}", *own) for i in range(6) for own in (("a", "b"), ("b", "a"))])
    split = split_by_prompt(found, held_out=2)
    assert set(split.whole.groups) == set(found.groups)
    assert doubtful(split.whole) == doubtful(found) == {"contradicts another pair": 12}


def test_an_empty_prompt_is_dropped_and_counted() -> None:
    found = group_pairs("own", [Pair(" \n", "a", "b"), Pair("q", "a", "b")])
    assert (found.pair_count, dict(found.dropped)) == (1, {"empty prompt": 1})


def test_a_fingerprint_is_the_hash_of_all_groups_as_one_json_list() -> None:
    turns = (Message("system", "é"), Message("user", "a\n\u2028", '{"name": "x"}'))
    groups = (
        PromptGroup(turns, ("b", Message("assistant", "", '{"tool_calls": []}')), ((0, 1),), ("c", "d")),
        PromptGroup("plain", ("1", "2"), ((1, 0), (0, 1))),
    )
    for some in (groups, groups[:1], ()):
        whole = json.dumps([asdict(group) for group in some])
        assert Preferences("x", some).fingerprint() == hashlib.sha256(whole.encode()).hexdigest()
