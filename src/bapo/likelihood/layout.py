"""How prompts and their responses lie in one row of tokens.

Every prompt stands once, every response once behind it, nothing is padded; a header that neighbouring prompts begin
with (the examples of a few-shot test) stands once before them all. The last token of a response is never an input
(nothing is predicted from it), so a group of prompt length n and response lengths m_i takes n + sum(m_i - 1).

Shape suffixes: T tokens in the row, P predicted (response) tokens, R responses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bapo.errors import BapoError

if TYPE_CHECKING:
    from bapo.likelihood.strands import Ties

TokenIds = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TokenGroup:
    """One prompt and the responses to score behind it, as token ids.

    Attributes:
        prompt: what stands before every response (behind the header).
        responses: what is scored.
        header: beginning of the prompt that neighbouring groups have in common, computed once for all of them.

    Raises:
        BapoError: the prompt or a response has no tokens: there is nothing to predict from, or nothing to predict.
    """

    prompt: TokenIds
    responses: tuple[TokenIds, ...]
    header: TokenIds = ()

    def __post_init__(self) -> None:
        if not self.prompt:
            raise BapoError(
                "A prompt has no tokens, so its responses cannot be scored: give it some text or a BOS token."
            )
        if not all(self.responses):
            raise BapoError("A response has no tokens, so it has no log-probability: drop it before scoring.")

    @property
    def cost(self) -> int:
        """Input tokens that the group takes in a layout, its header aside."""
        return len(self.prompt) + sum(len(response) - 1 for response in self.responses)


@dataclass(slots=True)
class Segments:
    """The tree of segments in the row: headers, the prompts behind them, the responses behind those.

    A token sees the earlier tokens of its own segment and all tokens of the segments above it.

    Attributes:
        lengths: of each segment, in row order; 0 for a response of one token, which is predicted and no input.
        parents: index of the segment above each, -1 for none.
        backend: how attention is computed, one of `bapo.likelihood.attention.BACKENDS`.
        ties: to other strands of the row, if there are any: the last segments may be theirs. The keys of those stand
            behind the row's own, and they have no queries in it.
        masks: masks made so far; all layers of a forward pass share them.
    """

    lengths: tuple[int, ...]
    parents: tuple[int, ...]
    backend: str = "split"
    ties: Ties | None = None
    masks: dict[tuple[Any, ...], Any] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Segments of the row."""
        return len(self.lengths) - (len(self.ties.borrowed) if self.ties else 0)

    @property
    def tokens(self) -> int:
        """Length of the row."""
        return sum(self.lengths[: self.count])

    def lines(self) -> list[list[int]]:
        """Of each segment of the row, the segments that it sees from the top of the tree down to itself."""
        lines = [[at] for at in range(self.count)]
        for line in lines:
            while self.parents[line[0]] >= 0:
                line.insert(0, self.parents[line[0]])
        return lines

    def places(self) -> list[slice]:
        """Of each segment, where its keys stand."""
        return [slice(end - length, end) for end, length in zip(accumulate(self.lengths), self.lengths, strict=True)]

    def seen(self) -> list[tuple[slice, ...]]:
        """Of each segment of the row, the places that it sees; the last one is its own."""
        places = self.places()
        return [tuple(places[at] for at in line) for line in self.lines()]

    def owners(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Of every token its segment and its position, each (T,); and (S, S), which segment sees which."""
        lines = self.lines()
        segment = [at for at, length in enumerate(self.lengths) for _ in range(length)]
        position: list[int] = []
        for line, length in zip(lines, self.lengths, strict=True):
            start = sum(self.lengths[at] for at in line[:-1])
            position += range(start, start + length)
        sees = torch.zeros(len(lines), len(lines), dtype=torch.bool)
        for at, line in enumerate(lines):
            sees[at, line] = True
        return torch.tensor(segment, device=device), torch.tensor(position, device=device), sees.to(device)

    def mask(self, queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
        """Boolean (queries, keys) mask for queries that are the last of the keys: causal, within a sliding window."""
        key = (queries, keys, window, device)
        if key not in self.masks:
            distance = (
                torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)[None, :]
            )
            allowed = distance >= 0
            self.masks[key] = allowed if window is None else allowed & (distance < window)
        mask: Tensor = self.masks[key]
        return mask

    def bias(self, queries: int, keys: int, window: int | None, heads: int, like: Tensor) -> Tensor:
        """The mask as a number added to scores, (heads * queries, keys), for the query heads of one key head."""
        key = ("bias", queries, keys, window, heads, like.device, like.dtype)
        if key not in self.masks:
            hidden = ~self.mask(queries, keys, window, like.device).repeat(heads, 1)
            self.masks[key] = like.new_zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
        bias: Tensor = self.masks[key]
        return bias


@dataclass(frozen=True, slots=True)
class Layout:
    """One row of tokens for a list of groups, and where in it each response token is predicted."""

    input_ids: Tensor  # (1, T)
    position_ids: Tensor  # (1, T); a response continues its prompt's positions
    segments: Segments
    source_P: Tensor  # row index whose hidden state predicts the response token
    target_P: Tensor  # the response token
    places: tuple[slice, ...]  # (R,) rows of each response's own tokens

    @property
    def tokens(self) -> int:
        """Input tokens of the row."""
        return self.input_ids.shape[1]


def lay_out(groups: Sequence[TokenGroup], device: torch.device | str = "cpu") -> Layout:
    """Put groups into one row.

    >>> row = lay_out([TokenGroup((5, 6), ((7, 8), (9,)))])
    >>> row.input_ids.tolist(), row.position_ids.tolist()
    ([[5, 6, 7]], [[0, 1, 2]])
    >>> row.source_P.tolist(), row.target_P.tolist()
    ([1, 2, 1], [7, 8, 9])
    """
    ids: list[int] = []
    positions: list[int] = []
    source: list[int] = []
    target: list[int] = []
    lengths: list[int] = []
    parents: list[int] = []
    places: list[slice] = []

    def put(tokens: Sequence[int], parent: int, start: int) -> int:
        ids.extend(tokens)
        positions.extend(range(start, start + len(tokens)))
        lengths.append(len(tokens))
        parents.append(parent)
        return len(lengths) - 1

    header: TokenIds = ()
    above = -1
    for group in groups:
        if group.header != header:
            header = group.header
            above = put(header, -1, 0) if header else -1
        prompt = put(group.prompt, above, len(header))
        last_of_prompt = len(ids) - 1
        for response in group.responses:
            source += [last_of_prompt, *range(len(ids), len(ids) + len(response) - 1)]
            target += response
            places.append(slice(len(ids), len(ids) + len(response) - 1))
            put(response[:-1], prompt, len(header) + len(group.prompt))
    return Layout(
        input_ids=torch.tensor([ids], device=device),
        position_ids=torch.tensor([positions], device=device),
        segments=Segments(tuple(lengths), tuple(parents)),
        source_P=torch.tensor(source, device=device),
        target_P=torch.tensor(target, device=device),
        places=tuple(places),
    )


def by_token_budget(groups: Sequence[TokenGroup], max_tokens: int) -> Iterator[list[TokenGroup]]:
    """Cut groups, in order, into batches of at most ``max_tokens`` input tokens (a larger group stands alone)."""
    batch: list[TokenGroup] = []
    used = 0
    for group in groups:
        shared = bool(batch) and batch[-1].header == group.header
        added = group.cost + (0 if shared else len(group.header))
        if batch and used + added > max_tokens:
            yield batch
            batch, used, added = [], 0, group.cost + len(group.header)
        batch.append(group)
        used += added
    if batch:
        yield batch


SHORTEST_HEADER = 8
"""Tokens; a common beginning shorter than this is not worth a segment of its own."""


def share_headers(groups: Sequence[TokenGroup]) -> list[TokenGroup]:
    """The groups with the beginning that prompts next to each other have in common as their header.

    Sort groups by their prompts first, so that those with a common beginning are neighbours. A run of neighbours ends
    where the common beginning falls below half of what the run shares: at the end of a subject, say.

    >>> [g.header for g in share_headers([TokenGroup((*range(9), n), ((1,),)) for n in (20, 21)])]
    [(0, 1, 2, 3, 4, 5, 6, 7, 8), (0, 1, 2, 3, 4, 5, 6, 7, 8)]
    """
    shared: list[TokenGroup] = []
    start, length = 0, 0
    for at in range(1, len(groups) + 1):
        common = _common(groups[at - 1].prompt, groups[at].prompt) if at < len(groups) else 0
        starts_run = at - start == 1
        if common >= SHORTEST_HEADER and (starts_run or 2 * common >= length):
            length = common if starts_run else min(length, common)
            continue
        run, header = groups[start:at], length if at - start > 1 else 0
        shared += [replace(g, header=g.prompt[:header], prompt=g.prompt[header:]) for g in run]
        start, length = at, 0
    return shared


def _common(a: TokenIds, b: TokenIds) -> int:
    """Tokens that two prompts begin with, at least one of each left aside."""
    limit = min(len(a), len(b)) - 1
    return next((i for i in range(limit) if a[i] != b[i]), limit)
