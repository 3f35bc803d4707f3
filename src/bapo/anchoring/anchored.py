"""Anchoring: base responses generated once, all responses scored once under the reference model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from itertools import islice, repeat
from typing import Any

from bapo.anchoring.generate import GenerationSettings, Response, generate_batch, plan_batches
from bapo.anchoring.kept import exact
from bapo.anchoring.probe import FLOAT32_TOKENS, Probe, first_tokens
from bapo.anchoring.settled import BaseResponse, Settled, Settling
from bapo.anchoring.store import AnchorStore, Score, group_key
from bapo.anchoring.tokens import LengthPolicy, Tokenized, TokenizedGroup, tokenize
from bapo.anchoring.uses import Registration, UsedPrompt, User, words_hash
from bapo.errors import BapoError
from bapo.likelihood import ResponseScorer, TokenGroup, TokenIds
from bapo.models import LoadedModel, check_vocabulary, context_length
from bapo.preferences import Preferences, Prompt, PromptGroup, prompt_text
from bapo.progress import OnProgress, silent

SCORING_BATCH = 16
"""Prompt groups scored and kept at once."""


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
    user = user or User(None, "".join(preferences.fingerprint() for preferences in parts))
    use = Registration(store.folder, user, [asdict(generation), asdict(lengths), today or store.today])
    with store.writing(lambda: on_progress("waiting for another process that anchors to this model", 0, 1)):
        use.announce(lambda: (words_hash(prompt_text(group.prompt)) for part in parts for group in part.groups))
        tokenized = [_tokenized(preferences, model, lengths, store, on_progress) for preferences in parts]
        groups = [group for part in tokenized for group in part.groups]
        settling = Settling(store, model, generation, lengths)
        settled = settling.kept(groups, on_progress)
        probe = store.probe()
        if probe is None or None in settled:
            use.begin(lambda: map(_used, groups))
            scorer = ResponseScorer(model.model, model.kernels)
            whole = _settle_all(groups, settled, settling, scorer, use, on_progress)
            probe = probe or _probe(groups, whole, scorer, store)
        else:
            whole = [known for known in settled if known is not None]
            use.finish(lambda: map(_used_whole, groups, (known.bases for known in whole)))
    left = iter(zip(groups, whole, strict=True))
    return tuple(
        AnchoredPreferences(
            name=preferences.name,
            reference=str(store.identity["model"]),
            end_ids=model.chat.end_ids,
            probe=probe,
            today=model.chat.today,
            **_groups_and_counts(part, list(islice(left, len(part.groups)))),
        )
        for preferences, part in zip(parts, tokenized, strict=True)
    )


def _groups_and_counts(part: Tokenized, settled: Sequence[tuple[TokenizedGroup, Settled]]) -> dict[str, Any]:
    groups = tuple(
        AnchoredGroup(group.source, group.tokens, group.pairs, known.ref_logps, known.bases) for group, known in settled
    )
    cut = Counter({"base responses cut: too long": sum(known.cut for _, known in settled)})
    return {"groups": groups, "counts": dict(Counter(part.counts) + cut + _count_rejected_bases(groups))}


def _used(group: TokenizedGroup, scored: Iterable[TokenIds] = ()) -> UsedPrompt:
    prompt = group.tokens.prompt
    keys = tuple(group_key(prompt, ids) for ids in scored)
    return UsedPrompt(words_hash(prompt_text(group.source.prompt)), group_key(prompt), keys)


def _used_whole(group: TokenizedGroup, bases: Sequence[Response] | Sequence[BaseResponse]) -> UsedPrompt:
    return _used(group, dict.fromkeys((*group.tokens.responses, *(base.ids for base in bases))))


def _tokenized(
    preferences: Preferences, model: LoadedModel, lengths: LengthPolicy, store: AnchorStore, on_progress: OnProgress
) -> Tokenized:
    tokenized = tokenize(preferences, model.chat, lengths, index=store.index, on_progress=on_progress)
    if not tokenized.groups:
        reasons = ", ".join(f"{count} {reason}" for reason, count in tokenized.counts.items()) or "there were none"
        raise BapoError(
            f"No pair of {preferences.name} is left to work with ({reasons}): take others, or let prompts be longer "
            "(max_prompt_tokens)."
        )
    check_vocabulary(model.model, model.tokenizer, (ids for group in tokenized.groups for ids in _texts(group.tokens)))
    return tokenized


def _settle_all(
    groups: Sequence[TokenizedGroup],
    settled: Sequence[Settled | None],
    settling: Settling,
    scorer: ResponseScorer,
    use: Registration,
    report: OnProgress,
) -> list[Settled]:
    """What is settled of all groups; what the store lacks is made, in batches that are planned from all of them."""
    model, store = settling.model, settling.store
    generated = [(group, known) for group, known in zip(groups, settled, strict=True) if not group.source.bases]
    prompts = [group.tokens.prompt for group, _ in generated]
    answered = [known is not None for _, known in generated]
    generate_missing(prompts, model, store, settling.generation, report, answered)
    unsettled = [group for group, known in zip(groups, settled, strict=True) if known is None]
    bases = settling.bases(unsettled)
    check_vocabulary(model.model, model.tokenizer, (base.ids for responses, _ in bases for base in responses))
    left = iter(bases)
    all_bases = [next(left)[0] if known is None else known.bases for known in settled]
    use.finish(lambda: map(_used_whole, groups, all_bases))
    left = iter(bases)
    wanted = [
        (group.tokens, next(left)[0]) if known is None else None for group, known in zip(groups, settled, strict=True)
    ]
    score_missing([group.source.prompt for group in groups], wanted, scorer, store, report)
    made = iter(settling.settle(unsettled, bases))
    return [next(made) if known is None else known for known in settled]


def _texts(group: TokenGroup) -> tuple[TokenIds, ...]:
    return (group.prompt, *group.responses)


def few_tokens(data: AnchoredPreferences) -> tuple[TokenGroup, ...]:
    """The first responses, as many as float32 takes to tell a fault."""
    return first_tokens([group.tokens for group in data.groups], FLOAT32_TOKENS)


def _probe(
    groups: Sequence[TokenizedGroup], settled: Sequence[Settled], scorer: ResponseScorer, store: AnchorStore
) -> Probe:
    with_bases = [
        TokenGroup(
            group.tokens.prompt, tuple(dict.fromkeys((*(base.ids for base in known.bases), *group.tokens.responses)))
        )
        for group, known in zip(groups, settled, strict=True)
    ]
    probe = Probe.of(scorer, with_bases)
    store.add_probe(probe)
    return probe


def _within_context(lengths: LengthPolicy, model: LoadedModel) -> LengthPolicy:
    reach = context_length(model.model)
    if reach is None:
        return lengths
    return replace(lengths, max_tokens=reach if lengths.max_tokens is None else min(reach, lengths.max_tokens))


def generate_missing(
    prompts: Sequence[TokenIds],
    model: LoadedModel,
    store: AnchorStore,
    settings: GenerationSettings,
    report: OnProgress,
    answered: Sequence[bool] | None = None,
) -> None:
    """Let the model answer those prompts that it has not answered yet; the store is held for writing.

    Batches are planned from all prompts, so that the same ones come out whatever has been done.

    Args:
        prompts, model, store, settings: what is answered, by whom and how, and where it is kept.
        report: told of each finished batch.
        answered: which prompts are known to have been answered.
    """
    report("base responses", 0, len(prompts))
    keys = [
        None if known else group_key(prompt) for prompt, known in zip(prompts, answered or repeat(False), strict=False)
    ]
    known_keys = store.answered(settings, [key for key in keys if key is not None])
    if all(key is None or key in known_keys for key in keys):
        report("base responses", len(prompts), len(prompts))
        return
    done = 0
    for batch in plan_batches(prompts, settings):
        missing = {i: key for i in batch if (key := keys[i]) is not None and key not in known_keys}
        if missing:
            asked = [prompts[i] for i in missing]
            responses = generate_batch(model.model, asked, settings, model.chat.end_ids, model.kernels)
            store.add_bases(settings, dict(zip(missing.values(), responses, strict=True)))
            known_keys.update(missing.values())
        done += len(batch)
        report("base responses", done, len(prompts))


def score_missing(
    prompts: Sequence[Prompt],
    groups: Sequence[tuple[TokenGroup, Sequence[Response]] | None],
    scorer: ResponseScorer,
    store: AnchorStore,
    report: OnProgress,
) -> None:
    """Score what has no score yet; the store is held for writing.

    Args:
        prompts: of the groups, in words, by which errors call them.
        groups: each with its base responses, whose tokens' log-probs are kept one by one; None for one that is known to
            have been scored.
        scorer: of the store's model.
        store: where scores are kept.
        report: told of each finished batch.

    Raises:
        BapoError: the model gives no numbers; nothing of the batch is kept.
    """
    total = len(groups)
    report("reference log-probs", 0, total)
    for start in range(0, total, SCORING_BATCH):
        part = slice(start, start + SCORING_BATCH)
        named = zip(prompts[part], groups[part], strict=True)
        batch = [(prompt, *group) for prompt, group in named if group is not None]
        as_base = {group_key(group.prompt, base.ids) for _, group, bases in batch for base in bases}
        by_key = [
            (group.prompt, {group_key(group.prompt, ids): ids for ids in (*group.responses, *(b.ids for b in bases))})
            for _, group, bases in batch
        ]
        missing = store.unscored({key for _, responses in by_key for key in responses}, as_base)
        wanted = {
            at: TokenGroup(prompt, tuple(ids for key, ids in responses.items() if key in missing))
            for at, (prompt, responses) in enumerate(by_key)
            if missing & responses.keys()
        }
        if wanted:
            keys = [key for at in wanted for key in by_key[at][1] if key in missing]
            logps = scorer.score(list(wanted.values())).per_response()
            scores = {
                key: Score(float(tokens.sum()), exact(tokens.tolist()) if key in as_base else None)
                for key, tokens in zip(keys, logps, strict=True)
            }
            for (prompt, *_), (_, responses) in zip(batch, by_key, strict=True):
                _check_numbers([scores[key] for key in responses if key in scores], prompt)
            store.add_scores(scores)
        report("reference log-probs", min(start + SCORING_BATCH, total), total)


def _check_numbers(scores: Sequence[Score], prompt: Prompt) -> None:
    if not all(math.isfinite(score.logp) for score in scores):
        raise BapoError(
            f"The model's log-prob of a response to the prompt {prompt_text(prompt)[:60]!r} is infinite or no number, "
            "so it was not kept: load the model in bf16 or float32, since float16 overflows, or get its weights again."
        )


def _count_rejected_bases(groups: Sequence[AnchoredGroup]) -> Counter[str]:
    rejecting = [group for group in groups if any(base.rejected for base in group.bases)]
    left = sum(not all(base.rejected for base in group.bases) for group in rejecting)
    return Counter({"prompts whose rejected response is the model's own, anchored to another": left}) + Counter(
        {"prompts whose rejected response is the model's own, and so without an anchor": len(rejecting) - left}
    )
