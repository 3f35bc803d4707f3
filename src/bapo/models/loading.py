"""Loading a causal language model with its tokenizer, in a precision, with or without an adapter."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from bapo.errors import BapoError, foreign
from bapo.models.adapters import check_adapter, put_on
from bapo.models.chat import ChatFormat
from bapo.models.claims import check_model_claims, shapes_in
from bapo.models.embedded import EMBEDDED_MODEL, embedded_gguf
from bapo.models.fingerprint import tokenizer_fingerprint
from bapo.models.gguf_files import converted_gguf
from bapo.models.machine import has_fast_bf16, instruction_set
from bapo.models.text import whose
from bapo.models.weights import check_4bit, check_finite, check_no_adapter, whole_model

logger = logging.getLogger(__name__)

Precision = Literal["bf16", "float16", "float32", "nf4"]
AnyPrecision = Literal["auto", "bf16", "float32", "nf4"]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to be scored, trained or asked.

    Attributes:
        name: the name that it was asked for by.
        model: a `transformers` causal language model, or a PEFT model around one.
        chat: its tokenizer and chat template.
        precision: how its weights lie in memory.
        kernels: speed-ups that it may be computed with (`bapo.kernels`).
    """

    name: str
    model: Any
    chat: ChatFormat
    precision: Precision
    kernels: str | Iterable[str] = "auto"

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.chat.tokenizer


def default_device() -> torch.device:
    """The accelerator of this process if there is one, else the CPU."""
    import os

    if not torch.accelerator.is_available():
        return torch.device("cpu")
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None:
        return torch.device("cpu")
    return torch.device(accelerator.type, int(os.environ.get("LOCAL_RANK", "0")))


def resolve_precision(precision: AnyPrecision, device: torch.device | None = None) -> Precision:
    """``auto`` is bf16, or float32 on a CPU without bf16 instructions, where bf16 products take several times as long.

    Args:
        precision: what was asked for; all but ``auto`` stay as they are.
        device: where the model goes; the process's default device if None.

    Raises:
        BapoError: there is no such precision.
    """
    if precision not in get_args(AnyPrecision):
        raise BapoError(f"Unknown precision {precision!r}: use one of {', '.join(get_args(AnyPrecision))}.")
    if precision != "auto":
        return precision
    on_cpu = (device or default_device()).type == "cpu"
    return "float32" if on_cpu and not has_fast_bf16() else "bf16"


def precision_in_words(asked: AnyPrecision, device: torch.device) -> str:
    """The precision that `resolve_precision` gives, and why."""
    resolved = resolve_precision(asked, device)
    if asked != "auto":
        return f"{resolved}, as asked for"
    if device.type != "cpu":
        return f"{resolved}, by auto: an accelerator multiplies it fast"
    able = "multiplies bf16 by instructions of its own" if has_fast_bf16() else "has no instructions for bf16"
    return f"{resolved}, by auto: this processor {able} ({instruction_set()})"


def load_model(
    name: str = EMBEDDED_MODEL,
    *,
    precision: AnyPrecision = "auto",
    adapter: str | Path | None = None,
    adapter_trainable: bool = False,
    device: torch.device | str | None = None,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load a causal language model and its tokenizer: the one way in for models, tokenizers and adapters.

    Args:
        name: ``smollm2`` (the embedded model), a local folder, a GGUF file, or a hub id.
        precision: ``bf16``, ``float32``, ``nf4`` (4-bit with double quantization, bf16 compute), or ``auto``
            (`resolve_precision`).
        adapter: folder or hub id of a PEFT adapter to put on the model. Where it has a tokenizer of its own, that is
            the model's; where that differs, it is said.
        adapter_trainable: whether that adapter is to be trained further.
        device: where the model goes; the process's accelerator, else the CPU.
        trust_remote_code: whether code that comes with the model may run.

    Raises:
        BapoError: the model, its tokenizer or the adapter cannot be loaded, or weights are missing, left over, of
            another shape or no numbers; says which and what to do.
    """
    device = torch.device(device) if device is not None else default_device()
    resolved = resolve_precision(precision, device)
    if adapter is not None:
        check_adapter(adapter)
    source = _source(name)
    tokenizer = load_tokenizer(source, name, trust_remote_code=trust_remote_code)
    model = _load_weights(
        name,
        source,
        dtype=torch.float32 if resolved == "float32" else torch.bfloat16,
        quantization_config=_nf4() if resolved == "nf4" else None,
        device_map={"": device},
        trust_remote_code=trust_remote_code,
    )
    keep_4bit_layout(model)
    if adapter is not None:
        model = put_on(model, adapter, trainable=adapter_trainable)
        tokenizer = adapters_tokenizer(adapter, tokenizer)
    model.eval()
    return LoadedModel(name, model, chat_format(model, tokenizer), resolved)


def _load_weights(name: str, source: str, **how: Any) -> Any:
    from transformers import AutoConfig

    with _door(name):
        if Path(source).is_dir():
            config = AutoConfig.from_pretrained(source, trust_remote_code=how["trust_remote_code"])
            check_model_claims(config, shapes_in(Path(source)), f"The model {name} could not be loaded")
        model = whole_model(f"The model {name} could not be loaded", source, use_safetensors=True, **how)
    check_4bit(model, f"The model {name}")
    check_finite(model.state_dict(), f"The model {name}")
    return model


def keep_4bit_layout(model: Any) -> None:
    """Keep `bitsandbytes` from repacking 4-bit weights on the CPU at the first evaluation.

    The repacked weights have coarser scales, so that the reference would be another model than the policy in training.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def chat_format(model: Any, tokenizer: Any) -> ChatFormat:
    """The chat format of a model that is already in memory, with the EOS ids of its generation configuration."""
    end = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    with foreign(
        f"{whose(tokenizer)}, its chat template and the model's eos_token_id do not go together",
        "take them from where the model came from",
    ):
        return ChatFormat(tokenizer, end if isinstance(end, list) else [] if end is None else [end])


def local_folder(name: str) -> Path | None:
    """Where a model lies on this machine: a GGUF file as the folder that it is converted to. None of a hub id.

    Raises:
        BapoError: there is no such file or folder, or it holds no model.
    """
    if name == EMBEDDED_MODEL:
        return converted_gguf(embedded_gguf())
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise BapoError(f"There is no GGUF file {name}: check the path.")
        return converted_gguf(path)
    if path.is_dir():
        check_no_adapter(path, name)
        if not (path / "config.json").is_file():
            raise BapoError(
                f"The folder {name} holds no model (no config.json): name a folder saved with save_pretrained."
            )
        return path
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise BapoError(
            f"There is no model folder {name}: name a folder, a .gguf file, a hub id, or {EMBEDDED_MODEL!r}."
        )
    return None


def _source(name: str) -> str:
    folder = local_folder(name)
    if folder is not None:
        return str(folder)
    with _door(name):
        check_no_adapter(name, name)
    return name


def load_tokenizer(source: str, name: str | None = None, *, trust_remote_code: bool = False) -> Any:
    """A tokenizer that can pad.

    Args:
        source: folder or hub id.
        name: what the user calls it; the source itself by default.
        trust_remote_code: whether code that comes with it may run.

    Raises:
        BapoError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    with _door(name or source, "The tokenizer of "):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def adapters_tokenizer(adapter: str | Path, of_model: Any, *, quiet: bool = False) -> Any:
    """The tokenizer that came with an adapter, which was trained with it, or else the model's.

    Where it is another one than the model's, that is said, unless it is to be quiet.
    """
    from transformers.utils import cached_file

    with foreign(f"The files of the adapter {adapter} could not be looked at", "check the name, or download it again"):
        config_file = cached_file(str(adapter), "tokenizer_config.json", _raise_exceptions_for_missing_entries=False)
    if config_file is None:
        return of_model
    brought = load_tokenizer(str(adapter))
    if tokenizer_fingerprint(brought) == tokenizer_fingerprint(of_model):
        return of_model
    if quiet:
        return brought
    parts = [] if brought.get_vocab() == of_model.get_vocab() else ["tokenizer"]
    parts += [] if brought.chat_template == of_model.chat_template else ["chat template"]
    logger.warning("The adapter %s has its own %s, which is used instead of the model's.", adapter, " and ".join(parts))
    return brought


def _nf4() -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


@contextmanager
def _door(name: str, what: str = "The model ") -> Iterator[None]:
    """Whatever loading raises becomes a sentence; a better one where it is known what is to be done."""
    with foreign(f"{what}{name} could not be loaded", "check the name, or download it again"):
        try:
            yield
        except Exception as error:
            text = str(error)
            if "trust_remote_code" in text:
                raise BapoError(
                    f"The model {name} comes with its own code: read it, then allow it with --trust-remote-code."
                ) from error
            if "safetensors" in text and "does not appear to have" in text:
                raise BapoError(
                    f"The model {name} has no safetensors weights, and other formats can run code on loading: "
                    "convert it first."
                ) from error
            raise
