"""A run of the fuzzing: workers one after another, what they say, and the totals of all runs in a folder."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bapo.files import checksum, write_json

LIMIT_S, SILENT_S = 10.0, 60.0
"""Of the processor that an input may take, and how long a worker may say nothing."""

START_S, SLICE_S = 180.0, 120.0
"""That a worker's imports may take, and how long a reader is fuzzed before the next one's turn."""

FAULTS = {
    "traceback": "an exception that is no sentence",
    "crash": "the process died",
    "time": f"over {LIMIT_S:g} s of the processor, or silent for {SILENT_S:g} s",
    "memory": "over 1 GiB for one input, or out of memory",
    "wrong": "taken though outside of what is documented",
}
OUTCOMES = ("accepted", "refused", *FAULTS)
KEPT = 3  # faults of one kind


class Run:
    """What is known of all runs in a folder.

    Args:
        folder: where state, faults and the corpus of each reader lie.
        seed: of this run.
        guided: whether atheris is used, where it is installed.
    """

    def __init__(self, folder: Path, seed: int, *, guided: bool) -> None:
        self.folder, self.seed, self.guided = folder, seed, guided
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._lock = folder / "state.json", threading.Lock()
        self.state: dict[str, Any] = {
            "inputs": {},
            "seeds": [],
            "starts": 0,
            "seconds": 0.0,
            "sentences": {},
            "slowest": {},
        }
        if self._path.is_file():
            self.state = json.loads(self._path.read_text())
        if seed not in self.state["seeds"]:
            self.state["seeds"].append(seed)

    def go(self, names: list[str], seconds: float, workers: int) -> None:
        """Fuzz readers in turn, each for a while, until the time is over."""
        from tests.fuzz.targets import READERS

        unknown = set(names) - set(READERS)
        if unknown:
            raise SystemExit(f"There is no reader {', '.join(unknown)}: there are {', '.join(READERS)}.")
        end = time.monotonic() + seconds
        chosen = names or list(READERS)
        share = max(3.0, min(SLICE_S, seconds * workers / len(chosen)))
        with ThreadPoolExecutor(workers) as pool:
            while time.monotonic() < end:
                for _ in pool.map(lambda name: self._slice(name, share, end), chosen):
                    pass

    def _slice(self, name: str, seconds: float, end: float) -> None:
        until = min(time.monotonic() + seconds, end)
        while time.monotonic() < until:
            with self._lock:
                self.state["starts"] += 1
                seed = (self.seed * 1_000_003 + self.state["starts"]) % 2**31
            until += self._worker(name, seed, until)
        with self._lock:
            self.save()
            print(f"{name}: {self._counts(name)}", flush=True)

    def save(self) -> None:
        """Keep what is known."""
        write_json(self._path, self.state)

    def _worker(self, name: str, seed: int, until: float) -> float:
        """One process, until the time is over or an input was too much for it; the seconds that its start took."""
        place = self.folder / "work" / f"{name}-{threading.get_ident()}"
        place.mkdir(parents=True, exist_ok=True)
        read, write = os.pipe()
        arguments = [
            name,
            str(seed),
            str(place),
            str(self.folder / "corpus" / name),
            str(write),
            "guided" if self.guided else "plain",
        ]
        told = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "BAPO_CACHE": str(place / "cache"),
            "PYTHONFAULTHANDLER": "1",
        }
        with (place / "stderr").open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.fuzz.worker", *arguments],
                pass_fds=[write],
                env=told,
                stdout=errors,
                stderr=errors,
            )
        os.close(write)
        start = time.monotonic()
        with os.fdopen(read, "rb", buffering=0) as pipe:
            try:
                ready = self._listen(name, pipe, place, until, process)
            finally:
                process.kill()
                code = process.wait()
        if code not in (-signal.SIGKILL, -signal.SIGABRT):
            self._fault(name, "crash", f"the process ended with {code}", f"exit {code}", place)
        return (ready or time.monotonic()) - start

    def _listen(self, name: str, pipe: Any, place: Path, until: float, process: Any) -> float | None:
        """Take down what a worker says; when its imports were done."""
        rest, ready = b"", None
        start = heard = time.monotonic()
        while ready is None or time.monotonic() < until:
            limit = START_S if ready is None else SILENT_S
            if not select.select([pipe], [], [], min(1.0, limit))[0]:
                if time.monotonic() - heard > limit:
                    process.send_signal(signal.SIGABRT)  # faulthandler writes where it is
                    process.wait()
                    self._fault(name, "time", f"nothing for {limit:g} s", "hang", place)
                    return ready
                continue
            content = pipe.read(65536)
            if not content:
                time.sleep(0.2)  # it has died, and its exit code says how
                return ready
            heard = time.monotonic()
            *lines, rest = (rest + content).split(b"\n")
            for line in lines:
                told = json.loads(line)
                if told["outcome"] == "ready":
                    ready, until = heard, until + heard - start
                elif told["outcome"] != "again":
                    self._note(name, told, place)
        return ready

    def _note(self, name: str, told: dict[str, Any], place: Path) -> None:
        outcome = told["outcome"]
        if told["seconds"] > LIMIT_S:
            outcome = "time"
        with self._lock:
            if told["seconds"] > self.state["slowest"].get(name, 0):
                self.state["slowest"][name] = told["seconds"]
            if outcome == "refused":
                known = self.state["sentences"].setdefault(told["place"], {"count": 0, "example": told["said"]})
                known["count"] += 1
        if outcome in FAULTS:
            self._fault(
                name, outcome, told.get("said", f"{told['seconds']} s"), told.get("place", ""), place, told.get("input")
            )
        else:
            self._count(name, outcome)

    def _count(self, name: str, outcome: str) -> None:
        with self._lock:
            counts = self.state["inputs"].setdefault(name, {})
            counts[outcome] = counts.get(outcome, 0) + 1

    def _fault(self, name: str, outcome: str, said: str, kind: str, place: Path, input_hex: str | None = None) -> None:
        self._count(name, outcome)
        with contextlib.suppress(FileNotFoundError):
            packed = bytes.fromhex(input_hex) if input_hex else (place / "current").read_bytes()
            folder = self.folder / "faults" / f"{name}-{outcome}-{checksum(kind.encode())[:6]}-{checksum(packed)[:6]}"
            if not folder.exists() and len(list(folder.parent.glob(f"{folder.name[:-7]}-*"))) < KEPT:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "input").write_bytes(packed)
                errors = (
                    (place / "stderr").read_bytes()[-3000:].decode("utf-8", "replace")
                    if outcome in ("crash", "time")
                    else ""
                )
                (folder / "what.txt").write_text(f"{name}\n{outcome}\n{kind}\n{said}\nseed {self.seed}\n{errors}")
                print(f"FAULT {folder.name}: {kind} {said[:200]}", flush=True)

    def total(self, outcome: str) -> int:
        """How many inputs of all readers came to an outcome."""
        return sum(counts.get(outcome, 0) for counts in self.state["inputs"].values())

    def _counts(self, name: str) -> str:
        return ", ".join(f"{count:,} {outcome}" for outcome, count in self.state["inputs"].get(name, {}).items())

    def table(self) -> str:
        """A row for each reader."""
        head = f"| reader | inputs | {' | '.join(OUTCOMES)} | slowest, s |\n|---|{'---|' * (len(OUTCOMES) + 2)}"
        rows = [
            f"| {name} | {sum(counts.values()):,} | "
            f"{' | '.join(f'{counts.get(outcome, 0):,}' for outcome in OUTCOMES)} | "
            f"{self.state['slowest'].get(name, 0):.1f} |"
            for name, counts in self.state["inputs"].items()
        ]
        return "\n".join([head, *rows])

    def last_line(self) -> str:
        """The totals in a line."""
        inputs = sum(self.total(outcome) for outcome in OUTCOMES)
        counts = ", ".join(f"{self.total(outcome):,} {outcome}" for outcome in OUTCOMES)
        sentences = len(self.state["sentences"])
        return f"{inputs:,} inputs (seeds {self.state['seeds']}): {counts}; {sentences} distinct sentences"

    @staticmethod
    def show(fault: Path) -> None:
        """Read a kept input once more, here and now, with the traceback."""
        import tempfile

        from tests.fuzz.targets import target as target_of

        target = target_of(fault.name.partition("-")[0])
        with tempfile.TemporaryDirectory() as name:
            good, place = Path(name, "good"), Path(name, "input")
            for file, content in target.files.items():
                (good / file).parent.mkdir(parents=True, exist_ok=True)
                (good / file).write_bytes(content)
            given = target.unpacked((fault / "input").read_bytes())
            print(given.file, given.kind, given.content[:500])
            target.laid_out(given, place, good)
            print(target.read(place))
