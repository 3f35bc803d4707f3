"""What each of two processes runs in `test_sharded`: a model whose weights FSDP2 divides over them, on a CPU."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from bapo.kernels.layers import fast_layers
from bapo.likelihood import ResponseScorer
from tests.likelihood.test_scoring import groups, with_lora
from tests.tiny import tiny_model

WAYS = ("layers", "every-module", "tail", "whole-model")


def shard(model: Any, way: str) -> None:
    """Divide a PEFT model's weights: layer by layer; each linear one by itself too; with norm and head as a group of
    their own, as `accelerate` has it; or all in one."""
    mesh = init_device_mesh("cpu", (int(os.environ["WORLD_SIZE"]),))
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    for layer in inner.model.layers if way != "whole-model" else ():
        for part in layer.modules() if way == "every-module" else ():
            if isinstance(part, torch.nn.Linear):
                fully_shard(part, mesh=mesh)
        fully_shard(layer, mesh=mesh)
    if way == "tail":
        fully_shard(inner.model.embed_tokens, mesh=mesh)
        fully_shard([inner.model.norm, inner.lm_head], mesh=mesh, reshard_after_forward=False)
    fully_shard(model, mesh=mesh)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def found_by(way: str, full: bool) -> dict[str, Any]:
    """Log-probs and gradients of a row, of the row one sequence at a time, and what is said of the model."""
    model = tiny_model("llama") if full else with_lora(tiny_model("llama"))
    shard(model, way)
    sharded = [isinstance(p, DTensor) and p.to_local().numel() < p.numel() for p in model.parameters()]
    scorer, batch = ResponseScorer(model), groups()
    logps = scorer(batch).summed()
    logps.square().sum().backward()
    rank, processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
    gradients = {n: whole(p.grad) for n, p in model.named_parameters() if p.grad is not None}
    with torch.no_grad():
        plain = scorer.passes.plainly(batch).summed()
    return {
        "rank": rank,
        "processes": processes,
        "sharded": sharded,
        "fast": len(fast_layers(model)),
        "fallback": scorer.fallback,
        "logps": logps.detach(),
        "plain": plain,
        "again": scorer.score(batch).summed(),
        "gradients": gradients,
    }


if __name__ == "__main__":
    torch.set_num_threads(2)  # enough for strands, if there were any
    torch.distributed.init_process_group("gloo")
    found = {(way, full): found_by(way, full) for way in WAYS for full in (False, True)}
    torch.save(found, Path(sys.argv[1]) / f"{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()
