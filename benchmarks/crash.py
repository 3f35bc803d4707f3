"""What disturbs a command, one fault at one operation on a file or one moment, and whether anything is lost.

Anchoring, training, evaluating and personalizing a tiny model are disturbed in real processes: errors of the disk, room
that ends, signals, kills in the middle of a write, power that is cut (what was not flushed is gone), a folder that is
deleted, the same command at once. Then the same command runs again, undisturbed.

A disturbed command ends by itself within two minutes, with one sentence where it can say one and never a traceback.
Lost is what makes the second run fail or end with other content, and work beyond one batch that it does again.

    python benchmarks/crash.py --minutes 30 --seed 7

It goes on where it was with this seed, adds up the totals of all seeds, and ends with 1 where something was lost. It
needs a C compiler and Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.command import Command
from tests.crash.disk import FAULTS, NONE, Fault, Operation, operations, put_in_place
from tests.crash.stages import OUT, STAGES, Stage, copy, prepare

from bapo.files import write_json
from bapo.models import cache_folder

LIMIT_S = 120
SURVIVED, LOST, TRACEBACK, UNCLEAR, HANGS = "survived", "lost", "traceback", "no clear sentence", "hangs"
NOT_MET = "not met"
"""The command did not come to that operation, because it did fewer than before: no injection."""

_GOES_ON = "the same command goes on"


@dataclass(frozen=True)
class Ended:
    """How a command ended: its code, what it said, and what it did to files."""

    code: int | None
    said: str
    did: list[Operation] = field(default_factory=list)

    @property
    def last_line(self) -> str:
        """What a user reads last."""
        return (self.said.strip().splitlines() or [""])[-1]

    @property
    def steps(self) -> list[int]:
        """The training steps that it was at, as it said them."""
        return [int(step) for step in re.findall(r"^training \w+: (\d+)/", self.said, re.MULTILINE)]


@dataclass(frozen=True)
class Undisturbed:
    """A stage as it is when nothing happens."""

    place: Path
    content: dict[str, str]
    did: list[Operation]


def main() -> None:
    """Disturb until the time is over, and print what became of it."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--minutes", type=float, default=10)
    arguments.add_argument(
        "--most", type=int, help="injections a stage, in all; as many as there is time for if not given"
    )
    arguments.add_argument("--stages", default=",".join(STAGES))
    arguments.add_argument("--folder", type=Path, help="where totals lie; a folder in the cache by default")
    asked = arguments.parse_args()
    if (
        signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    ):  # as in a shell's background jobs, whose commands ignore it too
        signal.signal(signal.SIGINT, signal.default_int_handler)
    until = time.monotonic() + 60 * asked.minutes
    totals = (asked.folder or cache_folder() / "crash") / f"totals-{asked.seed}.json"
    totals.parent.mkdir(parents=True, exist_ok=True)
    counts = json.loads(totals.read_text()) if totals.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        put_in_place(Path(folder))
        names = [name for name in asked.stages.split(",") if asked.most is None or _done(counts, name) < asked.most]
        undisturbed = dict(_undisturbed(Path(folder), names)) if names else {}
        while stage := _next(counts, undisturbed, asked.most):
            if time.monotonic() > until:
                break
            number = counts.setdefault(stage, {"injections": 0, "by fault": {}, "faults": []})["injections"]
            fault, outcome, why, code = _inject(undisturbed[stage], stage, asked.seed, number, Path(folder, "now"))
            kept = counts[stage]
            kept["injections"] += 1
            kept["codes"] = dict(Counter(kept.get("codes", {})) + Counter([str(code)]))
            by_fault = kept["by fault"].setdefault(fault.name, {})
            by_fault[outcome] = by_fault.get(outcome, 0) + 1
            if outcome != SURVIVED:
                kept["faults"].append(f"{stage} {number}: {fault.name}: {outcome}: {why}")
                print(kept["faults"][-1], flush=True)
            write_json(totals, counts)
    sys.exit(_report(_of_all_seeds(totals.parent)))


def _next(counts: dict, stages: dict, most: int | None) -> str | None:
    """The stage with the fewest injections, so that all get as many."""
    stage = min(stages, key=lambda name: _done(counts, name), default=None)
    return stage if stage is not None and (most is None or _done(counts, stage) < most) else None


def _done(counts: dict, stage: str) -> int:
    return counts.get(stage, {}).get("injections", 0)


def _undisturbed(folder: Path, names: list[str]) -> Iterator[tuple[str, Undisturbed]]:
    """Each stage as it is when nothing happens."""
    place, target, trace = folder / "place", folder / "now", folder / "trace"
    prepare(place, _environment(place))
    for name in names:
        stage = STAGES[name]
        copy(place, target, stage)
        ended = _run(stage, target, replace(NONE, folder=str(target), trace=str(trace)))
        assert ended.code == 0, ended.said
        content = stage.content(target)
        assert content, f"{name} left nothing"
        yield name, Undisturbed(place, content, ended.did)


def _environment(place: Path) -> dict[str, str]:
    return {"BAPO_CACHE": str(place / "cache"), "BAPO_DATA": str(place / "data"), "OMP_NUM_THREADS": "1"}


def _run(stage: Stage, place: Path, fault: Fault = NONE, kind: str = "") -> Ended:
    """Run a stage in a folder, with a fault in its process."""
    environment = _environment(place)
    with Command(stage.arguments, place, environment, prepare=fault if fault.folder else None) as command:
        start, second = time.monotonic(), None
        while not command.wait(0.05 if fault.pauses else LIMIT_S):
            if time.monotonic() - start > LIMIT_S:
                return Ended(None, "")
            if fault.pauses and _is_paused(command.process.pid):
                if "deleted" in fault.name:
                    shutil.rmtree(place / OUT, ignore_errors=True)
                elif second is None:
                    second = Command(stage.arguments, place, environment)
                    second.wait(1.5)
                os.kill(command.process.pid, signal.SIGCONT)
                fault = replace(fault, number=0)
        done = command.done()
    if second is not None:
        with second:
            if not second.wait(LIMIT_S):
                return Ended(None, "")
            other = second.done()
            if other.returncode:
                return Ended(other.returncode, other.stderr)
    trace = Path(fault.trace)
    return Ended(done.returncode, done.stderr, operations(trace) if fault.trace and trace.is_file() else [])


def _is_paused(process: int | None) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


def _inject(
    undisturbed: Undisturbed, name: str, seed: int, number: int, target: Path
) -> tuple[Fault, str, str, int | None]:
    """One fault, what became of it, why, and the code that the disturbed command ended with."""
    rng, stage = random.Random(f"{seed} {name} {number}"), STAGES[name]
    round_of_all, at = divmod(number, len(FAULTS))
    fault = random.Random(f"{seed} {name} round {round_of_all}").sample(FAULTS, len(FAULTS))[at]
    kinds: dict[str, list[Operation]] = {}
    for operation in undisturbed.did:
        if fault.fits(operation):
            kinds.setdefault(f"{operation.what} {re.sub('[0-9]+|part-.*', 'N', operation.path)}", []).append(operation)
    struck = rng.choice(kinds[rng.choice(sorted(kinds))])
    copy(undisturbed.place, target, stage)
    armed = replace(fault, folder=str(target), trace=str(target.parent / "trace"), at=struck.number)
    where = f"at operation {struck.number}, {struck.what} {Path(struck.path).name}"
    disturbed = _run(stage, target, armed)
    code = disturbed.code
    outcome = _ending(fault, disturbed) or (NOT_MET if len(disturbed.did) < struck.number else None)
    if outcome:
        return fault, outcome, f"{where}: {disturbed.last_line or code}", code
    left = {path.name: path.read_bytes() for path in target.glob(f"{OUT}/*.jsonl")}
    again = _run(stage, target)
    why = _lost(stage, undisturbed, target, again) or _repeated(fault, disturbed, again, left, target)
    return fault, LOST if why else SURVIVED, f"{where}: {why}, after: {disturbed.last_line}", code


def _ending(fault: Fault, ended: Ended) -> str | None:
    """What is wrong with how a disturbed command ended."""
    if ended.code is None:
        return HANGS
    if "Traceback (most recent call last)" in ended.said:
        return TRACEBACK
    if fault.kills:
        return None if ended.code in (-signal.SIGKILL, 0) else UNCLEAR
    if ended.code == 0:
        return None
    if fault.number in (signal.SIGTERM, signal.SIGINT) and fault.name.startswith("SIG"):
        by_signal = ended.code == 128 + fault.number and _GOES_ON in ended.last_line
        not_begun = ended.code == -fault.number and not ended.said.strip()  # Python itself was starting
        return None if by_signal or not_begun else UNCLEAR
    clear = ended.code == 2 and ended.last_line.startswith("bapo: ") and "nobody foresaw" not in ended.last_line
    return None if clear else UNCLEAR


def _lost(stage: Stage, undisturbed: Undisturbed, place: Path, again: Ended) -> str | None:
    """Why the second run is not as if nothing had happened."""
    if again.code != 0:
        return f"the same command does not go on ({again.last_line})"
    content = stage.content(place)
    other = [name for name in undisturbed.content if content.get(name) != undisturbed.content[name]]
    return f"another result in {other[0]}" if other or content.keys() - undisturbed.content.keys() else None


def _repeated(fault: Fault, disturbed: Ended, again: Ended, left: dict[str, bytes], place: Path) -> str | None:
    """Work beyond one batch that the second run does again, where nobody deleted it."""
    if fault.pauses:
        return None
    for name, content in left.items():
        whole = content[: content.rfind(b"\n") + 1]
        if not (place / OUT / name).read_bytes().startswith(whole):
            return f"{name} was begun anew"
        flushed = sum(one.what == "flush" and Path(one.path).name == name for one in disturbed.did)
        gone = flushed - whole.count(b"\n")
        if gone > 1:
            return f"{gone} batches of {name} are gone"
    if disturbed.steps and again.steps and disturbed.steps[-1] - again.steps[0] > 1:
        return f"training went back from step {disturbed.steps[-1]} to {again.steps[0]}"
    return None


def _of_all_seeds(folder: Path) -> dict:
    """The totals in a folder, added up."""
    whole: dict = {}
    for path in sorted(folder.glob("totals-*.json")):
        for stage, kept in json.loads(path.read_text()).items():
            into = whole.setdefault(stage, {"injections": 0, "codes": Counter(), "by fault": {}})
            into["injections"] += kept["injections"]
            into["codes"] += Counter(kept["codes"])
            for fault, by_outcome in kept["by fault"].items():
                into["by fault"].setdefault(fault, Counter()).update(by_outcome)
    return whole


def _report(counts: dict) -> int:
    outcomes = (SURVIVED, LOST, TRACEBACK, UNCLEAR, HANGS, NOT_MET)
    print("| stage | fault | " + " | ".join(outcomes) + " |\n|---|---|" + "---|" * len(outcomes))
    whole: Counter[str] = Counter()
    for stage, kept in counts.items():
        for fault, by_outcome in kept["by fault"].items():
            print(f"| {stage} | {fault} | " + " | ".join(str(by_outcome.get(name, 0)) for name in outcomes) + " |")
            whole.update(by_outcome)
        print(f"| {stage} | codes of the disturbed command: {dict(kept['codes'])} |")
    injections = {stage: kept["injections"] for stage, kept in counts.items()}
    print(f"injections: {injections}; " + ", ".join(f"{whole[name]} {name}" for name in outcomes))
    return int(sum(whole.values()) > whole[SURVIVED] + whole[NOT_MET])


if __name__ == "__main__":
    main()
