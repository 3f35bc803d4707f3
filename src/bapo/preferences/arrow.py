"""Files of Arrow and Parquet, whose readers can die of a damaged file: read once in a process of its own before.

Pictures and sounds of a data set are refused before its rows are read, which opens the file or the address that each
names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bapo.apart import apart
from bapo.errors import BapoError, foreign

_READING = """
import pyarrow as pa
import pyarrow.parquet as parquet
for path in asked["about"]:
    if not path.lower().endswith(".parquet"):
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


def rows_of(table: Any, failed: str, todo: str) -> list[Any]:
    """The rows of a `datasets.Dataset`.

    Args:
        table: the data set, whose files are readable.
        failed, todo: as of `bapo.errors.foreign`.

    Raises:
        BapoError: they cannot be read, or `check_text`.
    """
    with foreign(failed, todo):
        check_text(table, failed)
        table.data.validate(full=True)  # a damaged one may end the process otherwise
        return list(table)


def check_text(table: Any, failed: str) -> None:
    """Refuse a data set that says that a column holds pictures, sounds or the like.

    Args:
        table: rows of any kind; those that do not say what they hold pass.
        failed: as of `bapo.errors.foreign`.

    Raises:
        BapoError: it does; names the column.
    """
    features = getattr(table, "features", None)
    held = features.items() if isinstance(features, Mapping) else ()
    media = next((name for name, feature in held if _is_opened(feature)), None)
    if media is not None:
        raise BapoError(
            f"{failed} (its column {media!r} holds media, and only text can be scored): leave out comparisons with "
            "media, and then that column."
        )


def _is_opened(feature: Any) -> bool:
    """Whether what a feature of `datasets` holds, or a part of that, is opened to be read; JSON is only parsed."""
    inner = getattr(feature, "feature", feature)
    if inner is not feature:
        return _is_opened(inner)
    if isinstance(feature, Mapping | list | tuple):
        return any(map(_is_opened, feature.values() if isinstance(feature, Mapping) else feature))
    is_read = hasattr(feature, "decode_example") and getattr(feature, "decode", True)
    return is_read and type(feature).__name__ != "Json"
