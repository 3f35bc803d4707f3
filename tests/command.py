"""The `bapo` command, or a program of `benchmarks/`, in a process of its own that has its imports already.

Importing torch and transformers takes a process longer than most of these tests' own work. So a server imports them
once, without running anything, and each command is a fork of it: a real process, with its own folder, environment and
output, that can really be killed. That `python -m bapo` starts from nothing is tested where it says ``fresh``.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, TracebackType

LIMIT_S = 600
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.preload"])
"""What starts processes that have their imports already."""


class Command:
    """A `bapo` command or another program that runs, and what it says.

    Args:
        arguments: what stands behind `bapo`, or behind the program's name.
        cwd: the folder it runs in.
        environment: variables beside this process's own.
        program: a Python file that runs instead of `bapo`; it may start processes of its own.
        prepare: called in its process before it begins.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        cwd: Path,
        environment: Mapping[str, str] | None = None,
        program: Path | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self.arguments = [str(program or "bapo"), *arguments]
        self._folder = tempfile.TemporaryDirectory()
        self._said = [Path(self._folder.name, name) for name in ("stdout", "stderr")]
        told = {**os.environ, **(environment or {})}
        target = _run if program is None else _run_program
        arguments_of_it = (self.arguments, str(cwd), told, self._said, prepare)
        self.process = SERVER.Process(target=target, args=arguments_of_it, daemon=program is None)
        self.process.start()

    def __enter__(self) -> Command:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        self.kill()
        self._folder.cleanup()

    def wait(self, seconds: float | None = LIMIT_S) -> bool:
        """Whether it ends within some seconds."""
        self.process.join(seconds)
        return self.process.exitcode is not None

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        self.process.kill()
        self.process.join()

    def done(self) -> subprocess.CompletedProcess[str]:
        """Its exit code and what it said, once it has ended."""
        assert self.process.exitcode is not None, "still running"
        stdout, stderr = (path.read_text() for path in self._said)
        return subprocess.CompletedProcess(self.arguments, self.process.exitcode, stdout, stderr)


def bapo(
    *arguments: str, cwd: Path, code: int = 0, environment: Mapping[str, str] | None = None, fresh: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; it must end with ``code``, and never in a traceback.

    Args:
        arguments, cwd, environment: see `Command`.
        code: the exit code that is right.
        fresh: a new interpreter that imports everything itself.
    """
    if fresh:
        told = {**os.environ, **(environment or {})}
        command = [sys.executable, "-m", "bapo", *arguments]
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=LIMIT_S, env=told)
    else:
        with Command(arguments, cwd, environment) as running:
            assert running.wait(), f"still running after {LIMIT_S} s"
            done = running.done()
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == code, (done.returncode, done.stderr, done.stdout)
    return done


def program(path: Path, *arguments: str, cwd: Path, environment: Mapping[str, str] | None = None) -> str:
    """Run a program to its end, which must be a good one; its standard output."""
    with Command(arguments, cwd, environment, path) as running:
        assert running.wait(), f"still running after {LIMIT_S} s"
        done = running.done()
    assert done.returncode == 0, done.stderr
    return done.stdout


def _run(
    arguments: list[str], cwd: str, environment: dict[str, str], said: list[Path], prepare: Callable[[], None] | None
) -> None:
    """In the fork: what a shell would set up for the command, and the command."""
    _set_up(arguments, cwd, environment, said)
    if prepare is not None:
        prepare()
    from bapo.cli import main
    from tests.rounding import SWITCH, rounding_by_rows

    with rounding_by_rows() if SWITCH in environment else nullcontext():
        main()


def _run_program(
    arguments: list[str], cwd: str, environment: dict[str, str], said: list[Path], prepare: Callable[[], None] | None
) -> None:
    _set_up(arguments, cwd, environment, said)
    sys.path.insert(0, str(Path(arguments[0]).parent))
    main = ModuleType("__main__")
    main.__file__ = arguments[0]
    sys.modules["__main__"] = sys.modules["__mp_main__"] = main  # where processes that it starts look for its names
    exec(compile(Path(arguments[0]).read_text(), arguments[0], "exec"), vars(main))


def _set_up(arguments: list[str], cwd: str, environment: dict[str, str], said: list[Path]) -> None:
    for descriptor, path in zip((1, 2), said, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    sys.stdout, sys.stderr = (os.fdopen(d, "w", buffering=1, closefd=False) for d in (1, 2))
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = arguments
