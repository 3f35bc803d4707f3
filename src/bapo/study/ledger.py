"""What became of each job: the record of a finished one, that of a failed one, and a sign of life of a running one.

There is no other list. Any machine that reads the study's folder sees the same.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from bapo.errors import BapoError
from bapo.files import checksum_of_file, make_folder, read_text, write_json, write_text
from bapo.jobs.sampling import record_of_sample
from bapo.progress import OnProgress, meanwhile
from bapo.results import FAILED_JOB, FINISHED_JOB, FinishedJob, Provenance, Record, identity_of, record_of
from bapo.study.grid import Study, StudyJob, settings_of

State = Literal["done", "running", "failed", "blocked", "waiting"]

_BEAT_S, _STILL_S, _DEAD_S = 2.0, 20.0, 60.0
SAMPLED_PAIRS = "sampled"
"""Under which a record has the checksum of the pairs that were sampled."""

TRAINED_RUN = "run"
"""Under which the record of a training has the identity of its run."""

_SAMPLED = "sampled/"
_NOT_FOR_OTHERS = f"""# What holds texts of the data, or can be made again.
anchored/
runs/
{_SAMPLED}
records/
answers/
running/
failures/
"""


class Ledger:
    """The records of a study's jobs.

    Args:
        study: the study.
    """

    def __init__(self, study: Study) -> None:
        self.study = study

    def prepare(self) -> None:
        """Make the study's folder."""
        path = make_folder(self.study.folder) / ".gitignore"
        if not path.is_file():
            write_text(path, _NOT_FOR_OTHERS)
        elif _SAMPLED not in (known := read_text(path).splitlines()):  # of a study that had none so far
            write_text(path, "\n".join([*known, _SAMPLED]) + "\n")

    def path(self, job: StudyJob) -> Path:
        """Where the record of a finished job lies."""
        return self.study.folder / "jobs" / f"{job.key}.json"

    def finished(self, job: StudyJob) -> Record[FinishedJob] | None:
        """The record of a job, if it is done with these settings.

        Raises:
            BapoError: the record is damaged, or of another version.
        """
        return FINISHED_JOB.find(self.path(job), job.identity)

    def finish(
        self, job: StudyJob, content: FinishedJob, made_from: Provenance, items: list[dict[str, object]]
    ) -> None:
        """Write the record by which a job is done."""
        FINISHED_JOB.write(self.path(job), content, identity=job.identity, made_from=made_from, items=items)
        self.failure(job).unlink(missing_ok=True)

    def failure(self, job: StudyJob) -> Path:
        """Where the record of a failed job lies."""
        return self.study.folder / "failures" / f"{job.key}.json"

    def why_failed(self, job: StudyJob) -> str | None:
        """Why a job failed with these settings, if it did."""
        record = FAILED_JOB.find(self.failure(job), job.identity)
        return None if record is None else record.content.why

    def fail(self, job: StudyJob, why: str) -> None:
        """Write down that a job failed."""
        from bapo.results import FailedJob

        content = FailedJob(job.key, why, datetime.now(UTC).isoformat(timespec="seconds"))
        made_from = Provenance(model=job.recipe.model.name, weights="")
        FAILED_JOB.write(self.failure(job), content, identity=job.identity, made_from=made_from)

    def forget_failures(self) -> None:
        """Let what failed be tried again."""
        for job in self.study.jobs.values():
            self.failure(job).unlink(missing_ok=True)

    def sign(self, job: StudyJob) -> Path:
        """Where a running job says that it is alive."""
        return self.study.folder / "running" / f"{job.key}.json"

    @contextmanager
    def alive(self, job: StudyJob, on_progress: OnProgress) -> Iterator[OnProgress]:
        """Show that a job runs, and how far it is, to whoever reads the folder, as it goes on and in between."""
        make_folder(self.sign(job).parent)
        who, last = {"host": socket.gethostname(), "process": os.getpid()}, 0.0
        said: dict[str, str | int] = {}

        def show() -> None:
            with suppress(BapoError):  # a sign that cannot be written stops no work
                write_json(self.sign(job), {**who, "at": time.time(), **said})

        def tell(stage: str, done: int, total: int, note: str = "") -> None:
            nonlocal last
            on_progress(stage, done, total, note)
            said.update(stage=stage, done=done, total=total)
            if time.monotonic() - last >= _BEAT_S:
                last = time.monotonic()
                show()

        tell("starting", 0, 1)
        try:
            with meanwhile(show, _STILL_S):
                yield tell
        finally:
            self.sign(job).unlink(missing_ok=True)

    def sign_of_life(self, job: StudyJob) -> str | None:
        """What a running job said last, in words; None of one that has said nothing for a minute."""
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            said = json.loads(self.sign(job).read_text())
            if time.time() - said["at"] < _DEAD_S:
                return f"{said['stage']} {said['done']}/{said['total']} on {said['host']}"
        return None

    def state(self, job: StudyJob) -> State:
        """What became of a job."""
        if self.finished(job) is not None:
            return "done"
        if self.sign_of_life(job) is not None:
            return "running"
        if self.why_failed(job) is not None:
            return "failed"
        needed = [self.state(self.study.jobs[key]) for key in job.needs]
        return "blocked" if any(state in ("failed", "blocked") for state in needed) else "waiting"

    def missing(self) -> list[StudyJob]:
        """Jobs that are still to be done, in an order in which they can be; with those whose artifacts others miss."""
        todo: dict[str, StudyJob] = {}

        def add(job: StudyJob) -> None:
            for key in job.needs:
                needed = self.study.jobs[key]
                if self.finished(needed) is None or not self.has_artifact(needed):
                    add(needed)
            todo.setdefault(job.key, job)

        for job in self.study.jobs.values():
            if self.finished(job) is None:
                add(job)
        return list(todo.values())

    def has_artifact(self, job: StudyJob) -> bool:
        """Whether what others need of a job is there; after a clone the records are, and the adapters are not."""
        if job.work == "sample":
            return self._has_pairs(job)
        return job.work != "train" or self._has_run(job)

    def artifact(self, job: StudyJob) -> Path:
        """The folder of what others need of a training or a sampling."""
        return self.run_folder(job) if job.work == "train" else self.sample_path(job).parent

    def run_folder(self, job: StudyJob) -> Path:
        """Of a cell's run."""
        return self.study.folder / "runs" / job.of

    def _has_run(self, job: StudyJob) -> bool:
        """Whether the adapter is the run that the job's record speaks of, and not what others left in its place.

        Records of earlier versions do not name the run, so settings and data are compared too.
        """
        try:
            run, record = record_of(self.run_folder(job)), self.finished(job)
        except BapoError:
            return False
        if run is None:
            return False
        if record is not None:
            made_from, given = record.made_from, not self.study.cells[job.of].sampling
            if made_from.settings.get(TRAINED_RUN, run.get("identity")) != run.get("identity"):
                return False
            if given and run.get("data") not in (None, made_from.data.get("preferences")):
                return False
        return all(
            run["recipe"].get(section, {}).get(key, value) == value
            for section, asked in settings_of(job.recipe).items()
            for key, value in asked.items()
            if section != "model" and key != "source"  # which are named otherwise beside an adapter
        )

    def _has_pairs(self, job: StudyJob) -> bool:
        """Whether the pairs are those that the job's record speaks of, and not those of other settings."""
        record, path = self.finished(job), self.sample_path(job)
        known = None if record is None else record.made_from.data.get(SAMPLED_PAIRS)
        return record_of_sample(path).is_file() and path.is_file() and checksum_of_file(path) == known

    def sample_path(self, job: StudyJob) -> Path:
        """Of the comparison file that was sampled for a cell."""
        return self.study.folder / "sampled" / job.of / "pairs.jsonl"

    def identity(self) -> str:
        """Of all jobs."""
        return identity_of(**{key: job.identity for key, job in self.study.jobs.items()})
