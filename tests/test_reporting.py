"""Tables; figures have tests of their own in test_figures."""

from __future__ import annotations

from bapo.reporting import HEADER, WORDED_HEADER, held_out_rows, interval, markdown_table, worded_rows
from bapo.results import Estimate, PromptScores, likelier, report


def test_a_table_has_the_base_first_and_every_figure_with_its_interval() -> None:
    found = report([PromptScores(((1.0, 0.0),), -2.0, 4, 1)] * 3)
    rows = held_out_rows({"bapo": found}, "earlier")
    assert [row[0] for row in rows] == ["earlier", "BAPO"]
    assert rows[1][1:] == ("100.0 % [33.3, 100.0]", "1.0 [1.0, 1.0]", "-2.0 [-2.0, -2.0]", "-0.500 [-0.500, -0.500]")
    assert markdown_table(HEADER, rows).count("\n") == 3
    assert [row[0] for row in held_out_rows({"bapo": found})] == ["base", "BAPO"]
    assert interval(Estimate(5.0, float("nan"), float("nan")), 1, 1) == "5.0 [unknown]"
    assert interval(Estimate(0.123, 0.1, 0.2), 100, 1, " %") == "12.3 % [10.0, 20.0]"


def test_in_words_a_drift_per_token_is_a_percentage_with_its_direction() -> None:
    lost, gained = (report([PromptScores(((1.0, 0.0),), drift, 4, 1)] * 3) for drift in (-2.0, 0.4))
    found = {"bapo": gained, "dpo": lost}
    percent = {name: likelier(own.drift_per_token) for name, own in found.items()}
    rows = worded_rows(found, percent, "earlier")
    # exp(-2 / 4) and exp(0.4 / 4)
    assert [row[2] for row in rows] == [
        "as likely as before",
        "10.5 % likelier [10.5, 10.5]",
        "39.3 % less likely [-39.3, -39.3]",
    ]
    assert [row[:2] + row[3:] for row in rows] == [row[:4] for row in held_out_rows(found, "earlier")]
    assert markdown_table(WORDED_HEADER, rows).count("\n") == 4
