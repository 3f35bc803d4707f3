"""How a command ends, in real processes: signals, closed pipes, terminals that cannot print, errors of any kind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.command import LIMIT_S, bapo
from tests.test_cli import own_preferences
from tests.tiny import tiny_model, tiny_tokenizer

BAPO = [sys.executable, "-m", "bapo"]
STOPPED = "bapo: stopped; what was finished is kept, and the same command goes on from there."

# Runs the command with one of its parts replaced, so that it is met by a signal or an error at a known point.
PART = "import sys; from bapo.cli import main; import bapo.preferences as p; sys.argv = ['bapo', 'data']\n{}\nmain()"
WAITS = "import time\ndef wait(*a, **k): print('here', file=sys.stderr, flush=True); time.sleep(60)\n"


def started(*command: str, **told: object) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **told)  # type: ignore[call-overload,no-any-return]


def part(code: str, **told: object) -> subprocess.Popen[str]:
    return started(sys.executable, "-c", PART.format(code), **told)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_in_a_sentence_and_its_code(number: signal.Signals, code: int) -> None:
    with part(f"{WAITS}p.read_preferences = wait") as running:
        assert running.stderr is not None
        assert running.stderr.readline() == "here\n"
        running.send_signal(number)
        out, err = running.communicate(timeout=LIMIT_S)
    assert (running.returncode, out, err.strip()) == (code, "", STOPPED)


def test_a_signal_in_a_finalizer_is_not_lost() -> None:
    """Python prints and forgets what is raised there."""
    code = "class Slow:\n    def __del__(self): wait()\ndef read(*a, **k):\n    Slow()\n    time.sleep(60)\n"
    with part(f"{WAITS}{code}p.read_preferences = read") as running:
        assert running.stderr is not None
        assert running.stderr.readline() == "here\n"
        running.send_signal(signal.SIGINT)
        sent = time.monotonic()
        _, err = running.communicate(timeout=LIMIT_S)
    assert (running.returncode, err.strip()) == (130, STOPPED)
    assert time.monotonic() - sent < 50, "it was heard when the sleep was over"


def test_a_signal_while_the_command_is_imported_is_a_sentence_too(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import sys, time\nprint('here', file=sys.stderr, flush=True)\ntime.sleep(60)\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with started(*BAPO, "data", env={**os.environ, "PYTHONPATH": path}) as running:
        assert running.stderr is not None
        assert running.stderr.readline() == "here\n"
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=LIMIT_S)
    assert (running.returncode, err.strip()) == (130, STOPPED)


FAILS = "def fail(*a, **k): raise RuntimeError\np.read_preferences = fail\n"
LATE = {
    "while an error is said": f"{FAILS}import bapo.cli.ending as e\ne._say = wait",
    "while Python ends": "import atexit\natexit.register(wait)",
}


@pytest.mark.parametrize("when", LATE)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_when_the_command_is_over_is_a_sentence_too(when: str, number: signal.Signals, code: int) -> None:
    """And no code of a gate, as that of a traceback is."""
    with part(WAITS + LATE[when]) as running:
        assert running.stderr is not None
        assert running.stderr.readline() == "here\n"
        running.send_signal(number)
        _, err = running.communicate(timeout=LIMIT_S)
    assert (running.returncode, err.strip()) == (code, STOPPED)


def test_a_signal_in_the_very_moment_in_which_the_command_is_over_is_a_sentence_too() -> None:
    late = "import os, bapo.cli.ending as e\nreal = e.meet_signals\n"
    late += "def meet():\n    e.meet_signals = real\n    os.kill(os.getpid(), 2)\n    real()\ne.meet_signals = meet"
    with part(late) as running:
        _, err = running.communicate(timeout=LIMIT_S)
    assert (running.returncode, err.strip()) == (130, STOPPED)


def test_a_signal_that_was_ignored_before_stays_ignored() -> None:
    """As a shell starts jobs in the background."""
    quick = WAITS.replace("60", "0.5") + "real = p.read_preferences\n"
    code = f"{quick}p.read_preferences = lambda *a, **k: (wait(), real(*a, **k))[1]"
    with part(code, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) as running:
        assert running.stderr is not None
        assert running.stderr.readline() == "here\n"
        running.send_signal(signal.SIGINT)
        out, _ = running.communicate(timeout=LIMIT_S)
    assert running.returncode == 0
    assert "48 prompts" in out


@pytest.mark.parametrize("arguments", [["data", "starter:concise"], ["--help"]])
def test_a_reader_that_goes_leaves_no_traceback_and_no_code_of_a_gate(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*BAPO, *arguments], stdout=writing, stderr=subprocess.PIPE, text=True, timeout=LIMIT_S)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_full_disk_behind_standard_output_is_an_error() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*BAPO, "data"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=LIMIT_S)
    assert done.returncode == 2
    assert done.stderr.startswith("bapo: ")
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_full_disk_behind_standard_error_is_no_gate_that_failed() -> None:
    with open("/dev/full", "w") as full:
        assert subprocess.run([*BAPO, "data", "nowhere.jsonl"], stderr=full, timeout=LIMIT_S).returncode == 2


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_a_terminal_that_cannot_print_a_letter_gets_another(encoding: str, tmp_path: Path) -> None:
    row = {"prompt": "q", "chosen": "caf\u00e9 \U0001f600 \u05e9", "rejected": "no"}
    (tmp_path / "mine.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "mine[b].jsonl").write_text(json.dumps(row) + "\n")
    told = {**os.environ, "PYTHONIOENCODING": encoding, "NO_COLOR": "1"}

    def said(*arguments: str) -> str:
        done = subprocess.run([*BAPO, "data", *arguments], cwd=tmp_path, env=told, capture_output=True, timeout=LIMIT_S)
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"\x1b" not in done.stdout
        return done.stdout.decode(encoding)

    assert row["chosen"].encode(encoding, "replace").decode(encoding) in said("mine.jsonl")
    assert json.loads(said("mine.jsonl", "--json"))["examples"][0]["chosen"] == row["chosen"]
    assert "mine[b].jsonl: 1 prompts" in said("mine[b].jsonl"), "brackets in names are no markup"


ERRORS = {
    "RuntimeError('of ours')": (2, "(RuntimeError: of ours)"),
    "MemoryError()": (2, "(MemoryError: there is not enough memory for it)"),
    "SystemExit(1)": (2, "bapo: stopped"),
    "SystemExit('bad')": (2, "bapo: stopped (bad)"),
    "BrokenPipeError(32, 'of a socket')": (2, "of a socket"),
    "OSError(28, 'No space left on device', 'store/logps.jsonl')": (
        2,
        "bapo: store/logps.jsonl cannot be used (No space left on device): see that there is room and that you may use "
        "it, and start the same command again; what was finished is kept.",
    ),
    "EOFError('nobody answers')": (2, "bapo: stopped (nobody answers)"),
    "KeyError('x')": (2, "(KeyError: it lacks 'x')"),
    "type('PanicException', (BaseException,), {})('of Rust')": (2, "(PanicException: of Rust)"),
}


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_of_any_kind_is_a_sentence_and_no_gate_that_failed(error: str) -> None:
    """1 and 3 are what a gate says of a model."""
    code, sentence = ERRORS[error]
    raises = f"def fail(*a, **k): raise {error}\np.read_preferences = fail"
    with part(raises) as running:
        out, err = running.communicate(timeout=LIMIT_S)
    assert (running.returncode, out) == (code, "")
    assert sentence in err.strip().splitlines()[-1]
    assert "Traceback" not in err


def test_the_traceback_is_shown_to_who_asks_for_it() -> None:
    raises = "def fail(*a, **k): raise RuntimeError('of ours')\np.read_preferences = fail"
    with part(raises, env={**os.environ, "BAPO_DEBUG": "1"}) as running:
        _, err = running.communicate(timeout=LIMIT_S)
    assert running.returncode == 2
    assert "Traceback" in err
    assert "in fail" in err


def test_a_gate_keeps_its_codes() -> None:
    for code in (1, 3):
        raises = f"import typer\ndef fail(*a, **k): raise typer.Exit({code})\np.read_preferences = fail"
        with part(raises) as running:
            _, err = running.communicate(timeout=LIMIT_S)
        assert (running.returncode, err) == (code, "")


@pytest.mark.parametrize(
    ("command", "output"), [("personalize", "--output"), ("train", "--output"), ("anchor", "--anchored-store")]
)
def test_an_output_that_is_a_file_is_refused_before_any_work(command: str, output: str, tmp_path: Path) -> None:
    own_preferences(tmp_path, lines=4)
    (tmp_path / "out").touch()
    done = bapo(command, "mine.jsonl", output, "out", cwd=tmp_path, code=2)
    *before, refused = done.stderr.splitlines()
    assert refused == "bapo: The folder out cannot be made (a file is in its way): name another one."
    assert all(line.startswith(("starting: ", "reading ")) for line in before), "no model is loaded"


def test_a_cache_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    own_preferences(tmp_path, lines=4)
    (tmp_path / "file").touch()
    told = {"BAPO_CACHE": str(tmp_path / "file/cache")}
    done = bapo("anchor", "mine.jsonl", cwd=tmp_path, code=2, environment=told)
    assert "cannot be made" in done.stderr.strip().splitlines()[-1]


def test_ctrl_c_in_training_is_a_sentence_and_the_same_command_goes_on(tmp_path: Path) -> None:
    """While strands, which are threads, compute."""
    own_preferences(tmp_path, lines=12)
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    command = [*BAPO, "train", "mine.jsonl", "-m", "model", "--max-steps", "60", "--held-out", "2", "-o", "run"]
    for setting in ("anchoring.base_max_new_tokens=4", "training.save_steps=1", "training.strands=2"):
        command += ["--set", setting]
    with started(*command, cwd=tmp_path) as running:
        deadline = time.monotonic() + LIMIT_S
        while not (tmp_path / "run/checkpoints/checkpoint-1/complete").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=LIMIT_S)
    assert running.returncode == 130, err
    assert err.strip().splitlines()[-1] == STOPPED
    assert "Traceback" not in err
    bapo(*command[3:], cwd=tmp_path)
    assert json.loads((tmp_path / "run/run.json").read_text())["steps"] == 60
