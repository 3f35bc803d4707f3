"""The report of a study, put together from the records of its jobs, and kept as a record itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from statistics import mean
from typing import Any

from bapo.errors import BapoError
from bapo.files import checksum_of_file
from bapo.jobs import Recipe
from bapo.results import (
    BASE,
    STUDY_REPORT,
    Behaviour,
    EvaluatedCell,
    Provenance,
    Record,
    StudyReport,
    evaluated_cell,
    flipped_questions,
    identity_of,
    study_report,
)
from bapo.results.study_cells import OF_DATA
from bapo.study.grid import Study, StudyJob
from bapo.study.ledger import Ledger


def report(study: Study) -> Record[StudyReport]:
    """The report of what is done; made again where something was done since. Reads neither models nor data.

    Raises:
        BapoError: no evaluation is done, or a record is damaged.
    """
    ledger = Ledger(study)
    finished = {key: ledger.finished(job) for key, job in study.jobs.items()}
    done = {key: record for key, record in finished.items() if record is not None}
    path = study.folder / "report.json"
    files = {key: checksum_of_file(ledger.path(study.jobs[key])) for key in done}  # which say what their items are
    identity = identity_of(study=ledger.identity(), **files)
    with suppress(BapoError):  # one of another version, or damaged, is made again
        known = STUDY_REPORT.find(path, identity)
        if known is not None:
            return known
    bases: dict[str, EvaluatedCell] = {}
    weights: dict[str, tuple[str, str]] = {}
    cells: list[EvaluatedCell] = []
    before: dict[str, list[dict[str, Any]]] = {}
    flips: list[dict[str, Any]] = []
    spoken: dict[str, dict[str, Behaviour]] = {}
    varied = list(dict.fromkeys(key for cell in study.cells.values() for key in cell.varied))
    evaluated = [study.jobs[key] for key in done if study.jobs[key].work == "evaluate"]
    for job in sorted(evaluated, key=lambda job: job.of != BASE):  # bases first; items of runs are not held together
        record = done[job.key]
        _check_weights(job, record, weights)
        cell = evaluated_cell(record, **_place(study, job, varied))
        if job.of == BASE:
            bases[cell.model] = cell
            before[cell.model] = record.items()
        else:
            cells.append(cell)
            flips += flipped_questions(cell, before.get(cell.model, []), record.items())
            said = spoken.setdefault(cell.model, {})
            if record.content.base_behaviour is not None and (cell.preference not in said or not cell.varied):
                said[cell.preference] = record.content.base_behaviour
    if not bases and not cells:
        raise BapoError(f"No evaluation of {study.path} is done: start it with bapo study run {study.path}.")
    content = study_report(bases, cells, jobs=len(study.jobs), done=len(done), spoken=spoken)
    made_from = Provenance(model="", weights="", settings={"study": str(study.path.name), "jobs": sorted(done)})
    return STUDY_REPORT.write(path, content, identity=identity, made_from=made_from, items=flips)


def _check_weights(job: StudyJob, record: Record[Any], known: dict[str, tuple[str, str]]) -> None:
    """What is compared must be of the same weights in the same precision, wherever it was computed.

    Raises:
        BapoError: the record is of others than one before it.
    """
    model, now = identity_of(**job.recipe.model.model_dump(mode="json")), record.made_from.weights
    first, weights = known.setdefault(model, (job.key, now))
    if now and weights and now != weights:
        raise BapoError(
            f"{job.key} and {first} were done with different weights of {job.recipe.model.name}, or in different "
            f"precisions: delete the records of one kind in {record.path.parent}, and start bapo study run again."
        )


MOST_PLACES = 12
"""Models and preferences that figures of training show one by one; of more, the mean over a model's preferences."""

Log = tuple[Mapping[str, float], ...]


def logs_by_method(study: Study) -> dict[str, dict[str, Log]]:
    """What the trainer logged, by model and preference and by method; of runs that are plain, the first seed."""
    by_place: dict[tuple[str, str], dict[str, Log]] = {}
    for key, log in logs(study).items():
        cell = study.cells[key]
        if cell.plain:
            by_place.setdefault((cell.model, cell.preference), {}).setdefault(cell.method, log)
    if len(by_place) <= MOST_PLACES:
        return {", ".join(place): of_methods for place, of_methods in by_place.items()}
    by_model: dict[str, dict[str, list[Log]]] = defaultdict(lambda: defaultdict(list))
    for (model, _), of_methods in by_place.items():
        for method, log in of_methods.items():
            by_model[model][method].append(log)
    return {
        f"{model}, mean of {max(map(len, of_methods.values()))}": {
            method: _mean_log(logs) for method, logs in of_methods.items()
        }
        for model, of_methods in by_model.items()
    }


def _mean_log(logs: Sequence[Log]) -> Log:
    """Step by step the mean of what several trainings logged."""
    values: dict[float, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for entry in (entry for log in logs for entry in log if "step" in entry):
        for name, value in entry.items():
            values[entry["step"]][name].append(value)
    return tuple({name: mean(of) for name, of in values[step].items()} for step in sorted(values))


def logs(study: Study) -> dict[str, Log]:
    """What the trainer logged of each finished training, by cell."""
    ledger = Ledger(study)
    records = {job.of: ledger.finished(job) for job in study.jobs.values() if job.work == "train"}
    return {key: record.content.log for key, record in records.items() if record is not None}


def _place(study: Study, job: StudyJob, varied: Sequence[str]) -> dict[str, Any]:
    """Where an evaluation is in the grid, in which so many keys are varied."""
    cell = study.cells.get(job.of)
    if cell is not None:
        settings = {key: _value(cell.recipe, key) for key in varied}
        where = {"model": cell.model, "preference": cell.preference, "method": cell.method, "seed": cell.seed}
        return {**where, "varied": cell.varied, "settings": settings}
    shared = study.cell_of(job)
    if job.of == BASE:
        return {"model": shared.model, "preference": "", "method": BASE, "seed": 0, "varied": {}, "settings": {}}
    where = {"model": shared.model, "preference": shared.preference, "method": job.of, "seed": 0, "trained": False}
    of_data = {key: value for key, value in shared.varied.items() if key.startswith(OF_DATA)}
    return {**where, "varied": of_data, "settings": {key: _value(shared.recipe, key) for key in of_data}}


def _value(recipe: Recipe, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(recipe, section), name)
