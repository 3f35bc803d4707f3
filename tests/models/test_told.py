"""What takes minutes with a large model says how far it is: converting a GGUF file and hashing weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from bapo.models import load_model, model_fingerprint
from bapo.progress import watched_by
from tests.tiny import tiny_model, write_tiny_gguf

TENSORS = 12
"""Of the file."""


class Told:
    """What was told, by stage."""

    def __init__(self) -> None:
        self.stages: dict[str, list[tuple[int, int]]] = {}

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        self.stages.setdefault(stage, []).append((done, total))


def test_converting_says_each_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAPO_CACHE", str(tmp_path / "cache"))
    write_tiny_gguf(tmp_path / "m.gguf")
    told = Told()
    with watched_by(told):
        load_model(str(tmp_path / "m.gguf"), precision="float32", device="cpu")
    assert told.stages["converting m.gguf"][1:] == [(done, TENSORS) for done in range(TENSORS + 1)]
    again = Told()
    with watched_by(again):
        load_model(str(tmp_path / "m.gguf"), precision="float32", device="cpu")
    assert "converting m.gguf" not in again.stages


def test_hashing_says_how_many_megabytes_are_done() -> None:
    model, told = tiny_model("llama", hidden_size=1024, num_hidden_layers=1), Told()
    with watched_by(told):
        model_fingerprint(model)
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    ((stage, moments),) = told.stages.items()
    assert stage == "hashing the model, MB"
    assert len(moments) == len(model.state_dict()) + 1
    assert moments[0] == (0, size // 10**6)
    assert moments[-1] == (size // 10**6, size // 10**6)
    assert moments == sorted(moments)
