"""Work on what may be hostile in a process of its own, which may hang, fill its memory or die."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

from bapo.errors import LONGEST_REASON, BapoError

_BOUNDED = """
import json, resource, sys
told = json.load(sys.stdin)
resource.setrlimit(resource.RLIMIT_AS, (told["bytes"], told["bytes"]))
resource.setrlimit(resource.RLIMIT_CPU, (told["seconds"], told["seconds"]))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
"""


def apart(code: str, about: Any, failed: str, todo: str, *, seconds: int, memory: int) -> None:
    """Run a few lines of Python that end well if all is well.

    Args:
        code: finds what it is told in ``told["about"]``; what it raises becomes a sentence.
        about: of JSON's types.
        failed, todo: as of `bapo.errors.foreign`.
        seconds: of the processor that it may take; it may wait for it, but not without end.
        memory: bytes of addresses that it may take.

    Raises:
        BapoError: it raised something, took too much, or died.
    """
    command = [sys.executable, "-I", "-c", _BOUNDED + code]
    told = json.dumps({"about": about, "bytes": memory, "seconds": seconds})
    try:
        done = subprocess.run(command, input=told, text=True, capture_output=True, timeout=30 + 10 * seconds)
        if done.returncode == 0:
            return
        why = done.stderr.strip().rpartition("\n")[2] if done.returncode > 0 else "it ends the process that reads it"
        took_too_long = done.returncode in (-signal.SIGXCPU, -signal.SIGKILL)
    except subprocess.TimeoutExpired:
        took_too_long = True
    if took_too_long:
        why = f"it takes more than {seconds} s of the processor"
    raise BapoError(f"{failed} ({why[:LONGEST_REASON]}): {todo}.") from None
