"""The page of results, in a real browser: sorted, filtered, walked by keyboard, narrow, dark, and safe."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bapo.reporting.page import MOST_BYTES, Page, PageFigure, PageTable, PageVerdict, render
from bapo.reporting.pictures import Picture, inline
from bapo.results import SideBySide
from bapo.visible import visible

HOSTILE = (
    """</script><script>document.title = "taken"</script><img src=x onerror='document.title = "taken"'> & "q" \u202e"""
)


def flip(number: int, **more: Any) -> dict[str, Any]:
    return {
        "task": "arc",
        "document": number,
        "run": "m, a, dpo, seed 0",
        "benchmark": "arc",
        "method": "dpo",
        "preference": "a",
        "outcome": "lost",
        "right": 1,
        "before": [0.25, 0.75],
        "after": [0.9, 0.1],
        **more,
    }


PAGE = Page(
    title=f"Study {HOSTILE}",
    summary=["All jobs are done."],
    verdicts=[PageVerdict("C1", "holds", HOSTILE, "0.1"), PageVerdict("C2", "does not hold", "worse", "0.2")],
    tables=[PageTable("Numbers", ("method", "lost"), [("b", "10.5 [1, 2]"), ("a", "9.1"), ("c", "-3")])],
    figures=[
        PageFigure(
            "Line.", "A line.", inline(Picture("Line.", "", lambda f: f.subplots().plot([1, 2]), (3, 2)), "line")
        )
    ],
    flips=[
        *(flip(number) for number in range(5)),
        flip(7, outcome="gained", benchmark="piqa", method="bapo", before=[0.9, 0.1], after=[0.2, 0.8]),
    ],
    questions={"arc 0": {"question": HOSTILE, "choices": ["no", HOSTILE]}},
    answers=[SideBySide("Why?", {"base": "It is so.", "DPO": f"It was so. {HOSTILE}"})],
    how=["By hand."],
    made=[("machine", HOSTILE)],
)


def chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("BAPO_BROWSER") or next((path for path in map(shutil.which, names) if path), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = chromium()
    if path is None:
        pytest.skip("needs a browser: install Debian's chromium, or name one in BAPO_BROWSER")
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=arguments)
        yield opened
        opened.close()


def open_page(browser: Any, folder: Path, page: Page, **how: Any) -> Any:
    (folder / "page.html").write_text(render(page), encoding="utf-8")
    tab = browser.new_context(**how).new_page()
    tab.problems = []
    tab.on("pageerror", lambda error: tab.problems.append(str(error)))
    tab.on("request", lambda request: tab.problems.append(request.url) if not request.url.startswith("file:") else None)
    tab.goto((folder / "page.html").as_uri())
    return tab


def test_text_of_models_and_data_is_shown_and_never_obeyed(browser: Any, tmp_path: Path) -> None:
    tab = open_page(browser, tmp_path, PAGE)
    assert tab.title() == visible(f"Study {HOSTILE}".strip())
    assert visible(HOSTILE.strip()) in tab.inner_text("h1")
    assert tab.locator("img").count() == 0
    tab.select_option("select[aria-label=outcome]", "lost")
    assert "<img src=x onerror=" in tab.inner_text("#question")
    assert "<img src=x onerror=" in tab.inner_text(".answers")
    assert tab.problems == [], "no errors, and nothing was asked of the network"


def test_tables_are_sorted_by_number_and_by_text(browser: Any, tmp_path: Path) -> None:
    tab = open_page(browser, tmp_path, PAGE)

    def column(at: int) -> list[str]:
        return tab.locator(f"table.sortable tbody tr td:nth-child({at})").all_inner_texts()

    tab.click("table.sortable th:nth-child(2) button")
    assert column(2) == ["-3", "9.1", "10.5 [1, 2]"]
    tab.click("table.sortable th:nth-child(2) button")
    assert column(2) == ["10.5 [1, 2]", "9.1", "-3"]
    assert tab.get_attribute("table.sortable th:nth-child(2)", "aria-sort") == "descending"
    tab.click("table.sortable th:nth-child(1) button")
    assert column(1) == ["a", "b", "c"]


def test_it_opens_at_its_top_and_the_explorer_scrolls_by_itself(browser: Any, tmp_path: Path) -> None:
    many = replace(PAGE, flips=[flip(number) for number in range(60)], figures=[], summary=["line"] * 80)
    tab = open_page(browser, tmp_path, many, viewport={"width": 900, "height": 500})
    assert tab.evaluate("window.scrollY") == 0
    tab.evaluate("document.getElementById('flips').focus()")
    where = tab.evaluate("window.scrollY")
    for key, times in (("j", 55), ("k", 50)):
        for _ in range(times):
            tab.keyboard.press(key)
        item, box = (tab.locator(name).bounding_box() for name in ("#flips li[aria-selected=true]", "#flips"))
        assert box["y"] - 1 <= item["y"]
        assert item["y"] + item["height"] <= box["y"] + box["height"] + 1
    assert tab.evaluate("window.scrollY") == where


def test_the_explorer_is_filtered_and_walked_by_keyboard(browser: Any, tmp_path: Path) -> None:
    tab = open_page(browser, tmp_path, PAGE)
    chosen = "#flips li[aria-selected=true]"
    assert tab.locator("#flips li").count() == 6
    first = tab.inner_text(chosen)
    tab.focus("#flips")
    tab.keyboard.press("ArrowDown")
    second = tab.inner_text(chosen)
    assert second != first
    tab.keyboard.press("k")
    assert tab.inner_text(chosen) == first
    tab.keyboard.press("ArrowUp")
    assert tab.inner_text(chosen) == first, "before the first there is none"
    tab.select_option("select[aria-label=outcome]", "gained")
    assert tab.locator("#flips li").count() == 1
    detail = tab.inner_text("#question")
    assert "80.0 %" in detail
    assert "10.0 %" in detail
    assert "not on this page" in detail
    tab.select_option("select[aria-label=method]", "dpo")
    assert tab.inner_text("#question") == "None of these."


def test_on_a_phone_nothing_sticks_out_and_in_the_dark_it_is_dark(browser: Any, tmp_path: Path) -> None:
    wide = PageTable("Wide", [f"column {n}" for n in range(30)], [[f"{n}.123 [1, 2]" for n in range(30)]])
    page = Page("Study", tables=[wide], flips=PAGE.flips, answers=PAGE.answers, figures=PAGE.figures)
    size = {"width": 360, "height": 740}
    tab = open_page(browser, tmp_path, page, viewport=size, color_scheme="dark")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    paper, ink = (tab.evaluate(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color"))
    light = open_page(browser, tmp_path, page, viewport=size, color_scheme="light")
    assert light.evaluate("getComputedStyle(document.body).backgroundColor") != paper
    drawn = "getComputedStyle(document.querySelector('figure svg text')).fill"
    assert tab.evaluate(drawn) == ink, "figures follow the page's colours"


def test_of_too_many_questions_those_are_kept_that_moved_most() -> None:
    """By what they take with their texts, which are escaped."""
    moved = [flip(number, after=[0.3, 0.7]) for number in range(3000)]
    long = {f"arc {number}": {"question": "<é" * 500, "choices": ["yes", "no"]} for number in (*range(3000), 99_999)}
    html = render(Page("Study", flips=[*moved, flip(99_999)], questions=long))
    assert "99999" in html
    assert "whose probability changed most of 3,001" in html
    assert MOST_BYTES * 0.9 < len(html.encode()) < 5_000_000
    without = render(Page("Study", flips=[*moved, flip(99_999)]))
    assert "Questions whose answer became wrong or right: 3,001." in without


def test_words_that_differ_from_the_first_answer_are_marked() -> None:
    html = render(Page("Study", answers=[SideBySide("Why?", {"base": "It is so.", "DPO": "It was so!"})]))
    assert "<h4>base</h4>It is so.</article>" in html
    assert "It <mark>was</mark> so<mark>!</mark></article>" in html


def test_two_figures_on_a_page_share_no_ids() -> None:
    def draw(figure: Any, scale: int) -> None:
        figure.subplots().plot([1, scale])

    first, second = (inline(Picture("", "", partial(draw, scale=n), (3, 2)), f"figure-{n}") for n in (2, 3))
    assert "#010203" not in first
    ids = [{part.split('"')[0] for part in svg.split(' id="')[1:]} for svg in (first, second)]
    clips = [{name for name in names if name.startswith("p") and len(name) > 8} for names in ids]
    assert clips[0].isdisjoint(clips[1])
    assert all(clips)
