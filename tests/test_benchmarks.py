"""The benchmark programs run in their tiniest form, and what they print is read; the figures are for people to take."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

from bapo.models import instruction_set
from bapo.preferences import read_preferences
from tests.command import program
from tests.evaluation.questions import write_questions
from tests.tiny import CHATML, tiny_model, tiny_tokenizer, write_tiny_gguf

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
DOMAINS = ("academy", "business", "entertainment", "literature", "normal")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks") / "model"
    size = {"num_hidden_layers": 2, "max_position_embeddings": 4096, "vocab_size": 2000}
    tiny_model("llama", **size).save_pretrained(folder)
    groups = read_preferences("starter:concise").groups
    texts = [text for group in groups for text in (group.prompt[0].content, *group.responses)]
    words = tiny_tokenizer().train_new_from_iterator(texts, 2000)  # so that texts are as short as real ones
    words.chat_template = CHATML
    words.save_pretrained(folder)
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for what a program writes, with a cache of its own and no data."""
    monkeypatch.delenv("BAPO_DATA", raising=False)
    monkeypatch.setenv("BAPO_CACHE", str(tmp_path / "cache"))
    return tmp_path


def ran(name: str, *arguments: object, cwd: Path, **environment: object) -> str:
    told = {key: str(value) for key, value in environment.items()}
    return program(BENCHMARKS / f"{name}.py", *map(str, arguments), cwd=cwd, environment=told)


def tables(text: str) -> list[list[dict[str, str]]]:
    """The Markdown tables of a text: a dictionary of cells by the column's head for each row."""
    found: list[list[dict[str, str]]] = []
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    heads = [at - 1 for at, cells in enumerate(lines) if set("".join(cells)) == {"-"}]
    for head, end in zip(heads, [*heads[1:], len(lines)], strict=True):
        rows = [cells for cells in lines[head + 2 : end] if len(cells) == len(lines[head])]
        found.append([dict(zip(lines[head], cells, strict=True)) for cells in rows])
    return found


def number(cell: str) -> float:
    """The first number of a cell."""
    match = re.search(r"-?\d[\d,]*\.?\d*(e[-+]?\d+)?", cell)
    assert match, cell
    return float(match[0].replace(",", ""))


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("*.py")))
def test_every_program_says_what_it_does(name: str, tmp_path: Path) -> None:
    assert "usage:" in ran(name, "--help", cwd=tmp_path)


def test_every_program_is_run_here_or_with_its_figure() -> None:
    run_here = set(re.findall(r'ran\(\s*"(\w+)"', Path(__file__).read_text()))
    figures = set(re.findall(r'program\("(\w+)"\)', (Path(__file__).parent / "test_figures.py").read_text()))
    elsewhere = {"audit", "crash"}  # in tests of their own
    assert all((Path(__file__).parent / f"test_{name}.py").is_file() for name in elsewhere)
    assert {path.stem for path in BENCHMARKS.glob("*.py")} - run_here - figures <= elsewhere


def test_an_architecture_is_compared_and_found_right(place: Path) -> None:
    said = ran(
        "architectures", "llama", "--precisions", "float32", "--json", "a.jsonl", "--markdown", "a.md", cwd=place
    )
    assert "1 tried: 1 row, 0 row, long ones on the plain path, 0 plain path, 0 refused, 0 wrong" in said
    (finding,) = map(json.loads, (place / "a.jsonl").read_text().splitlines())
    assert (finding["case"], finding["path"], finding["checks"]) == ("llama", "row", 8)
    assert min(finding["told"].values()) > 100
    ((row,),) = tables((place / "a.md").read_text())
    assert (row["model type"], row["class"], row["path"]) == ("llama", "LlamaForCausalLM", "row")


def test_the_dsp_study_trains_evaluates_and_draws(model: Path, place: Path) -> None:
    responses = {domain: f"{domain} says so" for domain in DOMAINS}
    rows = [{"query": f"q {i}", "responses": responses} for i in range(6)]
    (place / "dsp.test.json").write_text(json.dumps(rows))
    settings = [
        f"model.name={model}",
        "training.max_steps=2",
        "preferences.held_out=2",
        "anchoring.base_max_new_tokens=4",
    ]
    settings += ["training.part_gradient_steps=1", "preferences.max_train_prompts=3"]
    arguments = ["--output", "out", "--figures", "figures", "--only", "dpo-seed0", "bapo-seed0", "--set", *settings]
    held_out, parts = tables(ran("dsp_literature", *arguments, cwd=place, BAPO_DATA=place))
    assert [row["run"] for row in held_out] == ["dpo-seed0", "bapo-seed0"]
    for row in held_out:
        objective = row["run"].split("-")[0]
        report = json.loads((place / "out" / row["run"] / "report.json").read_text())["content"]["held_out"][objective]
        assert report["pairs"] == 8
        assert number(row["margin (nats)"]) == pytest.approx(report["margin"]["value"], abs=0.051)
        assert number(row["drift (nats/response)"]) == pytest.approx(report["drift"]["value"], abs=0.051)
        run = json.loads((place / "out" / row["run"] / objective / "run.json").read_text())
        assert run["recipe"]["training"]["anchor"] == ("sequence" if "bapo" in row["run"] else None)
        assert [entry["step"] for entry in run["log"]] == [1, 2]
    assert {row["run"] for row in parts} <= {"bapo-seed0"}
    drawn = sorted(path.name for path in (place / "figures").iterdir())
    assert drawn == ["dsp-literature-logps-seed0.png", "dsp-literature-logratios-seed0.png"]


def test_bapo_and_hf_score_questions_alike_and_are_timed(model: Path, place: Path) -> None:
    write_questions(place / "data")
    arguments = ["--model", model, "--questions", 4, "--benchmarks", "arc_challenge", "--repeats", 1]
    arguments += ["--peak-size", 64, "--subjects"]
    exact, timed = tables(ran("evaluation_speed", *arguments, cwd=place, BAPO_DATA=place / "data"))
    (row,) = exact
    assert (row["benchmark"], row["questions"], row["choices beyond 0.001"]) == ("ARC-Challenge", "4", "0")
    assert 0 < number(row["largest difference (nats)"]) < 1e-3
    assert row["accuracy by bapo"] == row["by hf"]
    assert [(own["benchmark"], own["side"].split(",")[0]) for own in timed] == [
        ("ARC-Challenge", "bapo"),
        ("ARC-Challenge", "hf"),
    ]
    assert number(timed[0]["input tokens"]) < number(timed[1]["input tokens"]), "a question is computed once"
    assert all(number(own["questions/s"]) > 0 for own in timed)


def test_generation_is_timed_beside_plain_generate(model: Path, place: Path) -> None:
    arguments = ["--model", model, "--prompts", 3, "--max-new-tokens", 3, "--batches", 2, "--repeats", 1]
    said = ran("generation_speed", *arguments, cwd=place)
    assert "starter:concise: 3 prompts, 1 repeats" in said
    ((plain, ours),) = tables(said)
    assert (plain["side"], ours["side"]) == ("plain, batch 2", "bapo")
    assert number(plain["against the best plain one"]) == 1
    assert number(ours["tokens/s"]) > 0


@pytest.mark.slow
def test_the_noise_floor_is_measured_and_faults_are_told_from_it(model: Path, place: Path) -> None:
    arguments = ["--model", model, "--prompts", 1, "--seeds", 1, "--resamples", 20, "--sets", instruction_set()]
    gaps, told = tables(ran("noise_floor", *arguments, cwd=place))
    bf16, float32 = gaps
    assert (bf16["precision"], float32["precision"]) == ("bf16", "float32")
    assert 0 < number(float32["nudged"]) < number(bf16["nudged"]) / 100
    assert number(float32["float32"]) == 0
    assert [row["refused, float32"] for row in told if row["what went wrong"] == "nothing"] == ["0 of 1"]
    assert {row["refused, float32"] for row in told if row["what went wrong"] != "nothing"} == {"1 of 1"}


@pytest.mark.slow
def test_ways_to_have_references_are_compared(model: Path, place: Path) -> None:
    arguments = ["--model", model, "--prompts", 3, "--held-out", 2, "--seeds", 0, "--rounds", 1]
    said = ran("references", *arguments, cwd=place)
    (rows,) = tables(said)
    assert [row["references"] for row in rows] == ["stored", "first step", "every step", "tiles"]
    assert [number(row["log-ratio of base responses, step 0 (nats)"]) for row in rows[1:3]] == [0, 0]
    assert all(number(row["loss of step 0"]) == pytest.approx(0.693, abs=0.01) for row in rows)
    assert len(re.findall(r"s a step, [\d.]+ times stored", said)) == 4


def test_a_rejected_base_is_recognized_and_goes_down_where_no_anchor_holds_it(model: Path, place: Path) -> None:
    said = ran("rejected_bases", "--model", model, "--steps", 6, "--learning-rate", 1e-2, cwd=place)
    assert "none, seed 0: 8 of 8 recognized" in said
    ((sequence, length, none),) = tables(said)
    ways = [row["anchor on the rejected response"] for row in (sequence, length, none)]
    assert ways == ["sequence", "length-normalized", "none"]
    assert number(none["rejected"]) < min(number(sequence["rejected"]), number(length["rejected"]))


@pytest.mark.slow
def test_speed_ups_are_timed_with_and_without(model: Path, place: Path) -> None:
    own = instruction_set()
    arguments = ["--model", model, "--sets", own, "--rounds", 1, "--prompts", 1, "--new-tokens", 2]
    (rows,) = tables(ran("speed_ups", *arguments, cwd=place))
    assert {row["instructions"] for row in rows} == {own}
    assert len({(row["kernel"], row["beside"]) for row in rows}) == len(rows) >= 2
    assert all(number(row["times as long without"]) > 0 for row in rows)


@pytest.mark.slow
def test_a_model_is_loaded_hashed_and_probed_once_and_not_at_all_where_all_is_done(model: Path, place: Path) -> None:
    (rows,) = tables(ran("start", "--model", model, cwd=place))
    whole, again, evaluation, evaluation_again = rows
    for row in (whole, evaluation):
        assert number(row["loads"]) == number(row["passes of SHA-256 over the weights"]) == 1
        assert number(row["probes of the row"]) == 1
        assert number(row["tokenizations"]) == 2  # once a side
    for row in (again, evaluation_again):
        assert not any(number(cell) for name, cell in row.items() if name not in ("", "seconds in all"))


@pytest.mark.slow
def test_log_probs_of_a_gguf_file_are_llama_cpps(tmp_path: Path) -> None:
    """The embedded model's file; llama.cpp sums in another order, and rounds to 8 bits where weights are quantized."""
    ((as_it_is, as_float32),) = tables(ran("llama_cpp", cwd=tmp_path))
    assert number(as_float32["tokens"]) > 30
    assert number(as_float32["mean gap"]) < number(as_it_is["mean gap"]) / 5
    assert number(as_float32["largest gap"]) < 0.05


def test_a_second_start_is_measured_for_each_size(model: Path, place: Path) -> None:
    *_, rows = tables(ran("second_start", 12, 14, "--model", model, "--keep", "kept", cwd=place))
    assert [row["groups"] for row in rows] == ["12", "14"]
    assert number(rows[0]["the same again"]) < number(rows[0]["first anchor"])
    assert all(number(cell.rpartition(",")[2]) > 50 for row in rows for name, cell in row.items() if name != "groups")
    assert len((place / "kept/store-14/logps.jsonl").read_text().splitlines()) == 1
    assert (place / "kept/run-14/adapter_model.safetensors").is_file()


def test_responses_are_what_a_template_writes(place: Path) -> None:
    pytest.importorskip("trl", reason="TRL's chat templates: pip install trl")
    by_response, by_tokenizer = tables(ran("templates", "--templates", "gemma", "qwen3", cwd=place))
    for table in (by_response, by_tokenizer):
        assert sum(number(row["right"]) for row in table) > 0
        assert sum(number(row["wrong"]) for row in table) == 0


@pytest.mark.slow
def test_a_point_of_the_cost_curves_is_measured_and_drawn(model: Path, place: Path) -> None:
    arguments = ["--model", model, "--sweeps", "pairs", "--most", 1, "--steps", 1, "--figure", "cost.png"]
    ((row,),) = tables(ran("training_cost", *arguments, cwd=place))
    assert (row["what grows"], row["to"]) == ("pairs per prompt", "1")
    # Two prompts of 64 tokens, each with two responses and a base of 128, of which the last is not read.
    assert number(row["tokens a step"]) == 2 * (64 + 3 * 127)
    assert number(row["seconds"]) > 0
    assert (place / "cost.png").is_file()


@pytest.mark.slow
def test_training_is_timed_beside_trl_which_computes_the_same_loss(model: Path, place: Path) -> None:
    pytest.importorskip("trl")
    arguments = ["--model", model, "--workloads", "by-pair", "--steps", 1, "--repeats", 1, "--pairs", 2]
    (rows,) = tables(ran("training_speed", *arguments, "--peak-size", 64, cwd=place))
    assert [row["side"] for row in rows] == ["trl-online", "trl-precomputed", "bapo"]
    losses = [number(row["loss (float32)"]) for row in rows]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-3)
    assert losses[0] != pytest.approx(0.6931, abs=1e-3), "the adapter is zero"
    assert all(number(row["pairs/s"]) > 0 for row in rows)


def test_controls_of_the_measures_are_zero_of_a_zero_adapter_and_larger_of_a_larger_rate(
    model: Path, place: Path
) -> None:
    asked = ["controls", "--model", model, "--source", "starter:concise", "--steps", 2, "--held-out", 3, "--limit", 6]
    said = ran("measures", *asked, cwd=place, BAPO_DATA=write_questions(place / "data"))
    changes, seconds = tables(said)
    by_adapter: dict[str, dict[str, float]] = {}
    for row in changes:
        by_adapter.setdefault(row["adapter"], {})[row["measure"].partition(" (")[0]] = number(row["change [95 %]"])
    assert len(by_adapter) == 4
    assert set(by_adapter["zero adapter"].values()) == {0.0}
    small, large = (by_adapter[name] for name in ("one setting, seed 0", "20 times the learning rate"))
    divergences = [measure for measure in small if measure.startswith("divergence")]
    assert len(divergences) == 2
    assert all(0 < small[measure] < large[measure] for measure in divergences)
    assert len(seconds) == 3


@pytest.mark.slow
def test_end_to_end_both_sides_do_the_grid_and_what_is_done_is_kept(model: Path, place: Path) -> None:
    pytest.importorskip("trl")
    asked = ["--model", model, "--preferences", "starter:concise", "--benchmarks", "piqa", "--peak-size", 64]
    asked += ["--steps", 2, "--batch", 2, "--prompts", 3, "--held-out", 2, "--limit", 4, "--new-tokens", 8]
    data = write_questions(place / "data")
    sides = ["--folder", "kept", "--sides", "bapo", "trl-precomputed"]
    said = ran("end_to_end", *asked, *sides, cwd=place, BAPO_DATA=data)
    costs, accuracies = tables(said)
    assert [row["side"] for row in costs] == ["bapo", "trl-precomputed"]
    assert number(costs[1]["lines"]) > 2 * number(costs[0]["lines"])
    assert all(number(row["peak memory, GB"]) > 0.1 for row in costs)
    models = ["base", "concise bapo", "concise dpo"]
    assert [(row["model"], row["side"]) for row in accuracies] == [
        (model, side) for model in models for side in ("bapo", "trl-precomputed")
    ]
    assert "The base's benchmark accuracies agree within 2 questions of 100: yes." in said
    theirs = json.loads((place / "kept/trl-precomputed.json").read_text())
    assert min(theirs["stages"].values()) > 0
    assert sum(theirs["stages"].values()) == pytest.approx(theirs["seconds"])
    assert ran("end_to_end", *asked, *sides, cwd=place, BAPO_DATA=data) == said


@pytest.mark.slow
def test_a_later_user_costs_less_where_prompts_are_shared(model: Path, place: Path) -> None:
    asked = ["people", "--model", model, "--users", 6, "--steps", 1, "--pool", 4, "--prompts", 4, "--held-out", 2]
    seconds, measured = tables(ran("many_users", *asked, "--new-tokens", 8, cwd=place))
    assert [row["users"] for row in seconds] == ["1", "2 to 5", "6"]
    assert number(measured[0][""]) == 6
    stores = list((place / "people/study/anchored").glob("*/base-*.jsonl"))
    assert len(stores) == 1
    batches = [json.loads(line)["records"] for line in stores[0].read_text().splitlines()]
    assert sum(map(len, batches)) == 4, "a base response for each prompt of the pool, and none for each user"


def test_users_draw_from_one_pool_or_have_prompts_of_their_own() -> None:
    loaded = importlib.util.spec_from_file_location("many_users", BENCHMARKS / "many_users.py")
    assert loaded is not None
    assert loaded.loader is not None
    many_users = importlib.util.module_from_spec(loaded)
    loaded.loader.exec_module(many_users)
    pools = {("starter", taste): read_preferences(f"starter:{taste}") for taste in many_users.TASTES["starter"]}

    def prompts(user: int, *, own: bool) -> list[str]:
        return [row["prompt"] for row in many_users.rows_of(user, pools, 8, own=own)]

    for own in (True, False):
        asked = [prompts(user, own=own) for user in range(4)]
        assert [len(set(mine)) for mine in asked] == [8] * 4
        assert (len({prompt for mine in asked for prompt in mine}) == 32) is own
    with pytest.raises(SystemExit, match="too few prompts"):
        prompts(1000, own=True)


def test_reading_a_gguf_file_leaves_what_transformers_reading_leaves(place: Path) -> None:
    """Which the program finds out itself: it ends with an error where a byte differs."""
    write_tiny_gguf(place / "m.gguf")
    ((theirs, ours, copy),) = tables(ran("gguf_conversion", "--model", "m.gguf", "--rounds", 1, cwd=place))
    assert [row["m.gguf"] for row in (theirs, ours, copy)] == ["transformers", "bapo", "the copy"]
