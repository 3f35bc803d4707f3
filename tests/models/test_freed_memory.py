"""Freed memory stays with the process, in a process of its own, since it does so for the rest of a life."""

import resource
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import torch
from bapo.models import keep_freed_memory
torch.set_num_threads(1)
assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    pieces = [torch.ones(6 * 2**20) for _ in range(10)]  # 24 MB each
    del pieces
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(sorted(faults() for _ in range(5))[2])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of the C library of Linux")
def test_memory_that_was_freed_is_not_handed_out_anew():
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True)
    pages = 10 * 24 * 2**20 // resource.getpagesize()
    assert int(done.stdout) < pages / 2  # without the setting, mostly all of them
