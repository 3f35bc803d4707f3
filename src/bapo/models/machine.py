"""What rounding depends on beside the model: processor, instruction set, device, threads and versions."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

INSTRUCTION_SETS = ("default", "avx2", "avx512", "avx512_bf16", "amx")
"""Of x86 processors, the later ones holding the earlier ones. Products in bf16 are fast with the last two."""

_ONEDNN_LIMITS = {
    "SSE41": "default", "AVX": "default", "AVX2": "avx2", "AVX2_VNNI": "avx2", "AVX2_VNNI_2": "avx2",
    "AVX512_CORE": "avx512", "AVX512_CORE_VNNI": "avx512", "AVX512_CORE_BF16": "avx512_bf16",
    "AVX512_CORE_FP16": "avx512_bf16",
}  # fmt: skip

PACKAGES = ("bapo", "torch", "transformers", "peft")


def instruction_set() -> str:
    """What this process's products may use: what the processor has, within the limits set for oneDNN and ATen.

    One of `INSTRUCTION_SETS`; on other processors than x86 the name of their kind.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return platform.machine()
    able: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # an old torch cannot tell
    has = {
        "avx2": able.get("avx2"),
        "avx512": able.get("avx512_f"),
        "avx512_bf16": able.get("avx512_bf16"),
        "amx": able.get("amx_bf16"),
    }
    highest = max((INSTRUCTION_SETS.index(name) for name, there in has.items() if there), default=0)
    onednn = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""
    limits = [_ONEDNN_LIMITS.get(onednn.upper(), "amx")]
    aten = torch.backends.cpu.get_cpu_capability().lower()
    limits += [aten] if aten in ("default", "avx2") else []
    return INSTRUCTION_SETS[min(highest, *(INSTRUCTION_SETS.index(limit) for limit in limits))]


def has_fast_bf16() -> bool:
    """Whether this process's processor multiplies bf16 by instructions of its own."""
    return instruction_set() in ("avx512_bf16", "amx")


def machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Processor, instruction set, device, threads and package versions: where they are equal, so is rounding."""
    device = torch.device(device)
    return {
        "processor": _processor(),
        "instruction_set": instruction_set(),
        "device": device.type if device.type != "cuda" else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
        "packages": {name: version(name) for name in PACKAGES},
    }


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
