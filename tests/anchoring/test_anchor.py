"""The anchored data set: what is made once, shared, resumed and refused."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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
from bapo.anchoring.settled import is_any_of
from bapo.anchoring.store import group_key
from bapo.errors import BapoError
from bapo.files import read_record, write_record
from bapo.likelihood import ResponseScorer, TokenGroup
from bapo.models import ChatFormat, LoadedModel, add_lora
from bapo.preferences import Message, Pair, Preferences, group_pairs
from tests.tiny import CHATML, tiny_model, tiny_tokenizer

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


@pytest.mark.parametrize("stage", ["tokenizing", "base responses", "reference log-probs"])
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
    if what == "the folder":
        again = anchor(preferences(), model, AnchorStore(folder, model), generation=SHORT)
        assert again.groups == anchor(preferences(), model, AnchorStore(tmp_path / "b", model), generation=SHORT).groups


def test_a_folder_deleted_before_it_is_held_is_made_again_whole(tmp_path: Path) -> None:
    model, folder = loaded(), tmp_path / "a"
    store = AnchorStore(folder, model)
    shutil.rmtree(folder)
    anchored = anchor(preferences(), model, store, generation=SHORT)
    again = anchor(preferences(), model, AnchorStore(folder, model), generation=SHORT)
    assert again.groups == anchored.groups


def test_a_file_where_the_folder_should_be_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BapoError, match="cannot be made"):
        AnchorStore(tmp_path / "file", loaded())


@pytest.mark.parametrize("number", [float("inf"), float("nan")])
def test_what_is_no_number_is_said_and_not_kept(number: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a model in float16 gives."""
    model = loaded()
    store = AnchorStore(tmp_path / "a", model)
    score = ResponseScorer.score

    def overflows(scorer: ResponseScorer, groups: list[TokenGroup]) -> Any:
        scored = score(scorer, groups)
        last = scored.per_response()[-1]
        last[-1] = number
        return SimpleNamespace(per_response=lambda: [*scored.per_response()[:-1], last])

    with monkeypatch.context() as patched:
        patched.setattr(ResponseScorer, "score", overflows)
        with pytest.raises(BapoError, match=r"response to the prompt 'question 4 \?' is infinite.*bf16 or float32"):
            anchor(preferences(), model, store, generation=SHORT)
    assert not (tmp_path / "a/logps.jsonl").exists()
    assert anchor(preferences(), model, store, generation=SHORT).pair_count == 10


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


def with_bases(own: Preferences, bases: dict[int, tuple[str, ...]]) -> Preferences:
    groups = (replace(group, bases=bases.get(i, ())) for i, group in enumerate(own.groups))
    return replace(own, groups=tuple(groups))


def test_base_responses_in_words_are_taken_instead_of_generated(tmp_path: Path) -> None:
    model = loaded()
    own = with_bases(preferences(2), {0: ("my own answer",)})
    anchored = anchor(own, model, AnchorStore(tmp_path / "a", model), generation=SHORT)
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
    with theirs.writing():
        assert theirs.bases(SHORT, [key]) == {key: (response,)}


# ---- keys -----------------------------------------------------------------------------------------------------------


def test_end_tokens_belong_to_the_key_of_a_base_response_and_not_to_that_of_a_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = GenerationSettings(max_new_tokens=12)
    store, own, network = tmp_path / "a", preferences(), tiny_model("llama")

    def with_ends(*ends: int) -> LoadedModel:
        return LoadedModel("tiny", network, ChatFormat(tiny_tokenizer(), ends), "float32")

    first = anchor(own, with_ends(3), AnchorStore(store, with_ends(3)), generation=how)
    longest = max((group.bases[0].ids for group in first.groups), key=len)
    stop = next(i for i in longest[1:] if tiny_tokenizer().decode([i]) not in "<|end|>")  # what the template writes
    scored: list[int] = []
    original = ResponseScorer.score

    def counting(self, groups, **options):  # type: ignore[no-untyped-def]
        scored.extend(len(group.responses) for group in groups)
        return original(self, groups, **options)

    model = with_ends(3, stop)
    fresh = anchor(own, model, AnchorStore(tmp_path / "fresh", model), generation=how)
    monkeypatch.setattr(ResponseScorer, "score", counting)
    again = anchor(own, model, AnchorStore(store, model), generation=how)
    bases = [[(group.bases[0].ids, group.bases[0].ended) for group in found.groups] for found in (again, fresh)]
    assert bases[0] == bases[1]
    logps = [[group.bases[0].ref_logp for group in found.groups] for found in (again, fresh)]
    assert logps[0] == pytest.approx(logps[1], abs=1e-4)  # scored beside other responses
    cut = again.groups[[group.bases[0].ids for group in first.groups].index(longest)].bases[0]
    assert (cut.ids, cut.ended) == (longest[: longest.index(stop) + 1], True)
    assert again.end_ids == (3, stop, 2)
    others = [now.bases[0].ids != before.bases[0].ids for now, before in zip(again.groups, first.groups, strict=True)]
    assert sum(scored) == sum(others) > 0, "no other response is scored again"
    monkeypatch.setattr("bapo.anchoring.anchored.generate_batch", None)
    order = with_ends(2, stop, 3)  # the order says nothing
    assert anchor(own, order, AnchorStore(store, order), generation=how).groups == again.groups


# ---- the date -------------------------------------------------------------------------------------------------------

DATED = "{{ 'Today: ' + strftime_now('%d %b %Y') + '\n' }}" + CHATML
ONE_DAY, ANOTHER_DAY = datetime(2024, 7, 26, 8, 30), datetime(2024, 7, 27, 23, 59)


def on(day: datetime, template: str = DATED) -> LoadedModel:
    chat = ChatFormat(tiny_tokenizer(template)).at(day)
    return LoadedModel("tiny", tiny_model("llama"), chat, "float32")


def test_on_another_day_the_prompts_are_those_that_were_anchored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = anchor(preferences(), on(ONE_DAY), AnchorStore(tmp_path / "a", on(ONE_DAY)), generation=SHORT)
    assert first.today == ONE_DAY
    assert "Today: 26 Jul 2024" in tiny_tokenizer().decode(first.groups[0].tokens.prompt)
    before = journals(tmp_path / "a")

    def must_not_run(*_: object, **__: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr("bapo.anchoring.anchored.generate_batch", must_not_run)
    monkeypatch.setattr(ResponseScorer, "score", must_not_run)
    store = AnchorStore(tmp_path / "a", on(ANOTHER_DAY))
    assert store.today == ONE_DAY
    assert anchor(preferences(), on(ANOTHER_DAY), store, generation=SHORT) == first
    assert journals(tmp_path / "a") == before


def test_a_run_takes_its_day_along_to_another_store(tmp_path: Path) -> None:
    first = anchor(preferences(), on(ONE_DAY), AnchorStore(tmp_path / "a", on(ONE_DAY)), generation=SHORT)
    store = AnchorStore(tmp_path / "b", on(ANOTHER_DAY))
    assert anchor(preferences(), on(ANOTHER_DAY), store, generation=SHORT, today=first.today) == first
    later = anchor(preferences(), on(ANOTHER_DAY), store, generation=SHORT)
    assert later.today == ANOTHER_DAY
    assert [g.tokens.prompt for g in later.groups] != [g.tokens.prompt for g in first.groups]


def test_a_store_of_before_gets_a_day_and_one_without_a_date_none(tmp_path: Path) -> None:
    plain = on(ONE_DAY, CHATML)
    assert AnchorStore(tmp_path / "plain", plain).today is None
    assert anchor(preferences(), plain, AnchorStore(tmp_path / "plain", plain), generation=SHORT).today is None
    AnchorStore(tmp_path / "a", on(ONE_DAY))
    manifest = tmp_path / "a" / "manifest.json"
    content = read_record(manifest, "")
    del content["today"]
    write_record(manifest, content)
    assert AnchorStore(tmp_path / "a", on(ANOTHER_DAY)).today == ANOTHER_DAY
    assert AnchorStore(tmp_path / "a", on(ONE_DAY)).today == ANOTHER_DAY
    write_record(manifest, {**content, "today": "yesterday"})
    with pytest.raises(BapoError, match="is damaged"):
        AnchorStore(tmp_path / "a", on(ONE_DAY))


# ---- what fits into the context -------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_base_responses_generated_or_given_end_where_the_context_does(architecture: str, tmp_path: Path) -> None:
    model = LoadedModel("tiny", tiny_model(architecture), ChatFormat(tiny_tokenizer(None)), "float32")
    given = ("my own answer, which is long",)
    pairs = [Pair("p" * 500, "yes", "no"), Pair("q" * 500, "yes", "no", given), Pair("short", "yes", "no")]
    how = GenerationSettings(max_new_tokens=20)
    store = AnchorStore(tmp_path / "a", model)
    anchored = anchor(group_pairs("test", pairs), model, store, generation=how)
    generated, told, short = (group.bases[0] for group in anchored.groups)
    assert len(generated.ids) <= 12
    assert told.ids == model.chat.response_ids("my own answer, which is long", "q")[:12]
    assert not told.ended
    cut = 1 + (not generated.ended)
    assert anchored.counts["base responses cut: too long"] == cut
    assert len(short.ids) <= 20
    bounded = anchor(
        group_pairs("test", pairs),
        model,
        store,
        generation=how,
        lengths=LengthPolicy(max_tokens=504, max_response_tokens=3),
    )
    assert [len(group.bases[0].ids) for group in bounded.groups][:2] == [min(4, len(generated.ids)), 3]
    assert bounded.groups[0].bases[0].ids == generated.ids[:4]


def test_a_base_response_without_text_is_refused(tmp_path: Path) -> None:
    model, own = loaded(), with_bases(preferences(2), {0: ("ok", " \n")})
    with pytest.raises(BapoError, match=r"given for the prompt 'question 0 ' has no text"):
        anchor(own, model, AnchorStore(tmp_path / "a", model), generation=SHORT)


# ---- the model's own response, rejected -----------------------------------------------------------------------------


def test_a_base_response_that_a_pair_rejects_is_known_and_counted(tmp_path: Path) -> None:
    model = loaded()
    own = [Pair((Message("user", f"q{i}"),), f"good {i}", f"bad {i}") for i in range(4)]
    own += [Pair((Message("user", "q0"),), "good 0", "mine"), Pair((Message("user", "q3"),), "mine", "worse")]
    bases = {0: ("mine",), 1: (" bad 1 ", "other"), 2: ("other",), 3: ("mine",)}
    own = with_bases(group_pairs("test", own), bases)
    anchored = anchor(own, model, AnchorStore(tmp_path / "a", model), generation=SHORT)
    assert [[base.rejected for base in group.bases] for group in anchored.groups] == [
        [True],  # one of its pairs rejects it
        [True, False],  # the same text but for white space
        [False],
        [False],  # chosen: anchor and pair pull the same way
    ]
    assert anchored.counts == {
        "prompts whose rejected response is the model's own, anchored to another": 1,
        "prompts whose rejected response is the model's own, and so without an anchor": 1,
    }


SPACE = tiny_tokenizer()(" ")["input_ids"][0]


@pytest.mark.parametrize(
    ("base", "ended", "rejected", "same"),
    [
        ((5, 6, 7, 3), True, (5, 6, 7, 3), True),
        ((5, 6, 7, 3), True, (5, 6, 7, 2), True),  # another of the end tokens
        ((5, 6, 7), False, (5, 6, 7, 3), True),
        ((5, 6), False, (5, 6, 7, 3), True),  # cut when it was generated
        ((80, 81, SPACE), False, (80, 81, 3), True),  # cut behind a space, which a person left out
        ((80, 81, SPACE), False, (80, 3), False),
        ((5, 6, 7, 8, 3), True, (5, 6), True),  # the rejected one was cut
        ((5, 6, 3), True, (5, 6, 7, 3), False),  # ended earlier: another response
        ((5, 6, 7, 3), True, (5, 6, 3), False),
        ((5, 9), False, (5, 6, 7, 3), False),
        ((3,), True, (5, 6, 3), False),
        ((3,), True, (3,), True),
    ],
)
def test_when_a_base_response_is_another_one(
    base: tuple[int, ...], ended: bool, rejected: tuple[int, ...], same: bool
) -> None:
    chat = ChatFormat(tiny_tokenizer(), [2, 3])
    assert is_any_of(Response(base, ended), [(200, 201, 3), rejected], chat) is same
