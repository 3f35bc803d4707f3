"""`with_trl.py` as `end_to_end.py` runs it: other sizes, questions of local files, and the seconds of its stages.

Nobody who runs that script writes this, so its lines do not count.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import with_trl as script

from bapo.evaluation import local_folder
from bapo.evaluation.benchmarks import load_tasks, sample_documents
from bapo.preferences import prompt_text, read_split

STAGES = {
    "training": ("load", "merged", "preferences", "base_responses", "trained"),
    "reward accuracy": ("reward_accuracy",),
    "benchmarks": ("ask",),
}


class Clock:
    """Seconds by stage; a function that another one calls counts as a part of that."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._running = False

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._running:
                return function(*args, **kwargs)
            self._running, start = True, time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._running = False
                self.seconds[stage] += time.perf_counter() - start

        return call


def local_tasks() -> dict[str, Any]:
    """The script's benchmarks from local files: a task of lm-eval by its name needs a connection."""
    folder = local_folder(None)
    return {task.name: task.task for name in script.BENCHMARKS for task in load_tasks(name, data_folder=folder)}


def our_questions(tasks: Any) -> dict[str, list[int]]:
    """Those that `bapo study` asks."""
    folder, drawn = local_folder(None), {}
    for name in script.BENCHMARKS:
        drawn |= sample_documents(load_tasks(name, data_folder=folder), script.QUESTIONS, 0)
    return drawn


def check_split(paths: Sequence[str]) -> None:
    """The script must hold out the prompts that `bapo study` holds out."""
    for path in paths:
        ours = read_split(path, held_out=script.HELD_OUT)
        for rows, side in zip(script.preferences(path), (ours.train, ours.held_out), strict=True):
            if set(script.texts(rows)) != {prompt_text(group.prompt) for group in side.groups}:
                raise SystemExit(f"The two sides split {path} differently.")


def main() -> None:
    for name, value in json.loads(sys.argv[1]).items():
        setattr(script, name, value)
    script.benchmark_tasks, script.questions = local_tasks, our_questions
    clock = Clock()
    for stage, names in STAGES.items():
        for name in names:
            setattr(script, name, clock.timed(stage, getattr(script, name)))
    script.main()
    Path("seconds.json").write_text(json.dumps(clock.seconds))
    check_split(script.FILES)


if __name__ == "__main__":
    main()
