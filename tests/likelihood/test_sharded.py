"""Weights that FSDP2 divides over processes: the same loss and gradients, read between the hooks that gather them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bapo.likelihood import ResponseScorer
from tests.likelihood.sharded import WAYS
from tests.likelihood.test_scoring import gradients, groups, relative_gap, with_lora
from tests.tiny import tiny_model


@pytest.mark.slow
def test_sharded_weights_give_one_processs_loss_and_gradients(tmp_path: Path) -> None:
    script = Path(__file__).with_name("sharded.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {rank: torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)}
    for way in WAYS:
        for full in (False, True):  # an adapter, or all weights
            check(way, full, found)


def check(way: str, full: bool, found: dict) -> None:
    model = tiny_model("llama") if full else with_lora(tiny_model("llama"))
    logps = ResponseScorer(model)(groups()).summed()
    logps.square().sum().backward()
    expected = gradients(model)
    for rank in (0, 1):
        own = found[rank][way, full]
        assert own["processes"] == 2
        assert all(own["sharded"])
        assert own["fallback"] is None
        assert own["fast"] == 0
        for name in ("logps", "plain", "again"):
            torch.testing.assert_close(own[name], logps.detach(), rtol=1e-4, atol=1e-4)
        assert relative_gap(own["gradients"], expected) < 1e-4  # the mean of two that are the same
