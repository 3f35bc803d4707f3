"""Anchoring: base responses generated once, all responses scored once under the reference model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime

from bapo.anchoring.generate import GenerationSettings, Response, generate_batch, plan_batches
from bapo.anchoring.probe import FLOAT32_TOKENS, Probe, first_tokens
from bapo.anchoring.store import AnchorStore, Score, group_key
from bapo.anchoring.tokens import LengthPolicy, Tokenized, TokenizedGroup, tokenize
from bapo.anchoring.uses import Registration, UsedPrompt, User, words_hash
from bapo.errors import BapoError
from bapo.likelihood import ResponseScorer, TokenGroup, TokenIds
from bapo.models import ChatFormat, LoadedModel, check_vocabulary, context_length
from bapo.preferences import Preferences, PromptGroup, prompt_text
from bapo.progress import OnProgress, silent

SCORING_BATCH = 16
"""Prompt groups scored and kept at once."""


@dataclass(frozen=True, slots=True)
class BaseResponse:
    """The reference model's own response to a prompt, with its log-prob under that model (nats).

    Attributes:
        rejected: whether it is what a pair of its prompt rejects: then no anchor may hold it.
    """

    ids: TokenIds
    ended: bool
    ref_logp: float
    ref_tokens: tuple[float, ...]
    rejected: bool = False


@dataclass(frozen=True, slots=True)
class AnchoredGroup:
    """A prompt group with all that training and evaluation need to know of the reference.

    Attributes:
        source: the group in words.
        tokens: prompt and responses as ids.
        pairs: (chosen, rejected) indices into the responses.
        ref_logps: reference log-prob of each response, nats.
        bases: the base responses; one unless several were asked for.
    """

    source: PromptGroup
    tokens: TokenGroup
    pairs: tuple[tuple[int, int], ...]
    ref_logps: tuple[float, ...]
    bases: tuple[BaseResponse, ...]


@dataclass(frozen=True)
class AnchoredPreferences:
    """Anchored groups, what was dropped on the way, and the reference that they are anchored to.

    Attributes:
        name: of the preferences.
        groups: the anchored groups.
        reference: fingerprint of the reference model.
        counts: what was dropped or cut, by reason.
        end_ids: the token ids that end a response.
        probe: what the reference said to a few responses, to know it by; None where that is not known.
        today: what the chat template took for now when it wrote the prompts; None where it writes no date.
    """

    name: str
    groups: tuple[AnchoredGroup, ...]
    reference: str
    counts: Mapping[str, int] = field(default_factory=dict)
    end_ids: tuple[int, ...] = ()
    probe: Probe | None = None
    today: datetime | None = None

    @property
    def pair_count(self) -> int:
        """Pairs in all groups."""
        return sum(len(group.pairs) for group in self.groups)


def anchor(
    preferences: Preferences,
    model: LoadedModel,
    store: AnchorStore | None = None,
    *,
    generation: GenerationSettings | None = None,
    lengths: LengthPolicy | None = None,
    today: datetime | None = None,
    on_progress: OnProgress = silent,
) -> AnchoredPreferences:
    """Anchor preferences to a model as it is now: the reference.

    What the store lacks is made and kept. Killed at any moment and called again, it goes on after the last finished
    batch and ends with the same content.

    Args:
        preferences: the prompt groups; base responses that came with one are taken, others generated.
        model: the reference.
        store: where results are kept; the model's store in the user's cache folder by default.
        generation: how base responses are generated; greedy by default.
        lengths: what happens to long texts.
        today: what a chat template that writes the date takes for now; by default the day on which the store was made.
        on_progress: told of each finished batch.

    Raises:
        BapoError: nothing is left to anchor, the store belongs to another model, or a given base response has no text.
    """
    how = {"generation": generation, "lengths": lengths, "today": today, "on_progress": on_progress}
    return anchor_together((preferences,), model, store, **how)[0]  # type: ignore[arg-type]


def anchor_together(
    parts: Sequence[Preferences],
    model: LoadedModel,
    store: AnchorStore | None = None,
    *,
    generation: GenerationSettings | None = None,
    lengths: LengthPolicy | None = None,
    today: datetime | None = None,
    user: User | None = None,
    on_progress: OnProgress = silent,
) -> tuple[AnchoredPreferences, ...]:
    """`anchor` several preferences to the same model in one go, so that prompts are batched together.

    ``user`` is for whom; what nobody uses any more can be forgotten (`bapo delete`).
    """
    store = store or AnchorStore.in_cache(model)
    generation = generation or GenerationSettings()
    lengths = _within_context(lengths or LengthPolicy(), model)
    model = replace(model, chat=model.chat.at(today or store.today))
    tokenized = [_tokenized(preferences, model, lengths) for preferences in parts]
    together = Tokenized(tuple(group for part in tokenized for group in part.groups))
    scorer = ResponseScorer(model.model, model.kernels)
    user = user or User(None, "".join(preferences.fingerprint() for preferences in parts))
    use = Registration(store.folder, user, [asdict(generation), asdict(lengths), today or store.today])
    with store.writing(lambda: on_progress("waiting for another process that anchors to this model", 0, 1)):
        use.begin(lambda: (_used(group) for group in together.groups))
        prompts = [group.tokens.prompt for group in together.groups if not group.source.bases]
        generate_missing(prompts, model, store, generation, on_progress)
        counts = [Counter(part.counts) for part in tokenized]
        base_responses = [
            _base_responses(part, model, store.bases(generation), lengths, part_counts)
            for part, part_counts in zip(tokenized, counts, strict=True)
        ]
        all_bases = [bases for part in base_responses for bases in part]
        check_vocabulary(model.model, model.tokenizer, (base.ids for part_counts in all_bases for base in part_counts))
        use.finish(lambda: map(_used_whole, together.groups, all_bases))
        tokens = [group.tokens for group in together.groups]
        score_missing(list(zip(tokens, all_bases, strict=True)), scorer, store, on_progress)
        probe = store.probe() or _probe(together, all_bases, scorer, store)
    whole = [
        tuple(_join(group, bases, store, model.chat) for group, bases in zip(part.groups, part_bases, strict=True))
        for part, part_bases in zip(tokenized, base_responses, strict=True)
    ]
    return tuple(
        AnchoredPreferences(
            name=preferences.name,
            groups=groups,
            reference=str(store.identity["model"]),
            counts=dict(part_counts + _count_rejected_bases(groups)),
            end_ids=model.chat.end_ids,
            probe=probe,
            today=model.chat.today,
        )
        for preferences, groups, part_counts in zip(parts, whole, counts, strict=True)
    )


def _used(group: TokenizedGroup, scored: Iterable[TokenIds] = ()) -> UsedPrompt:
    prompt = group.tokens.prompt
    keys = tuple(group_key(prompt, ids) for ids in scored)
    return UsedPrompt(words_hash(prompt_text(group.source.prompt)), group_key(prompt), keys)


def _used_whole(group: TokenizedGroup, bases: Sequence[Response]) -> UsedPrompt:
    return _used(group, dict.fromkeys((*group.tokens.responses, *(base.ids for base in bases))))


def _tokenized(preferences: Preferences, model: LoadedModel, lengths: LengthPolicy) -> Tokenized:
    tokenized = tokenize(preferences, model.chat, lengths)
    if not tokenized.groups:
        reasons = ", ".join(f"{count} {reason}" for reason, count in tokenized.counts.items()) or "there were none"
        raise BapoError(f"No pair of {preferences.name} is left to work with ({reasons}).")
    check_vocabulary(model.model, model.tokenizer, (ids for group in tokenized.groups for ids in _texts(group.tokens)))
    return tokenized


def _texts(group: TokenGroup) -> tuple[TokenIds, ...]:
    return (group.prompt, *group.responses)


def few_tokens(data: AnchoredPreferences) -> tuple[TokenGroup, ...]:
    """The first responses, as many as float32 takes to tell a fault."""
    return first_tokens([group.tokens for group in data.groups], FLOAT32_TOKENS)


def _probe(
    tokenized: Tokenized, base_responses: Sequence[tuple[Response, ...]], scorer: ResponseScorer, store: AnchorStore
) -> Probe:
    groups = [
        TokenGroup(group.tokens.prompt, tuple(dict.fromkeys((*(base.ids for base in bases), *group.tokens.responses))))
        for group, bases in zip(tokenized.groups, base_responses, strict=True)
    ]
    probe = Probe.of(scorer, groups)
    store.add_probe(probe)
    return probe


def _within_context(lengths: LengthPolicy, model: LoadedModel) -> LengthPolicy:
    reach = context_length(model.model)
    if reach is None:
        return lengths
    return replace(lengths, max_tokens=reach if lengths.max_tokens is None else min(reach, lengths.max_tokens))


def _room(group: TokenizedGroup, lengths: LengthPolicy) -> int | None:
    """Tokens that a response to this prompt can have; None for no bound."""
    return None if lengths.max_tokens is None else lengths.max_tokens - len(group.tokens.prompt)


def generate_missing(
    prompts: Sequence[TokenIds],
    model: LoadedModel,
    store: AnchorStore,
    settings: GenerationSettings,
    report: OnProgress,
) -> None:
    """Let the model answer those prompts that it has not answered yet; the store is held for writing."""
    known = store.bases(settings)
    done = 0
    report("base responses", 0, len(prompts))
    for batch in plan_batches(prompts, settings):
        missing = [prompts[i] for i in batch if group_key(prompts[i]) not in known]
        if missing:
            responses = generate_batch(model.model, missing, settings, model.chat.end_ids, model.kernels)
            store.add_bases(settings, dict(zip(map(group_key, missing), responses, strict=True)))
        done += len(batch)
        report("base responses", done, len(prompts))


def _base_responses(
    tokenized: Tokenized,
    model: LoadedModel,
    generated: Mapping[str, tuple[Response, ...]],
    lengths: LengthPolicy,
    counts: Counter[str],
) -> list[tuple[Response, ...]]:
    """Of each group: those that came with it, or else the generated ones."""
    return [
        _given_bases(group, model, lengths, counts)
        if group.source.bases
        else _within_room(generated[group_key(group.tokens.prompt)], _room(group, lengths), counts)
        for group in tokenized.groups
    ]


def _given_bases(
    group: TokenizedGroup, model: LoadedModel, lengths: LengthPolicy, counts: Counter[str]
) -> tuple[Response, ...]:
    texts = group.source.bases
    if not all(text.strip() for text in texts):
        raise BapoError(
            f"A base response given for the prompt {prompt_text(group.source.prompt)[:60]!r} has no text: "
            "leave it out, and one is generated."
        )
    given = tuple(Response(model.chat.response_ids(text, group.source.prompt), True) for text in texts)
    room = _room(group, lengths)
    most = lengths.max_response_tokens if room is None else min(room, lengths.max_response_tokens)
    return _within_room(given, most, counts)


def _within_room(responses: Sequence[Response], most: int | None, counts: Counter[str]) -> tuple[Response, ...]:
    """Base responses of at most so many tokens; those that end there, cut now or when generated, are counted."""
    if most is None:
        return tuple(responses)
    kept = tuple(
        response if len(response.ids) <= most else Response(response.ids[:most], False) for response in responses
    )
    counts["base responses cut: too long"] += sum(len(response.ids) == most and not response.ended for response in kept)
    return kept


def score_missing(
    groups: Sequence[tuple[TokenGroup, Sequence[Response]]],
    scorer: ResponseScorer,
    store: AnchorStore,
    report: OnProgress,
) -> None:
    """Score what has no score yet; the store is held for writing.

    Args:
        groups: each with its base responses, whose tokens' log-probs are kept one by one.
        scorer: of the store's model.
        store: where scores are kept.
        report: told of each finished batch.
    """
    total = len(groups)
    report("reference log-probs", 0, total)
    for start in range(0, total, SCORING_BATCH):
        wanted: list[TokenGroup] = []
        as_base: set[str] = set()
        for group, bases in groups[start : start + SCORING_BATCH]:
            responses, base_keys = _unscored(group, bases, store.scores())
            as_base |= base_keys
            if responses:
                wanted.append(TokenGroup(group.prompt, responses))
        if wanted:
            logps = scorer.score(wanted)
            keys = [group_key(group.prompt, response) for group in wanted for response in group.responses]
            store.add_scores(
                {
                    key: Score(float(tokens.sum()), tuple(tokens.tolist()) if key in as_base else None)
                    for key, tokens in zip(keys, logps.per_response(), strict=True)
                }
            )
        report("reference log-probs", min(start + SCORING_BATCH, total), total)


def _unscored(
    group: TokenGroup, bases: Sequence[Response], known: Mapping[str, Score]
) -> tuple[tuple[TokenIds, ...], set[str]]:
    """Responses of a group whose score is missing, each once, and the keys of those wanted token by token."""
    base_keys = {group_key(group.prompt, base.ids) for base in bases}
    missing: dict[TokenIds, None] = {}
    for ids in (*group.responses, *(base.ids for base in bases)):
        key = group_key(group.prompt, ids)
        score = known.get(key)
        if score is None or (key in base_keys and score.tokens is None):
            missing[ids] = None
    return tuple(missing), base_keys


def _join(group: TokenizedGroup, bases: Sequence[Response], store: AnchorStore, chat: ChatFormat) -> AnchoredGroup:
    scores = store.scores()
    prompt = group.tokens.prompt
    return AnchoredGroup(
        source=group.source,
        tokens=group.tokens,
        pairs=group.pairs,
        ref_logps=tuple(scores[group_key(prompt, ids)].logp for ids in group.tokens.responses),
        bases=tuple(
            _base(base, scores[group_key(prompt, base.ids)], is_any_of(base, _rejected(group), chat)) for base in bases
        ),
    )


def _base(response: Response, score: Score, rejected: bool) -> BaseResponse:
    return BaseResponse(response.ids, response.ended, score.logp, score.tokens or (), rejected)


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


def _count_rejected_bases(groups: Sequence[AnchoredGroup]) -> Counter[str]:
    rejecting = [group for group in groups if any(base.rejected for base in group.bases)]
    left = sum(not all(base.rejected for base in group.bases) for group in rejecting)
    return Counter({"prompts whose rejected response is the model's own, anchored to another": left}) + Counter(
        {"prompts whose rejected response is the model's own, and so without an anchor": len(rejecting) - left}
    )
