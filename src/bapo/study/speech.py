"""What the models of a study say: answers to held-out prompts as numbers, and to the study's own questions in words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from bapo.jobs import Recipe, Variant, stages
from bapo.preferences import Message, Preferences, Prompt, prompt_text, response_text
from bapo.progress import OnProgress
from bapo.results import BASE, behaviour, numbers_of
from bapo.study.grid import Study

if TYPE_CHECKING:
    from bapo.models import LoadedModel, SharedModel


_COPIED = 10
"""Words in a row that two texts have in common only if one repeats the other."""

_LEFT_OUT = "(left out: it repeats texts of the preferences)"


def in_words(train: Preferences, examples: int) -> str:
    """A system prompt that shows the chosen responses to the first training prompts."""
    shown = []
    for group in train.groups[:examples]:
        chosen = group.responses[group.pairs[0][0]]
        text = chosen if isinstance(chosen, str) else chosen.content
        shown.append(f"Prompt: {prompt_text(group.prompt)}\nResponse: {text}")
    return "\n\n".join(["Respond as in these examples.", *shown])


def without_copies(answers: Sequence[str], data: Preferences) -> list[str]:
    """Answers as they may be shared: one that repeats ten words in a row of a prompt or response is left out.

    Models that are shown examples repeat them, and so may those that were trained on few.
    """
    runs = [set(_runs(answer)) for answer in answers]
    left = set().union(*runs)
    texts = (
        text for group in data.groups for text in (prompt_text(group.prompt), *map(response_text, group.responses))
    )
    copied = {run for text in texts for run in _runs(text) if run in left}
    return [answer if of.isdisjoint(copied) else _LEFT_OUT for answer, of in zip(answers, runs, strict=True)]


def _runs(text: str) -> Iterator[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return (tuple(words[at : at + _COPIED]) for at in range(len(words) - _COPIED + 1))


def speak(
    study: Study, recipe: Recipe, variant: Variant, shared: SharedModel, on_progress: OnProgress
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Let a model answer, greedily, as its base responses were generated.

    Args:
        study: which says how many held-out prompts are answered, and which questions of its own.
        recipe: names the preferences, on whose training responses the judge learns.
        variant: the model.
        shared: the recipe's model.
        on_progress: told how many are answered.

    Returns:
        For the record ``answers`` to the study's own questions, without copies of the preferences; where held-out
        prompts are answered ``judge``, ``behaviour`` and ``base_behaviour`` as well; and a row of numbers for each of
        these prompts.
    """
    asked = study.evaluation
    split = None if variant.name == BASE else stages.read(recipe)
    of_base = None
    if split is not None and asked.answers:
        held_out = replace(split.held_out, groups=split.held_out.groups[: asked.answers])
        of_base = _of_base(recipe, held_out, shared, on_progress)
    with shared.wearing(variant.adapter or recipe.model.reference_adapter) as model:
        is_chat = model.chat.has_template and not recipe.preferences.plain
        questions = [(Message("user", text),) if is_chat else text for text in asked.questions]
        said = _answers(model, recipe, questions, variant, on_progress)
        if of_base is not None:
            model = replace(model, chat=model.chat.at(of_base.today))
            ours = _answers(model, recipe, of_base.prompts, variant, on_progress)
    said = said if split is None else without_copies(said, split.whole)
    content: dict[str, Any] = {"answers": dict(zip(asked.questions, said, strict=True))}
    if split is None or of_base is None:
        return content, []
    from bapo.evaluation.judge import train_judge

    judge = train_judge(split.train, split.held_out)
    numbers, base = (
        [numbers_of(text, chosen_like) for text, chosen_like in zip(texts, judge(texts), strict=True)]
        for texts in (ours, of_base.texts)
    )
    content |= {"judge": judge.accuracy, "behaviour": behaviour(numbers), "base_behaviour": behaviour(base)}
    return content, [asdict(answer) for answer in numbers]


class _OfBase(NamedTuple):
    """What the reference answers, and to which prompts, on which day: all models are asked as it was."""

    prompts: list[Prompt]
    texts: list[str]
    today: datetime | None


def _of_base(recipe: Recipe, asked: Preferences, shared: SharedModel, on_progress: OnProgress) -> _OfBase:
    """The reference's answers, which are base responses and kept with these."""
    from bapo.anchoring import GenerationSettings, sample_responses

    with shared.wearing(recipe.model.reference_adapter) as model:
        settings, store = GenerationSettings(recipe.anchoring.base_max_new_tokens), stages.open_store(recipe, model)
        drawn = sample_responses(asked, model, store, settings, on_progress=on_progress)
        texts = [model.chat.response_text(first.ids) for _, _, (first, *_) in drawn.prompts]
        return _OfBase([prompt for prompt, _, _ in drawn.prompts], texts, store.today)


def _answers(
    model: LoadedModel, recipe: Recipe, prompts: Sequence[Prompt], variant: Variant, on_progress: OnProgress
) -> list[str]:
    """Texts, without a mark where they were cut."""
    from bapo.anchoring import GenerationSettings, generate_batch, plan_batches
    from bapo.evaluation.preference import with_system

    settings = GenerationSettings(recipe.anchoring.base_max_new_tokens)
    asked = prompts if variant.system is None else [with_system(prompt, variant.system) for prompt in prompts]
    ids = [model.chat.prompt_ids(prompt) for prompt in asked]
    texts, done = [""] * len(ids), 0
    for batch in plan_batches(ids, settings):
        on_progress(f"{variant.name}: answers", done, len(ids))
        responses = generate_batch(model.model, [ids[at] for at in batch], settings, model.chat.end_ids, model.kernels)
        for at, (first, *_) in zip(batch, responses, strict=True):
            texts[at] = model.chat.response_text(first.ids)
        done += len(batch)
    return texts
