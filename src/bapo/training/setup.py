"""What a trainer is handed, made ready or refused: its arguments, the model, the tokenizer, and a word on the data."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from bapo.anchoring import AnchoredPreferences
from bapo.errors import BapoError
from bapo.models import (
    LoadedModel,
    Precision,
    add_adapter,
    chat_format,
    check_finite,
    check_trainable,
    keep_4bit_layout,
    load_model,
    load_tokenizer,
)
from bapo.preferences import Preferences, doubtful
from bapo.settings import shortened
from bapo.training.compatibility import TRAINER_ARGUMENTS, model_arguments, refuse
from bapo.training.config import BAPOConfig

_PRECISIONS: dict[torch.dtype, Precision] = {
    torch.bfloat16: "bf16",
    torch.float16: "float16",
    torch.float32: "float32",
}


def check_arguments(args: Any, others: Mapping[str, Any]) -> None:
    """Refuse what the trainer has no use for, by name."""
    if not isinstance(args, BAPOConfig):
        raise BapoError(f"args must be a BAPOConfig, and it is a {type(args).__name__}: it takes the same settings.")
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1 and args.world_size == 1:
        raise BapoError(
            f"{started} processes were started, and each would train alone: set use_cpu=True where there is no GPU."
        )
    for name, value in others.items():
        if name not in TRAINER_ARGUMENTS:
            raise BapoError(f"BAPOTrainer has no argument {shortened(name)}: see its documentation for those it has.")
        refuse(name, value, TRAINER_ARGUMENTS[name], "BAPOTrainer")


def check_fills_a_batch(data: AnchoredPreferences, args: BAPOConfig) -> None:
    """Refuse data that are fewer than one batch, where such a batch would be dropped."""
    pairs = args.train_batch_size * args.world_size
    if args.dataloader_drop_last and data.pair_count < pairs:
        raise BapoError(f"dataloader_drop_last leaves nothing of {data.pair_count} pairs: a batch has {pairs}.")


def check_models(model: Any, ref_model: Any, loaded: LoadedModel, args: BAPOConfig) -> None:
    """Refuse a reference that is none, and a precision that is not the model's.

    Raises:
        BapoError: of these one.
    """
    if ref_model is not None and (ref_model is model or not isinstance(ref_model, torch.nn.Module)):
        raise BapoError(
            "ref_model must be a model of its own: leave it out where the reference is the model as it is given."
        )
    if (args.bf16 or args.fp16) and loaded.model.dtype == torch.float32:
        raise BapoError(
            "The model is float32 and the settings ask for bf16 or fp16: load the model in that precision "
            "(dtype=torch.bfloat16), so that reference and policy are the same numbers."
        )


def tokenizer_of(processing_class: Any, others: dict[str, Any]) -> Any:
    """The tokenizer, by its name of today or its old one, which is taken out of the other arguments."""
    old = others.pop("tokenizer", None)
    tokenizer = old if processing_class is None else processing_class
    if tokenizer is not None and not callable(getattr(tokenizer, "encode", None)):
        raise BapoError(
            f"processing_class must be a tokenizer, and it is a {type(tokenizer).__name__}: give a processor's "
            "tokenizer."
        )
    return tokenizer


def loaded_model(model: Any, tokenizer: Any, args: BAPOConfig, quantization_config: Any) -> LoadedModel:
    """A model that is given by name or in memory, with its chat format.

    Raises:
        BapoError: it cannot be loaded, or what is said of loading does not fit one that is there.
    """
    if isinstance(model, str):
        init_kwargs: Any = args.model_init_kwargs or {}
        arguments, attention = model_arguments(
            {"trust_remote_code": args.trust_remote_code, **init_kwargs}, quantization_config
        )
        loaded = load_model(model, **arguments)
        if attention is not None:
            loaded.model.set_attn_implementation(attention)
        chat = loaded.chat if tokenizer is None else chat_format(loaded.model, tokenizer)
        return replace(loaded, chat=chat, kernels=args.kernels)
    if args.model_init_kwargs or quantization_config is not None:
        raise BapoError(
            "model_init_kwargs and quantization_config say how a model is loaded, and this one is loaded already: "
            "leave them out, or give the model's name."
        )
    if tokenizer is None:
        tokenizer = load_tokenizer(model.config._name_or_path, trust_remote_code=args.trust_remote_code)
    if model.dtype not in _PRECISIONS:
        raise BapoError(f"The model's weights are {model.dtype}, which is not trained: load it in bfloat16 or float32.")
    precision: Precision = "nf4" if getattr(model, "is_loaded_in_4bit", False) else _PRECISIONS[model.dtype]
    name = model.config._name_or_path or type(model).__name__
    return LoadedModel(name, model, chat_format(model, tokenizer), precision, args.kernels)


def made_ready(model: Any, peft_config: Any) -> Any:
    """The model with its adapter, checked."""
    keep_4bit_layout(model)
    policy = model if peft_config is None else add_adapter(model, peft_config)
    check_trainable(policy)
    check_finite(policy.state_dict(), "The model")
    return policy


def warn_of_what_is_lost(data: Preferences, anchored: AnchoredPreferences) -> None:
    """One warning of all that was dropped, cut or is doubtful, with counts."""
    lost = Counter(data.dropped) + Counter(anchored.counts)
    kinds = {"dropped or cut": lost, "kept though doubtful": doubtful(data)}
    said = [
        f"{kind}: {', '.join(f'{count:,} {reason}' for reason, count in counts.items())}"
        for kind, counts in kinds.items()
        if counts
    ]
    if said:
        warnings.warn(f"{data.name}, {data.rows:,} comparisons: {'; '.join(said)}.", stacklevel=2)
