"""Our lm-eval model gives what lm-eval's own `hf` model gives: log-likelihoods, accuracies, cut contexts."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lm_eval
import pytest
from lm_eval.models.huggingface import HFLM

from bapo.errors import BapoError
from bapo.evaluation import BENCHMARKS, BapoLM, BenchmarkPlan, EvaluatedModel
from bapo.evaluation.benchmarks import load_tasks, sample_documents
from bapo.models import ChatFormat, LoadedModel
from tests.command import bapo
from tests.evaluation.questions import write_questions
from tests.tiny import tiny_model, tiny_tokenizer

NATS = 1e-3
SOME_SUBJECTS = ("mmlu_anatomy", "mmlu_high_school_physics", "mmlu_philosophy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(tmp_path_factory.mktemp("questions"))


@pytest.fixture(scope="module")
def hf(smollm2: LoadedModel) -> HFLM:
    return HFLM(pretrained=smollm2.model, tokenizer=smollm2.tokenizer, batch_size=4, device="cpu")


def in_float64(loaded: LoadedModel, requests: Any) -> list[float]:
    """What `hf` says to a question's requests without rounding to speak of."""
    model = copy.deepcopy(loaded.model).double()
    exact = HFLM(pretrained=model, tokenizer=loaded.tokenizer, batch_size=1, device="cpu")
    return [logp for logp, _ in exact.loglikelihood([SimpleNamespace(args=own) for own in requests])]


def same_as_hf(
    name: str, way: Any, smollm2: LoadedModel, hf: HFLM, folder: Path, store: Path, limit: int | None
) -> None:
    """The harness's own evaluation of `hf` beside ours, question by question."""
    tasks = [own for own in load_tasks(name, asked=way, data_folder=folder) if name != "mmlu" or _chosen(own.name)]
    drawn = sample_documents(tasks, limit, seed=0)
    evaluated = EvaluatedModel(smollm2, folder=store)
    for own in tasks:
        kept = evaluated._ask_task(own, drawn[own.name], lambda done: None).read()
        ours = [kept[number] for number in drawn[own.name]]
        theirs = lm_eval.evaluate(
            lm=hf,
            task_dict={own.name: own.task},
            samples={own.name: drawn[own.name]},
            apply_chat_template=own.chat,
            fewshot_as_multiturn=True,
            bootstrap_iters=0,
        )
        by_document = {row["doc_id"]: row for row in theirs["samples"][own.name]}
        assert len(by_document) == len(ours)
        for place, answer in enumerate(ours):
            row = by_document[answer.document if answer.document in by_document else place]
            their_logps = [float(response[0][0]) for response in row["resps"]]
            if answer.logps != pytest.approx(their_logps, abs=NATS):  # on some CPUs `hf` itself rounds by more
                their_logps = in_float64(smollm2, row["arguments"])
            assert answer.logps == pytest.approx(their_logps, abs=NATS), answer.question
            assert answer.acc == row["acc"]
            assert answer.acc_norm == row.get("acc_norm")
        accuracy = theirs["results"][own.name]["acc,none"]
        assert sum(answer.acc for answer in ours) / len(ours) == pytest.approx(accuracy)


def _chosen(task: str) -> bool:
    return task.removesuffix("_continuation") in SOME_SUBJECTS


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_scores_are_those_of_hf(name: str, smollm2: LoadedModel, hf: HFLM, folder: Path, tmp_path: Path) -> None:
    for way in ("harness", "text", "letter") if name != "hhh" else ("harness",):
        same_as_hf(name, way, smollm2, hf, folder, tmp_path, limit=3)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("name", BENCHMARKS)
def test_scores_are_those_of_hf_on_real_questions(
    name: str, smollm2: LoadedModel, hf: HFLM, data_folder: Path, tmp_path: Path
) -> None:
    same_as_hf(name, "harness", smollm2, hf, data_folder, tmp_path, limit=4 if name in ("mmlu", "hhh") else 10)


def _tiny() -> LoadedModel:
    return LoadedModel("tiny", tiny_model("llama"), ChatFormat(tiny_tokenizer()), "float32")


def test_a_context_beyond_the_models_reach_is_cut_as_hf_cuts_it() -> None:
    model = _tiny()
    ours, theirs = BapoLM(model), HFLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=1, device="cpu")
    assert ours.max_length == theirs.max_length == 512
    requests = [(None, list(range(10, 200)) * 3, list(range(20, 20 + n))) for n in (1, 3, 40)]
    requests += [(None, [5, 6, 7], [8, 9])]
    for (ours_logp, _), (their_logp, _) in zip(
        ours._loglikelihood_tokens(requests), theirs._loglikelihood_tokens(requests), strict=True
    ):
        assert ours_logp == pytest.approx(their_logp, abs=NATS)
    with pytest.raises(BapoError, match="leaves no room"):
        ours._loglikelihood_tokens([(None, [5, 6], list(range(9, 200)) * 3)])


def test_what_greedy_decoding_would_say_is_told_as_hf_tells_it() -> None:
    model = _tiny()
    ours, theirs = BapoLM(model), HFLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=1, device="cpu")
    context = [11, 12, 13, 14]
    greedy = model.model.generate(
        input_ids=model.model.dummy_inputs["input_ids"].new_tensor([context]), max_new_tokens=2, do_sample=False
    )[0, 4:].tolist()
    requests = [(None, context, greedy), (None, context, [greedy[0], (greedy[1] + 1) % 200]), (None, context, [3, 4])]
    found = [is_greedy for _, is_greedy in ours._loglikelihood_tokens(requests)]
    assert found == [bool(is_greedy) for _, is_greedy in theirs._loglikelihood_tokens(requests)]
    assert found[:2] == [True, False]


def test_what_bapo_does_not_score_is_refused_with_what_does() -> None:
    lm = BapoLM(_tiny())
    for ask in (lm.loglikelihood_rolling, lm.generate_until):
        with pytest.raises(BapoError, match="--model hf"):
            ask([])


@pytest.mark.slow
def test_the_harnesss_own_command_line_knows_our_model(tmp_path: Path) -> None:
    questions = [{"q": f"What is {i} plus {i}?", "choices": [str(2 * i), str(2 * i + 1)]} for i in range(4)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    (tmp_path / "sums.yaml").write_text(
        f"task: sums\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {tmp_path}/sums.jsonl\n"
        'output_type: multiple_choice\ntest_split: test\ndoc_to_text: "{{q}}"\ndoc_to_choice: "{{choices}}"\n'
        "doc_to_target: 0\nmetric_list:\n  - metric: acc\n"
    )
    asked = ["lm-eval", "run", "--model", "bapo", "--model_args", "pretrained=smollm2"]
    asked += ["--tasks", "sums", "--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")]
    assert "|sums" in bapo(*asked, cwd=tmp_path, fresh=True).stdout
    (written,) = (tmp_path / "out").rglob("results*.json")
    assert 0 <= json.loads(written.read_text())["results"]["sums"]["acc,none"] <= 1


def test_a_plan_that_asks_nothing_is_refused() -> None:
    with pytest.raises(BapoError, match="at least one question"):
        BenchmarkPlan(("piqa",), limit=0)
