"""`bapo evaluate`: a small grid of jobs, a model a row and a benchmark or the held-out prompts a column."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bapo.errors import BapoError
from bapo.files import checksum_of_file
from bapo.jobs import stages
from bapo.jobs.cell import Cell
from bapo.jobs.job import Job, anchoring_settings, provenance, reference_name
from bapo.jobs.marks import ADAPTERS, adapter_mark
from bapo.jobs.movement import MovementPlan, measure_movement
from bapo.jobs.recipe import Recipe
from bapo.jobs.variants import Variant, check_split, variants_of
from bapo.progress import OnProgress, silent
from bapo.results import (
    ASKED,
    BASE,
    BUDGET,
    COMPARISON,
    HELD_OUT,
    REFERENCE_LOGPS,
    AskedBenchmark,
    BenchmarkAnswers,
    Comparison,
    Findings,
    HeldOutScores,
    Provenance,
    Record,
    ReferenceLogps,
    Sample,
    changed_rows,
    compare_models,
    day_of,
    identity_of,
    shared_name,
    to_rows,
)

if TYPE_CHECKING:
    from bapo.anchoring import AnchoredPreferences
    from bapo.evaluation.asking import BenchmarkPlan
    from bapo.evaluation.preference import Logps
    from bapo.models import LoadedModel, SharedModel

logger = logging.getLogger(__name__)


def evaluate(
    recipe: Recipe,
    variants: Sequence[Variant | str | Path],
    *,
    benchmarks: BenchmarkPlan | None = None,
    preferences: bool = True,
    movement: MovementPlan | None = None,
    budget: float = BUDGET,
    least_accuracy: float | None = None,
    records: Path | None = None,
    on_progress: OnProgress = silent,
) -> Record[Comparison]:
    """Evaluate several models on the same questions and prompts, with one model in memory that wears their adapters.

    What was evaluated before is read: started again, nothing is loaded.

    Args:
        recipe: names the model, and the preferences where they are evaluated.
        variants: what is evaluated; changes are counted from the first. A folder is an adapter's, ``base`` the base;
            one named by an absolute path is called by the end of that (`shared_names`).
        benchmarks: which questions are asked; None for none.
        preferences: whether held-out preferences are evaluated.
        movement: what is measured of adapters beside; None for nothing.
        budget: points of the forgetting score that may be lost.
        least_accuracy: share of held-out pairs that a gate asks of an adapter; None for none.
        records: where records are kept; the user's cache folder by default.
        on_progress: told the stage, how many are done, and of how many.

    Raises:
        BapoError: an adapter was trained on another model, or what `EvaluatedModel.ask` and the stages raise.
    """
    named = _named(recipe, variants)
    records = records or _in_cache()
    shared = stages.shared_model(recipe)
    models, cells = _found_out(recipe, named, benchmarks, preferences, records, on_progress, shared)
    moved = measure_movement(recipe, named, movement, records, shared, on_progress) if movement else {}
    models = [replace(model, movement=moved[model.name].content if model.name in moved else None) for model in models]
    made_from = next((cell.made_from for cell in cells if cell.made_from is not None), None)
    identity = identity_of(
        cells=[cell.identities for cell in cells], names=[variant.name for variant in named], budget=budget,
        least_accuracy=least_accuracy, moved=[record.identity for record in moved.values()],
    )  # fmt: skip
    marks = {variant.name: adapter_mark(variant.adapter) for variant in named if variant.adapter is not None}
    job = Job(COMPARISON, records / "comparisons" / f"{identity}.json", identity)
    done = job.find()
    if done is not None:
        return done
    comparison = compare_models(
        models,
        reference=reference_name(recipe),
        source=shared_name(recipe.preferences.source) if preferences else None,
        sample=None if benchmarks is None else Sample(benchmarks.limit, benchmarks.seed),
        budget=budget,
        least_accuracy=least_accuracy,
    )
    made_from = made_from or provenance(recipe, "", {})
    made_from = replace(made_from, settings={**made_from.settings, ADAPTERS: marks})
    return job.finish(comparison, made_from, changed_rows(models))


def find_out(
    recipe: Recipe,
    variants: Sequence[Variant],
    *,
    benchmarks: BenchmarkPlan | None,
    preferences: bool,
    records: Path,
    shared: SharedModel,
    on_progress: OnProgress = silent,
) -> list[tuple[Findings, Provenance | None]]:
    """What each variant made of the questions and prompts, item by item: `evaluate` without a comparison."""
    findings, cells = _found_out(recipe, variants, benchmarks, preferences, records, on_progress, shared)
    return [(finding, cell.made_from) for finding, cell in zip(findings, cells, strict=True)]


def _found_out(
    recipe: Recipe,
    variants: Sequence[Variant],
    benchmarks: BenchmarkPlan | None,
    preferences: bool,
    records: Path,
    on_progress: OnProgress,
    shared: SharedModel,
) -> tuple[list[Findings], list[Cell]]:
    grid = Grid(recipe, tuple(variants), benchmarks, preferences, records)
    cells = grid.done() or grid.run(shared, on_progress)
    return [cells[variant].findings(variant) for variant in variants], [cells[variant] for variant in variants]


def _named(recipe: Recipe, variants: Sequence[Variant | str | Path]) -> list[Variant]:
    folders = [str(variant) for variant in variants if not isinstance(variant, Variant) and str(variant) != BASE]
    known = {variant.adapter: variant for variant in variants_of(folders)}
    base = Variant(reference_name(recipe))
    return [variant if isinstance(variant, Variant) else known.get(str(variant), base) for variant in variants]


def _in_cache() -> Path:
    from bapo.models import cache_folder

    return cache_folder() / "answers"


@dataclass(frozen=True)
class Grid:
    """The jobs of an evaluation."""

    recipe: Recipe
    variants: tuple[Variant, ...]
    plan: BenchmarkPlan | None
    preferences: bool
    records: Path

    @cached_property
    def _common(self) -> dict[str, Any]:
        return {
            **anchoring_settings(self.recipe),
            "store": self.recipe.anchoring.anchored_store,
            "day": str(self._day),
        }

    @cached_property
    def _day(self) -> datetime | None:
        """The day of the first adapter that has one: all variants are asked as in its training."""
        days = (day_of(Path(variant.adapter)) for variant in self.variants if variant.adapter is not None)
        return next((day for day in days if day is not None), None)

    @cached_property
    def _split(self) -> Any:
        return stages.read(self.recipe)

    @cached_property
    def _data(self) -> str:
        return stages.data_fingerprint(self._split)

    def _job(self, kind: Any, variant: Variant, **more: Any) -> Any:
        who = {"adapter": adapter_mark(variant.adapter), "system": variant.system}
        identity = identity_of(kind=kind.name, common=self._common, **who, **more)
        return Job(kind, self.records / "records" / f"{identity}.json", identity)

    def held_out(self, variant: Variant) -> Job[HeldOutScores]:
        """The job that scores held-out prompts under a variant."""
        job: Job[HeldOutScores] = self._job(HELD_OUT, variant, data=self._data)
        return job

    def asked(self, variant: Variant, benchmark: str) -> Job[AskedBenchmark]:
        """The job that asks a variant a benchmark."""
        assert self.plan is not None
        how = {"limit": self.plan.limit, "seed": self.plan.seed, "asked": self.plan.asked}
        files = _files(self.plan.data_folder, benchmark)
        job: Job[AskedBenchmark] = self._job(
            ASKED, variant, benchmark=benchmark, files=files, lm_eval=version("lm-eval"), **how
        )
        return job

    def _found(self, variant: Variant, benchmark: str) -> tuple[Record[AskedBenchmark], BenchmarkAnswers] | None:
        record = self.asked(variant, benchmark).find()
        answers = None if record is None else record.content.read()
        return None if record is None or answers is None else (record, answers)

    def _scored(self, variant: Variant) -> bool:
        return self.preferences and not variant.is_reference

    def done(self) -> dict[Variant, Cell] | None:
        """All that is asked for, if it is there."""
        stages.check(self.recipe, [variant.adapter for variant in self.variants if variant.adapter is not None])
        if self.preferences:
            check_split(self.recipe, self.variants)
        cells = {}
        for variant in self.variants:
            asked = {name: self._found(variant, name) for name in (self.plan.names if self.plan else ())}
            held_out = self.held_out(variant).find() if self._scored(variant) else None
            if any(cell is None for cell in asked.values()) or (self._scored(variant) and held_out is None):
                return None
            cells[variant] = Cell({name: cell for name, cell in asked.items() if cell is not None}, held_out)
        return cells

    def run(self, shared: SharedModel, on_progress: OnProgress) -> dict[Variant, Cell]:
        """Do what is not done yet, with one model in memory."""
        self._read_benchmarks(on_progress)
        on_progress("loading the model", 0, 1)
        with shared.wearing(self.recipe.model.reference_adapter) as base:
            on_progress("loading the model", 1, 1)
            for variant in self.variants:
                stages.check_base(self.recipe, variant.adapter, base)
            known = self._known(base, on_progress)
            cells = {variant: self._evaluate(variant, base, known, on_progress) for variant in self._unworn}
        for variant in self.variants:
            if variant not in cells:
                with shared.wearing(variant.adapter) as model:
                    cells[variant] = self._evaluate(variant, model, known, on_progress)
        return cells

    @property
    def _unworn(self) -> list[Variant]:
        return [variant for variant in self.variants if variant.adapter is None]

    def _read_benchmarks(self, on_progress: OnProgress) -> None:
        """What cannot be read should be known before anything costly is done."""
        if self.plan is None:
            return
        from bapo.evaluation.benchmarks import load_tasks

        for done, name in enumerate(self.plan.names):
            on_progress("reading benchmarks", done, len(self.plan.names), name)
            load_tasks(name, asked=self.plan.asked, data_folder=self.plan.data_folder)
        on_progress("reading benchmarks", len(self.plan.names), len(self.plan.names))

    def _known(self, base: LoadedModel, on_progress: OnProgress) -> _Known:
        """What all variants share: the held-out prompts, what the reference says to them, and the day."""
        from bapo.likelihood import ResponseScorer
        from bapo.models import model_fingerprint, tokenizer_fingerprint

        today = None
        if base.chat.today is not None:
            today = self._day or stages.open_store(self.recipe, base).today
        held_out = reference = None
        if self.preferences:
            anchored = stages.anchor_split(self.recipe, self._split, base, on_progress, today=today, data=self._data)
            held_out = anchored.held_out
            if any(self._scored(variant) for variant in self.variants):
                reference = self._reference_logps(base, held_out, on_progress)
        on_progress("measuring what rounding does", 0, 1)
        made_on = ResponseScorer(base.model, base.kernels).made_on()
        on_progress("measuring what rounding does", 1, 1)
        return _Known(
            held_out, reference, today, made_on, model_fingerprint(base.model), tokenizer_fingerprint(base.tokenizer)
        )

    def _reference_logps(self, base: LoadedModel, held_out: AnchoredPreferences, on_progress: OnProgress) -> Logps:
        """Of held-out prompts, in rows that depend on them alone; kept for all policies that are scored here."""
        from bapo.evaluation import held_out_logps
        from bapo.models import machine, model_fingerprint

        made_on, weights = machine(base.model.device), model_fingerprint(base.model)
        who = Variant(reference_name(self.recipe))
        job: Job[ReferenceLogps] = self._job(REFERENCE_LOGPS, who, data=self._data, machine=made_on, weights=weights)
        done = job.find()
        if done is not None:
            return done.content.logps
        stage = f"{reference_name(self.recipe)}: held-out prompts"
        logps = held_out_logps(base.model, held_out, kernels=base.kernels, stage=stage, on_progress=on_progress)
        made_from = provenance(self.recipe, weights, made_on, data=self._data)
        return job.finish(ReferenceLogps(tuple(logps)), made_from).content.logps

    def _evaluate(self, variant: Variant, model: LoadedModel, known: _Known, on_progress: OnProgress) -> Cell:
        from bapo.models import tokenizer_fingerprint

        model = replace(model, chat=model.chat.at(known.today))
        if known.held_out is not None and tokenizer_fingerprint(model.tokenizer) != known.tokenizer:
            logger.warning(
                "Preferences are scored in the base model's tokens, which are not those of %s.", variant.name
            )
        asked = self._ask(variant, model, known, on_progress)
        held_out = self._score(variant, model, known, on_progress) if self._scored(variant) else None
        return Cell(asked, held_out)

    def _made_from(self, variant: Variant, known: _Known, **settings: Any) -> Provenance:
        data = self._data if self.preferences else None
        asked = {"system": variant.system, **settings}
        return provenance(self.recipe, known.weights, known.made_on, data=data, adapter=variant.adapter, **asked)

    def _ask(
        self, variant: Variant, model: LoadedModel, known: _Known, on_progress: OnProgress
    ) -> dict[str, tuple[Record[AskedBenchmark], BenchmarkAnswers]]:
        if self.plan is None:
            return {}
        from bapo.evaluation.asking import EvaluatedModel

        cells = {}
        evaluated = EvaluatedModel(model, system=variant.system, folder=self.plan.answers_folder)
        evaluated.check(self.plan)
        for name in self.plan.names:
            cell = self._found(variant, name)
            if cell is None:
                content = evaluated.ask(
                    name, self.plan, name=variant.name, rounding=variant.is_reference, on_progress=on_progress
                )
                made_from = self._made_from(variant, known, benchmark=name, limit=self.plan.limit, seed=self.plan.seed)
                record = self.asked(variant, name).finish(content, made_from)
                answers = content.read()
                if answers is None:
                    raise BapoError(f"The answers to {name} were deleted while they were asked: start again.")
                cell = (record, answers)
            cells[name] = cell
        return cells

    def _score(
        self, variant: Variant, model: LoadedModel, known: _Known, on_progress: OnProgress
    ) -> Record[HeldOutScores]:
        from bapo.evaluation import evaluate_preferences, prompted
        from bapo.models import context_length

        job = self.held_out(variant)
        done = job.find()
        if done is not None:
            return done
        assert known.held_out is not None
        asked = known.held_out
        if variant.system is not None:
            asked = prompted(asked, model.chat, variant.system, reach=context_length(model.model))
        report, prompts = evaluate_preferences(
            model.model,
            asked,
            reference=known.reference,
            kernels=model.kernels,
            stage=f"{variant.name}: held-out prompts",
            on_progress=on_progress,
        )
        content = HeldOutScores(
            variant.name, shared_name(self.recipe.preferences.source), reference_name(self.recipe), report
        )
        return job.finish(content, self._made_from(variant, known), to_rows(prompts))


@dataclass(frozen=True)
class _Known:
    """What all variants share once the base is in memory."""

    held_out: AnchoredPreferences | None
    reference: Logps | None
    today: datetime | None
    made_on: dict[str, Any]
    weights: str
    tokenizer: str


def _files(folder: Path | None, benchmark: str) -> dict[str, Any]:
    """By what a benchmark's questions, and how they are asked, are known before they are read.

    Of local questions names, sizes and times of the files; of the hub's nothing is known. A task that is not of this
    package, whose version is in every identity, is known by the content of its files.
    """
    from bapo.evaluation import BENCHMARKS

    asked = BENCHMARKS[benchmark]
    local = [] if folder is None else [path for name in asked.files.values() if (path := folder / name).is_file()]
    known: dict[str, Any] = {"hub": folder is None}
    known |= {str(path.resolve()): [path.stat().st_size, path.stat().st_mtime_ns] for path in local}
    module = sys.modules[type(asked).__module__]
    if not module.__name__.startswith("bapo."):
        own = [Path(module.__file__)] if module.__file__ else []
        own += sorted(path for path in asked.task_folder.rglob("*") if path.is_file()) if asked.task_folder else []
        known |= {str(path): checksum_of_file(path) for path in own if path.suffix != ".pyc"}
    return known
