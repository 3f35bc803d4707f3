"""Proposition 1: the figure and the table of what its simulation found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bapo.files import save_figure
from bapo.reporting.tables import interval

if TYPE_CHECKING:
    from bapo.theory import Proposition, Sweep

LABELS = {
    "whole": "all of θ, nothing known",
    "personal part": "θ_L of that",
    "general known": "θ_L, θ_G known",
    "equation 9": "θ_L, equation 9 as written",
}
_COLOURS = {"whole": "#000000", "personal part": "#E69F00", "general known": "#0072B2", "equation 9": "#D55E00"}
_TITLES = {
    "n": "comparisons n",
    "d": "features d",
    "k": "personal features k",
    "correlation": "correlation of personal and general features",
}

SLOPE_HEADER = ("varied", "estimate", "slope of the error", "promised")
ERROR_HEADER = ("varied", "value", *LABELS.values())


def draw_proposition(proposition: Proposition, path: Path) -> None:
    """Errors over n, d, k and the correlation, one panel each, with intervals over the repeats.

    Args:
        found: what `bapo theory` found.
        path: PNG or SVG file to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(proposition.sweeps), 3.6), layout="constrained")
    for axis, sweep in zip(
        figure.subplots(1, len(proposition.sweeps), sharey=True, squeeze=False)[0], proposition.sweeps, strict=True
    ):
        for name, label in LABELS.items():
            estimates = [point.errors[name] for point in sweep.points]
            values = [point.value for point in sweep.points]
            below = [estimate.value - estimate.low for estimate in estimates]
            above = [estimate.high - estimate.value for estimate in estimates]
            axis.errorbar(
                values, [estimate.value for estimate in estimates], (below, above), label=label, color=_COLOURS[name],
                marker="o", markersize=3, linewidth=1.5, capsize=2,
            )  # fmt: skip
        if sweep.slopes:
            axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlabel(_TITLES[sweep.varied])
        axis.set_title(", ".join(f"{name} = {value:g}" for name, value in sweep.fixed.items()), fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("error, in the norm of its lemma")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    save_figure(figure, path, dpi=150)


def slope_rows(proposition: Proposition) -> list[tuple[str, ...]]:
    """By what is varied and by estimate, the fitted slope beside the promised one."""
    return [
        (sweep.varied, LABELS[name], interval(slope.fitted, 1, 2), f"{slope.promised:g}")
        for sweep in proposition.sweeps
        for name, slope in sweep.slopes.items()
    ]


def error_rows(sweep: Sweep) -> list[tuple[str, ...]]:
    """The mean errors of one sweep, by value."""
    return [
        (sweep.varied, f"{point.value:g}", *(interval(point.errors[name], 1, 3) for name in LABELS))
        for point in sweep.points
    ]


def bound_in_words(proposition: Proposition) -> str:
    """Whether lemma 1's bound holds, and how far it is above the error."""
    (least, most), (low, high) = proposition.bounds, proposition.constants
    covered = f"{100 * proposition.covered:.0f} %"
    return (
        f"Lemma 1's bound with C' = 1 held in at least {covered} of the draws of every setting; it "
        f"is {least:,.0f} to {most:.1e} times the error, because 1 / gamma grows as exp(L B). Without gamma, "
        f"a constant of {low:.1f} to {high:.1f} in front of sqrt((d + log(1 / delta)) / n) is enough."
    )
