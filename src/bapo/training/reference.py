"""The reference in the policy's own memory, and the check that training starts where the reference is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bapo.anchoring import AnchoredPreferences, ProbedTokens, first_tokens
from bapo.anchoring.probe import FLOAT32_TOKENS
from bapo.errors import BapoError
from bapo.likelihood import NoiseFloor, ResponseScorer, TokenGroup, gap_of, noise_floor
from bapo.models import model_fingerprint, nonzero_adapters

Untrained = Callable[[], AbstractContextManager[None]]
"""Makes the policy the reference, inside: the same weights without what is trained."""


def untrained(policy: Any) -> Untrained | None:
    """How a policy becomes its own reference: a fresh adapter is switched off, one that is trained further is put back.

    None where all weights are trained: then the reference is what was stored of it.
    """
    if not hasattr(policy, "disable_adapter"):
        return None
    if not nonzero_adapters(policy):
        switched_off: Untrained = policy.disable_adapter
        return switched_off
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    before = [parameter.detach().clone() for parameter in trained]

    @contextmanager
    def put_back() -> Iterator[None]:
        now = [parameter.data for parameter in trained]
        try:
            for parameter, data in zip(trained, before, strict=True):
                parameter.data = data
            yield
        finally:
            for parameter, data in zip(trained, now, strict=True):
                parameter.data = data

    return put_back


def check_step_0(
    policy: nn.Module,
    scorer: ResponseScorer,
    data: AnchoredPreferences,
    end_ids: Sequence[int],
    as_reference: Untrained | None,
) -> None:
    """Before the first step the policy must be the model that the data were anchored to, and give its numbers.

    Weights and end tokens are compared by their keys. Then a few responses are scored: in float32, which every machine
    computes alike but for millionths of a nat, the policy, the policy without what is trained, and what was stored; and
    in the model's own precision, what is stored and what comes out today.

    Args:
        policy: the model, before its first step.
        scorer: of the policy.
        data: what it will be trained on.
        end_ids: the token ids that end its responses.
        as_reference: see `untrained`.

    Raises:
        BapoError: they differ by more than rounding explains.
    """
    if data.end_ids and tuple(end_ids) != data.end_ids:
        raise BapoError(
            f"The data were anchored to a model whose responses end with the tokens {list(data.end_ids)}, and those of "
            f"this one end with {list(end_ids)}: anchor them again with this model."
        )
    probe = data.probe
    if probe is not None and model_fingerprint(policy) != data.reference:
        raise BapoError(
            "Before the first step policy and reference differ: the weights, the configuration or the precision are "
            "not those that the data were anchored to, so anchor them again with this model."
        )
    own = probe.own if probe else None
    exact = probe.float32 if probe else None
    if exact is None or (own is None and not scorer.is_float32):
        stored = _first_scored(data)  # sums of whole responses: all that is known of data without a probe
        _check(scorer.layouts(stored.groups), stored, "its own precision", exact=scorer.is_float32, sums=True)
    if own is not None:
        _check(scorer.layouts(own.groups), own, "its own precision", exact=False)
    if not scorer.has_float32:
        return
    groups = exact.groups if exact else first_tokens([group.tokens for group in data.groups], FLOAT32_TOKENS)
    layouts = scorer.layouts(groups, float32=True)
    if exact is not None:
        _check(layouts, exact, "float32", exact=True)
    if as_reference is not None:
        with as_reference():
            reference = scorer.float32(groups)
        _check(layouts, ProbedTokens(groups, tuple(reference.tolist())), "float32", exact=True)


def _first_scored(data: AnchoredPreferences) -> ProbedTokens:
    """The first groups, and of each response the stored sum."""
    groups = data.groups[:4]
    sums = tuple(logp for group in groups for logp in group.ref_logps)
    return ProbedTokens(tuple(group.tokens for group in groups), sums)


def _check(
    layouts: dict[str, Tensor], stored: ProbedTokens, precision: str, *, exact: bool, sums: bool = False
) -> None:
    if sums:
        layouts = {name: _summed(tokens, stored.groups) for name, tokens in layouts.items()}
    floor = noise_floor(layouts, float32=exact)
    gap = gap_of(layouts["row"], torch.tensor(stored.logps))
    if not gap <= floor.limit:
        raise BapoError(_sentence(gap, floor, "response" if sums else "token", precision))


def _summed(tokens_P: Tensor, groups: Sequence[TokenGroup]) -> Tensor:
    lengths = [len(response) for group in groups for response in group.responses]
    return torch.stack([tokens.sum() for tokens in tokens_P.split(lengths)])


def _sentence(gap: float, floor: NoiseFloor, unit: str, precision: str) -> str:
    return (
        f"Before the first step policy and reference differ by {gap:.3g} nats per {unit} in {precision}, and rounding "
        f"explains no more than {floor.limit:.3g} (its floor is {floor.mean:.3g}): the model does not compute what the "
        "data were anchored to, so anchor them again with this model as it is now."
    )
