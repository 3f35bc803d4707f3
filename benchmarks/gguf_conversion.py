"""How long a GGUF file takes to be there: transformers' own reading, `bapo`'s, and loading the copy that is kept.

The two readings take turns in one run, and must leave the same files to the byte.

    python benchmarks/gguf_conversion.py [--model smollm2 | file.gguf] [--rounds 3]
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from unittest.mock import patch

from bapo.models import gguf_files, load_model
from bapo.models.embedded import EMBEDDED_MODEL, embedded_gguf
from bapo.reporting import markdown_table

Seconds = tuple[float, float]
"""That passed, and those in which a processor was at work."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", default=EMBEDDED_MODEL)
    arguments.add_argument("--rounds", type=int, default=3)
    asked = arguments.parse_args()
    file = embedded_gguf() if asked.model == EMBEDDED_MODEL else Path(asked.model)
    with TemporaryDirectory() as folder:
        ours, theirs, kept = Path(folder, "ours"), Path(folder, "theirs"), Path(folder, "kept")
        took: dict[str, list[Seconds]] = {"transformers": [], "bapo": [], "the copy": []}
        gguf_files._convert(file, kept)  # imports, and the file into the system's memory
        for _ in range(asked.rounds):
            with patch.object(gguf_files, "_read_once", nullcontext):
                took["transformers"].append(timed(lambda: gguf_files._convert(file, theirs)))
            took["bapo"].append(timed(lambda: gguf_files._convert(file, ours)))
            took["the copy"].append(timed(lambda: load_model(str(ours), precision="float32")))
            assert digests(ours) == digests(theirs), "other files came out"
    passed, worked = ({name: median(one[which] for one in rounds) for name, rounds in took.items()} for which in (0, 1))
    rows = [
        (name, f"{passed[name]:.1f}", f"{worked[name]:.1f}", f"{passed['transformers'] / passed[name]:.1f}")
        for name in took
    ]
    print(markdown_table((file.name, "seconds", "of the processor", "transformers' / its"), rows))


def timed(work: Callable[[], object]) -> Seconds:
    """How long some work takes."""
    passed, worked = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - passed, time.process_time() - worked


def digests(folder: Path) -> dict[str, str]:
    """The files of a folder, by their bytes."""
    return {path.name: hashlib.file_digest(path.open("rb"), "sha256").hexdigest() for path in sorted(folder.iterdir())}


if __name__ == "__main__":
    main()
