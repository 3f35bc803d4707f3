"""What scripts written for TRL and `transformers` may say: taken with the same meaning, or refused by name.

A setting in these tables is one that `BAPOTrainer` has no code for. It is taken where leaving it out computes the same,
and refused with the reason otherwise, so that none is ignored without a word.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from functools import wraps
from typing import Any, NamedTuple, TypeVar

from bapo.errors import BapoError
from bapo.settings import shortened

Settings = TypeVar("Settings")


class Foreign(NamedTuple):
    """A setting of others.

    Attributes:
        taken: the values that compute what is computed here; None where every value does.
        why: why others are refused, or why none is.
    """

    taken: tuple[Any, ...] | None
    why: str


_ONLY_SPEED = "it is about speed and memory of a step that does not exist here"

TRL_SETTINGS: dict[str, Foreign] = {
    "router_aux_loss_coef": Foreign((None, 0.0), "the load-balancing loss of mixtures of experts is not computed"),
    "dataset_num_proc": Foreign(None, _ONLY_SPEED),
    "truncation_mode": Foreign(("keep_start",), "a response that is too long is cut at its end"),
    "padding_free": Foreign(None, "rows have no padding anyway"),
    "pad_to_multiple_of": Foreign(("auto", None), "rows have no padding"),
    "precompute_ref_batch_size": Foreign(None, _ONLY_SPEED),
    "loss_weights": Foreign((None, [1.0], (1.0,)), "there is one pair loss; the anchor's weight is anchor_strength"),
    "ld_alpha": Foreign((None, 1.0), "log-probabilities are those of whole responses"),
    "f_divergence_type": Foreign(("reverse_kl",), "the objectives are those of the reverse KL divergence"),
    "f_alpha_divergence_coef": Foreign(None, "it belongs to f_divergence_type='alpha_divergence', which is refused"),
    "label_smoothing": Foreign((0.0,), "no objective here smooths labels"),
    "use_weighting": Foreign((False,), "pairs are not weighted"),
    "discopop_tau": Foreign(None, "it belongs to loss_type='discopop', which is refused"),
    "activation_offloading": Foreign((False,), "use gradient_checkpointing, or a lower max_batch_tokens"),
    "sync_ref_model": Foreign((False,), "the reference is the model before training, whose numbers are stored"),
    "ref_model_mixup_alpha": Foreign(None, "it belongs to sync_ref_model=True, which is refused"),
    "ref_model_sync_steps": Foreign(None, "it belongs to sync_ref_model=True, which is refused"),
    "pad_token": Foreign((None,), "set it at the tokenizer, and give that as processing_class"),
    # of earlier versions of TRL
    "max_completion_length": Foreign((None,), "here it is called max_response_tokens"),
    "max_prompt_length": Foreign((None,), "here it is called max_prompt_tokens, and a longer prompt is dropped"),
    "reference_free": Foreign((False,), "use objective='orpo', which needs no reference"),
    "force_use_ref_model": Foreign(None, "a ref_model that is given is always used"),
    "rpo_alpha": Foreign((None,), "no objective here adds the likelihood of the chosen response with a weight"),
    "use_logits_to_keep": Foreign(None, "logits of prompts are never computed"),
    "use_liger_loss": Foreign((False, None), "logits are never held whole anyway"),
    "generate_during_eval": Foreign((False,), "call bapo generate, or the model's generate, afterwards"),
    "model_adapter_name": Foreign((None,), "give the model with the adapter to train active"),
    "ref_adapter_name": Foreign((None,), "the reference is the model as it is given, with its adapter"),
    "base_model_attribute_name": Foreign(None, "the model's parts are found by its interface"),
    "label_pad_token_id": Foreign(None, "rows have no padding"),
    "padding_value": Foreign(None, "rows have no padding"),
    "tools": Foreign((None,), "give them in the column tools of the data set"),
}
"""Settings of `trl.DPOConfig` that `BAPOConfig` has no field for."""

TRANSFORMERS_SETTINGS: dict[str, Foreign] = {
    "label_smoothing_factor": Foreign((0.0,), "no objective here smooths labels"),
    "train_sampling_strategy": Foreign(("random",), "the order of pairs is set by sampler, by-prompt or by-pair"),
    "group_by_length": Foreign((False,), "the order of pairs is set by sampler, by-prompt or by-pair"),
    "neftune_noise_alpha": Foreign((None,), "its noise depends on the length of the row, which is no one response's"),
    "torch_compile": Foreign((False,), "a model is scored layer by layer, not through the forward pass it compiles"),
    "use_liger_kernel": Foreign((False,), "the trainer has layer kernels of its own"),
    "liger_kernel_config": Foreign((None,), "the trainer has layer kernels of its own"),
    "auto_find_batch_size": Foreign(
        (False,), "it changes the pairs of a step; memory is bounded by max_batch_tokens, which changes no number"
    ),
    "include_for_metrics": Foreign(([], (), None), "metrics need no inputs and losses: evaluate() returns them"),
    "batch_eval_metrics": Foreign((False,), "it belongs to compute_metrics, which is refused"),
    "include_num_input_tokens_seen": Foreign(("no", False), "tokens_per_second is logged instead"),
    "average_tokens_across_devices": Foreign((True,), "a loss is averaged over the pairs of all processes"),
    "bf16_full_eval": Foreign((False,), "the policy is evaluated in the precision that it is trained in"),
    "fp16_full_eval": Foreign((False,), "the policy is evaluated in the precision that it is trained in"),
    "parallelism_config": Foreign((None,), "a row is not divided over processes"),
    "deepspeed": Foreign((None,), "the model's weights must lie whole on the device of each process"),
    "jit_mode_eval": Foreign((False,), "a model is scored layer by layer, not through its forward pass"),
}
"""Settings of `transformers.TrainingArguments` that the trainer has no code for."""

_OTHER_NAMES = {
    "activation_checkpointing": "gradient_checkpointing",
    "activation_checkpointing_kwargs": "gradient_checkpointing_kwargs",
}
"""New names of settings, which older versions of `transformers` know by the old ones."""


def takes_foreign_settings(config: type[Settings]) -> type[Settings]:
    """Let a dataclass of settings be made with those of `TRL_SETTINGS` too, and with either name of a renamed one.

    Raises:
        BapoError: when it is made with a value that is refused, or with a name that nobody knows.
    """
    own_init: Callable[..., None] = config.__init__
    known = [field.name for field in fields(config) if field.init]  # type: ignore[arg-type]

    @wraps(own_init)
    def init(self: Settings, *values: Any, **settings: Any) -> None:
        for name in [name for name in settings if name not in known]:
            value = settings.pop(name)
            if _OTHER_NAMES.get(name) in known:
                settings[_OTHER_NAMES[name]] = value
            elif name in TRL_SETTINGS:
                refuse(name, value, TRL_SETTINGS[name], config.__name__)
            elif name in TRANSFORMERS_SETTINGS:  # of another version
                refuse(name, value, TRANSFORMERS_SETTINGS[name], config.__name__)
            else:
                raise BapoError(f"{config.__name__} has no setting {shortened(name)}{_nearest(name, known)}.")
        own_init(self, *values, **settings)

    config.__init__ = init  # type: ignore[method-assign,assignment]
    return config


def refuse(name: str, value: Any, setting: Foreign, owner: str) -> None:
    """Take a setting of others, or not.

    Raises:
        BapoError: its value asks for what is not computed here.
    """
    if setting.taken is None or value in setting.taken:
        return
    raise BapoError(f"{owner} does not take {name}={shortened(value)}: {setting.why}.")


def refuse_all(settings: Any, table: Mapping[str, Foreign]) -> None:
    """`refuse` for each setting of an object that a table names.

    Raises:
        BapoError: a value asks for what is not computed here.
    """
    for name, setting in table.items():
        if hasattr(settings, name):
            refuse(name, getattr(settings, name), setting, type(settings).__name__)


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name[:80], known, n=1)
    return f": did you mean {near[0]!r}?" if near else ""


# ---- a model by name ------------------------------------------------------------------------------------------------

_ELSEWISE = "load the model yourself, and give it instead of its name"

_PRECISIONS = {"float32": "float32", "bfloat16": "bf16"}

_OF_LOAD_MODEL = ("precision", "adapter", "adapter_trainable", "device", "trust_remote_code")

MODEL_SETTINGS: dict[str, Foreign] = {
    "revision": Foreign((None, "main"), "download that revision into a folder, and name the folder"),
    "use_cache": Foreign(None, "scores are computed without a cache, and generation uses one"),
    "low_cpu_mem_usage": Foreign(None, "weights are read one by one anyway"),
    "use_safetensors": Foreign((None, True), "other formats can run code on loading"),
}
"""Arguments of `from_pretrained` that need nothing to be done."""


def model_arguments(arguments: Mapping[str, Any], quantization_config: Any = None) -> tuple[dict[str, Any], str | None]:
    """``model_init_kwargs`` as arguments of `bapo.models.load_model`, and the attention that is asked for.

    Args:
        told: arguments of `load_model` or of `from_pretrained`.
        quantization_config: the trainer's argument of that name, which is one of them too.

    Raises:
        BapoError: one asks for what `load_model` does not do.
    """
    arguments = dict(arguments)
    if quantization_config is not None:
        if arguments.get("quantization_config") is not None:
            raise BapoError("quantization_config is given twice: leave it out of model_init_kwargs.")
        arguments["quantization_config"] = quantization_config
    loading: dict[str, Any] = {name: arguments.pop(name) for name in _OF_LOAD_MODEL if name in arguments}
    if loading.get("adapter") is not None:
        loading.setdefault("adapter_trainable", True)
    asked = [loading.get("precision"), _precision_of_dtype(arguments), _precision_of_quantization(arguments)]
    precisions = sorted({precision for precision in asked if precision is not None})
    if precisions == ["bf16", "nf4"]:
        precisions = ["nf4"]  # which computes in bf16
    if len(precisions) > 1:
        raise BapoError(f"model_init_kwargs asks for several precisions ({', '.join(precisions)}): name one.")
    if precisions:
        loading["precision"] = precisions[0]
    device = _device(arguments.pop("device_map", None))
    if device is not None:
        loading.setdefault("device", device)
    attention = arguments.pop("attn_implementation", None)
    if attention not in (None, "eager", "sdpa"):
        raise BapoError(
            f"model_init_kwargs does not take attn_implementation={shortened(attention)}: responses have an attention "
            "of their own, so leave it out, or name eager or sdpa, which compute the same."
        )
    for name, value in arguments.items():
        refuse(name, value, MODEL_SETTINGS.get(name, Foreign((None,), _ELSEWISE)), "model_init_kwargs")
    return loading, attention


def _precision_of_dtype(arguments: dict[str, Any]) -> str | None:
    given = [arguments.pop(name) for name in ("dtype", "torch_dtype") if name in arguments]
    dtype = next((value for value in given if value is not None), None)
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    if name not in _PRECISIONS:
        raise BapoError(
            f"model_init_kwargs does not take dtype={shortened(dtype)}: name float32 or bfloat16, or leave it out for "
            "the one that this machine is fast in."
        )
    return _PRECISIONS[name]


def _precision_of_quantization(arguments: dict[str, Any]) -> str | None:
    config = arguments.pop("quantization_config", None)
    if config is None:
        return None
    asked_config = config if isinstance(config, Mapping) else config.to_dict()
    compute = str(asked_config.get("bnb_4bit_compute_dtype", "")).removeprefix("torch.")
    asked = (
        asked_config.get("load_in_4bit"),
        asked_config.get("bnb_4bit_quant_type"),
        asked_config.get("bnb_4bit_use_double_quant"),
        compute,
    )
    if asked != (True, "nf4", True, "bfloat16"):
        raise BapoError(
            "A model by name is quantized to nf4 with double quantization and bfloat16 compute, and "
            f"quantization_config asks for something else: {_ELSEWISE}."
        )
    return "nf4"


def _device(device_map: Any) -> Any:
    """The one device of a device map; None for the process's own."""
    if isinstance(device_map, Mapping) and set(device_map) == {""}:
        device_map = device_map[""]
    if device_map is None:
        return None
    if device_map == "auto":
        import torch

        if torch.accelerator.device_count() <= 1:
            return None
    elif isinstance(device_map, int) and not isinstance(device_map, bool):
        import torch

        accelerator = torch.accelerator.current_accelerator()
        return f"{accelerator.type if accelerator else 'cuda'}:{device_map}"
    elif not isinstance(device_map, Mapping) and device_map not in ("balanced", "balanced_low_0", "sequential"):
        return device_map
    raise BapoError(
        f"model_init_kwargs does not take device_map={shortened(device_map)}: a model lies whole on one device, so "
        "name that, or leave it out."
    )


# ---- arguments of the trainer ---------------------------------------------------------------------------------------

_NO_LOGITS = "logits are never held whole; evaluate() returns the trainer's own metrics"

TRAINER_ARGUMENTS: dict[str, Foreign] = {
    "data_collator": Foreign((None,), "its own one lets pairs of a prompt share it"),
    "compute_metrics": Foreign((None,), _NO_LOGITS),
    "preprocess_logits_for_metrics": Foreign((None,), _NO_LOGITS),
    "model_init": Foreign((None,), "give the model, or its name"),
    "compute_loss_func": Foreign((None,), "the loss is the objective"),
}
"""Arguments of `trl.DPOTrainer` and `transformers.Trainer`, of any version, that the trainer has no use for."""
