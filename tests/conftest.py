from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for a hub is a broken test

# Shells let their background jobs ignore Ctrl-C, and so would the commands that tests start and send it to.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests come first, so that no process is left alone with them at the end."""
    longest = ("test_demo.py", "test_study.py", "test_kills.py", "test_estimate.py", "test_instruction_sets.py")
    items.sort(key=lambda item: longest.index(item.path.name) if item.path.name in longest else len(longest))


@pytest.fixture(scope="session")
def smollm2():
    """The real embedded model, in float32."""
    from bapo.models import load_model

    return load_model("smollm2", precision="float32", device="cpu")


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The evaluation data."""
    folder = os.environ.get("BAPO_DATA")
    if not folder:
        pytest.skip(
            "BAPO_DATA is not set: download DSP (GitHub Linear95/DSP) and P-Soups (data.zip linked from "
            "GitHub joeljang/RLPHF) into one folder and name it in BAPO_DATA"
        )
    return Path(folder)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
