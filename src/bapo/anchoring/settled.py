"""What is settled of a group once it is anchored: its base responses, and what the reference says to all responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bapo.anchoring.generate import GenerationSettings, Response
from bapo.anchoring.kept import Packed, anchoring_mark, name_of, packed, tokenizing_mark, unpacked
from bapo.anchoring.store import AnchorStore, Score, group_key
from bapo.anchoring.tokens import LengthPolicy, TokenizedGroup
from bapo.errors import BapoError
from bapo.likelihood import TokenIds
from bapo.models import ChatFormat, LoadedModel
from bapo.preferences import prompt_text
from bapo.progress import OnProgress

_AT_ONCE = 1024
"""Groups that are looked up or kept together."""


@dataclass(frozen=True, slots=True)
class BaseResponse:
    """The reference model's own response to a prompt, with its log-prob under that model (nats).

    Attributes:
        rejected: whether it is what a pair of its prompt rejects: then no anchor may hold it.
    """

    ids: TokenIds
    ended: bool
    ref_logp: float
    ref_tokens: Sequence[float]
    rejected: bool = False


class Settled(NamedTuple):
    """What is settled of a group.

    Attributes:
        ref_logps: reference log-prob of each response, nats.
        bases: the base responses.
        cut: how many of these were cut.
    """

    ref_logps: tuple[float, ...]
    bases: tuple[BaseResponse, ...]
    cut: int


class Settling:
    """What settles groups: the store, which is held, the model, and the settings that base responses depend on."""

    def __init__(
        self, store: AnchorStore, model: LoadedModel, generation: GenerationSettings, lengths: LengthPolicy
    ) -> None:
        self.store, self.model, self.generation, self.lengths = store, model, generation, lengths
        tokenizing = tokenizing_mark(model.chat, lengths)
        self._mark = tokenizing and anchoring_mark(tokenizing, generation, store.end_ids)

    def kept(self, groups: Sequence[TokenizedGroup], on_progress: OnProgress) -> list[Settled | None]:
        """What was settled before, group by group; None where nothing is kept.

        Raises:
            BapoError: a journal of the store is damaged.
        """
        self.store.read_journals(self.generation)
        settled: list[Settled | None] = []
        for start in range(0, len(groups) if self._mark else 0, _AT_ONCE):
            names = [name_of(self._mark or "", group.text) for group in groups[start : start + _AT_ONCE]]
            known = self.store.index.kept("anchored", names)
            settled += [_unpacked(known[name]) if name in known else None for name in names]
            on_progress("what is anchored already", len(settled), len(groups))
        return settled or [None] * len(groups)

    def bases(self, groups: Sequence[TokenizedGroup]) -> list[tuple[Sequence[Response], int]]:
        """The base responses of each group, and how many were cut: those that came with it, or the generated ones."""
        keys = [group_key(group.tokens.prompt) for group in groups if not group.source.bases]
        generated = self.store.bases(self.generation, keys)
        return [
            self._given(group)
            if group.source.bases
            else _within_room(generated[group_key(group.tokens.prompt)], _room(group, self.lengths))
            for group in groups
        ]

    def settle(
        self, groups: Sequence[TokenizedGroup], bases: Sequence[tuple[Sequence[Response], int]]
    ) -> list[Settled]:
        """Put together, and keep, what is known of groups all of whose responses have been scored."""
        settled: list[Settled] = []
        for start in range(0, len(groups), _AT_ONCE):
            some = list(zip(groups[start : start + _AT_ONCE], bases[start : start + _AT_ONCE], strict=True))
            as_base = {group_key(group.tokens.prompt, base.ids) for group, (own, _) in some for base in own}
            keys = {group_key(group.tokens.prompt, ids) for group, _ in some for ids in group.tokens.responses}
            scores = self.store.scores(keys | as_base, as_base)
            done = [self._joined(group, own, cut, scores) for group, (own, cut) in some]
            if self._mark:
                names = [name_of(self._mark, group.text) for group, _ in some]
                self.store.index.keep("anchored", dict(zip(names, map(_packed, done), strict=True)))
            settled += done
        return settled

    def _given(self, group: TokenizedGroup) -> tuple[Sequence[Response], int]:
        texts = group.source.bases
        if not all(text.strip() for text in texts):
            raise BapoError(
                f"A base response given for the prompt {prompt_text(group.source.prompt)[:60]!r} has no text: "
                "leave it out, and one is generated."
            )
        given = tuple(Response(self.model.chat.response_ids(text, group.source.prompt), True) for text in texts)
        room, most = _room(group, self.lengths), self.lengths.max_response_tokens
        return _within_room(given, most if room is None else min(room, most))

    def _joined(
        self, group: TokenizedGroup, bases: Sequence[Response], cut: int, scores: Mapping[str, Score]
    ) -> Settled:
        prompt, rejected = group.tokens.prompt, _rejected(group)

        def base(response: Response) -> BaseResponse:
            score = scores[group_key(prompt, response.ids)]
            is_rejected = is_any_of(response, rejected, self.model.chat)
            return BaseResponse(response.ids, response.ended, score.logp, score.tokens or (), is_rejected)

        ref_logps = tuple(scores[group_key(prompt, ids)].logp for ids in group.tokens.responses)
        return Settled(ref_logps, tuple(map(base, bases)), cut)


def _packed(settled: Settled) -> bytes:
    bases = [(base.ended, base.ref_logp, base.rejected) for base in settled.bases]
    rows, numbers = [base.ids for base in settled.bases], [base.ref_tokens for base in settled.bases]
    return packed(Packed([settled.ref_logps, bases, settled.cut], rows, numbers))


def _unpacked(content: bytes) -> Settled:
    (ref_logps, facts, cut), rows, numbers = unpacked(content)
    bases = (
        BaseResponse(ids, ended, logp, tokens, rejected)
        for (ended, logp, rejected), ids, tokens in zip(facts, rows, numbers, strict=True)
    )
    return Settled(tuple(ref_logps), tuple(bases), cut)


def _room(group: TokenizedGroup, lengths: LengthPolicy) -> int | None:
    """Tokens that a response to this prompt can have; None for no bound."""
    return None if lengths.max_tokens is None else lengths.max_tokens - len(group.tokens.prompt)


def _within_room(responses: Sequence[Response], most: int | None) -> tuple[Sequence[Response], int]:
    """Base responses of at most so many tokens, and how many end there, cut now or when generated."""
    if most is None:
        return responses, 0
    kept = tuple(
        response if len(response.ids) <= most else Response(response.ids[:most], False) for response in responses
    )
    return kept, sum(len(response.ids) == most and not response.ended for response in kept)


def _rejected(group: TokenizedGroup) -> tuple[TokenIds, ...]:
    return tuple(dict.fromkeys(group.tokens.responses[rejected] for _, rejected in group.pairs))


def is_any_of(base: Response, others: Sequence[TokenIds], chat: ChatFormat) -> bool:
    """Whether a base response is one of these responses.

    It is one that has the same tokens up to the end token, or the same as far as both go where the shorter one was
    cut; or the same text, which may have been divided into other tokens.
    """
    ours = _without_end(base.ids, chat)
    for other in others:
        theirs = _without_end(other, chat)
        shorter, longer = sorted((ours, theirs), key=len)
        cut = not base.ended if shorter is ours else theirs == other
        if shorter == longer or (cut and longer[: len(shorter)] == shorter):
            return True
    text = chat.response_text(ours)
    return any(chat.response_text(other) == text for other in others)


def _without_end(ids: TokenIds, chat: ChatFormat) -> TokenIds:
    return ids[:-1] if ids and ids[-1] in chat.end_ids else ids
