"""A process that gives one reader one input after another, and says of each what became of it.

It may die or hang: whoever started it knows the input, which lies in a file.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import logging
import os
import random
import resource
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fuzz.targets import READERS

MEMORY = 4 * 2**30
"""Bytes of addresses that a worker may take beyond what it begins with."""

GROWTH = 2**30
"""Bytes of memory that one input may take."""


_IMPORTS = {
    "data_targets": ("datasets",),
    "model_targets": ("transformers", "peft", "gguf"),
    "record_targets": ("transformers", "pyarrow.parquet"),
}
"""What starts processes of its own while it is imported, which atheris takes for the end of the reader."""


class Worker:
    """A reader in a folder of its own.

    Args:
        name: of the target.
        folder: for its files; `current` in it is the input that it is at.
        said: file descriptor for a line an input.
    """

    def __init__(self, name: str, folder: Path, said: int) -> None:
        from tests.fuzz.targets import target

        self.target = target(name)
        self.folder, self.said = folder, said
        self.good, self.place, self.current = folder / "good", folder / "input", folder / "current"
        shutil.rmtree(self.good, ignore_errors=True)
        for file, content in self.target.files.items():
            path = self.good / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        self.seen: set[bytes] = set()
        with_data = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (with_data + MEMORY, resource.RLIM_INFINITY))

    def one(self, packed: bytes) -> dict[str, Any]:
        """What becomes of one input: accepted, refused or a fault, with what was said."""
        self.current.write_bytes(packed)
        shutil.rmtree(self.place, ignore_errors=True)
        self.target.laid_out(self.target.unpacked(packed), self.place, self.good)
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, _processor()
        told = self._read()
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        if grown > GROWTH:
            told = {"outcome": "memory", "said": f"{grown >> 20} MiB more", "place": told.get("place", "")}
        return {**told, "seconds": round(_processor() - start, 3)}

    def _read(self) -> dict[str, Any]:
        from bapo.errors import BapoError
        from tests.fuzz.messages import sentence_of

        try:
            objection = self.target.read(self.place)
        except BapoError as error:
            if _out_of_memory(error):
                return {"outcome": "memory", "said": str(error), "place": sentence_of(error.__traceback__)}
            outcome = {"outcome": "refused", "said": str(error), "place": sentence_of(error.__traceback__)}
            return outcome if outcome["place"] else {**outcome, "place": "?"}
        except BaseException as error:
            where = [
                f"{Path(frame.filename).name}:{frame.name}"
                for frame in traceback.extract_tb(error.__traceback__)
                if "/bapo/" in frame.filename
            ]
            return {
                "outcome": "traceback",
                "said": f"{type(error).__name__}: {error}"[:300],
                "place": f"{type(error).__name__} {where[-1:]}",
            }
        return (
            {"outcome": "accepted"}
            if objection is None
            else {"outcome": "wrong", "said": objection, "place": objection[:60]}
        )

    def tell(self, packed: bytes) -> None:
        """`one`, and a line about it, if it is a new input."""
        told, mark = self.one(packed), hashlib.sha256(packed).digest()[:12]
        if mark in self.seen:
            told = {"outcome": "again"}
        self.seen.add(mark)
        if told["outcome"] not in ("accepted", "refused"):
            told["input"] = packed[: 2**15].hex()
        os.write(self.said, json.dumps(told).encode() + b"\n")


def _processor() -> float:
    """Seconds that this process and those that it started have computed: a busy machine is no fault."""
    own, others = (resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime


def _out_of_memory(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError) or "bad_alloc" in str(error) or "not enough memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _plain(worker: Worker, seed: int) -> None:
    """One input after another, each made from a good one, or from what was written to do harm."""
    rng = random.Random(seed)
    seeds = worker.target.seeds()
    while True:
        packed = rng.choice(seeds)
        worker.tell(packed if rng.random() < 0.1 else worker.target.mutated(packed, rng))


def _guided(worker: Worker, seed: int, corpus: Path, atheris: Any) -> None:
    """The same, but what reaches new places in bapo's code is kept, and more is made from it."""
    corpus.mkdir(parents=True, exist_ok=True)
    worker.seen = {hashlib.sha256(path.read_bytes()).digest()[:12] for path in corpus.iterdir()}  # counted before
    for number, packed in enumerate(worker.target.seeds()):
        if not (corpus / f"seed-{number}").exists():
            (corpus / f"seed-{number}").write_bytes(packed)

    def another(packed: bytes, longest: int, number: int) -> bytes:
        rng = random.Random(number)
        return worker.target.mutated(packed, rng)[:longest] if rng.random() < 0.8 else atheris.Mutate(packed, longest)

    options = [
        f"-seed={seed + 1}",
        "-timeout=100000",
        f"-artifact_prefix={worker.folder}/",
        "-rss_limit_mb=0",
        "-max_len=1048576",
        "-verbosity=0",
        "-handle_segv=0",
    ]
    atheris.Setup(["fuzz", *options, str(corpus)], worker.tell, custom_mutator=another)
    atheris.Fuzz()


def main(name: str, seed: int, folder: Path, corpus: Path, said: int, instrument: bool) -> None:
    """Run until somebody ends it."""
    warnings.simplefilter("ignore")
    with_atheris: Callable[[], Any] | None = None
    if instrument and importlib.util.find_spec("atheris"):
        import atheris

        sys.meta_path.insert(
            0,
            atheris.import_hook.AtherisMetaPathFinder(
                {"bapo"}, set(), enable_loader_override=True, trace_dataflow=True
            ),
        )
        with_atheris = lambda: atheris
    logging.disable(logging.CRITICAL)
    for module in _IMPORTS[READERS[name]]:
        importlib.import_module(module)
    worker = Worker(name, folder, said)
    os.write(said, b'{"outcome": "ready"}\n')
    if with_atheris is None:
        _plain(worker, seed)
    else:
        _guided(worker, seed, corpus, with_atheris())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]), sys.argv[6] == "guided")
