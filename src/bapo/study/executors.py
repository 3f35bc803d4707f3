"""Where the jobs of a study run: here one after another, in several processes at once, or on a Ray cluster."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bapo.errors import BapoError, foreign
from bapo.files import make_folder
from bapo.progress import OnProgress, silent
from bapo.study.grid import Study, StudyJob
from bapo.study.ledger import Ledger
from bapo.study.storage import Storage
from bapo.study.work import do, let_go

_TRIES = 3
"""How often a job is started whose process dies."""

_LOOK_S = 0.2

_NAMED = 4
"""Running jobs that are named in the progress."""


def run_here(study: Study, on_progress: OnProgress = silent) -> list[StudyJob]:
    """Do all missing jobs in this process, one after another; those that another process is at come last.

    Returns:
        The jobs that are not done, because they failed or because others did that they need.
    """
    ledger = _begun(study)
    left = {job.key: job for job in ledger.missing()}
    total, storage = len(left), None if study.storage is None else Storage(study.storage)
    try:
        while left:
            if storage is not None:
                storage.fetch_signs(study)
            job = left.pop(_next(ledger, left))
            on_progress("study", total - len(left) - 1, total, job.key)
            if ledger.state(job) != "blocked":
                do(study, job, on_progress)
    finally:
        let_go()
    on_progress("study", total, total)
    return ledger.missing()


def _next(ledger: Ledger, left: Mapping[str, StudyJob]) -> str:
    """The first job that can be done and that nobody is at; where there is none, the first that can be done."""
    first = ""
    for key, job in left.items():
        if not any(needed in left for needed in job.needs):
            if ledger.sign_of_life(job) is None:
                return key
            first = first or key
    return first


def run_in_processes(study: Study, processes: int, on_progress: OnProgress = silent) -> list[StudyJob]:
    """Do all missing jobs in so many processes at once, each with its share of the processor's cores.

    A job whose process is killed is started again, up to three times, and goes on where it was.

    Args:
        study: the study.
        processes: at once; at most the cores that there are.
        on_progress: told how many jobs are done, and of how many.

    Returns:
        As `run_here`.

    Raises:
        BapoError: there are fewer cores.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not 1 <= processes <= cores:
        raise BapoError(f"--processes is {processes}, and there are {cores} cores: name a number from 1 to {cores}.")
    return _run(study, _Processes(study, processes, max(1, cores // processes)), on_progress)


def run_on_ray(
    study: Study,
    address: str | None = None,
    *,
    cpus: float = 1,
    gpus: float = 0,
    memory_gib: float = 0,
    on_progress: OnProgress = silent,
) -> list[StudyJob]:
    """Do all missing jobs as tasks of a Ray cluster, whose machines all see the study's folder and file by their paths.

    Args:
        study: the study.
        address: of the cluster; None starts one on this machine, or joins the one that ``RAY_ADDRESS`` names.
        cpus, gpus, memory_gib: what each job is given.
        on_progress: told how many jobs are done, and of how many.

    Returns:
        As `run_here`.

    Raises:
        BapoError: Ray is not installed, or the cluster is not reached.
    """
    return _run(study, _OnRay(study, address, cpus, gpus, memory_gib), on_progress)


def _begun(study: Study) -> Ledger:
    ledger = Ledger(study)
    ledger.prepare()
    if study.storage is not None:
        storage = Storage(study.storage)
        storage.push_study(study)
        storage.fetch_all(study)
        storage.push_all(study)
    ledger.forget_failures()
    return ledger


class _Place(ABC):
    """Where jobs are started, several at once."""

    most: int | None = None
    """Jobs at once; None where the place itself lets them wait."""

    @abstractmethod
    def start(self, job: StudyJob) -> Any:
        """A handle of the job, which is started."""

    @abstractmethod
    def ended(self, handle: Any) -> str | None:
        """None while it runs, "" once it has written its record, or how its process died."""

    @abstractmethod
    def stop(self, handles: Sequence[Any]) -> None:
        """End what still runs, and leave."""


def _run(study: Study, place: _Place, on_progress: OnProgress) -> list[StudyJob]:
    """Start each job once what it needs is done, until nothing is left that can be."""
    ledger = _begun(study)
    left = ledger.missing()
    total, running, tries = len(left), dict[str, tuple[StudyJob, Any]](), dict[str, int]()
    try:
        while left or running:
            for key, (job, handle) in list(running.items()):
                died = place.ended(handle)
                if died is None:
                    continue
                del running[key]
                if study.storage is not None:
                    Storage(study.storage).fetch(study, job)
                if died and tries[key] < _TRIES:
                    left.insert(0, job)
                elif died:
                    ledger.fail(job, f"Its process died {_TRIES} times, last of {died}: start the study again.")
            unfinished = {job.key for job in left} | set(running)
            for job in list(left):
                if place.most is not None and len(running) >= place.most:
                    break
                if any(key in unfinished for key in job.needs):
                    continue
                left.remove(job)
                if ledger.state(job) != "blocked":
                    tries[job.key] = tries.get(job.key, 0) + 1
                    running[job.key] = (job, place.start(job))
            more = f" and {len(running) - _NAMED} more" if len(running) > _NAMED else ""
            on_progress("study", total - len(left) - len(running), total, ", ".join([*running][:_NAMED]) + more)
            if running:
                time.sleep(_LOOK_S)
    finally:
        place.stop([handle for _, handle in running.values()])
    return ledger.missing()


def _told(study: Study) -> list[str]:
    """What `bapo.study.work` is told of a study."""
    data_folder = ["--data-folder", str(study.data_folder.resolve())] if study.data_folder else []
    storage = ["--storage", study.storage] if study.storage else []
    return [str(study.path.resolve()), str(study.folder.resolve()), *data_folder, *storage]


class _Worker:
    """A process that does one job after another: Python and its libraries take longer to start than many a job."""

    def __init__(self, study: Study, environment: Mapping[str, str], log: Path) -> None:
        command = [sys.executable, "-m", "bapo.study.work", *_told(study)]
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                encoding="utf-8",
                errors="replace",
            )
        self.doing = ""
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:  # a job's key when it has its record; others may print something first
            if line.strip() == self.doing:
                self.doing = ""

    def begin(self, job: StudyJob) -> None:
        """Let it do a job."""
        assert self.process.stdin is not None
        self.doing = job.key
        with suppress(OSError):  # one that is dead is found dead
            self.process.stdin.write(f"{job.key}\n")
            self.process.stdin.flush()

    def died(self) -> str | None:
        """How it died, if it did."""
        code = self.process.poll()
        return None if code is None else f"signal {-code}" if code < 0 else f"exit code {code}"


class _Processes(_Place):
    def __init__(self, study: Study, most: int, threads: int) -> None:
        self.study, self.most = study, most
        self.environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self.idle: list[_Worker] = []
        self.started = 0

    def start(self, job: StudyJob) -> _Worker:
        self.idle = [worker for worker in self.idle if worker.died() is None]
        worker = self.idle.pop() if self.idle else self._new()
        worker.begin(job)
        return worker

    def _new(self) -> _Worker:
        self.started += 1
        log = make_folder(self.study.folder / "running") / f"worker-{os.getpid()}-{self.started}.log"
        return _Worker(self.study, self.environment, log)

    def ended(self, handle: _Worker) -> str | None:
        died = handle.died()
        if not handle.doing:
            self.idle.append(handle)
            return ""
        return died

    def stop(self, handles: Sequence[_Worker]) -> None:
        workers = (*handles, *self.idle)
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.wait()
            with suppress(OSError):
                worker.process.stdin.close()  # type: ignore[union-attr]


class _OnRay(_Place):
    def __init__(self, study: Study, address: str | None, cpus: float, gpus: float, memory_gib: float) -> None:
        try:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # of the cluster that may be started
            import ray
        except ImportError as error:
            raise BapoError("Ray is not installed: pip install 'bapo[ray]', or use --processes.") from error
        self.ray, self.study = ray, study
        self.leaves = not ray.is_initialized()
        if self.leaves:
            with foreign("The Ray cluster cannot be reached", "check the address, or leave it out for one of your own"):
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
        resources: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus}
        resources |= {"memory": memory_gib * 2**30} if memory_gib else {}
        self.task = ray.remote(max_retries=0, **resources)(_on_a_worker)  # how often it is tried is counted here

    def start(self, job: StudyJob) -> Any:
        return self.task.remote([*_told(self.study), "--job", job.key], dict(_kept_of(os.environ)))

    def ended(self, handle: Any) -> str | None:
        ready, _ = self.ray.wait([handle], timeout=0)
        if not ready:
            return None
        try:
            self.ray.get(handle)
        except self.ray.exceptions.RayError as error:
            return type(error).__name__
        return ""

    def stop(self, handles: Sequence[Any]) -> None:
        for handle in handles:
            self.ray.cancel(handle, force=True)
        if self.leaves:
            self.ray.shutdown()


def _kept_of(environment: Any) -> list[tuple[str, str]]:
    """Variables that a job goes by."""
    return [(name, value) for name, value in environment.items() if name.startswith(("BAPO_", "HF_"))]


def _on_a_worker(arguments: list[str], environment: dict[str, str]) -> None:
    from bapo.study.work import main

    os.environ.update(environment)
    main(arguments)
