"""`transformers.Trainer` over batches of pairs: who gets which, sums over processes, and checkpoints that are whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer, TrainerCallback
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import TrainOutput

from bapo.errors import foreign
from bapo.files import private
from bapo.likelihood import ResponseLogps, ResponseScorer, TokenGroup
from bapo.training.batches import InOrder, PairBatch, PairSampler, PromptSampler
from bapo.training.checkpoints import drop_older, mark_complete


def bring_within_reach(loader: Any) -> None:
    """Let a loader whose batches several processes share show its sampler where that of one process would.

    Going on within an epoch puts another layer around the batches, and `accelerate` looks for a sampler with
    ``set_epoch`` not deep enough for both.
    """
    batches = loader.batch_sampler
    if not hasattr(batches, "sampler") and hasattr(batches, "batch_sampler"):
        batches.sampler = batches.batch_sampler.sampler


class OwnSteps(TrainerCallback):
    """Training that goes on saves and logs as often as it is told now, and not as its checkpoint was told."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The state is the checkpoint's by now."""
        state.compute_steps(args, state.max_steps)


class PairTrainer(Trainer):
    """The part of a trainer that knows nothing of losses and of references."""

    # ---- batches ----------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The loader of `transformers`, whose sampler is told the epoch wherever in it training goes on."""
        loader = super().get_train_dataloader()
        bring_within_reach(loader)
        return loader

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        sampler = PromptSampler if self.args.sampler == "by-prompt" else PairSampler
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        at_once = 1 if self.args.dataloader_drop_last else self._at_once(self.args.train_batch_size)
        return sampler(train_dataset or self.train_dataset, seed, at_once)

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[int]:
        return InOrder(eval_dataset, self._at_once(self.args.eval_batch_size))

    def _at_once(self, batch: int) -> int:
        """Pairs that all processes take at once, if there are several."""
        processes: int = self.accelerator.num_processes
        return batch * processes if processes > 1 else 1

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor | None:
        """Pairs in all micro-batches of a step, over all processes."""
        pairs = torch.tensor(sum(len(batch) for sample in batch_samples for batch in sample["batches"]), device=device)
        return self.accelerator.reduce(pairs, reduction="sum") if self.accelerator.num_processes > 1 else pairs

    def _in_step(self, batches: tuple[PairBatch, ...]) -> tuple[PairBatch, ...]:
        """The batches; with sharded weights, which processes gather together, as many as the process with most has."""
        if not self.is_fsdp_enabled:
            return batches
        most = self.accelerator.gather(torch.tensor([len(batches)], device=self.args.device)).max()
        return (*batches, *[batches[-1].idle] * (int(most) - len(batches)))

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """About six operations per weight and input token."""
        return 6 * sum(batch.tokens for batch in inputs["batches"]) * sum(p.numel() for p in self.model.parameters())

    def _summed_over_processes(self, table: Tensor) -> Tensor:
        if self.accelerator.num_processes == 1:
            return table
        return self.accelerator.reduce(table.to(self.args.device), "sum").cpu()

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        with foreign(
            f"The checkpoint {folder} could not be written",
            "see that there is room and that you may write there, and start again: it goes on from the last whole one",
        ):
            most, self.args.save_total_limit = self.args.save_total_limit, None
            try:
                with private():
                    super()._save_checkpoint(model, trial)
            finally:
                self.args.save_total_limit = most
            self.accelerator.wait_for_everyone()  # each process writes a part of it
            if self.args.should_save:
                self._save_more(folder)
                mark_complete(folder, self.train_dataset.preferences.reference)
                drop_older(folder.parent, most, [folder, Path(self.state.best_model_checkpoint or "")])

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """As in `transformers.Trainer`, but without its pickle of the settings, which names places and runs as code."""
        super()._save(output_dir, state_dict)
        (Path(output_dir or self.args.output_dir) / TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def _save_more(self, folder: Path) -> None:
        """What else belongs to a checkpoint is written there."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with foreign(
            f"The checkpoint {resume_from_checkpoint} does not fit the model and its adapter",
            "make them as they were when it was written",
        ):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """As in `transformers.Trainer`; an optimizer that cannot be had is a sentence."""
        with foreign(f"The optimizer {self.args.optim} cannot be made", "choose another one with optim"):
            return super().create_optimizer(*args, **kwargs)

    def _check_steps_left(self) -> None:
        if 0 < self.state.max_steps <= self.state.global_step:
            raise Trained

    def _finish_trained(self) -> TrainOutput:
        """What the end of training does, without the step that it would take first."""
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self._load_best_model()
        self.callback_handler.on_train_end(self.args, self.state, self.control)
        self.is_in_train = False
        return TrainOutput(self.state.global_step, 0.0, {})


class Trained(Exception):  # noqa: N818
    """There is no step left to take.

    `transformers` asks whether it is done behind each step only, and so takes one more where a run goes on from the
    checkpoint of its last step, inside an epoch.
    """


def score_through(
    wrapper: nn.Module, inner: Any, scorer: ResponseScorer, groups: tuple[TokenGroup, ...]
) -> ResponseLogps:
    """Score through the wrapper that synchronizes gradients (DDP, FSDP), in one strand.

    Args:
        wrapper: the model as `accelerate` prepared it.
        inner: the model in it, which the scorer is of.
        scorer: of the model.
        groups: what is scored.
    """
    original = inner.forward

    def score_instead(wanted: tuple[TokenGroup, ...]) -> dict[str, Any]:
        inner.forward = original
        scored = scorer(wanted, most_strands=1)
        return {"tokens": scored.tokens, "lengths": scored.lengths, "greedy": scored.greedy}

    inner.forward = score_instead
    try:
        return ResponseLogps(**wrapper(groups))
    finally:
        inner.forward = original
