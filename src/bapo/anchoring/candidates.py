"""Candidates: responses that the reference model samples for others to choose from, and what a model thinks of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple

from bapo.anchoring.anchored import generate_missing, score_missing
from bapo.anchoring.generate import GenerationSettings, Response
from bapo.anchoring.store import AnchorStore, group_key
from bapo.anchoring.tokens import LengthPolicy
from bapo.anchoring.uses import Registration, UsedPrompt, User, words_hash
from bapo.errors import BapoError
from bapo.files import checksum
from bapo.likelihood import ResponseScorer, TokenGroup, TokenIds
from bapo.models import ChatFormat, LoadedModel, check_vocabulary, context_length
from bapo.preferences import Preferences, Prompt, prompt_text
from bapo.progress import OnProgress, silent

CUT, NO_TEXT, TOO_LONG = (
    "candidates left out: cut before their end",
    "candidates left out: their text would be other tokens",
    "prompts left out: too long",
)


@dataclass(frozen=True, slots=True)
class Candidates:
    """What the reference model said to a prompt, draw after draw; the same response may come several times.

    Attributes:
        prompt: the prompt.
        ids: its token ids.
        texts: the responses, each of which is encoded as the very ids that were sampled.
        responses: these ids, with the end token.
    """

    prompt: Prompt
    ids: TokenIds
    texts: tuple[str, ...]
    responses: tuple[TokenIds, ...]

    @property
    def tokens(self) -> TokenGroup:
        """The prompt and each distinct response."""
        return TokenGroup(self.ids, tuple(dict.fromkeys(self.responses)))


def sample_candidates(
    preferences: Preferences,
    model: LoadedModel,
    store: AnchorStore,
    settings: GenerationSettings,
    *,
    lengths: LengthPolicy | None = None,
    on_progress: OnProgress = silent,
) -> tuple[list[Candidates], Counter[str]]:
    """Sampled responses of a model to the prompts of preferences, and what was left out, by reason.

    They are base responses like any others, kept in the model's store as they are made; killed and called again, it
    goes on after the last finished batch. A response is kept as text where it goes to a file that any program reads,
    so only those are candidates whose text, put behind the prompt, is encoded as the ids that were sampled; and only
    those that came to their end, since a text is encoded with one.

    Args:
        preferences: whose prompts are answered.
        model: the reference.
        store: of that model.
        settings: how responses are sampled: ``responses`` of them per prompt.
        lengths: which prompts are too long.
        on_progress: told of each finished batch.

    Raises:
        BapoError: no prompt is left, or the model cannot express one.
    """
    drawn = sample_responses(preferences, model, store, settings, lengths=lengths, on_progress=on_progress)
    counts, chat = drawn.counts, model.chat.at(store.today)
    sampled = []
    for prompt, ids, responses in drawn.prompts:
        ended = [response.ids for response in responses if response.ended]
        texts = [_text(response, prompt, chat) for response in ended]
        counts[CUT] += len(responses) - len(ended)
        counts[NO_TEXT] += texts.count(None)
        kept = [(text, response) for text, response in zip(texts, ended, strict=True) if text is not None]
        sampled.append(
            Candidates(prompt, ids, tuple(text for text, _ in kept), tuple(response for _, response in kept))
        )
    return sampled, +counts


class Drawn(NamedTuple):
    """Prompts in words and as ids, each with the responses that were sampled; and what was left out, by reason."""

    prompts: list[tuple[Prompt, TokenIds, tuple[Response, ...]]]
    counts: Counter[str]


def sample_responses(
    preferences: Preferences,
    model: LoadedModel,
    store: AnchorStore,
    settings: GenerationSettings,
    *,
    lengths: LengthPolicy | None = None,
    on_progress: OnProgress = silent,
) -> Drawn:
    """All sampled responses to the prompts of preferences, cut ones too; kept in the model's store as they are made.

    Args:
        preferences, model, store, settings, lengths, on_progress: see `sample_candidates`.

    Raises:
        BapoError: no prompt is left, or the model cannot express one.
    """
    counts: Counter[str] = Counter()
    chat = model.chat.at(store.today)
    reach = context_length(model.model)
    most = (lengths or LengthPolicy()).max_prompt_tokens
    most = most if reach is None else min(most, reach - 1)
    encoded = [(group.prompt, chat.prompt_ids(group.prompt, counts)) for group in preferences.groups]
    prompts = [(prompt, ids) for prompt, ids in encoded if len(ids) <= most]
    counts[TOO_LONG] += len(encoded) - len(prompts)
    if not prompts:
        raise BapoError(f"No prompt of {preferences.name} has at most {most} tokens, so there is nothing to sample.")
    check_vocabulary(model.model, model.tokenizer, (ids for _, ids in prompts))
    used = [UsedPrompt(words_hash(prompt_text(prompt)), group_key(ids)) for prompt, ids in prompts]
    with store.writing(lambda: on_progress("waiting for another process that anchors to this model", 0, 1)):
        _register(store, used, preferences.fingerprint())
        moved = replace(model, chat=chat)
        generate_missing([ids for _, ids in prompts], moved, store, settings, _called("sampled", on_progress))
        drawn = store.bases(settings, [group_key(ids) for _, ids in prompts])
    return Drawn([(prompt, ids, drawn[group_key(ids)]) for prompt, ids in prompts], counts)


def candidate_logps(
    candidates: Sequence[Candidates],
    model: LoadedModel,
    store: AnchorStore,
    stage: str,
    on_progress: OnProgress = silent,
) -> list[list[float]]:
    """Log-probs of each candidate under a model, nats, in their order; kept in that model's store batch by batch.

    Args:
        candidates: the responses to each prompt.
        model: the reference, or a policy that was trained from it.
        store: of that model.
        stage: what progress calls it.
        on_progress: told of each finished batch.
    """
    report = _called(stage, on_progress)
    answered = [group for group in candidates if group.responses]
    used = [
        UsedPrompt(
            words_hash(prompt_text(group.prompt)),
            group_key(group.ids),
            tuple(group_key(group.ids, ids) for ids in group.tokens.responses),
        )
        for group in answered
    ]
    with store.writing():
        _register(store, used, "")
        prompts, groups = [group.prompt for group in answered], [(group.tokens, ()) for group in answered]
        score_missing(prompts, groups, ResponseScorer(model.model, model.kernels), store, report)
        scores = store.scores({group_key(group.ids, ids) for group in candidates for ids in group.responses})
    return [[scores[group_key(group.ids, ids)].logp for ids in group.responses] for group in candidates]


def _register(store: AnchorStore, used: Sequence[UsedPrompt], data: str) -> None:
    """Nobody goes on to use candidates: they go with their prompts, and with the data whose fingerprint is given."""
    keys = checksum("".join(chain.from_iterable((each.prompt, *each.scores) for each in used)).encode())
    Registration(store.folder, User(None, data), ["candidates", keys]).finish(lambda: used)


def _text(ids: TokenIds, prompt: Prompt, chat: ChatFormat) -> str | None:
    text = chat.response_text(ids)
    return text if text and chat.response_ids(text, prompt) == tuple(ids) else None


def _called(stage: str, report: OnProgress) -> OnProgress:
    """Progress of a part, told under a name of this one."""
    return lambda _, done, total, note="": report(stage, done, total, note)
