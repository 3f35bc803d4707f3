"""One self-contained HTML page of results: verdicts, tables, figures, what was forgotten, answers side by side.

It opens from the disk, loads nothing from anywhere, and shows every text of models and data as text.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from bapo.reporting.pictures import Picture, inline
from bapo.visible import visible, visible_in

if TYPE_CHECKING:
    from bapo.results import SideBySide

MOST_BYTES = 3_000_000
"""Of questions whose answer changed, with their texts, on a page that stays below 5 MB; of more, those are kept whose
probability changed most."""

_HALF_INCHES = 6.5
"""A wider picture takes the whole width of a page."""


@dataclass(frozen=True)
class PageTable:
    """A table.

    Attributes:
        title: above it, and in the list of the page's parts.
        header, rows: its cells.
        note: what a reader has to know of it.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class PageFigure:
    """A figure as SVG, over the whole width of the page or half of it."""

    title: str
    caption: str
    svg: str
    wide: bool = False


def page_figures(pictures: Mapping[str, Picture]) -> list[PageFigure]:
    """Pictures as figures of a page, by the names that keep their ids apart."""
    return [
        PageFigure(each.title, each.caption, inline(each, name), wide=each.size[0] > _HALF_INCHES)
        for name, each in pictures.items()
    ]


@dataclass(frozen=True)
class PageVerdict:
    """A claim, whether it holds, and the numbers that decide it."""

    name: str
    verdict: str
    says: str
    numbers: str


@dataclass(frozen=True)
class Page:
    """All that a page shows.

    Attributes:
        title: of the page.
        summary: its first sentences.
        verdicts, tables, figures: in order.
        flips: questions whose answer changed: ``task``, ``document``, ``outcome`` (lost or gained), ``right``,
            ``before`` and ``after`` (probabilities), ``run``, and what they are filtered by, such as ``benchmark``.
        filters: keys of flips to filter by.
        questions: by task and number of a question its text and choices; none of data that may not be copied.
        answers: of models to the same prompts, the first of them the one that others are compared with.
        how: how the numbers were made, in sentences.
        made: name and value of what it was made from.
    """

    title: str
    summary: Sequence[str] = ()
    verdicts: Sequence[PageVerdict] = ()
    tables: Sequence[PageTable] = ()
    figures: Sequence[PageFigure] = ()
    flips: Sequence[Mapping[str, Any]] = ()
    filters: Sequence[str] = ("outcome", "benchmark", "method", "preference")
    questions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    answers: Sequence[SideBySide] = ()
    how: Sequence[str] = ()
    made: Sequence[tuple[str, str]] = ()


def render(page: Page) -> str:
    """The page as HTML."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_shown)
    template = environment.from_string((files("bapo.reporting") / "page.html").read_text("utf-8"))
    answers = [(side.prompt, list(_marked(side.answers).items())) for side in page.answers]
    shown = {**{name: getattr(page, name) for name in Page.__dataclass_fields__}, "answers": answers}
    return template.render(page=shown, flips=_flips(page))


def _shown(value: Any) -> Any:
    """What a browser would obey is shown, such as the characters that turn a line around; what is HTML stays."""
    return visible(value) if type(value) is str else value


def _flips(page: Page) -> dict[str, Any]:
    """What the explorer shows: the largest changes, if they are too many."""
    from jinja2.utils import htmlsafe_json_dumps

    def moved(flip: Mapping[str, Any]) -> float:
        return abs(flip["after"][flip["right"]] - flip["before"][flip["right"]])

    kept: list[dict[str, Any]] = []
    texts: dict[str, Mapping[str, Any]] = {}
    size = 0
    for flip in sorted(page.flips, key=moved, reverse=True):
        rounded = {**flip, **{when: [round(p, 4) for p in flip[when]] for when in ("before", "after")}}
        key = f"{flip['task']} {flip['document']}"
        text = {key: page.questions[key]} if key in page.questions and key not in texts else {}
        size += len(htmlsafe_json_dumps(visible_in([rounded, text])))
        if size > MOST_BYTES:
            break
        kept.append(rounded)
        texts |= text
    names = [name for name in page.filters if any(name in flip for flip in kept)]
    filters = {name: sorted({str(flip[name]) for flip in kept}) for name in names}
    those = "" if len(kept) == len(page.flips) else f"the {len(kept):,} whose probability changed most of "
    said = f"Questions whose answer became wrong or right: {those}{len(page.flips):,}."
    return {
        "shown": bool(kept),
        "said": said,
        "data": visible_in({"flips": kept, "questions": texts, "filters": filters}),
    }


def _marked(answers: Mapping[str, str]) -> dict[str, list[tuple[str, bool]]]:
    """Each answer in parts, and whether a part differs from the first answer; word by word."""
    first = next(iter(answers.values()), "")
    return {name: _parts(first, text) if at else [(text, False)] for at, (name, text) in enumerate(answers.items())}


def _parts(before: str, after: str) -> list[tuple[str, bool]]:
    old, new = (re.findall(r"\s+|\w+|[^\w\s]", text) for text in (before, after))
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    changes = [(tag, "".join(new[start:end])) for tag, _, _, start, end in matcher.get_opcodes()]
    return [(text, tag != "equal" and bool(text.strip())) for tag, text in changes if text]
