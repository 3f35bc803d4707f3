"""What is printed is shown and never obeyed, what is kept is private, and what is shared names no places."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
import unicodedata
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import regex

from bapo import errors, files, visible
from bapo.cli import console
from bapo.cli.ending import NO_TELEMETRY, _Printed
from bapo.jobs import read_recipe
from bapo.jobs.marks import adapter_mark
from bapo.jobs.places import as_shared
from bapo.journal import Journal
from bapo.reporting.escapes import in_csv, in_latex, in_markdown
from bapo.reporting.page import Page, PageTable, render
from bapo.reporting.pictures import Picture, inline, save
from bapo.reporting.study import as_csv, as_latex
from bapo.reporting.tables import markdown_table
from bapo.results import Kind, Provenance, SideBySide, shared_name, shared_names, without_places
from bapo.stopped import STOPPED
from tests.command import LIMIT_S, bapo
from tests.tiny import tiny_model, tiny_tokenizer

HOSTILE = {
    "colour": "\x1b[31mred\x1b[0m",
    "title": "\x1b]0;owned\x07",
    "link": "\x1b]8;;http://x\x1b\\here\x1b]8;;\x1b\\",
    "screen": "\x1b[2J\x1b[H",
    "c1": "\x9b31mred\x9b0m",
    "back": "safe\x08\x08\x08\x08evil",
    "return": "safe\revil",
    "override": "\u202etxt.exe\u202c",
    "isolate": "\u2066a\u2069",
    "no-width": "a\u200bb\ufeffc",
    "tag": "\U000e0041\U000e0042",
    "separator": "a\u2028b\u2029c",
    "half": "\ud83d",
    "delete": "a\x7fb",
    "shift": "\x0e\x0f",
}
SEEN = {
    "override": r"\u202etxt.exe\u202c",
    "colour": r"\x1b[31mred\x1b[0m",
    "c1": r"\x9b31mred\x9b0m",
    "return": r"safe\revil",
    "tag": r"\U000e0041\U000e0042",
}
MARKUP = "[red]a[/red] [link=http://x]b[/link] :smile: [/]"
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


def written(monkeypatch: pytest.MonkeyPatch) -> tuple[io.BytesIO, Any]:
    """Where a command's standard output goes, and what stands at its door."""
    target = io.BytesIO()
    stream = _Printed(io.TextIOWrapper(target, encoding="utf-8"))
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    return target, stream


# ---- what is printed ------------------------------------------------------------------------------------------------


def test_every_character_that_is_obeyed_is_shown_and_every_other_one_stays() -> None:
    """As Unicode classes them; a few format characters are seen, or needed by scripts and emojis."""
    needed = {"\u200c", "\u200d", "\ufe0e", "\ufe0f"}
    seen = {"\n", "\t", *needed, *map(chr, range(0x600, 0x606)), "\u06dd", "\u070f", "\u0890", "\u0891"}
    seen |= {"\u08e2", "\U000110bd", "\U000110cd", *map(chr, range(0x13430, 0x13440))}
    unseen = regex.compile(r"\p{Default_Ignorable_Code_Point}")
    for character in map(chr, range(sys.maxunicode + 1)):
        category = unicodedata.category(character)
        if category in ("Cc", "Cf", "Zl", "Zp", "Cs") or unseen.match(character):
            shown = visible.visible(character)
            assert (shown == character) == (character in seen), hex(ord(character))
            assert character in seen or (shown.isascii() and eval(f'"{shown}"') == character), hex(ord(character))
        elif category != "Cn":
            assert visible.visible(character) == character, hex(ord(character))
    assert visible.visible("a\n\tb\\x1b é 漢 👩\u200d👩\u200d👧") == "a\n\tb\\x1b é 漢 👩\u200d👩\u200d👧"
    assert visible.visible("a\u115f\u3164\u034f\U000e0101 ❤\ufe0f") == r"a\u115f\u3164\u034f\U000e0101 " + "❤\ufe0f"
    assert visible.visible("a\n\tb", lines=False) == r"a\n\tb"


@pytest.mark.parametrize("name", HOSTILE)
def test_the_door_shows_what_a_terminal_would_obey(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target, stream = written(monkeypatch)
    print(HOSTILE[name])
    sys.stderr.writelines([HOSTILE[name], "\n"])
    stream.flush()
    text = target.getvalue().decode()
    assert not OBEYED.search(text)
    assert text == f"{visible.visible(HOSTILE[name])}\n" * 2
    assert SEEN.get(name, "") in text


@pytest.mark.parametrize("name", [*HOSTILE, "markup"])
def test_on_a_terminal_only_the_codes_of_the_command_itself_are_obeyed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table, a panel, a line and a bar, with Rich's own styles switched on."""
    hostile = HOSTILE.get(name, MARKUP)
    target, stream = written(monkeypatch)
    how: dict[str, Any] = {"force_terminal": True, "width": 70, "markup": False, "emoji": False, "highlight": False}
    shown = console._Console(color_system="standard", **how)
    for attribute in ("out", "err"):
        monkeypatch.setattr(console, attribute, shown)
    console.print_table((hostile, "b"), [(hostile, "1")], title=hostile)
    console.print_answers(hostile, {hostile: f"{hostile}\n{hostile}"})
    shown.print(hostile, style="bold")
    with console._bars() as report:
        report(hostile, 1, 2, hostile)
        print(hostile)
    console._Lines().report(hostile, 1, 1, hostile)
    console._show_warning(hostile, errors.BapoWarning)
    stream.flush()
    text = target.getvalue().decode()
    assert "\x1b[1m" in text, "styles work"
    own = re.sub(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\x1b\[2K|\x1b\[1A|\r(?=\x1b)", "", text)
    assert not OBEYED.search(own.replace("\r", ""))
    assert "\x1b[31m" not in text, "only data asked for red"
    assert "http" not in re.sub("[^\x1b]*", "", text)
    if name == "markup":
        assert MARKUP in own


def test_a_panel_is_as_wide_as_what_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    target, stream = written(monkeypatch)
    monkeypatch.setattr(console, "out", console._Console(width=60, markup=False))
    console.print_answers("q", {"a": HOSTILE["colour"], "b": "x"})
    stream.flush()
    lines = [line for line in target.getvalue().decode().splitlines() if "│" in line]
    assert {len(line.rstrip()) for line in lines} == {60}


def test_a_string_is_one_line_whatever_it_quotes(monkeypatch: pytest.MonkeyPatch) -> None:
    target, stream = written(monkeypatch)
    console._Console(width=80, markup=False).print("adapter in run\nbapo: all is well")
    stream.flush()
    assert target.getvalue() == b"adapter in run\\nbapo: all is well\n"


def test_json_holds_the_exact_text_and_nothing_that_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    target, stream = written(monkeypatch)
    content = {name: f"{text}\n\t{MARKUP} é" for name, text in HOSTILE.items()}
    console.print_json(content)
    stream.flush()
    text = target.getvalue().decode()
    assert not OBEYED.search(text.removesuffix("\n"))
    assert json.loads(text) == content
    assert "é" in text


@pytest.mark.parametrize("name", HOSTILE)
def test_a_sentence_shows_what_it_quotes(name: str) -> None:
    sentence = str(errors.BapoError(f"There is no {HOSTILE[name]}: name another."))
    assert not OBEYED.search(sentence)
    assert "\n" not in sentence


def test_data_and_names_of_files_and_of_options(tmp_path: Path) -> None:
    """By the command itself, in text and as JSON."""
    name = "mine\x1b[31m\u202e.jsonl"
    chosen = " ".join(text for key, text in HOSTILE.items() if key != "half")
    row = {"prompt": f"q {MARKUP}\nsecond line", "chosen": chosen, "rejected": "no"}
    (tmp_path / name).write_text(json.dumps(row) + "\n")
    said = bapo("data", name, cwd=tmp_path).stdout
    assert not OBEYED.search(said)
    assert r"mine\x1b[31m\u202e.jsonl: 1 prompts" in said
    assert f"» q {MARKUP}\nsecond line" in said
    assert r"\x1b]0;owned\x07" in said
    as_json = bapo("data", name, "--json", cwd=tmp_path).stdout
    assert not OBEYED.search(as_json.removesuffix("\n"))
    assert json.loads(as_json)["examples"][0]["chosen"] == chosen
    for arguments in (
        ["data", "nothing\x1b[2J\u202e.jsonl"],
        ["\x1b]0;x\x07"],
        ["data", "--\x1b[31m"],
        ["train", "--set", "\x1b[31m=\x1b[2J"],
    ):
        done = bapo(*arguments, cwd=tmp_path, code=2)
        assert not OBEYED.search(done.stdout + done.stderr), arguments
        assert r"\x1b" in done.stderr, arguments


def test_a_terminal_sees_no_code_of_the_data(tmp_path: Path) -> None:
    """On a real one, where Typer's own errors would let codes pass."""
    row = {"prompt": HOSTILE["colour"], "chosen": HOSTILE["title"], "rejected": "no"}
    (tmp_path / "mine.jsonl").write_text(json.dumps(row) + "\n")
    for arguments in (["data", "mine.jsonl"], ["data", "--\x1b[31mred"]):
        leader, follower = pty.openpty()
        command = [sys.executable, "-m", "bapo", *arguments]
        subprocess.run(command, cwd=tmp_path, stdout=follower, stderr=follower, timeout=LIMIT_S)
        os.close(follower)
        text = b""
        while True:
            try:
                part = os.read(leader, 65536)
            except OSError:  # how a terminal ends on Linux
                break
            text += part
            if not part:
                break
        os.close(leader)
        assert rb"\x1b[31mred" in text
        assert b"\x1b[31mred" not in text
        assert b"\x1b]" not in text


def test_a_recipe_that_is_printed_is_the_one_that_is_read_again(tmp_path: Path) -> None:
    name = "a\u200bb\x1b[31m\u202ec"
    printed = bapo("recipe", "--set", f"model.name={json.dumps(name)}", cwd=tmp_path).stdout
    assert not OBEYED.search(printed)
    (tmp_path / "mine.yaml").write_text(printed)
    assert bapo("recipe", "mine.yaml", cwd=tmp_path).stdout == printed
    assert read_recipe(str(tmp_path / "mine.yaml")).model.name == name


# ---- what is written in other formats --------------------------------------------------------------------------------

NAMES = [
    "a|b",
    "`code`",
    "<script>alert(1)</script>",
    "[x](http://x)",
    "![x](http://x)",
    "a\n| forged | row |",
    "$x$",
    r"\input{/etc/passwd}",
    "*b*",
    "&amp;",
    "\x1b[31m",
    "\u202eevil",
    "]]><x/>",
]


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("name", NAMES)
def test_names_are_text_in_every_format(name: str, tmp_path: Path) -> None:
    table = markdown_table((name, "b"), [(name, "1"), ("x", "2")])
    assert len(table.splitlines()) == 4
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in table.splitlines())
    assert not re.search(r"(?<!\\)[`<*$~&]|(?<!\\)\](?=[(\[])", in_markdown(name).replace(r"\\", ""))
    rows = list(csv.reader(io.StringIO(as_csv((("name", "b"), [(name, "1")])))))
    assert rows == [["name", "b"], [visible.visible(name), "1"]]
    latex = as_latex((("name", "b"), [(name, "1")]))
    assert latex.count("\\\\\n") == 2
    assert r"\input" not in latex
    assert not re.search(r"(?<!\\)[$&#%_]", in_latex(name))
    page = Page(
        name, [name], tables=[PageTable(name, (name,), [(name,)], name)], answers=[SideBySide(name, {name: name})]
    )
    html = render(page)
    assert "<script>alert" not in html
    assert "<x/>" not in html
    assert not OBEYED.search(html)
    picture = Picture("t", "c", lambda figure: figure.subplots().set_title(name), (3, 2))
    svg = inline(picture, "p")
    save(picture, tmp_path / "p")
    for drawn in (svg, (tmp_path / "p.svg").read_text()):
        texts = "".join(ET.fromstring(drawn[drawn.index("<svg") :]).itertext())
        assert all(visible.visible(part) in texts for part in name.split("\n"))
    assert not re.search(rb"/home|/root|/tmp", (tmp_path / "p.svg").read_bytes() + (tmp_path / "p.png").read_bytes())


def test_questions_of_a_page_are_data_of_its_script() -> None:
    flip = {
        "task": "t</script><script>x",
        "document": 1,
        "outcome": "lost",
        "right": 0,
        "before": [1.0],
        "after": [0.0],
    }
    asked = {"question": "</script>\u202e\x9b", "choices": ["<!--"]}
    html = render(Page("t", flips=[{**flip, "run": "r"}], questions={f"{flip['task']} 1": asked}))
    data = re.search(r'id="flip-data">(.*?)</script>', html, re.S)
    assert data is not None
    content = json.loads(data[1])
    assert content["questions"][f"{flip['task']} 1"]["question"] == r"</script>\u202e\x9b"
    assert content["flips"][0]["task"] == flip["task"]


@pytest.mark.parametrize(
    "cell", ["=1+2", "+cmd|' /C calc'!A0", "-2+3+cmd|' /C calc'!A0", "@SUM(1)", "\t=1", "-x", "=1\n"]
)
def test_no_cell_of_csv_is_a_formula(cell: str) -> None:
    assert in_csv(cell) == f"'{cell}"


@pytest.mark.parametrize(
    "cell", ["-0.123 [-0.2, -0.1]", "+1.5", "-1.0 [unknown]", "-12.3 (4.5) [-13.0, -11.0]", "-1e-05", "a=b"]
)
def test_numbers_of_csv_stay_numbers(cell: str) -> None:
    assert in_csv(cell) == cell


def test_the_row_of_a_latex_table_cannot_be_taken_for_an_argument() -> None:
    rows = as_latex((("a",), [("[2cm]",), ("*",)])).splitlines()
    assert not any(line.startswith(("[", "*")) for line in rows)


# ---- what is kept of people -----------------------------------------------------------------------------------------


def modes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): stat.S_IMODE(path.lstat().st_mode) for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A personalization and an evaluation, of absolute paths, under a umask that lets everybody read and write."""
    folder = tmp_path_factory.mktemp("anna-secret-home")
    tiny_model("llama").save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    rows = [{"prompt": f"What is {i}?", "chosen": f"{i}!", "rejected": "no"} for i in range(8)]
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run").mkdir()
    (folder / "run").chmod(0o755)
    told = {"BAPO_CACHE": str(folder / "cache")}
    places = ["-m", str(folder / "base"), "--anchored-store", str(folder / "store")]
    short = ["--set", "anchoring.base_max_new_tokens=4", "--set", "generations.max_new_tokens=4", "--held-out", "2"]
    before = os.umask(0)
    try:
        bapo(
            "personalize",
            str(folder / "mine.jsonl"),
            *places,
            *short,
            "--max-steps",
            "2",
            "-o",
            str(folder / "run"),
            cwd=folder,
            environment=told,
        )
        bapo(
            "evaluate",
            str(folder / "run/bapo"),
            *places,
            "--records",
            str(folder / "judged"),
            cwd=folder,
            environment=told,
        )
    finally:
        os.umask(before)
    return folder


@pytest.mark.parametrize("name", ["run", "store", "cache", "judged"])
def test_all_that_a_command_writes_is_for_its_user_alone(name: str, trained: Path) -> None:
    kept = modes(trained / name)
    assert kept
    others = {path: oct(mode) for path, mode in kept.items() if mode & 0o077}
    assert others == {}


def test_a_folder_of_the_user_keeps_its_mode(trained: Path) -> None:
    assert stat.S_IMODE((trained / "run").stat().st_mode) == 0o755
    assert stat.S_IMODE((trained / "store").stat().st_mode) == 0o700


SHARED = [
    "run/report.json",
    "run/report.html",
    "run/bapo/README.md",
    "judged/comparisons/*.json",
    "judged/comparisons/*.html",
]


@pytest.mark.parametrize("pattern", SHARED)
def test_what_is_shared_names_no_places(pattern: str, trained: Path) -> None:
    paths = sorted(trained.glob(pattern))
    assert paths
    for path in paths:
        text = path.read_text()
        assert "anna-secret-home" not in text
        assert str(Path.home()) not in text
        assert os.uname().nodename not in text
        assert "mine.jsonl" in text or path.suffix == ".html" or "comparisons" in str(path)


def test_an_adapter_names_no_place_but_its_base(trained: Path) -> None:
    for path in (trained / "run/bapo").iterdir():
        text = path.read_bytes().decode(errors="replace").replace(json.dumps(str(trained / "base")), "")
        assert "anna-secret-home" not in text, path.name
    run = json.loads((trained / "run/bapo/run.json").read_text())
    assert run["recipe"]["model"]["name"] == str(trained / "base")
    assert run["recipe"]["preferences"]["source"] == "mine.jsonl"


def test_a_recipe_that_is_shared_names_an_adapter_by_its_mark_and_no_question(tmp_path: Path) -> None:
    adapter = tmp_path / "anna-secret-home/adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text("{}")
    told = {"model.reference_adapter": str(adapter), "generations.questions": ["Whom did Anna meet?"]}
    shared = as_shared(read_recipe(None, told))
    assert not re.search("anna-secret-home|Anna meet", json.dumps(shared))
    assert shared["model"]["reference_adapter"] == "adapter"
    assert shared["model"]["reference_adapter_mark"] == adapter_mark(adapter) is not None
    assert as_shared(read_recipe(None))["model"]["reference_adapter_mark"] is None


def test_an_adapter_is_evaluated_on_its_data_wherever_these_lie(trained: Path) -> None:
    """`trained` says no source to evaluate."""
    (record,) = (trained / "judged/comparisons").glob("*.json")
    content = json.loads(record.read_text())["content"]
    assert content["source"] == "mine.jsonl"
    assert list(content["models"]) == ["base", "bapo"]


@pytest.mark.parametrize("suffix", [".bin", ".pkl", ".pickle"])
def test_nothing_is_kept_as_a_pickle(suffix: str, trained: Path) -> None:
    assert not [path for path in trained.rglob(f"*{suffix}") if path.is_file()]


def test_a_library_in_the_users_own_process_writes_privately_too(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with files.private():
            (tmp_path / "library").write_text("x")
        Journal(tmp_path / "journal").append([{"a": 1}])
        files.make_folder(tmp_path / "a/b/c")
        (tmp_path / "users").write_text("x")
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
    kept = modes(tmp_path)
    assert kept.pop("users") == 0o644
    assert {oct(mode) for mode in kept.values()} == {"0o600", "0o700"}


def test_names_of_places() -> None:
    assert shared_name("/home/anna/models/tiny") == "tiny"
    assert shared_name("~/mine.jsonl") == "mine.jsonl"
    assert shared_name("../../anna/mine.jsonl") == "mine.jsonl"
    assert shared_name("user:/home/anna/people.jsonl#anna") == "user:people.jsonl#anna"
    for name in ("organization/name", "runs/a", "dsp:academy", "smollm2", "a: /b", ""):
        assert shared_name(name) == name
    assert shared_names(["/a/one/bapo", "/a/two/bapo", "runs/x"]) == ["one/bapo", "two/bapo", "runs/x"]
    assert shared_names(["/a/bapo", "/a/bapo"]) == ["bapo", "bapo"]
    assert without_places({"p": [Path("/a/b")], "system": "/think", "n": 1}) == {"p": ["b"], "system": "/think", "n": 1}


def test_a_record_is_made_from_names(tmp_path: Path) -> None:
    made_from = Provenance(
        "/home/anna/m", "w", adapter="/home/anna/r", settings={"recipe": {"data_folder": "/home/anna"}}
    )
    kind = Kind("answers", 1, SideBySide)
    record = kind.write(tmp_path / "r.json", SideBySide("p", {}), identity="i", made_from=made_from)
    assert "/home" not in (tmp_path / "r.json").read_text()
    assert record.made_from == kind.read(tmp_path / "r.json").made_from


def test_a_study_of_absolute_paths_is_called_by_names(tmp_path: Path) -> None:
    """Its keys are names of files, and its labels stand in all tables and records."""
    grid = {"models": ["/home/anna/tiny"], "preferences": ["user:/home/anna/people.jsonl#bo"], "methods": ["dpo"]}
    (tmp_path / "study.yaml").write_text(json.dumps({"grids": {"a": grid}}))
    from bapo.study import open_study

    study = open_study(tmp_path / "study.yaml")
    assert [(cell.model, cell.preference) for cell in study.cells.values()] == [("tiny", "user:people.jsonl#bo")]
    assert not [key for key in (*study.cells, *study.jobs) if "anna" in key or "home" in key]
    assert {job.recipe.model.name for job in study.jobs.values()} == {"/home/anna/tiny"}, "which they are loaded by"


def test_no_telemetry_unless_it_is_asked_for(tmp_path: Path) -> None:
    shows = "import os; from bapo.cli import main; import bapo.preferences as p, sys; sys.argv = ['bapo', 'data']\n"
    shows += "def told(*a, **k): print(*(os.environ.get(n) for n in sys.argv_names))\n"
    shows += f"sys.argv_names = {list(NO_TELEMETRY)}\np.read_preferences = told\nmain()"
    told = {name: value for name, value in os.environ.items() if name not in NO_TELEMETRY}
    for asked, expected in (({}, "1 0"), ({"RAY_USAGE_STATS_ENABLED": "1"}, "1 1")):
        done = subprocess.run([sys.executable, "-c", shows], env={**told, **asked}, capture_output=True, text=True)
        assert done.stdout.strip() == expected
    quiet = "import os; before = dict(os.environ); import bapo, bapo.jobs, bapo.reporting; assert os.environ == before"
    subprocess.run([sys.executable, "-c", quiet], env=told, check=True, timeout=LIMIT_S)


# ---- how a command ends ---------------------------------------------------------------------------------------------

QUICK = [
    ["--help"],
    ["study", "--help"],
    ["recipe"],
    ["data"],
    ["data", "--json"],
    ["study", "status", "study.yaml"],
    ["study", "plan", "study.yaml"],
    ["evaluate", "--help"],
]


@pytest.mark.parametrize("arguments", QUICK, ids=" ".join)
def test_a_reader_that_has_gone_ends_any_command_quietly(arguments: list[str], tmp_path: Path) -> None:
    grid = "grids: {a: {models: [somewhere/m], preferences: [starter:concise], methods: [dpo]}}"  # nothing is measured
    (tmp_path / "study.yaml").write_text(grid)
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "bapo", *arguments]
    done = subprocess.run(command, cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE, timeout=LIMIT_S)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("milliseconds", [0, 5, 20, 60])
def test_ctrl_c_says_its_sentence_while_the_command_begins(milliseconds: int, tmp_path: Path) -> None:
    """From the first line of ours on, and while that which takes time is imported."""
    shutil.copytree(Path(visible.__file__).parent, tmp_path / "bapo", ignore=shutil.ignore_patterns("__pycache__"))
    main = tmp_path / "bapo/__main__.py"
    told = "meet_signals()\nimport os\nos.write(1, b'here')\n"
    main.write_text(main.read_text().replace("meet_signals()\n", told, 1))
    command = [sys.executable, "-m", "bapo", "evaluate", "nothing"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        assert running.stdout is not None
        assert running.stdout.read(4) == b"here"
        time.sleep(milliseconds / 1000)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=LIMIT_S)
    assert (running.returncode, err.decode().strip()) == (130, f"bapo: {STOPPED}")


def test_signals_are_met_before_anything_else_is_imported() -> None:
    """Between Python's own start and our handler only these are imported; each takes time in which nothing is met."""
    shows = "import sys; before = set(sys.modules); import bapo.stopped; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", shows], capture_output=True, text=True, timeout=LIMIT_S)
    assert done.stdout.strip() == "['__future__', 'bapo', 'bapo.stopped']"
