"""What is known of one model that is evaluated: a record for each benchmark, and one of its held-out scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bapo.jobs.variants import Variant
from bapo.results import AskedBenchmark, BenchmarkAnswers, Findings, HeldOutScores, Provenance, Record, from_rows


@dataclass(frozen=True)
class Cell:
    """What is known of one variant: a record for each benchmark, and one of its held-out scores.

    Attributes:
        asked: by benchmark, the record and the answers that it speaks of.
        held_out: its held-out scores; None of the reference, and where none are evaluated.
    """

    asked: Mapping[str, tuple[Record[AskedBenchmark], BenchmarkAnswers]]
    held_out: Record[HeldOutScores] | None

    @property
    def identities(self) -> list[str]:
        """Of its records."""
        records = [record.identity for record, _ in self.asked.values()]
        return [*records, *([self.held_out.identity] if self.held_out else [])]

    @property
    def made_from(self) -> Provenance | None:
        """Of its first record."""
        records = [record.made_from for record, _ in self.asked.values()]
        return next(iter([*records, *([self.held_out.made_from] if self.held_out else [])]), None)

    def findings(self, variant: Variant) -> Findings:
        """For a comparison, item by item."""
        return Findings(
            variant.name,
            variant.adapter,
            variant.system,
            benchmarks={name: answers for name, (_, answers) in self.asked.items()},
            preferences=self.held_out.content.report if self.held_out else None,
            prompts=from_rows(self.held_out.items()) if self.held_out else (),
            seconds={name: record.content.seconds for name, (record, _) in self.asked.items()},
        )
