"""What a person looks at: tables and figures."""

from bapo.reporting.curves import draw_logratios
from bapo.reporting.tables import HEADER, held_out_rows, interval, markdown_table

__all__ = ["HEADER", "draw_logratios", "held_out_rows", "interval", "markdown_table"]
