"""The one trainer of all objectives, on `transformers.Trainer`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from bapo.anchoring import AnchoredPreferences, first_tokens
from bapo.errors import BapoError, foreign
from bapo.files import private
from bapo.kernels import chosen
from bapo.kernels.kept_memory import kept_memory
from bapo.likelihood import MOST_STRANDS, ResponseLogps, ResponseScorer, TokenGroup, evaluating
from bapo.models import as_it_came, disable_model_dropout, is_sharded
from bapo.objectives import LossParts
from bapo.settings import shortened
from bapo.training.anchor_control import StepDrift, load_state, save_state
from bapo.training.batches import Collator, PairBatch, PairDataset
from bapo.training.checkpoints import check_checkpoint, last_complete
from bapo.training.config import BAPOConfig
from bapo.training.datasets import train_part
from bapo.training.guards import Ending, check_best_metric, stop_if_broken
from bapo.training.metrics import (
    ANCHOR_METRICS,
    BASE_METRICS,
    EVALUATION_METRICS,
    PAIR_METRICS,
    MetricSums,
    PartGradients,
    Throughput,
    add_base_metrics,
    add_pair_metrics,
)
from bapo.training.pair_trainer import OwnSteps, PairTrainer, Trained, score_through
from bapo.training.reference import Reference
from bapo.training.saved import check_saved
from bapo.training.setup import (
    check_arguments,
    check_fills_a_batch,
    check_models,
    loaded_model,
    made_ready,
    tokenizer_of,
)

_BATCH_TOKENS = {True: 2048, False: 4096}
"""Input tokens in memory at once by default, on a CPU and elsewhere: with more, a CPU gets hardly faster."""


class BAPOTrainer(PairTrainer):
    """Preference optimization, anchored or not, with the constructor of `trl.DPOTrainer`.

    The reference is the model as it is given: with an adapter on it, the reference is the model with that adapter.
    Its log-probs are computed once, before training, and kept; no second model is held in memory.

    Args:
        model: a model, or the name of one for `bapo.models.load_model`.
        ref_model: another model to be the reference; by default the given model as it is now.
        args: the settings.
        data_collator: refused; the trainer's own one shares prompts.
        train_dataset: `Preferences`, `AnchoredPreferences`, or a data set in any of TRL's preference formats; of a
            `DatasetDict` its ``train``. A column ``base`` holds base responses in words; without it they are generated.
        eval_dataset: the same, or several by name.
        processing_class: the tokenizer; loaded with the model where that is given by name.
        compute_metrics: refused; `evaluate` returns the trainer's own metrics, under TRL's names where TRL has them.
        callbacks, optimizers: as in `transformers.Trainer`.
        quantization_config: how a model that is given by name is quantized, if that is nf4 as `load_model` does it.
        peft_config: configuration of an adapter to train, whose reference is the model without it; None trains what the
            model says is trainable.
        others: ``optimizer_cls_and_kwargs`` as in `transformers.Trainer`; ``tokenizer``, the old name of
            ``processing_class``. The rest of what these trainers ever took is refused by name.

    Raises:
        BapoError: the data hold no usable pair, an argument does not fit, or nothing is trainable.
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
        compute_metrics: None = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
        **others: Any,
    ) -> None:
        args = BAPOConfig(output_dir="bapo-output") if args is None else args
        optimizer = {name: others.pop(name) for name in ("optimizer_cls_and_kwargs",) if name in others}
        processing_class = tokenizer_of(processing_class, others)
        check_arguments(args, {**others, "data_collator": data_collator, "compute_metrics": compute_metrics})
        if train_dataset is None:
            raise BapoError("BAPOTrainer needs a train_dataset.")
        loaded = loaded_model(model, processing_class, args, quantization_config)
        check_models(model, ref_model, loaded, args)
        policy = made_ready(loaded.model, peft_config)
        self.objective = args.make_objective()
        self._reference = Reference(loaded, policy, ref_model, args, fresh=peft_config is not None)
        self._steps_taken = self._is_at_work = False
        self._sums = {"train": MetricSums(), "eval": MetricSums()}
        self._work = Throughput()
        self._ending = Ending()
        self._step_drift: StepDrift | None = None
        self._part_gradients = PartGradients(args.part_gradient_steps)
        with args.main_process_first(desc="anchoring"):
            train = self._anchored(train_part(train_dataset), args, "the training data")
            evals = _map_datasets(lambda data: self._anchored(data, args), eval_dataset)
        self._with_base = self.objective.anchor is not None or args.track_base
        self._max_batch_tokens = args.max_batch_tokens or _BATCH_TOKENS[args.device.type == "cpu"]
        check_fills_a_batch(train, args)
        failed, todo = "The trainer could not be set up", "change the setting that this names"
        with foreign(failed, todo), as_it_came(policy, modules=False):
            super().__init__(
                model=policy,
                args=args,
                data_collator=Collator(train, with_base=self._with_base, max_tokens=self._max_batch_tokens),
                train_dataset=PairDataset(train),
                eval_dataset=_map_datasets(PairDataset, evals),
                processing_class=loaded.tokenizer,
                callbacks=callbacks,
                optimizers=optimizers,
                **optimizer,
            )
        self.add_callback(OwnSteps())
        if self.objective.anchor is not None:
            self._step_drift = StepDrift(lambda: self.objective.control, self._summed_over_processes)
            self.add_callback(self._step_drift)
        self.model_accepts_loss_kwargs = True  # the loss is a sum over pairs divided by the pairs of the whole step
        if self.is_deepspeed_enabled:
            raise BapoError("BAPOTrainer does not run under DeepSpeed: start it with torchrun, or with FSDP.")
        self.scorer = ResponseScorer(policy, args.kernels)
        self.scorer.see_lengths([group.tokens for group in train.groups])  # while all processes are at the same place

    # ---- data -------------------------------------------------------------------------------------------------------

    def _anchored(self, data: Any, args: BAPOConfig, called: str = "the evaluation data") -> AnchoredPreferences:
        return self._reference.anchored(data, args, called, **self._progress)

    @property
    def _progress(self) -> dict[str, bool]:
        """What the reference must know: whether steps were taken, and whether weights can be put back for a while."""
        divided = self._steps_taken and bool(self.is_fsdp_enabled or is_sharded(self.model))
        return {"trained": self._steps_taken, "kept": not divided}

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """The data loader of one evaluation set, whose batches speak of its own groups."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, str):
            dataset = (self.eval_dataset if isinstance(self.eval_dataset, dict) else {}).get(dataset)
        if dataset is None or isinstance(dataset, dict):
            raise BapoError(f"There is no evaluation set {shortened(eval_dataset)}: give the trainer an eval_dataset.")
        if not isinstance(dataset, PairDataset):
            dataset = PairDataset(self._anchored(dataset, self.args))
        training_collator, drops = self.data_collator, self.args.dataloader_drop_last
        self.args.dataloader_drop_last = False  # an evaluation is over all pairs
        self.data_collator = Collator(dataset.preferences, with_base=self._with_base, max_tokens=self._max_batch_tokens)
        try:
            return self._get_dataloader(
                dataset, "Evaluation", batch_size=self.args.eval_batch_size, sampler_fn=self._get_eval_sampler
            )
        finally:
            self.data_collator, self.args.dataloader_drop_last = training_collator, drops

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """The same for `predict`, which gives metrics and no predictions: there are none of a comparison."""
        return self.get_eval_dataloader(test_dataset)

    # ---- loss -------------------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective summed over the pairs of all batches, divided by the pairs of the whole step (equation 6)."""
        batches: tuple[PairBatch, ...] = inputs["batches"]
        whole = float(num_items_in_batch) if num_items_in_batch is not None else float(max(1, sum(map(len, batches))))
        # Gradients are averaged over processes, and this loss is already divided by the pairs of all of them.
        share = (self.accelerator.num_processes if num_items_in_batch is not None else 1) / whole
        with self._at_work(several=False):
            total = torch.stack([self._batch_loss(model, batch, share) for batch in batches]).sum()
        return (total, None) if return_outputs else total

    def _batch_loss(self, model: nn.Module, batch: PairBatch, share: float) -> Tensor:
        """One batch's part of the loss; its metrics are noted."""
        if not (self.model.training and self.state.global_step):
            batch = self._with_references_of_its_row(batch)
        pairs, base = batch.split(self._score(model, batch.groups))
        parts = self.objective(pairs, base)
        stop_if_broken(parts, self.state.global_step, self.args.stop_at_loss)
        mode = "train" if self.model.training else "eval"
        add_pair_metrics(self._sums[mode], pairs, parts, self.objective.beta)
        if base is not None:
            add_base_metrics(self._sums[mode], base, parts, self.objective.anchor_strength)
        if mode == "train" and len(batch):
            self._ending.note(pairs, base, prompts=len(batch.groups))
            if self._step_drift is not None and base is not None:
                self._step_drift.add(base)
            self._work.add(len(batch), batch.tokens)
            self._look_at_parts(parts, base, share)
        loss = self.objective.total(parts, base)
        if mode == "eval":
            self._sums[mode].add("loss", loss.detach(), len(batch))
        return loss * share

    def _with_references_of_its_row(self, batch: PairBatch) -> PairBatch:
        """The batch with its references scored again in its own row, where the policy can be its own reference.

        So rounding, which goes by the layout, cancels in log-ratios as long as nothing has been trained: in the first
        step, whose hinges would start active at random otherwise; and in every evaluation.
        """
        if self._reference.scoring is None or self.is_fsdp_enabled or is_sharded(self.model):
            return batch
        with torch.no_grad(), evaluating(self.model), self._reference.scoring():
            return batch.with_references(self.scorer(batch.groups, most_strands=self._most_strands))

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward of every batch, one after the other."""
        self._check_steps_left()
        batches = self._in_step(inputs["batches"])
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
            or self.args.checkpoints_activations  # goes through attention a second time
            or self.args.part_gradient_steps  # goes through the backward pass several times
            or not self.args.disable_dropout  # of the model, whose draws have no seed of a strand
        )
        return 1 if one else self.args.strands or MOST_STRANDS

    def _score(self, model: nn.Module, groups: tuple[TokenGroup, ...]) -> ResponseLogps:
        inner = self.accelerator.unwrap_model(model, keep_torch_compile=True)
        if inner is model:
            return self.scorer(groups, most_strands=self._most_strands)
        return score_through(model, inner, self.scorer, groups)

    def _look_at_parts(self, parts: LossParts, base: Any, share: float) -> None:
        """The gradient of each part on its own, every ``part_gradient_steps`` steps."""
        losses = {"pair": parts.pair.sum() * share}
        if parts.anchor is not None:
            losses["anchor"] = self.objective.anchor_strength * (base.weight * parts.anchor).sum() * share
        weights = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._part_gradients.add(self.state.global_step, losses, weights, self._sums["train"])

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        """The loss of one evaluation batch; everything else is added to the metric sums."""
        with torch.no_grad():
            return self.compute_loss(model, {"batches": self._in_step(inputs["batches"])}).detach(), None, None

    def _check_step_0(self) -> None:
        """Before the first step the policy must give the reference's numbers."""
        self._reference.check_step_0(self.model, self.scorer, self.train_dataset.preferences, **self._progress)
        if self.args.disable_dropout:
            with self._at_work():
                self.scorer.check_training_mode()

    # ---- running ----------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; ``resume_from_checkpoint=True`` goes on from the last whole checkpoint, if there is one.

        From a checkpoint of the last step nothing is trained: the model is the checkpoint's.
        """
        if resume_from_checkpoint is True:
            last = last_complete(Path(self.args.output_dir))
            resume_from_checkpoint = str(last) if last else None
        if resume_from_checkpoint:
            check_checkpoint(Path(resume_from_checkpoint), self.train_dataset.preferences.reference)
        self.objective = self.args.make_objective()  # whose anchor strength begins anew
        if resume_from_checkpoint and self.objective.anchor is not None:
            load_state(self.objective.control, Path(resume_from_checkpoint))
        best, own_evaluation = self.args.metric_for_best_model, type(self).evaluate is not Trainer.evaluate
        if best is not None and self.eval_dataset is not None and not own_evaluation:
            metrics = [*EVALUATION_METRICS, *PAIR_METRICS, *(BASE_METRICS if self._with_base else ())]
            metrics += ANCHOR_METRICS if self.objective.anchor is not None else ()
            check_best_metric(best, self.eval_dataset if isinstance(self.eval_dataset, dict) else (), metrics)
        if not resume_from_checkpoint and self._reference.is_policy:
            self._check_step_0()
        self._steps_taken = True
        self._work.restart()
        with self._at_work(), kept_memory(self.args.device, "kept-memory" in chosen(self.args.kernels)):
            try:
                done = super().train(resume_from_checkpoint, *args, **kwargs)
            except Trained:
                done = self._finish_trained()
        earlier = self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None
        if not earlier and self.is_world_process_zero():  # else a better policy was put back
            self._ending.warn(self.model.get_input_embeddings().weight.shape[0], self.state.global_step, self.args)
        return done

    @contextmanager
    def _at_work(self, *, several: bool = True) -> Iterator[None]:
        """The model as training and evaluation need it, without dropout of its own; afterwards it is as it came.

        Weights that FSDP shards stay with it, and so do the hooks that it has for them.

        Args:
            several: whether the scorer is used more than once, or a backward pass belongs to it.
        """
        if self._is_at_work:
            yield
            return
        with ExitStack() as undo:
            if not (self.is_fsdp_enabled or is_sharded(self.model)):
                undo.enter_context(as_it_came(self.model))
            if self.args.disable_dropout:
                disable_model_dropout(self.model)
            if self.args.checkpoints_activations and hasattr(self.model, "enable_input_require_grads"):
                self.model.enable_input_require_grads()
            if several:
                undo.enter_context(self.scorer)
            self._is_at_work = several
            undo.callback(setattr, self, "_is_at_work", False)
            yield

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the adapter, or the whole model where that was trained, and look once whether it is what was trained.

        Raises:
            BapoError: what was saved gives other numbers.
        """
        with private():
            super().save_model(output_dir, _internal_call)
        if _internal_call or not self.args.should_save or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return
        groups = first_tokens([group.tokens for group in self.train_dataset.preferences.groups], 1)
        check_saved(self.model, self.scorer, Path(output_dir or self.args.output_dir), groups)

    def _save_more(self, folder: Path) -> None:
        if self.objective.anchor is not None:
            save_state(self.objective.control, folder)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """Go over an evaluation set; the metrics of all its pairs are part of what `evaluate` and `predict` return."""
        sums = self._sums["eval"]
        sums.clear()
        with self._at_work():
            output = super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)
        for name, value in sums.merged(self._summed_over_processes).items():
            output.metrics[f"{metric_key_prefix}_{name}"] = value
        sums.clear()
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log; training gets the metrics of all its micro-batches and processes since the last time."""
        merged: dict[str, float] = {}
        if "loss" in logs or "train_loss" in logs:
            self._part_gradients.finish(self._sums["train"])
            merged = self._sums["train"].merged(self._summed_over_processes)
            self._sums["train"].clear()
        if "loss" in logs:
            merged |= self._work.rates(self.accelerator.num_processes)
        super().log({**logs, **merged}, start_time)


def _map_datasets(function: Callable[[Any], Any], data: Any) -> Any:
    if isinstance(data, dict):
        return {name: function(value) for name, value in data.items()}
    return None if data is None else function(data)
