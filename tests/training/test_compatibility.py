"""TRL's door: every setting and argument of its trainer, and those of transformers, are taken or refused by name."""

from __future__ import annotations

import dataclasses
import inspect
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BitsAndBytesConfig, HfArgumentParser, TrainingArguments

from bapo import BAPOConfig, BAPOTrainer
from bapo.errors import BapoError
from bapo.training.compatibility import (
    MODEL_SETTINGS,
    TRAINER_ARGUMENTS,
    TRANSFORMERS_SETTINGS,
    TRL_SETTINGS,
    model_arguments,
)
from tests.tiny import tiny_model, tiny_tokenizer

OWN = {field.name for field in dataclasses.fields(BAPOConfig)}


def defaults(config: type) -> dict[str, Any]:
    return {
        field.name: field.default_factory() if field.default is dataclasses.MISSING else field.default
        for field in dataclasses.fields(config)
    }


def test_every_setting_of_trl_is_a_field_here_or_stands_in_the_table() -> None:
    trl = pytest.importorskip("trl")
    of_trl = {field.name for field in dataclasses.fields(trl.DPOConfig)}
    unknown = of_trl - OWN - TRL_SETTINGS.keys()
    assert not unknown, f"say in TRL_SETTINGS what becomes of {sorted(unknown)}"
    assert not OWN & TRL_SETTINGS.keys(), "a field stands in the table too"


def test_what_trl_has_by_default_is_taken(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    for name, value in defaults(trl.DPOConfig).items():
        if name not in ("output_dir", "bf16", "local_rank"):  # bf16=None is TRL's own way to say: on a GPU
            BAPOConfig(str(tmp_path), use_cpu=True, **({} if name == "use_cpu" else {name: value}))


def test_every_argument_of_trls_trainer_is_one_here_in_its_place() -> None:
    trl = pytest.importorskip("trl")
    theirs = list(inspect.signature(trl.DPOTrainer.__init__).parameters)
    assert list(inspect.signature(BAPOTrainer.__init__).parameters)[: len(theirs)] == theirs


REFUSED = {
    "router_aux_loss_coef": 0.01,
    "truncation_mode": "keep_end",
    "pad_to_multiple_of": 64,
    "loss_weights": [0.8, 0.2],
    "ld_alpha": 0.5,
    "f_divergence_type": "js_divergence",
    "label_smoothing": 0.1,
    "use_weighting": True,
    "activation_offloading": True,
    "sync_ref_model": True,
    "pad_token": "<pad>",
    "max_prompt_length": 512,
    "reference_free": True,
    "rpo_alpha": 1.0,
    "label_smoothing_factor": 0.1,
    "train_sampling_strategy": "group_by_length",
    "group_by_length": True,
    "neftune_noise_alpha": 5,
    "torch_compile": True,
    "use_liger_kernel": True,
    "auto_find_batch_size": True,
    "include_for_metrics": ["inputs"],
    "batch_eval_metrics": True,
    "include_num_input_tokens_seen": True,
    "average_tokens_across_devices": False,
    "bf16_full_eval": True,
    "deepspeed": "zero3.json",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_computed_is_refused_by_name_with_the_reason(name: str, tmp_path: Path) -> None:
    why = (TRL_SETTINGS | TRANSFORMERS_SETTINGS)[name].why
    with pytest.raises(BapoError) as refused:
        BAPOConfig(str(tmp_path), **{name: REFUSED[name]})
    assert str(refused.value).startswith(f"BAPOConfig does not take {name}=")
    assert str(refused.value).endswith(f": {why}.")


@pytest.mark.parametrize(
    ("name", "value"),
    [("padding_free", True), ("dataset_num_proc", 4), ("precompute_ref_batch_size", 2), ("ld_alpha", 1.0)],
)
def test_what_changes_no_number_is_taken(name: str, value: Any, tmp_path: Path) -> None:
    BAPOConfig(str(tmp_path), **{name: value})


def test_a_loss_of_trl_is_an_objective_here(tmp_path: Path) -> None:
    BAPOConfig(str(tmp_path), loss_type=["sigmoid"])
    for loss, objective in (("hinge", "rso"), ("ipo", "ipo")):
        with pytest.raises(BapoError, match=f"objective='{objective}'"):
            BAPOConfig(str(tmp_path), loss_type=loss)
    with pytest.raises(BapoError, match="no loss_type 'sigmoid and sft'"):
        BAPOConfig(str(tmp_path), loss_type=["sigmoid", "sft"])


def test_a_name_that_nobody_knows_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(BapoError, match="no setting 'learning_rat': did you mean 'learning_rate'"):
        BAPOConfig(str(tmp_path), learning_rat=1e-5)


def test_settings_of_transformers_in_the_table_are_its_own() -> None:
    """Those that the installed version does not have are of another one; most must be there, or the table is stale."""
    of_transformers = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert len(TRANSFORMERS_SETTINGS.keys() - of_transformers) <= 4
    for name in TRANSFORMERS_SETTINGS.keys() & of_transformers:
        default = defaults(TrainingArguments)[name]
        taken = TRANSFORMERS_SETTINGS[name].taken
        assert taken is not None
        assert default in taken, name


@pytest.mark.parametrize("new", [True, False])
def test_activations_are_checkpointed_by_the_new_name_and_the_old(new: bool, tmp_path: Path) -> None:
    name = "activation_checkpointing" if new else "gradient_checkpointing"
    config = BAPOConfig(str(tmp_path), **{name: True})
    assert config.checkpoints_activations
    assert config.gradient_checkpointing_kwargs == {"use_reentrant": False}
    assert not BAPOConfig(str(tmp_path)).checkpoints_activations


def test_settings_come_from_a_command_line_and_from_a_copy(tmp_path: Path) -> None:
    line = ["--output_dir", str(tmp_path), "--use_cpu", "true", "--max_length", "512", "--objective", "dpop"]
    line += [
        "--objective_settings",
        '{"penalty": 5}',
        "--model_init_kwargs",
        '{"dtype": "float32"}',
        "--loss_type",
        "sigmoid",
    ]
    (config,) = HfArgumentParser(BAPOConfig).parse_args_into_dataclasses(line)
    assert (config.lengths().max_tokens, config.objective_settings) == (512, {"penalty": 5})
    assert config.model_init_kwargs == {"dtype": "float32"}
    assert dataclasses.replace(config, learning_rate=1e-3).learning_rate == 1e-3
    assert pickle.loads(pickle.dumps(config)).to_dict() == config.to_dict()


def test_a_process_has_one_device(tmp_path: Path) -> None:
    config = BAPOConfig(str(tmp_path), use_cpu=True, per_device_train_batch_size=3)
    config._n_gpu = 4  # as transformers counts them where nothing launched a process for each
    config.__post_init__()
    assert (config.n_gpu, config.train_batch_size) == (1, 3)


# ---- a model by name


NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}


@pytest.mark.parametrize(
    ("told", "loading", "attention"),
    [
        ({}, {}, None),
        ({"dtype": "float32"}, {"precision": "float32"}, None),
        ({"torch_dtype": torch.bfloat16}, {"precision": "bf16"}, None),
        ({"dtype": None, "device_map": None, "revision": "main"}, {}, None),
        ({"precision": "float32", "dtype": torch.float32}, {"precision": "float32"}, None),
        ({"attn_implementation": "eager", "use_cache": False}, {}, "eager"),
        ({"device_map": "cpu"}, {"device": "cpu"}, None),
        ({"device_map": {"": "cpu"}}, {"device": "cpu"}, None),
        ({"adapter": "mine"}, {"adapter": "mine", "adapter_trainable": True}, None),
        (
            {"quantization_config": BitsAndBytesConfig(bnb_4bit_compute_dtype=torch.bfloat16, **NF4)},
            {"precision": "nf4"},
            None,
        ),
        (
            {"quantization_config": {"bnb_4bit_compute_dtype": "bfloat16", **NF4}, "dtype": "bfloat16"},
            {"precision": "nf4"},
            None,
        ),
    ],
)
def test_arguments_of_from_pretrained_mean_the_same(told: dict, loading: dict, attention: str | None) -> None:
    before = dict(told)
    assert model_arguments(told) == (loading, attention)
    assert told == before


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ({"dtype": "float16"}, "dtype='float16': name float32 or bfloat16"),
        ({"dtype": "auto"}, "dtype='auto'"),
        ({"dtype": "bfloat16", "precision": "float32"}, "several precisions"),
        ({"attn_implementation": "flash_attention_2"}, "attn_implementation='flash_attention_2'"),
        ({"revision": "v1.0"}, "revision='v1.0': download that revision"),
        ({"device_map": "balanced"}, "device_map='balanced'"),
        ({"device_map": {"model": 0, "lm_head": 1}}, "one device"),
        ({"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}, "quantized to nf4"),
        ({"quantization_config": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}}, "quantized to nf4"),
        ({"use_safetensors": False}, "use_safetensors=False"),
        ({"token": "secret"}, "token=.*load the model yourself"),
        ({"subfolder": "x"}, "subfolder='x'"),
    ],
)
def test_arguments_of_from_pretrained_that_are_not_handed_on_are_refused(told: dict, sentence: str) -> None:
    with pytest.raises(BapoError, match=sentence):
        model_arguments(told)


def test_a_model_by_name_comes_as_it_is_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "the model é"
    tiny_model("llama").save_pretrained(folder)
    tokenizer = tiny_tokenizer(None)
    tokenizer.save_pretrained(folder)
    given = tiny_tokenizer(None)

    def trainer(**arguments: Any) -> BAPOTrainer:
        told = {"max_steps": 1, "base_max_new_tokens": 4, "use_cpu": True, "anchored_store": str(tmp_path / "anchors")}
        rows = [{"prompt": "a", "chosen": " b", "rejected": " c"}]
        own = {name: arguments.pop(name) for name in ("processing_class", "quantization_config") if name in arguments}
        return BAPOTrainer(
            str(folder), args=BAPOConfig(str(tmp_path / "out"), **told, **arguments), train_dataset=rows, **own
        )

    asked = trainer(model_init_kwargs={"dtype": "float32", "attn_implementation": "eager"}, processing_class=given)
    assert asked.model.dtype == torch.float32
    assert asked.scorer.passes.fit.own_attention == "eager"
    assert asked.processing_class is given
    with pytest.raises(BapoError, match="given twice"):
        trainer(model_init_kwargs={"quantization_config": NF4}, quantization_config=NF4)
    assert MODEL_SETTINGS.keys().isdisjoint({"dtype", "device_map"})


# ---- arguments of the trainer


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"data_collator": len}, "BAPOTrainer does not take data_collator"),
        ({"compute_metrics": len}, "BAPOTrainer does not take compute_metrics=.*evaluate"),
        ({"preprocess_logits_for_metrics": len}, "does not take preprocess_logits_for_metrics"),
        ({"model_init": len}, "does not take model_init"),
        ({"ref_models": 1}, "no argument 'ref_models'"),
        ({"quantization_config": {}}, "is loaded already"),
        ({"args": TrainingArguments("there")}, "args must be a BAPOConfig"),
        ({"processing_class": object()}, "must be a tokenizer"),
        ({"ref_model": "its name"}, "ref_model must be a model"),
        ({"train_dataset": None}, "needs a train_dataset"),
    ],
)
def test_arguments_of_the_trainer_are_refused_by_name(arguments: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    told = {"args": BAPOConfig(str(tmp_path)), "train_dataset": [], "processing_class": tiny_tokenizer(None)}
    with pytest.raises(BapoError, match=sentence):
        BAPOTrainer(tiny_model("llama"), **{**told, **arguments})


def test_the_model_is_not_a_reference_besides_itself(tmp_path: Path) -> None:
    model = tiny_model("llama")
    with pytest.raises(BapoError, match="ref_model must be a model of its own"):
        BAPOTrainer(model, model, BAPOConfig(str(tmp_path)), train_dataset=[], processing_class=tiny_tokenizer(None))


def test_what_trainers_ever_took_is_known() -> None:
    trainer = pytest.importorskip("transformers").Trainer
    theirs = inspect.signature(trainer.__init__).parameters.keys() - {"self"}
    ours = inspect.signature(BAPOTrainer.__init__).parameters.keys() | TRAINER_ARGUMENTS.keys()
    assert theirs - ours <= {"optimizer_cls_and_kwargs"}
