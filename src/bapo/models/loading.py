"""Loading a causal language model with its tokenizer, in a precision, with or without an adapter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from bapo.errors import BapoError
from bapo.models.chat import ChatFormat
from bapo.models.embedded import EMBEDDED_MODEL, converted_gguf, embedded_gguf
from bapo.models.lora_update import fuse_lora
from bapo.models.machine import has_fast_bf16

Precision = Literal["bf16", "float32", "nf4"]
AnyPrecision = Literal["auto", "bf16", "float32", "nf4"]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to be scored, trained or asked.

    Attributes:
        name: the name that it was asked for by.
        model: a `transformers` causal language model, or a PEFT model around one.
        chat: its tokenizer and chat template.
        precision: how its weights lie in memory.
    """

    name: str
    model: Any
    chat: ChatFormat
    precision: Precision

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


def load_model(
    name: str = EMBEDDED_MODEL,
    *,
    precision: AnyPrecision = "auto",
    adapter: str | Path | None = None,
    adapter_trainable: bool = False,
    device: torch.device | str | None = None,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load a causal language model and its tokenizer.

    Args:
        name: ``smollm2`` (the embedded model), a local folder, a GGUF file, or a hub id.
        precision: ``bf16``, ``float32``, ``nf4`` (4-bit with double quantization, bf16 compute), or ``auto``
            (`resolve_precision`).
        adapter: folder or hub id of a PEFT adapter to put on the model.
        adapter_trainable: whether that adapter is to be trained further.
        device: where the model goes; the process's accelerator, else the CPU.
        trust_remote_code: whether code that comes with the model may run.

    Raises:
        BapoError: the model, its tokenizer or the adapter cannot be loaded; says which and what to do.
    """
    from transformers import AutoModelForCausalLM

    device = torch.device(device) if device is not None else default_device()
    precision = resolve_precision(precision, device)
    source = _source(name)
    tokenizer = _load_tokenizer(name, source, trust_remote_code)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=torch.float32 if precision == "float32" else torch.bfloat16,
            quantization_config=_nf4() if precision == "nf4" else None,
            device_map={"": device},
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise BapoError(_why_not(name, error)) from error
    keep_4bit_layout(model)
    if adapter is not None:
        model = _with_adapter(model, adapter, trainable=adapter_trainable)
    model.eval()
    return LoadedModel(name, model, chat_format(model, tokenizer), precision)


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
    return ChatFormat(tokenizer, end if isinstance(end, list) else [] if end is None else [end])


def _source(name: str) -> str:
    if name == EMBEDDED_MODEL:
        return str(converted_gguf(embedded_gguf()))
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise BapoError(f"There is no GGUF file {name}: check the path.")
        return str(converted_gguf(path))
    if path.is_dir():
        if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
            raise BapoError(
                f"{name} holds an adapter, not a model: name its base model with --model and it with --adapter."
            )
        if not (path / "config.json").is_file():
            raise BapoError(
                f"The folder {name} holds no model (no config.json): name a folder saved with save_pretrained."
            )
        return str(path)
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise BapoError(
            f"There is no model folder {name}: name a folder, a .gguf file, a hub id, or {EMBEDDED_MODEL!r}."
        )
    return name


def _load_tokenizer(name: str, source: str, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise BapoError(_why_not(name, error)) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _nf4() -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def check_adapter(adapter: str | Path) -> None:
    """Look whether a name can be that of an adapter, before anything costly is done for it.

    Raises:
        BapoError: it is neither a folder with an adapter nor a hub id.
    """
    if not (Path(adapter) / "adapter_config.json").is_file() and (
        Path(adapter).exists() or str(adapter).count("/") != 1
    ):
        raise BapoError(f"There is no adapter {adapter}: name a folder with an adapter_config.json, or a hub id.")
    from peft import PeftConfig

    try:
        config = PeftConfig.from_pretrained(str(adapter))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BapoError(
            f"There is no adapter {adapter}, neither here nor on the hub, or its adapter_config.json cannot be read: "
            "name a folder with an adapter_config.json, or a hub id."
        ) from error
    if config.is_prompt_learning:
        raise BapoError(f"{adapter} is a {config.peft_type.value} adapter, which adds tokens to prompts: use LoRA.")


def _with_adapter(model: Any, adapter: str | Path, *, trainable: bool) -> Any:
    from peft import PeftModel

    check_adapter(adapter)
    try:
        adapted = PeftModel.from_pretrained(model, str(adapter), is_trainable=trainable)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BapoError(
            f"The adapter {adapter} does not fit the model ({first}): was it trained on another one?"
        ) from error
    fuse_lora(adapted)
    return adapted


def _why_not(name: str, error: Exception) -> str:
    text = str(error)
    first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    if "trust_remote_code" in text:
        return f"The model {name} comes with its own code: read it, then allow it with --trust-remote-code."
    if "safetensors" in text and "does not appear to have" in text:
        return (
            f"The model {name} has no safetensors weights, and other formats can run code on loading: convert it first."
        )
    return f"The model {name} could not be loaded ({first}): check the name, or download it first."
