"""Settings that recipes, `BAPOConfig`, objectives and commands share: default, meaning and range are said here once.

A setting of the training or of the base responses has one name wherever it is given: a recipe's key, a field of
`BAPOConfig` and, with dashes, an option of the command line.
"""

from __future__ import annotations

import math
from copy import copy
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


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting that recipes and `BAPOConfig` share.

    Attributes:
        default: what it is where nobody gives it.
        meaning: what it does, in the words of help texts.
        within: what it may be, if it is a number.
    """

    default: Any
    meaning: str
    within: Range | None = None


SETTINGS: dict[str, Setting] = {
    # base responses
    "base_max_new_tokens": Setting(256, "longest base response that is generated, tokens", _TOKENS),
    "base_temperature": Setting(0.0, "0 generates base responses greedily; above, they are sampled", _TEMPERATURE),
    "base_responses": Setting(1, "base responses per prompt", _RESPONSES),
    "base_seed": Setting(0, "seed of their sampling", _SEED),
    "anchored_store": Setting(
        None, "folder of base responses and reference log-probs; None for the model's own in the user's cache folder"
    ),
    # the loss
    "objective": Setting("bapo", "the pair loss"),
    "beta": Setting(
        None, "the pair loss's temperature; None takes its own default, 0.1 for dpo and bapo", Range(0, 10**6, "(]")
    ),
    "anchor": Setting(
        None, f"how base responses are anchored, with any objective; None takes its own, {ANCHOR} for bapo"
    ),
    "anchor_strength": Setting(
        None, f"lambda of equation 6, in the first step; None takes {ANCHOR_STRENGTH:g}", Range(0, 10**6)
    ),
    "anchor_control": Setting(ANCHOR_CONTROL, "how the anchor's strength moves from step to step"),
    "objective_settings": Setting({}, "further settings of objective and anchor control, e.g. penalty: 50 for dpop"),
    # the optimizer
    "learning_rate": Setting(
        LEARNING_RATE,
        "peak learning rate; right for adapters, a tenth of it or less for all weights",
        Range(0, 1, "(]"),
    ),
    "lr_scheduler_type": Setting("cosine", "how the learning rate falls"),
    "warmup_steps": Setting(0, "steps of linear warm-up", Range(0, MOST_STEPS)),  # below 1 a share of all steps
    "max_grad_norm": Setting(1.0, "gradient norm clip; 0 does not clip", Range(0, 10**9)),
    "num_train_epochs": Setting(None, "passes over the pairs", Range(0, 10**6, "(]")),
    "max_steps": Setting(None, "optimizer steps, in place of num_train_epochs", whole(1, MOST_STEPS)),
    "per_device_train_batch_size": Setting(8, "pairs in a micro-batch of a process", _BATCH),
    "gradient_accumulation_steps": Setting(1, "micro-batches per optimizer step", _BATCH),
    "seed": Setting(0, "seed of adapter, order and dropout", _SEED),
    "sampler": Setting(
        "by-prompt", "by-prompt keeps the pairs of a prompt together, which shares the most; by-pair shuffles pairs"
    ),
    # memory and time
    "max_batch_tokens": Setting(
        None,
        "input tokens in memory at once, more are computed in several passes; None is 2,048 on a CPU, else 4,096; "
        "changes only what dropout draws",
        _TOKENS,
    ),
    "strands": Setting(
        None,
        "parts of a pass side by side on a CPU; None is one a thread, up to 4; changes only what dropout draws",
        whole(1, 1024),
    ),
    "kernels": Setting("auto", "speed-ups that may be used; changes only what dropout draws"),
    "gradient_checkpointing": Setting(False, "less memory, more time"),
    # what is kept and logged
    "track_base": Setting(True, "log the base responses' drift also without an anchor"),
    "part_gradient_steps": Setting(
        0, "every so many steps log the gradient norm of each part of the loss, for two more backward passes", _STEPS
    ),
    "save_steps": Setting(20, "steps between checkpoints", Range(0, MOST_STEPS, "(]")),
    "report_to": Setting([], "trackers, e.g. tensorboard, wandb"),
    # lengths
    "max_prompt_tokens": Setting(1024, "a longer prompt is dropped, and counted", _TOKENS),
    "max_response_tokens": Setting(1024, "a longer response is cut without an end token, and counted", _TOKENS),
    "trust_remote_code": Setting(False, "whether code that comes with the model may run"),
}
"""What recipes and `BAPOConfig` share, by its one name."""

RANGES: dict[str, Range] = {
    **{name: setting.within for name, setting in SETTINGS.items() if setting.within is not None},
    # preferences, and responses that are no base responses
    "split_seed": _SEED,
    "question_seed": _SEED,
    "sampling_seed": _SEED,
    "held_out": whole(1, 10**9),
    "max_train_prompts": whole(1, 10**9),
    "max_length": _TOKENS,
    "max_new_tokens": _TOKENS,
    "temperature": _TEMPERATURE,
    "top_p": Range(0, 1, "(]"),
    "responses": _RESPONSES,
    # fields that BAPOConfig has alone
    "per_device_eval_batch_size": _BATCH,
    "logging_steps": Range(0, MOST_STEPS),
    "eval_steps": Range(0, MOST_STEPS),
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
    # evaluation and generations
    "prompts": whole(0, 10**6),
    "limit": whole(1, 10**9),
    # simulations
    "repeats": whole(2, 10**6),
    "simulation_seed": _SEED,
}
"""What each setting that is a number may be, by its name, wherever it is given."""


def default_of(name: str) -> Any:
    """The default of a shared setting, as a value of its own."""
    return copy(SETTINGS[name].default)


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
