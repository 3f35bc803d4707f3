"""A few anchored responses, token by token: by them a model is known again, whatever rounds differently by then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bapo.likelihood import NoiseFloor, ResponseScorer, TokenGroup, noise_floor

OWN_TOKENS, FLOAT32_TOKENS = 1024, 256
"""Input tokens that are scored in the model's precision, where many are needed to tell a fault from rounding, and in
float32, where few do."""


@dataclass(frozen=True, slots=True)
class ProbedTokens:
    """Groups, the log-prob of each of their response tokens in one row (nats), and what rounding moves those by."""

    groups: tuple[TokenGroup, ...]
    logps: tuple[float, ...]
    floor: NoiseFloor

    @classmethod
    def of(cls, scorer: ResponseScorer, groups: tuple[TokenGroup, ...], *, float32: bool) -> ProbedTokens:
        """Score groups in the model's precision or in float32."""
        layouts = scorer.layouts(groups, float32=float32)
        return cls(groups, tuple(layouts["row"].tolist()), noise_floor(layouts, float32=float32))


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
            None if scorer.is_float32 else ProbedTokens.of(scorer, own, float32=False),
            ProbedTokens.of(scorer, few, float32=True) if scorer.has_float32 else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """For the store."""
        parts = {"own": self.own, "float32": self.float32}
        return {name: None if tokens is None else asdict(tokens) for name, tokens in parts.items()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Probe:
        """From the store."""
        own, exact = (None if content[name] is None else _from_dict(content[name]) for name in ("own", "float32"))
        return cls(own, exact)


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


def _from_dict(content: Mapping[str, Any]) -> ProbedTokens:
    groups = tuple(TokenGroup(tuple(g["prompt"]), tuple(map(tuple, g["responses"]))) for g in content["groups"])
    return ProbedTokens(groups, tuple(content["logps"]), NoiseFloor(**content["floor"]))
