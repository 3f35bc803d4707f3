"""Pairs on their way into a step: the data set of pairs, the order they come in, and the batch that shares prompts.

Shape suffixes: B pairs, R responses of the batch (each distinct one once), K base responses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from bapo.anchoring import AnchoredGroup, AnchoredPreferences, BaseResponse
from bapo.likelihood import ResponseLogps, TokenGroup, TokenIds
from bapo.objectives import BaseLogps, PairLogps

NO_PAIR = -1
"""In place of a pair's index: its group is computed and counts for nothing, so that processes keep step."""


class PairDataset(Dataset[tuple[int, int]]):
    """Every pair of anchored preferences, as (group, pair) indices; beyond its end, the first group without a pair."""

    def __init__(self, preferences: AnchoredPreferences) -> None:
        self.preferences = preferences
        self.items = [(g, p) for g, group in enumerate(preferences.groups) for p in range(len(group.pairs))]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[int, int]:
        return self.items[index] if index < len(self) else (0, NO_PAIR)


class InOrder(Sampler[int]):
    """All pairs, once and in order, and then none until every process has as many as the others.

    Args:
        dataset: the pairs.
        at_once: pairs that all processes take at once.
    """

    def __init__(self, dataset: PairDataset, at_once: int = 1) -> None:
        self.length = -(-len(dataset) // at_once) * at_once

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.length))


class PromptSampler(Sampler[int]):
    """A new order of prompts each epoch, the pairs of a prompt one after the other; at the end as `InOrder`."""

    def __init__(self, dataset: PairDataset, seed: int, at_once: int = 1) -> None:
        self.seed, self.epoch, self.pairs = seed, 0, len(dataset)
        self.length = -(-len(dataset) // at_once) * at_once
        self.pairs_of: dict[int, list[int]] = {}
        for index, (group, _) in enumerate(dataset.items):
            self.pairs_of.setdefault(group, []).append(index)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        groups = list(self.pairs_of.values())
        for at in torch.randperm(len(groups), generator=generator).tolist():
            yield from groups[at]
        yield from range(self.pairs, self.length)

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader at the start of an epoch."""
        self.epoch = epoch


class PairSampler(PromptSampler):
    """A new order of single pairs each epoch, whatever prompt they belong to (the paper's way)."""

    def __init__(self, dataset: PairDataset, seed: int, at_once: int = 1) -> None:
        super().__init__(dataset, seed, at_once)
        self.pairs_of = {index: [index] for index in range(len(dataset))}


@dataclass(frozen=True, slots=True)
class PairBatch:
    """B pairs, laid out so that every prompt and every distinct response is computed once.

    Attributes:
        groups: what the scorer is given; its responses, flattened, are the R responses of the batch.
        chosen_B, rejected_B: which of the R responses a pair compares.
        ref_chosen_B, ref_rejected_B: their reference log-probs, nats.
        base_K: which of the R responses are base responses (empty when they are not scored).
        base_ref_T: token log-probs of the base responses under the reference, response after response, nats.
        base_weight_K: pairs that each base response stands for; 0 for one that a pair of its prompt rejects. They
            add up to the pairs of prompts that have an anchor.
    """

    groups: tuple[TokenGroup, ...]
    chosen_B: Tensor
    rejected_B: Tensor
    ref_chosen_B: Tensor
    ref_rejected_B: Tensor
    base_K: tuple[int, ...]
    base_ref_T: Tensor
    base_weight_K: Tensor

    def __len__(self) -> int:
        return len(self.chosen_B)

    @property
    def tokens(self) -> int:
        """Input tokens of the batch."""
        return sum(group.cost for group in self.groups)

    @property
    def idle(self) -> PairBatch:
        """The same groups and none of their pairs: what a process computes while another has one batch more."""
        none = self.chosen_B[:0]
        return replace(
            self,
            chosen_B=none,
            rejected_B=none,
            ref_chosen_B=self.ref_chosen_B[:0],
            ref_rejected_B=self.ref_rejected_B[:0],
            base_weight_K=torch.zeros_like(self.base_weight_K),
        )

    def with_references(self, scored: ResponseLogps) -> PairBatch:
        """The same batch with these scores as its reference log-probs."""
        logps_R, tokens_R = scored.summed(), scored.per_response()
        return replace(
            self,
            ref_chosen_B=logps_R[self.chosen_B.to(logps_R.device)],
            ref_rejected_B=logps_R[self.rejected_B.to(logps_R.device)],
            base_ref_T=torch.cat([tokens_R[r] for r in self.base_K]) if self.base_K else self.base_ref_T,
        )

    def split(self, scored: ResponseLogps) -> tuple[PairLogps, BaseLogps | None]:
        """Hand each objective what it sees of the scored responses."""
        logps_R = scored.summed()
        device = logps_R.device
        lengths_R = torch.tensor(scored.lengths, device=device, dtype=torch.float32)
        chosen, rejected = self.chosen_B.to(device), self.rejected_B.to(device)
        pairs = PairLogps(
            chosen=logps_R[chosen],
            rejected=logps_R[rejected],
            ref_chosen=self.ref_chosen_B.to(device),
            ref_rejected=self.ref_rejected_B.to(device),
            chosen_tokens=lengths_R[chosen],
            rejected_tokens=lengths_R[rejected],
        )
        if not self.base_K:
            return pairs, None
        tokens_R = scored.per_response()
        owner = [k for k, r in enumerate(self.base_K) for _ in range(scored.lengths[r])]
        bases = BaseLogps(
            tokens=torch.cat([tokens_R[r] for r in self.base_K]),
            ref_tokens=self.base_ref_T.to(device),
            owner=torch.tensor(owner, device=device),
            weight=self.base_weight_K.to(device),
        )
        return pairs, bases


def join(batches: Sequence[PairBatch]) -> PairBatch:
    """One batch of the pairs of several."""
    starts = [0]
    for batch in batches:
        starts.append(starts[-1] + sum(len(group.responses) for group in batch.groups))
    placed = list(zip(batches, starts, strict=False))
    return PairBatch(
        groups=tuple(group for batch in batches for group in batch.groups),
        chosen_B=torch.cat([batch.chosen_B + start for batch, start in placed]),
        rejected_B=torch.cat([batch.rejected_B + start for batch, start in placed]),
        ref_chosen_B=torch.cat([batch.ref_chosen_B for batch in batches]),
        ref_rejected_B=torch.cat([batch.ref_rejected_B for batch in batches]),
        base_K=tuple(base + start for batch, start in placed for base in batch.base_K),
        base_ref_T=torch.cat([batch.base_ref_T for batch in batches]),
        base_weight_K=torch.cat([batch.base_weight_K for batch in batches]),
    )


class Collator:
    """Turns (group, pair) indices into the `PairBatch`es of a micro-batch.

    Args:
        preferences: the anchored groups that the indices speak of.
        with_base: whether base responses are part of the batch.
        max_tokens: input tokens of one `PairBatch` (a larger prompt stands alone).
    """

    def __init__(self, preferences: AnchoredPreferences, *, with_base: bool, max_tokens: int | None = None) -> None:
        self.preferences = preferences
        self.with_base = with_base
        self.max_tokens = max_tokens

    def __call__(self, items: Sequence[tuple[int, int]]) -> dict[str, tuple[PairBatch, ...]]:
        """The batches, under the one key that the trainer looks for."""
        pairs_of: dict[int, list[int]] = {}
        for group, pair in items:
            group_pairs = pairs_of.setdefault(group, [])
            group_pairs += [pair] if pair != NO_PAIR else []
        collated = [
            self._of_group(self.preferences.groups[group], group_pairs) for group, group_pairs in pairs_of.items()
        ]
        shares = _even_shares([batch.tokens for batch in collated], self.max_tokens)
        return {"batches": tuple(join([collated[i] for i in share]) for share in shares)}

    def collate(self, chosen_groups: Sequence[tuple[AnchoredGroup, Sequence[int]]]) -> PairBatch:
        """One batch of the given pairs of the given groups."""
        return join([self._of_group(group, pairs) for group, pairs in chosen_groups])

    def _of_group(self, group: AnchoredGroup, own_pairs: Sequence[int]) -> PairBatch:
        place: dict[TokenIds, int] = {}
        responses, refs = group.tokens.responses, torch.tensor(group.ref_logps, dtype=torch.float32)
        pairs = [group.pairs[p] for p in own_pairs]
        chosen = [place.setdefault(responses[c], len(place)) for c, _ in pairs]
        rejected = [place.setdefault(responses[r], len(place)) for _, r in pairs]
        if not pairs:
            place[responses[0]] = 0
        bases = group.bases if self.with_base else ()
        base_K = tuple(place.setdefault(base.ids, len(place)) for base in bases)
        return PairBatch(
            groups=(TokenGroup(group.tokens.prompt, tuple(place)),),
            chosen_B=torch.tensor(chosen, dtype=torch.long),
            rejected_B=torch.tensor(rejected, dtype=torch.long),
            ref_chosen_B=refs[[c for c, _ in pairs]],
            ref_rejected_B=refs[[r for _, r in pairs]],
            base_K=base_K,
            base_ref_T=torch.tensor([logp for base in bases for logp in base.ref_tokens], dtype=torch.float32),
            base_weight_K=torch.tensor(_weights(bases, len(pairs)), dtype=torch.float32),
        )


def _weights(bases: Sequence[BaseResponse], pairs: int) -> list[float]:
    """A prompt's pairs, divided among those of its base responses that no pair rejects.

    DPO lowers a rejected response, and the anchor would hold it: one undoes the other, whichever pair it stands for.
    """
    held = sum(not base.rejected for base in bases)
    return [0.0 if base.rejected else pairs / held for base in bases]


def _even_shares(sizes: Sequence[int], most: int | None) -> list[list[int]]:
    """Divide things of these sizes into few shares that hold at most ``most`` each.

    The largest first, each to the share that has least so far; a thing that is larger than ``most`` is a share alone.

    >>> _even_shares([5, 3, 4, 2], most=8), _even_shares([5, 3, 4, 2], most=None)
    ([[0, 3], [1, 2]], [[0, 1, 2, 3]])
    """
    count = 1
    while True:
        shares: list[list[int]] = [[] for _ in range(min(count, len(sizes)))]
        loads = [0] * len(shares)
        for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
            lightest = loads.index(min(loads))
            shares[lightest].append(index)
            loads[lightest] += sizes[index]
        fit = (most is None or load <= most or len(share) == 1 for load, share in zip(loads, shares, strict=True))
        if all(fit) or len(shares) == len(sizes):
            return sorted(sorted(share) for share in shares)
        count += 1
