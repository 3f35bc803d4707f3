"""Readers of data and of what people write: preferences, recipes, study files, questions, rows for the trainer."""

from __future__ import annotations

import io
import json
import math
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from bapo.errors import BapoError
from bapo.preferences import Preferences, preference_in_words, read_preferences, response_text, summarize
from bapo.settings import RANGES
from tests.fuzz.target import Target

ROWS: list[dict[str, Any]] = [
    {"prompt": "What is 0?", "chosen": "It is 0.", "rejected": "Well, perhaps é 漢."},
    {"prompt": "What is 1?", "chosen": "It is 1.", "rejected": "No idea.", "base": "1"},
    {
        "prompt": [{"role": "user", "content": "q"}],
        "chosen": [{"role": "assistant", "content": "a"}],
        "rejected": [{"role": "assistant", "content": "b"}],
    },
    {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
    {"prompt": "x", "chosen": "y", "rejected": "z", "system": "Be brief.", "tools": [{"name": "f", "parameters": {}}]},
]
FLAT = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in ROWS[:2]] * 3


def _lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def objection_to(preferences: Preferences) -> str | None:
    """What is wrong with preferences that were taken."""
    json.dumps(summarize(preferences).to_dict(), ensure_ascii=False).encode()
    for group in preferences.groups:
        texts = [response_text(response) for response in group.responses]
        if not group.pairs or not all(text.strip() for text in texts) or not all(map(str.strip, group.bases)):
            return "a pair without text is taken"
    preferences.fingerprint()
    return None


def _preferences(name: str, file: str, content: bytes, source: str = "{folder}/{file}", **more: Any) -> Target:
    def read(folder: Path) -> str | None:
        return objection_to(read_preferences(source.format(folder=folder, file=file), data_folder=folder))

    return Target(name, {file: content}, read, **more)


def _parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    stored = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(FLAT), stored)
    return stored.getvalue()


def _saved() -> Target:
    from datasets import Dataset

    with tempfile.TemporaryDirectory() as folder:
        Dataset.from_list(FLAT).save_to_disk(folder)
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}

    def read(folder: Path) -> str | None:
        return objection_to(read_preferences(str(folder)))

    return Target("saved", files, read, slow=True)


def _csv() -> bytes:
    return b'prompt,chosen,rejected\n"What, is 0?",It is 0.,"no\nidea"\nq,"a ""b""",c\n' * 1


DSP = [
    {
        "query": "q",
        "responses": {name: f"r {name}" for name in ("academy", "business", "entertainment", "literature", "normal")},
    }
] * 2
PSOUPS = [
    {
        "user_input": f"q {preference_in_words('psoups:P1A')}",
        "completion_a": "a",
        "completion_b": "b",
    }
] * 2
SPACES = [
    json.dumps({"prompt": text, "chosen": f"{text}a", "rejected": f"{text}b"}).encode()
    for text in (" " * 200_000, "\n" * 200_000, "} " * 50_000)
]
DEEP = [
    b'{"prompt": "a", "chosen": "b", "rejected": "c", "%s": %s}' % (key, value)
    for key in (b"tools", b"base", b"x")
    for value in (b"[" * 600 + b"]" * 600, b'"%s"' % (b"[" * 5000), b"[" * 600 + rb'"\ud83d"' + b"]" * 600)
]
LAUGHS = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (97 + n, 97 + n, b",".join([b"*%c" % (96 + n)] * 9)) for n in range(1, 25)
)
MERGES = b"a: &a {k0: 1}\n" + b"".join(
    b"b%d: &b%d {<<: [*%s, *%s], k%d: 1}\n" % (n, n, *([b"a", b"a"] if n == 1 else [b"b%d" % (n - 1)] * 2), n)
    for n in range(1, 40)
)


def _objection_to_numbers(section: Any) -> str | None:
    """Numbers of a recipe that are not in their documented range."""
    for name, value in section:
        if hasattr(value, "model_fields"):
            objection = _objection_to_numbers(value)
            if objection:
                return objection
        values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
        for number in values:
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            if not math.isfinite(number) or abs(number) > 2**32:
                return f"{name} is {number!r} and accepted"
            if name in RANGES and RANGES[name].number(number) != number:
                return f"{name} is {number!r}, outside of its range, and accepted"
    return None


def _recipe(folder: Path) -> str | None:
    from bapo.jobs.recipe import commented, read_recipe

    recipe = read_recipe(str(folder / "mine.yaml"))
    commented(recipe).encode()
    return _objection_to_numbers(recipe)


def _set(folder: Path) -> str | None:
    from bapo.cli.options import recipe_from

    lines = (
        (folder / "set.txt").read_bytes().decode("utf-8", "surrogateescape").split("\n")
        if (folder / "set.txt").is_file()
        else []
    )
    return _objection_to_numbers(recipe_from(None, [line for line in lines if line]))


def _study(folder: Path) -> str | None:
    from bapo.study.grid import open_study

    study = open_study(folder / "mine.yaml")
    objections = [_objection_to_numbers(cell.recipe) for cell in study.cells.values()]
    return next(filter(None, [*objections, _objection_to_numbers(study.evaluation)]), None)


STUDY = b"""about: x
recipe: {model: {name: smollm2}, training: {max_steps: 3}}
models: {small: {model.name: smollm2, lora.rank: 8}}
methods: {weak: {training.objective: bapo, training.anchor_strength: 0.5}}
grids:
  main:
    {models: [small], preferences: ["starter:concise"], methods: [weak], seeds: [0, 1], vary: {lora.rank: [1, 2]}}
evaluation: {benchmarks: [piqa], limit: 10, few_shot: [1], divergence: 2}
"""
ENORMOUS = (
    b"grids: {a: {preferences: [x], methods: [dpo], seeds: &s [0,1,2,3,4,5,6,7,8,9], vary: {"
    + b",".join(b"training.k%d: *s" % n for n in range(9))
    + b"}}}\n"
)


@cache
def _recipe_text() -> bytes:
    from bapo.jobs.recipe import Recipe, commented

    return commented(Recipe()).encode()


def _questions() -> Target:
    from bapo.evaluation.local_data import hub_rows
    from bapo.evaluation.registry import BENCHMARKS

    chosen = {"piqa": "validation", "hhh": "test", "mmlu": "test"}
    known = {name: BENCHMARKS[name] for name in chosen if name in BENCHMARKS}
    files: dict[str, bytes] = {}
    for benchmark in known.values():
        row = dict.fromkeys(benchmark.keys, "text") | {"subject": "anatomy", "context": "c"}
        if "choices" in benchmark.keys:
            row |= {"choices": [f"c{n}" for n in range(benchmark.choices or 4)], "answer": 1}  # type: ignore[dict-item]
        for file in benchmark.files.values():
            files[file] = _lines([row, row])

    def read(folder: Path) -> str | None:
        for name, benchmark in known.items():
            for split in benchmark.files:
                rows = hub_rows(name, split, folder)
                json.dumps(rows, ensure_ascii=False).encode()
        return None

    return Target("questions", files, read)


def _trl(folder: Path) -> str | None:
    from bapo.training.datasets import preferences_from_dataset, train_part

    path = folder / "rows.json"
    text = path.read_bytes() if path.is_file() else b"[]"
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError):
        raise BapoError("The program that calls cannot read its rows.") from None
    return objection_to(preferences_from_dataset(train_part(rows)))


MAKERS: dict[str, Callable[[], Target]] = {
    "jsonl": lambda: _preferences("jsonl", "mine.jsonl", _lines(ROWS), hostile=(*SPACES, *DEEP)),
    "json": lambda: _preferences("json", "mine.json", json.dumps(ROWS).encode(), hostile=(b"[" + SPACES[0] + b"]",)),
    "csv": lambda: _preferences("csv", "mine.csv", _csv()),
    "parquet": lambda: _preferences("parquet", "mine.parquet", _parquet(), slow=True),
    "saved": _saved,
    "dsp": lambda: _preferences("dsp", "dsp.train.json", json.dumps(DSP).encode(), "dsp:academy"),
    "psoups": lambda: _preferences(
        "psoups",
        "P1A.json",
        json.dumps(PSOUPS).encode(),
        "psoups:P1A",
        hostile=(
            json.dumps(
                [{**PSOUPS[0], "user_input": " " * 200_000 + "x"}, {**PSOUPS[0], "user_input": "Generate " * 50_000}]
            ).encode(),
        ),
    ),
    "user": lambda: _preferences(
        "user", "mine.jsonl", _lines([{**row, "user": "anna"} for row in ROWS]), "user:{folder}/{file}#anna"
    ),
    "recipe": lambda: Target(
        "recipe", {"mine.yaml": _recipe_text()}, _recipe, hostile=(LAUGHS, MERGES, b"training: {" + b"a: {" * 5_000)
    ),
    "set": lambda: Target(
        "set",
        {"set.txt": b"lora.rank=8\ntraining.beta=0.2\ntraining.objective_settings={penalty: 5}\n"},
        _set,
        hostile=(LAUGHS.replace(b"\n", b" "), b"lora.rank=!!timestamp x", b"training.seed=2147483648"),
    ),
    "study": lambda: Target("study", {"mine.yaml": STUDY}, _study, hostile=(LAUGHS, MERGES, ENORMOUS)),
    "questions": _questions,
    "rows": lambda: Target(
        "rows", {"rows.json": json.dumps(ROWS).encode()}, _trl, hostile=tuple(b"[%s]" % row for row in DEEP)
    ),
}
