"""The benchmark programs start; what they measure is for people to run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def started(program: str, *arguments: str) -> str:
    command = [sys.executable, str(BENCHMARKS / program), *arguments]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize("program", sorted(path.name for path in BENCHMARKS.glob("*.py")))
def test_every_program_says_what_it_does(program: str) -> None:
    assert "usage:" in started(program, "--help")


@pytest.mark.slow
def test_a_point_of_the_cost_curves_is_measured() -> None:
    size = {"prompts": 1, "pairs": 1, "prompt_tokens": 16, "response_tokens": 16}
    found = json.loads(started("training_cost.py", "--steps", "1", "--point", json.dumps(size)).splitlines()[-1])
    assert found["tokens"] == 16 + 3 * 15
    assert found["seconds"] > 0
    assert found["weights"] > 1e8
