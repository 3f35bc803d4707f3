"""The reference in the policy's own memory, and the check that training starts where the reference is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bapo.anchoring import AnchoredPreferences, AnchorStore, Probe, ProbedTokens, anchor, few_tokens
from bapo.errors import BapoError
from bapo.kernels import Kernels
from bapo.likelihood import (
    NoiseFloor,
    ResponseScorer,
    TokenGroup,
    Verdict,
    evaluating,
    gap_of,
    judge_by,
    noise_floor,
)
from bapo.models import LoadedModel, adapter_parameters, model_fingerprint, nonzero_adapters
from bapo.preferences import Preferences
from bapo.training.config import BAPOConfig
from bapo.training.datasets import preferences_from_dataset
from bapo.training.setup import warn_of_what_is_lost

logger = logging.getLogger(__name__)

ReferencePass = Callable[[], AbstractContextManager[None]]
"""What is scored inside is scored under the reference: the policy's weights without what is trained."""


def reference_pass(policy: Any, *, fresh: bool = False) -> ReferencePass | None:
    """How a policy becomes its own reference: an adapter that is fresh or zero is switched off, and of what is trained
    besides, or of an adapter that is trained further, the weights of now are put back.

    None where all weights are trained: then the reference is what was stored of it.

    Args:
        policy: the model, before its first step.
        fresh: whether its adapter was made for this training, so that it is no part of the reference, zero or not.
    """
    if not hasattr(policy, "disable_adapter"):
        return None
    off = fresh or not nonzero_adapters(policy)
    switched = adapter_parameters(policy) if off else set()
    trained = [p for p in policy.parameters() if p.requires_grad and id(p) not in switched]
    before = [parameter.detach().clone() for parameter in trained]

    @contextmanager
    def as_reference() -> Iterator[None]:
        now = [parameter.data for parameter in trained]
        trainable = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        try:
            for parameter, data in zip(trained, before, strict=True):
                parameter.data = data.to(parameter.device)
            with policy.disable_adapter() if off else nullcontext():
                yield
        finally:
            for parameter, data in zip(trained, now, strict=True):
                parameter.data = data
            if off:  # PEFT freezes what it switches off, and unfreezes all of it afterwards
                policy.requires_grad_(False)
                for parameter in trainable:
                    parameter.requires_grad_(True)

    return as_reference


def starts_away(policy: Any, reference: ReferencePass | None, kernels: Kernels = "auto") -> bool:
    """Whether a fresh adapter has an effect, so that training begins elsewhere than at its reference; if so, says it.

    What an adapter of another kind than LoRA computes cannot be told from its weights, so it is tried out.
    """
    if reference is None or not nonzero_adapters(policy):
        return False
    scorer = ResponseScorer(policy, kernels)
    probe, float32 = scorer.probe(), scorer.has_float32
    layouts = scorer.layouts(probe, float32=float32)
    with reference():
        without = scorer.float32(probe) if float32 else scorer.row(probe)
    away = gap_of(layouts["row"], without) > noise_floor(layouts, float32=float32).limit
    if away:
        logger.warning(
            "The fresh adapter is not zero, so training starts away from its reference, which is the model without it."
        )
    return away


class Reference:
    """The model that the policy is compared with, the store of what it says, and how the policy becomes it.

    Args:
        loaded: the policy, before its first step, with its tokenizer.
        policy: the same with the adapter that is trained.
        ref_model: another model to be the reference; None for the policy as it is now.
        args: the trainer's settings.
        fresh: whether the policy's adapter was made for this training.

    Attributes:
        model: the reference, with its tokenizer.
        is_policy: whether the reference is the policy as it was.
        scoring: inside of it the policy is the reference; None where that cannot be.
    """

    def __init__(self, loaded: LoadedModel, policy: Any, ref_model: Any, args: BAPOConfig, *, fresh: bool) -> None:
        self.is_policy = ref_model is None
        self.scoring = reference_pass(policy, fresh=fresh) if self.is_policy else None
        self.model = replace(loaded, model=ref_model or policy)
        self._store: AnchorStore | None = None
        self._starts_away = fresh and starts_away(policy, self.scoring, args.kernels)

    def anchored(self, data: Any, args: BAPOConfig, called: str, *, trained: bool, kept: bool) -> AnchoredPreferences:
        """Data anchored to the reference.

        Args:
            data: `Preferences`, a data set, or what is anchored already.
            args: how.
            called: what errors call the data.
            trained: whether the policy has taken steps.
            kept: whether its weights can be put back for a while, as those that are divided over processes cannot.

        Raises:
            BapoError: the data do not fit, or there is no reference any more.
        """
        if isinstance(data, AnchoredPreferences):
            return data
        if not isinstance(data, Preferences):
            data = preferences_from_dataset(data, called)
        with self._in_place(trained and self.is_policy, kept):
            if self._store is None:
                in_folder = args.anchored_store and AnchorStore(Path(args.anchored_store), self.model)
                self._store = in_folder or AnchorStore.in_cache(self.model)
            anchored = anchor(data, self.model, self._store, generation=args.generation(), lengths=args.lengths())
        if args.local_process_index == 0:
            warn_of_what_is_lost(data, anchored)
        return anchored

    @contextmanager
    def _in_place(self, trained: bool, kept: bool) -> Iterator[None]:
        """The policy is the reference, where it starts away from it or has been trained.

        Raises:
            BapoError: the reference is in memory no more, as all weights were trained, or its store is not known.
        """
        if trained and (self.scoring is None or self._store is None or not kept):
            raise BapoError(
                "These data are not anchored yet, and the reference that they would be anchored to has been trained: "
                "give them as eval_dataset when the trainer is made."
            )
        if self.scoring is None or not (trained or self._starts_away):
            yield
            return
        with evaluating(self.model.model), self.scoring():
            yield

    def check_step_0(
        self, policy: nn.Module, scorer: ResponseScorer, data: AnchoredPreferences, *, trained: bool, kept: bool
    ) -> None:
        """`check_step_0`; a policy that is away from its reference is looked at as the reference.

        Raises:
            BapoError: policy and reference differ by more than rounding explains.
        """
        scoring = None if self._starts_away else self.scoring
        with self._in_place(trained and self.is_policy, kept):
            check_step_0(policy, scorer, data, self.model.chat.end_ids, scoring)


def check_step_0(
    policy: nn.Module,
    scorer: ResponseScorer,
    data: AnchoredPreferences,
    end_ids: Sequence[int],
    reference: ReferencePass | None,
) -> None:
    """Before the first step the policy must be the model that the data were anchored to, and give its numbers.

    Weights and end tokens are compared by their keys. Then a few responses are scored and compared with what was stored
    of them: in float32, which every machine computes alike but for millionths of a nat, the policy and the policy
    without what is trained; and the policy in its own precision. What rounding explains was measured and stored too.

    Args:
        policy: the model, before its first step.
        scorer: of the policy.
        data: what it will be trained on.
        end_ids: the token ids that end its responses.
        reference: see `reference_pass`.

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
    own, exact = (probe.own, probe.float32) if probe else (None, None)
    if scorer.has_float32 and exact is None:
        exact = ProbedTokens.of(scorer, few_tokens(data), float32=True)
    for verdict in step_0_verdicts(scorer, Probe(own, exact), reference).values():
        if not verdict.right:
            raise BapoError(_sentence(verdict.gap, verdict.floor, "token", verdict.precision))
    if probe is None:
        _check_sums(scorer, data)


def step_0_verdicts(scorer: ResponseScorer, probe: Probe, reference: ReferencePass | None) -> dict[str, Verdict]:
    """How far the policy is from what the reference said, by what was compared.

    Args:
        scorer: of the policy, before its first step.
        probe: what the reference said to a few responses.
        reference: see `reference_pass`.
    """
    verdicts: dict[str, Verdict] = {}
    if scorer.has_float32 and probe.float32 is not None:  # first, because it takes few tokens and shows most
        verdicts["the policy in float32"] = _verdict(scorer.float32(probe.float32.groups), probe.float32, "float32")
        if reference is not None:
            with reference():
                again = _verdict(scorer.float32(probe.float32.groups), probe.float32, "float32")
            verdicts["the policy without what is trained, in float32"] = again
    if probe.own is not None:
        verdicts["the policy"] = _verdict(scorer.row(probe.own.groups), probe.own, "its own precision")
    return verdicts


def _verdict(row_P: Tensor, stored: ProbedTokens, precision: str) -> Verdict:
    return judge_by(stored.floor, row_P, torch.tensor(stored.logps), precision)


def _check_sums(scorer: ResponseScorer, data: AnchoredPreferences) -> None:
    """Data that were not anchored by a store: compare the sums of the first responses, which are all that is known."""
    groups = data.groups[:4]
    layouts = scorer.layouts([group.tokens for group in groups])
    sums = {name: _summed(tokens, [group.tokens for group in groups]) for name, tokens in layouts.items()}
    floor = noise_floor(sums, float32=scorer.is_float32)
    gap = gap_of(sums["row"], torch.tensor([logp for group in groups for logp in group.ref_logps]))
    if not gap <= floor.limit:
        raise BapoError(_sentence(gap, floor, "response", "its own precision"))


def _summed(tokens_P: Tensor, groups: Sequence[TokenGroup]) -> Tensor:
    lengths = [len(response) for group in groups for response in group.responses]
    return torch.stack([tokens.sum() for tokens in tokens_P.split(lengths)])


def _sentence(gap: float, floor: NoiseFloor, unit: str, precision: str) -> str:
    return (
        f"Before the first step policy and reference differ by {gap:.3g} nats per {unit} in {precision}, and rounding "
        f"explains no more than {floor.limit:.3g} (its floor is {floor.mean:.3g}): the model does not compute what the "
        "data were anchored to, so anchor them again with this model as it is now."
    )
