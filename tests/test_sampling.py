"""Preferences by rejection sampling: from candidates of the reference and an adapter's reward to the hinge."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from bapo.anchoring import AnchorStore, GenerationSettings, candidate_logps, sample_candidates
from bapo.anchoring.candidates import CUT, NO_TEXT
from bapo.errors import BapoError
from bapo.jobs.sampling import Sampling, _prompt_columns, _response_column
from bapo.likelihood import ResponseScorer, TokenGroup
from bapo.models import ChatFormat, LoadedModel, add_lora
from bapo.preferences import Message, Pair, group_pairs, pairs_from_dataset, prompt_text, read_preferences
from tests.command import Command, bapo
from tests.test_cli import own_preferences
from tests.tiny import ending_soon, tiny_tokenizer

LEFT_OUT = (CUT, NO_TEXT)
SAMPLED = GenerationSettings(max_new_tokens=40, temperature=1.0, responses=12)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAPO_CACHE", str(tmp_path / "cache"))


def loaded(policy: Any = None) -> LoadedModel:
    return LoadedModel("tiny", policy or ending_soon(), ChatFormat(tiny_tokenizer()), "float32")


def prompts() -> Any:
    return group_pairs("test", [Pair((Message("user", f"q {i}"),), f"yes {i}", f"no {i * i}") for i in range(5)])


def test_candidates_are_the_ids_that_were_sampled_and_their_texts_are_encoded_as_these(tmp_path: Path) -> None:
    model = loaded()
    found, counts = sample_candidates(prompts(), model, AnchorStore(tmp_path / "a", model), SAMPLED)
    assert len(found) == 5
    for group in found:
        assert group.ids == model.chat.prompt_ids(group.prompt)
        for text, ids in zip(group.texts, group.responses, strict=True):
            assert model.chat.response_ids(text, group.prompt) == ids
            assert ids[-1] in model.chat.end_ids
    kept = sum(len(group.responses) for group in found)
    assert kept > 20
    assert kept + sum(counts.values()) == 5 * 12, "every draw is a candidate or counted"


def test_what_was_sampled_is_not_sampled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded()
    found = sample_candidates(prompts(), model, AnchorStore(tmp_path / "a", model), SAMPLED)

    def must_not_run(*_: object) -> None:
        raise AssertionError("sampled twice")

    monkeypatch.setattr("bapo.anchoring.anchored.generate_batch", must_not_run)
    assert sample_candidates(prompts(), model, AnchorStore(tmp_path / "a", model), SAMPLED) == found


def test_a_candidate_has_the_log_prob_of_its_ids_under_either_model(tmp_path: Path) -> None:
    model = loaded()
    found, _ = sample_candidates(prompts(), model, AnchorStore(tmp_path / "a", model), SAMPLED)
    policy = loaded(add_lora(ending_soon(), 4, 8, 0.0, 0))
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    for own, folder in ((model, "a"), (policy, "b")):
        logps = candidate_logps(found, own, AnchorStore(tmp_path / folder, own), "scoring")
        scorer = ResponseScorer(own.model)
        for group, of_group in zip(found, logps, strict=True):
            assert len(of_group) == len(group.responses)
            expected = [scorer.score([TokenGroup(group.ids, (ids,))]).summed()[0] for ids in group.responses]
            assert of_group == pytest.approx([float(logp) for logp in expected], abs=1e-4)


def test_a_row_is_read_as_the_prompt_and_the_responses_that_it_was_made_of() -> None:
    schema = json.dumps([{"type": "function", "function": {"name": "clock"}}])
    call = json.dumps({"tool_calls": [{"function": {"name": "clock", "arguments": {}}}]})
    turns = (
        Message("tools", schema),
        Message("template", json.dumps({"enable_thinking": False})),
        Message("system", "Be kind."),
        Message("user", "What time is it?"),
        Message("assistant", "", call),
        Message("tool", "noon"),
    )
    for prompt in (turns, turns[2:4], "plain"):
        for text in ("Noon.", '[{"role": "user", "content": "no turn"}]' if prompt != "plain" else "x"):
            row = {"chosen": _response_column(prompt, text), "rejected": _response_column(prompt, "Later.")}
            (pair,) = pairs_from_dataset([{**_prompt_columns(prompt), **row, "chosen_reward": 1.5}], "rows")
            assert pair == Pair(prompt, text, "Later.")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"accept": 1}, "at least 2"),
        ({"accept": 9, "candidates": 8}, "at most the 8 candidates"),
        ({"temperature": 0.0}, "sampled, so that they differ"),
        ({"rejection_beta": 0.0}, "rejection_beta must be"),
        ({"candidates": 10**9}, "candidates must be"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BapoError, match=sentence):
        Sampling(**settings)


@pytest.mark.slow
def test_an_adapter_judges_what_the_model_says_and_the_hinge_learns_it(tmp_path: Path) -> None:
    """The whole way, killed in the middle of it."""
    own_preferences(tmp_path)
    ending_soon().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    few = ["--held-out", "4", "-m", "model", "--precision", "float32", "--set", "preferences.max_train_prompts=6"]
    reward = [
        "--max-steps",
        "3",
        "--learning-rate",
        "1e-2",
        "--beta",
        "0.2",
        "--set",
        "anchoring.base_max_new_tokens=12",
    ]
    bapo("train", "mine.jsonl", "--objective", "dpo", "-o", "reward", *few, *reward, cwd=tmp_path)
    sample = ["sample", "mine.jsonl", "--reward", "reward", *few, "--candidates", "6", "--accept", "6"]
    sample += ["--max-new-tokens", "40", "--rejection-beta", "0.05", "--anchored-store", "store"]
    told = json.loads(bapo(*sample, "-o", "whole.jsonl", "--json", cwd=tmp_path).stdout)
    rows = [json.loads(line) for line in (tmp_path / "whole.jsonl").read_text().splitlines()]
    assert told["beta"] == 0.2, "what the adapter was trained with"
    assert told["prompts"] == 6
    assert told["pairs"] == len(rows) > 0
    assert all(row["chosen_reward"] > row["rejected_reward"] for row in rows)
    assert told["candidates"] + sum(told["counts"].get(reason, 0) for reason in LEFT_OUT) == 36
    asked = {prompt_text(group.prompt) for group in read_preferences(str(tmp_path / "whole.jsonl")).groups}
    assert asked <= {f"What is {i} plus {i}?" for i in range(1, 21)}

    again = ["-o", "killed.jsonl", "--sampling-seed", "1"]  # other draws
    with Command([*sample, *again], tmp_path) as running:
        while len(list((tmp_path / "store").glob("base-*.jsonl"))) < 2 and not running.wait(0.001):
            pass
        running.kill()
    assert not (tmp_path / "killed.jsonl").exists()
    bapo(*sample, *again, cwd=tmp_path)
    assert (tmp_path / "killed.jsonl").read_text() != (tmp_path / "whole.jsonl").read_text()
    before = (tmp_path / "killed.jsonl").read_bytes()
    elsewhere = [*sample[:-1], "another-store", "--sampling-seed", "1", "-o", "undisturbed.jsonl"]
    bapo(*elsewhere, cwd=tmp_path, environment={"BAPO_CACHE": str(tmp_path / "another-cache")})
    assert (tmp_path / "undisturbed.jsonl").read_bytes() == before
    model = tmp_path / "model/model.safetensors"
    model.rename(tmp_path / "away")  # so that a start over what is done must not load it
    status = (tmp_path / "away").stat()
    (tmp_path / "model/model.safetensors").write_bytes(bytes(status.st_size))
    os.utime(model, ns=(status.st_atime_ns, status.st_mtime_ns))
    bapo(*sample, *again, cwd=tmp_path)
    (tmp_path / "away").rename(model)
    (tmp_path / "killed.jsonl").unlink()
    bapo(*sample, *again, cwd=tmp_path)
    assert (tmp_path / "killed.jsonl").read_bytes() == before, "a kill between record and file leaves the record alone"
    assert "in another way" in bapo(*sample, "-o", "killed.jsonl", cwd=tmp_path, code=2).stderr
    (tmp_path / "killed.jsonl").write_bytes(before[:-5])
    assert "changed or damaged" in bapo(*sample, *again, cwd=tmp_path, code=2).stderr
    assert "is there already" in bapo(*sample, "-o", "mine.jsonl", cwd=tmp_path, code=2).stderr

    hinge = ["train", "whole.jsonl", "--objective", "rso", "-o", "rso", "--held-out", "1", "--max-steps", "3"]
    bapo(*hinge, "-m", "model", "--precision", "float32", "--set", "anchoring.base_max_new_tokens=12", cwd=tmp_path)
    assert json.loads((tmp_path / "rso/run.json").read_text())["log"][0]["loss"] == pytest.approx(1.0, abs=0.02)
