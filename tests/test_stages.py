"""What a run is known by, and that it keeps its prompts on another day."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from bapo.anchoring import AnchorStore, anchor
from bapo.errors import BapoError
from bapo.jobs import Variant, evaluate, personalize, read_recipe, run_folder, stages, training
from bapo.jobs.generating import answer
from bapo.jobs.places import as_shared
from bapo.jobs.recipe import LoraSection, Recipe, TrainingSection
from bapo.jobs.run import base_answers
from bapo.kernels import KERNELS
from bapo.models import ChatFormat, LoadedModel
from bapo.preferences import Message, Pair, Preferences, group_pairs
from bapo.results import BASE, day_of
from bapo.results.runs import VERSION
from tests.tiny import CHATML, tiny_model, tiny_tokenizer

DATED = "{{ 'Today: ' + strftime_now('%d %b %Y') + '\n' }}" + CHATML
DAYS = (datetime(2024, 7, 26), datetime(2024, 7, 27), datetime(2025, 1, 1))

OTHER_VALUES: dict[str, Any] = {
    "objective": "dpo",
    "beta": 0.2,
    "anchor": "token",
    "anchor_strength": 2.0,
    "anchor_control": "adaptive",
    "objective_settings": {"penalty": 3.0},
    "lr_scheduler_type": "linear",
    "per_device_train_batch_size": 3,
    "max_batch_tokens": 999,
    "strands": 3,
    "num_train_epochs": 3.0,
    "max_steps": 99,
    "alpha": 7,
    "sampler": "by-pair",
    "report_to": ["tensorboard"],
}
NO_PART_OF_THE_ADAPTER = {"save_steps", "report_to"}


def preferences() -> Preferences:
    return group_pairs("test", [Pair((Message("user", f"q {i}"),), f"yes {i}", f"no {i * i}") for i in range(6)])


def other_value(name: str, value: Any) -> Any:
    if name in OTHER_VALUES:
        return OTHER_VALUES[name]
    return not value if isinstance(value, bool) else value / 2 if isinstance(value, float) else value + 1


@pytest.fixture
def anchored(tmp_path: Path) -> Any:
    model = LoadedModel("tiny", tiny_model("llama"), ChatFormat(tiny_tokenizer()), "float32")
    return anchor(preferences(), model, AnchorStore(tmp_path / "a", model))


def test_the_identity_of_a_run_is_every_setting_that_can_change_the_adapter(anchored: Any) -> None:
    recipe = Recipe()
    mine = training.adapter_identity(recipe, recipe.training, anchored)
    for name in TrainingSection.model_fields:
        other = recipe.training.model_copy(update={name: other_value(name, getattr(recipe.training, name))})
        assert other != recipe.training
        same = training.adapter_identity(recipe, other, anchored) == mine
        assert same is (name in NO_PART_OF_THE_ADAPTER), name
    for name in LoraSection.model_fields:
        lora = recipe.lora.model_copy(update={name: other_value(name, getattr(recipe.lora, name))})
        assert training.adapter_identity(recipe.model_copy(update={"lora": lora}), recipe.training, anchored) != mine
    for kernels, same in (("off", False), (["strands"], False), (list(KERNELS), True)):
        told = recipe.model_copy(update={"model": recipe.model.model_copy(update={"kernels": kernels})})
        assert (training.adapter_identity(told, recipe.training, anchored) == mine) is same


def test_a_compared_objective_has_defaults_of_its_own_and_the_rest_of_the_recipe() -> None:
    told = {"objective": "dpop", "objective_settings": {"penalty": 3.0}, "anchor": "token", "anchor_strength": 2.0}
    recipe = Recipe(training={**told, "anchor_control": "adaptive", "warmup_steps": 4}, also_train=["bapo", "dpo"])
    stages.check(recipe)
    for name in recipe.also_train:
        assert recipe.training_of(name) == TrainingSection(objective=name, warmup_steps=4)
    assert recipe.training_of("dpop") == recipe.training


def test_the_identity_of_a_run_is_its_data_its_reference_and_its_processes(
    anchored: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe()
    mine = training.adapter_identity(recipe, recipe.training, anchored)
    others = [replace(anchored, groups=anchored.groups[1:]), replace(anchored, reference="another")]
    first = anchored.groups[0]
    base = replace(first.bases[0], ids=(9, *first.bases[0].ids))
    others.append(replace(anchored, groups=(replace(first, bases=(base,)), *anchored.groups[1:])))
    for other in others:
        assert training.adapter_identity(recipe, recipe.training, other) != mine
    renamed = replace(anchored, name="another name", counts={"dropped": 3})
    assert training.adapter_identity(recipe, recipe.training, renamed) == mine
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert training.adapter_identity(recipe, recipe.training, anchored) != mine


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose template writes the date, ten preferences, and a clock that tests can set by writing ``day``."""
    monkeypatch.setenv("BAPO_CACHE", str(tmp_path / "cache"))
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer(DATED).save_pretrained(tmp_path / "model")
    rows = [{"prompt": f"q {i}", "chosen": f"good {i}", "rejected": f"bad {i * i}"} for i in range(10)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    load = stages.load

    def on_that_day(*args: Any, **kwargs: Any) -> LoadedModel:
        loaded = load(*args, **kwargs)
        return replace(loaded, chat=loaded.chat.at(datetime.fromisoformat((tmp_path / "day").read_text())))

    monkeypatch.setattr(stages, "load", on_that_day)
    return tmp_path


def set_clock(place: Path, day: datetime) -> None:
    (place / "day").write_text(day.isoformat())


def recipe_of(place: Path, store: str) -> Recipe:
    return read_recipe(
        None,
        {
            "model.name": str(place / "model"),
            "preferences.source": str(place / "mine.jsonl"),
            "preferences.held_out": 4,
            "anchoring.anchored_store": str(place / store),
            "anchoring.base_max_new_tokens": 8,
            "training.max_steps": 2,
        },
    )


def test_a_run_goes_on_and_is_evaluated_on_other_days_with_the_prompts_that_it_was_trained_on(place: Path) -> None:
    recipe, run = recipe_of(place, "store"), place / "run"
    set_clock(place, DAYS[0])
    split = stages.read(recipe)
    first = stages.anchor_split(recipe, split, stages.load(recipe), today=day_of(run))
    assert "Today: 26 Jul 2024" in tiny_tokenizer().decode(first.train.groups[0].tokens.prompt)
    training.train(recipe, "bapo", first.train, run)
    (run / "run.json").unlink()  # as if it had been killed

    for day, store in zip(DAYS[1:], ("store", "another store"), strict=True):
        set_clock(place, day)
        recipe = recipe_of(place, store)
        later = stages.anchor_split(recipe, split, stages.load(recipe), today=day_of(run))
        assert later == first
        training.train(recipe, "bapo", later.train, run)  # refuses other data
        assert json.loads((run / "run.json").read_text())["today"] == DAYS[0].isoformat()

    set_clock(place, DAYS[2])
    recipe = recipe_of(place, "a third store")
    variants = [Variant(BASE), Variant("mine", adapter=str(run))]
    found = evaluate(recipe, variants, records=place / "later").content.models["mine"].preferences
    set_clock(place, DAYS[0])
    then = evaluate(recipe_of(place, "store"), variants, records=place / "then").content
    assert found == then.models["mine"].preferences
    assert found is not None
    assert day_of(place) is None


def test_an_adapter_goes_on_the_model_that_it_was_trained_on_wherever_that_lies(place: Path) -> None:
    recipe, run = recipe_of(place, "store"), place / "run"
    set_clock(place, DAYS[0])
    anchored = stages.anchor_split(recipe, stages.read(recipe), stages.load(recipe))
    training.train(recipe, "bapo", anchored.train, run)
    shutil.copytree(place / "model", place / "moved")
    shutil.copytree(place / "model", place / "other")
    tiny_model("llama", 7).save_pretrained(place / "other")

    def on(name: str) -> Recipe:
        return recipe.model_copy(update={"model": recipe.model.model_copy(update={"name": str(place / name)})})

    assert stages.load(on("moved"), adapter=str(run)).name == str(place / "moved")
    with pytest.raises(BapoError, match=r"was trained on another model \(.*model\) than .*other"):
        stages.load(on("other"), adapter=str(run))


def test_an_adapter_that_went_on_from_another_is_compared_where_that_is_the_same(place: Path) -> None:
    """Wherever it lies, and whatever is known of it in an earlier record."""
    for name, content in (("had", "{}"), ("moved/had", "{}"), ("another", "[]")):
        (place / name).mkdir(parents=True)
        (place / name / "adapter_config.json").write_text(content)
    base = LoadedModel("tiny", tiny_model("llama"), ChatFormat(tiny_tokenizer()), "float32")
    (place / "run").mkdir()

    def asked(adapter: str | None) -> Recipe:
        return read_recipe(None, {"model.reference_adapter": adapter and str(place / adapter)})

    def check(trained_on: Mapping[str, Any], adapter: str | None) -> None:
        record = {"version": VERSION, "recipe": {"model": trained_on}, "precision": "float32", "reference": "0" * 64}
        (place / "run/run.json").write_text(json.dumps(record))
        stages.check_base(asked(adapter), str(place / "run"), base)

    had = as_shared(asked("had"))["model"]
    for trained_on, same, others in (
        (had, ("had", "moved/had"), ("another", None)),
        (as_shared(asked(None))["model"], (None,), ("had",)),
        ({**asked("had").model.model_dump()}, ("had",), ("moved/had", None)),
    ):
        for adapter in others:
            check(trained_on, adapter)
        for adapter in same:
            with pytest.raises(BapoError, match="was trained on another model"):
                check(trained_on, adapter)


def test_the_base_models_answers_are_its_base_responses_where_it_would_say_the_same(place: Path) -> None:
    recipe = recipe_of(place, "store")
    set_clock(place, DAYS[0])
    model = stages.load(recipe)
    groups = stages.anchor_split(recipe, stages.read(recipe), model).held_out.groups
    for most in (3, 8, 9):  # base responses have 8 tokens
        asked = recipe.model_copy(
            update={"generations": recipe.generations.model_copy(update={"max_new_tokens": most})}
        )
        expected = answer(model, [group.tokens.prompt for group in groups], most)
        assert base_answers(asked, model, groups) == expected


def test_a_run_with_other_settings_is_refused_at_once_by_their_names_and_one_of_which_nothing_is_kept_is_not(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, folder = recipe_of(place, "store"), place / "out"
    other = recipe.model_copy(update={"training": recipe.training.model_copy(update={"max_steps": 3, "save_steps": 1})})
    set_clock(place, DAYS[0])
    (folder / "bapo").mkdir(parents=True)
    run_folder.start(
        folder / "bapo",
        "a run that was stopped before its first checkpoint",
        run_folder.Asked({"training.max_steps": 9}),
        None,
    )
    personalize(recipe, folder)
    (folder / "bapo/run.json").unlink()
    personalize(recipe, folder)
    page = (folder / "bapo/README.md").read_text()
    assert "pairs of" in page
    assert "adapter for model" in page, "by its name, since pages are shared"
    monkeypatch.setattr(stages, "load", lambda *_: pytest.fail("the model was loaded first"))
    with pytest.raises(BapoError, match=r"holds a run with other settings \(max_steps 2 there and 3 here\)"):
        personalize(other, folder)


def test_what_is_done_is_read_and_nothing_is_loaded(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model is loaded once for two objectives, and not at all once all is done, not even for an evaluation."""
    recipe, folder = recipe_of(place, "store").model_copy(update={"also_train": ["dpo"]}), place / "out"
    set_clock(place, DAYS[0])
    loads, load = [], stages.load

    def counted(*args: Any, **kwargs: Any) -> Any:
        loads.append(kwargs.get("adapter"))
        return load(*args, **kwargs)

    monkeypatch.setattr(stages, "load", counted)
    first = personalize(recipe, folder)
    assert loads == [None]
    variants = ["base", str(folder / "bapo")]
    evaluated = evaluate(recipe, variants, records=place / "records")
    assert evaluated.content.models["bapo"].preferences == first.content.held_out["bapo"]
    assert loads == [None, None]
    assert personalize(recipe, folder) == first
    assert evaluate(recipe, variants, records=place / "records") == evaluated
    assert loads == [None, None]
    (folder / "answers/dpo.json").unlink()
    (folder / "report.json").unlink()
    (folder / "dpo/checkpoints/checkpoint-1").mkdir(parents=True)
    weights = (folder / "dpo/adapter_model.safetensors").stat().st_mtime_ns
    assert personalize(recipe, folder).content == first.content
    assert (folder / "dpo/adapter_model.safetensors").stat().st_mtime_ns == weights, "only answers were missing"
    assert not (folder / "dpo/checkpoints").exists(), "which a kill had left"
    (folder / "held-out/dpo.json").write_text((folder / "held-out/dpo.json").read_text().replace("dpo", "dbo"))
    with pytest.raises(BapoError, match="damaged"):
        personalize(recipe, folder)


def test_an_adapter_trained_on_a_shared_model_is_that_of_a_model_of_its_own(place: Path) -> None:
    recipe = recipe_of(place, "store")
    set_clock(place, DAYS[0])
    anchored = stages.anchor_split(recipe, stages.read(recipe), stages.load(recipe)).train
    shared = stages.shared_model(recipe)
    for objective in ("dpo", "bapo"):
        alone = training.train(recipe, objective, anchored, place / "alone" / objective)
        together = training.train(recipe, objective, anchored, place / "shared" / objective, shared=shared)
        assert alone.weights == together.weights
        assert [entry["loss"] for entry in alone.log] == [entry["loss"] for entry in together.log]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"anchoring": {"base_max_new_tokens": 9}}, r"anchoring.base_max_new_tokens 8 there and 9 here"),
        ({"preferences": {"split_seed": 3}}, r"holds a run on other data"),
    ],
)
def test_other_data_and_other_base_responses_are_refused_before_a_model_is_loaded(
    change: dict[str, dict[str, Any]], sentence: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, folder = recipe_of(place, "store"), place / "out"
    set_clock(place, DAYS[0])
    personalize(recipe, folder)
    parts = {name: getattr(recipe, name).model_copy(update=values) for name, values in change.items()}
    monkeypatch.setattr(stages, "load", lambda *_, **__: pytest.fail("the model was loaded first"))
    with pytest.raises(BapoError, match=sentence):
        personalize(recipe.model_copy(update=parts), folder)


def test_a_page_of_ones_own_stays(place: Path) -> None:
    recipe, folder = recipe_of(place, "store"), place / "run"
    set_clock(place, DAYS[0])
    folder.mkdir()
    (folder / "README.md").write_text("mine")
    anchored = stages.anchor_split(recipe, stages.read(recipe), stages.load(recipe))
    training.train(recipe, "bapo", anchored.train, folder)
    assert "\nmine\n" in (folder / "README.md").read_text()  # below what PEFT writes
