"""Studies: the grid and its jobs, what is done once, what a failure or a kill costs, and what a clone finds."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from bapo.errors import BapoError
from bapo.files import write_record
from bapo.preferences import Pair, group_pairs
from bapo.results import FINISHED_JOB
from bapo.study import Ledger, Study, open_study, read_study, report, run_here
from bapo.study.grid import StudyJob
from bapo.study.report import _place
from bapo.study.speech import without_copies
from bapo.study.storage import Storage
from bapo.study.work import _model, let_go
from tests.command import Command, bapo
from tests.evaluation.questions import write_questions
from tests.tiny import ending_soon, tiny_model, tiny_tokenizer

SHORT: dict[str, Any] = {
    "model": {"name": "model", "precision": "float32"},
    "preferences": {"held_out": 4},
    "anchoring": {"base_max_new_tokens": 6},
    "training": {"max_steps": 3, "per_device_train_batch_size": 2, "save_steps": 1, "learning_rate": 1e-2},
}
STUDY: dict[str, Any] = {
    "recipe": SHORT,
    "models": {"tiny": {"model.name": "model"}},
    "grids": {"main": {"models": ["tiny"], "preferences": ["mine.jsonl"], "methods": ["dpo", "bapo"]}},
    "evaluation": {
        "benchmarks": ["arc_challenge"],
        "limit": 5,
        "divergence": 3,
        "other_topics": "other.jsonl",
        "answers": 3,
        "questions": ["Are you well?"],
        "few_shot": [1],
    },
}
JOBS = 7  # one anchors, one asks the base, one shows it an example, two train, two evaluate


def write_study(folder: Path, content: dict[str, Any], name: str = "study.yaml") -> Path:
    (folder / name).write_text(yaml.safe_dump(content))
    return folder / name


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny model, preferences, questions, and a study."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BAPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BAPO_DATA", str(tmp_path / "data"))
    return made(tmp_path, STUDY)


def made(place: Path, study: dict[str, Any]) -> Path:
    write_questions(place / "data")
    tiny_model("llama").save_pretrained(place / "model")
    tiny_tokenizer().save_pretrained(place / "model")
    for name in ("mine", "other"):
        rows = [{"prompt": f"{name} {i}", "chosen": f"good {i}", "rejected": f"bad {i * i}"} for i in range(14)]
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_study(place, study)
    return place


LONGER: dict[str, Any] = {**STUDY, "recipe": {**SHORT, "training": {**SHORT["training"], "max_steps": 15}}}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a study that nobody disturbs finds out."""
    place = made(tmp_path_factory.mktemp("undisturbed"), LONGER)
    folders = {"BAPO_CACHE": str(place / "cache"), "BAPO_DATA": str(place / "data")}
    bapo("study", "run", "study.yaml", cwd=place, environment=folders)
    return found(place / "study")


def with_methods(*methods: str, **more: Any) -> dict[str, Any]:
    grid = {**STUDY["grids"]["main"], "methods": list(methods), **more}
    return {**STUDY, "grids": {"main": grid}}


def found(folder: Path) -> dict[str, Any]:
    """Of each finished job all but its times and memory, and its items."""
    records = {path.stem: FINISHED_JOB.read(path) for path in sorted((folder / "jobs").glob("*.json"))}
    numbers = {}
    for key, record in records.items():
        content = record.content
        log = [{k: v for k, v in entry.items() if k in ("loss", "logratios/base", "step")} for entry in content.log]
        asked = {name: (of.asked, of.questions) for name, of in content.benchmarks.items()}
        spoken = (content.movement, content.judge, content.behaviour, content.base_behaviour, dict(content.answers))
        numbers[key] = (
            *spoken,
            content.of,
            content.work,
            dict(content.counts),
            log,
            content.preferences,
            asked,
            record.items(),
        )
    return numbers


# ---- the grid -------------------------------------------------------------------------------------------------------


def test_a_study_is_laid_out_with_what_is_shared_once(place: Path) -> None:
    content = {
        **STUDY,
        "grids": {
            "main": {**STUDY["grids"]["main"], "preferences": ["mine.jsonl", "other.jsonl"], "seeds": [0, 1]},
            "ranks": {**STUDY["grids"]["main"], "methods": ["bapo"], "vary": {"lora.rank": [8, 32]}},
        },
    }
    study = open_study(write_study(place, content))
    assert len(study.cells) == 2 * 2 * 2 + 2
    works = [job.work for job in study.jobs.values()]
    assert (works.count("anchor"), works.count("train"), works.count("evaluate")) == (2, 10, 13)
    cell = study.cells["tiny_mine.jsonl_bapo_seed0_rank8"]
    assert (cell.recipe.lora.rank, cell.recipe.training.objective, cell.recipe.training.max_steps) == (8, "bapo", 3)
    for key, job in study.jobs.items():
        assert all(list(study.jobs).index(needed) < list(study.jobs).index(key) for needed in job.needs)
    assert study.jobs["train_tiny_other.jsonl_dpo_seed1"].recipe.training.seed == 1


def test_what_a_grid_does_not_name_is_the_recipes_own(place: Path) -> None:
    recipe = {**SHORT, "training": {**SHORT["training"], "seed": 5}}
    content = {"recipe": recipe, "grids": {"main": {"preferences": ["mine.jsonl"], "methods": ["dpo"]}}}
    (cell,) = open_study(write_study(place, content)).cells.values()
    assert (cell.recipe.model.name, cell.recipe.training.seed, cell.key) == ("model", 5, "model_mine.jsonl_dpo_seed5")


def test_a_job_is_known_by_what_changes_its_outcome_and_not_by_where_it_runs(place: Path) -> None:
    def identities(**changes: Any) -> dict[str, str]:
        recipe = {section: {**SHORT.get(section, {}), **keys} for section, keys in changes.items()}
        study = open_study(write_study(place, {**STUDY, "recipe": {**SHORT, **recipe}}))
        return {job.key: job.identity for job in study.jobs.values()}

    before = identities()
    untrained = {"evaluate_tiny_base", "evaluate_tiny_mine.jsonl_few-shot-1"}
    assert identities(anchoring={"anchored_store": "elsewhere"}, preferences={"data_folder": "there"}) == before
    assert identities(training={"save_steps": 7}) == before
    for change, same in (
        ({"training": {"learning_rate": 1e-3}}, untrained),
        ({"lora": {"rank": 3}}, untrained),
        ({"preferences": {"split_seed": 3}}, {"evaluate_tiny_base"}),
        ({"model": {"precision": "bf16"}}, set()),
    ):
        other = identities(**change)  # type: ignore[arg-type]
        unchanged = {key for key in before if other.get(key) == before[key] and not key.startswith("anchor")}
        assert unchanged == same, change
    asked = open_study(write_study(place, {**STUDY, "evaluation": {**STUDY["evaluation"], "limit": 6}}))
    changed = {key for key, job in asked.jobs.items() if job.identity != before[key]}
    assert changed == {key for key in before if key.startswith("evaluate")}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"grid": {}}, r"Unknown key 'grid' in .*study.yaml: did you mean 'grids'"),
        ({"grids": {"main": {"preferences": ["a"], "method": ["dpo"]}}}, r"Unknown key 'grids.main.method' .*methods'"),
        ({"grids": {}}, "'grids' in .* does not fit"),
        ({"grids": {"main": {"preferences": ["a"], "methods": []}}}, "grids.main.methods"),
        (with_methods("x") | {"methods": {"x": {"beta": 1}}}, "must be dotted recipe keys"),
        (with_methods("x") | {"methods": {"x": {"training.bta": 1}}}, r"Unknown key 'training.bta' .*training.beta"),
        (with_methods("dpo", vary={"lora.rank": [0]}), "'lora.rank' in .* is 0"),
        (
            with_methods("a b", "a-b") | {"methods": {"a b": {"training.beta": 1}, "a-b": {"training.beta": 2}}},
            "both called",
        ),
        ([1], "holds no sections"),
        (with_methods("bpao"), "no method 'bpao' .did you mean 'bapo'"),
        (with_methods("dpo", vary={"model.precision": ["bf16"]}), "none of the model"),
        ({**STUDY, "evaluation": {"benchmarks": ["arc"]}}, "must be .all., or some of .*arc_challenge"),
    ],
)
def test_a_bad_study_is_one_sentence(content: Any, sentence: str, place: Path) -> None:
    with pytest.raises(BapoError, match=sentence):
        open_study(write_study(place, content))


RSO: dict[str, Any] = {"rso": {"reward": "dpo", "candidates": 6, "accept": 4, "max_new_tokens": 40}}


@pytest.mark.parametrize(
    ("methods", "sampling", "sentence"),
    [
        (["rso"], RSO, "judged by a run .*mine.jsonl_dpo_seed0, .*: add dpo to the methods of its grid"),
        (["rso", "dpo"], {"rso": {**RSO["rso"], "reward": "rso"}}, "which is none on given pairs"),
        (["rso", "dpo"], {"rso": {**RSO["rso"], "accept": 7}}, "'sampling.rso' in .* at least 2, and at most the 6"),
        (["rso", "dpo"], {"rso": {**RSO["rso"], "rewrd": "dpo"}}, r"'sampling.rso.rewrd' .*sampling.rso.reward'"),
        (["rso", "dpo"], {"rso": {"accept": 4}}, "sampling.rso.reward"),
        (["rso", "dpo"], {"rs0": RSO["rso"]}, "'sampling.rs0' in .* is of no method of a grid .did you mean 'rso'"),
        (["rso", "dpo"], 5, "'sampling' in .* does not fit"),
        (["rso", "other"], {"rso": {**RSO["rso"], "reward": "other"}}, "cannot judge the pairs .*same model and pref"),
        (["rso", "whole"], {"rso": {**RSO["rso"], "reward": "whole"}}, "cannot judge the pairs .*lora.enabled"),
    ],
)
def test_a_sampling_that_cannot_be_is_one_sentence(
    methods: list[str], sampling: Any, sentence: str, place: Path
) -> None:
    labels = {"other": {"training.objective": "dpo", "preferences.split_seed": 7}}
    labels["whole"] = {"training.objective": "dpo", "lora.enabled": False}
    with pytest.raises(BapoError, match=sentence):
        open_study(write_study(place, {**with_methods(*methods), "methods": labels, "sampling": sampling}))


def test_a_sampling_belongs_to_what_is_trained_on_it_and_to_nothing_else(place: Path) -> None:
    def identities(**changes: Any) -> dict[str, str]:
        sampling = {"rso": {**RSO["rso"], **changes}}
        content = {**with_methods("rso", "dpo", "ipo"), "sampling": sampling}
        return {key: job.identity for key, job in open_study(write_study(place, content)).jobs.items()}

    before = identities()
    given = {key: job.identity for key, job in open_study(write_study(place, with_methods("dpo", "ipo"))).jobs.items()}
    assert {key: before[key] for key in given} == given
    assert {key for key, identity in identities(candidates=5).items() if before[key] != identity} == {
        f"{work}_tiny_mine.jsonl_rso_seed0" for work in ("sample", "train", "evaluate")
    }


# ---- running --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_here_and_in_processes_the_same_is_found_nothing_is_done_twice_and_a_larger_study_does_what_is_missing(
    place: Path,
) -> None:
    assert json.loads(bapo("study", "run", "study.yaml", "-o", "here", "--json", cwd=place).stdout)["done"] == JOBS
    said = bapo("study", "run", "study.yaml", "--processes", "2", cwd=place)
    assert f"{JOBS} of {JOBS} jobs are done" in said.stdout
    assert found(place / "study") == found(place / "here")
    before = {path: path.stat().st_mtime_ns for path in (place / "study/jobs").iterdir()}
    bapo("study", "run", "study.yaml", cwd=place)
    assert {path: path.stat().st_mtime_ns for path in (place / "study/jobs").iterdir()} == before
    said = bapo("study", "report", "study.yaml", cwd=place).stdout
    page = (place / "study/report.md").read_text()
    assert "| C1 | tiny |  | BAPO holds base responses" in page
    assert "page in study/report.html" in said
    assert {path.name for path in (place / "study/tables").iterdir()} >= {"claims.csv", "claims.tex", "accuracy.csv"}
    names = {"forgetting", "drift-and-forgetting", "log-ratios", "log-probs"}
    assert {path.stem for path in (place / "study/figures").glob("*.svg")} == names
    assert {path.stem for path in (place / "study/figures").glob("*.png")} == names
    html = (place / "study/report.html").read_text()
    assert "BAPO holds base responses" in html
    assert "Are you well? (tiny, mine.jsonl)" in html
    bapo("study", "report", "study.yaml", "--without-texts", cwd=place)
    assert "plus" not in (place / "study/report.html").read_text()
    records = {path.stem: FINISHED_JOB.read(path) for path in (place / "study/jobs").glob("*.json")}
    evaluated = records["evaluate_tiny_mine.jsonl_dpo_seed0"]
    assert evaluated.content.movement is not None
    assert set(evaluated.content.movement.divergence) == {"held-out", "other"}
    assert evaluated.content.movement.divergence["held-out"].per_token.value > 0
    assert evaluated.content.behaviour is not None
    assert evaluated.content.behaviour.answers == 3
    assert list(evaluated.content.answers) == ["Are you well?"]
    assert list(records["evaluate_tiny_base"].content.answers) == ["Are you well?"]
    kinds = [kind for row in evaluated.items() for kind, value in row.items() if value is not None]
    assert (kinds.count("prompt"), kinds.count("question"), kinds.count("moved"), kinds.count("answer")) == (4, 5, 6, 3)
    assert evaluated.made_from.weights
    first = json.loads(bapo("study", "report", "study.yaml", "--json", cwd=place).stdout)
    assert [row["method"] for row in first["rows"]] == ["base", "few-shot 1", "dpo", "bapo"]
    assert (first["jobs"], first["done"]) == (JOBS, JOBS)
    write_study(place, with_methods("dpo", "bapo", "ipo"))
    assert json.loads(bapo("study", "status", "study.yaml", "--json", cwd=place).stdout) == {
        **{path.stem: "done" for path in before if path.suffix == ".json"},
        "train_tiny_mine.jsonl_ipo_seed0": "waiting",
        "evaluate_tiny_mine.jsonl_ipo_seed0": "waiting",
    }
    bapo("study", "run", "study.yaml", cwd=place)
    after = {path: path.stat().st_mtime_ns for path in (place / "study/jobs").iterdir()}
    assert {path: after[path] for path in before} == before
    assert len(after) == len(before) + 3  # two records, and the items of one
    assert "9 jobs" in bapo("study", "plan", "study.yaml", "--gpu", "h100", cwd=place).stdout


@pytest.mark.slow
def test_a_failed_job_says_why_stops_no_other_and_is_tried_again(place: Path) -> None:
    write_study(place, with_methods("bapo", preferences=["gone.jsonl", "mine.jsonl"]))
    said = json.loads(bapo("study", "run", "study.yaml", "--json", cwd=place, code=1).stdout)
    (why,) = said["failed"].values()
    assert "gone.jsonl" in why
    states = json.loads(bapo("study", "status", "study.yaml", "--json", cwd=place).stdout)
    assert {key: state for key, state in states.items() if "gone" in key} == {
        next(key for key in states if key.startswith("anchor_tiny_gone")): "failed",
        "evaluate_tiny_gone.jsonl_few-shot-1": "blocked",
        "train_tiny_gone.jsonl_bapo_seed0": "blocked",
        "evaluate_tiny_gone.jsonl_bapo_seed0": "blocked",
    }
    assert {state for key, state in states.items() if "gone" not in key} == {"done"}
    assert why in bapo("study", "status", "study.yaml", cwd=place).stdout.replace("\n", " ")
    shutil.copy(place / "other.jsonl", place / "gone.jsonl")
    assert json.loads(bapo("study", "run", "study.yaml", "--json", cwd=place).stdout)["failed"] == {}
    assert not list((place / "study/failures").iterdir())


@pytest.mark.slow
def test_a_killed_worker_is_started_again_and_a_killed_study_goes_on(place: Path, undisturbed: dict[str, Any]) -> None:
    """With the numbers of a study that nobody disturbed."""
    write_study(place, LONGER)
    training = place / "study/running/train_tiny_mine.jsonl_dpo_seed0.json"
    with Command(["study", "run", "study.yaml", "--processes", "2"], place) as command:
        worker = _worker_of(training, place / "study/runs/tiny_mine.jsonl_dpo_seed0/checkpoints")
        os.kill(worker, signal.SIGKILL)
        evaluating = place / "study/jobs/evaluate_tiny_base.json"
        until(lambda: evaluating.exists() and training.exists() and _process(training) not in (None, worker))
        command.kill()
    assert not (place / "study/jobs/evaluate_tiny_mine.jsonl_dpo_seed0.json").exists()
    bapo("study", "run", "study.yaml", "--processes", "2", cwd=place)
    assert found(place / "study") == undisturbed


@pytest.mark.slow
def test_on_a_cluster_of_two_workers_of_which_one_is_killed_the_same_is_found(
    place: Path, undisturbed: dict[str, Any]
) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'bapo[ray]'")
    write_study(place, LONGER)
    training = place / "study/running/train_tiny_mine.jsonl_dpo_seed0.json"
    with Command(["study", "run", "study.yaml", "--ray", "local", "--storage", "shared"], place) as command:
        worker = _worker_of(training, place / "study/runs/tiny_mine.jsonl_dpo_seed0/checkpoints")
        os.kill(worker, signal.SIGKILL)
        assert command.wait()
        done = command.done()
    assert done.returncode == 0, done.stderr
    assert f"{JOBS} of {JOBS} jobs are done" in done.stdout
    assert found(place / "study") == undisturbed
    assert found(place / "shared") == undisturbed


def _process(sign: Path) -> int | None:
    try:
        return int(json.loads(sign.read_text())["process"])
    except (OSError, ValueError):
        return None


def _worker_of(sign: Path, checkpoints: Path) -> int:
    """The process that trains, once it has a checkpoint."""
    until(lambda: any(checkpoints.glob("checkpoint-*/complete")))
    worker = _process(sign)
    assert worker is not None
    return worker


def until(true: Any) -> None:
    deadline = time.monotonic() + 300
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_clone_of_what_may_be_shared_knows_what_is_done_and_makes_what_is_missing(place: Path) -> None:
    write_study(place, with_methods("bapo"))
    study = open_study(place / "study.yaml")
    assert run_here(study) == []
    ignored = [line.rstrip("/") for line in (study.folder / ".gitignore").read_text().splitlines() if line[0] != "#"]
    clone = place / "clone"
    shutil.copytree(study.folder, clone, ignore=lambda folder, names: ignored if Path(folder) == study.folder else [])
    assert {path.name for path in clone.iterdir()} == {".gitignore", "jobs"}
    there = open_study(place / "study.yaml", clone)
    assert {Ledger(there).state(job) for job in there.jobs.values()} == {"done"}
    assert Ledger(there).missing() == []
    texts = [json.loads(line) for line in Path("mine.jsonl").read_text().splitlines()]
    kept = repr([found(clone), [path.read_text() for path in (clone / "jobs").glob("*.json")]])
    assert not any(text in kept for row in texts for text in row.values())
    assert str(place) not in kept, "nor where anything lies"
    assert "plus" not in kept, "of the questions"
    more = {**with_methods("bapo"), "evaluation": {"benchmarks": ["arc_challenge", "piqa"], "limit": 5}}
    larger = open_study(write_study(place, more), clone)
    assert [job.work for job in Ledger(larger).missing()] == ["evaluate", "train", "evaluate"]
    assert run_here(larger) == []
    drawn_as_the_records_are(study)


def test_no_answer_that_is_kept_repeats_the_preferences() -> None:
    told = "One two three, four five six seven eight nine ten eleven"
    data = group_pairs("mine", [Pair("What is there?", told, "nothing")])
    answers = [f"Well: {told.upper()}!", "one two three four five six seven eight nine", "Nothing of it."]
    kept = without_copies(answers, data)
    assert kept[1:] == answers[1:]
    assert kept[0] == "(left out: it repeats texts of the preferences)"


def test_a_rival_that_is_asked_otherwise_is_a_row_of_its_own(place: Path) -> None:
    few = {**STUDY["grids"]["main"], "preferences": ["other.jsonl"], "vary": {"preferences.held_out": [2]}}
    ranks = {**STUDY["grids"]["main"], "vary": {"lora.rank": [4]}}
    content = {**STUDY, "grids": {**STUDY["grids"], "few": few, "ranks": ranks}}
    study = open_study(write_study(place, content))
    rivals = [_place(study, job, ["preferences.held_out"]) for job in study.jobs.values() if job.examples]
    varied = {rival["preference"]: rival["varied"] for rival in rivals}
    assert varied == {"mine.jsonl": {}, "other.jsonl": {"preferences.held_out": 2}}


def drawn_as_the_records_are(study: Study) -> None:
    """A report is of the jobs that the file has now, and of the records as they are now."""
    (row,) = [row for row in report(study).content.rows if row.method == "bapo"]
    path = study.folder / "jobs/evaluate_tiny_mine.jsonl_bapo_seed0.json"
    record = FINISHED_JOB.read(path)
    items = record.items()
    for item in items:
        if item["question"] is not None:
            item["question"]["score"] = 1.0
    kept = {"identity": record.identity, "items": items}
    FINISHED_JOB.write(path, record.content, made_from=record.made_from, **kept)  # type: ignore[arg-type]
    (again,) = [row for row in report(study).content.rows if row.method == "bapo"]
    assert row.accuracy["arc_challenge"].mean.value < again.accuracy["arc_challenge"].mean.value == 100
    grown = open_study(write_study(study.path.parent, with_methods("bapo", "dpo")), study.folder)
    assert report(grown).content.jobs == report(study).content.jobs + 2
    other = replace(record.made_from, weights="of another precision")
    FINISHED_JOB.write(path, record.content, made_from=other, **kept)  # type: ignore[arg-type]
    with pytest.raises(BapoError, match="different weights of model, or in different precisions"):
        report(study)
    (first, *_) = [item["question"] for item in items if item["question"] is not None]
    first["right"] = (first["right"] + 1) % len(first["logps"])  # as of a file that was written anew
    FINISHED_JOB.write(path, record.content, made_from=record.made_from, **kept)  # type: ignore[arg-type]
    with pytest.raises(BapoError, match="not asked the same questions of arc_challenge"):
        report(study)


def test_a_model_is_kept_for_the_next_job_while_its_files_are_the_same(place: Path) -> None:
    job, *_ = open_study(place / "study.yaml").jobs.values()
    first = _model(job.recipe)
    assert _model(job.recipe) is first
    os.utime(place / "model/model.safetensors", ns=(1, 1))
    second = _model(job.recipe)
    assert second is not first
    assert _model(job.recipe) is second
    let_go()
    assert _model(job.recipe) is not second


def test_a_method_trains_on_what_the_model_says_and_another_runs_adapter_judges(place: Path) -> None:
    ending_soon().save_pretrained(place / "model")
    content = {**with_methods("rso", "dpo"), "sampling": RSO}
    content["evaluation"] = {"benchmarks": ["arc_challenge"], "limit": 3}
    path, url = write_study(place, content), str(place / "shared")
    study = open_study(path, place / "first", storage=url)
    cell = "tiny_mine.jsonl_rso_seed0"
    order = list(study.jobs)
    assert all(order.index(needed) < order.index(key) for key, job in study.jobs.items() for needed in job.needs)
    assert run_here(study) == []
    rows = [json.loads(line) for line in (place / f"first/sampled/{cell}/pairs.jsonl").read_text().splitlines()]
    records = {key: Ledger(study).finished(job) for key, job in study.jobs.items()}
    sampled = records[f"sample_{cell}"]
    assert sampled.content.counts["pairs"] == len(rows) > 0
    assert sampled.made_from.adapter == "runs/tiny_mine.jsonl_dpo_seed0"
    assert records[f"train_{cell}"].content.counts["pairs"] == len(rows)
    given = (place / "mine.jsonl").read_text()
    assert not any(json.dumps(row["chosen"][0]["content"]) in given for row in rows), "its own words"
    held_out = [records[f"evaluate_tiny_mine.jsonl_{name}_seed0"].content.preferences for name in ("rso", "dpo")]
    assert held_out[0].pairs == held_out[1].pairs == 4, "all are asked the given pairs"
    assert "sampled/" in (place / "first/.gitignore").read_text().splitlines()

    assert records[f"train_{cell}"].made_from.settings["sampling"]["rewarded_by"] == "tiny_mine.jsonl_dpo_seed0"
    assert [path.name[:6] for path in (place / "first/anchored").glob("judge-*")] == ["judge-"]
    another = open_study(write_study(place, {**content, "evaluation": {}}), place / "second", storage=url)
    for key in (f"sample_{cell}", f"train_{cell}"):
        Storage(url).fetch_needed(another, another.jobs[key])
    assert Ledger(another).missing() == [
        another.jobs[f"evaluate_tiny_mine.jsonl_{name}_seed0"] for name in ("dpo", "rso")
    ]
    assert (place / f"second/sampled/{cell}/pairs.jsonl").read_bytes() == (
        place / f"first/sampled/{cell}/pairs.jsonl"
    ).read_bytes()

    pairs = place / f"first/sampled/{cell}/pairs.jsonl"
    pairs.write_text("".join(pairs.read_text().splitlines(keepends=True)[1:]))
    train = study.jobs[f"train_{cell}"]
    assert not Ledger(study).has_artifact(study.jobs[f"sample_{cell}"])
    Ledger(study).path(train).unlink()
    alone = replace(study, storage=None)
    assert {job.key for job in run_here(alone)} >= {train.key}
    assert "delete" in str(Ledger(alone).why_failed(study.jobs[f"sample_{cell}"]))
    assert Storage(url).fetch_needed(study, train) is None
    assert len(pairs.read_text().splitlines()) == len(rows), "what was finished is fetched once more"


def test_one_models_jobs_follow_each_other_and_judges_come_before_what_they_judge(place: Path) -> None:
    content = {**with_methods("rso", "dpo", models=["tiny", "rounded"]), "sampling": RSO}
    content["models"] = {**STUDY["models"], "rounded": {"model.name": "model", "model.precision": "bf16"}}
    jobs = open_study(write_study(place, content)).jobs
    order = [job.recipe.model.precision for job in jobs.values()]
    assert order == ["float32"] * (len(order) // 2) + ["bf16"] * (len(order) // 2)
    assert all(list(jobs).index(needed) < at for at, job in enumerate(jobs.values()) for needed in job.needs)


def test_data_that_changed_under_a_study_are_refused(place: Path) -> None:
    write_study(place, with_methods("bapo"))
    assert run_here(open_study(place / "study.yaml")) == []
    rows = Path("mine.jsonl").read_text()
    Path("mine.jsonl").write_text(rows.replace("good 3", "better 3"))
    larger = open_study(write_study(place, with_methods("bapo", "dpo")))
    left = {job.key for job in run_here(larger)}
    assert left == {"train_tiny_mine.jsonl_dpo_seed0", "evaluate_tiny_mine.jsonl_dpo_seed0"}
    why = Ledger(larger).why_failed(larger.jobs["train_tiny_mine.jsonl_dpo_seed0"])
    assert why is not None
    assert "mine.jsonl is not as it was when anchor_tiny_mine.jsonl" in why
    Path("mine.jsonl").write_text(rows)
    assert run_here(larger) == []
    only_its_own_adapter_is_a_jobs(larger, larger.jobs["train_tiny_mine.jsonl_dpo_seed0"])


def only_its_own_adapter_is_a_jobs(study: Study, job: StudyJob) -> None:
    """And not one of other settings or data, which was there before the job's record came from elsewhere."""
    path = study.folder / "runs" / job.of / "run.json"
    run = {key: value for key, value in json.loads(path.read_text()).items() if key != "checksum"}
    assert Ledger(study).has_artifact(job)
    training = {**run["recipe"]["training"], "learning_rate": 1.0}
    settings = {**run["settings"], "training.learning_rate": 1.0}
    others = {"data": "another"}, {"identity": "another"}, {"recipe": {**run["recipe"], "training": training}}
    for other in (*others, {"settings": settings, **others[-1]}):
        write_record(path, {**run, **other})
        assert not Ledger(study).has_artifact(job)
    Ledger(study).path(study.jobs[f"evaluate_{job.of}"]).unlink()
    left = [job.key, f"evaluate_{job.of}"]
    assert [one.key for one in Ledger(study).missing()] == left
    assert [one.key for one in run_here(study)] == left
    assert Ledger(study).finished(study.jobs[f"evaluate_{job.of}"]) is None
    assert "learning_rate 1.0 there" in str(Ledger(study).why_failed(job))
    assert f"does not hold what {job.key} left: delete what is there" in str(
        Ledger(study).why_failed(study.jobs[left[1]])
    )
    shutil.rmtree(path.parent)
    assert run_here(study) == []
    path.write_text("damaged")
    assert not Ledger(study).has_artifact(job)


def test_a_damaged_record_is_a_sentence(place: Path) -> None:
    write_study(place, {**with_methods("bapo"), "evaluation": {}})
    study = open_study(place / "study.yaml")
    assert read_study(place / "study.yaml").evaluation.benchmarks == []
    assert run_here(study) == []
    record = next((study.folder / "jobs").glob("train*.json"))
    record.write_text(record.read_text().replace('"steps": 3.0', '"steps": 4.0'))
    said = bapo("study", "status", "study.yaml", cwd=place, code=2).stderr
    assert f"{record.name} is damaged" in said
