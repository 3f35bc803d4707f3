"""Anchoring: base responses generated once, all responses scored once under the reference model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from bapo.anchoring.generate import GenerationSettings, Response, generate_batch, plan_batches
from bapo.anchoring.probe import FLOAT32_TOKENS, Probe, first_tokens
from bapo.anchoring.store import AnchorStore, Score, group_key
from bapo.anchoring.tokens import LengthPolicy, Tokenized, TokenizedGroup, tokenize
from bapo.errors import BapoError
from bapo.likelihood import ResponseScorer, TokenGroup, TokenIds
from bapo.models import LoadedModel, check_vocabulary
from bapo.preferences import Preferences, Prompt, PromptGroup

SCORING_BATCH = 16
"""Prompt groups scored and kept at once."""

OnProgress = Callable[[str, int, int], None]
"""Told the stage, how many are done, and of how many."""


@dataclass(frozen=True, slots=True)
class BaseResponse:
    """The reference model's own response to a prompt, with its log-prob under that model (nats)."""

    ids: TokenIds
    ended: bool
    ref_logp: float
    ref_tokens: tuple[float, ...]


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
    """

    name: str
    groups: tuple[AnchoredGroup, ...]
    reference: str
    counts: Mapping[str, int] = field(default_factory=dict)
    end_ids: tuple[int, ...] = ()
    probe: Probe | None = None

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
    bases: Mapping[Prompt, Sequence[str]] | None = None,
    on_progress: OnProgress | None = None,
) -> AnchoredPreferences:
    """Anchor preferences to a model as it is now: the reference.

    What the store has is taken from there; what it lacks is made and kept. Killed at any moment and called again, it
    goes on after the last finished batch and ends with the same content.

    Args:
        preferences: the prompt groups.
        model: the reference.
        store: where results are kept; the model's store in the user's cache folder by default.
        generation: how base responses are generated; greedy by default.
        lengths: what happens to long texts.
        bases: base responses that are known already, in words, by prompt; others are generated.
        on_progress: told of each finished batch.

    Raises:
        BapoError: nothing is left to anchor, or the store belongs to another model.
    """
    store = store or AnchorStore.in_cache(model)
    generation = generation or GenerationSettings()
    tokenized = tokenize(preferences, model.chat, _within_context(lengths or LengthPolicy(), model))
    if not tokenized.groups:
        reasons = ", ".join(f"{count} {reason}" for reason, count in tokenized.counts.items()) or "there were none"
        raise BapoError(f"No pair of {preferences.name} is left to work with ({reasons}).")
    check_vocabulary(model.model, model.tokenizer, (ids for group in tokenized.groups for ids in _texts(group.tokens)))
    report = on_progress or (lambda stage, done, total: None)
    scorer = ResponseScorer(model.model)
    with store.writing(lambda: report("waiting for another process that anchors to this model", 0, 1)):
        given = {group.source.prompt: (bases or {}).get(group.source.prompt) for group in tokenized.groups}
        _generate_missing(
            [g.tokens.prompt for g in tokenized.groups if not given[g.source.prompt]], model, store, generation, report
        )
        base_responses = [
            _given_bases(group, given[group.source.prompt], model, lengths or LengthPolicy())
            or store.bases(generation)[group_key(group.tokens.prompt)]
            for group in tokenized.groups
        ]
        check_vocabulary(model.model, model.tokenizer, (base.ids for own in base_responses for base in own))
        _score_missing(tokenized, base_responses, scorer, store, report)
        probe = store.probe() or _probe(tokenized, base_responses, scorer, store)
    return AnchoredPreferences(
        name=preferences.name,
        groups=tuple(_join(group, own, store) for group, own in zip(tokenized.groups, base_responses, strict=True)),
        reference=str(store.identity["model"]),
        counts=tokenized.counts,
        end_ids=model.chat.end_ids,
        probe=probe,
    )


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
    reach = getattr(model.model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(reach, int) or reach < 1:
        return lengths
    return replace(lengths, max_tokens=reach if lengths.max_tokens is None else min(reach, lengths.max_tokens))


def _generate_missing(
    prompts: Sequence[TokenIds],
    model: LoadedModel,
    store: AnchorStore,
    settings: GenerationSettings,
    report: OnProgress,
) -> None:
    known = store.bases(settings)
    done = 0
    report("base responses", 0, len(prompts))
    for batch in plan_batches(prompts, settings):
        missing = [prompts[i] for i in batch if group_key(prompts[i]) not in known]
        if missing:
            responses = generate_batch(model.model, missing, settings, model.chat.end_ids)
            store.add_bases(settings, dict(zip(map(group_key, missing), responses, strict=True)))
        done += len(batch)
        report("base responses", done, len(prompts))


def _given_bases(
    group: TokenizedGroup, texts: Sequence[str] | None, model: LoadedModel, lengths: LengthPolicy
) -> tuple[Response, ...]:
    chat = not isinstance(group.source.prompt, str)
    ids = [model.chat.response_ids(text, chat=chat) for text in texts or ()]
    most = lengths.max_response_tokens
    return tuple(Response(own[:most], len(own) <= most) for own in ids)


def _score_missing(
    tokenized: Tokenized,
    base_responses: Sequence[tuple[Response, ...]],
    scorer: ResponseScorer,
    store: AnchorStore,
    report: OnProgress,
) -> None:
    total = len(tokenized.groups)
    report("reference log-probs", 0, total)
    for start in range(0, total, SCORING_BATCH):
        wanted: list[TokenGroup] = []
        as_base: set[str] = set()
        for group, bases in list(zip(tokenized.groups, base_responses, strict=True))[start : start + SCORING_BATCH]:
            responses, base_keys = _unscored(group.tokens, bases, store.scores())
            as_base |= base_keys
            if responses:
                wanted.append(TokenGroup(group.tokens.prompt, responses))
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


def _join(group: TokenizedGroup, bases: Sequence[Response], store: AnchorStore) -> AnchoredGroup:
    scores = store.scores()
    prompt = group.tokens.prompt
    return AnchoredGroup(
        source=group.source,
        tokens=group.tokens,
        pairs=group.pairs,
        ref_logps=tuple(scores[group_key(prompt, ids)].logp for ids in group.tokens.responses),
        bases=tuple(_base(base, scores[group_key(prompt, base.ids)]) for base in bases),
    )


def _base(response: Response, score: Score) -> BaseResponse:
    return BaseResponse(response.ids, response.ended, score.logp, score.tokens or ())
