"""Whether numbers are those of a model's own code: one judgement, for the probe at the start, for every later check of
a model, for step 0, for ``bapo selfcheck``, and for the table of architectures (``benchmarks/architectures.py``)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bapo.likelihood.noise import NoiseFloor, gap_of, largest_gap_of, noise_floor


@dataclass(frozen=True, slots=True)
class Verdict:
    """How far numbers are from the model's own, and how far rounding explains.

    Attributes:
        gap: mean absolute difference, nats (or what the numbers are in).
        largest: largest absolute difference.
        floor: of the model's own passes.
        precision: what they were computed in.
    """

    gap: float
    largest: float
    floor: NoiseFloor
    precision: str

    @property
    def right(self) -> bool:
        """Whether rounding explains the difference; what is not a number is not right."""
        return self.gap <= self.floor.limit

    def __str__(self) -> str:
        return (
            f"in {self.precision} token log-probs differ by {self.gap:.3g} nats from the "
            f"model's own forward pass, and rounding explains {self.floor.limit:.3g}"
        )


def judge(found: Tensor, plain: Mapping[str, Tensor], dtype: torch.dtype) -> Verdict:
    """Compare numbers with those of the model's own code.

    Args:
        found: (N,) the numbers in question: log-probs of tokens, or a gradient.
        plain: (N,) the model's own by pass, at least two that differ by rounding alone; the first one is compared.
        dtype: what all of them were computed in.
    """
    floor = noise_floor(plain, float32=dtype == torch.float32)
    return judge_by(floor, found, next(iter(plain.values())), str(dtype).removeprefix("torch."))


def judge_by(floor: NoiseFloor, found: Tensor, known: Tensor, precision: str) -> Verdict:
    """Compare (N,) numbers with (N,) that are known, by a floor that was measured on them."""
    return Verdict(gap_of(found, known), largest_gap_of(found, known), floor, precision)


@dataclass(slots=True)
class Fit:
    """What is known of how the row fits a model; kept with the model, for all who score it.

    Attributes:
        own_attention: the attention that the model came with.
        backend: how segment attention is computed on its device.
        has_float32: whether the model can be computed in float32.
        misfit: why the row does not fit; None where it does.
        longest: tokens up to which sequences may share a row; None for any.
        beyond: of lengths that the configuration names, why the row does not fit longer sequences, or None.
        modules: how many the model has had when `changes` was found out.
        changes: what its modules set while they compute, so that several threads would disturb each other.
    """

    own_attention: str
    backend: str = "split"
    has_float32: bool = True
    misfit: str | None = None
    longest: int | None = None
    beyond: dict[int, str | None] = field(default_factory=dict)
    modules: int = 0
    changes: tuple[str, ...] = ()


_NAMES_A_LENGTH = re.compile(r"window|chunk|top_?k|budget|floor_scale|local_att|block_size|span|stride|ratio")
_NAMES_NONE = re.compile(
    r"layers|pattern|group|moe|expert|norm|num_|feed_forward|lm_head|mamba|use_|per_tok|audio|vision"
)


def named_lengths(config: Any, above: int) -> tuple[int, ...]:
    """Lengths, in tokens and in order, at which a configuration says that something changes: windows and chunks.

    Args:
        config: of the model.
        above: what shorter sequences show anyway.
    """
    return tuple(sorted({length for length in _lengths(config.get_text_config().to_dict()) if length > above}))


def _lengths(said: Mapping[str, Any]) -> Iterator[int]:
    for name, value in said.items():
        if isinstance(value, Mapping):
            yield from _lengths(value)
        elif type(value) is int and _NAMES_A_LENGTH.search(name) and not _NAMES_NONE.search(name):
            yield value
