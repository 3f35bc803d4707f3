"""`bapo study`: a grid of runs from one file, wherever there is room, stopped and gone on with."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from bapo.cli import options
from bapo.errors import BapoError

if TYPE_CHECKING:
    from bapo.results import EstimatedJob
    from bapo.study import Study

UNFINISHED = 1
"""Exit code of a study of which jobs failed; 2 is that of every error."""

app = typer.Typer(
    help="A grid of runs from one file: plan it, run it, see how far it is, report it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

File = Annotated[Path, typer.Argument(help="The study file (.yaml).")]
Folder = Annotated[
    Path | None, typer.Option("--output", "-o", help="The study's folder; beside the file, with its name, by default.")
]
Gpu = Annotated[str | None, typer.Option(help="Estimate for this GPU, such as a100, instead of this machine.")]
Share = Annotated[float, typer.Option(help="With --gpu: share of the peak of its datasheet that is reached.")]
Processes = Annotated[int, typer.Option(help="Jobs at once, each in a process with its share of the cores.")]
Ray = Annotated[
    str | None, typer.Option(help="Run on a Ray cluster: its address, or local for one on this machine (bapo[ray]).")
]
SharedStorage = Annotated[
    str | None,
    typer.Option(
        "--storage", help="Where workers that share no disk share records and artifacts, such as s3://b/study."
    ),
]
Cpus = Annotated[float, typer.Option(help="With --ray: processors for each job.")]
Gpus = Annotated[float, typer.Option(help="With --ray: GPUs for each job.")]
MemoryGib = Annotated[float, typer.Option(help="With --ray: memory for each job, GiB; 0 asks for none.")]


@app.command()
def plan(
    file: File,
    output: Folder = None,
    gpu: Gpu = None,
    share: Share = 0.3,
    data_folder: options.DataFolder = None,
    as_json: options.AsJson = False,
) -> None:
    """Show the grid before anything runs: runs, jobs, what is shared, what is done, and what it will take.

    Loads no model of it. Tokens, operations, hours, memory and disk are estimated from the sizes that the file states,
    and those of models and data on this machine where it does not: for this machine, which is measured once for half a
    minute, or for a named GPU.
    """
    from bapo.cli.console import out, print_json, print_table
    from bapo.reporting import estimate_rows
    from bapo.results import StudyWork

    study = _opened(file, output, data_folder)
    states = _states(study)
    estimates, of = _estimated(study, gpu, share, quiet=as_json)
    if as_json:
        known = {"estimates": [asdict(each) for each in estimates], "estimates_of": of}
        print_json({"folder": str(study.folder), "cells": list(study.cells), "jobs": states, **known})
        return
    rows: list[tuple[str, ...]] = []
    for work in get_args(StudyWork):
        keys = {key for key, job in study.jobs.items() if job.work == work}
        if not keys:
            continue
        users = sum(any(needed in keys for needed in job.needs) for job in study.jobs.values())
        done = sum(states[key] == "done" for key in keys)
        rows.append((work, str(len(keys)), str(done), f"{users} jobs need them" if users else ""))
    print_table(("work", "jobs", "done", ""), rows, title=f"{file}: {len(study.cells)} runs, {len(study.jobs)} jobs")
    cells: list[tuple[str, ...]] = [
        (cell.model, cell.preference, cell.method, str(cell.seed), _varied(cell.varied), states[f"train_{cell.key}"])
        for cell in study.cells.values()
    ]
    print_table(("model", "preference", "method", "seed", "varied", "training"), cells)
    if estimates:
        print_table(*estimate_rows(estimates), title=f"What it takes on {of}")
    else:
        out.print(of, soft_wrap=True)
    out.print(f"folder {study.folder}", soft_wrap=True)


def _estimated(study: Study, gpu: str | None, share: float, *, quiet: bool) -> tuple[list[EstimatedJob], str]:
    """What jobs take, and on which machine; or nothing, and why."""
    from bapo.cli.console import live_progress
    from bapo.study import Ledger, datasheet_rates, estimate, measured_rates, with_counted_sizes

    try:
        with live_progress(quiet=quiet, libraries=False):
            study = with_counted_sizes(study)
    except BapoError as error:
        return [], f"Nothing is estimated: {error}"
    if gpu is not None:
        rates = datasheet_rates(gpu, share)
    else:
        try:
            with live_progress(quiet=quiet) as on_progress:
                rates = measured_rates(on_progress)
        except BapoError as error:
            return [], f"This machine could not be measured, so nothing is estimated: name a GPU with --gpu. {error}"
    ledger = Ledger(study)
    finished = {key: ledger.finished(job) for key, job in study.jobs.items()}
    took = {key: record.content.seconds for key, record in finished.items() if record is not None}
    try:
        return estimate(study, rates, took), rates.called
    except BapoError as error:
        return [], f"Nothing is estimated: {error}"


@app.command()
def run(
    file: File,
    output: Folder = None,
    processes: Processes = 1,
    ray: Ray = None,
    cpus: Cpus = 1,
    gpus: Gpus = 0,
    memory_gib: MemoryGib = 0,
    storage: SharedStorage = None,
    data_folder: options.DataFolder = None,
    as_json: options.AsJson = False,
) -> None:
    """Do all jobs that are not done, failed ones again. Stopped at any moment, the same command goes on."""
    from bapo.cli.console import live_progress, out, print_json
    from bapo.study import Ledger, run_here, run_in_processes, run_on_ray

    study = _opened(file, output, data_folder, storage)
    with live_progress(quiet=as_json) as on_progress:
        if ray is not None:
            address = None if ray == "local" else ray
            left = run_on_ray(study, address, cpus=cpus, gpus=gpus, memory_gib=memory_gib, on_progress=on_progress)
        elif processes > 1:
            left = run_in_processes(study, processes, on_progress)
        else:
            left = run_here(study, on_progress)
    ledger = Ledger(study)
    failures = {job.key: why for job in left if (why := ledger.why_failed(job))}
    if as_json:
        print_json({"folder": str(study.folder), "done": len(study.jobs) - len(left), "failed": failures})
    else:
        out.print(
            f"{len(study.jobs) - len(left)} of {len(study.jobs)} jobs are done, in {study.folder}", soft_wrap=True
        )
        for key, why in failures.items():
            out.print(f"failed: {key}: {why}", soft_wrap=True)
    if left:
        raise typer.Exit(UNFINISHED)


@app.command()
def status(file: File, output: Folder = None, storage: SharedStorage = None, as_json: options.AsJson = False) -> None:
    """Show what became of each job, from any machine that reads the study's folder or its storage."""
    from bapo.cli.console import out, print_json
    from bapo.study import Ledger

    study = _fetched(file, output, storage)
    states, ledger = _states(study), Ledger(study)
    if as_json:
        print_json(states)
        return
    for state in ("done", "running", "waiting", "blocked", "failed"):
        keys = [key for key, known in states.items() if known == state]
        if keys:
            out.print(f"{state}: {len(keys)}")
        for key in keys if state in ("running", "failed") else []:
            job = study.jobs[key]
            out.print(f"  {key}: {ledger.sign_of_life(job) or ledger.why_failed(job)}", soft_wrap=True)


@app.command()
def report(
    file: File,
    output: Folder = None,
    storage: SharedStorage = None,
    without_texts: Annotated[
        bool, typer.Option("--without-texts", help="No text of the data on the page: questions by their numbers.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Draw what is done: a page (report.html), tables (Markdown, CSV, LaTeX) and figures in the study's folder."""
    from bapo.cli.console import out, print_json, print_table
    from bapo.files import make_folder, write_text
    from bapo.reporting import study as drawn
    from bapo.reporting.page import render
    from bapo.reporting.pictures import pictures, save
    from bapo.study import logs_by_method, study_page
    from bapo.study import report as made

    study = _fetched(file, output, storage)
    record = made(study)
    tables, folder = drawn.tables(record.content), make_folder(study.folder / "tables")
    page = study_page(study, record, texts=not without_texts)
    write_text(study.folder / "report.html", render(page))
    write_text(study.folder / "report.md", drawn.as_markdown(record.content, page.title))
    for name, table in tables.items():
        write_text(folder / f"{name}.csv", drawn.as_csv(table))
        write_text(folder / f"{name}.tex", drawn.as_latex(table))
    for name, picture in pictures(record.content, logs_by_method(study)).items():
        save(picture, study.folder / "figures" / name)
    if as_json:
        print_json({**asdict(record.content), "made_on": dict(record.made_from.made_on)})
        return
    for header, rows in tables.values():
        print_table(header, rows)
    out.print(f"page in {study.folder / 'report.html'}", soft_wrap=True)


def _opened(file: Path, output: Path | None, data_folder: str | None, storage: str | None = None) -> Study:
    from bapo.study import open_study

    return open_study(file, output, Path(data_folder) if data_folder else None, storage)


def _fetched(file: Path, output: Path | None, storage: str | None) -> Study:
    """The study, with the records that lie on shared storage."""
    study = _opened(file, output, None, storage)
    if storage is not None:
        from bapo.study import Storage

        Storage(storage).fetch_all(study)
    return study


def _states(study: Study) -> dict[str, str]:
    from bapo.study import Ledger

    ledger = Ledger(study)
    return {key: ledger.state(job) for key, job in study.jobs.items()}


def _varied(varied: Any) -> str:
    return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in varied.items())
