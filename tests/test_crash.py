"""The crash matrix in its short form: real processes, disturbed at single operations on files, lose nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "crash.py"
MOST = 2


@pytest.mark.slow
@pytest.mark.skipif(
    not sys.platform.startswith("linux") or not shutil.which("cc"), reason="needs Linux and a C compiler"
)
def test_a_few_faults_in_every_stage_lose_nothing_and_are_gone_on_from(tmp_path: Path) -> None:
    command = [sys.executable, str(PROGRAM), "--folder", str(tmp_path), "--seed", "1", "--most", str(MOST)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    injections = ", ".join(f"'{stage}': {MOST}" for stage in ("anchor", "train", "evaluate", "personalize"))
    none = ", ".join(f"0 {outcome}" for outcome in ("lost", "traceback", "no clear sentence", "hangs", "not met"))
    whole = f"injections: {{{injections}}}; {4 * MOST} survived, {none}"
    assert done.stdout.strip().splitlines()[-1] == whole
    again = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert again.stdout.strip().splitlines()[-1] == whole, "it goes on where it was, and there is nothing left to do"
