"""The program that compares every architecture with its own forward pass, over a few of each path."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.test_benchmarks import BENCHMARKS, ran


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("architectures_program", BENCHMARKS / "architectures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


EXPECTED = {
    "llama": "row",
    "olmoe": "row",
    "phimoe+window": "row, long ones on the plain path",
    "phi3+longrope": "row, long ones on the plain path",
    "falcon": "plain path",
    "xlnet": "refused",
}


@pytest.mark.slow
def test_a_few_of_each_path(tmp_path: Path) -> None:
    out, table = tmp_path / "found.jsonl", tmp_path / "table.md"
    said = ran("architectures", *EXPECTED, "--json", out, "--markdown", table, cwd=tmp_path)
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert {one["case"]: one["path"] for one in found} == EXPECTED
    assert said.splitlines()[-1].endswith(", 0 wrong")
    assert all(min(one["told"].values()) >= 100 for one in found if one["path"].startswith("row"))
    assert all(one["why"] for one in found if one["path"] != "row")
    assert table.read_text().count("\n") == len(EXPECTED) + 2


def test_what_the_probe_does_not_see_is_called_wrong(program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bapo.likelihood.finding.steady_length", lambda config: None)
    finding = program.examine("llama+dynamic", ["float32"])
    assert finding.path == "wrong"
    assert "token log-probs differ" in finding.why


def test_a_gradient_that_is_wrong_is_called_wrong(program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from bapo.kernels.gradient_rows import GradientRows

    monkeypatch.setattr(GradientRows, "leave_out", lambda rows, places: setattr(rows, "runs", (slice(0, 20),)))
    finding = program.examine("llama", ["float32"])
    assert finding.path == "wrong"
    assert "gradients" in finding.why


def test_a_process_that_ends_is_one_finding(program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    class Context:
        def Pipe(self, duplex: bool) -> tuple[object, object]:
            return Broken(), Broken()

        def Process(self, **_: object) -> object:
            return Broken()

    class Broken:
        exitcode = -11

        def poll(self, timeout: float) -> bool:
            return True

        def recv(self) -> object:
            raise EOFError

        def start(self) -> None: ...
        def close(self) -> None: ...
        def kill(self) -> None: ...
        def join(self, timeout: float | None = None) -> None: ...

    finding = program.found("llama", ["float32"], 1.0, Context())
    assert (finding.path, finding.why) == ("wrong", "ends its process (exit code -11)")


def test_faults_are_faults(program: ModuleType) -> None:
    from tests.architectures import tiny

    told = program.by_fault(tiny("llama"))
    assert told.keys() == {"positions", "mask", "neighbour"}
    assert min(told.values()) > 100
