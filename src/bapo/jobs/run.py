"""`bapo personalize`: a small grid of jobs, and what a person gets to see at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bapo.errors import BapoError
from bapo.files import LOCK, locked, make_folder, remove_staged
from bapo.jobs import stages, training
from bapo.jobs.generating import answer, shown
from bapo.jobs.job import Job, anchoring_settings, made_on_by, mark_of, processes, provenance, reference_name
from bapo.jobs.kept_folders import check_free
from bapo.jobs.places import PART, RUN, WHOLE, remember
from bapo.jobs.recipe import Recipe
from bapo.preferences import Split, doubtful, prompt_text
from bapo.progress import OnProgress, silent
from bapo.results import (
    GENERATIONS,
    HELD_OUT,
    PERSONALIZATION,
    Generations,
    HeldOutScores,
    Personalization,
    Record,
    Run,
    SideBySide,
    day_of,
    identity_of,
    likelier,
    read_run,
    shared_name,
    to_rows,
)
from bapo.results.runs import DONE

if TYPE_CHECKING:
    from bapo.anchoring import AnchoredGroup
    from bapo.evaluation.preference import Logps
    from bapo.models import LoadedModel, SharedModel

REPORT = "report.json"


def personalize(
    recipe: Recipe, folder: Path | str = "personalized", on_progress: OnProgress = silent
) -> Record[Personalization]:
    """Read, anchor, train each objective, evaluate on held-out prompts, and let every model answer.

    Each job goes on where a killed one stopped, and one that is done is read: started again, nothing is loaded.
    Adapters lie below ``folder``, each in the folder of its run, with the records of what was found out;
    ``report.json`` is what is returned.

    Raises:
        BapoError: anything that the user can mend.
    """
    grid = Grid(recipe, Path(folder))
    return grid.done() or grid.run(on_progress)


@dataclass(frozen=True)
class Grid:
    """The jobs of a personalization: a run for each objective, and for each run its held-out scores and its answers."""

    recipe: Recipe
    folder: Path

    @cached_property
    def objectives(self) -> list[str]:
        """The recipe's own one first."""
        return list(dict.fromkeys([self.recipe.training.objective, *self.recipe.also_train]))

    @cached_property
    def split(self) -> Split:
        """The preferences."""
        return stages.read(self.recipe)

    @cached_property
    def data(self) -> str:
        """Their fingerprint."""
        return stages.data_fingerprint(self.split)

    @cached_property
    def _common(self) -> str:
        """What all jobs depend on."""
        return identity_of(data=self.data, **anchoring_settings(self.recipe))

    @property
    def report(self) -> Job[Personalization]:
        """The job that puts everything together."""
        asked = [training.asked_of(self.recipe, name).settings for name in self.objectives]
        shown_settings = self.recipe.generations.model_dump()
        identity = identity_of(common=self._common, runs=asked, answers=shown_settings, processes=processes())
        return Job(PERSONALIZATION, self.folder / REPORT, identity)

    def held_out(self, run: Run) -> Job[HeldOutScores]:
        """The job that scores held-out prompts under a run's policy."""
        identity = identity_of(common=self._common, weights=run.weights)
        return Job(HELD_OUT, self.folder / "held-out" / f"{run.name}.json", identity)

    def answers(self, name: str, weights: Any) -> Job[Generations]:
        """The job in which a model answers the recipe's questions and the first held-out prompts."""
        identity = identity_of(common=self._common, weights=weights, **self.recipe.generations.model_dump())
        return Job(GENERATIONS, self.folder / "answers" / f"{Path(name).name}.json", identity)

    def done(self) -> Record[Personalization] | None:
        """The report, if it is there and whole and all that it speaks of is."""
        record = self._placed(self.report.find())
        runs = self._finished() if record is not None else []
        return record if len(runs) == len(self.objectives) and all(self.held_out(run).find() for run in runs) else None

    def _placed(self, record: Record[Personalization] | None) -> Record[Personalization] | None:
        """The report, which names runs by their folders in its own, with the places where they are here."""
        if record is None:
            return None
        adapters = {name: str(self.folder / folder) for name, folder in record.content.adapters.items()}
        return replace(record, content=replace(record.content, adapters=adapters, folder=str(self.folder)))

    def _finished(self) -> list[Run]:
        folders = [self.folder / name for name in self.objectives]
        return [read_run(folder) for folder in folders if (folder / DONE).is_file()]

    def run(self, on_progress: OnProgress) -> Record[Personalization]:
        """Do what is not done yet, with one model in memory."""
        stages.check(self.recipe)
        if processes() > 1:
            raise BapoError(
                "bapo personalize is for one process: start bapo train in several, and bapo evaluate after."
            )
        with locked(make_folder(self.folder) / LOCK, lambda: on_progress(f"waiting for {self.folder}", 0, 1)):
            remove_staged(self.folder)
            return self.done() or self._run(on_progress)

    def _run(self, on_progress: OnProgress) -> Record[Personalization]:
        recipe = self.recipe
        check_free(self.folder, WHOLE)
        for name in self.objectives:
            training.check_run(recipe, name, self.folder / name, self.data)
            check_free(self.folder / name, RUN)
        remember(self.folder, recipe, WHOLE)
        for name in self.objectives:
            remember(self.folder / name, recipe, PART)
        _ = self.split  # what cannot be read should be known before the model is loaded
        on_progress("loading the model", 0, 1)
        shared = stages.shared_model(recipe)
        with shared.wearing(recipe.model.reference_adapter) as model:
            on_progress("loading the model", 1, 1)
            days = [day for name in self.objectives if (day := day_of(self.folder / name))]
            anchored = stages.anchor_split(
                recipe,
                self.split,
                model,
                on_progress,
                today=days[0] if days else None,
                folder=self.folder,
                data=self.data,
            )
            reference = self._reference(model, anchored, on_progress)
            made_on = made_on_by(model, anchored.train)
            known = _Known(anchored, reference, made_on, shared, self._asked(model, anchored))
            answers = {reference_name(recipe): self._reference_answers(model, known, on_progress)}
        runs, reports = [], {}
        known_of: dict[str, Any] = {"shared": shared, "data": self.data, "mark": mark_of(recipe)}
        for name in self.objectives:
            runs.append(training.train(recipe, name, anchored.train, self.folder / name, on_progress, **known_of))
        for run in runs:
            reports[run.name], answers[run.name] = self._evaluate(run, known, on_progress)
        weights = {run.name: identity_of(**run.weights) for run in runs}
        content = Personalization(
            source=shared_name(self.split.train.name),
            reference=reference_name(recipe),
            adapters={run.name: run.folder.name for run in runs},
            held_out={name: record.content.report for name, record in reports.items()},
            likelier={name: likelier(record.content.report.drift_per_token) for name, record in reports.items()},
            answers=tuple(
                SideBySide(prompt, {name: record.content.responses[i] for name, record in answers.items()})
                for i, prompt in enumerate(next(iter(answers.values())).content.prompts)
            ),
            folder="",
            counts={**self.split.train.dropped, **anchored.train.counts},
            doubtful=doubtful(self.split.whole),
        )
        made_from = provenance(recipe, anchored.train.reference, made_on, data=self.data, runs=weights)
        record = self._placed(self.report.finish(content, made_from))
        assert record is not None
        return record

    def _reference(self, model: LoadedModel, anchored: stages.Anchored, on_progress: OnProgress) -> Logps | None:
        """Held-out log-probs of the reference, where a run is still to be evaluated."""
        from bapo.evaluation import held_out_logps

        runs = self._finished()
        if len(runs) == len(self.objectives) and all(self.held_out(run).find() for run in runs):
            return None
        stage = "reference of held-out prompts"
        return held_out_logps(
            model.model, anchored.held_out, kernels=model.kernels, stage=stage, on_progress=on_progress
        )

    def _asked(self, model: LoadedModel, anchored: stages.Anchored) -> _Asked:
        """The recipe's own questions and the first held-out prompts."""
        wanted = self.recipe.generations
        chat = model.chat.at(anchored.train.today)
        plain = self.recipe.preferences.plain or not chat.has_template
        own = [chat.prompt_ids(q if plain else [{"role": "user", "content": q}]) for q in wanted.questions]
        return _Asked(tuple(wanted.questions), tuple(own), anchored.held_out.groups[: wanted.prompts])

    def _reference_answers(self, model: LoadedModel, known: _Known, on_progress: OnProgress) -> Record[Generations]:
        name = reference_name(self.recipe)
        job = self.answers("base", None)
        done = job.find()
        if done is not None:
            return done
        on_progress(f"answers of {name}", 0, 1)
        asked = known.asked
        responses = answer(model, asked.own, self.recipe.generations.max_new_tokens)
        responses += base_answers(self.recipe, model, asked.groups)
        on_progress(f"answers of {name}", 1, 1)
        return job.finish(Generations(name, asked.prompts, tuple(responses)), self._made_from(known))

    def _evaluate(
        self, run: Run, known: _Known, on_progress: OnProgress
    ) -> tuple[Record[HeldOutScores], Record[Generations]]:
        """A run's held-out scores and answers: read where they are there, else made, with the adapter put on once."""
        from bapo.evaluation import evaluate_preferences

        held_out, answers = self.held_out(run), self.answers(run.name, run.weights)
        scored, answered = held_out.find(), answers.find()
        if scored is not None and answered is not None:
            return scored, answered
        made_from = self._made_from(known, run)
        with training.as_trained(self.recipe, run, known.shared) as policy:
            if scored is None:
                report, prompts = evaluate_preferences(
                    policy.model,
                    known.anchored.held_out,
                    reference=known.reference,
                    kernels=policy.kernels,
                    stage=f"evaluating {run.name}",
                    on_progress=on_progress,
                )
                content = HeldOutScores(
                    run.name, shared_name(self.split.train.name), reference_name(self.recipe), report
                )
                scored = held_out.finish(content, made_from, to_rows(prompts))
            if answered is None:
                on_progress(f"answers of {run.name}", 0, 1)
                responses = answer(policy, known.asked.ids, self.recipe.generations.max_new_tokens)
                on_progress(f"answers of {run.name}", 1, 1)
                answered = answers.finish(Generations(run.name, known.asked.prompts, tuple(responses)), made_from)
        return scored, answered

    def _made_from(self, known: _Known, run: Run | None = None) -> Any:
        adapter = None if run is None else str(run.folder)
        reference = known.anchored.train.reference
        return provenance(self.recipe, reference, known.made_on, data=self.data, adapter=adapter)


@dataclass(frozen=True)
class _Known:
    """What the jobs of a grid share once the model is in memory."""

    anchored: stages.Anchored
    reference: Logps | None
    made_on: dict[str, Any]
    shared: SharedModel
    asked: _Asked


@dataclass(frozen=True)
class _Asked:
    """What every model answers: questions of the recipe's, in words and as token ids, and held-out prompts."""

    questions: tuple[str, ...]
    own: tuple[tuple[int, ...], ...]
    groups: Sequence[AnchoredGroup]

    @property
    def prompts(self) -> tuple[str, ...]:
        return self.questions + tuple(prompt_text(group.source.prompt) for group in self.groups)

    @property
    def ids(self) -> tuple[tuple[int, ...], ...]:
        return self.own + tuple(group.tokens.prompt for group in self.groups)


def base_answers(recipe: Recipe, model: LoadedModel, groups: Sequence[AnchoredGroup]) -> list[str]:
    """The base model's answers: its base responses, where those are what it would be asked for again."""
    most, how = recipe.generations.max_new_tokens, recipe.anchoring
    if how.base_temperature or how.base_max_new_tokens < most or any(group.source.bases for group in groups):
        return answer(model, [group.tokens.prompt for group in groups], most)
    firsts = [group.bases[0] for group in groups]
    return [shown(model, base.ids[:most], base.ended and len(base.ids) <= most) for base in firsts]
