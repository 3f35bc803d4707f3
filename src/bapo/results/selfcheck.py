"""What `bapo selfcheck` found out about a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far a token's log-prob is from what it should be, nats.

    Attributes:
        precision: what it was computed in.
        largest: of all tokens.
        mean: over the tokens.
        floor: mean by which rounding alone moves a token.
        limit: mean that rounding explains.
    """

    precision: str
    largest: float
    mean: float
    floor: float
    limit: float

    @property
    def right(self) -> bool:
        """Whether rounding explains it; what is not a number is not right."""
        return self.mean <= self.limit


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was checked.

    Attributes:
        name: what, in a few words.
        meaning: what it compares.
        right: whether it is as it should be.
        verdict: in words.
        deviations: in each precision; none where no numbers were compared.
    """

    name: str
    meaning: str
    right: bool
    verdict: str
    deviations: tuple[Deviation, ...] = ()


@dataclass(frozen=True, slots=True)
class Selfcheck:
    """All that was found out.

    Attributes:
        model: the name that it was asked for by.
        adapter: that is on it; None for none.
        facts: how it is computed on this machine, by subject.
        checks: what was checked.
        sample: what the numbers are of.
        seconds: that it took.
    """

    model: str
    adapter: str | None
    facts: Mapping[str, str]
    checks: tuple[Check, ...]
    sample: str
    seconds: float

    @property
    def right(self) -> bool:
        """Whether all is as it should be."""
        return all(check.right for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {"right": self.right, **asdict(self)}
