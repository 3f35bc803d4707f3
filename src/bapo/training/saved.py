"""What a run leaves on the disk, loaded again, must give the numbers of the model that was trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bapo.errors import BapoError, foreign
from bapo.likelihood import ResponseScorer, TokenGroup, Verdict, judge_by, noise_floor
from bapo.models import adapter_parts

_SAVED = "bapo_saved"
"""Name of the second adapter while both are on the model."""


def check_saved(policy: Any, scorer: ResponseScorer, folder: Path, groups: tuple[TokenGroup, ...]) -> None:
    """An adapter is put on the same base with PEFT alone and asked for the same numbers; of a whole model the tensors
    are compared.

    Args:
        policy: the model as it was trained; it is left as it is.
        scorer: of the policy.
        folder: where it was saved.
        groups: what is scored; one response is enough.

    Raises:
        BapoError: they differ by more than rounding explains, or what was saved cannot be read.
    """
    if not hasattr(policy, "disable_adapter"):
        if adapter_parts(policy):  # put there by transformers itself, whose files PEFT does not read
            return None
        return _check_tensors(policy, folder)
    if has_biases(policy):
        return _check_adapter_tensors(policy, folder)
    verdict = saved_verdict(policy, scorer, folder, groups)
    if not verdict.right:
        raise BapoError(
            f"What was saved in {folder} is not what was trained: a token's log-prob differs by {verdict.gap:.3g} "
            f"nats, and rounding explains no more than {verdict.floor.limit:.3g}, so do not use it; merge the model's "
            "adapter (merge_and_unload) and save the whole model instead."
        )
    return None


def has_biases(policy: Any) -> bool:
    """Whether the adapter trains biases: there cannot be a second one with them, so its tensors are compared."""
    return bool(getattr(policy.active_peft_config, "bias", "none") != "none")


def saved_verdict(policy: Any, scorer: ResponseScorer, folder: Path, groups: tuple[TokenGroup, ...]) -> Verdict:
    """How far an adapter from the disk, put on the same base with PEFT alone, is from the one that was saved there.

    Args:
        policy, scorer, folder, groups: see `check_saved`.

    Raises:
        BapoError: what was saved cannot be read, or lacks weights.
    """
    float32 = scorer.has_float32
    trained = scorer.layouts(groups, float32=float32)
    with _saved_adapter(policy, folder):
        saved = scorer.float32(groups) if float32 else scorer.row(groups)
    floor = noise_floor(trained, float32=float32 or scorer.is_float32)
    return judge_by(floor, saved, trained["row"], "float32" if float32 else "its own precision")


@contextmanager
def _saved_adapter(policy: Any, folder: Path) -> Iterator[None]:
    """The policy computes with the adapter from the disk, as plain PEFT puts it there, instead of its own."""
    from peft import PeftConfig

    trained = policy.active_adapter
    at = _place(folder, trained)
    trainable = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    modes = {module: module.training for module in policy.modules()}
    try:
        with foreign(f"The adapter that was saved in {at} cannot be loaded again", "see whether the disk is full"):
            config = PeftConfig.from_pretrained(str(at))
            config.inference_mode = True
            if hasattr(config, "init_lora_weights"):
                config.init_lora_weights = True  # all weights come from the disk, and the base is what it is
            policy.add_adapter(_SAVED, config)
            loaded = policy.load_adapter(str(at), _SAVED)
            policy.set_adapter(_SAVED)
        lost = [*loaded.missing_keys, *loaded.unexpected_keys]
        if lost:
            raise BapoError(
                f"The adapter that was saved in {at} lacks weights of the one that was trained ({lost[0]})."
            )
        yield
    finally:
        if _SAVED in policy.peft_config:
            policy.set_adapter(trained)
            policy.delete_adapter(_SAVED)
        policy.requires_grad_(False)
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module, mode in modes.items():
            module.training = mode


def _place(folder: Path, adapter: str) -> Path:
    """Where PEFT saves an adapter of this name."""
    return folder if adapter == "default" else folder / adapter


def _check_adapter_tensors(policy: Any, folder: Path) -> None:
    from peft import get_peft_model_state_dict, load_peft_weights

    at = _place(folder, policy.active_adapter)
    with foreign(f"The adapter that was saved in {at} cannot be loaded again", "see whether the disk is full"):
        saved = load_peft_weights(str(at), device="cpu")
    trained = get_peft_model_state_dict(policy, adapter_name=policy.active_adapter)
    if saved.keys() != trained.keys() or not all(torch.equal(saved[name], trained[name].cpu()) for name in trained):
        raise BapoError(f"What was saved in {at} is not what was trained: save the model again.")


def _check_tensors(model: nn.Module, folder: Path) -> None:
    """Every weight of the model is in the folder, unchanged; tied ones once."""
    from safetensors import safe_open

    trained = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    stored: set[int] = set()
    strange = False
    for path in sorted(folder.glob("model*.safetensors")):
        with foreign(f"The weights that were saved in {path} cannot be read", "see whether the disk is full"):
            file = safe_open(path, "pt")
        with file as saved:
            for name in saved.keys():  # noqa: SIM118 (it is no dictionary)
                if name not in trained:
                    strange = True
                elif not torch.equal(saved.get_tensor(name), trained[name].cpu()):
                    raise BapoError(f"What was saved in {folder} is not what was trained: {name} differs.")
                else:
                    stored.add(trained[name].data_ptr())
    lost = [name for name, tensor in trained.items() if tensor.numel() and tensor.data_ptr() not in stored]
    if lost and not strange:  # some architectures save their weights under other names, and loading counts those
        raise BapoError(f"What was saved in {folder} lacks {len(lost)} weights, e.g. {lost[0]}.")
