"""What was gained and what was forgotten."""

from typing import TYPE_CHECKING, Any

from bapo.evaluation.benchmarks import Asked, benchmark_names
from bapo.evaluation.local_data import local_folder, write_files
from bapo.evaluation.preference import (
    evaluate_preferences,
    held_out_logps,
    prompted,
)
from bapo.evaluation.registry import BENCHMARKS, Benchmark, benchmark, by_letter

if TYPE_CHECKING:
    from bapo.evaluation.asking import BenchmarkPlan, EvaluatedModel
    from bapo.evaluation.harness import BapoLM

_OF_THE_HARNESS = {"BapoLM": "harness", "BenchmarkPlan": "asking", "EvaluatedModel": "asking"}


def __getattr__(name: str) -> Any:  # lm-eval takes seconds to import and is needed for benchmarks only
    if name in _OF_THE_HARNESS:
        from importlib import import_module

        return getattr(import_module(f"bapo.evaluation.{_OF_THE_HARNESS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "BENCHMARKS",
    "Asked",
    "BapoLM",
    "Benchmark",
    "BenchmarkPlan",
    "EvaluatedModel",
    "benchmark",
    "benchmark_names",
    "by_letter",
    "evaluate_preferences",
    "held_out_logps",
    "local_folder",
    "prompted",
    "write_files",
]
