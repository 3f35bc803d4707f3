"""Records are read without torch, quickly, and refused by a sentence where they are damaged or of another version."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from bapo.errors import BapoError
from bapo.files import checksum, checksum_of_file, write_record
from bapo.results import (
    COMPARISON,
    Answer,
    AnswerStore,
    AskedBenchmark,
    BenchmarkAnswers,
    Findings,
    Kind,
    Movement,
    PromptScores,
    Provenance,
    Record,
    Run,
    Sample,
    benchmark_score,
    bootstrap_share,
    changed_rows,
    compare_models,
    day_of,
    from_rows,
    identity_of,
    question_rows,
    read_run,
    record_of,
    report,
    to_rows,
)
from bapo.results.comparison import Comparison
from bapo.results.runs import VERSION, write_run

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
    own = 1 / (1 + math.exp(-1))
    assert items[0] == {
        "model": "mine",
        "benchmark": "piqa",
        "outcome": "lost",
        "task": "t",
        "document": 1,
        "question": "q 1",
        "choices": ["a", "b"],
        "right": 1,
        "before": pytest.approx([own, 1 - own]),
        "after": pytest.approx([own, 1 - own]),
    }


def test_scores_of_prompts_are_the_same_out_of_parquet(tmp_path: Path) -> None:
    assert from_rows(to_rows(PROMPTS)) == PROMPTS
    kind = Kind("numbers", 1, Sample)
    written = kind.write(tmp_path / "n.json", Sample(1, 2), identity="i", made_from=MADE_FROM, items=to_rows(PROMPTS))
    assert from_rows(kind.read(written.path).items()) == PROMPTS


def test_what_is_not_what_was_written_is_one_sentence(record: Record[Comparison], tmp_path: Path) -> None:
    path, text = record.path, record.path.read_text()
    path.write_text(text.replace('"gained": 1', '"gained": 2'))
    with pytest.raises(BapoError, match=r"is damaged, or of another version.*delete it, and it is made again"):
        COMPARISON.read(path)
    content = json.loads(text)
    del content["checksum"]
    write_record(path, {**content, "version": 0})
    with pytest.raises(BapoError, match="in version 0, and this bapo reads version 2: delete it"):
        COMPARISON.find(path, "i")
    with pytest.raises(BapoError, match="holds 'comparison of models', not numbers"):
        Kind("numbers", 1, Sample).read(path)
    write_record(path, {**content, "content": {**content["content"], "models": 3}})
    with pytest.raises(BapoError, match=r"is damaged \(.*: delete it, and it is made again"):
        COMPARISON.read(path)
    write_record(path, {})
    with pytest.raises(BapoError, match="holds something else, not comparison of models"):
        COMPARISON.read(path)
    with pytest.raises(BapoError, match=r"There is no file .* with comparison of models"):
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


def test_a_record_without_items_has_no_file_of_them(tmp_path: Path) -> None:
    record = Kind("numbers", 1, Sample).write(tmp_path / "a.json", Sample(1, 0), identity="i", made_from=MADE_FROM)
    assert record.items() == []
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_items_that_are_no_parquet_are_one_sentence(record: Record[Comparison]) -> None:
    record.path.with_suffix(".parquet").write_bytes(b"words")
    with pytest.raises(BapoError, match=r"one.parquet cannot be read \(.*: delete it, and it is made again"):
        replace(record, _items=checksum(b"words")).items()


def test_an_identity_is_of_what_is_named_and_not_of_its_order() -> None:
    assert identity_of(a=1, b=Path("x")) == identity_of(b="x", a=1)
    assert len({identity_of(a=1, b=2), identity_of(a=2, b=1), identity_of(a=1), identity_of(a="1")}) == 4


# ---- comparisons ----------------------------------------------------------------------------------------------------

RIGHT = tuple(PromptScores(((1.0, 0.0),), 0.0, 4, 1) for _ in range(40))
WRONG = tuple(replace(prompt, pairs=((0.0, 1.0),)) for prompt in RIGHT)


def test_a_benchmark_is_scored_by_category_too() -> None:
    both = ((1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (1.0, 0.0))  # right as it is, and by its length
    answers = tuple(
        Answer("t", i, "ab"[i % 2], f"q {i}", ("a", "b"), (-1.0, -2.0), 0, *own) for i, own in enumerate(both)
    )
    score = benchmark_score(BenchmarkAnswers("hhh", answers, 50, "alignment", "HHH"), seconds=2.5)
    assert (score.accuracy.value, score.acc, score.items, score.questions, score.seconds) == (0.5, 0.75, 4, 50, 2.5)
    assert benchmark_score(BenchmarkAnswers("hhh", answers, 50)).seconds == 0.0
    parts = {name: (part.accuracy.value, part.acc, part.items) for name, part in score.categories.items()}
    assert parts == {"a": (1.0, 0.5, 2), "b": (0.0, 1.0, 2)}
    for part in score.categories.values():
        assert (part.kind, part.title, part.questions, part.categories) == ("alignment", "HHH", None, {})


def test_a_comparison_keeps_what_is_known_of_every_model() -> None:
    moved = Movement("mine", "base", {})
    first = replace(findings("base", [1, 0], (), None), system="Be brief.", seconds={})
    second = replace(findings("mine", [1, 0], PROMPTS, "out/mine"), movement=moved)
    found = compare_models([first, second], source="s", sample=Sample(2, 0), budget=3.0, least_accuracy=0.6)
    assert (found.against, found.source, found.sample, found.budget) == ("base", "s", Sample(2, 0), 3.0)
    assert (found.least_accuracy, found.spread) == (0.6, None)
    base, mine = found.models.values()
    assert (base.adapter, base.system, base.preferences, base.movement) == (None, "Be brief.", None, None)
    assert (mine.adapter, mine.system, mine.preferences, mine.movement) == ("out/mine", None, report(PROMPTS), moved)
    assert (base.benchmarks["piqa"].seconds, mine.benchmarks["piqa"].seconds) == (0.0, 1.5)


def test_a_change_of_the_right_choice_is_told_beside_that_of_answers() -> None:
    def sure(name: str, share: float, prompts: tuple[PromptScores, ...]) -> Findings:
        logps = (math.log(share), math.log(1 - share))
        answers = tuple(Answer("t", i, "", "q", ("a", "b"), logps, 0, 1.0, None) for i in range(4))
        return Findings(name, benchmarks={"piqa": BenchmarkAnswers("piqa", answers, 4)}, prompts=prompts)

    change = compare_models([sure("one", 0.9, PROMPTS), sure("two", 0.6, RIGHT[:4])]).changes["two"]
    of_piqa = change.benchmarks["piqa"]
    assert of_piqa.right_choice is not None
    assert of_piqa.tempered is not None
    assert of_piqa.right_choice.value == pytest.approx(math.log(0.6 / 0.9))
    assert of_piqa.tempered.value < 0


def test_preferences_are_compared_where_both_were_scored() -> None:
    models = [Findings("one", "a", prompts=WRONG), Findings("two", "b", prompts=RIGHT), Findings("three", "c")]
    changes = compare_models(models).changes
    assert changes["two"].preferences is not None
    assert changes["two"].preferences.reward_accuracy.value == 100.0
    assert changes["two"].forgetting is None
    assert changes["three"].preferences is None


@pytest.mark.parametrize(("least", "right", "wrong"), [(None, None, None), (0.0, "no", "no"), (0.6, "no", "yes")])
def test_an_adapter_has_learned_what_is_asked_for(least: float | None, right: str | None, wrong: str | None) -> None:
    def learned(prompts: tuple[PromptScores, ...], adapter: str | None = "out") -> Comparison:
        own = Findings("own", adapter, preferences=report(prompts), prompts=prompts)
        return compare_models([Findings("base"), own], least_accuracy=least)

    for prompts, verdict in ((RIGHT, right), (WRONG, wrong)):
        assert (learned(prompts).changes["own"].learned, learned(prompts).gate) == (verdict, verdict)
        assert (learned(prompts, None).changes["own"].learned, learned(prompts, None).gate) == (None, None)


def test_the_gate_is_the_worst_of_all_adapters_and_their_scores_have_a_spread() -> None:
    """Of eight questions one adapter loses none, and the other two: 0 and -25 points, 25 / sqrt(2) apart."""
    base = findings("base", [1] * 8, (), None)
    same = findings("same", [1] * 8, RIGHT, "out/same")
    less = findings("less", [1] * 6 + [0] * 2, RIGHT, "out/less")
    assert compare_models([base, same]).gate == "no"
    found = compare_models([base, same, less])
    assert found.gate == "unclear"
    assert found.spread == pytest.approx(25 / math.sqrt(2))
    assert compare_models([base, same, less], budget=90.0).gate == "no"
    assert compare_models([base, replace(less, adapter=None)]).gate is None
    assert compare_models([base, same, less], budget=90.0).changes["less"].benchmarks["piqa"].verdict == "kept"
    wrong = replace(same, name="wrong", prompts=WRONG, preferences=report(WRONG))
    assert compare_models([base, less, wrong], least_accuracy=0.6).gate == "yes"


# ---- answers --------------------------------------------------------------------------------------------------------


def answers_of(task: str, documents: Sequence[int], acc_norm: float | None = None) -> tuple[Answer, ...]:
    return tuple(Answer(task, i, "c", f"q {i}", ("a", "bc"), (-1.0, -1.5), 1, 0.0, acc_norm) for i in documents)


def test_answers_are_kept_as_they_were_with_where_they_were_made(tmp_path: Path) -> None:
    store = AnswerStore.of(tmp_path, "m" * 64, "t" * 64, "arc")
    assert store.folder == tmp_path / ("m" * 16) / f"arc-{'t' * 16}"
    assert store.read() == {}
    store.add((), {"threads": 2})
    assert not store.folder.exists()
    first, second = answers_of("arc", (3, 1)), answers_of("arc", (2,), acc_norm=1.0)
    store.add(first, {"threads": 2})
    (path,) = store.folder.iterdir()
    assert json.loads(pq.read_schema(path).metadata[b"made_on"]) == {"threads": 2}
    store.add(second, {"threads": 1})
    schemas = [pq.read_schema(own).remove_metadata() for own in store.folder.iterdir()]
    assert schemas[0] == schemas[1], "with and without a normalized accuracy"
    assert AnswerStore(store.folder).read() == {answer.document: answer for answer in (*first, *second)}


def test_answers_that_are_not_what_was_kept_are_one_sentence(tmp_path: Path) -> None:
    AnswerStore(tmp_path).add(answers_of("arc", (1,)), {})
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BapoError, match=r"in .*answers-.* are damaged: delete that file"):
        AnswerStore(tmp_path).read()
    path.unlink()
    path = tmp_path / f"answers-{checksum(b'words')}.parquet"
    path.write_bytes(b"words")
    with pytest.raises(BapoError, match=r"in .*answers-.* cannot be read \(.*: delete that file, and they are asked"):
        AnswerStore(tmp_path).read()


def test_answers_to_a_benchmark_are_those_of_its_tasks_in_order(tmp_path: Path) -> None:
    for task, documents in (("two", (5, 4)), ("one", (1, 9, 0))):
        AnswerStore(tmp_path / task).add(answers_of(task, documents), {})
    stores = {task: str(tmp_path / task) for task in ("two", "one")}
    asked = AskedBenchmark("m", "arc", "ARC", "alignment", 50, 1.0, stores, {"two": (5, 4), "one": (9, 1)})
    found = asked.read()
    assert found == BenchmarkAnswers(
        "arc", (*answers_of("one", (1, 9)), *answers_of("two", (4, 5))), 50, "alignment", "ARC"
    )
    assert replace(asked, documents={"two": (5, 4), "one": (9, 2)}).read() is None


def test_a_benchmark_without_categories_has_none() -> None:
    answers = answers_of("arc", (1, 2))
    assert BenchmarkAnswers("arc", answers, 2).by_category() == {"c": answers}
    assert BenchmarkAnswers("arc", tuple(replace(own, category="") for own in answers), 2).by_category() == {}


def test_rows_of_questions_hold_numbers_and_no_text() -> None:
    (row,) = question_rows(BenchmarkAnswers("arc", answers_of("arc_easy", (7,), acc_norm=1.0), 1))
    by_length = [math.exp(-1.0), math.exp(-1.5 / 2)]
    assert row == {
        "benchmark": "arc",
        "task": "arc_easy",
        "document": 7,
        "category": "c",
        "right": 1,
        "logps": [-1.0, -1.5],
        "probabilities": pytest.approx([value / sum(by_length) for value in by_length]),
        "score": 1.0,
    }


# ---- runs -----------------------------------------------------------------------------------------------------------

LOGGED = {"step": 1.0, "loss": 0.5, "pairs_per_second": 2.0}
TRAINED = {"objective": "bapo", "log": [LOGGED], "recipe": {"model": {"name": "m"}}, "reference": "r"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a finished run."""
    (tmp_path / "adapter.bin").write_bytes(b"weights")
    write_run(tmp_path, TRAINED, {"adapter.bin": checksum_of_file(tmp_path / "adapter.bin")})
    return tmp_path


def test_a_run_is_finished_while_its_weights_are_those_that_were_written(run: Path) -> None:
    weights = {"adapter.bin": checksum(b"weights")}
    assert read_run(run) == Run("bapo", run, (LOGGED,), weights)
    assert record_of(run) == record_of(str(run)) == {"kind": "run", "version": VERSION, **TRAINED, "weights": weights}
    (run / "adapter.bin").write_bytes(b"others")
    with pytest.raises(BapoError, match=r"adapter.bin is not what was trained.*: delete the folder and train again"):
        read_run(run)
    with pytest.raises(BapoError, match=r"holds no finished run \(no run.json\)"):
        read_run(run / "nowhere")


def test_a_run_whose_record_was_changed_is_one_sentence(run: Path) -> None:
    path = run / "run.json"
    path.write_text(path.read_text().replace("0.5", "0.4"))
    with pytest.raises(BapoError, match="damaged, or of another version of bapo: delete the folder and train again"):
        read_run(run)
    with pytest.raises(BapoError, match="damaged, or of another version of bapo: train it again, or delete that file"):
        record_of(run)


@pytest.mark.parametrize(("version", "said"), [({}, 1), ({"version": 1}, 1), ({"version": VERSION + 1}, VERSION + 1)])
def test_a_run_of_another_version_is_refused(version: dict[str, int], said: int, run: Path) -> None:
    write_record(run / "run.json", {**TRAINED, **version, "weights": {}})
    for read in (read_run, record_of):
        with pytest.raises(BapoError, match=rf"run.json is a run in version {said}, and .* version {VERSION}: delete"):
            read(run)


def test_of_adapters_that_were_made_elsewhere_nothing_is_known(tmp_path: Path) -> None:
    assert record_of(None) is None
    assert record_of(tmp_path) is None
    unnamed = {**TRAINED, "version": VERSION, "recipe": {"model": {}}}
    unreferenced = {key: value for key, value in TRAINED.items() if key != "reference"}
    for text in ("{", "[]", "{}", '{"recipe": {"model": 3}}', *map(json.dumps, (unnamed, unreferenced))):
        (tmp_path / "run.json").write_text(text)
        assert record_of(tmp_path) is None


def test_a_record_that_was_written_without_a_checksum_is_taken_as_it_is(tmp_path: Path) -> None:
    written: dict[str, Any] = {**TRAINED, "version": VERSION}
    (tmp_path / "run.json").write_text(json.dumps(written))
    assert record_of(tmp_path) == written


def test_the_day_of_a_run_is_that_of_its_record_or_of_its_start(tmp_path: Path) -> None:
    assert day_of(tmp_path) is None
    (tmp_path / "started.json").write_text('{"today": "2024-05-06"}')
    for text, day in (('{"today": "2024-05-07"}', 7), ("{", 6), ("{}", 6), ('{"today": null}', 6)):
        (tmp_path / "run.json").write_text(text)
        assert day_of(tmp_path) == datetime(2024, 5, day)
    (tmp_path / "started.json").write_text("[]")
    assert day_of(tmp_path) is None
