"""Figures of a study, for files and for pages, in which they follow the colours of light and dark."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bapo.files import save_figure, write_text
from bapo.reporting.curves import Log, draw_curves
from bapo.reporting.outcome import COLOURS as METHOD_COLOURS
from bapo.results.comparison import BASE
from bapo.results.study_cells import DRIFT, FORGETTING, QUESTION_MEASURES, REWARD_ACCURACY
from bapo.visible import visible

if TYPE_CHECKING:
    from bapo.results import Estimate, StudyReport, TableRow

_INK = "#010203"
"""Of text and axes; a page replaces it by the colour of its own text."""

_PANELS = 4
"""Of a figure, side by side."""

MOST_BARS = 80
"""Of more preferences the figure shows how they are distributed, without their names."""

Draw = Callable[[Any], None]
"""Draws on a matplotlib figure."""


@dataclass(frozen=True)
class Picture:
    """A figure that is not drawn yet.

    Attributes:
        title, caption: in words.
        draw: draws it.
        size: inches.
    """

    title: str
    caption: str
    draw: Draw
    size: tuple[float, float]


def save(picture: Picture, path: Path) -> None:
    """A figure as SVG and, beside it, as PNG."""
    with _drawn(picture, path.stem) as figure:
        save_figure(figure, path.with_suffix(".png"), dpi=150)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    write_text(path.with_suffix(".svg"), visible(drawn.getvalue()))


def inline(picture: Picture, name: str) -> str:
    """A figure as SVG for a page: transparent, and with text and axes in the colour of the page's text."""
    text = io.StringIO()
    with _drawn(picture, name) as figure:
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = visible(text.getvalue())
    return svg[svg.index("<svg") :].replace("<text ", f'<text fill="{_INK}" ').replace(_INK, "currentColor")


@contextmanager
def _drawn(picture: Picture, name: str) -> Iterator[Any]:
    """The figure, and matplotlib as it has to be while it is written; ``name`` keeps its ids apart from others'.

    Dollars in names are dollars and no mathematics.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    ink = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    settings = {
        "text.parse_math": False,
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 9,
        **dict.fromkeys(ink, _INK),
    }
    with mpl.rc_context(settings):
        figure = Figure(figsize=picture.size, layout="constrained")
        picture.draw(figure)
        yield figure


def pictures(report: StudyReport, logs: Mapping[str, Mapping[str, Log]]) -> dict[str, Picture]:
    """All figures that a study has something for, by the names of their files.

    Args:
        report: the study's report.
        logs: of trainings, by model and preference, and by method.
    """
    rows = [row for row in report.rows if row.overall]
    drawn: dict[str, Picture] = {}
    if rows:
        caption = (
            f"Mean change against the base over benchmarks: {FORGETTING} (nats), and accuracy (points); 95 % intervals."
        )
        drawn["forgetting"] = Picture(
            "What was lost.", caption, partial(_forest, rows=rows), (8.4, 1.2 + 0.26 * len(rows))
        )
    moved = [row for row in rows if DRIFT in row.prompts]
    if moved:
        caption = "A mark a row of the tables: how much base responses drifted, and what was lost; 95 % intervals."
        drawn["drift-and-forgetting"] = Picture(
            "Drift against forgetting.", caption, partial(_scatter, rows=moved), (5.6, 4.2)
        )
    spread = [row for row in rows if row.plain and len(row.by_preference) > 1]
    if spread:
        caption = f"Mean over benchmarks of the change of the {FORGETTING}, nats; the line is the base."
        bars = sum(row.preferences for row in spread)
        title = "Change by preference."
        drawn["by-preference"] = (
            Picture(title, caption, partial(_by_preference, rows=spread), (6.4, 1.0 + 0.24 * bars))
            if bars <= MOST_BARS
            else Picture(title, caption, partial(_over_preferences, rows=spread), (6.4, 4.2))
        )
    pairs = [(row, base) for row in spread for base in report.rows if _is_base_of(base, row)]
    if pairs and bars <= MOST_BARS:
        caption = "Points of accuracy against the base, which is the line; means over seeds, without intervals."
        columns = [name for name in report.columns if all(name in row.accuracy for row, _ in pairs)]
        preferences = {(row.model, name) for row, _ in pairs for name in row.by_preference}
        height = 0.8 + (0.6 + 0.22 * len(preferences)) * -(-len(columns) // _PANELS)
        drawn["by-benchmark"] = Picture(
            "Accuracy by preference and benchmark (figures 2 and 3).",
            caption,
            partial(_by_benchmark, pairs=pairs, columns=columns),
            (8.4, height),
        )
    for key, name, title in (
        ("training.anchor_strength", "strengths", "Anchor strength (figure 7)."),
        ("lora.rank", "ranks", "LoRA rank (figure 8)."),
    ):
        varied = [row for row in report.along.get(key, ()) if row.overall and DRIFT in row.prompts]
        if len({row.settings[key] for row in varied}) > 2:
            runs = ", ".join(dict.fromkeys(f"{_method(row)} {row.runs}" for row in varied))
            caption = f"{FORGETTING} (nats, against the base) and reward accuracy (%); 95 % intervals. Runs: {runs}."
            drawn[name] = Picture(title, caption, partial(_along, rows=varied, key=key), (7.6, 3.2))
    return {**drawn, **training_pictures(logs)}


def training_pictures(logs: Mapping[str, Mapping[str, Log]]) -> dict[str, Picture]:
    """Log-ratios and log-probs over training, by the names of their files.

    Args:
        logs: of trainings, by the row of the figure and by method.
    """
    if not logs:
        return {}
    caption = "Of chosen, base and rejected responses, mean of a step, nats; running mean of five steps."
    size = (8.4, 2.4 * len(logs))
    titles = {
        "log-ratios": ("logratios", "Log-ratios over training (figures 5 and 9)."),
        "log-probs": ("logps", "Log-probs over training (figures 6, 10 to 12)."),
    }
    return {
        name: Picture(title, caption, partial(_training, logs=logs, quantity=quantity), size)
        for name, (quantity, title) in titles.items()
    }


def _method(row: TableRow) -> str:
    return row.method.upper() if row.method.isalpha() else row.method


def _name(row: TableRow) -> str:
    return " ".join(part for part in (row.model, row.source, _method(row), row.varied) if part)


def _colour(name: str, names: Sequence[str]) -> str:
    return METHOD_COLOURS[list(names).index(name) % len(METHOD_COLOURS)]


def _bar(axis: Any, estimate: Estimate, at: float, colour: str, *, upright: bool = False) -> None:
    ends, places = [estimate.low, estimate.high], [at, at]
    axis.plot(*((places, ends) if upright else (ends, places)), color=colour, linewidth=2, alpha=0.45)
    axis.plot(*(([at], [estimate.value]) if upright else ([estimate.value], [at])), "o", color=colour, markersize=4)


def _zero(axis: Any, *, upright: bool = True) -> None:
    (axis.axvline if upright else axis.axhline)(0, color=_INK, linewidth=0.7, linestyle=":")


def _bare(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)


def _forest(figure: Any, rows: Sequence[TableRow]) -> None:
    methods = list(dict.fromkeys(row.method for row in rows))
    left, right = figure.subplots(1, 2, sharey=True)
    for at, row in enumerate(reversed(rows)):
        for axis, measure in ((left, FORGETTING), (right, "accuracy")):
            _bar(axis, row.overall[measure], at, _colour(row.method, methods))
    left.set_yticks(range(len(rows)), [_name(row) for row in reversed(rows)])
    for axis, measure in ((left, FORGETTING), (right, "accuracy")):
        _zero(axis)
        _bare(axis)
        axis.set_xlabel(f"{measure} ({QUESTION_MEASURES[measure]})")


def _scatter(figure: Any, rows: Sequence[TableRow]) -> None:
    axis = figure.subplots()
    methods = list(dict.fromkeys(row.method for row in rows))
    labelled: set[str] = set()
    for row in rows:
        drift, lost, colour = row.prompts[DRIFT].mean, row.overall[FORGETTING], _colour(row.method, methods)
        axis.plot([drift.low, drift.high], [lost.value] * 2, color=colour, alpha=0.3)
        axis.plot([drift.value] * 2, [lost.low, lost.high], color=colour, alpha=0.3)
        label = None if row.method in labelled else row.method.upper()
        axis.plot([drift.value], [lost.value], "o", color=colour, label=label)
        labelled.add(row.method)
    _zero(axis)
    _zero(axis, upright=False)
    _bare(axis)
    axis.set_xlabel("drift of base responses (nats a token)")
    axis.set_ylabel(f"{FORGETTING} (nats)")
    axis.legend(frameon=False)


def _by_preference(figure: Any, rows: Sequence[TableRow]) -> None:
    axis = figure.subplots()
    methods = list(dict.fromkeys(row.method for row in rows))
    marks = []
    for row in rows:
        for preference, mean in row.by_preference.items():
            marks.append((f"{_name(row)}, {preference}", mean, _colour(row.method, methods)))
    for at, (_, mean, colour) in enumerate(reversed(marks)):
        axis.barh(at, mean, color=colour, height=0.7)
    axis.set_yticks(range(len(marks)), [name for name, *_ in reversed(marks)])
    _zero(axis)
    _bare(axis)
    axis.set_xlabel(f"{FORGETTING} (nats)")


def _is_base_of(base: TableRow, row: TableRow) -> bool:
    return base.method == BASE and (base.model, base.source) == (row.model, row.source)


def _by_benchmark(figure: Any, pairs: Sequence[tuple[TableRow, TableRow]], columns: Sequence[str]) -> None:
    """A panel a benchmark, a line a preference, a mark a method."""
    methods = list(dict.fromkeys(row.method for row, _ in pairs))
    models = {row.model for row, _ in pairs}
    places = list(dict.fromkeys((row.model, preference) for row, _ in pairs for preference in row.by_preference))
    grid = figure.subplots(-(-len(columns) // _PANELS), _PANELS, sharey=True, squeeze=False)
    for axis in grid.flat[len(columns) :]:
        axis.set_visible(False)
    for axis, column in zip(grid.flat, columns, strict=False):
        for row, base in pairs:
            means = row.accuracy[column].by_preference or {}
            at = [len(places) - 1 - places.index((row.model, preference)) for preference in means]
            changes = [mean - base.accuracy[column].mean.value for mean in means.values()]
            colour = _colour(row.method, methods)
            axis.plot(changes, at, "o", color=colour, markersize=4, alpha=0.8, label=_method(row))
        axis.set_title(column, color=_INK, fontsize=9)
        _zero(axis)
        _bare(axis)
    names = [preference if len(models) == 1 else f"{model} {preference}" for model, preference in places]
    grid[0][0].set_yticks(range(len(places)), names[::-1])
    figure.supxlabel("points", fontsize=9, color=_INK)
    marks, names = grid[0][0].get_legend_handles_labels()
    once = dict(zip(names, marks, strict=True))
    figure.legend(once.values(), once.keys(), loc="outside upper right", ncols=6, frameon=False)


def _over_preferences(figure: Any, rows: Sequence[TableRow]) -> None:
    axis = figure.subplots()
    methods = list(dict.fromkeys(row.method for row in rows))
    for row in rows:
        changes = sorted(row.by_preference.values())
        shares = [100 * (at + 1) / len(changes) for at in range(len(changes))]
        axis.step(changes, shares, where="post", color=_colour(row.method, methods), label=_name(row))
    _zero(axis)
    _bare(axis)
    axis.set_xlabel(f"{FORGETTING} (nats)")
    axis.set_ylabel("preferences with at most this change (%)")
    axis.legend(frameon=False)


def _along(figure: Any, rows: Sequence[TableRow], key: str) -> None:
    left, right = figure.subplots(1, 2)
    methods = list(dict.fromkeys(row.method for row in rows))
    values = sorted({float(row.settings[key]) for row in rows})
    for method in methods:
        ordered = sorted((row for row in rows if row.method == method), key=lambda row: float(row.settings[key]))
        places = [values.index(float(row.settings[key])) for row in ordered]
        lost = [row.overall[FORGETTING] for row in ordered]
        learned = [row.prompts[REWARD_ACCURACY].mean for row in ordered]
        for axis, of in ((left, lost), (right, learned)):
            axis.plot(places, [each.value for each in of], color=_colour(method, methods), label=method.upper())
            for place, each in zip(places, of, strict=True):
                _bar(axis, each, place, _colour(method, methods), upright=True)
    _zero(left, upright=False)
    left.set_ylabel(f"{FORGETTING} (nats)")
    right.set_ylabel(f"{REWARD_ACCURACY} (%)")
    for axis in (left, right):
        axis.set_xticks(range(len(values)), [f"{value:g}" for value in values])
        axis.set_xlabel(key.rpartition(".")[2].replace("_", " "))
        _bare(axis)
    left.legend(frameon=False)


def _training(figure: Any, logs: Mapping[str, Mapping[str, Log]], quantity: str) -> None:
    methods = list(dict.fromkeys(method for of in logs.values() for method in of))
    grid = figure.subplots(len(logs), len(methods), sharex=True, sharey="row", squeeze=False)
    for at, (axes, (where, of_methods)) in enumerate(zip(grid, logs.items(), strict=True)):
        axes[0].set_ylabel(f"{where}\n{'log π/π_ref' if quantity == 'logratios' else 'log π'}")
        for axis, method in zip(axes, methods, strict=True):
            _bare(axis)
            draw_curves(axis, of_methods.get(method, ()), quantity)
            if quantity == "logratios":
                _zero(axis, upright=False)
            if at == 0:
                axis.set_title(method.upper(), color=_INK, fontsize=9)
            if at == len(logs) - 1:
                axis.set_xlabel("step")
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside upper right", ncols=3, frameon=False)
