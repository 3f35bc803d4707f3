"""What is drawn: the data of the lines, their colours and words, read from the figure that was saved."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from bapo.files import save_figure
from bapo.reporting import draw_logratios
from bapo.reporting.pictures import inline, training_pictures
from bapo.results import PERSONALIZATION, Estimate, Personalization, PromptScores, Provenance, report

RESPONSES = ("chosen", "base", "rejected")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Figure, Path]]:
    """Every figure that is saved, and where."""
    found: list[tuple[Figure, Path]] = []

    def saving(figure: Figure, path: Path, **how: Any) -> None:
        found.append((figure, path))
        save_figure(figure, path, **how)

    def saving_itself(figure: Figure, path: Any, **how: Any) -> None:
        if isinstance(path, Path):  # of a program
            found.append((figure, path))
        save(figure, path, **how)

    for room in ("curves", "outcome", "theory"):
        monkeypatch.setattr(f"bapo.reporting.{room}.save_figure", saving)
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", saving_itself)
    return found


def log_of(quantity: str, slopes: tuple[float, ...], steps: int = 4) -> list[dict[str, float]]:
    return [
        {"step": step, **{f"{quantity}/{r}": slope * step for r, slope in zip(RESPONSES, slopes, strict=False)}}
        for step in range(1, steps + 1)
    ]


def lines(axis: Any) -> dict[tuple[str, bool], tuple[list[float], list[float]]]:
    """By colour and whether it is drawn faintly: the x and y of every line but the one at zero."""
    return {
        (to_hex(line.get_color()).upper(), line.get_alpha() is not None): (
            list(map(float, line.get_xdata())),
            list(map(float, line.get_ydata())),
        )
        for line in axis.get_lines()
        if line.get_linestyle() != ":"
    }


def test_log_ratios_are_drawn_step_by_step_with_their_running_mean_and_named(
    drawn: list[tuple[Figure, Path]], tmp_path: Path
) -> None:
    logs = {"dpo": log_of("logratios", (2.0, -4.0, -8.0)), "bapo": log_of("logratios", (1.0, -1.0))}
    draw_logratios(logs, tmp_path / "new" / "curves.png", smooth=2)
    ((figure, path),) = drawn
    assert path == tmp_path / "new" / "curves.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    dpo, bapo = figure.axes
    assert (dpo.get_title(), bapo.get_title()) == ("DPO", "BAPO")
    assert (dpo.get_xlabel(), bapo.get_xlabel(), dpo.get_ylabel()) == ("step", "step", "log π/π_ref (nats)")
    steps = [1.0, 2.0, 3.0, 4.0]
    # The mean of a step and the one before it; the first has none before it.
    assert lines(dpo) == {
        ("#009E73", True): (steps, [2.0, 4.0, 6.0, 8.0]),
        ("#009E73", False): (steps, [2.0, 3.0, 5.0, 7.0]),
        ("#0072B2", True): (steps, [-4.0, -8.0, -12.0, -16.0]),
        ("#0072B2", False): (steps, [-4.0, -6.0, -10.0, -14.0]),
        ("#D55E00", True): (steps, [-8.0, -16.0, -24.0, -32.0]),
        ("#D55E00", False): (steps, [-8.0, -12.0, -20.0, -28.0]),
    }
    assert lines(bapo).keys() == {(colour, faint) for colour in ("#009E73", "#0072B2") for faint in (True, False)}
    for axis in figure.axes:
        (zero,) = (line for line in axis.get_lines() if line.get_linestyle() == ":")
        assert set(zero.get_ydata()) == {0}
        assert axis.get_ylim() == dpo.get_ylim(), "panels that are compared have one scale"


def test_a_legend_names_each_response_once_in_its_colour(drawn: list[tuple[Figure, Path]], tmp_path: Path) -> None:
    draw_logratios({"dpo": log_of("logratios", (1.0, 2.0, 3.0))}, tmp_path / "curves.svg")
    (axis,) = drawn[0][0].axes
    legend = axis.get_legend()
    named = {
        text.get_text(): to_hex(line.get_color()).upper()
        for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True)
    }
    assert named == {"chosen": "#009E73", "base": "#0072B2", "rejected": "#D55E00"}
    assert "<svg" in (tmp_path / "curves.svg").read_text()


def test_log_probs_are_drawn_without_a_line_at_zero(drawn: list[tuple[Figure, Path]], tmp_path: Path) -> None:
    log = [{**own, "logratios/chosen": 99.0} for own in log_of("logps", (-1.0, -2.0, -3.0))]
    draw_logratios({"dpo": log}, tmp_path / "curves.png", quantity="logps", smooth=1)
    (axis,) = drawn[0][0].axes
    assert axis.get_ylabel() == "log π (nats)"
    assert not [line for line in axis.get_lines() if line.get_linestyle() == ":"]
    assert lines(axis)["#009E73", True][1] == lines(axis)["#009E73", False][1] == [-1.0, -2.0, -3.0, -4.0]


def program(name: str) -> Any:
    path = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
    sys.path.insert(0, str(path.parent))
    try:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # where its data classes look for their names
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def test_the_cost_of_a_step_is_drawn_over_what_grows(drawn: list[tuple[Figure, Path]], tmp_path: Path) -> None:
    cost = program("training_cost")

    def found(seconds: float, added: float, weights: float) -> dict[str, float]:
        return {"seconds": seconds, "bytes": added * 1e9, "tokens": 1, "weights": weights * 1e6}

    cost.draw(
        {
            "pairs": [
                (cost.Point(pairs=2), found(0.5, 1.5, 100)),
                (cost.Point(pairs=8), found(1.5, 3.0, 100)),
            ],
            "wide": [(cost.Point(), found(2.0, 1.0, 100)), (cost.Point(wide=True), found(7.0, 4.0, 400))],
        },
        tmp_path / "cost.png",
    )
    ((figure, path),) = drawn
    assert path.is_file()
    data = [[list(map(float, own)) for own in (line.get_xdata(), line.get_ydata())] for line in all_lines(figure)]
    assert data == [
        [[2.0, 8.0], [0.5, 1.5]],
        [[100.0, 400.0], [2.0, 7.0]],
        [[2.0, 8.0], [1.5, 3.0]],
        [[100.0, 400.0], [1.0, 4.0]],
    ]
    assert [axis.get_xlabel() for axis in figure.axes[2:]] == ["pairs per prompt", "weights (millions)"]
    assert [axis.get_ylabel() for axis in figure.axes] == ["seconds a step", "", "GB added", ""]
    assert {axis.get_xscale() for axis in figure.axes} == {axis.get_yscale() for axis in figure.axes} == {"log"}


def all_lines(figure: Figure) -> list[Any]:
    return [line for axis in figure.axes for line in axis.get_lines()]


def outcome(seed: int) -> Personalization:
    """One prompt right and one wrong, and a base response that a run made likelier or less likely, in percent."""
    scores = [PromptScores(((1.0, 0.0),), 1.0, 4, 1), PromptScores(((0.0, 1.0),), 1.0, 4, 1)]
    likelier = {"bapo": Estimate(2.0 + seed, 1.0, 4.0), "dpo": Estimate(-9.0 - seed, -12.0, -7.0)}
    held_out = {name: report(scores) for name in likelier}
    return Personalization("starter:concise", "base", {}, held_out, likelier, (), "out", {}, {})


def test_what_was_learned_and_what_it_cost_is_drawn_from_the_records_of_each_seed(
    drawn: list[tuple[Figure, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folders = [tmp_path / f"demo-{seed}" for seed in (0, 1)]
    for seed, folder in enumerate(folders):
        PERSONALIZATION.write(folder / "report.json", outcome(seed), identity="", made_from=Provenance("m", "w"))
    path = tmp_path / "new" / "demo.png"
    monkeypatch.setattr(sys, "argv", ["demo_figure.py", *map(str, folders), "--output", str(path)])
    program("demo_figure").main()
    assert "| DPO | 50.0 % [" in capsys.readouterr().out
    ((figure, saved),) = drawn
    assert saved == path
    learned, kept = figure.axes
    assert learned.get_title() == "prefers the concise answer"
    assert [label.get_text() for label in learned.get_yticklabels()] == ["DPO", "BAPO"]

    def marks(axis: Any) -> list[float]:
        return [float(line.get_xdata()[0]) for line in axis.get_lines() if line.get_marker() == "o"]

    assert marks(learned) == [50.0] * 4
    assert marks(kept) == [-10.0, -9.0, 3.0, 2.0], "from below: DPO, then BAPO, the first seed on top"
    ends = [list(map(float, line.get_xdata())) for line in kept.get_lines() if len(line.get_xdata()) == 2][:4]
    assert ends == [[-12.0, -7.0]] * 2 + [[1.0, 4.0]] * 2


def test_curves_of_training_name_methods_preferences_and_steps() -> None:
    log = tuple(
        {"step": step, "logratios/base": -step, "logratios/chosen": step, "logps/base": -9.0} for step in range(3)
    )
    drawn = training_pictures({"m, a": {"dpo": log, "bapo": log}, "m, b": {"dpo": log}})
    svg = inline(drawn["log-ratios"], "log-ratios")
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert [texts.count(name) for name in ("DPO", "BAPO", "step", "base", "chosen")] == [1, 1, 2, 1, 1]
    assert {"m, a", "m, b"} <= set(texts)
    assert training_pictures({}) == {}
