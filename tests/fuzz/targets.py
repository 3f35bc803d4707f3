"""Every reader that is fuzzed, by its name."""

from __future__ import annotations

import importlib

from tests.fuzz.target import Target

READERS = {
    **dict.fromkeys(
        (
            "jsonl",
            "json",
            "csv",
            "parquet",
            "saved",
            "dsp",
            "psoups",
            "user",
            "recipe",
            "set",
            "study",
            "questions",
            "rows",
        ),
        "data_targets",
    ),
    **dict.fromkeys(("model", "tokenizer", "template", "adapter", "gguf"), "model_targets"),
    **dict.fromkeys(("run", "started", "records", "answers", "store"), "record_targets"),
}
"""By the module that has them."""


def target(name: str) -> Target:
    """A reader's target."""
    made: Target = importlib.import_module(f"tests.fuzz.{READERS[name]}").MAKERS[name]()
    return made
