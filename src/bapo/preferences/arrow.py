"""Files of Arrow and Parquet, whose readers can die of a damaged file: read once in a process of its own before."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from bapo.apart import apart

_READING = """
import pyarrow as pa
import pyarrow.parquet as parquet
for path in asked["about"]:
    if path.endswith(".arrow"):
        with pa.memory_map(path) as file:
            try:
                table = pa.ipc.open_stream(file).read_all()
            except pa.ArrowInvalid:
                file.seek(0)
                table = pa.ipc.open_file(file).read_all()
    else:
        table = parquet.read_table(path)
    table.validate(full=True)
"""

_LEAST_S, _BYTES_A_S = 8, 5_000_000
_LEAST_MEMORY, _TIMES = 4 * 2**30, 60


def check_readable(paths: Iterable[Path], failed: str, todo: str) -> None:
    """Files can be read whole.

    Args:
        paths: which.
        failed, todo: as of `bapo.errors.foreign`.

    Raises:
        BapoError: one cannot, takes more time or memory than its size explains, or ends what reads it.
    """
    sizes = {str(path): path.stat().st_size for path in paths}
    size = sum(sizes.values())
    seconds, memory = _LEAST_S + size // _BYTES_A_S, _LEAST_MEMORY + _TIMES * size
    apart(_READING, list(sizes), failed, todo, seconds=seconds, memory=memory)
