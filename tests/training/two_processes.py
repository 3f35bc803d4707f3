"""What each of two processes runs in `test_two_processes_are_one`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from tests.training.test_trainer import FOLLOWING, HELD_OUT, ROWS, make

if __name__ == "__main__":
    folder, sharded = Path(sys.argv[1]), sys.argv[2] == "sharded"
    os.environ["BAPO_CACHE"] = str(folder / "cache")
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
        **({"fsdp": "full_shard"} if sharded else {}),
    )
    trainer.train()
    trainer.evaluate()
    if trainer.is_world_process_zero():
        if not sharded:
            trained = {n: p.detach() for n, p in trainer.model.named_parameters() if p.requires_grad}
            torch.save(trained, folder / "weights.pt")
        (folder / "log.json").write_text(json.dumps(trainer.state.log_history))
