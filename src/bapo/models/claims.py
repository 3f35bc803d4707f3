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

PAIRS_A_SECOND, LONGEST_S = 2**15, 30
"""Expressions times names that are tried in a second on a slow machine, and the seconds that the most of them get."""

_NOT_SIZES = ("position", "rope", "theta", "window", "token_id", "seed", "key", "alpha", "indices", "transform")
"""In names of whole numbers by which no weight is as long."""

_BEYOND_SIZES = 2**24
"""Larger numbers are looked at whatever they are called: tables are as long as some of these."""

WRITE_OUT = "write out the names of its target modules there, or take the adapter from where it came"
"""What to do about an expression."""

_SIGNS = frozenset("*+?{(|[\\^")
"""Text without any of them is a plain name as an expression, too."""

_MATCHING = r"""
import re, warnings
warnings.simplefilter("ignore")
for one in asked["about"]["expressions"]:
    for way, form in (("fullmatch", one), ("search", one), ("match", rf"(.*\.)?({one})$"), ("match", rf".*\.{one}$"),
                      ("match", rf"(^|.*\.){one}($|\..*)"), ("match", rf"(?:^|.*?\.){one}\.(?P<idx>\d+)\.")):
        try:
            tried = getattr(re.compile(form), way)
        except (re.error, OverflowError, RecursionError):  # which PEFT meets, too, where it is an expression to it
            continue
        for name in asked["about"]["names"]:
            tried(name)
"""
"""In all ways in which PEFT matches names of modules: which setting is matched in which of them differs by adapter."""


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
    longest = _longest(sizes)
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
            f"{failed} (its configuration has {', '.join(too_many[:2])}, and the longest side of its {len(sizes):,} "
            f"tensors is {longest:,}): its configuration and its weights are not of one model, so download both again."
        )


def _longest(shapes: Shapes) -> int:
    """The longest side of the tensors that hold anything: one that is empty can be of any length."""
    return max((length for shape in shapes if math.prod(shape) for length in shape), default=0)


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
    longest = _longest(shapes)
    ranks = {"rank_pattern": getattr(config, "rank_pattern", None) or {}}
    for key, number in (*_claims(vars(config)), *_claims(ranks)):
        if number > max(longest, 2**10) and not any(part in key for part in _NOT_SIZES):
            raise BapoError(
                f"{name} has {key}={shortened(number)} in its configuration, and no weight that is longer than "
                f"{longest:,}: save or download it again."
            )
    if getattr(config, "megatron_config", None):
        raise BapoError(
            f"{name} is for Megatron (megatron_config), which names code to be imported: save it again without that."
        )


def check_expressions(config: Any, model: Any, name: str) -> None:
    """What may be a regular expression in an adapter's configuration comes to an end on the names in a model.

    Raises:
        BapoError: one does not.
    """
    expressions = sorted({text for text in _texts(vars(config)) if _SIGNS & set(text)})
    if not expressions:
        return
    whole = [name for name, _ in (*model.named_modules(), *model.named_parameters())]
    names = list(dict.fromkeys((*whole, *(name.rpartition(".")[2] for name in whole))))
    apart(
        _MATCHING,
        {"names": names, "expressions": expressions},
        f"A regular expression in the configuration of {name} cannot be used",
        WRITE_OUT,
        seconds=min(EXPRESSION_S + len(expressions) * len(names) // PAIRS_A_SECOND, LONGEST_S),
        memory=EXPRESSION_BYTES,
    )


def _texts(value: Any) -> Iterator[str]:
    """All texts and keys in a configuration."""
    left = [value]
    while left:
        inner = left.pop()
        if isinstance(inner, str):
            yield inner
        elif isinstance(inner, Mapping):
            left += [*inner, *inner.values()]
        elif isinstance(inner, list | tuple | set | frozenset):
            left += inner
