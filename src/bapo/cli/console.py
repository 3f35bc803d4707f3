"""Progress and text on the terminal. Progress goes to standard error, results to standard output."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from typing import IO, TYPE_CHECKING, Any

from rich.console import Console
from rich.file_proxy import FileProxy
from rich.segment import Segment
from rich.text import Text

from bapo.errors import BapoWarning
from bapo.progress import silent, watched_by
from bapo.visible import visible, visible_json

if TYPE_CHECKING:
    from bapo.progress import OnProgress

WIDTH_IN_FILES = 160

IS_FIRST = os.environ.get("RANK", "0") == "0"
"""Whether this process speaks: of several that share one job, the first."""


class _Console(Console):
    """Styles what is printed by its own codes; what a text holds of such codes is shown, and a string is one line."""

    @property
    def file(self) -> IO[str]:
        """The stream, past the door at which codes are made visible (`bapo.cli.ending`): Rich's own are meant."""
        stream = super().file
        return getattr(stream, "obeyed", stream)

    @file.setter
    def file(self, stream: IO[str]) -> None:
        self._file = stream

    def render_str(self, text: str, **how: Any) -> Text:
        """A string, which quotes names: a line feed in one would make a line that nobody said."""
        return super().render_str(visible(text, lines=False), **how)

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        """What is about to be printed, whatever it came from."""
        for part in super().render(renderable, options):
            yield part if part.control else part._replace(text=visible(part.text))


# What is printed holds users' names and texts, in which brackets are brackets.
out = _Console(
    width=None if sys.stdout.isatty() else WIDTH_IN_FILES,
    markup=False,
    emoji=False,
    highlight=False,
    quiet=not IS_FIRST,
)
err = _Console(stderr=True, markup=False, emoji=False, highlight=False)


@contextmanager
def live_progress(*, quiet: bool = False, libraries: bool = True) -> Iterator[OnProgress]:
    """Bars for the stages of a command, each with its rate and the time left; plain lines where nobody can see bars.

    Args:
        quiet: whether nothing is shown.
        libraries: whether models are at work, whose libraries have bars and warnings of their own.
    """
    if quiet or not IS_FIRST:
        quieten_libraries()
        yield silent
        return
    lines = nullcontext(_Lines().report) if libraries else _held_back(_Lines().report)
    with _bars() if err.is_terminal else lines as report, watched_by(report):
        if libraries:
            report("starting", 0, 1)
            quieten_libraries()
            report("starting", 1, 1)
        yield report


@contextmanager
def _bars() -> Iterator[OnProgress]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    progress = Progress(
        TextColumn("{task.description:<24}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=err,
    )
    tasks: dict[str, Any] = {}
    with redirect_stdout(_AboveBars(err, sys.stdout)), redirect_stderr(_AboveBars(err, sys.stderr)), progress:

        def report(stage: str, done: int, total: int, note: str = "") -> None:
            stage, note = visible(stage, lines=False), visible(note, lines=False)
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total, note="", rate="")
            task = progress.tasks[progress.task_ids.index(tasks[stage])]
            rate = _rate(done / task.elapsed) if task.elapsed else ""
            progress.update(tasks[stage], completed=done, total=total, note=note, rate=rate)

        yield report


_PATIENCE_S = 0.5


@contextmanager
def _held_back(report: OnProgress) -> Iterator[OnProgress]:
    """Nothing is said of work that is over in a moment, and all of it from then on."""
    from threading import RLock, Timer

    held: list[tuple[str, int, int, str]] | None = []
    lock = RLock()

    def say() -> None:
        nonlocal held
        with lock:
            before, held = held or [], None
            for told in before:
                report(*told)

    def holding(stage: str, done: int, total: int, note: str = "") -> None:
        with lock:
            if held is None:
                report(stage, done, total, note)
            else:
                held.append((stage, done, total, note))

    timer = Timer(_PATIENCE_S, say)
    timer.daemon = True
    timer.start()
    try:
        yield holding
    finally:
        timer.cancel()


class _AboveBars(FileProxy):
    """What others print while there are bars: Rich's own proxy, which would take colours from it."""

    def write(self, text: str) -> int:
        super().write(visible(text))
        return len(text)


_LINE_EVERY_S = 10.0


class _Lines:
    """A line at the start, at every tenth or after some seconds, and at the end of a stage."""

    def __init__(self) -> None:
        import time

        self.clock = time.monotonic
        self.started: dict[str, float] = {}
        self.printed: dict[str, tuple[int, float]] = {}

    def report(self, stage: str, done: int, total: int, note: str = "") -> None:
        now = self.clock()
        start = self.started.setdefault(stage, now)
        tenth = 10 * done // max(total, 1)
        before, when = self.printed.get(stage, (-1, 0.0))
        if tenth == before and (now - when < _LINE_EVERY_S or done >= total):
            return
        self.printed[stage] = tenth, now
        seconds = now - start
        under_way = 0 < done < total and seconds > 0
        left = f", {_rate(done / seconds)}, {seconds / done * (total - done):.0f} s left" if under_way else ""
        err.print(f"{stage}: {done}/{total} after {seconds:.0f} s{left}{f' ({note})' if note else ''}", soft_wrap=True)


def _rate(per_second: float) -> str:
    return f"{per_second:,.0f}/s" if per_second >= 100 else f"{per_second:.2f}/s"


def print_json(content: Any) -> None:
    """One JSON object on standard output, ASCII where it cannot print a letter; what is not a number becomes null."""
    import json

    if not IS_FIRST:
        return
    text = visible_json(json.dumps(_plain(content), ensure_ascii=False))
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        text = visible_json(json.dumps(_plain(content)))
    print(text)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value


def print_table(header: tuple[str, ...], rows: list[tuple[str, ...]], title: str | None = None) -> None:
    """A table on standard output; a cell is one line, which is folded where it is too long."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    out.print(table)


def lines(text: str, style: str = "") -> Text:
    """A text that may have several lines."""
    return Text(visible(text), style)


def print_answers(prompt: str, answers: Mapping[str, str]) -> None:
    """A prompt and the models' answers to it, side by side where the terminal is wide enough."""
    from rich.columns import Columns
    from rich.panel import Panel

    width = max(28, (out.width - len(answers)) // len(answers)) if out.width >= 34 * len(answers) else out.width
    out.print(lines(f"\n» {prompt}", style="bold"))
    out.print(
        Columns(
            [
                Panel(lines(text or "(nothing)"), title=out.render_str(name), title_align="left", width=width)
                for name, text in answers.items()
            ],
            padding=0,
        )
    )


def print_counts(counts: Mapping[str, int], doubtful: Mapping[str, int]) -> None:
    """What was dropped or cut, and what was kept though doubtful, by reason, where anything was."""
    for kind, by_reason in (("dropped or cut", counts), ("kept though doubtful", doubtful)):
        for reason, count in by_reason.items():
            if count:
                out.print(f"  {kind}: {count:,} {reason}", soft_wrap=True)


def _show_warning(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    """A warning of ours is a sentence for the user; where in the code it arose is not."""
    err.print(f"bapo: {message}", soft_wrap=True)


def quieten_libraries() -> None:
    """Keep the libraries' own bars and warnings out of a command's output (``BAPO_VERBOSE=1`` lets them speak)."""
    if os.environ.get("BAPO_VERBOSE"):
        return
    import logging

    os.environ.setdefault("TQDM_DISABLE", "1")
    from transformers.utils import logging as transformers_logging

    warnings.filterwarnings("ignore")
    warnings.filterwarnings("default", category=BapoWarning)
    warnings.showwarning = _show_warning
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in ("bitsandbytes", "accelerate", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
