"""What each of two processes runs in `test_two_processes_are_one` and `test_sharded_weights_give_one_processs_step`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch.distributed.tensor import DTensor

from tests.likelihood.sharded import shard, whole
from tests.training.test_trainer import FOLLOWING, HELD_OUT, PAIRS, ROWS, make, shake


def a_sharded_step(folder: Path) -> None:
    """Loss and gradients of a step whose pairs and whose weights are divided over the processes; `accelerate` itself
    shards on accelerators only."""
    trainer = make(folder / "two", ROWS)
    shake(trainer.model)
    shard(trainer.model, "layers")
    sharded = [isinstance(p, DTensor) for p in trainer.model.parameters()]
    mine = [at for at in PAIRS if at[1] % 2 == torch.distributed.get_rank()]
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(mine), num_items_in_batch=len(PAIRS))
    loss.backward()
    gradients = {n: whole(p.grad) for n, p in trainer.model.named_parameters() if p.grad is not None}
    found = {"loss": loss.detach(), "gradients": gradients, "sharded": sharded, "pairs": len(mine)}
    torch.save(found, folder / f"step-{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    os.environ["BAPO_CACHE"] = str(folder / "cache")
    if sys.argv[2] == "sharded":
        a_sharded_step(folder)
        sys.exit()
    trainer = make(
        folder / "two",
        ROWS[:7],  # the last step of an epoch has a pair too few for both
        max_steps=3,
        per_device_train_batch_size=2,
        sampler="by-pair",
        max_batch_tokens=20,  # so the processes have unlike numbers of batches
        per_device_eval_batch_size=2,
        eval_dataset=HELD_OUT,
        **FOLLOWING,
    )
    trainer.train()
    trainer.evaluate()
    if trainer.is_world_process_zero():
        trained = {n: p.detach() for n, p in trainer.model.named_parameters() if p.requires_grad}
        torch.save(trained, folder / "weights.pt")
        (folder / "log.json").write_text(json.dumps(trainer.state.log_history))
