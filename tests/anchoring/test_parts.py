"""What one user's data need of a store is a store of its own, and comes to others without what they have."""

from __future__ import annotations

from pathlib import Path

import pytest

from bapo.anchoring import AnchoredPreferences, AnchorStore, User, add_part, anchor_together, part_of
from bapo.files import make_folder
from bapo.journal import Journal
from bapo.models import LoadedModel
from bapo.preferences import Pair, Preferences, group_pairs
from tests.anchoring.test_anchor import loaded
from tests.anchoring.test_second_start import LENGTHS, SAMPLED, forbid


def of(user: str, prompts: range) -> Preferences:
    pairs = [Pair(f"question {at}", f"{user} says yes to {at}", f"no {at}") for at in prompts]
    return group_pairs(user, pairs)


ANN, BEN = of("ann", range(6)), of("ben", range(4, 10))


def anchored(folder: Path, data: Preferences, model: LoadedModel | None = None) -> AnchoredPreferences:
    model = model or loaded()
    store, user = AnchorStore(folder, model), User(None, data.name)
    return anchor_together((data,), model, store, generation=SAMPLED, lengths=LENGTHS, user=user)[0]


def records(folder: Path) -> dict[str, list[str]]:
    """Keys of the records of each journal."""
    return {
        path.name: [record.get("prompt", record.get("key")) for batch in Journal(path).read() for record in batch]
        for path in sorted(folder.glob("*.jsonl"))
    }


def test_a_part_is_enough_for_its_user_and_holds_nothing_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    ann, ben = anchored(whole, ANN), anchored(whole, BEN)
    parts = {"ann": part_of(whole, "ann"), "ben": part_of(whole, "ben")}
    for name, part in parts.items():
        add_part(make_folder(tmp_path / name), part)
    everything, of_ann, of_ben = records(whole), records(tmp_path / "ann"), records(tmp_path / "ben")
    for name, keys in everything.items():
        assert set(of_ann[name]) | set(of_ben[name]) == set(keys)
        assert set(of_ann[name]) < set(keys)
    (bases,) = (name for name in everything if name.startswith("base"))
    assert len(set(of_ann[bases]) & set(of_ben[bases])) == 2, "of the prompts that both have"
    model = loaded()
    forbid(monkeypatch, "bapo.anchoring.anchored.generate_batch", "bapo.likelihood.ResponseScorer.score")
    assert anchored(tmp_path / "ann", ANN, model).groups == ann.groups
    assert anchored(tmp_path / "ben", BEN, model).groups == ben.groups


def test_what_is_there_is_not_added_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, other = tmp_path / "whole", tmp_path / "other"
    ann, ben = anchored(whole, ANN), anchored(whole, BEN)
    for name in ("ann", "ben", "ann"):
        add_part(make_folder(other), part_of(whole, name))
    assert {name: sorted(keys) for name, keys in records(other).items()} == {
        name: sorted(keys) for name, keys in records(whole).items()
    }
    forbid(monkeypatch, "bapo.anchoring.anchored.generate_batch")
    assert (anchored(other, ANN).groups, anchored(other, BEN).groups) == (ann.groups, ben.groups)


def test_a_store_that_nobody_said_who_uses_is_copied_whole(tmp_path: Path) -> None:
    anchored(tmp_path / "whole", ANN)
    part = part_of(tmp_path / "whole", "somebody")
    assert {name for name in part if name.endswith(".jsonl")} == set(records(tmp_path / "whole"))
    assert all(part[name] == (tmp_path / "whole" / name).read_bytes() for name in part)


def test_a_user_who_finishes_meanwhile_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tmp_path / "whole"
    anchored(whole, ANN), anchored(whole, BEN)
    expected = part_of(whole, "ann")
    begun = whole / "uses/0000000000000000.begun.json"
    begun.symlink_to("gone")  # it is listed, and is not there when it is read
    assert part_of(whole, "ann") == expected
