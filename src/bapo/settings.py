"""Settings that recipes, `BAPOConfig`, objectives and commands share: each default and each range is said here once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

from bapo.errors import BapoError

ANCHOR = "length-normalized"
"""How base responses are anchored by default; docs/dsp-literature.md says why it is not the paper's."""

ANCHOR_STRENGTH = 5.0
"""Lambda of equation 6."""

ANCHOR_CONTROL = "constant"
"""How it moves from step to step."""

LEARNING_RATE = 2e-4
"""For adapters of models of any size that were tried here; training all weights wants a tenth of it or less."""

SCORING_VERSION = 4
"""Part of every key of a score and of every job's identity: raised whenever a score could come out differently."""

MOST_STEPS = 10**9
MOST_TOKENS = 2**24
MOST_SEED = 2**32 - 1  # what numpy takes


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers that a setting may be.

    Attributes:
        least, most: the ends.
        ends: whether an end belongs to the range, ``[`` and ``]``, or not, ``(`` and ``)``.
        whole: whether it must be a whole number.
    """

    least: float
    most: float
    ends: str = "[]"
    whole: bool = False

    def number(self, value: Any, *, text: bool = False) -> Any:
        """The value, a number of this range.

        Args:
            value: what the setting was given.
            text: whether text that reads as a number is taken: YAML hands on ``1e-5`` as text.

        Raises:
            ValueError: it is none; the range in words, as ``a whole number from 1 to 8``.
        """
        number: Any = _of_text(value) if text and isinstance(value, str) else value
        if not _is_number(number) or not self._holds(number):
            raise ValueError(str(self))
        return int(number) if self.whole else number

    def _holds(self, number: Any) -> bool:
        above = number >= self.least if self.ends[0] == "[" else number > self.least
        below = number <= self.most if self.ends[1] == "]" else number < self.most
        return above and below and (not self.whole or number == int(number))

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        if self.least == -math.inf:
            return kind
        start = f"from {self.least:,}" if self.ends[0] == "[" else f"above {self.least:,}"
        if self.most == math.inf:
            return f"{kind} {start}"
        if self.ends == "[]":
            return f"{kind} {start} to {self.most:,}"
        return f"{kind} {start} and {'at most' if self.ends[1] == ']' else 'below'} {self.most:,}"


def whole(least: int, most: int) -> Range:
    """Whole numbers from least to most."""
    return Range(least, most, whole=True)


_TOKENS, _STEPS, _BATCH, _SEED = whole(1, MOST_TOKENS), whole(0, MOST_STEPS), whole(1, 2**16), whole(0, MOST_SEED)
_TEMPERATURE, _RESPONSES = Range(0, 100), whole(1, 1024)

RANGES: dict[str, Range] = {
    # preferences and base responses
    "seed": _SEED,
    "held_out": whole(1, 10**9),
    "max_train_prompts": whole(1, 10**9),
    "max_prompt_tokens": _TOKENS,
    "max_response_tokens": _TOKENS,
    "max_length": _TOKENS,
    "max_new_tokens": _TOKENS,
    "temperature": _TEMPERATURE,
    "base_temperature": _TEMPERATURE,
    "top_p": Range(0, 1, "(]"),
    "responses": _RESPONSES,
    "base_responses": _RESPONSES,
    "base_seed": _SEED,
    # objectives
    "beta": Range(0, 10**6, "(]"),
    "anchor_strength": Range(0, 10**6),
    # training
    "learning_rate": Range(0, 1, "(]"),
    "max_grad_norm": Range(0, 10**9),
    "batch_pairs": _BATCH,
    "per_device_train_batch_size": _BATCH,
    "per_device_eval_batch_size": _BATCH,
    "accumulate": _BATCH,
    "gradient_accumulation_steps": _BATCH,
    "max_batch_tokens": _TOKENS,
    "strands": whole(1, 1024),
    "epochs": Range(0, 10**6, "(]"),
    "num_train_epochs": Range(0, 10**6, "(]"),
    "steps": whole(1, MOST_STEPS),
    "max_steps": whole(-1, MOST_STEPS),
    "warmup_steps": Range(0, MOST_STEPS),  # below 1 a share of all steps, for transformers
    "logging_steps": Range(0, MOST_STEPS),
    "eval_steps": Range(0, MOST_STEPS),
    "save_steps": Range(0, MOST_STEPS, "(]"),
    "part_gradient_steps": _STEPS,
    "stop_at_loss": Range(0, math.inf, "(]"),
    "weight_decay": Range(0, 100),
    "adam_beta1": Range(0, 1, "[)"),
    "adam_beta2": Range(0, 1, "[)"),
    "adam_epsilon": Range(0, 1),
    "data_seed": _SEED,
    "dataloader_num_workers": whole(0, 1024),
    "ddp_timeout": whole(1, MOST_STEPS),
    # adapters
    "rank": whole(1, 2**16),
    "alpha": whole(1, 2**20),
    "dropout": Range(0, 1, "[)"),
    # evaluation and answers
    "prompts": whole(0, 10**6),
    "limit": whole(1, 10**9),
}
"""What each setting may be, by its name, wherever it is given."""


def check_number(name: str, value: Any, shown: str | None = None, within: Range | None = None) -> Any:
    """A setting's value, if it is a number that the setting may be.

    Args:
        name: the setting, a key of `RANGES` where no range is given.
        value: what it was given.
        shown: what it is called where it was given, such as ``--limit``; its name by default.
        within: what it may be, of a setting that a plug-in has of its own.

    Raises:
        BapoError: it is not.
    """
    try:
        return (within or RANGES[name]).number(value)
    except ValueError as must:
        raise BapoError(f"{shown or name} must be {must}, and it is {shortened(value)}.") from None


def shortened(value: Any, most: int = 60) -> str:
    """A value as it would be written in code, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # whole numbers of more than 4,300 digits have no text
        return "a number of thousands of digits"
    return text if len(text) <= most else text[:most] + " ..."


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _of_text(text: str) -> Any:
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text
