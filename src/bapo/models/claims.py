"""What configurations of models and adapters claim, beside the weights that came with them: before memory is taken."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from bapo.apart import apart
from bapo.errors import BapoError
from bapo.settings import shortened

Shapes = Iterable[tuple[int, ...]]

EXPRESSION_S, EXPRESSION_BYTES = 1, 2**30

_NOT_SIZES = ("position", "rope", "theta", "window", "token_id", "seed", "key", "alpha", "indices", "transform")
"""In names of whole numbers by which no weight is as long."""

_BEYOND_SIZES = 2**24
"""Larger numbers are looked at whatever they are called: tables are as long as some of these."""

_MATCHING = r"""
import re
names, whole, parts, layers = (asked["about"][kind] for kind in ("names", "whole", "parts", "layers"))
for name in names:
    for expression in whole:
        re.fullmatch(expression, name)
    for expression in parts:
        re.match(rf"(.*\.)?({expression})$", name)
    for expression in layers:
        re.match(rf".*\.{expression}\.(\d+)\.", name)
"""
"""As PEFT matches names of modules."""


def shapes_in(folder: Path) -> list[tuple[int, ...]]:
    """Shapes of the weights in a folder's safetensors files, of which only the headers are read.

    Raises:
        Exception: a file is damaged.
    """
    from safetensors import safe_open

    shapes = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            shapes += [tuple(file.get_slice(name).get_shape()) for name in file.keys()]  # noqa: SIM118
    return shapes


def check_model_claims(config: Any, shapes: Shapes, failed: str) -> None:
    """A model's configuration asks for no more than a few times the weights that there are.

    Raises:
        BapoError: it does.
    """
    sizes = list(shapes)
    longest = max((length for shape in sizes for length in shape), default=0)
    claims = list(_claims(config.to_dict()))
    too_many = [
        f"{name}={shortened(number)}" for name, number in claims if "layers" in name and number > 4 * len(sizes)
    ]
    if not too_many and any(_is_beyond(name, number, longest) for name, number in claims):
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        asked = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
        if asked > 8 * sum(map(math.prod, sizes)) + 2**28:
            too_many = [f"{name}={shortened(number)}" for name, number in claims if _is_beyond(name, number, longest)]
    if too_many:
        raise BapoError(
            f"{failed} (its configuration has {', '.join(too_many[:2])}, and no tensor of its {len(sizes):,} is longer "
            f"than {longest:,}): its configuration and its weights are not of one model, so download both again."
        )


def _is_beyond(name: str, number: int, longest: int) -> bool:
    return number > (_BEYOND_SIZES if any(part in name for part in _NOT_SIZES) else longest)


def _claims(values: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Whole numbers of a configuration with their names."""
    for name, value in values.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, Mapping):
                yield from _claims(number)
            elif isinstance(number, int) and not isinstance(number, bool):
                yield str(name), abs(number)


def check_adapter_claims(config: Any, shapes: Shapes, name: str) -> None:
    """An adapter's configuration has no number that is larger than its weights, and no code to import.

    Raises:
        BapoError: it has.
    """
    longest = max((length for shape in shapes for length in shape), default=0)
    ranks = {"rank_pattern": getattr(config, "rank_pattern", None) or {}}
    for key, number in (*_claims(vars(config)), *_claims(ranks)):
        if number > max(longest, 2**10) and not any(part in key for part in _NOT_SIZES):
            raise BapoError(
                f"{name} has {key}={shortened(number)} in its configuration, and no weight that is longer than "
                f"{longest:,}: save or download it again."
            )
    if getattr(config, "megatron_config", None):
        raise BapoError(f"{name} is for Megatron (megatron_config), which names code to be imported: save it without.")


def check_expressions(config: Any, model: Any, name: str) -> None:
    """The regular expressions of an adapter come to an end on the names of a model's modules.

    Raises:
        BapoError: one does not, or is none.
    """
    whole = [
        text
        for text in (getattr(config, key, None) for key in ("target_modules", "exclude_modules"))
        if isinstance(text, str)
    ]
    parts = [key for kind in ("rank_pattern", "alpha_pattern") for key in getattr(config, kind, None) or {}]
    layers = getattr(config, "layers_pattern", None) or []
    layers = [layers] if isinstance(layers, str) else list(layers)
    if not any(set(text) & set("*+?{(|[\\^") for text in (*whole, *parts, *layers) if text != "all-linear"):
        return
    told = {"names": [module for module, _ in model.named_modules()], "whole": whole, "parts": parts, "layers": layers}
    apart(
        _MATCHING,
        told,
        f"A regular expression in the configuration of {name} cannot be used",
        "write out the names of its target modules there, or take the adapter from where it came",
        seconds=EXPRESSION_S,
        memory=EXPRESSION_BYTES,
    )
