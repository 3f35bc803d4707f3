"""Local question files: what fits is turned into the hub's rows and back, what does not is one sentence."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from bapo.errors import BapoError
from bapo.evaluation import BENCHMARKS, local_folder, write_files
from bapo.evaluation.local_data import hub_rows
from bapo.evaluation.tasks._functions import turns
from tests.evaluation.questions import write_questions


@pytest.mark.parametrize("name", BENCHMARKS)
def test_rows_of_the_hub_survive_being_written_and_read(name: str, tmp_path: Path) -> None:
    write_questions(tmp_path / "ours")
    splits = {split: hub_rows(name, split, tmp_path / "ours") for split in BENCHMARKS[name].files}
    written = write_files(name, splits, tmp_path / "copy")
    assert [path.relative_to(tmp_path / "copy") for path in written] == [
        Path(file) for file in BENCHMARKS[name].files.values()
    ]
    assert {split: hub_rows(name, split, tmp_path / "copy") for split in BENCHMARKS[name].files} == splits
    assert all(rows for rows in splits.values())


def _spoil(folder: Path, line: int, **changes: object) -> Path:
    path = folder / BENCHMARKS["arc_challenge"].files["test"]
    lines = path.read_text().splitlines()
    row = json.loads(lines[line - 1]) | changes
    lines[line - 1] = json.dumps({key: value for key, value in row.items() if value is not None})
    path.write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"question": None}, "lacks question"),
        ({"choices": None, "answer": None}, "lacks choices and answer"),
        ({"answer": 4}, "answer is 4, but must be an index from 0 to 3"),
        ({"answer": -1}, "index from 0 to 3"),
        ({"answer": "B"}, "answer is 'B'"),
        ({"answer": True}, "answer is True"),
        ({"question": 3}, "must be text"),
        ({"choices": ["one"]}, "at least two texts"),
        (
            {"choices": [str(i) for i in range(9)]},
            "9 choices, but arc_challenge takes at most 8: leave that question out",
        ),
    ],
)
def test_a_row_that_does_not_fit_is_named_by_its_line(changes: dict, expected: str, tmp_path: Path) -> None:
    folder = _spoil(write_questions(tmp_path), 17, **changes)
    with pytest.raises(BapoError, match=r"arc_challenge\.jsonl line 17") as caught:
        hub_rows("arc_challenge", "test", folder)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("benchmark", "split", "count"), [("commonsense_qa", "validation", 5), ("mmlu", "test", 4)])
def test_a_benchmark_whose_task_has_fields_for_so_many_choices_takes_no_other_number(
    benchmark: str, split: str, count: int, tmp_path: Path
) -> None:
    path = write_questions(tmp_path) / BENCHMARKS[benchmark].files[split]
    row = json.loads(path.read_text().splitlines()[0])
    path.write_text(json.dumps(row | {"choices": row["choices"][:-1], "answer": 0}) + "\n")
    with pytest.raises(BapoError, match=f"line 1.*{count}"):
        hub_rows(benchmark, split, tmp_path)


def test_what_is_no_json_or_no_object_or_not_there_is_said(tmp_path: Path) -> None:
    folder = write_questions(tmp_path)
    path = folder / BENCHMARKS["piqa"].files["validation"]
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], '{"question": ', *lines[4:]]))
    with pytest.raises(BapoError, match="line 4 is not valid JSON"):
        hub_rows("piqa", "validation", folder)
    path.write_text("[1, 2]\n")
    with pytest.raises(BapoError, match="line 1 is not an object"):
        hub_rows("piqa", "validation", folder)
    path.write_text("\n")
    with pytest.raises(BapoError, match="holds no questions"):
        hub_rows("piqa", "validation", folder)
    path.unlink()
    with pytest.raises(BapoError, match="bapo benchmark-files piqa"):
        hub_rows("piqa", "validation", folder)


def test_the_folder_is_the_flag_or_the_variable_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BAPO_DATA", raising=False)
    assert local_folder(None) is None
    monkeypatch.setenv("BAPO_DATA", str(tmp_path))
    assert local_folder(None) == tmp_path
    with pytest.raises(BapoError, match="no data folder"):
        local_folder(tmp_path / "nowhere")


def test_a_dialogue_without_a_turn_is_named(tmp_path: Path) -> None:
    path = write_questions(tmp_path) / BENCHMARKS["hhh"].files["test"]
    row = json.loads(path.read_text().splitlines()[0])
    path.write_text(json.dumps(row) + "\n" + json.dumps(row | {"prompt": " \n"}) + "\n")
    with pytest.raises(BapoError, match="line 2: the prompt is empty"):
        hub_rows("hhh", "test", tmp_path)


def test_a_dialogue_of_very_many_turns_is_divided_at_once() -> None:
    start = time.process_time()
    assert turns("\n\nHuman:" * 200_000 + " Hi\n\nAssistant: Hello!\n\n\nHuman: \n\nHuman: Bye") == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Bye"},
    ]
    assert time.process_time() - start < 5
