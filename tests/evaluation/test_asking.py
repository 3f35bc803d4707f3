"""Answers are kept question by question: nothing is asked twice, and a stopped evaluation goes on."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from bapo.errors import BapoError
from bapo.evaluation import BenchmarkPlan, EvaluatedModel, asking
from bapo.models import ChatFormat, LoadedModel, machine
from bapo.results import Answer, AnswerStore, BenchmarkAnswers
from tests.evaluation.questions import write_questions
from tests.tiny import CHATML, tiny_model, tiny_tokenizer


def asked(evaluated: EvaluatedModel, plan: BenchmarkPlan, **more: Any) -> BenchmarkAnswers:
    """The answers to ARC, as they are read from their store."""
    answers = evaluated.ask("arc_challenge", plan, **more).read()
    assert answers is not None
    return answers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(tmp_path_factory.mktemp("questions"))


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return LoadedModel("tiny", tiny_model("llama"), ChatFormat(tiny_tokenizer()), "float32")


def counted(evaluated: EvaluatedModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many choices the model was asked to score, call by call."""
    calls: list[int] = []
    scored = evaluated.lm.loglikelihood

    def count(requests: Any, **kwargs: Any) -> Any:
        calls.append(len(requests))
        return scored(requests, **kwargs)

    monkeypatch.setattr(evaluated.lm, "loglikelihood", count)
    return calls


def test_nothing_is_asked_twice(
    model: LoadedModel, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated = EvaluatedModel(model, folder=tmp_path)
    calls = counted(evaluated, monkeypatch)
    few = asked(evaluated, BenchmarkPlan(limit=6, data_folder=folder))
    assert calls == [6 * 4]
    again = asked(EvaluatedModel(model, folder=tmp_path), BenchmarkPlan(limit=6, data_folder=folder))
    assert again == few
    more = asked(evaluated, BenchmarkPlan(limit=9, data_folder=folder))
    assert calls == [6 * 4, 3 * 4], "a larger sample asks only what is new"
    assert set(few.answers) <= set(more.answers)
    assert (len(few.answers), few.questions) == (6, 20)


@pytest.mark.parametrize("limit", [5, 20])
def test_a_few_questions_are_asked_again_to_know_what_rounding_makes(
    model: LoadedModel, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    plan = BenchmarkPlan(limit=limit, data_folder=folder)
    evaluated = EvaluatedModel(model, folder=tmp_path)
    calls = counted(evaluated, monkeypatch)
    assert evaluated.ask("arc_challenge", plan).rounding is None
    known = evaluated.ask("arc_challenge", plan, rounding=True)
    few = min(limit, 8)
    assert calls == [limit * 4, few * 4, few * 4]
    answers = known.read()
    assert answers is not None
    assert known.rounding == answers.rounding
    assert known.rounding is not None
    in_bf16 = replace(model, model=copy.deepcopy(model.model).to(torch.bfloat16), precision="bf16")
    rounded = EvaluatedModel(in_bf16, folder=tmp_path).ask("arc_challenge", plan, rounding=True).rounding
    assert rounded is not None
    assert 0 < 100 * known.rounding < rounded < 0.5


def test_answers_say_where_they_were_made(model: LoadedModel, folder: Path, tmp_path: Path) -> None:
    EvaluatedModel(model, folder=tmp_path).ask("arc_challenge", BenchmarkPlan(limit=2, data_folder=folder))
    (path,) = tmp_path.glob("*/*/*.parquet")
    made_on = json.loads(pq.read_schema(path).metadata[b"made_on"])
    floor = made_on.pop("noise_floor")
    assert made_on == machine()
    assert 0 < floor["mean"] < floor["limit"]


def test_how_it_is_asked_and_what_the_questions_are_belong_to_the_key(
    model: LoadedModel, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = BenchmarkPlan(limit=6, data_folder=folder)
    EvaluatedModel(model, folder=tmp_path).ask("arc_challenge", plan)
    told = EvaluatedModel(model, system="Be brief.", folder=tmp_path)
    calls = counted(told, monkeypatch)
    told.ask("arc_challenge", plan)
    assert calls == [24], "a system prompt makes another model of it"

    other = write_questions(tmp_path / "other")
    path = other / "knowledge/arc_challenge.jsonl"
    path.write_text(path.read_text().replace("What is 2 plus", "How much is 2 plus"))
    changed = EvaluatedModel(model, folder=tmp_path)
    calls = counted(changed, monkeypatch)
    changed.ask("arc_challenge", BenchmarkPlan(limit=6, data_folder=other))
    assert calls == [24], "other questions make another task"


def test_a_blank_line_stands_between_a_system_prompt_and_a_question(
    model: LoadedModel, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = EvaluatedModel(model, system="Be brief.", folder=tmp_path)
    contexts: list[str] = []
    scored = told.lm.loglikelihood

    def note(requests: Any, **kwargs: Any) -> Any:
        contexts.extend(request.args[0] for request in requests)
        return scored(requests, **kwargs)

    monkeypatch.setattr(told.lm, "loglikelihood", note)
    for benchmark in ("piqa", "mmlu"):  # without and with a description of the task
        told.ask(benchmark, BenchmarkPlan(limit=3, data_folder=folder))
    assert contexts
    for context in contexts:
        assert context.startswith(("Be brief.\n\nQuestion:", "Be brief.\n\nThe following"))


def test_an_evaluation_that_stops_goes_on(
    model: LoadedModel, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "KEPT_TOGETHER", 4)
    plan = BenchmarkPlan(limit=14, data_folder=folder)
    whole = asked(EvaluatedModel(model, folder=tmp_path / "whole"), plan)
    evaluated = EvaluatedModel(model, folder=tmp_path / "stopped")
    scored, calls = evaluated.lm.loglikelihood, []

    def stop_at_the_third(requests: Any, **kwargs: Any) -> Any:
        calls.append(len(requests))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return scored(requests, **kwargs)

    monkeypatch.setattr(evaluated.lm, "loglikelihood", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        evaluated.ask("arc_challenge", plan)
    told: list[tuple[int, int]] = []
    resumed = asked(
        EvaluatedModel(model, folder=tmp_path / "stopped"),
        plan,
        on_progress=lambda stage, done, total, note="": told.append((done, total)),
    )
    assert told[0] == (8, 14)
    assert [a.document for a in resumed.answers] == [a.document for a in whole.answers]
    for ours, theirs in zip(resumed.answers, whole.answers, strict=True):
        assert ours.logps == pytest.approx(theirs.logps, abs=1e-4)


def test_a_file_of_answers_that_is_broken_is_named(model: LoadedModel, folder: Path, tmp_path: Path) -> None:
    plan = BenchmarkPlan(limit=3, data_folder=folder)
    EvaluatedModel(model, folder=tmp_path).ask("piqa", plan)
    (path,) = tmp_path.rglob("*.parquet")
    path.write_bytes(b"nothing")
    with pytest.raises(BapoError, match="delete that file"):
        EvaluatedModel(model, folder=tmp_path).ask("piqa", plan)


def test_every_damaged_letter_of_kept_answers_is_noticed(tmp_path: Path) -> None:
    answers = [Answer("piqa", i, "", "q", ("a", "b"), (-1.5 - i, -2.0), 0, 1.0, None) for i in range(3)]
    store = AnswerStore.of(tmp_path, "m" * 16, "t" * 16, "piqa")
    store.add(answers, {})
    assert list(store.read().values()) == answers
    (path,) = tmp_path.rglob("*.parquet")
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(BapoError, match="damaged: delete that file, and they are asked again"):
            store.read()
    path.rename(path.with_name("000000-1-3.parquet"))
    assert store.read() == {}, "what no checksum stands for is asked again"


def test_a_model_without_chat_template_is_not_asked_in_chat(folder: Path, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    plain = LoadedModel("tiny", tiny_model("llama"), ChatFormat(tokenizer), "float32")
    plan = BenchmarkPlan(("piqa", "hhh"), data_folder=folder)
    evaluated = EvaluatedModel(plain, folder=tmp_path)
    with pytest.raises(BapoError, match="no chat template"):
        evaluated.ask("hhh", plan)
    with pytest.raises(BapoError, match="no chat template"):
        evaluated.check(plan)  # before PIQA, which could be asked, is
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_question_that_the_date_makes_another_one_is_asked_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = ChatFormat(tiny_tokenizer("{{ strftime_now('%d %b') }}" + CHATML))
    network = tiny_model("llama")
    plan = BenchmarkPlan(limit=2, data_folder=folder, asked="letter")

    def asked_on(day: datetime, plan: BenchmarkPlan = plan) -> int:
        evaluated = EvaluatedModel(LoadedModel("tiny", network, chat.at(day), "float32"), folder=tmp_path)
        calls = counted(evaluated, monkeypatch)
        evaluated.ask("arc_challenge", plan)
        return sum(calls)

    assert asked_on(datetime(2024, 7, 26, 8)) > 0
    assert asked_on(datetime(2024, 7, 26, 23)) == 0, "the template writes no hours"
    assert asked_on(datetime(2024, 7, 27, 8)) > 0
    in_text = BenchmarkPlan(limit=2, data_folder=folder)
    assert asked_on(datetime(2024, 7, 26), in_text) > 0
    assert asked_on(datetime(2024, 7, 27), in_text) == 0, "what is not asked as a chat has no date"
