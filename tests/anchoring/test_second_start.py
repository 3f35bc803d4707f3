"""A second start: what is kept from the first gives the same numbers, and is never trusted where it does not fit."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import normalizers

from bapo.anchoring import AnchoredPreferences, AnchorStore, GenerationSettings, LengthPolicy, anchor
from bapo.anchoring.index import INDEX, StoreIndex
from bapo.anchoring.tokens import tokenize
from bapo.errors import BapoError
from bapo.journal import Journal
from bapo.models import ChatFormat, LoadedModel
from bapo.preferences import Message, Pair, Preferences, group_pairs
from tests.anchoring.test_anchor import journals, loaded
from tests.command import SERVER
from tests.tiny import NO_END, tiny_tokenizer

SAMPLED = GenerationSettings(max_new_tokens=6, temperature=1.0, responses=2)
LENGTHS = LengthPolicy(max_prompt_tokens=60, max_response_tokens=12)


def preferences(prompts: int = 40) -> Preferences:
    """Of all that can become of a group: too long a prompt, cut responses, equal tokens, base responses of its own."""
    pairs = []
    for i in range(prompts):
        prompt = (Message("user", f"question {i} {'?' * (60 * (i % 9 == 3))}"),)
        bases = (f"as I said {i}", "hm") if i % 4 == 1 else ()
        pairs += [Pair(prompt, f"yes {i}", f"no {j} {'really ' * (i % 3)}", bases) for j in range(2)]
        pairs += [Pair(prompt, f"yes {i}", "hm", bases)] * (i % 8 == 1)
    return group_pairs("test", pairs)


def anchored(folder: Path, data: Preferences | None = None, model: LoadedModel | None = None) -> AnchoredPreferences:
    """What a start makes of it that knows only what lies in the folder."""
    model = model or loaded()
    return anchor(data or preferences(), model, AnchorStore(folder, model), generation=SAMPLED, lengths=LENGTHS)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AnchoredPreferences]:
    """A store, and what the start that made it came to."""
    folder = tmp_path_factory.mktemp("first") / "a"
    return folder, anchored(folder)


@pytest.fixture
def store(first: tuple[Path, AnchoredPreferences], tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(first[0], tmp_path / "a"))


def forbid(monkeypatch: pytest.MonkeyPatch, *paths: str) -> None:
    for path in paths:

        def must_not_run(*_: object, called: str = path, **__: object) -> None:
            raise AssertionError(called)

        monkeypatch.setattr(path, must_not_run)


def test_a_second_start_is_the_first_bit_for_bit_and_looks_at_no_text_and_no_line(
    first: tuple[Path, AnchoredPreferences], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, expected = first
    assert any(base.rejected for group in expected.groups for base in group.bases)
    assert {"pairs dropped: prompt too long", "responses cut: too long"} <= expected.counts.keys()
    model = loaded()
    for name in ("prompt_ids", "response_ids", "response_text"):
        forbid(monkeypatch, f"bapo.models.chat.ChatFormat.{name}")
    forbid(monkeypatch, "bapo.journal.Journal._parsed", "bapo.anchoring.anchored.ResponseScorer")
    again = anchored(folder, model=model)
    assert again == expected
    assert [[list(base.ref_tokens) for base in group.bases] for group in again.groups] == [
        [list(base.ref_tokens) for base in group.bases] for group in expected.groups
    ]
    assert list(again.counts.items()) == list(expected.counts.items())


def test_without_the_index_the_journals_say_the_same(
    first: tuple[Path, AnchoredPreferences], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (store / INDEX).unlink()
    before = journals(store)
    forbid(monkeypatch, "bapo.anchoring.anchored.generate_batch")
    forbid(monkeypatch, "bapo.likelihood.ResponseScorer.score")
    assert anchored(store) == first[1]
    assert journals(store) == before
    assert anchored(store) == first[1]


def start_and_be_killed(folder: Path, stage: str, at: int) -> None:
    def kill(now: str, done: int, total: int, note: str = "") -> None:
        if now == stage and done >= at:
            os.kill(os.getpid(), signal.SIGKILL)

    model = loaded()
    anchor(preferences(), model, AnchorStore(folder, model), generation=SAMPLED, lengths=LENGTHS, on_progress=kill)


def test_after_kills_it_is_the_first_bit_for_bit(first: tuple[Path, AnchoredPreferences], tmp_path: Path) -> None:
    moments = [("tokenizing", 1), ("base responses", 1), ("reference log-probs", 16)]
    for stage, at in moments:  # one after the other in one folder
        process = SERVER.Process(target=start_and_be_killed, args=(tmp_path / "a", stage, at))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert anchored(tmp_path / "a") == first[1]
    assert journals(tmp_path / "a") == journals(first[0])
    assert anchored(tmp_path / "a") == first[1]


def in_database(*statements: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with sqlite3.connect(path) as database:
            for statement in statements:
                assert database.execute(statement).rowcount != 0
        database.close()

    return damage


def without_rows(*statements: str) -> Callable[[Path], None]:
    """Damage that shows only where journals are looked into."""
    return in_database("DELETE FROM anchored", *statements)


def with_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def with_a_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


@pytest.mark.parametrize(
    "damage",
    [
        in_database("UPDATE anchored SET content = replace(content, x'2d', x'30')"),
        in_database("UPDATE anchored SET content = substr(content, 1, 20)"),
        in_database("UPDATE tokens SET content = x''"),
        in_database("UPDATE covered SET digest = 'x'"),
        in_database("UPDATE covered SET size = size - 1"),
        in_database("UPDATE covered SET size = size + 1000000"),
        in_database("DELETE FROM covered"),
        without_rows("UPDATE covered SET places = NULL"),
        without_rows("UPDATE covered SET places = 'x', size = 'x'"),
        without_rows("UPDATE places SET place = NULL"),
        without_rows("UPDATE places SET place = -1"),
        without_rows("DELETE FROM places WHERE place > 0"),
        in_database("PRAGMA user_version = 7"),
        in_database("DROP TABLE places"),
        without_rows("UPDATE places SET place = 0"),
        without_rows("UPDATE places SET place = place + 1"),
        without_rows("UPDATE places SET place = 1000000000 WHERE journal = 'logps.jsonl'"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no database" * 1000),
        lambda path: path.write_bytes(path.read_bytes()[:5000]),
        lambda path: path.write_bytes(path.read_bytes()[:-5000]),
        with_a_folder,
        with_a_link,
    ],
)
def test_an_index_that_does_not_fit_changes_nothing(
    damage: Callable[[Path], None], first: tuple[Path, AnchoredPreferences], store: Path
) -> None:
    damage(store / INDEX)
    model, before = loaded(), journals(store)
    for _ in range(2):
        assert anchored(store, model=model) == first[1]
    assert journals(store) == before


def test_no_changed_byte_of_the_index_becomes_another_number(
    first: tuple[Path, AnchoredPreferences], store: Path
) -> None:
    path, model, rng = store / INDEX, loaded(), random.Random(21)
    whole = path.read_bytes()
    for _ in range(30):
        changed = bytearray(whole)
        for at in rng.sample(range(len(whole)), 20):
            changed[at] ^= 1 << rng.randrange(8)
        path.unlink(missing_ok=True)
        path.write_bytes(changed)
        assert anchored(store, model=model) == first[1]


def test_an_index_that_another_program_holds_is_done_without(
    first: tuple[Path, AnchoredPreferences], store: Path
) -> None:
    holder = sqlite3.connect(store / INDEX, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    assert anchored(store) == first[1]
    holder.close()
    assert anchored(store) == first[1]


def test_a_damaged_line_is_named_and_made_again_once_it_is_deleted(
    first: tuple[Path, AnchoredPreferences], store: Path
) -> None:
    path = store / "logps.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 3
    path.write_bytes(b"".join([lines[0], lines[1].replace(b'"logp":-', b'"logp":', 1), lines[2]]))
    for _ in range(2):
        with pytest.raises(BapoError, match=r"logps\.jsonl is damaged at line 2: delete that line"):
            anchored(store)
    path.write_bytes(lines[0] + lines[2])
    assert anchored(store) == first[1]
    assert sorted(path.read_bytes().splitlines(keepends=True)) == sorted(lines)


def test_only_lines_that_are_asked_for_are_read(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = preferences()
    few = replace(few, groups=tuple(replace(group, pairs=group.pairs[:1]) for group in few.groups[-2:]))
    read: list[int] = []
    parsed = Journal._parsed
    monkeypatch.setattr(
        Journal, "_parsed", lambda self, line, *at, **how: (read.append(1), parsed(self, line, *at, **how))[1]
    )
    anchored(store, few)
    assert 0 < len(read) <= 2, "the line of their base responses, and that of their scores"


def test_scores_of_a_model_are_none_of_the_next_one_in_an_emptied_folder(store: Path, tmp_path: Path) -> None:
    """Who is told that a store is another model's may empty it, which leaves what `rm *` leaves."""
    for path in store.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif not path.name.startswith("."):
            path.unlink()
    assert (store / INDEX).is_file()
    other = loaded(seed=1)
    assert anchored(store, model=other) == anchored(tmp_path / "alone", model=other)


def test_what_a_full_disk_says_first_is_what_is_told(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (store / "logps.jsonl").unlink()

    def full(journal: Journal, batch: object) -> int:
        raise BapoError("see that there is room")

    def confused(*_: object, **__: object) -> None:
        raise BapoError("was changed or deleted by something else")

    monkeypatch.setattr(Journal, "append", full)
    monkeypatch.setattr(StoreIndex, "commit", confused)
    with pytest.raises(BapoError, match="see that there is room"):
        anchored(store)


def test_an_index_is_private(store: Path) -> None:
    (store / INDEX).unlink()
    before = os.umask(0)
    try:
        anchored(store, preferences(2))
    finally:
        os.umask(before)
    assert stat.S_IMODE((store / INDEX).stat().st_mode) == 0o600


def test_token_ids_are_kept_under_all_that_they_depend_on(tmp_path: Path) -> None:
    index, data = StoreIndex(tmp_path), preferences()
    other = tiny_tokenizer()
    other.backend_tokenizer.normalizer = normalizers.Lowercase()
    formats = [ChatFormat(tiny_tokenizer()), ChatFormat(tiny_tokenizer(NO_END)), ChatFormat(other)]
    for _ in range(2):
        for chat in formats:
            for policy in (LENGTHS, replace(LENGTHS, max_response_tokens=5), replace(LENGTHS, max_tokens=40)):
                assert tokenize(data, chat, policy, index=index) == tokenize(data, chat, policy)
