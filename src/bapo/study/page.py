"""The page of a study, put together from its records; texts of questions come from the answers kept beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bapo.reporting import study as drawn
from bapo.reporting.page import Page, PageTable, PageVerdict, page_figures
from bapo.reporting.pictures import pictures
from bapo.reporting.tables import interval
from bapo.results import BASE, AnswerStore, Record, SideBySide, StudyReport
from bapo.study.grid import Study
from bapo.study.ledger import Ledger
from bapo.study.report import logs_by_method

_NOTES = {
    "preferences": "On held-out prompts; means over preferences with 95 % intervals.",
    "accuracy": "Percent right: mean over preferences (standard deviation over preferences) [95 % interval].",
    "changes": "Points against the base on the same questions [95 % interval].",
    "logps": "Nats a question against the base on the same questions [95 % interval]. The row rounding alone says what "
    "that makes of the change of one run, where it was measured.",
}


def study_page(study: Study, record: Record[StudyReport], *, texts: bool = True) -> Page:
    """All that the study's records say.

    Args:
        study: the study.
        record: its report.
        texts: whether texts of questions may stand on the page.
    """
    report = record.content
    tables = drawn.tables(report)
    figures = pictures(report, logs_by_method(study))
    several = len({(each.model, each.source) for each in report.claims}) > 1
    verdicts = [
        PageVerdict(
            claim.name + (f" ({', '.join(filter(None, (claim.model, claim.source)))})" if several else ""),
            claim.verdict,
            claim.says,
            f"{interval(claim.estimate, 1, 4)} against {claim.threshold:g}, p {claim.p:.3f}",
        )
        for claim in report.claims
    ]
    return Page(
        title=f"Study {study.path.stem}" if study.path.stem != "study" else f"Study {study.path.parent.name}",
        summary=[*([study.about] if study.about else []), f"{report.done} of {report.jobs} jobs are done."],
        verdicts=verdicts,
        tables=[
            PageTable(drawn.TITLES[name], *table, note=_NOTES.get(name, ""))
            for name, table in tables.items()
            if name != "claims"
        ],
        figures=page_figures(figures),
        flips=[{**flip, "run": _run(flip)} for flip in record.items()],
        questions=_questions(study) if texts else {},
        answers=_answers(study),
        how=[drawn.HOW],
        made=_made(study, record),
    )


def _run(flip: Mapping[str, Any]) -> str:
    parts = (flip["model"], flip["preference"], flip["method"], flip["varied"], f"seed {flip['seed']}")
    return ", ".join(str(part) for part in parts if part)


def _questions(study: Study) -> dict[str, dict[str, Any]]:
    """Texts and choices by task and number, of all questions whose answers are kept here."""
    texts: dict[str, dict[str, Any]] = {}
    for folder in sorted((study.folder / "answers").glob("*/*")):
        for answer in AnswerStore(folder).read().values() if folder.is_dir() else ():
            key = f"{answer.task} {answer.document}"
            texts.setdefault(key, {"question": answer.question, "choices": list(answer.choices)})
    return texts


def _answers(study: Study) -> list[SideBySide]:
    """Of each model and preference, the answers of the base, of rivals, and of all methods with the first seed."""
    ledger, sides = Ledger(study), []
    bases: dict[str, Mapping[str, str]] = {}
    groups: dict[tuple[str, str], dict[str, Mapping[str, str]]] = {}
    for job in study.jobs.values():
        cell, trained = study.cell_of(job), job.of in study.cells
        record = ledger.finished(job) if job.work == "evaluate" and (cell.plain or not trained) else None
        if record is None or not record.content.answers:
            continue
        if job.of == BASE:
            bases[cell.model] = record.content.answers
            continue
        name = cell.method.upper() if trained else job.of
        groups.setdefault((cell.model, cell.preference), {}).setdefault(name, record.content.answers)
    for (model, preference), by_name in groups.items():
        named = {BASE: bases.get(model, {}), **by_name}
        for prompt in study.evaluation.questions:
            said = {name: answers[prompt] for name, answers in named.items() if prompt in answers}
            sides.append(SideBySide(f"{prompt} ({model}, {preference})", said))
    return sides


def _made(study: Study, record: Record[StudyReport]) -> list[tuple[str, str]]:
    ledger = Ledger(study)
    finished = [each for job in study.jobs.values() if (each := ledger.finished(job)) is not None]
    machines = {
        f"{on['processor']}, {on['instruction_set']}, {on['threads']} threads"
        for each in finished
        if "processor" in (on := each.made_from.made_on)
    }
    versions = {
        ", ".join(f"{name} {version}" for name, version in each.made_from.made_on["packages"].items())
        for each in finished
        if "packages" in each.made_from.made_on
    }
    weights = {f"{each.made_from.model}: {each.made_from.weights[:16]}" for each in finished if each.made_from.weights}
    judges = {
        study.cells[each.content.of].preference: interval(each.content.judge, 100, 0, " %")
        for each in finished
        if each.content.judge is not None and each.content.of in study.cells
    }
    seconds = sum(each.content.seconds for each in finished)
    return [
        ("study file", study.path.name),
        ("jobs", f"{record.content.done} of {record.content.jobs}, {seconds / 3600:.1f} hours together"),
        ("most memory of a process", f"{max(each.content.peak_bytes for each in finished) / 1e9:.1f} GB"),
        ("machines", "; ".join(sorted(machines))),
        ("packages", "; ".join(sorted(versions))),
        ("models and their weights' fingerprints", "; ".join(sorted(weights))),
        ("judge of answers, held-out pairs right", "; ".join(f"{name} {said}" for name, said in judges.items())),
        ("report", record.identity),
    ]
