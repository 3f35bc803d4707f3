"""Readers: every format, every name, and what bad input is told."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from datasets import Audio, Dataset, DatasetDict, Features, Image, List, Value

from bapo.errors import BapoError
from bapo.preferences import (
    SOURCES,
    Message,
    Pair,
    Preferences,
    doubtful,
    examples,
    group_pairs,
    known_names,
    pairs_from_dataset,
    preference_in_words,
    prompt_text,
    read_preferences,
    read_split,
    registry,
    response_text,
)
from bapo.preferences.record import turn_as_dict
from bapo.preferences.sources import dsp
from bapo.preferences.sources.dsp import DOMAINS
from bapo.preferences.sources.psoups import PREFERENCE_PROMPTS, strip_preference_prompt
from bapo.preferences.sources.starter import STARTER_TYPES
from bapo.training.datasets import preferences_from_dataset

ROWS = [{"prompt": f"ask {i}", "chosen": f"good {i}", "rejected": f"bad, {i}\nindeed"} for i in range(3)]


def user(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


def written(folder: Path, kind: str, rows: list[dict[str, str]] = ROWS) -> Path:
    path = folder / f"mine.{kind.split('-')[0]}"
    if kind in ("jsonl", "json-lines"):
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    elif kind == "json":
        path.write_text(json.dumps(rows, indent=1))
    elif kind == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json-lines", "json", "csv", "parquet"])
def test_every_kind_of_file_holds_the_same_preferences(kind: str, tmp_path: Path) -> None:
    found = read_preferences(str(written(tmp_path, kind)))
    assert [(g.prompt, g.responses, g.pairs) for g in found.groups] == [
        (user(f"ask {i}"), (f"good {i}", f"bad, {i}\nindeed"), ((0, 1),)) for i in range(3)
    ]
    assert read_preferences(str(written(tmp_path, kind)), plain=True).groups[0].prompt == "ask 0"


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


ASK = [turn("system", "Be kind."), turn("user", "Why?")]
FORMATS = {
    "standard": ({"prompt": "Why?", "chosen": "Because.", "rejected": "No."}, "Why?"),
    "implicit": ({"chosen": "Why is that? Because of it.", "rejected": "Why is that? No."}, "Why is that?"),
    "conversational": (
        {"prompt": ASK, "chosen": [turn("assistant", "Because.")], "rejected": [turn("assistant", "No.")]},
        (Message("system", "Be kind."), Message("user", "Why?")),
    ),
    "conversational-implicit": (
        {"chosen": [*ASK, turn("assistant", "Because.")], "rejected": [*ASK, turn("assistant", "No.")]},
        (Message("system", "Be kind."), Message("user", "Why?")),
    ),
    "chat prompt, plain responses": (
        {"prompt": ASK, "chosen": "Because.", "rejected": "No."},
        (Message("system", "Be kind."), Message("user", "Why?")),
    ),
    "plain prompt, turns as responses": (
        {"prompt": "Why?", "chosen": [turn("assistant", "Because.")], "rejected": [turn("assistant", "No.")]},
        user("Why?"),
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_trl_formats(name: str) -> None:
    record, prompt = FORMATS[name]
    (pair,) = pairs_from_dataset([record], "data")
    assert pair.prompt == prompt
    white = " " if name == "implicit" else ""  # goes with the responses, so that prompt and response are the text
    assert pair.rejected == f"{white}No."
    assert pair.chosen in ("Because.", " Because of it.")


def test_a_source_is_named_as_it_was_asked_for(tmp_path: Path) -> None:
    path = str(written(tmp_path, "jsonl"))
    assert read_preferences(path).name == path


def test_what_one_would_tell_a_model_is_known_of_named_preferences_alone() -> None:
    words = "Generate a response that is concise and to the point without being verbose."
    assert preference_in_words("starter:concise") == preference_in_words("starter:P2A") == words
    assert preference_in_words("psoups:P2A") == words
    for name in ("starter:sad", "user:people.jsonl#anna", "other:concise", "mine.jsonl", "starter"):
        assert preference_in_words(name) is None


def test_a_source_is_what_it_was_registered_with(monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("_found", "_where"):  # so that other tests see nothing of it
        monkeypatch.setattr(SOURCES, part, dict(getattr(SOURCES, part)))

    def read(name: str, data_folder: Path | None) -> Iterator[Pair]:
        return iter([Pair(name, "a", "b")])

    told = {"words": {"right": "Add."}, "aliases": {"r": "right"}, "fits": "sum".__eq__, "paper_rows": lambda *_: None}
    assert registry.source("readings", "numbers", example="readings:one", **told)(read) is read
    assert SOURCES["readings"] == registry.Source(read, "numbers", "readings:one", **told)
    registry.source("readings")(read)
    assert SOURCES["readings"] == registry.Source(read, "", "readings:NAME")
    assert read_preferences("readings:any").groups[0].prompt == user("any")
    registry.source("readings", words={"right": None})(read)
    assert SOURCES["readings"].example == "readings:right"


def test_help_names_every_source_and_on_request_all_that_is_known_by_name() -> None:
    assert "starter:concise, user:people.jsonl#anna (one user's rows" in examples()
    assert "dsp:academy (or business, entertainment, literature)," in examples(whole=True)
    assert not any(name in examples() for name in ("(or", "starter:NAME"))


@pytest.mark.parametrize("name", ["implicit", "conversational-implicit"])
def test_implicit_prompts_agree_with_trls_reading(name: str) -> None:
    data_utils = pytest.importorskip("trl.data_utils")
    record, _ = FORMATS[name]
    theirs = data_utils.extract_prompt(record)
    (ours,) = pairs_from_dataset([record], "data")
    if name == "implicit":
        assert (ours.prompt, ours.chosen, ours.rejected) == (theirs["prompt"], theirs["chosen"], theirs["rejected"])
    else:
        assert [(m.role, m.content) for m in ours.prompt] == [(m["role"], m["content"]) for m in theirs["prompt"]]
        assert ours.chosen == theirs["chosen"][0]["content"]


def test_a_saved_data_set_is_a_source(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    assert read_preferences(str(tmp_path / "saved")).pair_count == 3


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"prompt": "a", "chosen": "b"}', "mine.jsonl line 17 has no 'rejected' .found: prompt, chosen."),
        ('{"question": "a", "good": "b"}', "line 17 has no 'chosen' .found: question, good."),
        ("{}", "line 17 has no 'chosen' .found: nothing"),
        ('{"prompt": "a", "chosen": ', "line 17 is not valid JSON"),
        ('{"prompt": "a", "chosen": "b", "rejected": null}', "line 17 has no 'rejected' .it is null"),
        (
            '{"instruction": "Why?", "chosen": "It a", "rejected": "It b"}',
            "17 has no 'prompt', and 'instruction' may be",
        ),
        ('{"Prompt ": "Why?", "chosen": "It a", "rejected": "It b"}', "has no 'prompt', and 'Prompt ' may be it"),
        ('{"prompt": {"0": "a"}, "chosen": {"0": "b"}, "rejected": {"0": "c"}}', "holds whole columns.*lines=True"),
        (
            '{"system": "A.", "prompt": [{"role": "system", "content": "B."}, {"role": "user", "content": "x"}],'
            ' "chosen": "b", "rejected": "c"}',
            "line 17: 'system' says something else",
        ),
        ('{"prompt": "a", "chosen": ["b"], "rejected": ["c"]}', "line 17: every turn needs a role"),
        ('{"prompt": "a", "chosen": 3, "rejected": 4}', "line 17: 'chosen' must be text"),
        ('{"prompt": "a", "chosen": [], "rejected": 4}', "line 17: 'rejected' must be text"),
        ('{"prompt": "a", "chosen": "b", "rejected": "c", "base": 7}', "line 17: 'base' must be text"),
        ('{"prompt": "a", "chosen": "b", "rejected": "c", "base": ["d", " "]}', "line 17: 'base' must be text"),
        ('{"prompt": "a", "chosen": "b", "rejected": "c", "base": [7]}', "line 17: 'base' must be text"),
        (
            r'{"instruction": "Hi", "chosen": "Hi\n\nAssistant: a", "rejected": "Hi b"}',
            "line 17 has no 'prompt', and 'instruction' may be",
        ),
        (
            r'{"instruction": "Hi", "chosen": "Hi a", "rejected": "Hi\n\nAssistant: b"}',
            "line 17 has no 'prompt', and 'instruction' may be",
        ),
        ('{"prompt": "a", "chosen": "b", "rejected": 3}', "line 17: chosen and rejected must both be text"),
        ('{"chosen": "b", "rejected": "c"}', "line 17 has no 'prompt', and chosen and rejected begin with nothing"),
        ("[]", "line 17 is no object: write"),
    ],
)
def test_a_bad_line_is_named(line: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join([json.dumps(ROWS[0])] * 16 + [line]))
    with pytest.raises(BapoError, match=sentence):
        read_preferences(str(path))


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("starter:consise", "did you mean 'starter:concise'"),
        ("psoups:P4A", "use one of P1A"),
        ("dsp:literatur", "did you mean 'dsp:literature'"),
        ("dsp:academy", "download the files of the folder data of github.com/Linear95/DSP, then name"),
        ("psoups:P2A", "data.zip"),
        ("no-such.jsonl", "There is no file no-such.jsonl: check its name"),
        ("no-such-organization/no-such-data", "could not be read from the hub"),
        ("no-such-organization/data-0.5b", "could not be read from the hub"),
        ("starter", r"There are no preferences 'starter' \(did you mean 'starter:.*name one like dsp:academy"),
        ("./no-such", "There are no preferences"),
        ("/no-such", "There are no preferences"),
        ("~/no-such", "There are no preferences"),
        ("no-such/mine.txt", "There are no preferences"),
    ],
)
def test_a_bad_name_is_one_sentence(
    source: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BAPO_DATA", raising=False)
    with pytest.raises(BapoError, match=sentence) as caught:
        read_preferences(source)
    assert "\n" not in str(caught.value)


def test_other_kinds_of_files_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    for name, sentence in (
        ("a.txt", "no kind that holds"),
        ("a.parquet", "not be read as Parquet"),
        ("a.json", "JSON"),
    ):
        (tmp_path / name).write_text("[hello")
        with pytest.raises(BapoError, match=sentence):
            read_preferences(str(tmp_path / name))
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(BapoError, match=r"no usable comparison in .*empty.jsonl \(it is empty\): each needs"):
        read_preferences(str(tmp_path / "empty.jsonl"))


@pytest.mark.parametrize("code", PREFERENCE_PROMPTS)
@pytest.mark.parametrize("between", [" ", "\n", "\n\n  ", "", "\t"])
def test_the_preference_prompt_is_stripped_whatever_the_white_space(code: str, between: str) -> None:
    prompt = PREFERENCE_PROMPTS[code]
    assert strip_preference_prompt(f"Name a fruit.{between}{prompt}", code) == "Name a fruit."
    assert strip_preference_prompt(f"Name a fruit. {prompt.replace(' ', '  ')}\n", code) == "Name a fruit."
    loud = prompt.replace(",", "").removesuffix(".").upper()
    assert strip_preference_prompt(f"Name a fruit.{between}{loud}", code) == "Name a fruit."
    assert strip_preference_prompt("Name a fruit.", code) == "Name a fruit."


def test_psoups_prefers_completion_a(tmp_path: Path) -> None:
    rows = [
        {"user_input": f"Name one. {PREFERENCE_PROMPTS['P2A']}", "completion_a": "Fig.", "completion_b": "A fig is"}
    ]
    (tmp_path / "P2A.json").write_text(json.dumps(rows))
    (group,) = read_preferences("psoups:P2A", data_folder=tmp_path).groups
    assert (group.prompt, group.responses, group.pairs) == (user("Name one."), ("Fig.", "A fig is"), ((0, 1),))


def test_dsp_rejects_the_other_four_and_counts_equal_and_empty_ones(tmp_path: Path) -> None:
    def record(**changes: str) -> dict[str, object]:
        own = {name: name for name in (*DOMAINS, "normal")} | changes
        return {"query": f"Query {sorted(changes.items())}", "responses": own}

    rows = [record(), record(normal=""), record(business="academy")]
    (tmp_path / "dsp.test.json").write_text(json.dumps(rows))
    found = read_preferences("dsp:academy", data_folder=tmp_path)
    assert [len(group.pairs) for group in found.groups] == [4, 3, 3]
    assert dict(found.dropped) == {"empty response": 1, "equal responses": 1}
    for group in found.groups:
        assert all(group.responses[chosen] == "academy" for chosen, _ in group.pairs)


QUERY = {"query": "q", "responses": {name: name for name in (*DOMAINS, "normal")}}


@pytest.mark.parametrize(
    "row",
    [
        ["q"],
        {"query": "q"},
        {**QUERY, "query": None},
        {**QUERY, "responses": dict.fromkeys(DOMAINS, "a")},
        {**QUERY, "responses": "a"},
    ],
)
def test_a_row_that_is_no_dsp_record_is_named(row: object, tmp_path: Path) -> None:
    (tmp_path / "dsp.test.json").write_text(json.dumps([QUERY, row]))
    with pytest.raises(BapoError, match=r"dsp.test.json item 2 is no DSP record.*academy, .*, normal"):
        read_preferences("dsp:academy", data_folder=tmp_path)


@pytest.mark.parametrize("row", [["q"], {"user_input": "q", "completion_a": "a"}])
def test_a_row_that_is_no_psoups_row_is_named(row: object, tmp_path: Path) -> None:
    (tmp_path / "P1A.json").write_text(json.dumps([row]))
    with pytest.raises(BapoError, match=r"P1A.json item 1 is no P-Soups row.*user_input, .*, completion_b"):
        read_preferences("psoups:P1A", data_folder=tmp_path)


def test_raw_files_are_found_where_downloads_put_them_and_training_data_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BAPO_DATA", str(tmp_path))
    with pytest.raises(BapoError, match=r"dsp:academy is not in .*\(looked for preferences/dsp.train.json"):
        read_preferences("dsp:academy")
    with pytest.raises(BapoError, match="psoups:P2A is not in"):
        read_preferences("psoups:P2A")
    for number, name in enumerate(
        ("data/domain_specific_preference.test.json", "domain_specific_preference.train.json")
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps([{**QUERY, "query": f"q {number}"}]))
        assert read_preferences("dsp:academy", plain=True).groups[0].prompt == f"q {number}"
    for number, place in enumerate(("rm_training", "psoups", "preferences/psoups")):
        (tmp_path / place).mkdir(parents=True)
        row = {"user_input": f"q {number}", "completion_a": "a", "completion_b": "b"}
        (tmp_path / place / "P2A.json").write_text(json.dumps([row]))
        assert read_preferences("psoups:P2A", plain=True).groups[0].prompt == f"q {number}"


def test_the_papers_validation_of_dsp_is_the_last_of_its_shuffled_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{**QUERY, "query": f"q {number}"} for number in range(5)]
    (tmp_path / "dsp.train.json").write_text(json.dumps(rows))
    monkeypatch.setattr(dsp, "PAPER_VALIDATION", 7)
    split = read_split("dsp:academy", protocol="paper", data_folder=tmp_path)
    assert (split.train.pair_count, split.held_out.pair_count) == (20 - 7, 7)
    monkeypatch.setattr(dsp, "PAPER_VALIDATION", 20)
    with pytest.raises(BapoError, match="needs more rows than dsp:academy has"):
        read_split("dsp:academy", protocol="paper", data_folder=tmp_path)


@pytest.mark.parametrize("style", STARTER_TYPES)
def test_starter_preferences_are_whole(style: str) -> None:
    found = read_preferences(f"starter:{style}")
    assert len(found.groups) >= 40
    assert not found.dropped
    assert all(len(group.responses) == 6 and len(group.pairs) == 5 for group in found.groups)
    assert read_preferences(f"starter:{STARTER_TYPES[style]}").groups == found.groups


def test_starter_styles_differ_in_length_as_they_should() -> None:
    def words(style: str) -> float:
        groups = read_preferences(f"starter:{style}").groups
        return sum(len(g.responses[g.pairs[0][0]].split()) for g in groups) / len(groups)

    assert words("concise") < 30 < words("elementary") < words("detailed")


def test_known_names_can_be_read_or_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BAPO_DATA", raising=False)
    for name in known_names():
        if name.startswith("starter"):
            assert read_preferences(name).groups
        else:
            with pytest.raises(BapoError, match="BAPO_DATA"):
                read_preferences(name)


@pytest.mark.data
def test_real_dsp_has_the_known_counts(data_folder: Path) -> None:
    """661 queries; record 60 has an empty response; 26 records have equal responses (facts of the published file)."""
    for domain in DOMAINS:
        found = read_preferences(f"dsp:{domain}", data_folder=data_folder)
        assert found.rows == 661 * 4
        assert found.dropped["empty response"] == 1
        assert found.pair_count + sum(found.dropped.values()) == found.rows


@pytest.mark.data
@pytest.mark.parametrize("code", ["P1A", "P1B", "P3A", "P3B"])
def test_real_psoups_loses_its_preference_prompt(code: str, data_folder: Path) -> None:
    found = read_preferences(f"psoups:{code}", data_folder=data_folder, plain=True)
    assert found.pair_count > 60
    assert not any("Generate a response" in str(group.prompt) for group in found.groups)


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("\n\nHuman: Hi\n\nAssistant: Yes.", "\n\nHuman: Hi\n\nAssistant: No.", "\n\nHuman: Hi\n\nAssistant:"),
        ("Q: 2+2\nA:\nfour", "Q: 2+2\nA:\nfive", "Q: 2+2\nA:"),
        ("def f(x):\n    return x", "def f(x):\n    pass", "def f(x):"),
        ("a  b", "a  c", "a"),
        ("\n\nHuman: Hi\n\nAssistant: The a.", "\n\nHuman: Hi\n\nAssistant: The b.", "\n\nHuman: Hi\n\nAssistant:"),
        ("\n\nHuman: Hi\n\nAssistant: Yes", "\n\nHuman: Hi\n\nAssistant: Yes, so", "\n\nHuman: Hi\n\nAssistant:"),
        ("\n\nHuman: Hi\n\nAssistant: Yes", "\n\nHuman: Hi\n\nAssistant:", "\n\nHuman: Hi\n\nAssistant:"),
        ("same words", "same words", "same"),
        ("one two three", "one two", "one"),
        ("same", "same", ""),
    ],
)
def test_an_implicit_prompt_and_its_responses_are_the_text_letter_by_letter(chosen, rejected, prompt) -> None:
    (pair,) = pairs_from_dataset([{"chosen": chosen, "rejected": rejected}], "data")
    assert pair.prompt == prompt
    assert (pair.prompt + pair.chosen, pair.prompt + pair.rejected) == (chosen, rejected)


def test_what_has_an_empty_prompt_or_response_is_dropped_and_counted(tmp_path: Path) -> None:
    hh = "\n\nHuman: Hi\n\nAssistant:"
    rows = [
        *ROWS,
        {"prompt": "", "chosen": "a", "rejected": "b"},
        {"prompt": [turn("user", " ")], "chosen": "a", "rejected": "b"},
        {"system": "Be kind.", "prompt": "", "chosen": "a", "rejected": "b"},
        {"chosen": f"{hh} Yes.", "rejected": hh},
        {"chosen": f"{hh} Yes.", "rejected": f"{hh} Yes."},
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    found = read_preferences(str(path))
    assert found.pair_count == len(ROWS)
    assert found.dropped == {"empty prompt": 3, "empty response": 1, "equal responses": 1}


def test_columns_of_a_table_may_have_white_space_around_their_names(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("prompt, chosen ,rejected\nask,good,bad\n")
    assert read_preferences(str(path)).groups[0].responses == ("good", "bad")


@pytest.mark.parametrize(
    "written",
    [json.dumps, repr, partial(json.dumps, indent=2), lambda turns: str(np.array(turns, dtype=object))],
    ids=["JSON", "Python", "indented", "numpy"],
)
def test_turns_that_were_written_as_text_are_turns(written: Callable[[object], str]) -> None:
    row = {"prompt": ASK, "chosen": [turn("assistant", "It's yes.")], "rejected": [turn("assistant", "No.")]}
    (pair,) = pairs_from_dataset([{key: written(value) for key, value in row.items()}], "data")
    assert (pair,) == tuple(pairs_from_dataset([row], "data"))
    texts = ("[{'a': 1}]", "[{oops", '[{"name": "Ann", "role": "admin"}]', '[{"from": "Berlin", "to": "Rome"}]')
    others = (
        "{1, 2}",
        '[{"role": "user", "name": "Ann"}]',
        '[{"content": "a"}]',
        '[{"role": "user", "content": "a"}, 3]',
    )
    for text in (*texts, *others):
        kept = {"prompt": text, "chosen": text, "rejected": "no"}
        assert next(iter(pairs_from_dataset([kept], "data"))).chosen == text


def test_turns_of_any_form_are_known_in_text_too() -> None:
    human, call = {"from": "human", "value": "Why?"}, {"id": "1", "function": {"name": "clock"}}
    calls = {"role": "assistant", "tool_calls": [call]}
    row = {"prompt": json.dumps([human]), "chosen": json.dumps(calls), "rejected": json.dumps(turn("assistant", "No."))}
    (pair,) = pairs_from_dataset([row], "data")
    assert (pair.prompt, pair.rejected) == (user("Why?"), "No.")
    assert turn_as_dict(pair.chosen) == {**calls, "content": ""}


def test_base_responses_come_with_prompts_each_once_in_order(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("prompt,chosen,rejected,base\nq,A,B,one\nq,C,B,two\nq,D,B,one\nother,A,B,\n")
    assert [group.bases for group in read_preferences(str(path)).groups] == [("one", "two"), ()]
    bases = (
        ([], ()),
        (float("nan"), ()),
        (["a", None], ("a",)),
        ('["a", "b"]', ("a", "b")),
        (' ["a", "b"]', ("a", "b")),
        ("7", ("7",)),
        ("[sic] so", ("[sic] so",)),
    )
    for base, expected in bases:
        row = {"prompt": "p", "chosen": "x", "rejected": "y", "base": base}
        assert next(iter(pairs_from_dataset([row], "data"))).bases == expected


YES, NO = [turn("assistant", "yes")], [turn("assistant", "no")]
SCHEMAS = [{"type": "function", "function": {"name": "clock", "parameters": None}}]
PARTS = [{"type": "text", "text": "Wh"}, {"text": "y?"}]
MET = {
    "whole conversations, prompt in text": ({"prompt": "Why?", "chosen": [*ASK, *YES], "rejected": [*ASK, *NO]}, ASK),
    "whole conversations behind turns": ({"prompt": ASK, "chosen": [*ASK, *YES], "rejected": [*ASK, *NO]}, ASK),
    "a turn as a response": ({"prompt": ASK, "chosen": YES[0], "rejected": NO[0]}, ASK),
    "a system column": ({"system": "Be kind.", "prompt": "Why?", "chosen": "yes", "rejected": "no"}, ASK),
    "a system column that says what the system turn says": (
        {"system": "Be kind.\n", "prompt": ASK, "chosen": "yes", "rejected": "no"},
        ASK,
    ),
    "an empty system column": ({"system": " ", "prompt": ASK, "chosen": "yes", "rejected": "no"}, ASK),
    "from and value": (
        {
            "conversations": [{"from": "system", "value": "Be kind."}, {"from": "human", "value": "Why?"}],
            "chosen": {"from": "gpt", "value": "yes"},
            "rejected": {"from": "gpt", "value": "no"},
        },
        ASK,
    ),
    "whole conversations behind a dialog, prompt in text": (
        {
            "prompt": "Why?",
            "chosen": [turn("user", "Hi"), turn("assistant", "Hello."), *ASK[1:], *YES],
            "rejected": [turn("user", "Hi"), turn("assistant", "Hello."), *ASK[1:], *NO],
        },
        [turn("user", "Hi"), turn("assistant", "Hello."), *ASK[1:]],
    ),
    "a tool's answer alone": ({"prompt": [turn("tool", "9")], "chosen": "yes", "rejected": "no"}, [turn("tool", "9")]),
    "an assistant turn that goes on": (
        {"prompt": [*ASK, turn("assistant", "I say")], "chosen": YES, "rejected": NO},
        [*ASK, turn("assistant", "I say")],
    ),
    "content in parts": ({"prompt": [ASK[0], {"role": "user", "content": PARTS}], "chosen": YES, "rejected": NO}, ASK),
    "fields that Arrow filled with nulls": (
        {"prompt": [{**own, "tool_calls": None, "name": None} for own in ASK], "chosen": YES, "rejected": NO},
        ASK,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MET)
def test_forms_that_are_met_hold_the_same_comparison(name: str) -> None:
    record, asked = MET[name]
    (pair,) = pairs_from_dataset([record], "data")
    assert pair.prompt == tuple(Message(own["role"], own["content"]) for own in asked)
    assert (pair.chosen, pair.rejected) == ("yes", "no")


def test_nothing_of_a_turn_is_dropped() -> None:
    call = {"type": "function", "function": {"name": "clock", "arguments": {"zone": None, "city": "Paris"}}}
    record = {
        "prompt": [
            *ASK,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "9", "name": "clock", "note": ""},
        ],
        "chosen": [{"role": "assistant", "content": "Nine.", "reasoning_content": "It says 9."}],
        "rejected": [{"role": "assistant", "content": "Nine.", "reasoning_content": "A guess."}],
        "tools": json.dumps(SCHEMAS),
        "chat_template_kwargs": {"enable_thinking": False},
    }
    preferences = group_pairs("data", pairs_from_dataset([record], "data"))
    (group,) = preferences.groups  # responses that differ in nothing but their reasoning are two
    tools, template, *turns = group.prompt
    assert (tools.role, json.loads(tools.content)) == ("tools", [{"type": "function", "function": {"name": "clock"}}])
    assert (template.role, json.loads(template.content)) == ("template", {"enable_thinking": False})
    assert [own.role for own in turns] == ["system", "user", "assistant", "tool"]
    assert turns[2].content == ""
    assert json.loads(turns[2].more)["tool_calls"][0]["function"]["arguments"] == {"city": "Paris"}
    assert turn_as_dict(turns[3]) == {"role": "tool", "content": "9", "name": "clock"}
    assert [own.content for own in group.responses] == ["Nine.", "Nine."]
    assert [json.loads(own.more) for own in group.responses] == [
        {"reasoning_content": "It says 9."},
        {"reasoning_content": "A guess."},
    ]


def test_calls_of_tools_may_be_text_and_what_is_no_json_becomes_text() -> None:
    """As a table of a data set has them: arguments as JSON, a time as a time."""
    call = {"function": {"name": "clock", "arguments": {"city": "Orléans"}}}
    own = {"role": "assistant", "content": "It is", "tool_calls": json.dumps([call]), "at": datetime(2024, 5, 6)}
    (pair,) = pairs_from_dataset([{"prompt": ASK, "chosen": own, "rejected": NO}], "data")
    assert turn_as_dict(pair.chosen) == {**own, "tool_calls": [call], "at": "2024-05-06 00:00:00"}
    assert response_text(pair.chosen).startswith("It is\n{")
    assert "Orléans" in response_text(pair.chosen)
    assert prompt_text(pair.prompt) == "system: Be kind.\nuser: Why?"
    assert prompt_text(user("Why?")) == "Why?"
    assert turn_as_dict(Message("user", "Why?")) == turn("user", "Why?")


def test_equal_conversations_are_equal_responses() -> None:
    found = group_pairs("data", pairs_from_dataset([{"chosen": [*ASK, *YES], "rejected": [*ASK, *YES]}], "data"))
    assert found.dropped == {"equal responses": 1}


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            {"chosen": [*ASK, *YES, turn("user", "more"), *YES]},
            "1: behind the prompt.* must each be one assistant turn",
        ),
        ({"rejected": [*NO, turn("user", "more")]}, "must each be one assistant turn"),
        ({"chosen": [turn("user", "yes")]}, "must each be one assistant turn"),
        ({"prompt": "Who?", "chosen": [*ASK, *YES], "rejected": [*ASK, *NO]}, "must each be one assistant turn"),
        (
            {"prompt": None, "chosen": [*ASK, *YES], "rejected": [ASK[0], turn("user", "Who?"), *NO]},
            "must each be one assistant turn",
        ),
        ({"prompt": 7}, "row 1: 'prompt' must be text"),
        ({"prompt": [turn("user", "Why?"), turn("system", "Be kind.")]}, "must end with a user turn"),
        (
            {"prompt": [*ASK, {**turn("assistant", "I"), "name": "a"}]},
            "row 1: an assistant turn that the response goes",
        ),
        ({"prompt": [{"role": "user", "content": 3}]}, "row 1: every turn needs a role and a content"),
        ({"prompt": [{"role": "user", "content": ["Why?"]}]}, "row 1: a content has a part of type 'str'"),
        ({"prompt": [{"role": "user", "content": [{"type": "image", "text": "a"}]}]}, "a part of type 'image'"),
        ({"chat_template_kwargs": ["a"]}, "'chat_template_kwargs' must be an object"),
        (
            {"chosen": "yes", "rejected": "no", "prompt": [turn("system", "a")]},
            "row 1: a chat prompt needs a user turn",
        ),
        ({"rejected": [{"role": "assistant", "content": 3}]}, "row 1: every turn needs a role and a content"),
        ({"images": ["a.png"]}, "row 1 has 'images', and only text"),
        ({"prompt": [{"role": "user", "content": [{"type": "image", "image": "a"}]}]}, "a part of type 'image'"),
        ({"prompt": [turn("ipython", "9")]}, "unknown role 'ipython'"),
        ({"prompt": [turn("system", "Be kind.")]}, "row 1: a chat prompt needs a user turn"),
        ({"tools": {"name": "clock"}}, "'tools' must be a list"),
        ({"system": ["Be kind."]}, "'system' must be text"),
    ],
)
def test_what_cannot_be_scored_is_named(changed: dict[str, object], sentence: str) -> None:
    record = {"prompt": ASK, "chosen": YES, "rejected": NO, **changed}
    with pytest.raises(BapoError, match=sentence):
        list(pairs_from_dataset([record], "data"))


def read(path: Path, content: str | bytes) -> Preferences:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_preferences(str(path))


def test_what_else_unicode_calls_a_line_end_stays_in_a_response(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "chosen": f"a{end}b", "rejected": "no"} for i, end in enumerate("\u2028\u2029\x85")]
    found = read(tmp_path / "a.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    assert [group.responses[0] for group in found.groups] == [row["chosen"] for row in rows]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_files_that_say_their_encoding_are_read(encoding: str, kind: str, tmp_path: Path) -> None:
    rows = [{"prompt": "q", "chosen": "né 漢", "rejected": "no"}]
    text = written(tmp_path, kind, rows).read_text()
    (group,) = read(tmp_path / f"b.{kind}", text.encode(encoding)).groups
    assert group.responses == ("né 漢", "no")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_of_any_delimiter_and_with_fields_of_any_length(delimiter: str, tmp_path: Path) -> None:
    before = csv.field_size_limit()
    head = delimiter.join(("prompt", "chosen", "rejected"))
    long = "word " * 30_000
    text = "\r\n".join(
        [head, f'"q;,\t"{delimiter}{long}{delimiter}no', "", f'"a\r\nb"{delimiter}"x ""y"""{delimiter}no']
    )
    found = read(tmp_path / "a.csv", text)
    assert [(g.prompt, g.responses) for g in found.groups] == [
        (user("q;,\t"), (long, "no")),
        (user("a\r\nb"), ('x "y"', "no")),
    ]
    assert csv.field_size_limit() == before


def test_the_header_says_what_separates_fields_and_lines_may_end_as_on_old_macs(tmp_path: Path) -> None:
    found = read(tmp_path / "a.csv", "prompt,chosen,rejected\rq;;;;;;,yes,no\r")
    assert [(g.prompt, g.responses) for g in found.groups] == [(user("q;;;;;;"), ("yes", "no"))]


def test_an_array_may_have_white_space_before_it_and_its_items_are_named_with_the_file(tmp_path: Path) -> None:
    assert read(tmp_path / "a.json", "\n " + json.dumps(ROWS)).pair_count == 3
    with pytest.raises(BapoError, match=r"b\.json"):
        read(tmp_path / "b.json", "[{")


def test_a_row_of_parquet_is_named_by_its_number(tmp_path: Path) -> None:
    rows = [*ROWS, {**ROWS[0], "chosen": None}]
    with pytest.raises(BapoError, match=r"mine\.parquet row 4 has no 'chosen'"):
        read_preferences(str(written(tmp_path, "parquet", rows)))


HEAD = "prompt,chosen,rejected\n"


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.csv", HEAD + "q,yes, really,no\n", "line 2 has 4 fields and the header 3: put quotation marks"),
        ("a.csv", HEAD + "q,yes\n", "line 2 has 2 fields and the header 3"),
        ("a.csv", HEAD + 'q,"yes,no\nr,yes,no\n', r"not valid CSV at line 3.*quotation mark"),
        ("a.csv", HEAD + 'q,"yes" and,no\n', "not valid CSV at line 2"),
        ("a.csv", "prompt,chosen,chosen,rejected\nq,a,b,c\n", "several columns 'chosen'"),
        ("a.csv", HEAD + "q,ye\0s,no\n", "NUL character .line 2"),
        ("a.csv", (HEAD + "q,caf\u00e9,no\n").encode("cp1252"), "not UTF-8 text .line 2"),
        ("a.jsonl", '{"prompt": "a", "chosen": "\u00e9"}'.encode("latin-1"), "not UTF-8 text .line 1"),
        ("a.jsonl", "[" * 100_000, "nested too deeply"),
        ("a.jsonl", '{"prompt": NaN, "chosen": "a", "rejected": "b"}', "line 1: 'prompt' must be text"),
        ("a.json", '[{"prompt": "a", "chosen": null, "rejected": "b"}]', "item 1 has no 'chosen'"),
        ("a.json", "{}", "line 1 has no 'chosen'"),
        ("a.csv", "", "it is empty"),
        ("a.csv", HEAD, "it is empty"),
        ("a.json", "[]", "it is empty"),
        ("a.jsonl", "\n\n", "it is empty"),
    ],
)
def test_a_damaged_file_is_one_sentence(name: str, content: str | bytes, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(BapoError, match=sentence):
        read(tmp_path / name, content)


def test_half_a_surrogate_pair_is_replaced_and_counted(tmp_path: Path) -> None:
    row = r'{"prompt": "q1", "chosen": "cut \ud83d", "rejected": "no"}'
    found = read(tmp_path / "a.jsonl", row + "\n" + json.dumps(ROWS[0]))
    assert found.groups[0].responses == ("cut \ufffd", "no")
    assert doubtful(found) == {"holds a letter that could not be read (U+FFFD)": 1}
    (pair,) = pairs_from_dataset([{"prompt": "q", "chosen": "a\udc00", "rejected": "b"}], "data")
    assert pair.chosen == "a\ufffd"


def test_what_is_nested_deeply_is_refused_or_stays_text(tmp_path: Path) -> None:
    def nested(levels: int) -> list[object]:
        return [nested(levels - 1)] if levels else []

    deep, turns = nested(300), [{**turn("assistant", "yes"), "seen": nested(300)}]
    said = {**ROWS[0], "prompt": [turn("user", "Why?")]}
    chat = {**said, "rejected": [turn("assistant", "no")]}
    for number, (changed, sentence) in enumerate(
        [
            ({**said, "tools": "[" * 5000}, "'tools' must be a list of schemas"),
            ({**said, "tools": json.dumps(deep)}, "'tools' must be a list of schemas"),
            ({**said, "chat_template_kwargs": "{" * 5000}, "'chat_template_kwargs' must be an object"),
            ({**said, "tools": deep}, "nested"),
            ({**chat, "chosen": turns}, "nested"),
        ]
    ):
        path = tmp_path / f"{number}.jsonl"
        with pytest.raises(BapoError, match=sentence):
            read(path, json.dumps(changed))
        with pytest.raises(BapoError, match=rf"data row 1.*{sentence}"):
            list(pairs_from_dataset([changed], "data"))
    (pair,) = pairs_from_dataset([{**said, "base": "[" * 5000}], "data")
    assert pair.bases == ("[" * 5000,)
    with pytest.raises(BapoError, match="both be text"):
        list(pairs_from_dataset([{**chat, "chosen": json.dumps(turns)}], "data"))


def test_a_key_that_repeats_in_text_of_json_is_not_taken_silently() -> None:
    tools = '[{"name": "clock", "name": "calendar"}]'
    with pytest.raises(BapoError, match="'tools' must be a list of schemas"):
        list(pairs_from_dataset([{**ROWS[0], "tools": tools}], "data"))


def test_damaged_parquet_and_arrow_are_one_sentence(tmp_path: Path) -> None:
    """Whatever byte is damaged: an error of another kind, or the end of the process, would fail here."""
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet", compression="none", use_dictionary=False)
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    for path, source in (
        (tmp_path / "a.parquet", tmp_path / "a.parquet"),
        (next((tmp_path / "saved").glob("*.arrow")), tmp_path / "saved"),
    ):
        whole, refused = path.read_bytes(), 0
        for at in range(0, len(whole), 37):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x80]) + whole[at + 1 :])
            try:
                read_preferences(str(source))
            except BapoError:
                refused += 1
        assert refused


def saved(folder: Path, file: str, state: dict[str, object]) -> Path:
    """A saved data set whose rows lie in another file than `save_to_disk` names."""
    Dataset.from_list(ROWS).save_to_disk(folder / "saved")
    (arrow,) = (folder / "saved").glob("*.arrow")
    arrow.rename(folder / "saved" / file)
    known = json.loads((folder / "saved/state.json").read_text())
    (folder / "saved/state.json").write_text(json.dumps({**known, **state}))
    return folder / "saved"


@pytest.mark.parametrize("splits", [False, True])
def test_what_a_saved_data_set_names_is_what_is_checked(
    splits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is called, and nothing that lies elsewhere."""
    folder = saved(tmp_path, "data.bin", {"_data_files": [{"filename": "data.bin"}]})
    if splits:
        folder.rename(tmp_path / "train")
        folder.mkdir()
        (tmp_path / "train").rename(folder / "train")
        (folder / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert read_preferences(str(folder)).pair_count == 3
    checked: list[Path] = []
    monkeypatch.setattr("bapo.preferences.sources.saved.check_readable", lambda paths, *_: checked.extend(paths))
    read_preferences(str(folder))
    assert [path.name for path in checked] == ["data.bin"]


@pytest.mark.parametrize("name", ["../data.bin", "/data.bin", "a/../../data.bin"])
def test_a_saved_data_set_that_lies_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, "../data.bin", {"_data_files": [{"filename": name}]})
    with pytest.raises(BapoError, match=rf"names a file outside of it \({name}\): save it again"):
        read_preferences(str(folder))


def test_data_of_the_hub_that_lie_here_are_checked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path, "data.bin", {"_data_files": [{"filename": "data.bin"}]})
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: Dataset.load_from_disk(str(folder)))
    assert read_preferences("hub:organization/name").pair_count == 3
    (folder / "data.bin").write_bytes(b"none" * 500)
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: Here([folder / "data.bin"]))
    with pytest.raises(BapoError, match=r"organization/name could not be read from the hub \(pyarrow"):
        read_preferences("hub:organization/name")


class Here:
    """A data set whose rows end the process."""

    def __init__(self, files: list[Path]) -> None:
        self.cache_files = [{"filename": str(path)} for path in files]


MEDIA = {
    "picture": Image(),
    "list": List(Image()),
    "part": {"kind": Value("string"), "sound": Audio()},
    "turns": List({"role": Value("string"), "content": List({"image": Image()})}),
}


@pytest.mark.parametrize("column", MEDIA)
def test_media_are_refused_before_anything_that_they_name_is_opened(column: str, tmp_path: Path) -> None:
    features = Features({**dict.fromkeys(ROWS[0], Value("string")), column: MEDIA[column]})
    table = Dataset.from_list([{**row, column: None} for row in ROWS], features=features)
    table.save_to_disk(tmp_path / "saved")
    with pytest.raises(BapoError, match=rf"saved could not be read \(its column '{column}' holds media"):
        read_preferences(str(tmp_path / "saved"))
    with pytest.raises(BapoError, match=rf"The training data could not be read \(its column '{column}' holds media"):
        preferences_from_dataset(table)
    assert preferences_from_dataset(table.remove_columns(column)).pair_count == 3


@pytest.mark.skipif(not hasattr(datasets, "Json"), reason="of later versions of datasets")
def test_json_of_a_data_set_is_no_media() -> None:
    features = Features({**dict.fromkeys(ROWS[0], Value("string")), "tools": List(datasets.Json())})
    table = Dataset.from_list([{**row, "tools": [{"name": "clock"}]} for row in ROWS], features=features)
    assert preferences_from_dataset(table).groups[0].prompt[0] == Message("tools", '[{"name": "clock"}]')


def test_of_several_saved_splits_train_is_read(tmp_path: Path) -> None:
    splits = DatasetDict({"test": Dataset.from_list(ROWS[:1]), "train": Dataset.from_list(ROWS[1:])})
    splits.save_to_disk(tmp_path / "saved")
    assert [g.prompt for g in read_preferences(str(tmp_path / "saved")).groups] == [user("ask 1"), user("ask 2")]
    DatasetDict({"test": splits["test"], "dev": splits["train"]}).save_to_disk(tmp_path / "others")
    with pytest.raises(BapoError, match=r"several splits \(test, dev\) and no train"):
        read_preferences(str(tmp_path / "others"))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(BapoError, match="holds no data set"):
        read_preferences(str(tmp_path / "nothing"))


def test_a_name_that_is_nearly_that_of_a_file_beside_it_is_asked_about(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").touch()
    with pytest.raises(BapoError, match=r"There is no file .*minee.jsonl \(did you mean mine.jsonl\?\)"):
        read_preferences(str(tmp_path / "minee.jsonl"))


def test_a_line_is_named_once(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"prompt": "a" "chosen": "b"}\n')
    with pytest.raises(BapoError, match=r"line 1 is not valid JSON \(Expecting ',' delimiter, at character 16\)"):
        read_preferences(str(tmp_path / "mine.jsonl"))
