"""GGUF files as folders of safetensors, dequantized once and kept in the cache folder."""

from __future__ import annotations

import functools
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bapo.errors import foreign
from bapo.files import flush_folder, locked, record_in, write_record
from bapo.models.embedded import cache_folder
from bapo.models.weights import check_no_adapter, whole_model
from bapo.progress import counted, tell

_SIZES = ".sizes.json"
"""Of the files of a converted copy, bytes by name."""


def converted_gguf(gguf: Path) -> Path:
    """Folder with the dequantized safetensors copy of a GGUF file, converted once and kept in the cache folder.

    Raises:
        BapoError: the file cannot be read as a GGUF model.
    """
    stat = gguf.stat()
    mark = hashlib.sha256(f"{gguf.resolve()}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()[:12]
    target = cache_folder() / "models" / f"{gguf.stem}-{mark}"
    if _is_whole(target):
        return target
    with foreign(f"The converted {gguf} could not be kept in {target.parent}", "set BAPO_CACHE to a folder of yours"):
        target.parent.mkdir(parents=True, exist_ok=True)
    with locked(cache_folder() / ".models.lock"):
        if _is_whole(target):  # another process finished it meanwhile
            return target
        for left in target.parent.glob(f".{target.name}-*"):  # by a conversion that was killed
            shutil.rmtree(left, ignore_errors=True)
        with foreign(
            f"The converted {gguf} could not be kept in {target.parent}", "set BAPO_CACHE to a folder of yours"
        ):
            staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
            try:
                _convert(gguf, staging)
                write_record(staging / _SIZES, _sizes(staging))
                flush_folder(staging)
                shutil.rmtree(target, ignore_errors=True)  # one of which something is gone
                staging.rename(target)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    return target


def _is_whole(copy: Path) -> bool:
    """Whether all files of a copy are there, each as long as it was made: something may have cleaned up the cache."""
    try:
        made = record_in((copy / _SIZES).read_bytes())
        return made is not None and made.items() <= _sizes(copy).items()
    except OSError:
        return False


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir() if path.name != _SIZES}


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoTokenizer

    failed = f"{gguf} could not be read as a GGUF model"
    with (
        foreign(failed, "check that it is one, or download it again"),
        _read_once(),
        _told(f"converting {gguf.name}"),
    ):
        check_no_adapter(gguf.parent, f"The folder of {gguf}")
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = whole_model(failed, gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    model.hf_quantizer = (
        None  # the weights are plain tensors by now; saving refuses a model that calls itself quantized
    )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


@contextmanager
def _read_once() -> Iterator[None]:
    """Inside, `transformers` reads a GGUF file once, not once each for tokenizer, configuration and weights.

    The vocabulary is cut from a plain array, which takes a third of the time that slices of a mapped one take, and the
    names of a model's tensors are listed once, not once for each of its modules.
    """
    import gguf
    import numpy as np

    class Reader(gguf.GGUFReader):
        @property
        def data(self) -> np.ndarray:
            return self._data

        @data.setter
        def data(self, mapped: np.memmap) -> None:
            self._data = np.asarray(mapped)

    once = {"GGUFReader": functools.cache(Reader), "get_tensor_name_map": functools.cache(gguf.get_tensor_name_map)}
    with _replaced(gguf, once):
        yield


@contextmanager
def _told(stage: str) -> Iterator[None]:
    """Inside, the bar that `transformers` draws of the tensors that it converts is told as progress of ours."""
    from transformers import modeling_gguf_pytorch_utils as reader

    tell(stage, 0, 1)
    with _replaced(reader, {"tqdm": lambda tensors, **_: counted(tensors, stage, len(tensors), at_once=1)}):
        yield


@contextmanager
def _replaced(module: Any, names: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Inside, other functions stand in a module."""
    before = {name: getattr(module, name) for name in names}
    vars(module).update(names)
    try:
        yield
    finally:
        vars(module).update(before)
