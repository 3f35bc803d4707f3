"""Curves of what the trainer logged: the shape of the paper's figures 5, 6 and 9 to 12."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bapo.files import save_figure

Log = Sequence[Mapping[str, float]]

# Okabe and Ito's colours, told apart by everyone.
COLOURS = {"chosen": "#009E73", "base": "#0072B2", "rejected": "#D55E00"}


def draw_logratios(logs: Mapping[str, Log], path: Path, *, quantity: str = "logratios", smooth: int = 5) -> None:
    """Draw chosen, base and rejected over the steps, one panel a run.

    Args:
        logs: the trainer's log of each run, by name.
        path: PNG or SVG file to write.
        quantity: ``logratios`` (change against the reference, figure 5) or ``logps`` (figure 10).
        smooth: steps of the running mean; every step's own value is drawn faintly behind it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(logs), 3.2), layout="constrained")
    axes = figure.subplots(1, len(logs), sharey=True, squeeze=False)[0]
    for axis, (name, log) in zip(axes, logs.items(), strict=True):
        draw_curves(axis, log, quantity, smooth)
        axis.axhline(0, color="black", linewidth=0.6, linestyle=":") if quantity == "logratios" else None
        axis.set_title(name.upper())
        axis.set_xlabel("step")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("log π/π_ref (nats)" if quantity == "logratios" else "log π (nats)")
    axes[-1].legend(frameon=False)
    save_figure(figure, path, dpi=150)


def draw_curves(axis: Any, log: Log, quantity: str, smooth: int = 5) -> None:
    """Chosen, base and rejected over the steps of one run: every step's value faintly, and their running mean."""
    for response, colour in COLOURS.items():
        name = f"{quantity}/{response}"
        points = [(entry["step"], entry[name]) for entry in log if name in entry]
        if points:
            steps, values = zip(*points, strict=True)
            axis.plot(steps, values, color=colour, alpha=0.2, linewidth=1)
            axis.plot(steps, _running_mean(values, smooth), color=colour, linewidth=2, label=response)


def _running_mean(values: Sequence[float], width: int) -> list[float]:
    return [
        sum(values[max(0, i - width + 1) : i + 1]) / len(values[max(0, i - width + 1) : i + 1])
        for i in range(len(values))
    ]
