"""HHH: which of two responses is the helpful, harmless or honest one."""

from __future__ import annotations

from bapo.evaluation.registry import Benchmark, Row, benchmark


@benchmark("hhh")
class Hhh(Benchmark):
    """Askell et al. 2021."""

    title, task, kind, chat = "HHH", "hhh", "alignment", True
    files = {"test": "alignment/hhh.jsonl"}
    size = 221, 240
    keys = ("category", "prompt", "chosen", "rejected")

    def to_hub(self, row: Row) -> Row:
        """See `Benchmark`."""
        return {key: row[key] for key in ("prompt", "chosen", "rejected", "category")}

    from_hub = to_hub
