"""Jobs: one unit of work each, known by an identity and done when its record is there.

The identity hashes every setting that can change the outcome, the data in words, and the marks of model and adapter, so
it is known before anything is loaded. Reading preferences is the one job that is done each time: only so is a file that
has changed known.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from bapo.files import make_folder
from bapo.jobs import stages, training
from bapo.jobs.kept_folders import check_free
from bapo.jobs.marks import adapter_mark, model_mark
from bapo.jobs.places import RUN, remember
from bapo.jobs.recipe import Recipe
from bapo.preferences import Preferences, Split, doubtful
from bapo.progress import OnProgress, silent
from bapo.results import (
    ANCHORED,
    BASE,
    AnchoredSummary,
    Kind,
    Provenance,
    Record,
    Run,
    day_of,
    identity_of,
    read_run,
    record_of,
    shared_name,
)

if TYPE_CHECKING:
    from bapo.anchoring import AnchoredPreferences, AnchorStore
    from bapo.models import LoadedModel, SharedModel

Content = TypeVar("Content")


@dataclass(frozen=True)
class Job(Generic[Content]):
    """One unit of work.

    Attributes:
        kind: of its record.
        path: where the record lies once it is done.
        identity: hash of every setting that can change the outcome, and of the data.
    """

    kind: Kind[Content]
    path: Path
    identity: str

    def find(self) -> Record[Content] | None:
        """Its record, if it is done.

        Raises:
            BapoError: the record is damaged, or of another version.
        """
        return self.kind.find(self.path, self.identity)

    def finish(
        self, content: Content, made_from: Provenance, items: Sequence[Mapping[str, Any]] = ()
    ) -> Record[Content]:
        """Write its record, by which it is done."""
        return self.kind.write(self.path, content, identity=self.identity, made_from=made_from, items=items)


def anchoring_settings(recipe: Recipe) -> dict[str, Any]:
    """Of a recipe, what can change base responses, token ids and reference log-probs."""
    lengths = recipe.preferences.model_dump(include={"max_prompt_tokens", "max_response_tokens", "plain"})
    return {"model": model_mark(recipe.model), **recipe.anchoring.model_dump(exclude={"anchored_store"}), **lengths}


def reference_name(recipe: Recipe) -> str:
    """What log-ratios are counted from: the base, or the adapter that the model already had."""
    return shared_name(recipe.model.reference_adapter or BASE)


def provenance(
    recipe: Recipe,
    weights: str,
    made_on: Mapping[str, Any],
    *,
    data: str | None = None,
    adapter: str | None = None,
    **settings: Any,
) -> Provenance:
    """Where a record of a recipe comes from; ``weights`` is the reference's fingerprint."""
    return Provenance(
        model=recipe.model.name,
        weights=weights,
        adapter=adapter,
        adapter_weights=adapter_mark(adapter),
        data={} if data is None else {"preferences": data},
        settings={"recipe": recipe.model_dump(mode="json"), **settings},
        made_on=made_on,
    )


def anchor(recipe: Recipe, on_progress: OnProgress = silent) -> Record[AnchoredSummary]:
    """The job `bapo anchor`: base responses and reference log-probs of all preferences.

    If it is done, no model is loaded.

    Args:
        recipe: names the model and the preferences.
        on_progress: told how far it is.
    """
    preferences = stages.read_all(recipe)
    data = preferences.fingerprint()
    job = Job(ANCHORED, *_place_of(recipe, data))
    done = job.find()
    if done is not None and done.content.is_whole:
        return done
    on_progress("loading the model", 0, 1)
    model = stages.load(recipe)
    on_progress("loading the model", 1, 1)
    store = stages.open_store(recipe, model)
    anchored = stages.anchor_preferences(recipe, preferences, model, on_progress, store=store, data=data)
    made_from = provenance(recipe, anchored.reference, made_on_by(model, anchored), data=data)
    return job.finish(_summary(store, preferences, anchored), made_from)


def train(
    recipe: Recipe,
    folder: Path,
    on_progress: OnProgress = silent,
    *,
    shared: SharedModel | None = None,
    split: Split | None = None,
) -> tuple[Run, Split, Mapping[str, int]]:
    """The job `bapo train`: the adapter of the recipe's objective, anchoring first what is not anchored yet.

    Args:
        recipe, folder: what is trained, and where to.
        on_progress: told how far it is.
        shared: the recipe's model, if the caller has it (`stages.shared_model`).
        split: the preferences, where they are not those that the recipe names.

    Returns:
        The run; the preferences; and what was dropped or cut in tokens, by reason. No model is loaded if it is done.

    Raises:
        BapoError: the folder holds a run with other settings or on other data, or what the stages raise.
    """
    objective = recipe.training.objective
    stages.check(recipe)
    split = split or stages.read(recipe)
    data, today = stages.data_fingerprint(split), day_of(folder)
    training.check_run(recipe, objective, folder, data)
    done = _trained(recipe, folder, data)
    if done is not None:
        training.tidy(folder, on_progress)
        return done[0], split, done[1]
    check_free(folder, RUN)
    remember(make_folder(folder), recipe, RUN)
    shared = shared or stages.shared_model(recipe)
    on_progress("loading the model", 0, 1)
    with shared.wearing(recipe.model.reference_adapter) as model:
        on_progress("loading the model", 1, 1)
        anchored = stages.anchor_split(recipe, split, model, on_progress, today=today, folder=folder, data=data).train
    del model  # where training loads one of its own, `shared` lets go of it
    run = training.train(
        recipe, objective, anchored, folder, on_progress, shared=shared, data=data, mark=mark_of(recipe)
    )
    return run, split, anchored.counts


def _trained(recipe: Recipe, folder: Path, data: str) -> tuple[Run, Mapping[str, int]] | None:
    """A finished run of this model on these data, by all that is known before a model is loaded."""
    record = record_of(folder)
    if record is None or record.get("data") != data or record.get("mark") != mark_of(recipe):
        return None
    return read_run(folder), record.get("counts", {})


def mark_of(recipe: Recipe) -> str:
    """What a run depends on beside its settings and its data."""
    return identity_of(model=model_mark(recipe.model), processes=processes())


def _place_of(recipe: Recipe, data: str) -> tuple[Path, str]:
    store = recipe.anchoring.anchored_store
    identity = identity_of(
        data=data, folder=str(Path(store).resolve()) if store else None, **anchoring_settings(recipe)
    )
    from bapo.models import cache_folder

    folder = make_folder(Path(store) if store else cache_folder() / "anchors")
    return folder / "records" / f"{identity}.json", identity


def made_on_by(model: LoadedModel, anchored: AnchoredPreferences) -> dict[str, Any]:
    """The machine, and the model's noise floor on it by a few of these tokens."""
    from bapo.anchoring import few_tokens
    from bapo.likelihood import ResponseScorer

    return ResponseScorer(model.model, model.kernels).made_on(few_tokens(anchored))


def _summary(store: AnchorStore, preferences: Preferences, anchored: AnchoredPreferences) -> AnchoredSummary:
    bases = [base for group in anchored.groups for base in group.bases]
    return AnchoredSummary(
        folder=str(store.folder.resolve()),
        files={path.name: path.stat().st_size for path in sorted(store.folder.glob("*.jsonl"))},
        prompts=len(anchored.groups),
        pairs=anchored.pair_count,
        base_responses=len(bases),
        ended_by_themselves=sum(base.ended for base in bases),
        mean_base_tokens=sum(len(base.ids) for base in bases) / len(bases),
        counts={**preferences.dropped, **anchored.counts},
        doubtful=doubtful(preferences),
        today=_iso(anchored.today),
    )


def _iso(day: datetime | None) -> str | None:
    return None if day is None else day.isoformat()


def processes() -> int:
    """Of this command, which share a step's batch."""
    return int(os.environ.get("WORLD_SIZE", "1"))
