"""Doing one job of a study, wherever it runs.

    python -m bapo.study.work FILE FOLDER [--data-folder FOLDER] [--storage URL] [--job KEY]

does one in a process of its own, or without --job those whose keys it is told on standard input, a line each, with a
line of its own behind each; what it found is in the record, and why it failed in the record of that.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bapo.errors import BapoError, first_line
from bapo.files import locked, make_folder
from bapo.jobs import Recipe, Variant
from bapo.jobs.marks import model_mark
from bapo.jobs.movement import MovementPlan, measure_movement
from bapo.preferences import Split, read_preferences
from bapo.progress import OnProgress, silent
from bapo.results import (
    BASE,
    AskedQuestions,
    FinishedJob,
    Provenance,
    identity_of,
    question_rows,
    record_of,
    to_rows,
)
from bapo.study.grid import PLACES, Study, StudyJob, open_study
from bapo.study.ledger import SAMPLED_PAIRS, TRAINED_RUN, Ledger
from bapo.study.speech import in_words, speak
from bapo.study.storage import Storage

if TYPE_CHECKING:
    from bapo.evaluation import BenchmarkPlan
    from bapo.models import SharedModel

_HELD: dict[str, SharedModel] = {}
"""The model of this process's last job, which the next one most often has too."""


def do(study: Study, job: StudyJob, on_progress: OnProgress = silent) -> bool:
    """Do a job, or find it done; two that do the same one wait for each other.

    Returns:
        Whether it is done. Why not is in the ledger: a failure of one job stops no other.
    """
    if study.storage is None:
        return _do(study, job, on_progress)
    storage = Storage(study.storage)
    storage.fetch_needed(study, job)
    with storage.showing(study, job):
        done = _do(study, job, on_progress)
    storage.push(study, job)
    return done


def _do(study: Study, job: StudyJob, on_progress: OnProgress) -> bool:
    ledger = Ledger(study)
    ledger.prepare()
    lock = make_folder(study.folder / "running") / f"{job.key}.lock"
    with locked(lock, lambda: on_progress(job.key, 0, 1, "another process does it")):
        if ledger.finished(job) is not None and ledger.has_artifact(job):
            return True
        start = time.perf_counter()
        try:
            _check_needs(study, ledger, job)
            with ledger.alive(job, on_progress) as tell:
                found, items, made_from = _WORK[job.work](study, ledger, job, tell)
        except BapoError as error:
            ledger.fail(job, str(error))
            return False
        except Exception as error:  # whatever a library raises: the study goes on, and says so
            let_go()
            ledger.fail(job, f"{type(error).__name__}: {first_line(error)}")
            return False
        seconds = time.perf_counter() - start
        content = FinishedJob(job.key, job.of, job.work, seconds, _peak_memory(), **found)
        ledger.finish(job, content, _without_places(study, job, made_from), items)
        return True


def _check_needs(study: Study, ledger: Ledger, job: StudyJob) -> None:
    """Nothing is made of an adapter or of pairs that are not those of the study's jobs.

    Raises:
        BapoError: they are not.
    """
    for needed in (study.jobs[key] for key in job.needs):
        if not ledger.has_artifact(needed):
            raise BapoError(
                f"{ledger.artifact(needed)} does not hold what {needed.key} left: delete what is there, and start the "
                "study again."
            )


def _peak_memory() -> int:
    """The most memory that this process has had, bytes."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _without_places(study: Study, job: StudyJob, made_from: Provenance) -> Provenance:
    """What is kept to be shared names no folder of this machine."""
    adapter = None if made_from.adapter is None else f"runs/{Path(made_from.adapter).name}"
    settings = {**made_from.settings, "recipe": job.recipe.model_dump(mode="json", exclude=PLACES)}
    return replace(made_from, adapter=adapter, settings=settings)


def _model(recipe: Recipe) -> SharedModel:
    """The recipe's model, loaded, hashed and probed once for all jobs of this process that follow each other."""
    from bapo.jobs import stages

    asked = stages.bare(recipe).model
    key = identity_of(mark=model_mark(asked), **asked.model_dump(mode="json"))  # of its files too, which may change
    if key not in _HELD:
        let_go()
        _HELD[key] = stages.shared_model(recipe)
    return _HELD[key]


def let_go() -> None:
    """Keep no model for a next job."""
    for model in _HELD.values():
        model.drop()
    _HELD.clear()
    gc.collect()  # trainers are in circles, and hold what they trained


Found = tuple[dict[str, Any], list[dict[str, Any]], Provenance]


def _placed(study: Study, job: StudyJob) -> Recipe:
    """The job's recipe with the places of this study."""
    recipe = job.recipe
    anchoring = recipe.anchoring.model_copy(update={"anchored_store": str(study.store_of(job))})
    data_folder = str(study.data_folder) if study.data_folder else recipe.preferences.data_folder
    preferences = recipe.preferences.model_copy(update={"data_folder": data_folder})
    return recipe.model_copy(update={"anchoring": anchoring, "preferences": preferences})


def _anchor(study: Study, ledger: Ledger, job: StudyJob, on_progress: OnProgress) -> Found:
    from bapo.jobs import stages
    from bapo.jobs.job import made_on_by, provenance

    recipe = _placed(study, job)
    stages.check(recipe)
    split = stages.read(recipe)
    data = stages.data_fingerprint(split)
    shared, adapter = _model(recipe), recipe.model.reference_adapter
    stages.check_base(stages.bare(recipe), adapter, shared.bare)
    with shared.wearing(adapter) as model:
        anchored = stages.anchor_split(recipe, split, model, on_progress, folder=study.folder, data=data)
        made_on = made_on_by(model, anchored.train)
    counts: dict[str, float] = {}
    for side, part in (("training", anchored.train), ("held-out", anchored.held_out)):
        bases = [base for group in part.groups for base in group.bases]
        counts |= {f"{side} prompts": len(part.groups), f"{side} pairs": part.pair_count}
        counts |= {f"{side} base tokens": sum(len(base.ids) for base in bases)}
    return {"counts": counts}, [], provenance(recipe, anchored.train.reference, made_on, data=data)


def _read(study: Study, ledger: Ledger, job: StudyJob, recipe: Recipe) -> Split:
    """The preferences; those of the jobs that this one needs must have been the same: jobs are known by their names.

    Raises:
        BapoError: the data have changed since.
    """
    from bapo.jobs import stages

    split = stages.read(recipe)
    data = stages.data_fingerprint(split)
    for key in job.needs:
        needed = study.jobs[key]
        record = ledger.finished(needed)
        known = None if record is None else record.made_from.data.get("preferences")
        if known is not None and known != data:
            raise BapoError(
                f"{recipe.preferences.source} is not as it was when {key} was done: put it back, or name another "
                "folder with --output."
            )
    return split


def _sample(study: Study, ledger: Ledger, job: StudyJob, on_progress: OnProgress) -> Found:
    """Pairs of the model's own responses, judged by the adapter of another cell."""
    from bapo.jobs import stages
    from bapo.jobs.sampling import sample

    recipe, cell = _placed(study, job), study.cells[job.of]
    data = stages.data_fingerprint(_read(study, ledger, job, recipe))
    assert cell.sampling is not None
    path, reward = ledger.sample_path(job), str(study.folder / "runs" / cell.rewarded_by)
    make_folder(path.parent)
    record = sample(
        recipe, reward, path, cell.sampling.how, on_progress=on_progress, shared=_model(recipe),
        scores=study.folder / "anchored",
    )  # fmt: skip
    found = record.content
    counts = {"prompts": found.prompts, "candidates": found.candidates, "pairs": found.pairs}
    made_from = replace(record.made_from, data={"preferences": data, SAMPLED_PAIRS: found.checksum_of_file})
    return {"counts": counts}, [], made_from


def _train(study: Study, ledger: Ledger, job: StudyJob, on_progress: OnProgress) -> Found:
    from bapo.jobs import stages
    from bapo.jobs.job import provenance, train

    recipe, cell = _placed(study, job), study.cells[job.of]
    split = given = _read(study, ledger, job, recipe)
    how: dict[str, Any] = {}
    if cell.sampling is not None:
        how = {"sampling": {**cell.sampling.model_dump(), "rewarded_by": cell.rewarded_by}}
        sampled = read_preferences(str(ledger.sample_path(job)), plain=recipe.preferences.plain)
        split = replace(given, train=sampled)
    folder = make_folder(ledger.run_folder(job))
    run, _, _ = train(recipe, folder, on_progress, shared=_model(recipe), split=split)
    gc.collect()  # what the optimizer kept; trainers are in circles
    record, data = record_of(run.folder) or {}, stages.data_fingerprint(given)
    counts = {"pairs": float(record.get("pairs", 0)), "steps": float(record.get("steps", 0))}
    how[TRAINED_RUN] = record.get("identity")
    made_from = provenance(recipe, record.get("reference", ""), record.get("made_on", {}), data=data, **how)
    return {"log": run.log, "counts": counts}, [], made_from


def _evaluate(study: Study, ledger: Ledger, job: StudyJob, on_progress: OnProgress) -> Found:
    from bapo.jobs.evaluation import find_out
    from bapo.jobs.job import provenance

    recipe, records = _placed(study, job), study.folder / "records"
    split = _read(study, ledger, job, recipe) if job.needs else None
    adapter = str(study.folder / "runs" / job.of) if job.of in study.cells else None
    system = in_words(split.train, job.examples) if split is not None and job.examples else job.system
    variant, shared = Variant(job.of, adapter=adapter, system=system), _model(recipe)
    plan, preferences = _questions(study, recipe), job.of != BASE
    ((findings, made_from),) = find_out(
        recipe, [variant], benchmarks=plan, preferences=preferences, records=records, shared=shared,
        on_progress=on_progress,
    )  # fmt: skip
    rows = _rows(prompt=to_rows(findings.prompts))
    for answers in findings.benchmarks.values():
        rows += _rows(question=question_rows(answers))
    content: dict[str, Any] = {
        "preferences": findings.preferences,
        "benchmarks": {
            name: AskedQuestions(
                answers.title,
                answers.kind,
                answers.questions,
                len(answers.answers),
                findings.seconds.get(name, 0.0),
                answers.rounding,
            )
            for name, answers in findings.benchmarks.items()
        },
    }
    if study.evaluation.divergence and adapter is not None:
        asked = MovementPlan(study.evaluation.divergence, study.evaluation.other_topics)
        moved = measure_movement(recipe, [variant], asked, records, shared, on_progress)[variant.name]
        content["movement"] = moved.content
        rows += _rows(moved=moved.items())
    if study.evaluation.questions or (study.evaluation.answers and preferences):
        spoken, numbers = speak(study, recipe, variant, shared, on_progress)
        content |= spoken
        rows += _rows(answer=numbers)
    weights, made_on = (made_from.weights, made_from.made_on) if made_from else ("", {})
    evaluation = study.evaluation.model_dump()
    return content, rows, provenance(recipe, weights, made_on, adapter=adapter, evaluation=evaluation)


def _questions(study: Study, recipe: Recipe) -> BenchmarkPlan | None:
    from bapo.evaluation import BenchmarkPlan, local_folder

    asked = study.evaluation
    if not asked.benchmarks:
        return None
    return BenchmarkPlan(
        tuple(asked.benchmarks),
        limit=asked.limit,
        seed=asked.question_seed,
        data_folder=local_folder(recipe.preferences.data_folder),
        answers_folder=study.folder / "answers",
    )


def _rows(**of_kind: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Items of one kind, each in the column of its kind."""
    return [{kind: row} for kind, rows in of_kind.items() for row in rows]


_WORK = {"anchor": _anchor, "train": _train, "sample": _sample, "evaluate": _evaluate}


def main(arguments: list[str]) -> int:
    """Do the jobs that are named, quietly; 0 if the one that --job names is done."""
    parser = argparse.ArgumentParser(prog="python -m bapo.study.work")
    for name in ("file", "folder"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--data-folder", type=Path)
    parser.add_argument("--storage")
    parser.add_argument("--job")
    given = parser.parse_args(arguments)
    file = (
        given.file
        if given.file.is_file() or given.storage is None
        else Storage(given.storage).fetch_study(given.folder)
    )
    study = open_study(file, given.folder, given.data_folder, given.storage)
    if given.job is None:
        _do_what_is_told(study)
        return 0
    try:
        return 0 if _done(study, study.jobs[given.job]) else 1
    finally:
        let_go()  # the process may go on with something else


def _do_what_is_told(study: Study) -> None:
    """Jobs by the lines of standard input; all that they print goes to a log of each."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        for line in sys.stdin:
            job = study.jobs[line.strip()]
            with (make_folder(study.folder / "running") / f"{job.key}.log").open("wb") as log:
                sys.stdout.flush()
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            _done(study, job)
            answers.write(f"{job.key}\n")
            answers.flush()


def _done(study: Study, job: StudyJob) -> bool:
    """As `do`; a storage that cannot be reached is a failure of the job."""
    try:
        return do(study, job)
    except BapoError as error:
        Ledger(study).fail(job, str(error))
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
