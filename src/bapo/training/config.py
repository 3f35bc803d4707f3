"""What a training run is told."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from transformers import TrainingArguments

from bapo.anchoring import GenerationSettings, LengthPolicy
from bapo.errors import BapoError, foreign
from bapo.kernels import chosen
from bapo.objectives import Objective, make_objective
from bapo.settings import ANCHOR_CONTROL, LEARNING_RATE, RANGES, check_number, shortened
from bapo.training.compatibility import TRANSFORMERS_SETTINGS, refuse_all, takes_foreign_settings

SAMPLERS = ("by-prompt", "by-pair")

_LOSS_TYPES = {"hinge": "rso", "ipo": "ipo"}
"""TRL's names of losses that are objectives of another name here."""

_LESS_IS_BETTER = re.compile(r"(^|_)(loss(/pair|/anchor)?|(logps|logratios|rewards)/rejected|anchor/active|runtime)$")
"""Metrics of which a smaller value is the better one, behind the name of an evaluation set."""

_MOST_TOKENS = 1024
"""Of a prompt, and of a response, where neither they nor their sum has a bound of its own."""


@takes_foreign_settings
@dataclass
class BAPOConfig(TrainingArguments):
    """`transformers.TrainingArguments` with what preference optimization adds.

    ``per_device_train_batch_size`` counts pairs. Settings of `trl.DPOConfig` that are no fields here are taken where
    they ask for nothing else than what is computed, and refused by name otherwise (`bapo.training.compatibility`).

    Attributes:
        learning_rate: peak learning rate. The default is right for adapters; training all weights wants a tenth of it
            or less.
        objective: the pair loss, a key of `bapo.objectives.PAIR_LOSSES`.
        beta: the objective's temperature; None takes the objective's own default (0.1 for dpo and bapo).
        anchor: how base responses are anchored, a key of `bapo.objectives.ANCHORS`, whatever the objective; None takes
            the objective's own: length-normalized for bapo (see docs/dsp-literature.md), none for the others.
        anchor_strength: lambda of equation 6, in the first step; None takes 5.
        anchor_control: how the strength moves, a key of `bapo.objectives.ANCHOR_CONTROLS`.
        objective_settings: further settings of the objective and the anchor control, e.g. {"penalty": 50} for dpop.
        sampler: by-prompt keeps the pairs of a prompt together, which shares the most; by-pair shuffles pairs.
        max_batch_tokens: input tokens in memory at once; a micro-batch with more is computed in several passes, which
            changes memory, speed, and which elements dropout draws. None takes 2,048 on a CPU and 4,096 elsewhere.
        strands: parts of a pass that a CPU computes side by side, each with its share of the threads. None takes one
            for each thread, up to 4. Changes only which elements dropout draws.
        kernels: speed-ups that may be used: auto takes each where it fits, off none; or names with commas between them
            (`bapo.kernels.KERNELS`). Changes only which elements dropout draws.
        max_prompt_tokens: a longer prompt is dropped, and counted; None takes max_length, or 1,024 without it.
        max_response_tokens: a longer response is cut without an end token, and counted; None as for prompts.
        max_length: bound on prompt and response together, as in TRL; None for the model's own reach.
        max_new_tokens: longest base response that is generated.
        base_temperature: 0 generates base responses greedily; above, they are sampled.
        base_responses: base responses per prompt.
        base_seed: seed of their sampling.
        anchors: folder of the anchored data; None for the model's store in the user's cache folder.
        track_base: whether objectives without an anchor score the base responses too, to log their drift.
        part_gradient_steps: every so many steps, log the gradient norm of each part of the loss (costs two more
            backward passes); 0 never.
        stop_at_loss: a loss above this stops the run.
        disable_dropout: switch off the model's own dropout (not LoRA's).
        model_init_kwargs: how a model is loaded that the trainer is given by name: arguments of `load_model`, and those
            of `from_pretrained` that it has a meaning for (dtype, device_map, attn_implementation, ...).
        trust_remote_code: whether code that comes with such a model may run.
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

    learning_rate: float = LEARNING_RATE
    lr_scheduler_type: str = "cosine"
    num_train_epochs: float = 1.0
    per_device_train_batch_size: int = 8
    logging_steps: float = 1
    remove_unused_columns: bool = False
    dataloader_pin_memory: bool = False  # batches are small and made of Python numbers
    report_to: str | list[str] = "none"

    objective: str = "bapo"
    beta: float | None = None
    anchor: str | None = None
    anchor_strength: float | None = None
    anchor_control: str = ANCHOR_CONTROL
    objective_settings: dict[str, Any] | str | None = field(default_factory=dict)
    sampler: str = "by-prompt"
    max_batch_tokens: int | None = None
    strands: int | None = None
    kernels: str = "auto"
    max_prompt_tokens: int | None = None
    max_response_tokens: int | None = None
    max_length: int | None = None
    max_new_tokens: int = 256
    base_temperature: float = 0.0
    base_responses: int = 1
    base_seed: int = 0
    anchors: str | None = None
    track_base: bool = True
    part_gradient_steps: int = 0
    stop_at_loss: float = 1e4
    disable_dropout: bool = True
    model_init_kwargs: dict[str, Any] | str | None = None
    trust_remote_code: bool = False
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
        if self.max_steps == 0:
            raise BapoError("max_steps=0 would train nothing: leave it out for whole epochs, or name the steps.")
        if self.dataloader_persistent_workers and not self.dataloader_num_workers:
            raise BapoError("dataloader_persistent_workers needs dataloader_num_workers above 0.")
        if getattr(self.accelerator_config, "dispatch_batches", None):
            raise BapoError("dispatch_batches sends batches as tensors, and these are none: leave it out.")
        self._check_loss_type()
        chosen(self.kernels)
        self.make_objective()
        self.generation()

    def _check_fields(self) -> None:
        for own in fields(self):
            value = getattr(self, own.name)
            if value is None:
                continue
            if own.name in RANGES:
                setattr(self, own.name, check_number(own.name, value))
            elif isinstance(own.default, bool) and not isinstance(value, bool):
                raise BapoError(f"{own.name} must be True or False, and it is {shortened(value)}.")

    def _check_loss_type(self) -> None:
        if self.loss_type in (None, "sigmoid", ["sigmoid"], ("sigmoid",)):
            return
        told = self.loss_type if isinstance(self.loss_type, str) else " and ".join(map(str, self.loss_type or []))
        name = _LOSS_TYPES.get(told, "ipo")
        raise BapoError(
            f"BAPOConfig knows no loss_type {shortened(told)}: name the loss as objective, such as objective={name!r}."
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
        settings: Any = self.objective_settings or {}
        return make_objective(
            self.objective,
            beta=self.beta,
            anchor=self.anchor,
            anchor_strength=self.anchor_strength,
            anchor_control=self.anchor_control,
            **settings,
        )

    def generation(self) -> GenerationSettings:
        """How base responses are generated."""
        return GenerationSettings(
            max_new_tokens=self.max_new_tokens,
            temperature=self.base_temperature,
            responses=self.base_responses,
            seed=self.base_seed,
        )

    def lengths(self) -> LengthPolicy:
        """What happens to long texts."""
        most = self.max_length or _MOST_TOKENS
        return LengthPolicy(self.max_prompt_tokens or most, self.max_response_tokens or most, self.max_length)
