"""The benchmarks as lm-eval tasks: which there are, how they ask, and which questions a sample holds."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from bapo.errors import BapoError
from bapo.evaluation import BENCHMARKS, benchmark_names
from bapo.evaluation.benchmarks import load_tasks, sample_documents
from tests.evaluation.questions import write_questions


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(tmp_path_factory.mktemp("questions"))


def test_names_are_listed_once_and_an_unknown_one_is_said() -> None:
    assert benchmark_names("all") == tuple(BENCHMARKS)
    assert benchmark_names("piqa, hhh,piqa") == ("piqa", "hhh")
    for wrong in ("pika", "piqa,mmluu", "", ","):
        with pytest.raises(BapoError, match="use all, or some of arc_challenge"):
            benchmark_names(wrong)
    with pytest.raises(BapoError, match="Unknown benchmark"):
        load_tasks("pika")


def test_mmlu_has_its_57_subjects_in_the_official_categories(folder: Path) -> None:
    tasks = load_tasks("mmlu", data_folder=folder)
    assert Counter(own.category for own in tasks) == {"stem": 18, "social_sciences": 12, "humanities": 13, "other": 14}
    assert {own.name: own.category for own in tasks}["mmlu_anatomy"] == "other"


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name != "hhh"])
def test_each_is_asked_by_text_and_by_letter(name: str, folder: Path) -> None:
    (by_text, *_), (by_letter, *_) = (load_tasks(name, asked=way, data_folder=folder) for way in ("text", "letter"))
    document = by_text.task.eval_docs[0]
    texts = [str(choice) for choice in by_text.task.doc_to_choice(document)]
    letters = by_letter.task.doc_to_choice(by_letter.task.eval_docs[0])
    assert letters == list("ABCDE"[: len(letters)])
    assert len(texts) == len(letters)
    question = by_letter.task.doc_to_text(by_letter.task.eval_docs[0])
    for letter, text in zip(letters, texts, strict=True):
        assert f"{letter}. {text}" in question, "the letters stand before the texts"
        assert text not in letters
    assert by_letter.chat
    assert not by_text.chat
    assert by_text.task.doc_to_target(document) in (0, *range(1, len(texts)), *map(str, range(len(texts))))


def test_a_sample_is_seeded_spread_over_the_tasks_and_grows_with_its_limit(folder: Path) -> None:
    tasks = load_tasks("mmlu", data_folder=folder)
    few, more = (sample_documents(tasks, limit, seed=3) for limit in (57, 90))
    assert few == sample_documents(tasks, 57, seed=3)
    assert few != sample_documents(tasks, 57, seed=4)
    assert sum(map(len, few.values())) == 57
    assert sum(map(len, more.values())) == 90
    assert all(set(few[name]) <= set(more[name]) for name in few), "what was asked before is kept"
    everything = sample_documents(tasks, None, seed=0)
    assert everything == sample_documents(tasks, 10_000, seed=0)
    assert sum(map(len, everything.values())) == 114


@pytest.mark.data
def test_the_real_files_hold_what_the_benchmarks_hold(data_folder: Path) -> None:
    sizes = {
        name: sum(len(own.task.eval_docs) for own in load_tasks(name, data_folder=data_folder)) for name in BENCHMARKS
    }
    assert sizes["mmlu"] == 14_042
    assert sizes["arc_challenge"] == 1_172
    assert sizes["commonsense_qa"] == 1_221
    assert min(sizes.values()) > 200


def test_a_file_that_changed_is_asked_anew(tmp_path: Path) -> None:
    path = write_questions(tmp_path) / "knowledge/piqa.jsonl"
    before = path.read_text()
    assert "How do I" in before
    for number, words in enumerate(("Why would I", "When did I"), start=1):
        path.write_text(before.replace("How do I", words))
        os.utime(path, ns=(number, number))
        (task,) = load_tasks("piqa", data_folder=tmp_path)
        assert words in task.task.doc_to_text(task.task.eval_docs[0])
