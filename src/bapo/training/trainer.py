"""The one trainer of all objectives, on `transformers.Trainer`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import Trainer

from bapo.anchoring import AnchoredPreferences, AnchorStore, anchor
from bapo.errors import BapoError
from bapo.likelihood import (
    MOST_STRANDS,
    ResponseLogps,
    ResponseScorer,
    TokenGroup,
    evaluating,
)
from bapo.models import (
    LoadedModel,
    Precision,
    chat_format,
    disable_model_dropout,
    fuse_lora,
    keep_4bit_layout,
    keep_freed_memory,
    lean_layers,
    load_model,
)
from bapo.objectives import LossParts
from bapo.preferences import Preferences
from bapo.training.batches import Collator, PairBatch, PairDataset, PairSampler, PromptSampler
from bapo.training.checkpoints import last_complete, mark_complete
from bapo.training.config import BAPOConfig
from bapo.training.datasets import preferences_from_dataset
from bapo.training.metrics import MetricSums, Throughput, add_base_metrics, add_pair_metrics
from bapo.training.reference import check_step_0, reference_pass

_BATCH_TOKENS = {True: 2048, False: 4096}
"""Input tokens in memory at once by default, on a CPU and elsewhere: with more, a CPU gets hardly faster."""


class BAPOTrainer(Trainer):
    """Preference optimization, anchored or not, with the constructor of `trl.DPOTrainer`.

    The reference is the model as it is given: with an adapter on it, the reference is the model with that adapter.
    Its log-probs are computed once, before training, and kept; no second model is held in memory.

    Args:
        model: a model, or the name of one for `bapo.models.load_model`.
        ref_model: another model to be the reference; by default the given model as it is now.
        args: the settings.
        data_collator: not supported; the trainer's own one shares prompts.
        train_dataset: `Preferences`, `AnchoredPreferences`, or a data set in any of TRL's preference formats. A column
            ``base`` holds base responses in words; without it they are generated.
        eval_dataset: the same, or several by name.
        processing_class: the tokenizer; loaded with the model where that is given by name.
        compute_metrics, callbacks, optimizers: as in `transformers.Trainer`.
        quantization_config: not supported here; load the model with it, or by name with ``precision="nf4"``.
        peft_config: configuration of an adapter to train; None trains what the model says is trainable.

    Raises:
        BapoError: the data hold no usable pair, or an argument does not fit.
    """

    data_collator: Any

    def __init__(
        self,
        model: str | nn.Module,
        ref_model: nn.Module | None = None,
        args: BAPOConfig | None = None,
        data_collator: None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        compute_metrics: Callable[..., Any] | None = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: None = None,
        peft_config: Any = None,
    ) -> None:
        args = args or BAPOConfig(output_dir="bapo-output")
        if data_collator is not None or quantization_config is not None:
            raise BapoError("BAPOTrainer takes no data_collator and no quantization_config: load the model quantized.")
        if train_dataset is None:
            raise BapoError("BAPOTrainer needs a train_dataset.")
        loaded = _loaded(model, processing_class, args)
        if (args.bf16 or args.fp16) and loaded.model.dtype == torch.float32:
            raise BapoError(
                "The model is float32 and the settings ask for bf16 or fp16: load the model in that precision "
                "(dtype=torch.bfloat16), so that reference and policy are the same numbers."
            )
        policy = loaded.model
        keep_4bit_layout(policy)
        if peft_config is not None:
            from peft import get_peft_model

            policy = get_peft_model(policy, peft_config)
        fuse_lora(policy)
        lean_layers(policy)
        if args.activation_checkpointing and hasattr(policy, "enable_input_require_grads"):
            policy.enable_input_require_grads()
        if args.disable_dropout:
            disable_model_dropout(policy)
        self.objective = args.make_objective()
        self._reference = LoadedModel(loaded.name, ref_model or policy, loaded.chat, loaded.precision)
        self._store: AnchorStore | None = None
        self._sums = {"train": MetricSums(), "eval": MetricSums()}
        self._work = Throughput()
        self._part_gradients: dict[str, list[Tensor]] = {}
        self._part_gradients_of = -1
        with args.main_process_first(desc="anchoring"):
            train = self._anchored(train_dataset, args)
            evals = _map_datasets(lambda data: self._anchored(data, args), eval_dataset)
        self._with_base = self.objective.anchor is not None or args.track_base
        self._max_batch_tokens = args.max_batch_tokens or _BATCH_TOKENS[args.device.type == "cpu"]
        super().__init__(
            model=policy,
            args=args,
            data_collator=Collator(train, with_base=self._with_base, max_tokens=self._max_batch_tokens),
            train_dataset=PairDataset(train),
            eval_dataset=_map_datasets(PairDataset, evals),
            processing_class=loaded.tokenizer,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.model_accepts_loss_kwargs = True  # the loss is a sum over pairs divided by the pairs of the whole step
        self.scorer = ResponseScorer(policy)
        self.scorer.see_lengths([group.tokens for group in train.groups])  # while all processes are at the same place
        self._reference_pass = reference_pass(policy) if self._reference.model is policy else None

    # ---- data -------------------------------------------------------------------------------------------------------

    def _anchored(self, data: Any, args: BAPOConfig) -> AnchoredPreferences:
        if isinstance(data, AnchoredPreferences):
            return data
        bases: Mapping[Any, Any] | None = None
        if not isinstance(data, Preferences):
            data, bases = preferences_from_dataset(data)
        if self._store is None:
            self._store = (
                AnchorStore(Path(args.anchors), self._reference)
                if args.anchors
                else AnchorStore.in_cache(self._reference)
            )
        return anchor(
            data, self._reference, self._store, generation=args.generation(), lengths=args.lengths(), bases=bases
        )

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        sampler = PromptSampler if self.args.sampler == "by-prompt" else PairSampler
        return sampler(train_dataset or self.train_dataset, self.args.data_seed or self.args.seed)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """The data loader of one evaluation set, whose batches speak of its own groups."""
        if isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset]
        dataset = eval_dataset if eval_dataset is not None else self.eval_dataset
        if not isinstance(dataset, PairDataset):
            dataset = PairDataset(self._anchored(dataset, self.args))
        training_collator = self.data_collator
        self.data_collator = Collator(dataset.preferences, with_base=self._with_base, max_tokens=self._max_batch_tokens)
        try:
            return super().get_eval_dataloader(dataset)
        finally:
            self.data_collator = training_collator

    # ---- loss -------------------------------------------------------------------------------------------------------

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor | None:
        """Pairs in all micro-batches of a step, over all processes."""
        pairs = torch.tensor(sum(len(own) for sample in batch_samples for own in sample["batches"]), device=device)
        return self.accelerator.reduce(pairs, reduction="sum") if self.accelerator.num_processes > 1 else pairs

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective summed over the pairs of all batches, divided by the pairs of the whole step (equation 6)."""
        batches: tuple[PairBatch, ...] = inputs["batches"]
        whole = float(num_items_in_batch) if num_items_in_batch is not None else float(sum(map(len, batches)))
        # Gradients are averaged over processes, and this loss is already divided by the pairs of all of them.
        share = (self.accelerator.num_processes if num_items_in_batch is not None else 1) / whole
        total = torch.stack([self._batch_loss(model, batch, share) for batch in batches]).sum()
        return (total, None) if return_outputs else total

    def _batch_loss(self, model: nn.Module, batch: PairBatch, share: float) -> Tensor:
        """One batch's part of the loss; its metrics are noted."""
        if not (self.model.training and self.state.global_step):
            batch = self._with_references_of_its_row(batch)
        pairs, base = batch.split(self._score(model, batch.groups))
        parts = self.objective(pairs, base)
        self._stop_if_broken(parts)
        mode = "train" if self.model.training else "eval"
        add_pair_metrics(self._sums[mode], pairs, parts, self.objective.beta)
        if base is not None:
            add_base_metrics(self._sums[mode], base, parts)
        if mode == "train":
            self._work.add(len(batch), batch.tokens)
            self._add_part_gradients(parts, base, share)
        return self.objective.total(parts, base) * share

    def _with_references_of_its_row(self, batch: PairBatch) -> PairBatch:
        """The batch with its references scored again in its own row, where the policy can be its own reference.

        So rounding, which goes by the layout, cancels in log-ratios as long as nothing has been trained: in the first
        step, whose hinges would start active at random otherwise; and in every evaluation.
        """
        if self._reference_pass is None or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return batch
        with torch.no_grad(), evaluating(self.model), self._reference_pass():
            return batch.with_references(self.scorer(batch.groups, most_strands=self._most_strands))

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward of every batch, one after the other."""
        batches: tuple[PairBatch, ...] = inputs["batches"]
        loss = torch.zeros((), device=self.args.device)
        for batch in batches:
            # Processes meet once, at the last batch, however many each has.
            apart = self.accelerator.no_sync(model) if batch is not batches[-1] else nullcontext()
            with apart:
                loss += super().training_step(model, {"batches": (batch,)}, num_items_in_batch)
        return loss

    @property
    def _most_strands(self) -> int:
        one = (
            self.accelerator.num_processes > 1
            or self.args.activation_checkpointing  # goes through attention a second time
            or self.args.part_gradient_steps  # goes through the backward pass several times
            or not self.args.disable_dropout  # of the model, whose draws have no seed of a strand
        )
        return 1 if one else self.args.strands or MOST_STRANDS

    def _score(self, model: nn.Module, groups: tuple[TokenGroup, ...]) -> ResponseLogps:
        """Score through the wrapper that synchronizes gradients (DDP, FSDP), where there is one."""
        inner = self.accelerator.unwrap_model(model, keep_torch_compile=True)
        if inner is model:
            return self.scorer(groups, most_strands=self._most_strands)
        original = inner.forward

        def score_instead(own_groups: tuple[TokenGroup, ...]) -> dict[str, Any]:
            inner.forward = original
            scored = self.scorer(own_groups, most_strands=1)
            return {"tokens": scored.tokens, "lengths": scored.lengths, "greedy": scored.greedy}

        inner.forward = score_instead
        try:
            return ResponseLogps(**model(groups))
        finally:
            inner.forward = original

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        """The loss of one evaluation batch; everything else is added to the metric sums."""
        with torch.no_grad():
            return self.compute_loss(model, inputs).detach(), None, None

    def _add_part_gradients(self, parts: LossParts, base: Any, share: float) -> None:
        """Every ``part_gradient_steps`` steps, sum up the gradient of each part on its own, over the step's batches."""
        every, step = self.args.part_gradient_steps, self.state.global_step
        if not every or step % every:
            return
        if step != self._part_gradients_of:
            self._finish_part_gradients()
            self._part_gradients_of = step
        weights = [p for p in self.model.parameters() if p.requires_grad]
        losses = {"pair": parts.pair.sum() * share}
        if parts.anchor is not None:
            losses["anchor"] = self.objective.anchor_strength * (base.weight * parts.anchor).sum() * share
        for name, loss in losses.items():
            gradients = torch.autograd.grad(loss, weights, retain_graph=True, materialize_grads=True)
            before = self._part_gradients.setdefault(name, [torch.zeros_like(g) for g in gradients])
            for total, gradient in zip(before, gradients, strict=True):
                total += gradient

    def _finish_part_gradients(self) -> None:
        """Log the norms of what was summed up; of this process's share of the step."""
        for name, gradients in self._part_gradients.items():
            norm = math.sqrt(sum(float(gradient.float().pow(2).sum()) for gradient in gradients))
            self._sums["train"].add(f"grad_norm/{name}", norm, 1)
        self._part_gradients.clear()

    # ---- guards -----------------------------------------------------------------------------------------------------

    def _stop_if_broken(self, parts: LossParts) -> None:
        for name, losses in (("pair", parts.pair), ("anchor", parts.anchor)):
            if losses is None:
                continue
            worst = losses.detach().max().item() if losses.numel() else 0.0
            if not math.isfinite(worst) or not bool(torch.isfinite(losses).all()):
                raise BapoError(
                    f"The {name} loss is not a number at step {self.state.global_step}, so training stopped: "
                    "lower the learning rate or the anchor strength, or use float32."
                )
            if worst > self.args.stop_at_loss:
                raise BapoError(
                    f"The {name} loss of one example reached {worst:.3g} at step {self.state.global_step}, above "
                    f"stop_at_loss ({self.args.stop_at_loss:g}): lower the learning rate or the anchor strength."
                )

    def _check_step_0(self) -> None:
        """Before the first step the policy must give the reference's numbers."""
        chat = self._reference.chat
        check_step_0(self.model, self.scorer, self.train_dataset.preferences, chat.end_ids, self._reference_pass)
        if self.args.disable_dropout:
            self.scorer.check_training_mode()

    # ---- running ----------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; ``resume_from_checkpoint=True`` goes on from the last whole checkpoint, if there is one."""
        if resume_from_checkpoint is True:
            last = last_complete(Path(self.args.output_dir))
            resume_from_checkpoint = str(last) if last else None
        if not resume_from_checkpoint and self._reference.model is self.model:
            self._check_step_0()
        self._work.restart()
        if self.args.keep_freed_memory and self.args.device.type == "cpu":
            keep_freed_memory()
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            mark_complete(Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the metrics of all micro-batches and processes since the last time."""
        prefix = next(
            (key.removesuffix("_loss") for key in logs if key.startswith("eval_") and key.endswith("_loss")), None
        )
        self._finish_part_gradients()
        sums = self._sums["train" if prefix is None else "eval"]
        merged = sums.merged(self._summed_over_processes)
        sums.clear()
        if prefix is not None:
            merged = {f"{prefix}_{name}": value for name, value in merged.items()}
        elif "loss" in logs:
            merged |= self._work.rates(self.accelerator.num_processes)
        super().log({**logs, **merged}, start_time)

    def _summed_over_processes(self, table: Tensor) -> Tensor:
        if self.accelerator.num_processes == 1:
            return table
        return self.accelerator.reduce(table.to(self.args.device), "sum").cpu()

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """About six operations per weight and input token."""
        return 6 * sum(batch.tokens for batch in inputs["batches"]) * sum(p.numel() for p in self.model.parameters())


def _loaded(model: Any, tokenizer: Any, args: BAPOConfig) -> LoadedModel:
    if isinstance(model, str):
        return load_model(model, **(args.model_init_kwargs or {}))
    if tokenizer is None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(model.config._name_or_path)
    precision: Precision = "float32" if model.dtype == torch.float32 else "bf16"
    if getattr(model, "is_loaded_in_4bit", False):
        precision = "nf4"
    name = model.config._name_or_path or type(model).__name__
    return LoadedModel(name, model, chat_format(model, tokenizer), precision)


def _map_datasets(function: Callable[[Any], Any], data: Any) -> Any:
    if isinstance(data, dict):
        return {name: function(own) for name, own in data.items()}
    return None if data is None else function(data)
