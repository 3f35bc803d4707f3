"""Work on what may be hostile in a process of its own, which may hang, fill its memory or die."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

from bapo.errors import LONGEST_REASON, BapoError

_BOUNDED = """
import json, sys
asked = json.load(sys.stdin)
try:
    import resource
except ImportError:
    resource = None  # on Windows: what hangs is still ended, by the clock
for name, most in (("AS", asked["bytes"]), ("CPU", asked["seconds"]), ("CORE", 0)):
    try:
        resource and resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
    except ValueError:
        pass  # a system that does not bound this
"""

_ENDED_BY_LIMITS = [-getattr(signal, name) for name in ("SIGXCPU", "SIGKILL") if hasattr(signal, name)]


def apart(code: str, about: Any, failed: str, todo: str, *, seconds: int, memory: int) -> None:
    """Run a few lines of Python that end well if all is well.

    Args:
        code: finds what it is asked about in ``asked["about"]``; what it raises becomes a sentence.
        about: of JSON's types.
        failed, todo: as of `bapo.errors.foreign`.
        seconds: of the processor that it may take; it may wait for it, but not without end.
        memory: bytes of addresses that it may take.

    Raises:
        BapoError: it raised something, took too much, or died.
    """
    command = [sys.executable, "-I", "-c", _BOUNDED + code]
    asked = json.dumps({"about": about, "bytes": memory, "seconds": seconds})
    try:
        done = subprocess.run(command, input=asked, text=True, capture_output=True, timeout=30 + 10 * seconds)
        if done.returncode == 0:
            return
        why = done.stderr.strip().rpartition("\n")[2] if done.returncode > 0 else "it ends the process that reads it"
        took_too_long = done.returncode in _ENDED_BY_LIMITS
    except subprocess.TimeoutExpired:
        took_too_long = True
    if took_too_long:
        why = f"it takes more than {seconds} s of the processor"
    raise BapoError(f"{failed} ({why[:LONGEST_REASON]}): {todo}.") from None
