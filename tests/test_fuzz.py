"""The short form of `make fuzz`: each reader takes a few bad inputs, or refuses them by one sentence."""

from __future__ import annotations

import json
import os
import random
import resource
import tempfile
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from tests.command import SERVER
from tests.fuzz.messages import all_sentences, listed
from tests.fuzz.run import LIMIT_S, Run
from tests.fuzz.targets import READERS
from tests.fuzz.worker import Worker

FEW = {"parquet": 3, "saved": 3, "adapter": 12, "model": 12, "gguf": 12, "store": 12}
INPUTS, HOSTILE = 40, 4


def worked(name: str, seed: int, folder: str, told: Connection) -> None:
    """In a process of its own: some inputs, and what became of them."""
    os.environ["BAPO_CACHE"] = str(Path(folder, "cache"))
    worker = Worker(name, Path(folder), -1)
    rng, seeds = random.Random(seed), worker.target.seeds()
    good, hostile = seeds[: len(worker.target.names)], seeds[len(worker.target.names) :]
    inputs = [good[0], *rng.sample(hostile, min(HOSTILE, len(hostile)))]
    inputs += [worker.target.mutated(rng.choice(good), rng) for _ in range(FEW.get(name, INPUTS))]
    for packed in inputs:
        told.send(worker.one(packed))
    told.send(None)


@pytest.mark.parametrize("name", READERS)
def test_a_bad_input_is_taken_or_refused_by_one_sentence(name: str, tmp_path: Path) -> None:
    here, there = SERVER.Pipe()
    process = SERVER.Process(target=worked, args=(name, 7, str(tmp_path), there), daemon=True)
    process.start()
    there.close()
    outcomes = []
    try:
        while here.poll(12 * LIMIT_S):
            outcome = here.recv()
            if outcome is None:
                break
            outcomes.append(outcome)
        else:
            pytest.fail(f"nothing for {12 * LIMIT_S:g} s, at {(tmp_path / 'current').read_bytes()[:200]!r}")
    except EOFError:
        pytest.fail(f"the process died, at {(tmp_path / 'current').read_bytes()[:200]!r}")
    finally:
        process.kill()
        process.join()
    assert outcomes[0]["outcome"] == "accepted", outcomes[0]
    faults = [outcome for outcome in outcomes if outcome["outcome"] not in ("accepted", "refused")]
    assert not faults
    new = {outcome["place"] for outcome in outcomes if outcome["outcome"] == "refused"} & all_sentences() - listed()
    assert not new, "read these sentences, and add them with python -m tests.fuzz --write-messages"


def test_the_listed_sentences_are_those_of_the_source() -> None:
    assert len(listed()) > 50
    assert not listed() - all_sentences()


def test_a_run_goes_on_where_it_was_and_adds_up(tmp_path: Path) -> None:
    for seed in (1, 2):
        run = Run(tmp_path, seed, guided=False)
        run._note("csv", {"outcome": "refused", "place": "a", "said": "A.", "seconds": 0.1}, tmp_path)
        (tmp_path / "current").write_bytes(b"\0\0x")
        run._note("csv", {"outcome": "traceback", "place": "b", "said": "B", "seconds": 0.1}, tmp_path)
        run.save()
    assert run.state["seeds"] == [1, 2]
    assert run.state["inputs"] == {"csv": {"refused": 2, "traceback": 2}}
    assert run.last_line().startswith("4 inputs (seeds [1, 2]): 0 accepted, 2 refused, 2 traceback")
    assert [path.name for path in (tmp_path / "faults").iterdir()] == [next((tmp_path / "faults").iterdir()).name]
    assert json.loads((tmp_path / "state.json").read_text()) == run.state


def test_what_hangs_or_dies_apart_is_a_sentence() -> None:
    from bapo.apart import apart
    from bapo.errors import BapoError

    how = {"seconds": 1, "memory": 2**30}
    apart("assert asked['about'] == [1]", [1], "It failed", "mend it", **how)
    for code, why in (
        ("import os; os.kill(os.getpid(), 11)", "it ends the process that reads it"),
        ("while True: pass", "it takes more than 1 s of the processor"),
        ("raise ValueError('no')", "ValueError: no"),
        ("'x' * 2**40", "MemoryError"),
    ):
        with pytest.raises(BapoError, match=rf"^It failed \({why}\): mend it\.$"):
            apart(code, None, "It failed", "mend it", **how)


@pytest.fixture
def _limits_stay() -> Iterator[None]:
    """A worker limits the memory of its process, which here is that of other tests too."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.usefixtures("_limits_stay")
def test_a_worker_knows_a_fault(tmp_path: Path) -> None:
    from bapo.errors import BapoError
    from tests.fuzz.target import Target

    def read(folder: Path) -> str | None:
        content = (folder / "a").read_text()
        if content == "sentence":
            raise BapoError("A.")
        if content == "memory":
            raise BapoError("A.") from MemoryError()
        return {"wrong": "too large"}.get(content) or (None if content == "good" else str(int(content)))

    worker = Worker("csv", Path(tempfile.mkdtemp(dir=tmp_path)), -1)
    worker.target = Target("a", {"a": b"good"}, read)
    outcomes = {
        content: worker.one(worker.target.packed(0, 0, content.encode()))["outcome"]
        for content in ("good", "sentence", "memory", "wrong", "text")
    }
    assert outcomes == {
        "good": "accepted", "sentence": "refused", "memory": "memory", "wrong": "wrong", "text": "traceback",
    }  # fmt: skip
