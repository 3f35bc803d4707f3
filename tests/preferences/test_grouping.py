"""Grouping, its policy, and splits: nothing is lost silently and nothing leaks silently."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import asdict, astuple
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
    read_preferences,
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
    for responses, pairs in (
        (("a", "a"), ((0, 1),)),
        (("a", "b"), ((0, 0),)),
        (("a", "b"), ((0, 2),)),
        (("a", "b"), ((2, 0),)),
    ):
        with pytest.raises(BapoError):
            PromptGroup("p", responses, pairs)


def test_a_turn_of_a_role_that_there_is_not_is_refused() -> None:
    with pytest.raises(BapoError, match=r"Unknown role 'bot'.*system, developer"):
        Message("bot", "Hi.")


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


def test_of_few_prompts_one_is_held_out_and_of_one_none() -> None:
    for prompts in (2, 4):
        assert len(split_by_prompt(many(prompts)).held_out.groups) == 1
    with pytest.raises(BapoError, match="test has 1 prompt, and at least 2"):
        split_by_prompt(many(1))


def test_both_sides_know_what_was_read_and_dropped() -> None:
    found = group_pairs("own", [Pair(f"p{i}", "a", "b") for i in range(5)] + [Pair("p0", "a", "a")])
    split = split_by_prompt(found, 1)
    for side in (split.train, split.held_out, split.whole):
        assert (side.name, side.rows, side.dropped) == ("own", 6, {"equal responses": 1})


@pytest.mark.parametrize("plain", [True, False])
def test_a_split_is_read_as_it_was_asked_for(plain: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BAPO_DATA", raising=False)
    rows = [{"user_input": f"p{i}", "completion_a": "a", "completion_b": "b"} for i in range(12)]
    (tmp_path / "P1A.json").write_text(json.dumps(rows))
    preferences = read_preferences("psoups:P1A", data_folder=tmp_path, plain=plain)
    told = read_split("psoups:P1A", held_out=3, seed=5, data_folder=tmp_path, plain=plain)
    assert told == split_by_prompt(preferences, 3, seed=5)
    assert isinstance(told.train.groups[0].prompt, str) == plain


def test_without_a_seed_a_split_is_that_of_seed_0_and_prompts_are_turns(tmp_path: Path) -> None:
    (tmp_path / "P1A.json").write_text(
        json.dumps([{"user_input": f"p{i}", "completion_a": "a", "completion_b": "b"} for i in range(12)])
    )
    split = read_split("psoups:P1A", data_folder=tmp_path)
    assert split == split_by_prompt(read_preferences("psoups:P1A", data_folder=tmp_path), 2, seed=0)
    assert split_by_prompt(split.whole) == split_by_prompt(split.whole, seed=0)
    assert split.train.groups[0].prompt[0].role == "user"


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
    assert {side.name for side in (split.train, split.held_out)} == {"psoups:P1A"}
    told = {"protocol": "paper", "data_folder": tmp_path}
    assert read_split("psoups:P1A", **told) == split == paper_split("psoups:P1A", data_folder=tmp_path)
    assert read_split("psoups:P1A", seed=0, **told) == split != read_split("psoups:P1A", seed=1, **told)
    assert split.train.groups[0].prompt[0].role == "user"
    assert isinstance(read_split("psoups:P1A", plain=True, **told).train.groups[0].prompt, str)
    monkeypatch.setattr(psoups, "PAPER_TRAINING", 1)
    assert read_split("psoups:P1A", **told).train.pair_count == 1
    monkeypatch.setattr(psoups, "PAPER_TRAINING", 100)
    with pytest.raises(BapoError, match="needs more rows"):
        read_split("psoups:P1A", **told)


def test_a_prompt_that_one_type_lacks_is_none_of_the_papers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for code in PREFERENCE_PROMPTS:
        rows = [
            {"user_input": f"p{i}", "completion_a": "a", "completion_b": "b"} for i in range(3 if code == "P2A" else 4)
        ]
        (tmp_path / f"{code}.json").write_text(json.dumps(rows))
    monkeypatch.setattr(psoups, "PAPER_TRAINING", 2)
    split = read_split("psoups:P1A", protocol="paper", data_folder=tmp_path, plain=True)
    assert {group.prompt for group in split.whole.groups} == {"p0", "p1", "p2"}


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


def test_a_summary_spreads_lengths_and_examples_over_the_data() -> None:
    """Prompt i of 21 has i + 1 words; its rejected response 2 i + 1; the last one is worth a look and has a base."""
    pairs = [Pair(" ".join("p" * (i + 1)), "yes", " ".join("n" * (2 * i + 1))) for i in range(20)]
    pairs += [Pair("q" + " q" * 20, "y es", "y  es", ("base",)), Pair("q", "a", "a")]
    found = summarize(group_pairs("own", pairs))
    assert astuple(found.prompt_words) == (1, 3, 11, 19, 21)
    assert astuple(found.rejected_words) == (1, 3, 19, 35, 39)
    assert (found.name, found.with_bases, found.dropped) == ("own", 1, {"equal responses": 1})
    assert found.doubtful == {"responses differ in white space only": 1}
    assert [len(example.prompt.split()) for example in found.examples] == [1, 11, 21]
    assert len(summarize(group_pairs("own", pairs), examples=1).examples) == 1
    two = summarize(group_pairs("own", pairs), examples=2).examples
    assert [len(example.prompt.split()) for example in two] == [1, 21]


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
