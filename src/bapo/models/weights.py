"""What is asked of weights that come in: all of them, of the right shapes, and numbers."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bapo.errors import BapoError

_WIDE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Types of weights that can hold what is not a number, and of which a minimum can be taken."""


_RETIRED = re.compile(r"\.(masked_bias|attn\.bias|attention\.bias|rotary_emb\.inv_freq|position_ids)$")
"""What older versions of transformers saved besides weights, and newer ones compute."""


def check_no_adapter(source: Any, name: str) -> None:
    """No adapter lies where a model is looked for: `transformers` would put it on by itself, whatever it holds.

    Args:
        source: folder or hub id.
        name: what the user calls it.

    Raises:
        BapoError: one does.
    """
    from transformers.utils import find_adapter_config_file

    if find_adapter_config_file(str(source)) is not None:
        raise BapoError(
            f"{name} holds an adapter (adapter_config.json): name its base model with --model and it with --adapter, "
            "or take that file out of it if it is a model."
        )


def whole_model(failed: str, source: Any, **how: Any) -> Any:
    """A causal language model whose weights all come from its file, and all the file's weights are in it.

    Args:
        failed: what failed where they are not, the beginning of the sentence.
        source: folder or hub id.
        how: for `from_pretrained`.

    Raises:
        BapoError: they are not.
    """
    from transformers import AutoModelForCausalLM

    model, loading_info = AutoModelForCausalLM.from_pretrained(
        source, output_loading_info=True, ignore_mismatched_sizes=True, **how
    )
    check_keys(
        failed,
        "they are not those of its configuration, so download or save it again.",
        missing=loading_info["missing_keys"],
        unexpected=[name for name in loading_info["unexpected_keys"] if not _RETIRED.search(name)],
        mismatched=[name for name, *_ in loading_info["mismatched_keys"]],
    )
    return model


def check_keys(
    failed: str,
    todo: str,
    *,
    missing: Collection[str] = (),
    unexpected: Collection[str] = (),
    mismatched: Collection[str] = (),
) -> None:
    """All weights of a file have their place, and all places their weight.

    Args:
        failed: what failed and where, the beginning of the sentence.
        todo: what to do, its end, with its full stop or question mark.
        missing: names that the file lacks.
        unexpected: names that have no place.
        mismatched: names whose shapes are not those of their places.

    Raises:
        BapoError: there are any.
    """
    kinds = {"missing": missing, "without a place": unexpected, "of another shape": mismatched}
    problems = [f"{len(names)} {kind}, e.g. {min(names)}" for kind, names in kinds.items() if names]
    if problems:
        raise BapoError(f"{failed} (weights: {'; '.join(problems)}): {todo}")


def mismatched_keys(error: Exception) -> list[str]:
    """Names of the weights that `load_state_dict` finds of another shape."""
    return re.findall(r"size mismatch for (\S+?):", str(error))


def check_finite(tensors: Mapping[str, Tensor], whose: str) -> None:
    """All weights are numbers. One pass over them, a fraction of the time that reading them takes.

    Raises:
        BapoError: some are infinite or no number at all; says how many tensors have such.
    """
    broken = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
    _refuse_broken(broken, whose)


def check_4bit(model: nn.Module, whose: str) -> None:
    """`check_finite` for 4-bit weights, which hold neither shape nor infinities where others do.

    Raises:
        BapoError: a weight was not a number before it was quantized, had another shape than its layer, or has blocks
            that `bitsandbytes` does not read back on a CPU.
    """
    layers = {name: layer for name, layer in model.named_modules() if hasattr(_weight(layer), "quant_state")}
    states = {name: _weight(layer).quant_state for name, layer in layers.items()}
    check_keys(
        f"{whose} could not be loaded",
        "download or save it again.",
        mismatched=[n for n, state in states.items() if tuple(state.shape) != _shape(layers[n])],
    )
    scales = {n: [s for s in (state.absmax, state.offset) if isinstance(s, Tensor)] for n, state in states.items()}
    _refuse_broken([n for n, parts in scales.items() if not all(map(_is_finite, parts))], whose)
    # Its CPU kernels begin a block with each row, though a block was cut from all rows behind each other.
    torn = [
        n
        for n, state in states.items()
        if _weight(layers[n]).device.type == "cpu" and state.shape[-1] % state.blocksize
    ]
    if torn:
        raise BapoError(
            f"{whose} cannot be 4-bit on a CPU: bitsandbytes computes with wrong weights there where a layer's inputs "
            f"are no multiple of {states[torn[0]].blocksize} (in {len(torn)} layers, e.g. {torn[0]}): "
            "take another precision, or an accelerator."
        )


def _weight(layer: nn.Module) -> Any:
    return getattr(layer, "weight", None)


def _shape(layer: nn.Module) -> tuple[int, ...]:
    return (int(layer.out_features), int(layer.in_features))  # type: ignore[arg-type]


def _is_finite(tensor: Tensor) -> bool:
    if tensor.dtype not in _WIDE or not tensor.numel():
        return True
    return bool(torch.isfinite(torch.stack(torch.aminmax(tensor.detach()))).all())


def _refuse_broken(names: Iterable[str], whose: str) -> None:
    broken = sorted(names)
    if broken:
        raise BapoError(
            f"{whose} has weights that are infinite or not a number (in {len(broken)} tensors, e.g. {broken[0]}): "
            "download or save it again."
        )
