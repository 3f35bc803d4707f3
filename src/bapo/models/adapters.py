"""Adapters on models: what they hold, whether that has an effect, and putting one on a model, whole or not at all."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bapo.errors import BapoError, foreign
from bapo.models.claims import WRITE_OUT, check_adapter_claims, check_expressions
from bapo.models.weights import check_finite, check_keys, mismatched_keys

logger = logging.getLogger(__name__)

_LEAVES_BASE_ALONE = (True, False, "gaussian", "orthogonal", "eva", "mica")
"""What `init_lora_weights` may be where the model without its adapter is to be the model as it was."""

_KNOWN = "name a folder with an adapter_config.json that this version of PEFT knows, or a hub id"

_FITS = "name the model that it was trained on, or save or download the adapter again"


@dataclass(frozen=True)
class AdapterPart:
    """What one adapter holds at one layer.

    Attributes:
        layer: PEFT's layer, or its wrapper around a whole module that is trained.
        adapter: the adapter's name.
        tensors: by kind (``lora_A``), the tensors and their names in the model's state.
    """

    layer: Any
    adapter: str
    tensors: dict[str, dict[str, Tensor]]

    @property
    def is_active(self) -> bool:
        """Whether the layer computes with it; a merged one is part of the layer's weight instead."""
        off = self.layer.disable_adapters or self.adapter in getattr(self.layer, "merged_adapters", ())
        return self.adapter in self.layer.active_adapters and not off

    @property
    def scaling(self) -> float:
        """What the adapter's product is multiplied with; 1 where nothing is said."""
        scaling = vars(self.layer).get("scaling")  # not that of a module that it wraps
        return float(scaling.get(self.adapter, 1.0)) if isinstance(scaling, dict) else 1.0

    @property
    def is_zero(self) -> bool:
        """Whether the layer computes the same with and without it: a low-rank product with a factor that is zero, or a
        copy of a module that equals the original."""
        kinds = {kind: list(tensors.values()) for kind, tensors in self.tensors.items() if tensors}
        if self.scaling == 0:
            return True
        if set(kinds) == {"modules_to_save"}:
            original = self.layer.original_module.state_dict().values()
            return all(map(torch.equal, kinds["modules_to_save"], original))
        if set(kinds) not in ({"lora_A", "lora_B"}, {"lora_embedding_A", "lora_embedding_B"}):
            return not any(bool(tensor.any()) for tensors in kinds.values() for tensor in tensors)
        (a, *_), (b, *bias) = (kinds[kind] for kind in sorted(kinds))
        return not (bool(a.any()) and bool(b.any())) and not any(bool(tensor.any()) for tensor in bias)


def adapter_parts(model: nn.Module) -> list[AdapterPart]:
    """Everything that adapters hold on a model, layer by layer."""
    return [part for name, layer in model.named_modules() for part in _parts_of(name, layer)]


def _parts_of(name: str, layer: Any) -> Iterator[AdapterPart]:
    kinds = [kind for kind in dict.fromkeys(getattr(layer, "adapter_layer_names", ())) if "." not in kind]
    for adapter in dict.fromkeys(adapter for kind in kinds for adapter in getattr(layer, kind)):
        tensors = {kind: _held(getattr(layer, kind), adapter, f"{name}.{kind}.{adapter}") for kind in kinds}
        yield AdapterPart(layer, adapter, tensors)


def _held(by_adapter: Any, adapter: str, name: str) -> dict[str, Tensor]:
    if adapter not in by_adapter:
        return {}
    held = by_adapter[adapter]
    return {name: held} if isinstance(held, Tensor) else held.state_dict(prefix=f"{name}.", keep_vars=True)


def nonzero_adapters(model: nn.Module) -> list[str]:
    """Names of the adapters that the model computes with and that change what it computes."""
    return sorted({part.adapter for part in adapter_parts(model) if part.is_active and not part.is_zero})


def check_adapter(adapter: str | Path) -> Any:
    """Look whether a name can be that of an adapter, before anything costly is done for it.

    Returns:
        The adapter's configuration.

    Raises:
        BapoError: it is neither a folder with an adapter nor a hub id, or its configuration is of no use here.
    """
    from peft import PeftConfig

    if not (Path(adapter) / "adapter_config.json").is_file() and (
        Path(adapter).exists() or str(adapter).count("/") != 1
    ):
        raise BapoError(f"There is no adapter {adapter}: name a folder with an adapter_config.json, or a hub id.")
    with foreign(f"The adapter_config.json of the adapter {adapter} cannot be read", _KNOWN):
        try:
            config = PeftConfig.from_pretrained(str(adapter))
        except ValueError as error:
            if str(error).startswith("Can't find"):
                raise BapoError(f"There is no adapter {adapter} here, and none came from the hub: {_KNOWN}.") from error
            raise
        _check_kind(config, f"The adapter {adapter}")
    if (Path(adapter) / "adapter_model.safetensors").is_file():
        _ = _weights(adapter, only_names=True)
    return config


def leaves_base_alone(config: Any) -> bool:
    """Whether an adapter is a plain LoRA beside a model's own weights, which are as they were when it is taken off.

    Biases, whole modules, single tokens or parameters, and ways of beginning that take something off the model's own
    weights are none.
    """
    others = ("modules_to_save", "trainable_token_indices", "target_parameters", "layer_replication")
    return (
        _kind(config) == "LORA"
        and getattr(config, "bias", "none") == "none"
        and getattr(config, "init_lora_weights", True) in _LEAVES_BASE_ALONE
        and not any(getattr(config, name, None) for name in others)
    )


def _say_what_is_unknown(adapter: str | Path, config: Any) -> None:
    path = Path(adapter) / "adapter_config.json"
    config_keys = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    unknown = sorted(key for key, value in config_keys.items() if value and not hasattr(config, key))
    if unknown:
        logger.warning(
            "The adapter %s has settings that this version of PEFT does not know and ignores: %s.",
            adapter,
            ", ".join(unknown),
        )


def _say_another_base(adapter: str | Path, config: Any, model: Any) -> None:
    if (Path(adapter) / "run.json").is_file():  # bapo's own record knows the weights, and is looked at elsewhere
        return
    base_name, name = config.base_model_name_or_path, getattr(model.config, "_name_or_path", None)
    if base_name and name and _last_name(base_name) != _last_name(name):
        logger.warning("The adapter %s says that it was trained on %s, and this model is %s.", adapter, base_name, name)


def _last_name(model: str) -> str:
    """Of a path or hub id, also as the hub's cache writes it: models--organization--name/snapshots/..."""
    cached = [part for part in Path(model).parts if part.startswith("models--")]
    return (cached[-1].rpartition("--")[2] if cached else Path(model).name).lower()


def _check_kind(config: Any, name: str) -> None:
    """Adapters that do something beside what their layers compute, which scoring layer by layer would not see."""
    if getattr(config, "is_prompt_learning", False) or getattr(config, "is_adaption_prompt", False):
        raise BapoError(f"{name} is a {_kind(config)} adapter, which adds tokens to prompts: use LoRA.")
    if getattr(config, "alora_invocation_tokens", None):
        raise BapoError(
            f"{name} is an activated LoRA (alora_invocation_tokens), which has an effect behind certain tokens only, "
            "and responses that share a prompt are not scored with it: use LoRA."
        )
    if getattr(config, "layer_replication", None):
        raise BapoError(
            f"{name} repeats layers of the model (layer_replication), so that the model without it is another one than "
            "the reference: repeat them in the model itself."
        )
    if _kind(config) in ("POLY", "XLORA"):
        raise BapoError(f"{name} is a {_kind(config)} adapter, which chooses anew for each input: use LoRA.")
    if not 0 <= (getattr(config, "lora_dropout", 0.0) or 0.0) < 1:
        raise BapoError(f"{name} has lora_dropout={config.lora_dropout}: it must lie from 0 to below 1.")


def _check_scaling(adapted: Any, name: str) -> None:
    for part in adapter_parts(adapted):
        if not abs(part.scaling) < torch.finfo(torch.float32).max:
            raise BapoError(
                f"{name} multiplies with {part.scaling}: its lora_alpha and r must give a number that float32 holds."
            )


def _check_repeatable(config: Any, name: str) -> None:
    """PiSSA takes the adapter's first value off the base each time, and may draw random numbers for it."""
    if str(getattr(config, "init_lora_weights", True)).startswith("pissa_niter"):
        raise BapoError(
            f"{name} begins with random numbers each time that it is put on a model (init_lora_weights="
            f"{config.init_lora_weights!r}), so what is loaded is not what was trained: save it as plain LoRA, with "
            "PEFT's path_initial_model_for_weight_conversion."
        )


def _kind(config: Any) -> str:
    return str(getattr(config.peft_type, "value", config.peft_type))


def _weights(adapter: str | Path, *, only_names: bool = False) -> dict[str, Tensor]:
    from peft import load_peft_weights
    from safetensors import safe_open

    with foreign(f"The weights of the adapter {adapter} cannot be read", "save or download the adapter again"):
        if only_names:
            with safe_open(Path(adapter) / "adapter_model.safetensors", "pt") as file:
                weights: dict[str, Tensor] = dict.fromkeys(file.keys(), torch.empty(0))
        else:
            weights = load_peft_weights(str(adapter), device="cpu")
    if not weights:
        raise BapoError(f"The adapter {adapter} holds no weights: save or download it again.")
    return weights


def put_on(model: Any, adapter: str | Path, *, trainable: bool) -> Any:
    """The model with an adapter from a folder or the hub, all of whose weights fit and are numbers.

    Embeddings of the model grow where the adapter brings larger ones. An adapter without effect is told of.

    Raises:
        BapoError: it cannot be read, lacks a weight, holds one that has no place or another shape, or one that is not a
            number.
    """
    with foreign(f"The adapter {adapter} does not fit the model", _FITS):
        config, weights = check_adapter(adapter), _weights(adapter)
        _check_repeatable(config, f"The adapter {adapter}")
        _say_what_is_unknown(adapter, config)
        _say_another_base(adapter, config, model)
        check_adapter_claims(config, (tuple(tensor.shape) for tensor in weights.values()), f"The adapter {adapter}")
        check_expressions(config, model, f"the adapter {adapter}")
        config.inference_mode = not trainable
        _grow_embeddings(model, adapter, weights)
        adapted = _with_room(model, adapter, config)
        _fill(adapted, adapter, trainable=trainable)
        check_finite(weights, f"The adapter {adapter}")
        _check_scaling(adapted, f"The adapter {adapter}")
        if not nonzero_adapters(adapted):
            logger.warning("The adapter %s is zero: with it the model computes what it computes without.", adapter)
    return adapted


def _with_room(model: Any, adapter: str | Path, config: Any) -> Any:
    """The model with an adapter whose weights are still to be read."""
    from peft import get_peft_model

    try:
        return get_peft_model(model, config)
    except re.error:
        with foreign(f"A regular expression in the configuration of the adapter {adapter} cannot be used", WRITE_OUT):
            raise


def _fill(adapted: Any, adapter: str | Path, *, trainable: bool) -> None:
    """Read an adapter's weights, each of which has a place, into places, each of which has a weight."""
    whole = f"The adapter {adapter} does not fit the model"
    mapping = getattr(adapted.get_base_model(), "_checkpoint_conversion_mapping", None)
    more = {"key_mapping": mapping} if mapping else {}
    try:
        loaded = adapted.load_adapter(str(adapter), "default", is_trainable=trainable, **more)
    except RuntimeError as error:
        check_keys(whole, f"{_FITS}.", mismatched=mismatched_keys(error))
        raise
    except KeyError as error:  # of a whole module that the configuration names and the file lacks
        check_keys(whole, f"{_FITS}.", missing=[str(error.args[0])])
        raise
    check_keys(whole, f"{_FITS}.", missing=loaded.missing_keys, unexpected=loaded.unexpected_keys)


def _grow_embeddings(model: Any, adapter: str | Path, weights: dict[str, Tensor]) -> None:
    """Embeddings as large as those that the adapter brings, whose additional rows all come from the adapter."""
    rows = model.get_input_embeddings().weight.shape[0]
    names = {id(module): name for name, module in model.named_modules()}
    ends = {
        names[id(end)]: end for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None
    }
    sizes = {
        name: {
            len(tensor)
            for key, tensor in weights.items()
            if key.endswith((f".{name}.weight", f".{name}.base_layer.weight"))
            and tensor.shape[1:] == end.weight.shape[1:]
        }
        for name, end in ends.items()
    }
    larger = {size for found_sizes in sizes.values() for size in found_sizes if size != rows}
    if not larger:
        return
    if len(larger) > 1 or any(found_sizes != larger for found_sizes in sizes.values()) or max(larger) < rows:
        brought = ", ".join(f"{end} of {sorted(found_sizes) or 'none'}" for end, found_sizes in sorted(sizes.items()))
        raise BapoError(
            f"The adapter {adapter} has embeddings of another size than the model, which has {rows} rows, and does not "
            f"bring all that they are made of ({brought}): save the model with its embeddings resized, and name that."
        )
    with foreign(f"The model cannot get as many tokens as the adapter {adapter} has", "resize and save it yourself"):
        model.resize_token_embeddings(max(larger), mean_resizing=False)
    for end in (model.get_input_embeddings(), model.get_output_embeddings()):
        end.weight.data[rows:] = 0  # not drawn at random: nothing computes with them, and they have to be the same


def add_adapter(model: Any, config: Any) -> Any:
    """The model with a fresh adapter, which alone is trained.

    Raises:
        BapoError: the model has an adapter already, or the configuration does not fit, changes the model's own weights,
            or is none of an adapter.
    """
    from peft import get_peft_model

    if adapter_parts(model) or hasattr(model, "disable_adapter"):
        raise BapoError(
            "The model has an adapter already, and peft_config asks for another one: leave peft_config out to train "
            "the one that it has, or merge that into the model first (merge_and_unload)."
        )
    initial = getattr(config, "init_lora_weights", True)
    if initial not in _LEAVES_BASE_ALONE:
        raise BapoError(
            f"init_lora_weights={initial!r} changes the weights of the model itself, so that the model without its "
            "adapter would no longer be the reference: use True, 'gaussian' or 'orthogonal'."
        )
    with foreign(f"The model cannot have the {_kind(config)} adapter of peft_config", "check its target_modules"):
        _check_kind(config, "The peft_config")
        adapted = get_peft_model(model, config)
        _check_scaling(adapted, "The peft_config")
    return adapted


def check_trainable(policy: Any) -> None:
    """What a trainer must know of a policy before it does anything costly.

    Raises:
        BapoError: nothing of it is trainable, or something is that would not be saved, or several adapters are active.
    """
    parts = adapter_parts(policy)
    for config in getattr(policy, "peft_config", {}).values():
        _check_kind(config, "The model's adapter")
        _check_repeatable(config, "The model's adapter")
    trained = [name for name, parameter in policy.named_parameters() if parameter.requires_grad]
    if not trained:
        raise BapoError(
            "Nothing is trainable: the model's adapter was loaded for inference, so load it with is_trainable=True."
            if parts
            else "Nothing is trainable: all weights of the model are frozen, so give a peft_config, or unfreeze them."
        )
    if not parts:
        if getattr(policy, "is_quantized", False):
            raise BapoError("The weights of a quantized model cannot be trained themselves: give a peft_config.")
        return
    active = sorted({part.adapter for part in parts if part.is_active})
    if len(active) != 1:
        raise BapoError(
            f"{len(active)} adapters of the model are active ({', '.join(active) or 'none'}), and one can be trained: "
            "activate it with set_adapter."
        )
    bias = getattr(getattr(policy, "peft_config", {}).get(active[0]), "bias", "none")
    of_active = {id(tensor) for part in parts if part.adapter == active[0] for tensor in _tensors_of(part)}
    others = [
        name
        for name, parameter in policy.named_parameters()
        if parameter.requires_grad and id(parameter) not in of_active and (bias == "none" or not name.endswith("bias"))
    ]
    if others:
        raise BapoError(
            f"{len(others)} weights are trainable that are not the adapter's and would not be saved with it, e.g. "
            f"{others[0]}: freeze them, or name their modules in modules_to_save of the adapter's configuration."
        )


def adapter_parameters(model: nn.Module) -> set[int]:
    """Ids of the parameters that belong to adapters."""
    return {id(tensor) for part in adapter_parts(model) for tensor in _tensors_of(part)}


def _tensors_of(part: AdapterPart) -> Iterator[Tensor]:
    for held in part.tensors.values():
        yield from held.values()
