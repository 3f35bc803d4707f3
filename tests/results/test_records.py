"""Records are read without torch, quickly, and refused by a sentence where they are damaged or of another version."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bapo.errors import BapoError
from bapo.files import write_record
from bapo.results import (
    COMPARISON,
    Answer,
    BenchmarkAnswers,
    Findings,
    Kind,
    PromptScores,
    Provenance,
    Record,
    Sample,
    bootstrap_share,
    changed_rows,
    compare_models,
    from_rows,
    report,
    to_rows,
)
from bapo.results.comparison import Comparison

MADE_FROM = Provenance("model", "f" * 64, data={"preferences": "abc"}, made_on={"threads": 2})


def findings(name: str, scores: list[float], prompts: tuple[PromptScores, ...], adapter: str | None) -> Findings:
    answers = tuple(
        Answer("t", i, "", f"q {i}", ("a", "b"), (-1.0, -2.0), 0 if s else 1, s, None) for i, s in enumerate(scores)
    )
    benchmarks = {"piqa": BenchmarkAnswers("piqa", answers, 100, "knowledge", "PIQA")}
    return Findings(name, adapter, None, benchmarks, report(prompts) if prompts else None, prompts, {"piqa": 1.5})


PROMPTS = tuple(PromptScores(((1.0 + i, 0.0), (0.5, 0.75)), -2.0, 4, 1) for i in range(4))


@pytest.fixture
def record(tmp_path: Path) -> Record[Comparison]:
    models = [findings("base", [1, 1, 0, 1], (), None), findings("mine", [1, 0, 1, 1], PROMPTS, "out/mine")]
    comparison = compare_models(models, source="s", sample=Sample(4, 0), least_accuracy=0.6)
    return COMPARISON.write(
        tmp_path / "one.json", comparison, identity="i", made_from=MADE_FROM, items=changed_rows(models)
    )


def test_a_comparison_is_read_as_it_was_written(record: Record[Comparison]) -> None:
    again = COMPARISON.read(record.path)
    assert again == record
    change = again.content.changes["mine"]
    assert (change.benchmarks["piqa"].gained, change.benchmarks["piqa"].lost) == (1, 1)
    assert again.content.gate == "unclear"
    assert again.content.models["mine"].benchmarks["piqa"].accuracy.value == 0.75
    items = again.items()
    assert [(item["document"], item["outcome"], item["right"]) for item in items] == [(1, "lost", 1), (2, "gained", 0)]


def test_scores_of_prompts_are_the_same_out_of_parquet(tmp_path: Path) -> None:
    assert from_rows(to_rows(PROMPTS)) == PROMPTS
    kind = Kind("numbers", 1, Sample)
    written = kind.write(tmp_path / "n.json", Sample(1, 2), identity="i", made_from=MADE_FROM, items=to_rows(PROMPTS))
    assert from_rows(kind.read(written.path).items()) == PROMPTS


def test_what_is_not_what_was_written_is_one_sentence(record: Record[Comparison], tmp_path: Path) -> None:
    path, text = record.path, record.path.read_text()
    path.write_text(text.replace('"gained": 1', '"gained": 2'))
    with pytest.raises(BapoError, match="is damaged, or of another version"):
        COMPARISON.read(path)
    content = json.loads(text)
    del content["checksum"]
    write_record(path, {**content, "version": 0})
    with pytest.raises(BapoError, match="in version 0, and this bapo reads version 2: delete it"):
        COMPARISON.find(path, "i")
    with pytest.raises(BapoError, match="not numbers"):
        Kind("numbers", 1, Sample).read(path)
    write_record(path, {**content, "content": {**content["content"], "models": 3}})
    with pytest.raises(BapoError, match="is damaged"):
        COMPARISON.read(path)
    with pytest.raises(BapoError, match="There is no comparison"):
        COMPARISON.read(tmp_path / "nowhere.json")


def test_work_is_done_while_its_record_and_its_items_are_there(record: Record[Comparison]) -> None:
    assert COMPARISON.find(record.path, "i") == record
    assert COMPARISON.find(record.path, "another") is None
    items = record.path.with_suffix(".parquet")
    whole = items.read_bytes()
    items.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    with pytest.raises(BapoError, match="is damaged"):
        COMPARISON.read(record.path).items()
    items.unlink()
    assert COMPARISON.find(record.path, "i") is None


def test_a_record_is_read_without_torch_pyarrow_and_lm_eval(record: Record[Comparison]) -> None:
    code = f"""
import sys
from pathlib import Path
from bapo.results import COMPARISON
verdict = COMPARISON.read(Path({str(record.path)!r})).content.changes["mine"].benchmarks["piqa"].verdict
assert verdict == "cannot tell"
heavy = {{"torch", "transformers", "peft", "lm_eval", "pyarrow", "scipy", "datasets"}} & set(sys.modules)
sys.exit(f"imported {{heavy}}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_where_all_agree_the_interval_is_no_point() -> None:
    """Four of four: exactly (Clopper and Pearson) from 40 %, and by resampling with half a unit of each from 50 %."""
    assert bootstrap_share([1.0] * 4, [1.0] * 4).low == 0.5
    assert bootstrap_share([0.0] * 4, [1.0] * 4).high == 0.5
    many = bootstrap_share([1.0] * 400, [1.0] * 400)
    assert 0.99 <= many.low < 1.0 == many.value == many.high
    assert bootstrap_share([0.5], [1.0], same=True).low == 0.5


def test_a_policy_that_is_the_reference_has_an_accuracy_of_exactly_a_half() -> None:
    same = report([replace(prompt, pairs=((0.0, 0.0),), drift=0.0) for prompt in PROMPTS])
    assert (same.reward_accuracy.low, same.reward_accuracy.high) == (0.5, 0.5)
    one = report(PROMPTS[:1])
    assert one.margin.low != one.margin.low, "of other prompts one says nothing"


def test_items_of_several_kinds_keep_what_each_has(tmp_path: Path) -> None:
    rows = [{"prompt": {"drift": 1.5}}, {"question": {"logps": [0.25]}}, {"prompt": {"drift": 2.5}, "more": "x"}]
    numbers = Kind("numbers", 1, Sample)
    record = numbers.write(tmp_path / "a.json", Sample(1, 0), identity="i", made_from=MADE_FROM, items=rows)
    kept = numbers.read(record.path).items()
    assert [{name: value for name, value in row.items() if value is not None} for row in kept] == rows
