"""From a study file to the jobs that it needs, each known by what it is told and not by where it runs."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from bapo import __version__
from bapo.errors import BapoError
from bapo.jobs import Recipe, read_recipe
from bapo.preferences import preference_in_words
from bapo.preferences.sources.user import EVERY, users_of
from bapo.registry import names, nearest
from bapo.results import BASE, PROMPT_ONLY, StudyWork, identity_of, shared_name
from bapo.results.study_cells import OF_DATA
from bapo.settings import SCORING_VERSION
from bapo.study.file import EvaluationSection, GridSection, SamplingSection, StudyFile, read_study
from bapo.study.sizes import SizesSection

MOST_RUNS = 100_000

PLACES: dict[str, Any] = {"preferences": {"data_folder"}, "anchoring": {"anchored_store"}}
"""Keys of a recipe that name folders."""

_NO_OUTCOME: dict[str, Any] = {
    **PLACES,
    "training": {"save_steps", "report_to"},
    "generations": True,
    "also_train": True,
}
"""Keys of a recipe that change no number."""


@dataclass(frozen=True)
class Cell:
    """One run of the study.

    Attributes:
        key: what it is called in the study's folder.
        model, preference, method, seed: where it is in the grid.
        varied: recipe keys that the grid varies, and their values here.
        recipe: all that the run is told.
        sampling: how the pairs that it trains on are sampled from the model; None of a run on the given ones.
        rewarded_by: key of the cell whose adapter judges them.
    """

    key: str
    model: str
    preference: str
    method: str
    seed: int
    varied: Mapping[str, Any]
    recipe: Recipe
    sampling: SamplingSection | None = None
    rewarded_by: str = ""

    @property
    def plain(self) -> bool:
        """Whether nothing is varied but the data."""
        return all(key.startswith(OF_DATA) for key in self.varied)


@dataclass(frozen=True)
class StudyJob:
    """One unit of work: a record lies at its key once it is done.

    Attributes:
        key: of the job, which is unique in the study.
        work: what it does.
        recipe: what it is told.
        identity: hash of every setting that can change the outcome.
        needs: keys of jobs that must be done before.
        of: key of the cell, or what is evaluated instead: the base, or the base that is told a preference.
        system: the system prompt of such a rival.
        examples: how many training examples a rival is shown.
    """

    key: str
    work: StudyWork
    recipe: Recipe
    identity: str
    needs: tuple[str, ...] = ()
    of: str = BASE
    system: str | None = None
    examples: int = 0


@dataclass(frozen=True)
class Study:
    """A study in its folder.

    Attributes:
        folder: where artifacts and records lie.
        cells: by key, in the order of the file.
        jobs: by key; what a job needs stands before it.
        evaluation: what every model is asked.
        data_folder: of raw data and questions; None for `BAPO_DATA`, or the hub.
        sizes: of models and data, for a plan.
        storage: where records and artifacts are shared by workers that share no disk (`bapo.study.storage`).
        about: what it is about, in words.
    """

    folder: Path
    cells: Mapping[str, Cell]
    jobs: Mapping[str, StudyJob]
    evaluation: EvaluationSection
    data_folder: Path | None = None
    path: Path = field(default=Path())
    sizes: SizesSection = field(default_factory=SizesSection)
    storage: str | None = None
    about: str = ""

    def store_of(self, job: StudyJob) -> Path:
        """The anchored store of a job's model."""
        of_model = identity_of(**job.recipe.model.model_dump(mode="json"))[:6]
        return self.folder / "anchored" / f"{Path(job.recipe.model.name).name}-{of_model}"

    def cell_of(self, job: StudyJob) -> Cell:
        """The cell of a job, or one that shares its model and preference."""
        return self.cells.get(job.of) or self._by_recipe[id(job.recipe)]

    @cached_property
    def _by_recipe(self) -> dict[int, Cell]:
        return {id(cell.recipe): cell for cell in reversed(list(self.cells.values()))}


def open_study(
    path: Path, folder: Path | None = None, data_folder: Path | None = None, storage: str | None = None
) -> Study:
    """Read a study file and lay out its jobs; nothing else is read.

    Args:
        path: the file.
        folder: of the study; beside the file, with its name, by default.
        data_folder: of raw data and questions; `BAPO_DATA` by default.
        storage: see `Study`.

    Raises:
        BapoError: the file cannot be used, or two different runs would have one key.
    """
    content = read_study(path)
    cells: dict[str, Cell] = {}
    for grid in content.grids.values():
        for cell in _cells(content, grid):
            known = cells.setdefault(cell.key, cell)
            if known.recipe != cell.recipe:
                raise BapoError(
                    f"The study {path} has two different runs that are both called {cell.key}: give methods or models "
                    "labels of their own."
                )
    _check_sampling(content, cells, path)
    jobs: dict[str, StudyJob] = {}
    for job in _jobs(cells, content.evaluation):
        jobs.setdefault(job.key, job)
    folder = folder or path.with_suffix("")
    by_label = {
        name: {shared_name(label): size for label, size in getattr(content.sizes, name).items()}
        for name in ("models", "preferences")
    }
    sizes = content.sizes.model_copy(update=by_label)
    return Study(folder, cells, jobs, content.evaluation, data_folder, path, sizes, storage, content.about)


def _check_sampling(content: StudyFile, cells: Mapping[str, Cell], path: Path) -> None:
    """Refuse pairs that would be judged by what is no adapter of a run on given pairs of the same model and data.

    Raises:
        BapoError: says which.
    """
    used = {method for grid in content.grids.values() for method in grid.methods}
    for label in content.sampling:
        if label not in used:
            raise BapoError(
                f"'sampling.{label}' in {path} is of no method of a grid{nearest(label, sorted(used))}: mend it."
            )
    for cell in cells.values():
        if cell.sampling is None:
            continue
        judge = cells.get(cell.rewarded_by)
        if judge is None or judge.sampling is not None:
            raise BapoError(
                f"The pairs of {cell.key} in the study {path} are judged by a run {cell.rewarded_by}, which is none on "
                f"given pairs: add {cell.sampling.reward} to the methods of its grid, or name another reward."
            )
        same = (judge.recipe.model, judge.recipe.preferences) == (cell.recipe.model, cell.recipe.preferences)
        if not same or not judge.recipe.lora.enabled:
            raise BapoError(
                f"The run {judge.key} cannot judge the pairs of {cell.key} in the study {path}: both need the same "
                "model and preferences sections, and the judge an adapter (lora.enabled)."
            )


def _cells(content: StudyFile, grid: GridSection) -> Iterator[Cell]:
    common = read_recipe(None, {}, deepcopy(content.recipe))
    models, seeds = grid.models or [common.model.name], grid.seeds or [common.training.seed]
    preferences = [each for named in grid.preferences for each in _of_all_users(named)]
    axes: tuple[list[Any], ...] = (models, preferences, grid.methods, seeds, *grid.vary.values())
    runs = math.prod(len(axis) for axis in axes)
    if runs > MOST_RUNS:
        raise BapoError(
            f"A grid of the study has {runs:,} runs, and at most {MOST_RUNS:,} are laid out: vary less at once."
        )
    for model, preference, method, seed, *values in itertools.product(*axes):
        varied = dict(zip(grid.vary, values, strict=True))
        overrides = {
            **content.models.get(model, {"model.name": model}),
            **content.methods.get(method, {"training.objective": method}),
            "preferences.source": preference,
            "training.seed": seed,
            **varied,
        }
        recipe = read_recipe(None, overrides, deepcopy(content.recipe))
        objective, known = recipe.training.objective, names("pair_losses")
        if objective not in known:
            raise BapoError(f"There is no method {method!r}{nearest(objective, known)}: label it, or use an objective.")
        parts = [f"{name.rpartition('.')[2]}{value}" for name, value in varied.items()]
        model, preference, sampling = shared_name(model), shared_name(preference), content.sampling.get(method)
        key, rewarded_by = (
            slug(model, preference, label, f"seed{seed}", *parts)
            for label in (method, "" if sampling is None else sampling.reward)
        )
        yield Cell(key, model, preference, method, seed, varied, recipe, sampling, rewarded_by if sampling else "")


def _of_all_users(preference: str) -> list[str]:
    """``user:FILE#*`` is a preference for each user of the file."""
    name, _, part = preference.partition(":")
    file, _, user = part.rpartition("#")
    if name != "user" or user != EVERY:
        return [preference]
    return [f"user:{file}#{each}" for each in users_of(file)]


def slug(*parts: object) -> str:
    """A name for files: the parts with dashes between them, without what file systems do not take."""
    return "_".join(re.sub(r"[^A-Za-z0-9.+-]+", "-", str(part)).strip("-.") for part in parts)


def _jobs(cells: Mapping[str, Cell], evaluation: EvaluationSection) -> Iterator[StudyJob]:
    """What a cell needs, then the cell; jobs that several cells need come once for each, with one key."""
    # What is off is left out, so that a new kind of question changes no job that is not asked it.
    asked = evaluation.model_dump(exclude={"prompt_only", "few_shot"}, exclude_defaults=True)
    models = list(dict.fromkeys(cell.model for cell in cells.values()))
    # One label of a model after the other, since a process keeps its model; of each, judges before what they judge.
    for cell in sorted(cells.values(), key=lambda cell: (models.index(cell.model), cell.sampling is not None)):
        recipe, settings = cell.recipe, settings_of(cell.recipe)
        model = {"model": settings["model"]}
        reading = {**model, "preferences": settings["preferences"], "anchoring": settings["anchoring"]}
        anchor = slug("anchor", cell.model, cell.preference, _short(reading))
        yield StudyJob(anchor, "anchor", recipe, _identity("anchor", reading), of=anchor)
        if evaluation.benchmarks:
            base = slug("evaluate", cell.model, BASE)
            yield StudyJob(base, "evaluate", recipe, _identity("evaluate", {**model, **asked}))
        yield from _rivals(cell, evaluation, {**reading, **asked}, anchor)
        train, needs = f"train_{cell.key}", [anchor]
        if cell.sampling is not None:
            sample, judge = f"sample_{cell.key}", cells[cell.rewarded_by]
            sampled = {"sampling": cell.sampling.model_dump(mode="json"), "reward": settings_of(judge.recipe)}
            identity = _identity("sample", {**reading, **sampled})
            yield StudyJob(sample, "sample", recipe, identity, (anchor, f"train_{judge.key}"), of=cell.key)
            settings, needs = {**settings, **sampled}, [anchor, sample]
        yield StudyJob(train, "train", recipe, _identity("train", settings), tuple(needs), of=cell.key)
        identity = _identity("evaluate", {**settings, **asked})
        yield StudyJob(f"evaluate_{cell.key}", "evaluate", recipe, identity, (train,), of=cell.key)


def _rivals(cell: Cell, evaluation: EvaluationSection, asked: dict[str, Any], anchor: str) -> Iterator[StudyJob]:
    """Evaluations of the untrained model that is told a preference, or shown examples of it."""
    words = preference_in_words(cell.preference) if evaluation.prompt_only else None
    if words is not None:
        key, identity = slug("evaluate", cell.model, cell.preference, PROMPT_ONLY), {**asked, "system": words}
        yield StudyJob(
            key, "evaluate", cell.recipe, _identity("evaluate", identity), (anchor,), of=PROMPT_ONLY, system=words
        )
    for examples in evaluation.few_shot:
        rival, identity = f"few-shot {examples}", {**asked, "examples": examples}
        key = slug("evaluate", cell.model, cell.preference, rival)
        yield StudyJob(
            key, "evaluate", cell.recipe, _identity("evaluate", identity), (anchor,), of=rival, examples=examples
        )


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """Of a recipe, what can change a number."""
    return recipe.model_dump(mode="json", exclude=_NO_OUTCOME)


def _identity(work: StudyWork, settings: Mapping[str, Any]) -> str:
    return identity_of(work=work, version=__version__, scoring=SCORING_VERSION, **settings)


def _short(settings: Mapping[str, Any]) -> str:
    return identity_of(**settings)[:6]
