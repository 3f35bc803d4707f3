"""Tables; figures have tests of their own in test_figures."""

from __future__ import annotations

from bapo.reporting import HEADER, drift_in_words, held_out_rows, interval, markdown_table
from bapo.results import Estimate, PromptScores, report


def test_a_table_has_the_base_first_and_every_figure_with_its_interval() -> None:
    found = report([PromptScores(((1.0, 0.0),), -2.0, 4, 1)] * 3)
    rows = held_out_rows({"bapo": found}, "earlier")
    assert [row[0] for row in rows] == ["earlier", "BAPO"]
    assert rows[1][1:] == ("100.0 % [33.3, 100.0]", "1.0 [1.0, 1.0]", "-2.0 [-2.0, -2.0]", "-39.3 [-39.3, -39.3]")
    assert markdown_table(HEADER, rows).count("\n") == 3
    assert [row[0] for row in held_out_rows({"bapo": found})] == ["base", "BAPO"]
    assert interval(Estimate(5.0, float("nan"), float("nan")), 1, 1) == "5.0 [unknown]"
    assert interval(Estimate(0.123, 0.1, 0.2), 100, 1, " %") == "12.3 % [10.0, 20.0]"


def test_drift_in_words_is_the_factor_of_a_token() -> None:
    """A drift of -2 nats over 4 tokens makes each exp(-0.5) as likely: 39.3 % less."""
    lost = report([PromptScores(((1.0, 0.0),), -2.0, 4, 1)] * 3)
    assert drift_in_words("dpo", lost) == (
        "DPO finds the model's own earlier answers 39.3 % less likely per token: it has begun to forget them."
    )
    kept = report([PromptScores(((1.0, 0.0),), 0.4, 4, 1)] * 3)
    assert drift_in_words("mine-2", kept) == (
        "mine-2 finds the model's own earlier answers 10.5 % likelier per token: they are kept."
    )
    unclear = report([PromptScores(((1.0, 0.0),), drift, 4, 1) for drift in (-2.0, 3.0)])
    assert drift_in_words("bapo", unclear).endswith("which may be chance.")
