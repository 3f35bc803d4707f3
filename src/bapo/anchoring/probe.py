"""A few anchored responses, token by token: by them a model is known again, whatever rounds differently by then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bapo.likelihood import ResponseScorer, TokenGroup

OWN_TOKENS, FLOAT32_TOKENS = 1024, 256
"""Input tokens that are scored in the model's precision, where many are needed to tell a fault from rounding, and in
float32, where few do."""


@dataclass(frozen=True, slots=True)
class ProbedTokens:
    """Groups, and the log-prob of each of their response tokens in one row, nats."""

    groups: tuple[TokenGroup, ...]
    logps: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Probe:
    """What the reference said to a few responses.

    Attributes:
        own: in the model's precision; None where that is float32.
        float32: computed in float32 with the model's weights; None where the model cannot be computed so.
    """

    own: ProbedTokens | None
    float32: ProbedTokens | None

    @classmethod
    def of(cls, scorer: ResponseScorer, groups: Sequence[TokenGroup]) -> Probe:
        """Score the first of these groups under the scorer's model."""
        own, few = first_tokens(groups, OWN_TOKENS), first_tokens(groups, FLOAT32_TOKENS)
        return cls(
            None if scorer.is_float32 else ProbedTokens(own, tuple(scorer.row(own).tolist())),
            ProbedTokens(few, tuple(scorer.float32(few).tolist())) if scorer.has_float32 else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """For the store."""
        return {name: None if own is None else _to_dict(own) for name, own in self._parts().items()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Probe:
        """From the store."""
        return cls(*(None if content[name] is None else _from_dict(content[name]) for name in ("own", "float32")))

    def _parts(self) -> dict[str, ProbedTokens | None]:
        return {"own": self.own, "float32": self.float32}


def first_tokens(groups: Sequence[TokenGroup], most: int) -> tuple[TokenGroup, ...]:
    """The first groups, and responses of the last of them, of at most so many input tokens; one response at least.

    >>> first_tokens([TokenGroup((1, 2), ((3, 4), (5, 6))), TokenGroup((7,), ((8,),))], 3)
    (TokenGroup(prompt=(1, 2), responses=((3, 4),), header=()),)
    """
    taken: list[TokenGroup] = []
    left = most
    for group in groups:
        responses = list(group.responses)
        while len(responses) > 1 and TokenGroup(group.prompt, tuple(responses)).cost > left:
            responses.pop()
        kept = TokenGroup(group.prompt, tuple(responses))
        if taken and kept.cost > left:
            break
        taken.append(kept)
        left -= kept.cost
        if len(responses) < len(group.responses):
            break
    return tuple(taken)


def _to_dict(probed: ProbedTokens) -> dict[str, Any]:
    groups = [{"prompt": list(g.prompt), "responses": [list(r) for r in g.responses]} for g in probed.groups]
    return {"groups": groups, "logps": list(probed.logps)}


def _from_dict(content: Mapping[str, Any]) -> ProbedTokens:
    groups = tuple(TokenGroup(tuple(g["prompt"]), tuple(map(tuple, g["responses"]))) for g in content["groups"])
    return ProbedTokens(groups, tuple(torch.tensor(content["logps"], dtype=torch.float32).tolist()))
