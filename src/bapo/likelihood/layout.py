"""How prompts and their responses lie in one row of tokens.

Every prompt stands once, every response once behind it, nothing is padded. The last token of a response is never an
input (nothing is predicted from it), so a group of prompt length n and response lengths m_i takes n + sum(m_i - 1).

Shape suffixes: T tokens in the row, P predicted (response) tokens, R responses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bapo.errors import BapoError

TokenIds = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TokenGroup:
    """One prompt and the responses to score behind it, as token ids.

    Raises:
        BapoError: the prompt or a response has no tokens: there is nothing to predict from, or nothing to predict.
    """

    prompt: TokenIds
    responses: tuple[TokenIds, ...]

    def __post_init__(self) -> None:
        if not self.prompt:
            raise BapoError(
                "A prompt has no tokens, so its responses cannot be scored: give it some text or a BOS token."
            )
        if not all(self.responses):
            raise BapoError("A response has no tokens, so it has no log-probability: drop it before scoring.")

    @property
    def cost(self) -> int:
        """Input tokens that the group takes in a layout."""
        return len(self.prompt) + sum(len(response) - 1 for response in self.responses)


@dataclass(slots=True)
class Segments:
    """Where each group's prompt and responses stand in the row; what attention needs to know.

    Attributes:
        groups: of each group, the prompt's length and its responses' input lengths.
        kernel: how attention is computed, one of `bapo.likelihood.attention.KERNELS`.
        masks: masks made so far; all layers of a forward pass share them.
    """

    groups: tuple[tuple[int, tuple[int, ...]], ...]
    kernel: str = "split"
    masks: dict[tuple[Any, ...], Any] = field(default_factory=dict)

    @property
    def lengths(self) -> list[int]:
        """Lengths of all segments in row order."""
        return [length for prompt, responses in self.groups for length in (prompt, *responses)]

    def owners(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Of every token in the row: its segment, its group's prompt segment, and its position; each (T,)."""
        segment: list[int] = []
        prompt: list[int] = []
        position: list[int] = []
        at = 0
        for prompt_length, responses in self.groups:
            for number, length in enumerate((prompt_length, *responses)):
                segment += [at + number] * length
                prompt += [at] * length
                start = prompt_length if number else 0
                position += range(start, start + length)
            at += 1 + len(responses)
        of_segment, of_prompt, of_position = (torch.tensor(own, device=device) for own in (segment, prompt, position))
        return of_segment, of_prompt, of_position

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


@dataclass(frozen=True, slots=True)
class Layout:
    """One row of tokens for a list of groups, and where in it each response token is predicted."""

    input_ids: Tensor  # (1, T)
    position_ids: Tensor  # (1, T); a response continues its prompt's positions
    segments: Segments
    source_P: Tensor  # row index whose hidden state predicts the response token
    target_P: Tensor  # the response token
    lengths: tuple[int, ...]  # (R,) tokens of each response, in the order of the groups

    @property
    def tokens(self) -> int:
        """Input tokens of the row."""
        return self.input_ids.shape[1]


def lay_out(groups: Sequence[TokenGroup], device: torch.device | str = "cpu") -> Layout:
    """Put groups into one row.

    >>> row = lay_out([TokenGroup((5, 6), ((7, 8), (9,)))])
    >>> row.input_ids.tolist(), row.position_ids.tolist()
    ([[5, 6, 7]], [[0, 1, 2]])
    >>> row.source_P.tolist(), row.target_P.tolist(), row.lengths
    ([1, 2, 1], [7, 8, 9], (2, 1))
    """
    ids: list[int] = []
    positions: list[int] = []
    source: list[int] = []
    target: list[int] = []
    spans: list[tuple[int, tuple[int, ...]]] = []
    for group in groups:
        ids += group.prompt
        positions += range(len(group.prompt))
        last_of_prompt = len(ids) - 1
        for response in group.responses:
            source += [last_of_prompt, *range(len(ids), len(ids) + len(response) - 1)]
            target += response
            positions += range(len(group.prompt), len(group.prompt) + len(response) - 1)
            ids += response[:-1]
        spans.append((len(group.prompt), tuple(len(response) - 1 for response in group.responses)))
    return Layout(
        input_ids=torch.tensor([ids], device=device),
        position_ids=torch.tensor([positions], device=device),
        segments=Segments(tuple(spans)),
        source_P=torch.tensor(source, device=device),
        target_P=torch.tensor(target, device=device),
        lengths=tuple(len(response) for group in groups for response in group.responses),
    )


def by_token_budget(groups: Sequence[TokenGroup], max_tokens: int) -> Iterator[list[TokenGroup]]:
    """Cut groups, in order, into batches of at most ``max_tokens`` input tokens (a larger group stands alone)."""
    batch: list[TokenGroup] = []
    used = 0
    for group in groups:
        if batch and used + group.cost > max_tokens:
            yield batch
            batch, used = [], 0
        batch.append(group)
        used += group.cost
    if batch:
        yield batch
