"""`make fuzz`: bad inputs for every reader of bapo, each of which must be taken or refused by one sentence.

Each reader runs in a process of its own with a limit on time and memory; whatever else becomes of an input is a fault,
and is kept. It goes on where it was, and adds up its totals. Where `atheris` is installed, inputs that reach new places
in the code are kept and changed further.

    python -m tests.fuzz --seed 1 --minutes 30
    python -m tests.fuzz --again FOLDER/faults/NAME
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import platformdirs

from tests.fuzz.messages import LIST, all_sentences, listed
from tests.fuzz.run import FAULTS, Run


def main() -> None:
    """Run, and end with 1 where there was a fault or a sentence that is not in the list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", help="readers; all by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--folder", type=Path, default=Path(platformdirs.user_cache_dir("bapo-fuzz")))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--plain", action="store_true", help="without atheris")
    parser.add_argument("--again", type=Path, help="show what becomes of a kept fault")
    parser.add_argument("--write-messages", action="store_true", help="bring the list of sentences up to date")
    asked = parser.parse_args()
    if asked.again:
        Run.show(asked.again)
        return
    run = Run(asked.folder, asked.seed, guided=not asked.plain)
    run.go(asked.targets, asked.minutes * 60, asked.workers)
    said = {place for place in run.state["sentences"] if place != "?"} & all_sentences()
    new = said - listed()
    if asked.write_messages:
        kept = (listed() & all_sentences()) | said
        LIST.write_text(
            "\n".join([*(line for line in LIST.read_text().splitlines() if line.startswith("#")), *sorted(kept)]) + "\n"
        )
    elif new:
        print(
            f"{len(new)} sentences are not in {LIST.name}: read them, and add them with --write-messages:",
            *sorted(new),
            sep="\n  ",
        )
    print(run.table())
    faults = sum(run.total(outcome) for outcome in FAULTS)
    print(run.last_line())
    sys.exit(bool(faults or (new and not asked.write_messages)))


if __name__ == "__main__":
    main()
