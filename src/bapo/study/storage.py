"""A study's records and artifacts on shared storage, for workers that share no disk: anything that fsspec reads.

A worker computes in a folder of its own. What it has finished is copied as whole objects, a job's record last, so that
a record that is there speaks of artifacts that are there. Two workers that do the same job write the same objects.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import uuid
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from bapo.errors import BapoError, foreign
from bapo.files import LOCK, locked, make_folder, private, read_bytes, record_in, write_bytes, write_text
from bapo.progress import meanwhile
from bapo.results.runs import DONE
from bapo.study.grid import Study, StudyJob
from bapo.study.ledger import Ledger

_BEAT_S = 15.0
"""How often a running job's sign of life is copied."""

_TODO = "check the address and your access to it, and start the command again"


class Storage:
    """Where the objects of a study lie.

    Args:
        url: a folder by any name that fsspec knows, such as ``s3://bucket/study`` or a path.

    Raises:
        BapoError: nothing reads such an address, or it cannot be reached.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        with self._reached():
            self.fs, self.root = url_to_fs(url)
            with private():
                self.fs.makedirs(self.root, exist_ok=True)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        with foreign(f"The storage {self.url} cannot be used", _TODO):
            yield

    def push_study(self, study: Study) -> None:
        """Copy the study file, for workers that do not see it."""
        self._put(study.path.read_bytes(), "study.yaml")

    def fetch_study(self, folder: Path) -> Path:
        """The study file, copied into a folder."""
        path = make_folder(folder) / "study.yaml"
        with self._reached():
            write_bytes(path, self.fs.cat_file(f"{self.root}/study.yaml"))
        return path

    def push(self, study: Study, job: StudyJob) -> None:
        """Copy what a job left, if it is finished here and not there: artifacts, items, record; else why it failed."""
        ledger = Ledger(study)
        if self._has(study, job):
            return
        if ledger.finished(job) is None:
            failure = ledger.failure(job)
            if failure.is_file():
                self._put(failure.read_bytes(), f"failures/{failure.name}")
            return
        if not ledger.has_artifact(job):
            return
        artifacts = _archive(study, job)
        if artifacts:
            self._put(artifacts, _archive_name(job))
            _remember(study, job)
        record = ledger.path(job)
        items = record.with_suffix(".parquet")
        for path in (items, record) if items.is_file() else (record,):
            self._put(path.read_bytes(), f"jobs/{path.name}")

    def fetch(self, study: Study, job: StudyJob, *, artifacts: bool = False) -> None:
        """Copy a job's record here, if it is finished there and not here; and what others need of it.

        Args:
            study, job: whose.
            artifacts: whether what others need is copied too, where it is not here.
        """
        ledger = Ledger(study)
        record = ledger.path(job)
        if ledger.finished(job) is None:
            for name in (record.with_suffix(".parquet").name, record.name):
                self._get(f"jobs/{name}", record.parent / name)
            self._drop_damaged(ledger, job)
            failure = ledger.failure(job)
            if not record.is_file():
                self._get(f"failures/{failure.name}", failure)
        if artifacts and ledger.finished(job) is not None and not _is_there(study, job):
            name = _archive_name(job)
            with self._reached():
                there = self.fs.exists(f"{self.root}/{name}")
                files = _unpacked(self.fs.cat_file(f"{self.root}/{name}")) if there else {}
            if files:
                _take(study, job, files)
                _remember(study, job)
            elif there:
                self._remove(name)

    def push_all(self, study: Study) -> None:
        """Copy what was finished here and is not there, because whoever finished it was killed before it was copied."""
        there, ledger = self._names("jobs"), Ledger(study)
        for job in study.jobs.values():
            if f"{job.key}.json" not in there and ledger.finished(job) is not None and ledger.has_artifact(job):
                self.push(study, job)

    def fetch_all(self, study: Study) -> None:
        """Copy all records here that are there and not here, and signs of life of running jobs."""
        there = self._names("jobs") | self._names("failures")
        for job in study.jobs.values():
            if f"{job.key}.json" in there:
                self.fetch(study, job)
        self.fetch_signs(study)

    def fetch_signs(self, study: Study) -> None:
        """Copy signs of life of running jobs here."""
        for name in self._names("running"):
            job = study.jobs.get(name.removesuffix(".json"))
            if job is not None:
                with suppress(BapoError):  # a job that has just ended has none any more
                    self._get(f"running/{name}", Ledger(study).sign(job))

    @contextmanager
    def showing(self, study: Study, job: StudyJob) -> Iterator[None]:
        """Let others see that a job runs, and how far it is."""
        sign = Ledger(study).sign(job)

        def copy() -> None:
            with suppress(BapoError, OSError):  # a sign that is not there yet, or cannot be copied, stops no work
                self._put(sign.read_bytes(), f"running/{sign.name}")

        try:
            with meanwhile(copy, _BEAT_S):
                yield
        finally:
            with suppress(BapoError):
                self._remove(f"running/{sign.name}")

    def fetch_needed(self, study: Study, job: StudyJob) -> None:
        """Copy here what a job needs, and its own record."""
        for key in job.needs:
            self.fetch_needed(study, study.jobs[key])
        self.fetch(study, job, artifacts=True)

    def _drop_damaged(self, ledger: Ledger, job: StudyJob) -> None:
        """A record that came damaged is as none, so that its job is done again and its place there taken."""
        try:
            record = ledger.finished(job)
            if record is not None:
                record.items()
        except BapoError:
            for path in (ledger.path(job), ledger.path(job).with_suffix(".parquet")):
                path.unlink(missing_ok=True)

    def _put(self, content: bytes, name: str) -> None:
        """One whole object: first under a name of its own, then under its name."""
        if isinstance(self.fs, LocalFileSystem):
            path = Path(self.root, name)
            write_bytes(make_folder(path.parent) / path.name, content)
            return
        final = PurePosixPath(self.root) / name
        part = f"{final}.{uuid.uuid4().hex}.part"
        with self._reached():
            self.fs.makedirs(str(final.parent), exist_ok=True)
            self.fs.pipe_file(part, content)
            self.fs.mv(part, str(final))

    def _has(self, study: Study, job: StudyJob) -> bool:
        """Whether somebody has copied the job's record, and what others need of it."""
        name, archive = f"{self.root}/jobs/{job.key}.json", f"{self.root}/{_archive_name(job)}"
        with self._reached():
            record = record_in(self.fs.cat_file(name)) if self.fs.exists(name) else None
            whole = _folder(study, job) is None or self.fs.exists(archive)
        return whole and record is not None and record.get("identity") == job.identity

    def _names(self, folder: str) -> set[str]:
        """What lies in a folder, without asking for each object."""
        with self._reached():
            self.fs.invalidate_cache()
            there = f"{self.root}/{folder}"
            return (
                {PurePosixPath(path).name for path in self.fs.ls(there, detail=False)}
                if self.fs.isdir(there)
                else set()
            )

    def _remove(self, name: str) -> None:
        with self._reached():
            if self.fs.exists(f"{self.root}/{name}"):
                self.fs.rm_file(f"{self.root}/{name}")

    def _get(self, name: str, path: Path) -> None:
        with self._reached():
            if self.fs.exists(f"{self.root}/{name}"):
                content = self.fs.cat_file(f"{self.root}/{name}")
                write_bytes(make_folder(path.parent) / path.name, content)


def _archive_name(job: StudyJob) -> str:
    return f"artifacts/{job.key}-{job.identity[:16]}.tar.gz"


def _folder(study: Study, job: StudyJob) -> Path | None:
    """Where what others need of a job lies."""
    if job.work == "train":
        return Ledger(study).run_folder(job)
    if job.work == "sample":
        return Ledger(study).sample_path(job).parent
    return study.store_of(job) if job.work == "anchor" else None


def _is_there(study: Study, job: StudyJob) -> bool:
    return _mark(study, job).is_file() if job.work == "anchor" else Ledger(study).has_artifact(job)


def _remember(study: Study, job: StudyJob) -> None:
    """That what others need of an anchoring is in the store here."""
    if job.work == "anchor":
        write_text(_mark(study, job), "")


def _mark(study: Study, job: StudyJob) -> Path:
    return study.store_of(job) / f".has-{job.identity[:16]}"


def _archive(study: Study, job: StudyJob) -> bytes:
    """The finished files of a job, that by which it is done last; checkpoints and locks are none."""
    folder = _folder(study, job)
    if folder is None or not folder.is_dir():
        return b""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        for name, content in _files(study, job, folder).items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return gzip.compress(written.getvalue(), compresslevel=1, mtime=0)  # for its checksum: weights hardly shrink


def _files(study: Study, job: StudyJob, folder: Path) -> dict[str, bytes]:
    if job.work == "anchor":
        from bapo.anchoring import part_of

        record = Ledger(study).finished(job)
        return part_of(folder, "" if record is None else record.made_from.data.get("preferences", ""))
    paths = sorted(folder.iterdir(), key=lambda path: (path.name == DONE, path.name))
    return {path.name: read_bytes(path) for path in paths if path.is_file() and not path.name.startswith(".")}


def _unpacked(content: bytes) -> dict[str, bytes]:
    """The files of an archive; none of one that is damaged, which is as none."""
    try:
        with tarfile.open(fileobj=io.BytesIO(gzip.decompress(content))) as archive:
            return {
                member.name: file.read()
                for member in archive.getmembers()
                if "/" not in member.name and not member.name.startswith(".") and (file := archive.extractfile(member))
            }
    except (OSError, EOFError, zlib.error, tarfile.TarError):
        return {}


def _take(study: Study, job: StudyJob, files: Mapping[str, bytes]) -> None:
    """Put what others need of a job where it lies."""
    folder = _folder(study, job)
    assert folder is not None
    with locked(make_folder(folder) / LOCK):
        if job.work == "anchor":
            from bapo.anchoring import add_part

            add_part(folder, files)
            return
        for name, content in files.items():
            write_bytes(folder / name, content)
