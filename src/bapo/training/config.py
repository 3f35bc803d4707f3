"""What a training run is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from bapo.anchoring import GenerationSettings, LengthPolicy
from bapo.errors import BapoError
from bapo.objectives import Objective, make_objective

SAMPLERS = ("by-prompt", "by-pair")


@dataclass
class BAPOConfig(TrainingArguments):
    """`transformers.TrainingArguments` with what preference optimization adds.

    ``per_device_train_batch_size`` counts pairs.

    Attributes:
        objective: bapo, dpo, ipo, ipo-summed, dpop, orpo or rso.
        beta: the objective's temperature; None takes the objective's own default (0.1 for dpo and bapo).
        anchor: how the base response is anchored: length-normalized (the default, see docs/dsp-literature.md), sequence
            (the paper's equation 5), or token.
        anchor_strength: lambda of equation 6; used by bapo only.
        objective_settings: further settings of the objective, e.g. {"penalty": 50} for dpop.
        sampler: by-prompt keeps the pairs of a prompt together, which shares the most; by-pair shuffles pairs.
        max_batch_tokens: input tokens in memory at once; a micro-batch with more is computed in several passes, which
            changes memory, speed, and which elements dropout draws. None takes 2,048 on a CPU and 4,096 elsewhere.
        strands: parts of a pass that a CPU computes side by side, each with its share of the threads. None takes one
            for each thread, up to 4. Changes only which elements dropout draws.
        keep_freed_memory: on a CPU, let the process keep the memory that a step frees for the next one, which saves the
            system handing it out anew (see `bapo.models.keep_freed_memory`).
        max_prompt_tokens: a longer prompt is dropped, and counted.
        max_response_tokens: a longer response is cut without an end token, and counted.
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
        model_init_kwargs: arguments of `from_pretrained` when the trainer is given a model's name.
        loss_type: accepted as "sigmoid" for scripts written for TRL; other losses are objectives.
        precompute_ref_log_probs: accepted for scripts written for TRL. Reference log-probs are always computed once
            and kept, whatever its value; the numbers are the same.
    """

    learning_rate: float = 5e-5
    lr_scheduler_type: str = "cosine"
    num_train_epochs: float = 1.0
    per_device_train_batch_size: int = 8
    logging_steps: float = 1
    remove_unused_columns: bool = False
    dataloader_pin_memory: bool = False  # batches are small and made of Python numbers
    report_to: str | list[str] = "none"
    activation_checkpointing_kwargs: dict[str, Any] | str | None = field(
        default_factory=lambda: {"use_reentrant": False}
    )

    objective: str = "bapo"
    beta: float | None = None
    anchor: str = "length-normalized"
    anchor_strength: float = 5.0
    objective_settings: dict[str, Any] = field(default_factory=dict)
    sampler: str = "by-prompt"
    max_batch_tokens: int | None = None
    strands: int | None = None
    keep_freed_memory: bool = True
    max_prompt_tokens: int = 1024
    max_response_tokens: int = 1024
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
    model_init_kwargs: dict[str, Any] | None = None
    loss_type: str | list[str] | None = None
    precompute_ref_log_probs: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampler not in SAMPLERS:
            raise BapoError(f"Unknown sampler {self.sampler!r}: use {' or '.join(SAMPLERS)}.")
        if self.loss_type not in (None, "sigmoid", ["sigmoid"]):
            raise BapoError(
                f"BAPOConfig knows no loss_type {self.loss_type!r}: name it as objective, such as objective='ipo'."
            )
        self.make_objective()

    def make_objective(self) -> Objective:
        """The objective that these settings describe.

        Raises:
            BapoError: unknown objective or anchor, or a setting that the objective does not have.
        """
        anchored = {"anchor": self.anchor, "anchor_strength": self.anchor_strength} if self.objective == "bapo" else {}
        return make_objective(self.objective, beta=self.beta, **anchored, **self.objective_settings)

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
        return LengthPolicy(self.max_prompt_tokens, self.max_response_tokens, self.max_length)
