"""The instruction sets that a processor can be limited to, and by which environment variables."""

from __future__ import annotations

from bapo.models import instruction_set
from bapo.models.machine import INSTRUCTION_SETS

LIMITS = {
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    "avx512": {
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
        "ATEN_CPU_CAPABILITY": "avx512",
    },
    "avx512_bf16": {
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
        "ATEN_CPU_CAPABILITY": "avx512",
    },
    "amx": {},
}
"""For oneDNN, MKL and ATen together."""


def possible_sets() -> list[str]:
    """From the highest down; on a processor of another kind than x86 only what it is."""
    own = instruction_set()
    if own not in INSTRUCTION_SETS:
        return [own]
    return [name for name in reversed(LIMITS) if INSTRUCTION_SETS.index(name) <= INSTRUCTION_SETS.index(own)]
