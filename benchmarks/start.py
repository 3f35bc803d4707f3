"""What starting costs: how often a model is loaded, hashed and probed, and the seconds of each, for jobs and repeats.

Counts do not depend on the machine; seconds do. A personalization of two objectives on made-up preferences, with one
step each; then the same again, of which everything is done; then an evaluation of both adapters, twice too.

    python benchmarks/start.py [--model smollm2 | file.gguf | folder]
"""

from __future__ import annotations

import argparse
import json
import pkgutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from bapo import evaluate, personalize
from bapo.jobs import Recipe, read_recipe
from bapo.reporting import markdown_table

COUNTED = {
    "loads": "bapo.models.loading.whole_model",
    "passes of SHA-256 over the weights": "bapo.models.fingerprint._add",
    "probes of the row": "bapo.likelihood.finding.FitFinder._find_misfit",
    "scoring of a probe by layouts": "bapo.likelihood.scoring.ResponseScorer.layouts",
    "tokenizations": "bapo.anchoring.anchored.tokenize",
}
"""What starting is made of, and the function that does it."""


@contextmanager
def counting() -> Iterator[tuple[Counter[str], Counter[str]]]:
    """How often each is done, and its seconds; one that another one calls counts in both."""
    calls, seconds = Counter(), Counter()

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                calls[name] += 1
                seconds[name] += time.perf_counter() - start

        return call

    with ExitStack() as stack:
        for name, path in COUNTED.items():
            owner, _, attribute = path.rpartition(".")
            place = pkgutil.resolve_name(owner)
            stack.enter_context(patch.object(place, attribute, counted(name, getattr(place, attribute))))
        yield calls, seconds


def recipe_of(folder: Path, model: str) -> Recipe:
    rows = [{"prompt": f"Say {i}.", "chosen": f"{i}!", "rejected": f"It is {i}."} for i in range(8)]
    (folder / "made-up.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = {
        "model.name": model,
        "preferences.source": str(folder / "made-up.jsonl"),
        "preferences.held_out": 4,
        "anchoring.anchored_store": str(folder / "store"),
        "anchoring.base_max_new_tokens": 8,
        "generations.max_new_tokens": 8,
        "training.max_steps": 1,
    }
    return read_recipe(None, told).model_copy(update={"also_train": ["dpo"]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    arguments = parser.parse_args()
    rows = []
    with TemporaryDirectory() as place:
        folder = Path(place)
        recipe = recipe_of(folder, arguments.model)
        adapters = [str(folder / "out" / name) for name in ("bapo", "dpo")]
        jobs: dict[str, Callable[[], Any]] = {
            "personalize --also-train dpo": lambda: personalize(recipe, folder / "out"),
            "the same again": lambda: personalize(recipe, folder / "out"),
            "evaluate both": lambda: evaluate(recipe, ["base", *adapters], records=folder / "records"),
            "evaluate both again": lambda: evaluate(recipe, ["base", *adapters], records=folder / "records"),
        }
        for title, job in jobs.items():
            with counting() as (calls, seconds):
                start = time.perf_counter()
                job()
                whole = time.perf_counter() - start
            cells = (f"{calls[name]} ({seconds[name]:.1f} s)" for name in COUNTED)
            rows.append((title, *cells, f"{whole:.1f}"))
    print(markdown_table(("", *COUNTED, "seconds in all"), rows))


if __name__ == "__main__":
    main()
