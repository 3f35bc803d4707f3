"""What a person looks at: tables and figures."""

from bapo.reporting.changes import (
    ACCURACY_HEADER,
    CHANGE_HEADER,
    LOGP_HEADER,
    accuracy_rows,
    change_rows,
    forgetting_in_words,
    item_in_words,
    learned_in_words,
    logp_rows,
    movement_in_words,
    verdict_in_words,
)
from bapo.reporting.curves import draw_logratios
from bapo.reporting.outcome import draw_outcome
from bapo.reporting.selfcheck import SELFCHECK_HEADER, SELFCHECK_LEGEND, selfcheck_outcome, selfcheck_rows
from bapo.reporting.study import estimate_rows
from bapo.reporting.tables import (
    HEADER,
    WORDED_HEADER,
    held_out_rows,
    interval,
    markdown_table,
    worded,
    worded_rows,
)

__all__ = [
    "ACCURACY_HEADER",
    "CHANGE_HEADER",
    "HEADER",
    "LOGP_HEADER",
    "SELFCHECK_HEADER",
    "SELFCHECK_LEGEND",
    "WORDED_HEADER",
    "accuracy_rows",
    "change_rows",
    "draw_logratios",
    "draw_outcome",
    "estimate_rows",
    "forgetting_in_words",
    "held_out_rows",
    "interval",
    "item_in_words",
    "learned_in_words",
    "logp_rows",
    "markdown_table",
    "movement_in_words",
    "selfcheck_outcome",
    "selfcheck_rows",
    "verdict_in_words",
    "worded",
    "worded_rows",
]
