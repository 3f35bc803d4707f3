"""Workers that share no disk: what one has finished another finds, whole, and does not do again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fsspec
import pytest

from bapo.errors import BapoError
from bapo.jobs import stages
from bapo.progress import silent
from bapo.study import Ledger, Storage, open_study, run_here
from bapo.study.work import main
from tests.study.test_study import JOBS, STUDY, found, place, until, write_study

__all__ = ["place"]


def test_a_worker_goes_on_with_what_another_one_finished(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = str(place / "shared")
    first = open_study(place / "study.yaml", place / "first", storage=url)
    loads, load = [], stages.load
    monkeypatch.setattr(stages, "load", lambda *told, **more: (loads.append(told), load(*told, **more))[1])
    assert run_here(first) == []
    assert len(loads) == 1, "all jobs of a process that follow each other share their model"
    assert len(list((place / "shared/jobs").glob("*.json"))) == JOBS
    assert not list((place / "shared").rglob("*.part"))

    second = open_study(place / "study.yaml", place / "second", storage=url)
    assert run_here(second) == []
    assert found(place / "second") == found(place / "first")
    assert not (place / "second/runs").exists(), "records are enough where nothing is left to do"

    def must_not_run(*_: Any, **__: Any) -> None:
        raise AssertionError("done again")

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "_put", must_not_run)
        for job in first.jobs.values():
            Storage(url).push(first, job)
    monkeypatch.setattr("bapo.anchoring.anchored.generate_batch", must_not_run)
    monkeypatch.setattr("bapo.training.BAPOTrainer.train", must_not_run)
    asked = {**STUDY["evaluation"], "limit": 7, "answers": 0, "questions": [], "divergence": 0, "few_shot": []}
    larger = write_study(place, {**STUDY, "evaluation": asked}, "larger.yaml")
    third = open_study(larger, place / "third", storage=url)
    assert [job.work for job in Ledger(third).missing()].count("train") == 2, "so far it knows of nothing"
    assert run_here(third) == []
    assert (place / "third/runs/tiny_mine.jsonl_dpo_seed0/adapter_model.safetensors").is_file()
    assert not (place / "third/runs/tiny_mine.jsonl_dpo_seed0/checkpoints").exists()


def test_an_archive_is_there_before_the_record_that_speaks_of_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = open_study(place / "study.yaml", place / "here", storage=str(place / "shared"))
    pushed: list[str] = []
    put = Storage._put
    monkeypatch.setattr(Storage, "_put", lambda self, content, name: (pushed.append(name), put(self, content, name)))
    assert run_here(study) == []
    pushed = [name for name in pushed if not name.startswith("running/")]
    for work, before in (("anchor", "artifacts/anchor"), ("train", "artifacts/train")):
        names = [name for name in pushed if name.partition("/")[2].startswith(work)]
        records = [at for at, name in enumerate(names) if name.endswith(".json")]
        assert records
        assert all(names[at - 1].startswith(before) for at in records)
    evaluated = [name for name in pushed if name.startswith("jobs/evaluate")]
    assert [name.rpartition(".")[2] for name in evaluated] == ["parquet", "json"] * (len(evaluated) // 2)


def test_a_failure_is_told_where_others_read_it(place: Path) -> None:
    (place / "mine.jsonl").unlink()
    url = str(place / "shared")
    assert run_here(open_study(place / "study.yaml", place / "here", storage=url))
    elsewhere = open_study(place / "study.yaml", place / "elsewhere", storage=url)
    Storage(url).fetch_all(elsewhere)
    states = {job.work: Ledger(elsewhere).state(job) for job in elsewhere.jobs.values() if job.work == "anchor"}
    assert states == {"anchor": "failed"}


def test_it_may_be_anything_that_fsspec_reads(place: Path) -> None:
    study = open_study(place / "study.yaml", place / "here", storage="memory://studies/one")
    storage = Storage("memory://studies/one")
    storage.push_study(study)
    copied = storage.fetch_study(place / "copied")
    assert copied.read_text() == (place / "study.yaml").read_text()
    assert fsspec.filesystem("memory").exists("/studies/one/study.yaml")
    with pytest.raises(BapoError, match="nowhere://x cannot be used"):
        Storage("nowhere://x")


def test_others_see_that_a_job_runs_and_how_far_it_is(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = str(place / "shared")
    here, elsewhere = (open_study(place / "study.yaml", place / name, storage=url) for name in ("here", "elsewhere"))
    job = next(job for job in here.jobs.values() if job.work == "anchor")
    monkeypatch.setattr("bapo.study.storage._BEAT_S", 0.01)

    def seen() -> dict[str, str]:
        Storage(url).fetch_all(elsewhere)
        ledger = Ledger(elsewhere)
        return {each.key: ledger.state(each) for each in elsewhere.jobs.values()}

    with Storage(url).showing(here, job), Ledger(here).alive(job, silent):
        until(lambda: seen()[job.key] == "running")
        assert (Ledger(elsewhere).sign_of_life(job) or "").startswith("starting 0/1")
    assert not list((place / "shared/running").iterdir())
    Ledger(elsewhere).sign(job).unlink()
    assert seen()[job.key] == "waiting"
    assert run_here(here) == []
    assert set(seen().values()) == {"done"}


def test_a_job_whose_step_is_long_is_still_alive(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bapo.study.ledger._STILL_S", 0.01)
    study = open_study(place / "study.yaml")
    ledger, job = Ledger(study), next(iter(study.jobs.values()))
    with ledger.alive(job, silent) as tell:
        tell("training", 3, 8)
        first = ledger.sign(job).read_text()
        until(lambda: ledger.sign(job).read_text() != first)
        assert (ledger.sign_of_life(job) or "").startswith("training 3/8")
    assert not ledger.sign(job).exists()


def test_who_only_shares_a_storage_does_first_what_nobody_is_at(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = str(place / "shared")
    here, elsewhere = (open_study(place / "study.yaml", place / name, storage=url) for name in ("here", "elsewhere"))
    at_work = next(job for job in here.jobs.values() if job.work == "train")
    done: list[str] = []
    monkeypatch.setattr("bapo.study.executors.do", lambda study, job, _: done.append(job.key))
    run_here(elsewhere)
    assert done == list(elsewhere.jobs), "in the order of the file"
    done.clear()
    with Storage(url).showing(here, at_work), Ledger(here).alive(at_work, silent):
        Storage(url)._put(Ledger(here).sign(at_work).read_bytes(), f"running/{at_work.key}.json")
        run_here(elsewhere)
    of_it = [job.key for job in here.jobs.values() if at_work.key in job.needs]
    assert done[-1 - len(of_it) :] == [at_work.key, *of_it]
    assert sorted(done) == sorted(elsewhere.jobs)


def test_a_record_that_a_power_cut_emptied_is_made_again(place: Path) -> None:
    url = str(place / "shared")
    assert run_here(open_study(place / "study.yaml", place / "here", storage=url)) == []
    emptied = next((place / "shared/jobs").glob("evaluate*dpo*.json"))
    before = emptied.read_bytes()
    emptied.write_bytes(b"")
    elsewhere = open_study(place / "study.yaml", place / "elsewhere", storage=url)
    assert run_here(elsewhere) == []
    assert emptied.read_bytes().startswith(before[:20])
    assert found(place / "elsewhere") == found(place / "here")


@pytest.mark.parametrize("damaged", [b"", b"half"])
def test_an_archive_that_a_power_cut_tore_is_made_again(damaged: bytes, place: Path) -> None:
    url = str(place / "shared")
    write_study(place, {**STUDY, "evaluation": {}})
    assert run_here(open_study(place / "study.yaml", place / "here", storage=url)) == []
    torn = next((place / "shared/artifacts").glob("train*dpo*"))
    before = torn.read_bytes()
    torn.write_bytes(before[: len(before) // 2] if damaged == b"half" else damaged)
    larger = write_study(place, {**STUDY, "evaluation": {"benchmarks": ["arc_challenge"], "limit": 2}}, "larger.yaml")
    assert run_here(open_study(larger, place / "elsewhere", storage=url)) == []
    assert len(torn.read_bytes()) > len(before) / 2
    adapters = [
        place / name / "runs/tiny_mine.jsonl_dpo_seed0/adapter_model.safetensors" for name in ("here", "elsewhere")
    ]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


def test_a_job_that_ends_while_others_look_disturbs_nobody(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing may name what is gone, and be believed, as that of object storage is."""
    url = str(place / "shared")
    study = open_study(place / "study.yaml", place / "here", storage=url)
    storage, names = Storage(url), Storage._names
    signs = {f"{key}.json" for key in study.jobs}
    monkeypatch.setattr(Storage, "_names", lambda self, of: signs if of == "running" else names(self, of))
    monkeypatch.setattr(storage.fs, "exists", lambda path: True)
    storage.fetch_all(study)
    assert not any(Ledger(study).sign(job).exists() for job in study.jobs.values())


def test_a_storage_that_fails_under_a_worker_is_why_its_job_failed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = open_study(place / "study.yaml", place / "here", storage=str(place / "shared"))
    job = next(iter(study.jobs.values()))

    def fail(*_: object) -> None:
        raise BapoError("The storage is not there: wait.")

    monkeypatch.setattr(Storage, "fetch_needed", fail)
    arguments = [str(place / "study.yaml"), str(place / "here"), "--storage", str(place / "shared"), "--job", job.key]
    assert main(arguments) == 1
    assert Ledger(study).why_failed(job) == "The storage is not there: wait."


def test_what_was_finished_and_not_copied_is_copied_by_the_next_start(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = open_study(place / "study.yaml", place / "here", storage=str(place / "shared"))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Storage, "push", killed)
        with pytest.raises(KeyboardInterrupt):
            run_here(study)
    (finished,) = [job for job in study.jobs.values() if Ledger(study).finished(job)]
    before = os.umask(0)
    try:
        Storage(str(place / "shared")).push_all(study)
    finally:
        os.umask(before)
    assert {path.name for path in (place / "shared/jobs").iterdir()} == {f"{finished.key}.json"}
    (archive,) = (place / "shared/artifacts").iterdir()
    assert archive.stat().st_mode & 0o777 == 0o600
    assert archive.parent.stat().st_mode & 0o777 == 0o700
