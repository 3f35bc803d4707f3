"""What was gained and what was forgotten."""

from typing import TYPE_CHECKING, Any

from bapo.evaluation.answers import Answer, BenchmarkAnswers
from bapo.evaluation.benchmarks import Asked, benchmark_names
from bapo.evaluation.bootstrap import Estimate, bootstrap_ratio
from bapo.evaluation.comparison import Change, Forgetting, Gate, changed_items, compare, forgetting, gate, spread
from bapo.evaluation.local_data import local_folder, write_files
from bapo.evaluation.preference import (
    PreferenceChange,
    PreferenceReport,
    PromptScores,
    compare_preferences,
    evaluate_preferences,
    held_out_logps,
    prompted,
)
from bapo.evaluation.registry import BENCHMARKS, Benchmark, benchmark, by_letter

if TYPE_CHECKING:
    from bapo.evaluation.asking import BenchmarkPlan, Examinee
    from bapo.evaluation.harness import BapoLM

_OF_THE_HARNESS = {"BapoLM": "harness", "BenchmarkPlan": "asking", "Examinee": "asking"}


def __getattr__(name: str) -> Any:  # lm-eval takes seconds to import and is needed for benchmarks only
    if name in _OF_THE_HARNESS:
        from importlib import import_module

        return getattr(import_module(f"bapo.evaluation.{_OF_THE_HARNESS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "BENCHMARKS",
    "Answer",
    "Asked",
    "BapoLM",
    "Benchmark",
    "BenchmarkAnswers",
    "BenchmarkPlan",
    "Change",
    "Estimate",
    "Examinee",
    "Forgetting",
    "Gate",
    "PreferenceChange",
    "PreferenceReport",
    "PromptScores",
    "benchmark",
    "benchmark_names",
    "bootstrap_ratio",
    "by_letter",
    "changed_items",
    "compare",
    "compare_preferences",
    "evaluate_preferences",
    "forgetting",
    "gate",
    "held_out_logps",
    "local_folder",
    "prompted",
    "spread",
    "write_files",
]
