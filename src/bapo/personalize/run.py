"""`bapo personalize`: all stages, and what a person gets to see at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bapo.files import make_folder, write_json
from bapo.personalize import stages
from bapo.personalize.recipe import Recipe
from bapo.personalize.run_folder import Run, day_of
from bapo.preferences import doubtful, prompt_text

if TYPE_CHECKING:
    from bapo.anchoring import AnchoredGroup
    from bapo.evaluation import PreferenceReport
    from bapo.models import LoadedModel


@dataclass(frozen=True)
class SideBySide:
    """A prompt and each model's answer to it, by the model's name."""

    prompt: str
    answers: dict[str, str]


@dataclass(frozen=True)
class Personalization:
    """What came out.

    Attributes:
        source: the preferences' name.
        runs: finished runs, the recipe's own objective first.
        reports: held-out evaluation by the name of the run.
        answers: prompts answered by the base model and every run.
        folder: where everything lies.
        counts: pairs dropped or cut on the way, by reason.
        doubtful: pairs that were kept and are worth a look, by what is the matter with them.
        made_on: processor, instruction set, device, threads, versions, and the base model's noise floor there.
    """

    source: str
    runs: tuple[Run, ...]
    reports: dict[str, PreferenceReport]
    answers: tuple[SideBySide, ...]
    folder: Path
    counts: dict[str, int]
    doubtful: dict[str, int]
    made_on: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """For ``--json`` and ``report.json``."""
        return {
            "source": self.source,
            "folder": str(self.folder),
            "adapters": {run.name: str(run.folder) for run in self.runs},
            "held_out": {name: report.to_dict() for name, report in self.reports.items()},
            "answers": [{"prompt": a.prompt, **a.answers} for a in self.answers],
            "counts": self.counts,
            "doubtful": self.doubtful,
            "made_on": self.made_on,
        }


def personalize(recipe: Recipe, folder: Path, on_progress: stages.OnProgress = stages.silent) -> Personalization:
    """Read, anchor, train each objective, evaluate on held-out prompts, and let every model answer.

    Each stage goes on where a killed run stopped. Everything is written below ``folder``: an adapter a run in its own
    folder, and ``report.json``.

    Raises:
        BapoError: anything that the user can mend.
    """
    from bapo.anchoring import few_tokens
    from bapo.evaluation import held_out_logps
    from bapo.likelihood import ResponseScorer

    stages.check(recipe)
    make_folder(folder)
    objectives = list(dict.fromkeys([recipe.training.objective, *recipe.compare]))
    for name in objectives:
        stages.check_run(recipe, name, folder / name)
    split = stages.read(recipe)
    on_progress("loading the model", 0, 1, "")
    model = stages.load(recipe)
    on_progress("loading the model", 1, 1, "")
    days = [day for name in objectives if (day := day_of(folder / name))]
    anchored = stages.anchor_split(recipe, split, model, on_progress, today=days[0] if days else None)
    shown = anchored.held_out.groups[: recipe.answers.prompts]
    asked = [group.tokens.prompt for group in shown]
    tell = stages.counting(on_progress, "reference of held-out prompts")
    reference = held_out_logps(model.model, anchored.held_out, kernels=model.kernels, on_progress=tell)
    on_progress("answers of base", 0, 1, "")
    answers = {"base": base_answers(recipe, model, shown)}
    on_progress("answers of base", 1, 1, "")
    made_on = ResponseScorer(model.model, model.kernels).made_on(few_tokens(anchored.train))
    del model
    runs = tuple(stages.train(recipe, name, anchored.train, folder / name, on_progress) for name in objectives)
    reports: dict[str, PreferenceReport] = {}
    for run in runs:
        policy = stages.load_run(recipe, run)
        reports[run.name] = stages.evaluate(policy, anchored.held_out, reference, run.name, on_progress)
        on_progress(f"answers of {run.name}", 0, 1, "")
        answers[run.name] = stages.answer(policy, asked, recipe.answers.max_new_tokens)
        on_progress(f"answers of {run.name}", 1, 1, "")
        del policy
    result = Personalization(
        source=split.train.name,
        runs=runs,
        reports=reports,
        answers=tuple(
            SideBySide(prompt_text(group.source.prompt), {name: own[i] for name, own in answers.items()})
            for i, group in enumerate(shown)
        ),
        folder=folder,
        counts={**split.train.dropped, **anchored.train.counts},
        doubtful=doubtful(split.whole),
        made_on=made_on,
    )
    write_json(folder / "report.json", result.to_dict())
    return result


def base_answers(recipe: Recipe, model: LoadedModel, groups: Sequence[AnchoredGroup]) -> list[str]:
    """The base model's answers: its base responses, where those are what it would be asked for again."""
    most, how = recipe.answers.max_new_tokens, recipe.anchoring
    if how.temperature or how.max_new_tokens < most or any(group.source.bases for group in groups):
        return stages.answer(model, [group.tokens.prompt for group in groups], most)
    firsts = [group.bases[0] for group in groups]
    return [stages.shown(model, base.ids[:most], base.ended and len(base.ids) <= most) for base in firsts]
