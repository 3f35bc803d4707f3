"""Where the jobs of a study run: here one after another, or several processes at once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from bapo.errors import BapoError
from bapo.progress import OnProgress, silent
from bapo.study.grid import Study, StudyJob
from bapo.study.ledger import Ledger
from bapo.study.work import do

_TRIES = 3
"""How often a job is started whose process is killed."""

_LOOK_S = 0.2


def run_here(study: Study, on_progress: OnProgress = silent) -> list[StudyJob]:
    """Do all missing jobs in this process, one after another.

    Returns:
        The jobs that are not done, because they failed or because others did that they need.
    """
    ledger = _begun(study)
    missing = ledger.missing()
    for number, job in enumerate(missing):
        on_progress("study", number, len(missing), job.key)
        if ledger.state(job) != "blocked":
            do(study, job, on_progress)
    on_progress("study", len(missing), len(missing))
    return ledger.missing()


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
        raise BapoError(
            f"--processes is {processes}: this machine has {cores} cores, so name a number from 1 to {cores}."
        )
    ledger = _begun(study)
    missing = ledger.missing()
    threads = str(max(1, cores // processes))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    _Processes(study, ledger, missing, processes, environment).run(on_progress)
    return ledger.missing()


def _begun(study: Study) -> Ledger:
    ledger = Ledger(study)
    ledger.prepare()
    ledger.forget_failures()
    return ledger


class _Processes:
    def __init__(
        self, study: Study, ledger: Ledger, missing: list[StudyJob], most: int, environment: dict[str, str]
    ) -> None:
        self.study, self.ledger, self.most, self.environment = study, ledger, most, environment
        self.total, self.left = len(missing), list(missing)
        self.running: dict[str, tuple[StudyJob, subprocess.Popen[bytes]]] = {}
        self.tries: dict[str, int] = {}

    def run(self, on_progress: OnProgress) -> None:
        try:
            while self.left or self.running:
                self._collect()
                self._start()
                done = self.total - len(self.left) - len(self.running)
                on_progress("study", done, self.total, ", ".join(self.running))
                if self.running:
                    time.sleep(_LOOK_S)
        finally:
            for _, process in self.running.values():
                process.terminate()
            for _, process in self.running.values():
                process.wait()

    def _collect(self) -> None:
        for key, (job, process) in list(self.running.items()):
            code = process.poll()
            if code is None:
                continue
            del self.running[key]
            if code in (0, 1):  # its record says which
                continue
            if self.tries[key] < _TRIES:
                self.left.insert(0, job)
            else:
                self.ledger.fail(job, f"its process died {_TRIES} times, last with code {code}: start the study again.")

    def _start(self) -> None:
        unfinished = {job.key for job in self.left} | set(self.running)
        for job in list(self.left):
            if len(self.running) == self.most:
                return
            if any(key in unfinished for key in job.needs):
                continue
            self.left.remove(job)
            if self.ledger.state(job) == "blocked":
                unfinished = {job.key for job in self.left} | set(self.running)
                continue
            self.tries[job.key] = self.tries.get(job.key, 0) + 1
            self.running[job.key] = (job, self._process(job))

    def _process(self, job: StudyJob) -> subprocess.Popen[bytes]:
        more = [str(self.study.data_folder)] if self.study.data_folder else []
        command = [
            sys.executable,
            "-m",
            "bapo.study.work",
            str(self.study.path),
            str(self.study.folder),
            job.key,
            *more,
        ]
        log = Path(self.study.folder / "running" / f"{job.key}.log")
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as out:
            return subprocess.Popen(command, env=self.environment, stdout=out, stderr=subprocess.STDOUT)
