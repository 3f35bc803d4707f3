"""The crash matrix in its short form: real processes, disturbed at single operations on files, lose nothing."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from tests.crash.disk import FAULTS
from tests.crash.stages import OUT, STAGES
from tests.test_ending import STOPPED

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


@pytest.fixture(scope="module")
def crash() -> ModuleType:
    spec = importlib.util.spec_from_file_location("crash_program", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["crash_program"] = module  # where its dataclasses look for their types
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("said", "sign", "is_clear"),
    [
        (f"reading mine.jsonl: 1/2\n{STOPPED}\n", 128, True),
        ("reading mine.jsonl: 1/2\n", 128, False),
        ("reading mine.jsonl: 1/2\n", -1, False),
        ("", 128, False),
        ("", -1, True),
    ],
)
def test_a_command_that_has_said_something_does_not_die_without_its_sentence(
    said: str, sign: int, is_clear: bool, number: int, crash: ModuleType
) -> None:
    """Before that Python itself starts."""
    (fault,) = (fault for fault in FAULTS if fault.number == number and fault.name.startswith("SIG"))
    code = -number if sign < 0 else sign + number
    assert (crash._ending(fault, crash.Ended(code, said)) is None) == is_clear


@pytest.mark.parametrize("stage", ["evaluate", "personalize"])
def test_another_row_of_a_result_is_another_content_and_other_files_of_the_same_rows_are_not(
    stage: str, tmp_path: Path
) -> None:
    answers = [{"task": "piqa", "document": number, "logps": [-1.5, -2.0]} for number in range(4)]
    contents = []
    for parts in ((answers,), (answers[:1], answers[1:]), (answers[:3], [{**answers[3], "logps": [-1.5, -2.5]}])):
        shutil.rmtree(tmp_path / OUT, ignore_errors=True)
        (tmp_path / OUT / "answers").mkdir(parents=True)
        for number, part in enumerate(parts):
            parquet.write_table(pa.Table.from_pylist(part), tmp_path / OUT / f"answers/answers-{number}.parquet")
        contents.append(STAGES[stage].content(tmp_path))
    whole, split, other = contents
    assert whole == split != other
