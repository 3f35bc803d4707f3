"""Which prompts are of other topics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bapo.jobs import read_recipe
from bapo.jobs.movement import HELD_OUT_TOPIC, OTHER_TOPICS, MovementPlan, _Work
from bapo.preferences import prompt_text


def written(path: Path, prompts: range) -> str:
    rows = [{"prompt": f"ask {i}", "chosen": "yes", "rejected": "no"} for i in prompts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(("others", "left"), [(range(4, 9), {"ask 6", "ask 7", "ask 8"}), (range(6), None)])
def test_prompts_of_the_preference_itself_are_none(others: range, left: set[str] | None, tmp_path: Path) -> None:
    told = {"preferences.source": written(tmp_path / "mine.jsonl", range(6)), "preferences.held_out": 2}
    plan = MovementPlan(other_topics=written(tmp_path / "other.jsonl", others))
    said: list[Any] = []
    work = _Work(read_recipe(None, told), plan, tmp_path, None, lambda *told: said.append(told))  # type: ignore[arg-type]
    assert len(work.topics[HELD_OUT_TOPIC].groups) == 2
    if left is None:
        assert list(work.topics) == [HELD_OUT_TOPIC]
        assert "no prompts of other topics" in said[-1][0]
    else:
        assert {prompt_text(group.prompt) for group in work.topics[OTHER_TOPICS].groups} == left
