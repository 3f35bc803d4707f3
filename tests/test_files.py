"""Files as users and other programs leave them, and what a killed or disturbed process leaves of ours."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import re
import resource
import signal
import time
from pathlib import Path

import pytest

from bapo import files
from bapo.errors import LONGEST_SENTENCE, BapoError, foreign
from bapo.jobs.run_folder import alone
from bapo.journal import Journal

RECORDS = [[{"key": f"k{i}", "logp": -1.5 - i}] for i in range(3)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_text_that_says_its_encoding_is_read(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("né 漢 🙂\r\nb\u2028c\n".encode(encoding))
    assert files.read_text(tmp_path / "a") == "né 漢 🙂\r\nb\u2028c\n"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("a\nné".encode("latin-1"), r"not UTF-8 text \(line 2, byte 3\): save it as UTF-8"),
        ("a\nn – é".encode("cp1252"), r"line 2"),
        ("a\nb".encode("utf-16-le"), r"NUL character \(line 1\)"),
        ("a".encode("utf-16") + b"\x00", "not UTF-16 text"),
        (b"a\nb\0", r"NUL character \(line 2\)"),
    ],
)
def test_a_text_that_cannot_be_read_for_certain_is_refused(content: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(BapoError, match=sentence):
        files.read_text(tmp_path / "a")


def test_what_is_no_file_is_one_sentence(tmp_path: Path) -> None:
    for path, reason in ((tmp_path, "Is a directory"), (tmp_path / "none", "No such file")):
        with pytest.raises(BapoError, match=f"cannot be read .{reason}"):
            files.read_text(path)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="becomes another user, who may not read")
def test_a_file_that_may_not_be_read_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a").touch(mode=0)
    os.seteuid(65534)
    try:
        with pytest.raises(BapoError, match=r"cannot be read .Permission denied"):
            files.read_text(tmp_path / "a")
    finally:
        os.seteuid(0)


def test_lines_of_json_end_at_line_feeds_only() -> None:
    values = [f"a{end}b" for end in "\u2028\u2029\u0085\x0b\x0c\x1c\x1d\x1e"]
    text = "".join(json.dumps(value, ensure_ascii=False) + "\r\n" for value in values)
    assert [value for _, value in files.json_lines(text, "x")] == values
    with pytest.raises(BapoError, match="x line 3 is not valid JSON"):
        list(files.json_lines('1\n\n{"a":\n', "x"))
    with pytest.raises(BapoError, match=r"x line 1 is not valid JSON \(the key 'a' repeats\)"):
        list(files.json_lines('[{"b": 1, "a": 2, "c": {}, "a": 2}]', "x"))
    with pytest.raises(BapoError, match="nested too deeply"):
        files.parse_json("[" * 100_000, "x")


@pytest.mark.parametrize("inner", ["1", r'"cut \ud83d"'])
@pytest.mark.parametrize("around", ["[{}]", '{{"a": {}}}'])
def test_what_is_nested_more_deeply_than_is_looked_through_is_refused(around: str, inner: str) -> None:
    def nested(levels: int) -> str:
        return inner if not levels else around.format(nested(levels - 1))

    files.parse_json(nested(files.DEEPEST), "x")
    for levels in (files.DEEPEST + 1, 600):
        with pytest.raises(BapoError, match=r"x is not valid JSON \(it is nested too deeply\): mend or remove it"):
            files.parse_json(nested(levels), "x")


def test_which_of_very_many_keys_repeats_is_found_at_once() -> None:
    keys = ", ".join(f'"{number}": 0' for number in range(100_000))
    start = time.process_time()
    with pytest.raises(BapoError, match="the key '99999' repeats"):
        files.parse_json(f'{{{keys}, "99999": 1}}', "x")
    assert time.process_time() - start < 5


def test_half_a_surrogate_pair_becomes_a_letter_and_a_whole_one_stays() -> None:
    value = files.parse_json(r'{"a\udc00": ["cut \ud83d", "\ud83dx", "\ud83d\ude00", "é"]}', "x")
    assert value == {"a\ufffd": ["cut \ufffd", "\ufffdx", "😀", "é"]}


def test_a_record_is_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    content = {"é": 1.1, "list": [1, None, {"b": 2, "a": "x"}], "path": Path("a")}
    files.write_record(path, content)
    assert files.read_record(path, "") == {"é": 1.1, "list": [1, None, {"b": 2, "a": "x"}], "path": "a"} | {"path": "a"}
    whole = path.read_text()
    for damage in (
        whole.replace("1.1", "1.2"),
        whole.replace("null", "0"),
        whole.replace('"x"', "1"),
        whole[:-9],
        "3",
        "[]",
        "",
        json.dumps(content | {"path": "a"}),
        "[" * 100_000,
    ):
        path.write_text(damage)
        with pytest.raises(BapoError, match=r"damaged.*: delete it"):
            files.read_record(path, "delete it")


def journal(folder: Path) -> Journal:
    own = Journal(folder / "j.jsonl")
    assert list(own.read()) == []
    for batch in RECORDS:
        own.append(batch)
    return own


def test_every_changed_letter_of_a_journal_is_noticed(tmp_path: Path) -> None:
    """But for the last line feed: without it the last line is a torn one, which is made again."""
    own = journal(tmp_path)
    whole = own.path.read_bytes()
    assert list(Journal(own.path).read()) == RECORDS
    for at in range(len(whole) - 1):
        changed = bytearray(whole)
        changed[at] ^= 1
        own.path.write_bytes(changed)
        with pytest.raises(BapoError, match=r"damaged at line [123]: delete that line"):
            list(Journal(own.path).read())


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_torn_last_line_is_passed_over_and_replaced(cut: int, tmp_path: Path) -> None:
    whole = journal(tmp_path).path.read_bytes()
    (tmp_path / "j.jsonl").write_bytes(whole[:-cut])
    again = Journal(tmp_path / "j.jsonl")
    assert list(again.read()) == RECORDS[:2]
    assert again.path.read_bytes() == whole[:-cut], "a reader changes nothing: somebody may be writing"
    again.append(RECORDS[2])
    assert again.path.read_bytes() == whole


def test_a_journal_that_somebody_else_changes_or_deletes_is_noticed(tmp_path: Path) -> None:
    own = journal(tmp_path)
    own.check()
    other = Journal(own.path)
    list(other.read())
    other.append([])
    for disturbed in (own.check, lambda: own.append([])):
        with pytest.raises(BapoError, match="changed or deleted by something else"):
            disturbed()
    own.path.unlink()
    with pytest.raises(BapoError, match="changed or deleted"):
        other.check()


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"before": 1})
    own = journal(tmp_path)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))  # the system refuses to write more, as a full disk does
    try:
        with pytest.raises(BapoError, match=r"a\.json could not be written \(File too large\): see that there is room"):
            files.write_json(path, "x" * 10_000)
        with pytest.raises(BapoError, match=r"j\.jsonl could not be written"):
            own.append([{"key": "x" * 10_000}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert json.loads(path.read_text()) == {"before": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "j.jsonl"]
    again = Journal(own.path)
    assert list(again.read()) == RECORDS
    again.append(RECORDS[0])
    assert list(Journal(own.path).read()) == [*RECORDS, RECORDS[0]]


def test_a_file_is_its_owners_and_a_link_in_its_place_is_not_gone_through(tmp_path: Path) -> None:
    theirs, link = tmp_path / "theirs", tmp_path / "report.json"
    theirs.write_text("as it was")
    link.symlink_to(theirs)
    before = os.umask(0)
    try:
        files.write_text(link, "a text of somebody's")
    finally:
        os.umask(before)
    assert theirs.read_text() == "as it was"
    assert (link.read_text(), link.is_symlink(), link.stat().st_mode & 0o777) == ("a text of somebody's", False, 0o600)


def test_what_killed_processes_had_begun_to_write_is_removed_and_nothing_else(tmp_path: Path) -> None:
    def killed() -> None:
        os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        files.write_text(tmp_path / "report.json", "a text of somebody's")

    other = multiprocessing.get_context("fork").Process(target=killed)
    other.start()
    other.join()
    (begun,) = tmp_path.iterdir()
    assert files.is_hidden(begun)
    (tmp_path / "kept").write_text("")
    files.remove_staged(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_all_files_below_a_folder_are_flushed_but_no_link_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, outside = tmp_path / "run", tmp_path / "outside"
    (folder / "below").mkdir(parents=True)
    for path in (outside, folder / "adapter", folder / "below/state"):
        path.write_text("x")
    (folder / "link").symlink_to(outside)
    flushed = set()
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.add(os.readlink(f"/proc/self/fd/{descriptor}")))
    files.flush_folder(folder)
    assert flushed == {str(path) for path in (folder, folder / "adapter", folder / "below", folder / "below/state")}


def test_a_disk_that_fails_is_one_sentence(tmp_path: Path) -> None:
    for door, sentence in ((files.reading, "cannot be read"), (files.writing, "could not be written")):
        with (
            pytest.raises(BapoError, match=rf"^{re.escape(str(tmp_path))} {sentence} \(Input/output error\): see"),
            door(tmp_path),
        ):
            raise OSError(errno.EIO, os.strerror(errno.EIO), "another name")


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(BapoError, match=r"cannot be made .a file is in its way.: name another"):
            files.make_folder(path)
    with pytest.raises(BapoError, match=r"could not be written"):
        files.write_json(tmp_path / "file/below/a.json", 1)


def hold(path: Path, held: object, seconds: float) -> None:
    with files.locked(path):
        held.set()  # type: ignore[attr-defined]
        time.sleep(seconds)


@pytest.mark.parametrize("kill", [False, True])
def test_a_lock_is_waited_for_and_that_of_a_killed_process_is_free(kill: bool, tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    held, waited = fork.Event(), []
    other = fork.Process(target=hold, args=(tmp_path / ".lock", held, 60 if kill else 1.0))
    other.start()
    assert held.wait(60)
    start = time.monotonic()
    if kill:
        other.kill()
        other.join()
    with files.locked(tmp_path / ".lock", lambda: waited.append(1)):
        assert waited == ([] if kill else [1])
        assert kill or time.monotonic() - start > 0.5
    other.join()


def test_the_first_process_of_a_run_locks_for_all_and_does_not_let_them_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with alone(tmp_path, print):
        with pytest.raises(BapoError, match="Another process trains into"), alone(tmp_path, print):
            pass
        monkeypatch.setenv("RANK", "1")
        with alone(tmp_path, print):
            pass


def test_what_cannot_be_locked_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BapoError, match="cannot be locked"), files.locked(tmp_path / "no" / "\0"):
        pass


def test_what_breaks_off_in_rust_is_a_sentence_and_what_a_user_stops_is_not() -> None:
    class PanicException(BaseException):
        """As pyo3 raises it."""

    with pytest.raises(BapoError, match=r"^It failed \(no entry\): mend it\.$"), foreign("It failed", "mend it"):
        raise PanicException("no entry")
    with pytest.raises(KeyboardInterrupt), foreign("It failed", "mend it"):
        raise KeyboardInterrupt


def test_a_sentence_is_one_line_and_no_longer_than_a_person_reads() -> None:
    error = BapoError(f"The value {'9' * 100_000}\n\n  of it\u2028does not fit: delete it.")
    assert re.fullmatch(r"The value 9+ \.\.\. 9+ of it does not fit: delete it\.", str(error))
    assert len(str(error)) <= LONGEST_SENTENCE + 5
    with pytest.raises(BapoError, match=r"^It failed \(x+ \.\.\. x+\): mend it\.$"), foreign("It failed", "mend it"):
        raise RuntimeError("x" * 5000 + "\nmore")
