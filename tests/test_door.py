"""The main job from Python, as the README has it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import tiny_model, tiny_tokenizer


def test_the_door_is_open_in_whatever_order_it_is_gone_through() -> None:
    for first in ("pass", "import bapo.jobs.recipe", "from bapo.jobs import stages"):
        code = f"{first}; from bapo import Recipe, evaluate, personalize; assert callable(personalize); Recipe()"
        subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    code = "import sys, bapo; from bapo import BapoError; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_readmes_lines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bapo import Recipe, evaluate, personalize

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BAPO_CACHE", str(tmp_path / "cache"))
    tiny_model("llama").save_pretrained("model")
    tiny_tokenizer().save_pretrained("model")
    rows = [
        {"prompt": f"q {i}", "chosen": f"good {i}", "rejected": f"bad {i * i}"} for i in range(20)
    ]  # four are held out; one has no interval
    Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = {"model": {"name": "model"}, "anchoring": {"base_max_new_tokens": 4}, "training": {"max_steps": 1}}
    recipe = Recipe(preferences={"source": "mine.jsonl"}, also_train=["dpo"], **small)
    found = personalize(recipe, "my-model").content
    assert list(found.adapters) == ["bapo", "dpo"]
    compared = evaluate(recipe, ["base", "my-model/bapo", "my-model/dpo"]).content
    assert compared.models["my-model/dpo"].preferences == found.held_out["dpo"]
