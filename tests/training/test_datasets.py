"""Kinds of data sets: whatever holds the rows, the preferences are the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from bapo.errors import BapoError
from bapo.training.datasets import preferences_from_dataset, train_part

ROWS = [
    {"prompt": f"Question {i}.", "chosen": f" Yes, {i}.", "rejected": f" No, {i}.", "base": [f" Perhaps {i}.", " Hm."]}
    for i in range(3)
]
CHAT = [
    {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "chosen": [{"role": "assistant", "content": row["chosen"]}],
        "rejected": [{"role": "assistant", "content": row["rejected"]}],
    }
    for row in ROWS
]

KINDS = {
    "list": lambda rows: rows,
    "Dataset": Dataset.from_list,
    "numpy format": lambda rows: Dataset.from_list(rows).with_format("numpy"),
    "torch format": lambda rows: Dataset.from_list(rows).with_format("torch"),
    "pandas format": lambda rows: Dataset.from_list(rows).with_format("pandas"),
    "transformed": lambda rows: (
        Dataset.from_list(rows)
        .rename_column("chosen", "better")
        .with_transform(lambda batch: {"chosen" if k == "better" else k: v for k, v in batch.items()})
    ),
    "iterable": lambda rows: IterableDataset.from_generator(lambda: iter(rows)),
    "iterable in numpy format": lambda rows: Dataset.from_list(rows).to_iterable_dataset().with_format("numpy"),
    "numpy strings": lambda rows: [
        {name: np.str_(value) if isinstance(value, str) else value for name, value in row.items()} for row in rows
    ],
    "generator": lambda rows: (row for row in rows),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [ROWS, CHAT], ids=["plain", "chat"])
def test_every_kind_of_data_set_gives_the_same_preferences(kind: str, rows: list[dict[str, Any]]) -> None:
    expected, found = preferences_from_dataset(rows), preferences_from_dataset(KINDS[kind](rows))
    assert found.groups == expected.groups
    assert any(group.bases for group in found.groups) == (rows is ROWS)


def test_of_several_parts_the_one_named_train_is_trained_on() -> None:
    parts = DatasetDict({"train": Dataset.from_list(ROWS[:2]), "test": Dataset.from_list(ROWS[2:])})
    assert train_part(parts) is parts["train"]
    assert train_part(ROWS) is ROWS
    with pytest.raises(BapoError, match="has the parts train_prefs, test_prefs and none named train"):
        train_part(DatasetDict({"train_prefs": parts["train"], "test_prefs": parts["test"]}))


@pytest.mark.parametrize("base", [1, -1.5, True, " ", ["a", ""], ["a", 2], {"a": 1}])
def test_a_base_response_that_is_no_text_is_one_sentence(base: Any) -> None:
    with pytest.raises(BapoError, match=r"the evaluation data row 2: 'base' must be text"):
        preferences_from_dataset([ROWS[0], {**ROWS[1], "base": base}], "the evaluation data")


def test_data_that_cannot_be_read_are_one_sentence() -> None:
    def torn() -> Iterator[dict[str, Any]]:
        yield ROWS[0]
        raise OSError("connection lost")

    with pytest.raises(BapoError, match=r"The training data could not be read \(connection lost\)"):
        preferences_from_dataset(torn())
    with pytest.raises(BapoError, match="could not be read"):
        preferences_from_dataset(7)  # type: ignore[arg-type]
