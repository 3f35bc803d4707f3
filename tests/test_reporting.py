"""Tables and figures."""

from __future__ import annotations

from pathlib import Path

from bapo.evaluation import PromptScores
from bapo.evaluation.bootstrap import Estimate
from bapo.evaluation.preference import report
from bapo.reporting import HEADER, draw_logratios, held_out_rows, interval, markdown_table


def test_a_table_has_the_base_first_and_every_figure_with_its_interval() -> None:
    found = report([PromptScores(((1.0, 0.0),), -2.0, 4, 1)] * 3)
    rows = held_out_rows({"bapo": found})
    assert [row[0] for row in rows] == ["base", "BAPO"]
    assert rows[1][1:] == ("100.0 % [100.0, 100.0]", "1.0 [1.0, 1.0]", "-2.0 [-2.0, -2.0]", "-0.500 [-0.500, -0.500]")
    assert markdown_table(HEADER, rows).count("\n") == 3
    assert interval(Estimate(0.123, 0.1, 0.2), 100, 1, " %") == "12.3 % [10.0, 20.0]"


def test_curves_are_drawn_from_a_trainers_log(tmp_path: Path) -> None:
    log = [
        {"step": i, **{f"logratios/{r}": -i * k for k, r in enumerate(("chosen", "base", "rejected"))}}
        for i in range(9)
    ]
    draw_logratios({"dpo": log, "bapo": log}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
