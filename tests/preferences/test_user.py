"""One of many users of a file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from bapo.errors import BapoError
from bapo.preferences import read_preferences
from bapo.study import open_study


def write(folder: Path, rows: list[dict[str, Any]]) -> str:
    path = folder / "people.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def row(user: Any, number: int) -> dict[str, Any]:
    return {"user": user, "prompt": f"q {number}", "chosen": f"{user} likes {number}", "rejected": "no"}


def test_a_users_rows_are_that_users_preferences(tmp_path: Path) -> None:
    file = write(tmp_path, [row("anna", 1), row("ben", 1), row("anna", 2), row(7, 3)])
    assert [group.responses[0] for group in read_preferences(f"user:{file}#anna").groups] == [
        "anna likes 1",
        "anna likes 2",
    ]
    assert read_preferences(f"user:{file}#7").pair_count == 1


def test_a_user_may_have_a_colon_in_the_name(tmp_path: Path) -> None:
    file = write(tmp_path, [row("anna", 1), row("site:anna", 2)])
    (group,) = read_preferences(f"user:{file}#site:anna").groups
    assert group.responses[0] == "site:anna likes 2"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("{file}#ana", r"no rows of the user 'ana' \(did you mean 'anna'\?\): name one of its 2 users, such as 'anna'"),
        ("{file}", "names no user"),
        ("{file}#", "names no user"),
        ("gone.jsonl#anna", "no file gone.jsonl"),
    ],
)
def test_what_is_not_there_is_one_sentence(name: str, sentence: str, tmp_path: Path) -> None:
    file = write(tmp_path, [row("anna", 1), row("ben", 1)])
    with pytest.raises(BapoError, match=sentence):
        read_preferences("user:" + name.format(file=file))


@pytest.mark.parametrize("user", [{}, {"user": None}, {"user": ""}])
def test_a_row_without_a_user_is_named(user: dict[str, Any], tmp_path: Path) -> None:
    file = write(tmp_path, [row("anna", 1), {**user, "prompt": "q", "chosen": "a", "rejected": "b"}])
    with pytest.raises(BapoError, match=r"line 2.* has no user"):
        read_preferences(f"user:{file}#anna")


def test_a_study_of_all_users_has_a_run_for_each(tmp_path: Path) -> None:
    file = write(tmp_path, [row(user, number) for user in ("anna", "ben", "cleo") for number in range(4)])
    content = {"grids": {"main": {"preferences": [f"user:{file}#*"], "methods": ["bapo"]}}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    cells = open_study(tmp_path / "study.yaml").cells.values()
    assert [cell.preference.rpartition("#")[2] for cell in cells] == ["anna", "ben", "cleo"]
    assert len({cell.key for cell in cells}) == 3


@pytest.mark.parametrize("held", [2**20, 0])
def test_a_file_that_changed_is_read_anew_and_a_large_one_is_not_held(
    held: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bapo.preferences.sources.user.MOST_HELD", held)
    for number in (1, 2):
        file = write(tmp_path, [row("anna", number), row("ben", number)])
        os.utime(file, ns=(number, number))
        for user in ("anna", "ben"):
            (group,) = read_preferences(f"user:{file}#{user}").groups
            assert group.responses[0] == f"{user} likes {number}"
