"""A disk that fails at one chosen operation, for commands that `tests.command` runs; see ``faulty_disk.c``."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

_SOURCE = Path(__file__).with_name("faulty_disk.c")
_FAIL, _SIGNAL, _TEAR, _POWER_CUT = range(4)


def put_in_place(folder: Path) -> None:
    """Compile it, and let all processes that are started from now on load it; it does nothing until it is armed."""
    library = folder / "faulty_disk.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, _SOURCE, "-ldl", "-lpthread"], check=True)
    os.environ["LD_PRELOAD"] = str(library)


class Operation(NamedTuple):
    """One operation on a file, as a run before did it: its number, what it is, whether it writes, and where."""

    number: int
    what: str
    writes: bool
    path: str


def operations(trace: Path) -> list[Operation]:
    """What a run did below its folder, in order."""
    lines = [line.split("\t") for line in trace.read_text(errors="replace").split("\n") if line.count("\t") == 3]
    return [Operation(int(number), what, writes == "1", path) for number, what, writes, path in lines]


@dataclass(frozen=True)
class Fault:
    """What happens to a command at one operation below a folder; called in the command's own process.

    Attributes:
        name: in words.
        code: of the shim.
        number: of the error or the signal.
        stays: whether all that writes fails from then on.
        folder: below which operations count.
        trace: where they are written down.
        at: the operation at which it strikes; 0 for none.
    """

    name: str
    code: int = _FAIL
    number: int = 0
    stays: bool = False
    folder: str = ""
    trace: str = ""
    at: int = 0

    def __call__(self) -> None:
        """Arm the disk."""
        trace = os.open(self.trace, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) if self.trace else -1
        arm = ctypes.CDLL(None).faulty_disk
        arm(self.folder.encode(), ctypes.c_long(self.at), self.code, self.number, int(self.stays), trace)

    def fits(self, operation: Operation) -> bool:
        """Whether it can happen there."""
        if self.number == errno.EMFILE and self.code == _FAIL:
            return operation.what.startswith("open")
        if self.code == _TEAR:
            return operation.what == "write"
        return operation.writes or self.code in (_SIGNAL, _POWER_CUT) or self.number in (errno.EIO, errno.EACCES)

    @property
    def kills(self) -> bool:
        """Whether no sentence can be said."""
        return self.code in (_TEAR, _POWER_CUT) or (self.code, self.number) == (_SIGNAL, signal.SIGKILL)

    @property
    def pauses(self) -> bool:
        """Whether the command waits there for something else to happen."""
        return (self.code, self.number) == (_SIGNAL, signal.SIGSTOP)


NONE = Fault("nothing")
FAULTS = (
    Fault("the disk is full", number=errno.ENOSPC, stays=True),
    Fault("the disk becomes read-only", number=errno.EROFS, stays=True),
    Fault("no room once", number=errno.ENOSPC),
    Fault("an error of the disk", number=errno.EIO),
    Fault("not allowed", number=errno.EACCES),
    Fault("too many open files", number=errno.EMFILE),
    Fault("SIGKILL", _SIGNAL, signal.SIGKILL),
    Fault("SIGTERM", _SIGNAL, signal.SIGTERM),
    Fault("SIGINT", _SIGNAL, signal.SIGINT),
    Fault("killed in the middle of a write", _TEAR),
    Fault("the power is cut", _POWER_CUT),
    Fault("the folder is deleted", _SIGNAL, signal.SIGSTOP),
    Fault("the same command at once", _SIGNAL, signal.SIGSTOP),
)
