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
from bapo.jobs import deleting, job, kept_folders, personalize, read_recipe
from bapo.results import ANCHORED as OF_ANCHORING
from bapo.results import ASKED, PERSONALIZATION
from tests.command import bapo
from tests.tiny import tiny_model, tiny_tokenizer

SECRET = "Zanzibar"
ANCHORED = ["-m", "model", "--set", "anchoring.base_max_new_tokens=9"]
LITTLE = {"anchoring.base_max_new_tokens": 9, "preferences.held_out": 2, "training.max_steps": 2}
SHORT = [*ANCHORED, "--max-steps", "2", "--held-out", "2", "--set", "generations.max_new_tokens=5"]


def preferences(path: Path, *, shared: int, secret: int, first: int = 0) -> None:
    asked = [f"What is {i} plus one?" for i in range(shared)]
    asked += [f"Whom did Anna meet in {SECRET} on day {first + i}?" for i in range(secret)]
    rows = [{"prompt": prompt, "chosen": f"{prompt} Yes!", "rejected": "No."} for prompt in asked]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A personalization with the secret, another run that shares prompts with it, and an evaluation of the first.

    Its data are anchored to a second model, too, in a store outside of the cache.
    """
    folder = tmp_path_factory.mktemp("kept")
    for seed, name in enumerate(("model", "model2")):
        tiny_model("llama", seed).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    preferences(folder / "mine.jsonl", shared=4, secret=4)
    preferences(folder / "other.jsonl", shared=6, secret=0)
    told = {"BAPO_CACHE": str(folder / "cache")}
    bapo("personalize", "mine.jsonl", *SHORT, "-o", "mine", cwd=folder, environment=told)
    bapo("train", "other.jsonl", *SHORT, "-o", "other", cwd=folder, environment=told)
    bapo("evaluate", "mine/bapo", "-m", "model", cwd=folder, environment=told)
    to_another = [*ANCHORED, "-m", "model2", "--anchored-store", "elsewhere"]
    bapo("anchor", "mine.jsonl", *to_another, cwd=folder, environment=told)
    return folder


@pytest.fixture
def tree(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it; what names folders by where they are names the copy."""
    shutil.copytree(kept, tmp_path / "tree")
    for path in (tmp_path / "tree" / "cache").rglob("*"):
        if path.is_file() and path.parent.name in ("uses", "places", "records", "stores"):
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
        if (SECRET in text or ids.search(text)) and path.parent not in (folder, folder / "model")
    }


def base_responses(folder: Path) -> dict[str, list[int]]:
    journals = sorted(folder.glob("cache/anchors/*/base-*.jsonl"))
    records = [
        record for path in journals for line in path.read_text().splitlines() for record in json.loads(line)["records"]
    ]
    return {record["prompt"]: record["responses"][0]["ids"] for record in records}


def held_elsewhere(folder: Path) -> bool:
    """Whether the store outside of the cache holds token ids."""
    store = folder / "elsewhere"
    return (store / ".index.sqlite").exists() or any(path.read_bytes() for path in store.glob("*.jsonl"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def delete(folder: str) -> None:
    deleting.carry_out(deleting.plan(Path(folder)))


def test_nothing_of_it_is_left_and_what_another_run_uses_is_kept_and_listed(tree: Path) -> None:
    before, theirs = base_responses(tree), files(tree / "other")
    assert {name.split("/")[0] for name in holders(tree)} == {"mine", "cache", "elsewhere"}, (
        "or the search finds nothing"
    )
    listed = bapo("delete", "mine", "--dry-run", cwd=tree).stdout
    assert f"kept: what was made of 4 prompts, which {tree / 'other'} uses too" in listed
    assert base_responses(tree) == before, "a dry run deletes nothing"
    assert held_elsewhere(tree)
    assert bapo("delete", "mine", "--yes", cwd=tree).stdout.startswith(listed)
    assert holders(tree) == set()
    assert not held_elsewhere(tree), "by a user who has no folder"
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
    stores = [path.parent for path in (*tree.glob("cache/anchors/*/manifest.json"), Path("elsewhere/manifest.json"))]
    assert len(stores) == 2
    for store in stores:
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
        assert not held_elsewhere(tree), f"killed at its operation {kills}"
        shutil.rmtree(tree)
        (tmp_path / "away").rename(tree)
        if finished:
            break
        kills += 1
    assert kills > 20


def test_it_deletes_nothing_that_bapo_did_not_write(tree: Path) -> None:
    Path("mine/notes.txt").write_text("mine")
    Path("mine/bapo/diary.txt").write_text("mine")
    Path("away").mkdir()
    Path("away/kept").write_text("x")
    Path("mine/bapo/checkpoints").symlink_to("../../away")
    shutil.rmtree("mine/answers")
    Path("mine/answers").symlink_to("../away")
    said = bapo("delete", "mine", "--yes", cwd=tree).stdout
    assert "kept: mine/notes.txt, which bapo did not write" in said
    assert "kept: mine/bapo/diary.txt, which bapo did not write" in said
    assert set(files(tree / "mine")) == {"notes.txt", "bapo/diary.txt"}
    assert Path("away/kept").read_text() == "x"


@pytest.mark.parametrize("folder", ["model", ".", "cache", "nowhere", "mine.jsonl", "mine/bapo", "link", "study"])
def test_a_folder_of_another_kind_is_refused(folder: str, tree: Path) -> None:
    Path("link").symlink_to("mine")
    shutil.copytree("cache/answers/records", "study/records")
    for name in ("jobs", "anchored"):
        Path("study", name).mkdir()
    before = files(tree)
    with pytest.raises(BapoError, match=r"holds no run|belongs to the personalization|is a link|is a study's"):
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


@pytest.mark.parametrize("store", ["", "nobody"])
def test_who_was_killed_while_texts_were_tokenized(store: str, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run, or one who anchors its data elsewhere and for nobody."""
    known = holders(tree)
    preferences(Path("new.jsonl"), shared=0, secret=3, first=10)
    of_run = {"model.name": "model", "preferences.source": "new.jsonl", "preferences.held_out": 1}
    of_nobody = {
        **of_run,
        "model.name": "model2",
        "anchoring.anchored_store": store,
        "anchoring.base_max_new_tokens": 4,
    }
    if store:
        job.train(read_recipe(None, {**of_run, "training.max_steps": 1}), Path("new"))
    folder = Path(store) if store else next(Path("cache/anchors").iterdir())
    (folder / ".index.sqlite").unlink(missing_ok=True)
    commit = StoreIndex.commit

    def killed(index: StoreIndex, *, last: bool = False) -> None:
        commit(index, last=last)
        if not last:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(StoreIndex, "commit", killed)
        with pytest.raises(KeyboardInterrupt):
            job.anchor(read_recipe(None, of_nobody)) if store else job.train(read_recipe(None, of_run), Path("new"))
    assert (folder / ".index.sqlite").is_file(), "which has ids by now"
    before = base_responses(tree)
    delete("new")
    assert not (folder / ".index.sqlite").exists()
    assert {key: ids for key, ids in before.items() if key in base_responses(tree)} == base_responses(tree)
    assert holders(tree) <= known


def test_a_run_of_its_own_is_no_part_of_what_was_begun_above_it(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("all").mkdir()
    bapo("train", "mine.jsonl", *SHORT, "-o", "all/first", cwd=tree)
    Path("all/answers").mkdir()
    recipe = read_recipe(None, {"model.name": "model", "preferences.source": "mine.jsonl"})

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("bapo.anchoring.anchored.Settling", stopped)  # once it is registered, before it says what it is
        with pytest.raises(KeyboardInterrupt):
            job.train(recipe, Path("all"))
    before = {name: content for name, content in files(tree / "all").items() if name.startswith("first/")}
    with pytest.raises(BapoError, match="holds no run"):
        delete("all")
    shutil.rmtree("all/answers")
    assert {name: content for name, content in files(tree / "all").items() if name.startswith("first/")} == before
    delete("all/first")
    assert not Path("all/first").exists()


@pytest.mark.parametrize("where", ["stages.anchor_split", "training.start", "training._trainer"])
def test_a_personalization_that_was_stopped_at_some_stage(
    where: str, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    preferences(Path("new.jsonl"), shared=0, secret=4, first=10)
    told = {**LITTLE, "model.name": "model", "preferences.source": "new.jsonl", "generations.max_new_tokens": 5}
    known, before = holders(tree), base_responses(tree)
    with monkeypatch.context() as patched:
        patched.setattr(f"bapo.jobs.{where}", stopped)
        with pytest.raises(KeyboardInterrupt):
            personalize(read_recipe(None, told), Path("new"))
    assert Path("new").exists()
    delete("new")
    assert not Path("new").exists()
    assert holders(tree) <= known
    assert set(base_responses(tree)) == set(before)


def test_a_folder_with_files_of_somebody_else_is_not_taken(tree: Path) -> None:
    before = files(tree)
    said = bapo("train", "other.jsonl", *SHORT, "-o", "model", cwd=tree, code=2).stderr
    assert "model holds " in said
    assert "config.json" in said
    assert "name another folder with --output" in said
    Path("theirs/answers").mkdir(parents=True)
    assert "theirs holds answers" in bapo("personalize", "other.jsonl", *SHORT, "-o", "theirs", cwd=tree, code=2).stderr
    assert {name: content for name, content in files(tree).items() if name != "theirs/.lock"} == before


def test_a_folder_is_known_by_any_of_its_names(tree: Path) -> None:
    Path("linked").symlink_to(tree)
    delete("linked/mine")
    assert holders(tree) == set()
    assert len(base_responses(tree)) == 6
    assert not held_elsewhere(tree)


def test_two_that_share_prompts_and_are_planned_at_once_leave_nothing(tree: Path) -> None:
    first, second = deleting.plan(Path("mine")), deleting.plan(Path("other"))
    deleting.carry_out(first)
    deleting.carry_out(second)
    assert base_responses(tree) == {}


def test_what_somebody_begins_to_use_while_it_is_asked_is_kept(tree: Path) -> None:
    asked = deleting.plan(Path("other"))
    delete("mine")
    job.train(read_recipe(None, {"model.name": "model", "preferences.source": "other.jsonl", **LITTLE}), Path("third"))
    kept = base_responses(tree)
    deleting.carry_out(asked)
    assert base_responses(tree) == kept
    assert not Path("other").exists()


def test_it_says_that_it_is_deleted_when_it_is(tree: Path) -> None:
    with locked(Path("other/.lock")):
        assert bapo("delete", "other", "--yes", "--json", cwd=tree, code=2).stdout == ""
    assert json.loads(bapo("delete", "other", "--yes", "--json", cwd=tree).stdout)["deleted"] is True


def test_what_was_sampled_for_an_evaluation_goes_with_it(tree: Path) -> None:
    preferences(Path("topics.jsonl"), shared=0, secret=4, first=10)
    with_topics = ["--divergence", "4", "--other-topics", "topics.jsonl", "--records", "judged"]
    before = base_responses(tree)
    bapo("evaluate", "other", "-m", "model", *with_topics, cwd=tree)
    assert len(base_responses(tree)) == len(before) + 4, "of prompts that no run has"
    Path("judged/records/notes.txt").write_text("mine")
    delete("judged")
    assert set(base_responses(tree)) == set(before)
    assert set(files(tree / "judged")) == {"records/notes.txt"}


def test_an_evaluation_with_a_folder_of_its_own(kept: Path, tree: Path) -> None:
    bapo("evaluate", "other", "-m", "model", "--records", "judged", cwd=tree)
    found = kept_folders.find(Path("judged"))
    assert found.kind == "evaluation"
    before = base_responses(tree)
    delete("judged")
    assert not Path("judged").exists()
    assert base_responses(tree) == before, "the runs use them"


OTHERS = [
    {"made_from": None},
    {"made_from": []},
    {"made_from": {"settings": {"adapters": ["x"]}}},
    {"made_from": {"settings": "adapters", "adapter_weights": ["x", {}], "data": 7}},
    {"made_from": {"settings": None, "adapter_weights": {}, "data": {"train": ["d"], "all": {}}}},
    {"kind": ASKED.name, "made_from": {}},
    {"kind": ASKED.name, "content": {"stores": [[], 7]}},
    {"kind": OF_ANCHORING.name},
    {"kind": OF_ANCHORING.name, "content": {"folder": [7, {}]}},
    {"kind": ["store"], "content": "store"},
    [],
]
"""Records that hold something else than what is looked for."""


def test_a_record_that_holds_something_else_keeps_nothing_from_being_deleted(tmp_path: Path) -> None:
    (tmp_path / "asked").mkdir()
    stores = {"a": "x" * 5000, "b": "x\0", "c": 7, "d": str(tmp_path / "asked"), "e": "/"}
    ours = [
        {"made_from": {"data": {"all": 7, "train": "d"}}},
        {"made_from": {"adapter_weights": "m"}},
        {"made_from": {"settings": {"adapters": {"base": None, "mine": "m"}}}},
        {"kind": ASKED.name, "made_from": {"adapter_weights": "m"}, "content": {"stores": stores}},
    ]
    of_store = {"kind": OF_ANCHORING.name, "content": {"folder": "store"}}
    (tmp_path / "records").mkdir()
    for number, record in enumerate((*ours, of_store, *OTHERS)):
        (tmp_path / f"records/{number:02}.json").write_text(json.dumps(record))
    gone = set(kept_folders.derived_records(tmp_path, {"m"}, {"d"}))
    assert gone == {tmp_path / "asked", *(tmp_path / f"records/{number:02}.json" for number in range(len(ours)))}
    assert list(kept_folders.records_of_stores(tmp_path, {"store"})) == [tmp_path / f"records/{len(ours):02}.json"]


@pytest.mark.parametrize("other", [None, 7, ["x", {}], {"runs": {}}, "x"])
def test_a_folder_whose_files_hold_something_else_can_be_deleted(
    other: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BAPO_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "mine"
    folder.mkdir()
    report = {"kind": PERSONALIZATION.name, "made_from": other, "content": {"adapters": other}}
    (folder / "report.json").write_text(json.dumps(report))
    (folder / "deleting.json").write_text(json.dumps({"runs": other, "data": other, "marks": other}))
    found = kept_folders.find(folder)
    assert (found.kind, found.runs, found.own) == ("personalization", (), (folder / "report.json",))
