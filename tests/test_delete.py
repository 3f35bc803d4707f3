"""`bapo delete`: afterwards nothing under run, store and cache holds a text or an id sequence of what was deleted."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from bapo.anchoring.index import StoreIndex
from bapo.errors import BapoError
from bapo.files import locked
from bapo.jobs import deleting, job, kept_folders, read_recipe
from tests.command import bapo
from tests.tiny import tiny_model, tiny_tokenizer

SECRET = "Zanzibar"
ANCHORED = ["-m", "model", "--set", "anchoring.base_max_new_tokens=9"]
SHORT = [*ANCHORED, "--max-steps", "2", "--held-out", "2", "--set", "generations.max_new_tokens=5"]


def preferences(path: Path, *, shared: int, secret: int) -> None:
    asked = [f"What is {i} plus one?" for i in range(shared)]
    asked += [f"Whom did Anna meet in {SECRET} on day {i}?" for i in range(secret)]
    rows = [{"prompt": prompt, "chosen": f"{prompt} Yes!", "rejected": "No."} for prompt in asked]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A personalization with the secret, another run that shares prompts with it, and an evaluation of the first."""
    folder = tmp_path_factory.mktemp("kept")
    tiny_model("llama").save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    preferences(folder / "mine.jsonl", shared=4, secret=4)
    preferences(folder / "other.jsonl", shared=6, secret=0)
    told = {"BAPO_CACHE": str(folder / "cache")}
    bapo("personalize", "mine.jsonl", *SHORT, "-o", "mine", cwd=folder, environment=told)
    bapo("train", "other.jsonl", *SHORT, "-o", "other", cwd=folder, environment=told)
    bapo("evaluate", "mine/bapo", "-m", "model", cwd=folder, environment=told)
    return folder


@pytest.fixture
def tree(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it; what names folders by where they are names the copy."""
    shutil.copytree(kept, tmp_path / "tree")
    for path in (tmp_path / "tree" / "cache").rglob("*"):
        if path.is_file() and path.parent.name in ("uses", "places", "records"):
            moved = path.read_text(errors="surrogateescape").replace(str(kept), str(tmp_path / "tree"))
            path.write_text(moved, errors="surrogateescape")
            if path.suffix == ".json":
                _seal(path)
    for path in list((tmp_path / "tree" / "cache/places").glob("*.json")):
        path.rename(path.with_name(f"{_checksum(json.loads(path.read_text())['folder'])}.json"))
    monkeypatch.setenv("BAPO_CACHE", str(tmp_path / "tree/cache"))
    monkeypatch.chdir(tmp_path / "tree")
    return tmp_path / "tree"


def _checksum(text: str) -> str:
    from bapo.files import checksum

    return checksum(text.encode())


def _seal(path: Path) -> None:
    from bapo.files import write_json, write_record

    content = json.loads(path.read_text())
    if "checksum" in content:
        del content["checksum"]
        write_record(path, content)
    else:
        write_json(path, content)


def texts(folder: Path) -> Iterator[tuple[Path, str]]:
    """All that lies below a folder, Parquet by what is in it."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path, path.read_text(errors="replace")
            if path.suffix == ".parquet":
                yield path, json.dumps(pq.read_table(path).to_pylist(), default=str)


def holders(folder: Path) -> set[str]:
    """Files with the secret, in words or as ids."""
    tokenizer = tiny_tokenizer()
    ids = re.compile(r",\s*".join(str(i) for i in tokenizer(SECRET, add_special_tokens=False)["input_ids"]))
    return {
        str(path.relative_to(folder))
        for path, text in texts(folder)
        if (SECRET in text or ids.search(text)) and path.name != "mine.jsonl" and path.parent.name != "model"
    }


def base_responses(folder: Path) -> dict[str, list[int]]:
    journals = sorted(folder.glob("cache/anchors/*/base-*.jsonl"))
    records = [
        record for path in journals for line in path.read_text().splitlines() for record in json.loads(line)["records"]
    ]
    return {record["prompt"]: record["responses"][0]["ids"] for record in records}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def delete(folder: str) -> None:
    deleting.carry_out(deleting.plan(Path(folder)))


def test_nothing_of_it_is_left_and_what_another_run_uses_is_kept_and_listed(tree: Path) -> None:
    before, theirs = base_responses(tree), files(tree / "other")
    assert {name.split("/")[0] for name in holders(tree)} == {"mine", "cache"}, "or the search finds nothing"
    listed = bapo("delete", "mine", "--dry-run", cwd=tree).stdout
    assert f"kept: what was made of 4 prompts, which {tree / 'other'} uses too" in listed
    assert base_responses(tree) == before, "a dry run deletes nothing"
    assert bapo("delete", "mine", "--yes", cwd=tree).stdout.startswith(listed)
    assert holders(tree) == set()
    assert not (tree / "mine").exists()
    after = base_responses(tree)
    assert len(before) - len(after) == 4, "those of the secret prompts"
    gone = [",".join(map(str, before[key])) for key in before.keys() - after.keys()]
    everything = [re.sub(r"\s", "", text) for path, text in texts(tree) if path.parent.name != "model"]
    assert not [ids for ids in gone if any(ids in text for text in everything)]
    assert files(tree / "other") == theirs
    assert len(list((tree / "cache/answers/records").glob("*.json"))) == 0, "of the evaluation"
    journals = {path: path.read_bytes() for path in tree.glob("cache/anchors/*/*.jsonl")}
    bapo("anchor", "other.jsonl", *ANCHORED, cwd=tree)
    assert {path: path.read_bytes() for path in journals} == journals, "nothing of the other run has to be made again"


def test_the_last_run_takes_everything_with_it(tree: Path) -> None:
    delete("mine")
    delete("other")
    assert base_responses(tree) == {}
    (store,) = (path.parent for path in tree.glob("cache/anchors/*/manifest.json"))
    assert (store / "logps.jsonl").read_bytes() == b""
    assert not any((store / "uses").iterdir())
    assert not list((tree / "cache/answers").rglob("*.json"))
    assert not list((tree / "cache/places").iterdir())


class Killed(BaseException):
    pass


def test_a_killed_deletion_goes_on_when_it_is_started_again(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before each file that it deletes or writes anew."""
    real = {name: getattr(os, name) for name in ("unlink", "replace", "rmdir")}
    kills = 0
    while True:
        work = tmp_path / "work"
        shutil.copytree(tree, work)
        monkeypatch.setenv("BAPO_CACHE", str(work / "cache"))
        tree.rename(tmp_path / "away")
        work.rename(tree)  # uses name folders by their places
        monkeypatch.setenv("BAPO_CACHE", str(tree / "cache"))
        monkeypatch.chdir(tree)
        left = kills

        def dies(name: str, *told: object, **more: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return real[name](*told, **more)

        try:
            with monkeypatch.context() as patched:
                for name in real:
                    patched.setattr(os, name, lambda *a, name=name, **k: dies(name, *a, **k))
                delete("mine")
            finished = True
        except Killed:
            finished = False
            if files(Path("mine")):
                delete("mine")
        assert holders(tree) == set(), f"killed at its operation {kills}"
        assert not files(Path("mine"))
        assert len(base_responses(tree)) == 6
        shutil.rmtree(tree)
        (tmp_path / "away").rename(tree)
        if finished:
            break
        kills += 1
    assert kills > 20


def test_it_deletes_nothing_that_bapo_did_not_write(tree: Path) -> None:
    Path("mine/notes.txt").write_text("mine")
    Path("mine/bapo/diary.txt").write_text("mine")
    Path("elsewhere").mkdir()
    Path("elsewhere/kept").write_text("x")
    Path("mine/bapo/checkpoints").symlink_to("../../elsewhere")
    shutil.rmtree("mine/answers")
    Path("mine/answers").symlink_to("../elsewhere")
    said = bapo("delete", "mine", "--yes", cwd=tree).stdout
    assert "kept: mine/notes.txt, which bapo did not write" in said
    assert "kept: mine/bapo/diary.txt, which bapo did not write" in said
    assert set(files(tree / "mine")) == {"notes.txt", "bapo/diary.txt"}
    assert Path("elsewhere/kept").read_text() == "x"


@pytest.mark.parametrize("folder", ["model", ".", "cache", "nowhere", "mine.jsonl", "mine/bapo", "link"])
def test_a_folder_of_another_kind_is_refused(folder: str, tree: Path) -> None:
    Path("link").symlink_to("mine")
    before = files(tree)
    with pytest.raises(BapoError, match=r"holds no run|belongs to the personalization|is a link"):
        delete(folder)
    assert files(tree) == before


def test_nobody_is_asked_where_nobody_can_answer(tree: Path) -> None:
    said = bapo("delete", "mine", cwd=tree, code=2).stderr
    assert "Nothing was deleted" in said
    assert Path("mine/report.json").is_file()


def test_a_run_that_is_at_work_is_not_deleted(tree: Path) -> None:
    with locked(Path("other/.lock")):
        assert "Another process trains into other" in bapo("delete", "other", "--yes", cwd=tree, code=2).stderr
    assert Path("other/run.json").is_file()


def test_a_run_that_was_removed_by_hand_can_be_forgotten_too(tree: Path) -> None:
    shutil.rmtree("mine")
    assert holders(tree), "in the store"
    delete("mine")
    assert holders(tree) == set()
    assert len(base_responses(tree)) == 6


def test_a_run_that_was_killed_while_its_texts_were_tokenized(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(index: StoreIndex, *, last: bool = False) -> None:
        commit(index, last=last)
        if not last:
            raise KeyboardInterrupt

    commit = StoreIndex.commit
    monkeypatch.setattr(StoreIndex, "commit", killed)
    preferences(Path("new.jsonl"), shared=0, secret=3)
    recipe = read_recipe(None, {"model.name": "model", "preferences.source": "new.jsonl", "preferences.held_out": 1})
    store = next(Path("cache/anchors").iterdir())
    (store / ".index.sqlite").unlink()
    with pytest.raises(KeyboardInterrupt):
        job.train(recipe, Path("new"))
    assert (store / ".index.sqlite").is_file(), "which has its ids by now"
    before = base_responses(tree)
    delete("new")
    assert not (store / ".index.sqlite").exists()
    assert base_responses(tree) == before


def test_an_evaluation_with_a_folder_of_its_own(kept: Path, tree: Path) -> None:
    bapo("evaluate", "other", "-m", "model", "--records", "judged", cwd=tree)
    found = kept_folders.find(Path("judged"))
    assert found.kind == "evaluation"
    before = base_responses(tree)
    delete("judged")
    assert not Path("judged").exists()
    assert base_responses(tree) == before, "the runs use them"
