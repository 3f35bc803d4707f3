"""Three steps with every instruction set that this processor can be limited to, on data that another one anchored."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.processors import LIMITS, possible_sets

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


class ThreeSteps:
    """A process that anchors what is not anchored yet, and trains."""

    def __init__(self, name: str, precision: str, folder: Path) -> None:
        self.out = folder / f"{name}-{precision}"
        command = [sys.executable, "-m", "tests.three_steps", precision, str(folder / precision), str(self.out)]
        told = {**os.environ, "OMP_NUM_THREADS": "1", **LIMITS.get(name, {})}
        self.said = (folder / f"{name}-{precision}.log").open("w+")
        self.process = subprocess.Popen(command, stdout=self.said, stderr=self.said, cwd=ROOT, env=told)

    def run(self) -> dict[str, Any]:
        """What it found, once it has ended."""
        code = self.process.wait(timeout=600)
        self.said.seek(0)
        assert code == 0, self.said.read()[-2000:]
        run: dict[str, Any] = json.loads((self.out / "found.json").read_text())
        return run


def test_three_steps_with_each_instruction_set_of_the_processor(tmp_path: Path) -> None:
    """The store is the first one's, so that all others check themselves against numbers of another arithmetic."""
    runs: dict[str, dict[str, Any]] = {"float32": {}, "bf16": {}}
    for name in possible_sets():
        started = {precision: ThreeSteps(name, precision, tmp_path) for precision in runs}
        for precision, steps in started.items():
            run = runs[precision][name] = steps.run()
            assert run["machine"]["instruction_set"] == name
            first, _, last = (entry["loss"] for entry in run["log"])
            assert first == pytest.approx(0.6931472, abs=1e-6)
            assert run["log"][0]["anchor/active"] == 0
            assert last < first
    for key in ("logps/chosen", "logps/rejected", "logps/base"):
        found = [run["log"][0][key] for run in runs["float32"].values()]
        assert found == pytest.approx(found[:1] * len(found), rel=1e-5), key
