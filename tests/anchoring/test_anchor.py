"""The anchored data set: what is made once, shared, resumed and refused."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from bapo.anchoring import (
    AnchorStore,
    GenerationSettings,
    LengthPolicy,
    Response,
    anchor,
    generate_batch,
    plan_batches,
)
from bapo.anchoring.store import group_key
from bapo.errors import BapoError
from bapo.likelihood import ResponseScorer, TokenGroup
from bapo.models import ChatFormat, LoadedModel, add_lora
from bapo.preferences import Message, Pair, Preferences, group_pairs
from tests.tiny import tiny_model, tiny_tokenizer

SHORT = GenerationSettings(max_new_tokens=6)


def loaded(seed: int = 0) -> LoadedModel:
    return LoadedModel("tiny", tiny_model("llama", seed), ChatFormat(tiny_tokenizer()), "float32")


def preferences(prompts: int = 5, flavour: str = "yes") -> Preferences:
    pairs = [
        Pair((Message("user", f"question {i} {'?' * (i % 3)}"),), f"{flavour} {i}", f"no {i} {j}")
        for i in range(prompts)
        for j in range(2)
    ]
    return group_pairs("test", pairs)


def journals(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.jsonl")}


def test_scores_are_those_of_the_scorer_and_base_tokens_add_up(tmp_path: Path) -> None:
    model = loaded()
    anchored = anchor(preferences(), model, AnchorStore(tmp_path / "a", model), generation=SHORT)
    scorer = ResponseScorer(model.model)
    for group in anchored.groups:
        expected = scorer.score([group.tokens]).summed()
        torch.testing.assert_close(torch.tensor(group.ref_logps), expected)
        (base,) = group.bases
        assert len(base.ref_tokens) == len(base.ids)
        torch.testing.assert_close(
            torch.tensor([base.ref_logp]), scorer.score([TokenGroup(group.tokens.prompt, (base.ids,))]).summed()
        )
        assert sum(base.ref_tokens) == pytest.approx(base.ref_logp, rel=1e-5)


def test_another_preference_over_the_same_prompts_generates_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded()
    store = AnchorStore(tmp_path / "a", model)
    first = anchor(preferences(), model, store, generation=SHORT)

    def must_not_run(*_: object) -> None:
        raise AssertionError("generated twice")

    monkeypatch.setattr("bapo.anchoring.anchored.generate_batch", must_not_run)
    second = anchor(preferences(flavour="maybe"), model, AnchorStore(tmp_path / "a", model), generation=SHORT)
    assert [g.bases for g in second.groups] == [g.bases for g in first.groups]
    with pytest.raises(AssertionError, match="generated twice"):  # other generation settings are another number
        anchor(preferences(), model, store, generation=GenerationSettings(max_new_tokens=7))


def test_a_changed_token_is_scored_and_an_unrelated_change_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded()
    anchor(preferences(), model, AnchorStore(tmp_path / "a", model), generation=SHORT)
    scored: list[int] = []
    original = ResponseScorer.score

    def counting(self, groups, **options):  # type: ignore[no-untyped-def]
        scored.append(sum(len(group.responses) for group in groups))
        return original(self, groups, **options)

    monkeypatch.setattr(ResponseScorer, "score", counting)
    renamed = Preferences("another name", preferences().groups[::-1])
    anchor(renamed, model, AnchorStore(tmp_path / "a", model), generation=SHORT)
    assert sum(scored) == 0
    anchor(preferences(flavour="Yes"), model, AnchorStore(tmp_path / "a", model), generation=SHORT)
    assert sum(scored) == 5


@pytest.mark.parametrize("torn", [1, 20, 200])
def test_a_torn_last_line_is_made_again_with_the_same_bytes(tmp_path: Path, torn: int) -> None:
    model = loaded()
    anchor(preferences(20), model, AnchorStore(tmp_path / "a", model), generation=SHORT)
    expected = journals(tmp_path / "a")
    for path in (tmp_path / "a").glob("*.jsonl"):
        path.write_bytes(path.read_bytes()[:-torn])
    anchor(preferences(20), model, AnchorStore(tmp_path / "a", model), generation=SHORT)
    assert journals(tmp_path / "a") == expected


@pytest.mark.parametrize("file", ["base-*.jsonl", "logps.jsonl", "probe.json", "manifest.json"])
@pytest.mark.parametrize(
    "damage",
    [
        (r"\d(?=\d*[,\]}\n])", lambda found: str((int(found[0]) + 1) % 10)),  # the last digit of some number
        (r"\d+(?=[,\]}\n])", lambda found: f'"{found[0]}"'),
        (r"\d+(?=[,\]}\n])", lambda found: "null"),
        (r"\A", lambda found: "["),
        (r"(?s)\A.*", lambda found: "3\n"),
    ],
    ids=["digit", "text for a number", "null", "bracket", "other content"],
)
def test_what_is_damaged_in_a_store_becomes_no_other_number(
    file: str, damage: tuple[str, Callable[[re.Match[str]], str]], tmp_path: Path
) -> None:
    model = loaded()
    anchor(preferences(), model, AnchorStore(tmp_path / "a", model), generation=SHORT)
    (path,) = (tmp_path / "a").glob(file)
    pattern, change = damage
    damaged = re.sub(pattern, change, path.read_text(), count=1)
    assert damaged != path.read_text()
    path.write_text(damaged)
    with pytest.raises(BapoError, match=rf"{path.name} is damaged.*delete"):
        anchor(preferences(), model, AnchorStore(tmp_path / "a", model), generation=SHORT)


@pytest.mark.parametrize("stage", ["base responses", "reference log-probs"])
@pytest.mark.parametrize("when", ["before the first", "behind the last"])
@pytest.mark.parametrize("what", ["the folder", "a journal", "the manifest"])
def test_a_folder_deleted_while_it_is_written_is_no_success(stage: str, when: str, what: str, tmp_path: Path) -> None:
    model = loaded()
    folder = tmp_path / "a"

    def delete(own: str, done: int, total: int) -> None:
        if (own, done) != (stage, 0 if when == "before the first" else total):
            return
        if what == "the folder":
            shutil.rmtree(folder)
        elif what == "a journal":
            next(folder.glob("base-*.jsonl"), folder / "manifest.json").unlink()
        else:
            (folder / "manifest.json").unlink()

    with pytest.raises(BapoError, match=r"deleted|could not be written"):
        anchor(preferences(), model, AnchorStore(folder, model), generation=SHORT, on_progress=delete)


def test_a_file_where_the_folder_should_be_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BapoError, match="cannot be made"):
        AnchorStore(tmp_path / "file", loaded())


def test_another_model_is_refused_and_a_trained_adapter_is_another_model(tmp_path: Path) -> None:
    model = loaded()
    AnchorStore(tmp_path / "a", model)
    AnchorStore(tmp_path / "a", loaded())  # the same weights, loaded again
    with pytest.raises(BapoError, match="of another model"):
        AnchorStore(tmp_path / "a", loaded(seed=1))
    policy = add_lora(loaded().model, rank=4)
    fresh = LoadedModel("tiny", policy, model.chat, "float32")
    AnchorStore(tmp_path / "a", fresh)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    with pytest.raises(BapoError, match="of another model"):
        AnchorStore(tmp_path / "a", fresh)


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(BapoError, match="holds no anchored data"):
        AnchorStore(tmp_path, loaded())
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_generation_stops_at_the_end_token_and_keeps_ids() -> None:
    model = loaded()
    prompts = [(5, 6, 7), (8, 9, 10, 11, 12)]
    responses = [own[0] for own in generate_batch(model.model, prompts, GenerationSettings(30), model.chat.end_ids)]
    for prompt, response in zip(prompts, responses, strict=True):
        plain = model.model.generate(torch.tensor([prompt]), max_new_tokens=30, do_sample=False, eos_token_id=None)
        ids = plain[0, len(prompt) :].tolist()
        end = next((i for i, token in enumerate(ids) if token in model.chat.end_ids), None)
        assert response.ended == (end is not None)
        assert list(response.ids) == (ids if end is None else ids[: end + 1])


@pytest.mark.parametrize("architecture", ["llama", "mistral-window", "gpt2", "mamba-recurrent"])
def test_finished_responses_leave_their_batch_and_change_nothing(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(architecture)
    prompts = [tuple(range(5, 5 + n)) for n in (9, 3, 14, 6, 11, 4)]
    settings = GenerationSettings(30)
    free = [own[0].ids for own in generate_batch(model, prompts, settings, [259])]

    def lengths(end: int) -> set[int]:
        return {ids.index(end) if end in ids else len(ids) for ids in free}

    end = max({token for ids in free for token in ids}, key=lambda token: len(lengths(token)))
    assert len(lengths(end)) > 2, "the end token ends them at different places"
    whole = [generate_batch(model, [prompt], settings, [end])[0] for prompt in prompts]
    monkeypatch.setattr("bapo.anchoring.generate.STAGE", 4)
    assert generate_batch(model, prompts, settings, [end]) == whole


def test_sampled_base_responses_are_several_and_repeat_with_their_seed(tmp_path: Path) -> None:
    model = loaded()
    how = GenerationSettings(max_new_tokens=6, temperature=1.0, responses=3, seed=7)
    one, two = (
        anchor(preferences(), model, AnchorStore(tmp_path / name, model), generation=how) for name in ("a", "b")
    )
    assert [g.bases for g in one.groups] == [g.bases for g in two.groups]
    assert all(len(group.bases) == 3 for group in one.groups)
    assert len({base.ids for base in one.groups[0].bases}) > 1
    with pytest.raises(BapoError, match="set a temperature"):
        GenerationSettings(responses=2)


def test_batches_are_sorted_by_length_and_depend_on_the_prompts_alone() -> None:
    prompts = [(1,) * n for n in (5, 2, 9, 2, 7)]
    settings = GenerationSettings(max_new_tokens=3)
    assert plan_batches(prompts, settings, max_tokens=20) == [[1, 3], [0, 4], [2]]  # 2 x (2 + 3), 2 x (7 + 3), 9 + 3
    assert plan_batches(prompts, settings, max_tokens=1) == [[1], [3], [0], [4], [2]]
    several = GenerationSettings(max_new_tokens=3, temperature=1.0, responses=2)
    assert plan_batches(prompts, several, max_tokens=20) == [[1, 3], [0], [4], [2]]


def test_long_texts_are_dropped_or_cut_and_counted(tmp_path: Path) -> None:
    model = loaded()
    lengths = LengthPolicy(max_prompt_tokens=30, max_response_tokens=4)
    pairs = [Pair("short", "abcdefgh", "xyz"), Pair("short", "abcdefg", "abcdefgh"), Pair("long " * 20, "a", "b")]
    anchored = anchor(
        group_pairs("test", pairs), model, AnchorStore(tmp_path / "a", model), generation=SHORT, lengths=lengths
    )
    assert anchored.counts == {
        "responses cut: too long": 2,
        "pairs dropped: equal as tokens": 1,
        "pairs dropped: prompt too long": 1,
    }
    (group,) = anchored.groups
    chosen = group.tokens.responses[group.pairs[0][0]]
    assert len(chosen) == 4
    assert chosen[-1] not in model.chat.end_ids, "a cut response must not look as if it had ended"


def test_base_responses_in_words_are_taken_instead_of_generated(tmp_path: Path) -> None:
    model = loaded()
    own = preferences(2)
    given = {own.groups[0].prompt: ("my own answer",)}
    anchored = anchor(own, model, AnchorStore(tmp_path / "a", model), generation=SHORT, bases=given)
    assert anchored.groups[0].bases[0].ids == model.chat.response_ids("my own answer")
    assert anchored.groups[1].bases[0].ids != anchored.groups[0].bases[0].ids


def test_who_waits_for_another_process_is_told_so_and_sees_what_it_wrote(tmp_path: Path) -> None:
    model = loaded()
    mine, theirs = (AnchorStore(tmp_path / "a", model) for _ in range(2))
    stages: list[str] = []
    waits = threading.Event()

    def note(stage: str, done: int, total: int) -> None:
        stages.append(stage)
        waits.set()

    with ThreadPoolExecutor() as other:
        with mine.writing():
            waiting = other.submit(anchor, preferences(), model, theirs, generation=SHORT, on_progress=note)
            assert waits.wait(timeout=60)
            assert stages == ["waiting for another process that anchors to this model"]
            key, response = group_key((1, 2)), Response((3,), True)
            mine.add_bases(SHORT, {key: (response,)})
        waiting.result(timeout=60)
    assert theirs.bases(SHORT)[key] == (response,)
