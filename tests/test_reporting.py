"""Tables; figures have tests of their own in test_figures."""

from __future__ import annotations

from bapo.evaluation import PromptScores
from bapo.evaluation.bootstrap import Estimate
from bapo.evaluation.preference import report
from bapo.reporting import HEADER, held_out_rows, interval, markdown_table


def test_a_table_has_the_base_first_and_every_figure_with_its_interval() -> None:
    found = report([PromptScores(((1.0, 0.0),), -2.0, 4, 1)] * 3)
    rows = held_out_rows({"bapo": found})
    assert [row[0] for row in rows] == ["base", "BAPO"]
    assert rows[1][1:] == ("100.0 % [100.0, 100.0]", "1.0 [1.0, 1.0]", "-2.0 [-2.0, -2.0]", "-0.500 [-0.500, -0.500]")
    assert markdown_table(HEADER, rows).count("\n") == 3
    assert interval(Estimate(0.123, 0.1, 0.2), 100, 1, " %") == "12.3 % [10.0, 20.0]"
