"""Kernels by name, and the setting that says which may be used."""

from __future__ import annotations

from collections.abc import Iterable

from bapo.errors import BapoError
from bapo.registry import nearest
from bapo.settings import shortened

KERNELS: dict[str, str] = {
    "fused-lora": "the update of a LoRA layer is one operation, in the model's precision",
    "lean-layers": "norms and gated units keep less for the backward pass",
    "gradient-rows": "the backward pass leaves out rows that no gradient reaches",
    "strands": "a CPU computes parts of a row side by side",
    "packed-weights": "while a CPU generates, weights lie as products with few rows read them",
    "kept-memory": "on a CPU, memory that a step frees stays with the process for the next one",
}
"""What each kernel does. ``auto`` takes each of them wherever it fits, ``off`` takes none."""

Kernels = str | Iterable[str]
"""The setting: ``auto``, ``off``, or names, in one text with commas or several."""


def chosen(kernels: Kernels) -> frozenset[str]:
    """The kernels that a setting allows, by name.

    >>> sorted(chosen("strands, kept-memory"))
    ['kept-memory', 'strands']

    Raises:
        BapoError: there is no kernel of a name, or names stand beside ``auto`` or ``off``.
    """
    texts = [kernels] if isinstance(kernels, str) or not isinstance(kernels, Iterable) else list(kernels)
    if not all(isinstance(text, str) for text in texts):
        raise BapoError(f"kernels must be {_allowed()}, and it is {shortened(kernels)}.")
    names = [name.strip() for text in texts for name in text.split(",") if name.strip()]
    if names == ["auto"]:
        return frozenset(KERNELS)
    if names == ["off"] or not texts:
        return frozenset()
    for name in names or texts:
        if name in ("auto", "off"):
            raise BapoError(f"kernels is {shortened(', '.join(names))}, and {name} stands alone: use {_allowed()}.")
        if name not in KERNELS:
            raise BapoError(
                f"There is no kernel {shortened(name)}{nearest(name, ('auto', 'off', *KERNELS))}: use {_allowed()}."
            )
    return frozenset(names)


def help_text() -> str:
    """What may be said, in a line, for help texts."""
    return f"speed-ups that may be used: {_allowed()}"


def _allowed() -> str:
    return f"auto, off, or names of {', '.join(KERNELS)}"
