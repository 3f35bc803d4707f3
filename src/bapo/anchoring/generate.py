"""Responses of a model to prompts, as token ids, batched by length.

A response is defined by the prompt's ids, the model's weights, `GenerationSettings` and the ids that end it. Those ids
are all that is kept of the ``generation_config`` that a model comes with; nothing else in it has a say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from random import Random
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from bapo.anchoring.sampling import OwnDraws, draws_of
from bapo.errors import BapoError
from bapo.kernels import Kernels, chosen
from bapo.kernels.layers import fast_layers
from bapo.kernels.packed_weights import packed_weights
from bapo.likelihood import TokenIds, evaluating
from bapo.models import bare_model, context_length, forget_positions, steady_length
from bapo.settings import check_number

GENERATION_VERSION = 2
"""Counted up whenever the same settings could give another response than before."""


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """How responses are generated.

    Attributes:
        max_new_tokens: a response that has not ended by then is kept as it stands, without an end token.
        temperature: 0 is greedy; above, tokens are sampled.
        top_p: share of the probability mass that is sampled from.
        responses: responses per prompt (above 1 only with a temperature).
        seed: seed of the sampling.

    Raises:
        BapoError: several responses are asked for without sampling, or a number is out of range.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    responses: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for setting in fields(self):
            check_number(setting.name, getattr(self, setting.name))
        if self.responses > 1 and self.temperature == 0:
            raise BapoError(
                "Several base responses per prompt would all be the same without sampling: set a temperature."
            )


@dataclass(frozen=True, slots=True)
class Response:
    """A generated response: its token ids (with the end token, if it ended by itself) and whether it did."""

    ids: TokenIds
    ended: bool


GENERATION_TOKENS = 32768
"""Tokens of prompts and longest responses, padding included, that are generated together."""

STAGE = 32
"""Tokens after which responses that have ended leave their batch."""


def plan_batches(
    prompts: Sequence[TokenIds], settings: GenerationSettings, max_tokens: int = GENERATION_TOKENS
) -> list[list[int]]:
    """Indices of prompts, sorted by length and cut into batches; depends on nothing but its arguments.

    Args:
        prompts: what is answered.
        settings: how; each response counts with its greatest length.
        max_tokens: bound on a batch, padding included; a prompt that exceeds it alone is a batch of its own.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), prompts[i])):
        width = settings.responses * (len(prompts[index]) + settings.max_new_tokens)  # the longest so far
        if not batches or (len(batches[-1]) + 1) * width > max_tokens:
            batches.append([])
        batches[-1].append(index)
    return batches


@torch.no_grad()
def generate_batch(
    model: Any,
    prompts: Sequence[TokenIds],
    settings: GenerationSettings,
    end_ids: Sequence[int],
    kernels: Kernels = "auto",
) -> list[tuple[Response, ...]]:
    """Responses to each prompt of one batch; a response does not depend on its company there.

    A response that would not fit behind its prompt into the model's context is cut where the context ends, like one
    that reaches ``max_new_tokens``. `generate` runs at most `STAGE` tokens at a time, and rows that have ended or are
    full leave the batch and its cache in between. Prompts whose rotary frequencies would depend on the longest of them
    are answered one at a time.

    Args:
        model: a causal language model; it is as it was afterwards.
        prompts: their token ids.
        settings: how responses are generated.
        end_ids: token ids that end a response.
        kernels: speed-ups that may be used (`bapo.kernels`).

    Raises:
        BapoError: a prompt fills the model's context.
    """
    causal_lm = bare_model(model)
    together = steady_length(causal_lm.config)
    if together is not None and len(prompts) > 1 and max(map(len, prompts)) + settings.max_new_tokens > together:
        return [generate_batch(model, [prompt], settings, end_ids, kernels)[0] for prompt in prompts]
    forget_positions(causal_lm)
    pad = end_ids[0]
    rows = [prompt for prompt in prompts for _ in range(settings.responses)]
    most = [longest_response(model, prompt, settings) for prompt in rows]
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in rows], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in rows], device=model.device)
    draws = [draws_of(settings.seed, prompt, k) for prompt in prompts for k in range(settings.responses)]
    finished: list[Response | None] = [None] * len(rows)
    alive, cache, made = list(range(len(rows))), None, 0
    with evaluating(model), _kernels_in_use(model, kernels, len(rows)), _no_settings_of_its_own(causal_lm):
        while alive:
            stage = min(STAGE, min(most[i] for i in alive) - made)
            out = causal_lm.generate(
                input_ids=ids,
                attention_mask=mask,
                past_key_values=cache,
                generation_config=_as_config(stage, end_ids, pad),
                logits_processor=_sampling(settings, [draws[i] for i in alive]),
            )
            made += stage
            responses = [_cut(row, end_ids) for row in out.sequences[:, width:].tolist()]
            for place, response in zip(alive, responses, strict=True):
                finished[place] = response
            going = [i for i, response in enumerate(responses) if not response.ended and made < most[alive[i]]]
            alive = [alive[i] for i in going]
            if alive:
                kept = torch.tensor(going, device=model.device)
                ids, cache = out.sequences[kept], _rows_of(out.past_key_values, kept)
                mask = torch.cat([mask[kept], mask.new_ones(len(going), stage)], dim=1)
    complete = [response for response in finished if response is not None]
    return [tuple(complete[i : i + settings.responses]) for i in range(0, len(complete), settings.responses)]


def longest_response(model: Any, prompt: TokenIds, settings: GenerationSettings) -> int:
    """Tokens that a response to a prompt can have: those asked for, as far as the model's context leaves room.

    Raises:
        BapoError: it leaves none.
    """
    reach = context_length(model)
    if reach is None:
        return settings.max_new_tokens
    if len(prompt) >= reach:
        raise BapoError(
            f"A prompt of {len(prompt)} tokens fills the model's {reach} positions, so nothing can follow it: "
            "shorten the prompt."
        )
    return min(settings.max_new_tokens, reach - len(prompt))


def _as_config(tokens: int, end_ids: Sequence[int], pad: int) -> GenerationConfig:
    """All that `generate` is told. It decodes greedily; what is sampled is decided before (`OwnDraws`)."""
    return GenerationConfig(
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=list(end_ids),
        pad_token_id=pad,
        return_dict_in_generate=True,
        use_cache=True,
    )


def _sampling(settings: GenerationSettings, draws: Sequence[Random]) -> LogitsProcessorList:
    if settings.temperature == 0:
        return LogitsProcessorList()
    return LogitsProcessorList([OwnDraws(draws, settings.temperature, settings.top_p)])


@contextmanager
def _kernels_in_use(model: Any, kernels: Kernels, rows: int) -> Iterator[None]:
    packed = packed_weights(model, rows) if "packed-weights" in chosen(kernels) else nullcontext()
    with fast_layers(model, kernels), packed:
        yield


@contextmanager
def _no_settings_of_its_own(causal_lm: Any) -> Iterator[None]:
    """Inside, a model has no generation settings, with which `generate` would fill up what ours leave open."""
    config = causal_lm.generation_config
    causal_lm.generation_config = GenerationConfig()
    try:
        yield
    finally:
        causal_lm.generation_config = config


def _rows_of(cache: Any, rows: Tensor) -> Any:
    """A cache with some of its rows; None, so that it is made anew, where a model keeps something else."""
    if not hasattr(cache, "batch_select_indices"):
        return None
    cache.batch_select_indices(rows)
    return cache


def _cut(row: list[int], end_ids: Sequence[int]) -> Response:
    end = next((i for i, token in enumerate(row) if token in end_ids), None)
    return Response(tuple(row) if end is None else tuple(row[: end + 1]), end is not None)
