"""Tables and figures."""

from __future__ import annotations

from pathlib import Path

from bapo.reporting import HEADER, draw_logratios, held_out_rows, interval, markdown_table
from bapo.results import Estimate, PromptScores, report


def test_a_table_has_the_base_first_and_every_figure_with_its_interval() -> None:
    found = report([PromptScores(((1.0, 0.0),), -2.0, 4, 1)] * 3)
    rows = held_out_rows({"bapo": found}, "earlier")
    assert [row[0] for row in rows] == ["earlier", "BAPO"]
    assert rows[1][1:] == ("100.0 % [33.3, 100.0]", "1.0 [1.0, 1.0]", "-2.0 [-2.0, -2.0]", "-0.500 [-0.500, -0.500]")
    assert markdown_table(HEADER, rows).count("\n") == 3
    assert [row[0] for row in held_out_rows({"bapo": found})] == ["base", "BAPO"]
    assert interval(Estimate(5.0, float("nan"), float("nan")), 1, 1) == "5.0 [unknown]"
    assert interval(Estimate(0.123, 0.1, 0.2), 100, 1, " %") == "12.3 % [10.0, 20.0]"


def test_curves_are_drawn_from_a_trainers_log(tmp_path: Path) -> None:
    log = [
        {"step": i, **{f"logratios/{r}": -i * k for k, r in enumerate(("chosen", "base", "rejected"))}}
        for i in range(9)
    ]
    draw_logratios({"dpo": log, "bapo": log}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
