"""What a training run is told."""

from __future__ import annotations

import re
from copy import copy
from dataclasses import dataclass, field, fields
from textwrap import fill
from typing import Any, ClassVar

from transformers import TrainingArguments

from bapo.anchoring import GenerationSettings, LengthPolicy
from bapo.errors import BapoError, foreign
from bapo.kernels import chosen
from bapo.objectives import Objective, objective_of
from bapo.settings import RANGES, SETTINGS, check_number, default_of, shortened
from bapo.training.compatibility import TRANSFORMERS_SETTINGS, refuse_all, takes_foreign_settings

SAMPLERS = ("by-prompt", "by-pair")

_LOSS_TYPES = {"hinge": "rso", "ipo": "ipo"}
"""TRL's names of losses that are objectives of another name here."""

_LESS_IS_BETTER = re.compile(r"(^|_)(loss(/pair|/anchor)?|(logps|logratios|rewards)/rejected|anchor/active|runtime)$")
"""Metrics of which a smaller value is the better one, behind the name of an evaluation set."""

_AS_MANY_AS_EPOCHS = ("max_steps", -1)
"""How `transformers` says that there is no such setting."""


def shared(name: str, **default: Any) -> Any:
    """The field of a setting that recipes have too, with another default where one is given."""
    value = default.get("default", default_of(name))
    how: Any = {"default_factory": lambda: copy(value)} if isinstance(value, dict) else {"default": value}
    return field(**how, metadata={"help": SETTINGS[name].meaning})


def explained(config: type[BAPOConfig]) -> type[BAPOConfig]:
    """The class, whose documentation lists the fields that have their meaning from the table."""
    meanings = {setting.name: setting.metadata.get("help") for setting in fields(config) if setting.name in SETTINGS}
    shown = (f"{name}: {text}." for name, text in meanings.items() if text == SETTINGS[name].meaning)
    lines = [fill(line, 116, initial_indent=8 * " ", subsequent_indent=12 * " ") for line in shown]
    config.__doc__ = f"{(config.__doc__ or '').rstrip()}\n" + "\n".join(lines) + "\n    "
    return config


@explained
@takes_foreign_settings
@dataclass
class BAPOConfig(TrainingArguments):
    """`transformers.TrainingArguments` with what preference optimization adds.

    ``per_device_train_batch_size`` counts pairs. Settings of `trl.DPOConfig` that are no fields here are taken where
    they ask for nothing else than what is computed, and refused by name otherwise (`bapo.training.compatibility`).
    ``max_prompt_tokens`` and ``max_response_tokens`` of None are ``max_length``, or 1,024 without it.

    Attributes:
        max_length: bound on prompt and response together, as in TRL; None for the model's own reach.
        stop_at_loss: a loss above this stops the run.
        disable_dropout: switch off the model's own dropout (not LoRA's).
        model_init_kwargs: how a model is loaded that the trainer is given by name: arguments of `load_model`, and those
            of `from_pretrained` that it has a meaning for (dtype, device_map, attn_implementation, ...).
        loss_type: accepted as "sigmoid" for scripts written for TRL; other losses are objectives.
        precompute_ref_log_probs: accepted for scripts written for TRL. Reference log-probs are always computed once
            and kept, whatever its value; the numbers are the same.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [
        *TrainingArguments._VALID_DICT_FIELDS,
        "objective_settings",
        "model_init_kwargs",
    ]
    # which may be JSON on a command line; a union with str is what `HfArgumentParser` can read

    logging_steps: float = 1
    remove_unused_columns: bool = False
    dataloader_pin_memory: bool = False  # batches are small and made of Python numbers
    report_to: str | list[str] = "none"

    learning_rate: float = shared("learning_rate")
    lr_scheduler_type: str = shared("lr_scheduler_type")
    num_train_epochs: float = shared("num_train_epochs", default=1.0)
    per_device_train_batch_size: int = shared("per_device_train_batch_size")
    objective: str = shared("objective")
    beta: float | None = shared("beta")
    anchor: str | None = shared("anchor")
    anchor_strength: float | None = shared("anchor_strength")
    anchor_control: str = shared("anchor_control")
    objective_settings: dict[str, Any] | str | None = shared("objective_settings")  # noqa: RUF009
    sampler: str = shared("sampler")
    max_batch_tokens: int | None = shared("max_batch_tokens")
    strands: int | None = shared("strands")
    kernels: str = shared("kernels")
    max_prompt_tokens: int | None = shared("max_prompt_tokens", default=None)
    max_response_tokens: int | None = shared("max_response_tokens", default=None)
    max_length: int | None = None
    base_max_new_tokens: int = shared("base_max_new_tokens")
    base_temperature: float = shared("base_temperature")
    base_responses: int = shared("base_responses")
    base_seed: int = shared("base_seed")
    anchored_store: str | None = shared("anchored_store")
    track_base: bool = shared("track_base")
    part_gradient_steps: int = shared("part_gradient_steps")
    stop_at_loss: float = 1e4
    disable_dropout: bool = True
    model_init_kwargs: dict[str, Any] | str | None = None
    trust_remote_code: bool = shared("trust_remote_code")
    loss_type: list[str] | str | None = None
    precompute_ref_log_probs: bool = True

    def __post_init__(self) -> None:
        self._check_fields()
        refuse_all(self, TRANSFORMERS_SETTINGS)
        if getattr(self, "greater_is_better", None) is None and _LESS_IS_BETTER.search(str(self.metric_for_best_model)):
            self.greater_is_better = False  # transformers looks only at whether the name ends with "loss"
        with foreign("The settings do not fit", "see transformers.TrainingArguments for what this one takes"):
            super().__post_init__()
        if self.n_gpu > 1:
            self._n_gpu = 1  # a process has one device: a row is not divided over several
        for name in ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"):  # the new name and the old
            if getattr(self, name, False) is None:
                setattr(self, name, {"use_reentrant": False})
        if self.sampler not in SAMPLERS:
            raise BapoError(f"Unknown sampler {shortened(self.sampler)}: use {' or '.join(SAMPLERS)}.")
        if self.dataloader_persistent_workers and not self.dataloader_num_workers:
            raise BapoError("dataloader_persistent_workers needs dataloader_num_workers above 0.")
        if getattr(self.accelerator_config, "dispatch_batches", None):
            raise BapoError("dispatch_batches sends batches as tensors, and these are none: leave it out.")
        self._check_loss_type()
        chosen(self.kernels)
        self.make_objective()
        self.generation()

    def _check_fields(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if value is None or (setting.name, value) == _AS_MANY_AS_EPOCHS:
                continue
            if setting.name in RANGES:
                setattr(self, setting.name, check_number(setting.name, value))
            elif isinstance(setting.default, bool) and not isinstance(value, bool):
                raise BapoError(f"{setting.name} must be True or False, and it is {shortened(value)}.")

    def _check_loss_type(self) -> None:
        if self.loss_type in (None, "sigmoid", ["sigmoid"], ("sigmoid",)):
            return
        loss_type = self.loss_type if isinstance(self.loss_type, str) else " and ".join(map(str, self.loss_type or []))
        name = _LOSS_TYPES.get(loss_type, "ipo")
        raise BapoError(
            f"BAPOConfig knows no loss_type {shortened(loss_type)}: name the loss as objective, such as "
            f"objective={name!r}."
        )

    @property
    def checkpoints_activations(self) -> bool:
        """Whether activations are computed again in the backward pass, by whichever name it was asked for."""
        return bool(getattr(self, "activation_checkpointing", None) or self.gradient_checkpointing)

    def make_objective(self) -> Objective:
        """The objective that these settings describe.

        Raises:
            BapoError: unknown objective or anchor, or a setting that the objective does not have.
        """
        return objective_of(self)

    def generation(self) -> GenerationSettings:
        """How base responses are generated."""
        return GenerationSettings(
            max_new_tokens=self.base_max_new_tokens,
            temperature=self.base_temperature,
            responses=self.base_responses,
            seed=self.base_seed,
        )

    def lengths(self) -> LengthPolicy:
        """What happens to long texts."""
        most = self.max_length or default_of("max_prompt_tokens")
        return LengthPolicy(self.max_prompt_tokens or most, self.max_response_tokens or most, self.max_length)
