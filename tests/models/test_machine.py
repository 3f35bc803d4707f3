"""What a process's products may use: what the processor has, within the limits that are set."""

import platform

import pytest
import torch

from bapo.models import instruction_set, machine, resolve_precision

pytestmark = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="speaks of the instruction sets of x86"
)
AMX = {"avx2": True, "avx512_f": True, "avx512_bf16": True, "amx_bf16": True}


@pytest.mark.parametrize(
    ("has", "onednn", "aten", "expected"),
    [
        (AMX, None, "AVX512", "amx"),
        (AMX, "AVX512_CORE_BF16", "AVX512", "avx512_bf16"),
        (AMX, "avx512_core_fp16", "AVX512", "avx512_bf16"),
        (AMX, "AVX512_CORE", "AVX512", "avx512"),
        (AMX, None, "AVX2", "avx2"),
        (AMX, "AVX2", "AVX512", "avx2"),
        (AMX, "a later one", "AVX512", "amx"),
        (AMX | {"amx_bf16": False, "avx512_bf16": False}, None, "AVX512", "avx512"),
        ({"avx2": True}, None, "AVX2", "avx2"),
        ({}, None, "DEFAULT", "default"),
    ],
)
def test_the_instruction_set_and_the_precision_that_suits_it(
    has: dict[str, bool], onednn: str | None, aten: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: aten)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if onednn is not None:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", onednn)
    assert instruction_set() == expected
    suits = "bf16" if expected in ("avx512_bf16", "amx") else "float32"
    assert resolve_precision("auto", torch.device("cpu")) == suits


def test_the_machine_is_told_in_words() -> None:
    told = machine()
    assert told["device"] == "cpu"
    assert told["threads"] == torch.get_num_threads()
    assert set(told["packages"]) == {"bapo", "torch", "transformers", "peft"}
    assert told["processor"]
