"""The job that lets models answer prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bapo.jobs import stages
from bapo.jobs.recipe import Recipe
from bapo.progress import OnProgress, silent
from bapo.results import BASE

if TYPE_CHECKING:
    from bapo.models import LoadedModel


def answer(
    model: LoadedModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[str]:
    """The model's answers to prompts given as token ids, greedy or sampled."""
    from bapo.anchoring import GenerationSettings, generate_batch
    from bapo.models import check_vocabulary

    if not prompts:
        return []
    check_vocabulary(model.model, model.tokenizer, (*prompts, model.chat.end_ids[:1]))
    settings = GenerationSettings(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    asked = [tuple(prompt) for prompt in prompts]
    responses = generate_batch(model.model, asked, settings, model.chat.end_ids, model.kernels)
    return [shown(model, first.ids, first.ended) for first, *_ in responses]


def shown(model: LoadedModel, response: Sequence[int], ended: bool) -> str:
    """A response for people, which see whether it had come to its end."""
    return model.chat.response_text(response) + ("" if ended else " ...")


def answer_each(
    recipe: Recipe,
    adapters: Sequence[str],
    prompts: Sequence[str],
    system: str | None,
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    on_progress: OnProgress = silent,
) -> dict[str, list[str]]:
    """Answers of the base and of each adapter to the same prompts, with one model in memory.

    Args:
        recipe: names the model.
        adapters: folders or hub ids.
        prompts: in words.
        system: a system turn in front of each; None for none.
        max_new_tokens, temperature, seed: how answers are generated.
        on_progress: told how many models have answered.

    Raises:
        BapoError: a model or an adapter cannot be loaded, or an adapter was trained on another model.
    """
    turns = [{"role": "system", "content": system}] if system else []
    shared = stages.shared_model(recipe)
    on_progress("loading the model", 0, 1)
    base = shared.bare
    on_progress("loading the model", 1, 1)
    answers: dict[str, list[str]] = {}
    for done, name in enumerate((None, *adapters)):
        on_progress("answering", done, 1 + len(adapters), name or BASE)
        stages.check_base(recipe, name, base)
        with shared.wearing(name) as loaded:
            chat = loaded.chat
            ids = [
                chat.prompt_ids([*turns, {"role": "user", "content": p}] if chat.has_template else p) for p in prompts
            ]
            answers[name or BASE] = answer(loaded, ids, max_new_tokens, temperature=temperature, seed=seed)
    on_progress("answering", 1 + len(adapters), 1 + len(adapters))
    return answers
