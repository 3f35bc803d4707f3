"""What was learned and what it cost, as a picture for readers who know no nats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bapo.files import save_figure

if TYPE_CHECKING:
    from bapo.results import Personalization

# Okabe and Ito's colours: the recipe's own objective, and those trained beside it.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777", "#A05A2C")


def draw_outcome(results: Sequence[Personalization], path: Path, *, preferred: str = "preferred") -> None:
    """Draw two panels, a line a run: how often it prefers what it learned, and how likely its earlier answers are.

    Args:
        results: personalizations with the same objectives, such as one a seed; each gives every objective a mark with
            its 95 % interval.
        path: PNG or SVG file to write.
        preferred: the word for what was learned, such as concise.
    """
    from matplotlib.figure import Figure

    names = list(results[0].held_out)
    figure = Figure(figsize=(8.4, 0.9 + 0.28 * len(results) * len(names)), layout="constrained")
    learned, kept = figure.subplots(1, 2, sharey=True)
    ticks: dict[str, list[int]] = {}
    runs = [(name, result) for name in reversed(names) for result in reversed(results)]
    for y, (name, result) in enumerate(runs):
        ticks.setdefault(name.upper(), []).append(y)
        colour = COLOURS[names.index(name) % len(COLOURS)]
        for axis, scale, found in (
            (learned, 100, result.held_out[name].reward_accuracy),
            (kept, 1, result.likelier[name]),
        ):
            axis.plot([scale * found.low, scale * found.high], [y, y], color=colour, linewidth=2, alpha=0.5)
            axis.plot([scale * found.value], [y], "o", color=colour)
    learned.axvline(50, color="black", linewidth=0.6, linestyle=":")
    kept.axvline(0, color="black", linewidth=0.6, linestyle=":")
    learned.set_yticks([sum(of) / len(of) for of in ticks.values()], list(ticks))
    learned.set_ylim(-0.6, len(runs) - 0.4)
    learned.set_xlim(0, 104)
    learned.set_title(f"prefers the {preferred} answer", fontsize=10)
    learned.set_xlabel("% of comparisons it was not trained on (before: 50)", fontsize=9)
    kept.set_title("finds its own earlier answers ...", fontsize=10)
    kept.set_xlabel("← less likely     per word piece, %     likelier →", fontsize=9)
    for axis in (learned, kept):
        axis.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path, dpi=150)
