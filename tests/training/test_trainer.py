"""The trainer: its step against TRL's and against a plain implementation, and what must never change a gradient."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, DataLoaderShard, skip_first_batches
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from torch.utils.data import BatchSampler
from transformers import EarlyStoppingCallback, TrainerCallback

from bapo import BAPOConfig, BAPOTrainer
from bapo.errors import BapoError
from bapo.likelihood.strands import cut
from bapo.objectives import PAIR_LOSSES
from bapo.training.batches import PairDataset, PromptSampler
from bapo.training.checkpoints import MARK, last_complete, mark_complete
from bapo.training.metrics import ANCHOR_METRICS, BASE_METRICS, EVALUATION_METRICS, PAIR_METRICS
from bapo.training.pair_trainer import bring_within_reach
from tests.likelihood.test_scoring import relative_gap
from tests.rounding import rounding_by_rows
from tests.tiny import CONFIGS, tiny_model, tiny_tokenizer

LORA = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
ROWS = [
    {"prompt": f"Question {i}, please.", "chosen": f" Yes, {i} times {word}.", "rejected": f" No {word * 3}."}
    for i in range(4)
    for word in ("one", "three")
]
HELD_OUT = Dataset.from_list(ROWS[3:8])
FOLLOWING = {"anchor_control": "adaptive", "objective_settings": {"drift_target": 1e-2, "gain": 0.5}}
"""An anchor strength that follows the drift of each step."""
PAIRS = [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAPO_CACHE", str(tmp_path / "cache"))


def make(
    tmp_path: Path, rows: Any = None, *, name: str = "llama", peft_config: Any = LORA, **settings: Any
) -> BAPOTrainer:
    arguments = {name: settings.pop(name) for name in ("eval_dataset", "callbacks") if name in settings}
    told = {
        "output_dir": str(tmp_path / "out"),
        "base_max_new_tokens": 5,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "learning_rate": 1e-3,
        "seed": 0,
    }
    torch.manual_seed(0)
    return BAPOTrainer(
        tiny_model(name),
        args=BAPOConfig(**{**told, **settings}),
        train_dataset=Dataset.from_list(ROWS) if rows is None else rows,
        processing_class=tiny_tokenizer(None),
        peft_config=copy.deepcopy(peft_config),
        **arguments,
    )


def shake(model: torch.nn.Module) -> None:
    """Move the adapter off zero, the same way every time."""
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)


def step_gradients(trainer: BAPOTrainer, items: list[tuple[int, int]]) -> tuple[float, dict[str, torch.Tensor]]:
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(items))
    loss.backward()
    found = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.model.zero_grad()
    return float(loss.detach()), found


def plain_bapo(trainer: BAPOTrainer, strength: float = 5.0, beta: float = 0.1) -> torch.Tensor:
    """Equations 4 to 6 once more, pair by pair, nothing shared, through the model's own forward pass."""
    model = trainer.model

    def logp(prompt: tuple[int, ...], response: tuple[int, ...]) -> torch.Tensor:
        ids = torch.tensor([[*prompt, *response]])
        scores = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        return scores.gather(-1, ids[0, len(prompt) :, None]).sum()

    losses = []
    for group in trainer.train_dataset.preferences.groups:
        for chosen, rejected in group.pairs:
            responses = (group.tokens.responses[chosen], group.tokens.responses[rejected], group.bases[0].ids)
            policy = [logp(group.tokens.prompt, ids) for ids in responses]
            with torch.no_grad(), model.disable_adapter():
                reference = [logp(group.tokens.prompt, ids) for ids in responses]
            w, lo, b = (p - r for p, r in zip(policy, reference, strict=True))
            losses.append(-torch.nn.functional.logsigmoid(beta * (w - lo)) + strength * torch.relu(-b))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_bapo_step_is_that_of_a_plain_implementation(name: str, tmp_path: Path) -> None:
    trainer = make(tmp_path, name=name, anchor="sequence")
    shake(trainer.model)
    for _ in (
        "one way",
        "the other way",
    ):  # a base response that rises one way falls the other, and its hinge is active
        loss, gradients = step_gradients(trainer, trainer.train_dataset.items)
        plain = plain_bapo(trainer)
        plain.backward()
        expected = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
        trainer.model.zero_grad()
        assert loss == pytest.approx(float(plain.detach()), rel=1e-4)
        assert relative_gap(gradients, expected) < 1e-4
        with torch.no_grad():
            for parameter_name, parameter in trainer.model.named_parameters():
                if "lora_B" in parameter_name:
                    parameter.neg_()
    assert trainer._sums["train"].merged(lambda table: table)["anchor/active"] > 0, "the anchor took no part"


def test_a_dpo_step_is_that_of_trl(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    ours = make(tmp_path, objective="dpo")
    shake(ours.model)
    loss, gradients = step_gradients(ours, ours.train_dataset.items)

    torch.manual_seed(0)
    theirs = trl.DPOTrainer(
        tiny_model("llama"),
        args=trl.DPOConfig(
            output_dir=str(tmp_path / "trl"), per_device_train_batch_size=8, use_cpu=True, bf16=False, report_to="none"
        ),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tiny_tokenizer(None),
        peft_config=copy.deepcopy(LORA),
    )
    policies = dict(theirs.model.named_parameters())
    for name, parameter in ours.model.named_parameters():
        if parameter.requires_grad:
            policies[name].data.copy_(parameter.data)
    theirs.model.eval()
    batch = theirs.data_collator([theirs.train_dataset[i] for i in range(len(ROWS))])
    their_loss = theirs.compute_loss(theirs.model, batch)
    their_loss.backward()
    expected = {n: p.grad for n, p in theirs.model.named_parameters() if p.grad is not None}
    assert loss == pytest.approx(float(their_loss), rel=1e-4)
    assert relative_gap(gradients, expected) < 1e-4


@pytest.mark.parametrize("products", [nullcontext, rounding_by_rows])
def test_at_step_0_dpo_is_log_2_and_the_anchor_is_exactly_0_and_does_not_pull(products: Any, tmp_path: Path) -> None:
    with products():
        trainer = make(tmp_path)
        loss, gradients = step_gradients(trainer, trainer.train_dataset.items)
        assert loss == pytest.approx(0.6931472, abs=1e-6)
        dpo = make(tmp_path, objective="dpo")
        assert relative_gap(gradients, step_gradients(dpo, dpo.train_dataset.items)[1]) < 1e-6


def test_an_evaluation_of_what_has_not_been_trained_finds_exactly_nothing(tmp_path: Path) -> None:
    with rounding_by_rows():
        trainer = make(tmp_path, per_device_eval_batch_size=3)
        found = trainer.evaluate(trainer.train_dataset)
    assert found["eval_loss"] == pytest.approx(0.6931472, abs=1e-6)
    logged = trainer.state.log_history[-1]
    assert logged["eval_logratios/base"] == logged["eval_rewards/margins"] == 0


SPEED = ("_runtime", "_per_second", "_preparation_time")


def no_speed(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.endswith(SPEED) and name != "epoch"}


def test_an_evaluation_returns_the_means_over_all_pairs(tmp_path: Path) -> None:
    """Batches of 3, 3 and 2 pairs, against one batch of all; and the loss is its parts by equation 6."""
    shaken = make(tmp_path, per_device_eval_batch_size=3)
    shake(shaken.model)
    found = shaken.evaluate(Dataset.from_list(ROWS))
    at_once = make(tmp_path, per_device_eval_batch_size=8)
    shake(at_once.model)
    for name, value in no_speed(at_once.evaluate(Dataset.from_list(ROWS))).items():
        assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert found["eval_loss"] == pytest.approx(found["eval_loss/pair"] + 5 * found["eval_loss/anchor"], rel=1e-5)
    assert found["eval_rewards/margins"] == pytest.approx(
        0.1 * (found["eval_logratios/chosen"] - found["eval_logratios/rejected"]), rel=1e-4
    )
    predicted = shaken.predict(Dataset.from_list(ROWS), metric_key_prefix="test")
    assert predicted.predictions is None
    assert no_speed(predicted.metrics) == {
        name.replace("eval_", "test_", 1): pytest.approx(value, rel=1e-5) for name, value in no_speed(found).items()
    }


def test_the_metrics_of_an_evaluation_are_those_that_are_announced(tmp_path: Path) -> None:
    for objective, anchor in (("bapo", ANCHOR_METRICS), ("dpo", ())):
        found = make(tmp_path, objective=objective).evaluate(Dataset.from_list(ROWS))
        found.pop("eval_model_preparation_time")
        assert found.keys() == {f"eval_{name}" for name in (*EVALUATION_METRICS, *PAIR_METRICS, *BASE_METRICS, *anchor)}


def test_an_evaluation_in_between_takes_nothing_from_training_and_gives_it_nothing(tmp_path: Path) -> None:
    alone, between = (
        make(tmp_path / name, eval_dataset=ROWS[:3], logging_steps=2, eval_steps=1, eval_strategy=strategy)
        for name, strategy in (("a", "no"), ("b", "steps"))
    )
    alone.train()
    between.train()
    (expected,) = (entry for entry in alone.state.log_history if "loss" in entry)
    (found,) = (entry for entry in between.state.log_history if "loss" in entry)
    for name in PAIR_METRICS:
        assert found[name] == pytest.approx(expected[name], rel=1e-6), name
    assert not any(name.startswith("eval_") for name in found)


class Seen(TrainerCallback):
    def __init__(self) -> None:
        self.metrics: list[dict[str, float]] = []

    def on_evaluate(self, *_: Any, metrics: dict[str, float], **__: Any) -> None:
        self.metrics.append(dict(metrics))


@pytest.mark.parametrize("several", [False, True])
def test_the_best_model_is_chosen_and_put_back_by_any_metric(several: bool, tmp_path: Path) -> None:
    metric = f"eval_{'mine_' if several else ''}rewards/margins"
    evaluated = Seen()
    trainer = make(
        tmp_path,
        eval_dataset={"mine": ROWS[:3], "other": ROWS[3:]} if several else ROWS[:3],
        callbacks=[evaluated, EarlyStoppingCallback(1)],
        objective="dpo",
        max_steps=6,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model=metric,
        greater_is_better=False,  # so that the first step is the best, and later ones are to be undone
    )
    trainer.train()
    values = [metrics[metric] for metrics in evaluated.metrics if metric in metrics]
    assert 2 <= len(values) < 6, "was not stopped early"
    assert trainer.state.best_metric == min(values) == values[0]
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")
    assert trainer.evaluate()[metric] == pytest.approx(values[0], rel=1e-5)


def test_what_is_no_metric_is_said_before_the_first_step(tmp_path: Path) -> None:
    settings = {"eval_dataset": ROWS[:3], "eval_strategy": "steps", "eval_steps": 1}
    trainer = make(tmp_path, metric_for_best_model="eval_rewards/accuracy", **settings)
    with pytest.raises(BapoError, match=r"names 'eval_rewards/accuracy', .* eval_rewards/accuracies"):
        trainer.train()
    assert trainer.state.global_step == 0
    assert not make(tmp_path, metric_for_best_model="eval_loss/pair", **settings).args.greater_is_better


def test_data_that_come_after_training_are_anchored_to_the_model_before_it(tmp_path: Path) -> None:
    late = Dataset.from_list([{"prompt": "A late question.", "chosen": " Late yes.", "rejected": " Late no, no."}])
    trainer = make(tmp_path / "a", anchored_store=str(tmp_path / "store"), max_steps=4)
    trainer.train()
    found = no_speed(trainer.evaluate(late))
    assert found["eval_logratios/chosen"] != 0
    (group,) = trainer._anchored(late, trainer.args).groups
    (expected,) = make(tmp_path / "b", late, anchored_store=str(tmp_path / "other")).train_dataset.preferences.groups
    assert group.bases[0].ids == expected.bases[0].ids
    assert group.ref_logps == pytest.approx(expected.ref_logps, rel=1e-5)


def test_after_full_fine_tuning_there_is_no_reference_for_new_data(tmp_path: Path) -> None:
    trainer = make(tmp_path, peft_config=None)
    trainer.train()
    with pytest.raises(BapoError, match="has been trained: give them as eval_dataset when the trainer is made"):
        trainer.evaluate(Dataset.from_list(ROWS[:2]))


def test_a_data_seed_of_zero_is_one(tmp_path: Path) -> None:
    def order(**seeds: int) -> list[int]:
        return list(make(tmp_path, **seeds)._get_train_sampler())

    assert order(seed=7, data_seed=0) == order(seed=0) != order(seed=7)


def test_workers_load_the_set_that_is_evaluated(tmp_path: Path) -> None:
    told = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    trainer = make(tmp_path, eval_dataset={"a": ROWS[:2], "b": ROWS[2:]}, **told)
    plain = make(tmp_path, eval_dataset={"a": ROWS[:2], "b": ROWS[2:]})
    assert no_speed(trainer.evaluate()) == pytest.approx(no_speed(plain.evaluate()), rel=1e-5)


@pytest.mark.parametrize(("rate", "said"), [(1e-3, False), (1.0, True)])
def test_a_learning_rate_that_breaks_the_policy_is_said(
    rate: float, said: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make(tmp_path, objective="dpo", learning_rate=rate, max_steps=8, stop_at_loss=math.inf)
    trainer.train()
    assert ("the learning rate of 1 is too high" in caplog.text) == said


def trained(trainer: BAPOTrainer, **options: Any) -> dict[str, torch.Tensor]:
    trainer.train(**options)
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}


def test_accumulation_changes_nothing(tmp_path: Path) -> None:
    whole = trained(make(tmp_path / "a", per_device_train_batch_size=4))
    parts = trained(make(tmp_path / "b", per_device_train_batch_size=1, gradient_accumulation_steps=4))
    assert relative_gap(parts, whole) < 1e-4


def test_a_token_budget_changes_memory_and_no_number(tmp_path: Path) -> None:
    settings = {"part_gradient_steps": 1, "per_device_train_batch_size": 4, "sampler": "by-pair"}
    at_once, in_parts = make(tmp_path / "a", **settings), make(tmp_path / "b", max_batch_tokens=1, **settings)
    batches = [len(trainer.data_collator(trainer.train_dataset.items)["batches"]) for trainer in (at_once, in_parts)]
    assert batches[0] == 1
    assert batches[1] > 1, "the budget cut nothing"
    whole, parts = trained(at_once), trained(in_parts)
    assert relative_gap(parts, whole) < 1e-4
    for ours, theirs in zip(in_parts.state.log_history[:2], at_once.state.log_history[:2], strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - {"pairs_per_second", "tokens_per_second"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name


def test_strands_change_no_weight_and_no_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []

    def cut_and_note(layout: Any, most: int) -> Any:
        strands = cut(layout, most)
        if torch.is_grad_enabled():
            steps.append(len(strands))
        return strands

    monkeypatch.setattr("bapo.likelihood.passes.cut", cut_and_note)
    settings = {"sampler": "by-pair", "max_steps": 3, "track_base": True}
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        expected = trained(one := make(tmp_path / "one", strands=1, **settings))
        assert not steps
        found = trained(many := make(tmp_path / "many", **settings))
    finally:
        torch.set_num_threads(before)
    assert steps == [3, 3, 3]
    assert relative_gap(found, expected) < 1e-4
    for ours, theirs in zip(many.state.log_history[:2], one.state.log_history[:2], strict=True):
        for name in ours.keys() - {"pairs_per_second", "tokens_per_second"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize(
    ("metric", "greater"),
    [
        ("rewards/margins", True),
        ("loss/pair", False),
        ("eval_anchor/active", False),
        ("logps/rejected", False),
        ("glossary_rewards/margins", True),
        ("eval_rejected_rewards/margins", True),
        ("eval_mine_loss", False),
    ],
)
def test_which_metric_is_better_when_it_is_smaller(metric: str, greater: bool, tmp_path: Path) -> None:
    assert BAPOConfig(str(tmp_path), metric_for_best_model=metric).greater_is_better is greater


def test_a_fresh_adapter_of_another_kind_is_said_to_have_an_effect_only_if_it_has(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dora = LoraConfig(r=4, target_modules=["q_proj"], use_dora=True, task_type="CAUSAL_LM")
    make(tmp_path, peft_config=dora)
    assert "starts away" not in caplog.text
    dora.init_lora_weights = False
    make(tmp_path, peft_config=dora)
    assert "starts away" in caplog.text


@pytest.mark.parametrize("name", ["llama", "llama-tied"])
def test_single_tokens_of_the_embeddings_can_be_trained(name: str, tmp_path: Path) -> None:
    lora = LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[5, 8], task_type="CAUSAL_LM")
    trainer = make(tmp_path, name=name, peft_config=lora)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    before, after = (model.get_input_embeddings() for model in (tiny_model(name), trainer.model.merge_and_unload()))
    assert set((before.weight != after.weight).any(1).nonzero().flatten().tolist()) <= {5, 8}
    saved = load_file(tmp_path / "saved/adapter_model.safetensors")
    (rows,) = (own for key, own in saved.items() if "trainable_tokens" in key and "lm_head" not in key)
    assert torch.equal(rows, after.weight[[5, 8]])


def in_two_processes(folder: Path, weights: str) -> None:
    script = Path(__file__).with_name("two_processes.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    root = Path(__file__).parents[2]
    done = subprocess.run([*command, str(folder), weights], capture_output=True, text=True, timeout=300, cwd=root)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_sharded_weights_give_one_processs_step(tmp_path: Path) -> None:
    in_two_processes(tmp_path, "sharded")
    two = [torch.load(tmp_path / f"step-{rank}.pt") for rank in (0, 1)]
    trainer = make(tmp_path / "one", ROWS)
    shake(trainer.model)
    loss, expected = step_gradients(trainer, PAIRS)
    assert [own["pairs"] for own in two] == [2, 2]
    assert all(all(own["sharded"]) for own in two)
    # A process's loss is its share times the processes, whose mean FSDP takes.
    assert sum(float(own["loss"]) for own in two) / 2 == pytest.approx(loss, rel=1e-4)
    assert all(relative_gap(own["gradients"], expected) < 1e-4 for own in two)


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path) -> None:
    in_two_processes(tmp_path, "whole")
    logged = json.loads((tmp_path / "log.json").read_text())
    trainer = make(
        tmp_path / "one",
        ROWS[:7],
        per_device_train_batch_size=4,
        sampler="by-pair",
        max_steps=3,
        per_device_eval_batch_size=1,
        eval_dataset=HELD_OUT,
        **FOLLOWING,
    )
    one = trained(trainer)
    trainer.evaluate()
    assert relative_gap(torch.load(tmp_path / "weights.pt"), one) < 1e-4
    for entry, expected in zip(logged, trainer.state.log_history, strict=True):
        for name in ("loss", "rewards/margins", "logps/base", "rewards/accuracies", "loss/pair", "anchor/strength"):
            for key in {name, f"eval_{name}"} & expected.keys():
                assert entry[key] == pytest.approx(expected[key], rel=1e-4, abs=1e-6), key
    assert len({entry["anchor/strength"] for entry in logged if "anchor/strength" in entry}) == 3


def test_a_loss_of_an_evaluation_is_the_mean_over_its_pairs(tmp_path: Path) -> None:
    """5 pairs: in batches of 2 the last one has a batch for itself, and counts no more than the others, nor less."""
    losses = []
    for size, drop_last in ((1, False), (2, False), (5, False), (2, True)):
        settings = {"per_device_eval_batch_size": size, "dataloader_drop_last": drop_last}
        trainer = make(tmp_path, eval_dataset=HELD_OUT, **settings)
        shake(trainer.model)
        losses.append(trainer.evaluate()["eval_loss"])
    assert losses == [pytest.approx(losses[0], rel=1e-5)] * 4
    assert abs(losses[0] - math.log(2)) > 1e-3


@pytest.mark.parametrize("products", [nullcontext, rounding_by_rows])
def test_stopped_and_resumed_is_uninterrupted(products: Any, tmp_path: Path) -> None:
    with products():
        stop_and_resume(tmp_path)


def stop_and_resume(tmp_path: Path) -> None:
    settings = {"max_steps": 5, "per_device_train_batch_size": 3, "save_strategy": "steps", "save_steps": 2}
    lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM")
    expected = trained(make(tmp_path / "a", peft_config=lora, **settings))
    stopped = make(tmp_path / "b", peft_config=lora, **settings)
    stopped.add_callback(StopAfter(3))
    stopped.train()
    torn = tmp_path / "b/out/checkpoint-4"
    torn.mkdir()
    (torn / "trainer_state.json").write_text("{")  # as a kill in the middle of saving would leave it
    resumed = trained(make(tmp_path / "b", peft_config=lora, **settings), resume_from_checkpoint=True)
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)


def StopAfter(step: int) -> Any:
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = state.global_step >= step

    return Stop()


@pytest.mark.parametrize(
    ("steps", "batch"), [({"max_steps": 3}, 4), ({"num_train_epochs": 1.5, "max_steps": -1}, 4), ({"max_steps": 3}, 2)]
)
def test_a_finished_run_that_goes_on_takes_no_further_step(steps: dict[str, float], batch: int, tmp_path: Path) -> None:
    """Killed behind its last checkpoint. Its steps end inside an epoch (of 2 or 4), with a learning rate above 0."""
    settings = {
        **steps,
        "per_device_train_batch_size": batch,
        "lr_scheduler_type": "constant",
        "save_strategy": "steps",
        "save_steps": 1,
    }
    first = make(tmp_path, **settings)
    expected = trained(first)
    again = make(tmp_path, **settings)
    found = trained(again, resume_from_checkpoint=True)
    assert again.state.global_step == first.state.global_step == 3
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert [entry["step"] for entry in again.state.log_history if "loss" in entry] == [1, 2, 3]
    longer = make(tmp_path, **{**settings, "max_steps": 4})
    trained(longer, resume_from_checkpoint=True)
    assert longer.state.global_step == 4, "who asks for more gets more"


def test_a_checkpoint_with_a_file_cut_short_or_missing_does_not_count(tmp_path: Path) -> None:
    settings = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1}
    trained(make(tmp_path, **settings))
    one, two, three = (tmp_path / f"out/checkpoint-{step}" for step in (1, 2, 3))
    assert last_complete(tmp_path / "out") == three
    with (three / "optimizer.pt").open("r+b") as file:
        file.truncate(100)
    (two / "notes.txt").touch()
    assert last_complete(tmp_path / "out") == two
    assert three.exists(), "who came with a folder keeps it"
    content = bytearray((two / "adapter_model.safetensors").read_bytes())
    content[-1] ^= 1
    (two / "adapter_model.safetensors").write_bytes(content)
    assert last_complete(tmp_path / "out") == one
    (one / "adapter_model.safetensors").unlink()
    assert last_complete(tmp_path / "out") is None


def test_a_checkpoint_of_an_earlier_version_is_gone_on_with(tmp_path: Path) -> None:
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    make(tmp_path, **settings).train()
    folder = tmp_path / "out/checkpoint-1"
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.name != MARK}
    (folder / MARK).write_text(json.dumps(sizes))
    make(tmp_path, **settings).train(resume_from_checkpoint=str(folder))
    (folder / "optimizer.pt").write_bytes(b"")
    with pytest.raises(BapoError, match="is no whole checkpoint"):
        make(tmp_path, **settings).train(resume_from_checkpoint=str(folder))


def test_one_whole_checkpoint_is_there_at_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []

    def marking(checkpoint: Path, reference: str) -> None:
        found.append([path for path in (tmp_path / "out").glob("checkpoint-*") if (path / MARK).is_file()])
        mark_complete(checkpoint, reference)

    monkeypatch.setattr("bapo.training.pair_trainer.mark_complete", marking)
    make(tmp_path, max_steps=4, save_strategy="steps", save_steps=1, save_total_limit=1).train()
    assert [len(before) for before in found] == [0, 1, 1, 1]
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-4"]


def test_who_goes_on_saves_as_often_as_is_said_now(tmp_path: Path) -> None:
    make(tmp_path, max_steps=2, save_strategy="steps", save_steps=2).train()
    make(tmp_path, max_steps=4, save_strategy="steps", save_steps=1).train(resume_from_checkpoint=True)
    assert {path.name for path in (tmp_path / "out").glob("checkpoint-*")} == {f"checkpoint-{n}" for n in (2, 3, 4)}


@pytest.mark.parametrize("processes", [1, 2])
def test_within_an_epoch_several_processes_go_on_in_its_order(processes: int, tmp_path: Path) -> None:
    """What `accelerate` makes of the loader for one of several processes, whole and behind a batch that is skipped."""
    data = PairDataset(make(tmp_path).train_dataset.preferences)

    def batches(skipped: int) -> list[list[int]]:
        inner = BatchSampler(PromptSampler(data, seed=0), 1, drop_last=False)
        loader = DataLoaderShard(range(len(data)), batch_sampler=BatchSamplerShard(inner, processes, 0))
        bring_within_reach(loader)
        loader = skip_first_batches(loader, skipped) if skipped else loader
        loader.set_epoch(1)
        return [batch.tolist() for batch in loader]

    assert len(batches(0)) > 2
    assert batches(1) == batches(0)[1:]


def test_as_many_checkpoints_are_kept_as_were_asked_for_those_of_an_earlier_run_first_to_go(tmp_path: Path) -> None:
    (tmp_path / "out/checkpoint-100").mkdir(parents=True)

    class Saves(TrainerCallback):
        found: list[list[int]]

        def on_save(self, args: Any, *_: Any, **__: Any) -> None:
            self.found.append(sorted(int(path.name[11:]) for path in Path(args.output_dir).glob("checkpoint-*")))

    saves = Saves()
    saves.found = []
    settings = {"max_steps": 5, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 3, "callbacks": [saves]}
    make(tmp_path, **settings).train()
    assert saves.found == [[1, 100], [1, 2, 100], [1, 2, 3], [2, 3, 4], [3, 4, 5]]


def test_training_goes_on_from_its_own_whole_checkpoint_only(tmp_path: Path) -> None:
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    make(tmp_path, **settings).train()
    named = str(tmp_path / "out/checkpoint-1")
    other = make(tmp_path, name="llama-tied", **settings)
    with pytest.raises(BapoError, match="belongs to another model or precision"):
        other.train(resume_from_checkpoint=named)
    wider = make(tmp_path, peft_config=LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"), **settings)
    with pytest.raises(BapoError, match="does not fit the model and its adapter"):
        wider.train(resume_from_checkpoint=named)
    (tmp_path / "out/checkpoint-1/optimizer.pt").unlink()
    for folder in (named, str(tmp_path / "nowhere")):
        with pytest.raises(BapoError, match="is no whole checkpoint"):
            make(tmp_path, **settings).train(resume_from_checkpoint=folder)


def test_what_is_dropped_cut_or_doubtful_is_one_warning_with_counts(tmp_path: Path) -> None:
    rows = [
        *({"prompt": f"ask {i}", "chosen": f" good {i}", "rejected": f" bad {i}"} for i in range(3)),
        {"prompt": "long " * 40, "chosen": " a", "rejected": " b"},
        {"prompt": "equal", "chosen": " a", "rejected": " a"},
        {"prompt": "cut", "chosen": " a" * 40, "rejected": " b"},
        {"prompt": "both ways", "chosen": " a", "rejected": " b"},
        {"prompt": "both ways", "chosen": " b", "rejected": " a"},
    ]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer = make(tmp_path, rows, max_prompt_tokens=60, max_response_tokens=30)
    (sentence,) = [str(own.message) for own in said if "comparisons" in str(own.message)]
    assert trainer.train_dataset.preferences.pair_count == 6
    assert sentence == (
        "the training data, 8 comparisons: dropped or cut: 1 equal responses, 1 pairs dropped: prompt too long, "
        "1 responses cut: too long; kept though doubtful: 2 contradicts another pair."
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        make(tmp_path / "whole")
    assert not [own for own in said if "comparisons" in str(own.message)]


LOSS_OF_NOTHING_LEARNED = {
    "dpo": math.log(2),  # -log sigmoid(0)
    "bapo": math.log(2),
    "dpop": math.log(2),  # and a penalty of 0
    "ipo": 25.0,  # (0 - 1 / (2 * 0.1)) squared
    "ipo-summed": 25.0,
    "rso": 1.0,  # max(0, 1 - 0)
}
"""By hand, with all log-ratios 0 and beta 0.1."""


@pytest.mark.parametrize("objective", PAIR_LOSSES)
def test_every_objective_trains_and_logs(objective: str, tmp_path: Path) -> None:
    trainer = make(tmp_path, objective=objective, part_gradient_steps=1)
    trainer.train()
    entry = trainer.state.log_history[1]
    for key in ("logps/base", "logratios/chosen", "drift/per_token", "rewards/accuracies", "pairs_per_second"):
        assert key in entry
    assert ("grad_norm/anchor" in entry) == (objective == "bapo")
    assert entry["grad_norm/pair"] > 0
    if objective == "orpo":  # which has no reference: its loss is that of the model as it is
        assert entry["loss/pair"] < trainer.state.log_history[0]["loss/pair"]
    else:
        assert trainer.state.log_history[0]["loss/pair"] == pytest.approx(LOSS_OF_NOTHING_LEARNED[objective], rel=1e-5)


def test_logged_metrics_are_means_over_all_pairs_not_means_of_means(tmp_path: Path) -> None:
    whole = make(tmp_path / "a", per_device_train_batch_size=8, max_steps=1)
    uneven = make(tmp_path / "b", per_device_train_batch_size=3, gradient_accumulation_steps=3, max_steps=1)
    for trainer in (whole, uneven):
        trainer.train()
    for key in ("loss", "logps/chosen", "logps/rejected", "logps/base"):
        assert uneven.state.log_history[0][key] == pytest.approx(whole.state.log_history[0][key], rel=1e-5), key


FORMATS = {
    "standard": ROWS[:4],
    "implicit": [{"chosen": r["prompt"] + r["chosen"], "rejected": r["prompt"] + r["rejected"]} for r in ROWS[:4]],
    "conversational": [
        {
            "prompt": [{"role": "user", "content": r["prompt"]}],
            "chosen": [{"role": "assistant", "content": r["chosen"]}],
            "rejected": [{"role": "assistant", "content": r["rejected"]}],
        }
        for r in ROWS[:4]
    ],
    "conversational-implicit": [
        {
            side: [{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r[side]}]
            for side in ("chosen", "rejected")
        }
        for r in ROWS[:4]
    ],
}


def test_prompts_that_are_named_and_those_in_front_of_both_responses_are_the_same_tokens(tmp_path: Path) -> None:
    standard, implicit = (
        [
            (group.tokens.prompt, group.tokens.responses, group.pairs)
            for group in make(tmp_path / name, FORMATS[name]).train_dataset.preferences.groups
        ]
        for name in ("standard", "implicit")
    )
    assert standard == implicit
    prompt, chosen, rejected = (
        tuple(tiny_tokenizer(None)(ROWS[0][name])["input_ids"]) for name in ("prompt", "chosen", "rejected")
    )
    assert standard[0][0] == prompt
    assert standard[0][1][:2] == ((*chosen, 2), (*rejected, 2))  # an EOS behind


@pytest.mark.parametrize("name", FORMATS)
def test_trl_formats_train_and_evaluate(name: str, tmp_path: Path) -> None:
    rows = Dataset.from_list(FORMATS[name])
    trainer = BAPOTrainer(
        tiny_model("llama"),
        args=BAPOConfig(
            str(tmp_path), max_steps=1, base_max_new_tokens=4, use_cpu=True, save_strategy="no", disable_tqdm=True
        ),
        train_dataset=rows,
        eval_dataset={"mine": rows},
        processing_class=tiny_tokenizer(),
        peft_config=copy.deepcopy(LORA),
    )
    trainer.train()
    found = trainer.evaluate()
    assert found["eval_mine_loss"] > 0
    logged = next(entry for entry in trainer.state.log_history if "eval_mine_loss" in entry)
    assert "eval_mine_drift/per_token" in logged
    assert found.keys() <= logged.keys() | {"epoch"}
    assert all(logged[name] == value for name, value in found.items())


def test_base_responses_of_the_data_set_are_the_anchor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def must_not_run(*_: object) -> None:
        raise AssertionError("generated although the data set has base responses")

    monkeypatch.setattr("bapo.anchoring.anchored.generate_batch", must_not_run)
    trainer = make(tmp_path, Dataset.from_list([{**row, "base": f" Perhaps {i}."} for i, row in enumerate(ROWS)]))
    group = trainer.train_dataset.preferences.groups[0]
    assert group.bases[0].ids == (*tiny_tokenizer(None)(" Perhaps 0.")["input_ids"], 2)


def test_an_existing_adapter_is_its_own_reference(tmp_path: Path) -> None:
    from peft import get_peft_model

    policy = get_peft_model(tiny_model("llama"), copy.deepcopy(LORA))
    shake(policy)
    trainer = BAPOTrainer(
        policy,
        args=BAPOConfig(
            str(tmp_path), max_steps=1, base_max_new_tokens=4, use_cpu=True, save_strategy="no", disable_tqdm=True
        ),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tiny_tokenizer(None),
    )
    assert float(trainer.compute_loss(trainer.model, trainer.data_collator([(0, 0)]))) == pytest.approx(
        0.693147, abs=1e-5
    )
    trainer.train()


def test_full_fine_tuning_keeps_the_first_model_as_reference(tmp_path: Path) -> None:
    trainer = make(tmp_path, peft_config=None)
    before = copy.deepcopy(trainer.train_dataset.preferences.groups[0].ref_logps)
    trainer.train()
    assert trainer.train_dataset.preferences.groups[0].ref_logps == before
    assert trainer.state.log_history[1]["logratios/chosen"] != 0


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [("nan", "not a number"), ("explode", "above stop_at_loss"), ("reference", "policy and reference differ")],
)
def test_a_broken_run_stops_with_a_sentence(damage: str, sentence: str, tmp_path: Path) -> None:
    trainer = make(tmp_path, stop_at_loss=1e-3 if damage == "explode" else 1e4)
    if damage == "nan":
        trainer._check_step_0 = lambda: None
        with torch.no_grad():
            next(p for n, p in trainer.model.named_parameters() if "lora_A" in n).fill_(float("nan"))
    if damage == "reference":
        shake(trainer.model)
    with pytest.raises(BapoError, match=sentence):
        trainer.train()


def test_settings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for settings, sentence in (
        ({"max_steps": 0}, "max_steps must be a whole number from 1"),
        ({"dataloader_persistent_workers": True}, "needs dataloader_num_workers"),
        ({"accelerator_config": {"dispatch_batches": True}}, "dispatch_batches sends batches as tensors"),
        ({"objective": "bpao"}, "did you mean 'bapo'"),
        ({"sampler": "random"}, "Unknown sampler"),
        ({"objective": "dpo", "objective_settings": {"penalty": 3}}, "has no setting 'penalty'"),
    ):
        with pytest.raises(BapoError, match=sentence):
            BAPOConfig(str(tmp_path), **settings)
    with pytest.raises(BapoError, match="leaves nothing of 8 pairs"):
        make(tmp_path, dataloader_drop_last=True, per_device_train_batch_size=16)
    with pytest.raises(BapoError, match=r"The optimizer .* cannot be made"):
        make(tmp_path, optim="galore_adamw").train()
    with pytest.raises(BapoError, match="float32 and the settings ask for bf16"):
        make(tmp_path, bf16=True)
    with pytest.raises(BapoError, match="row 1 has no 'rejected'"):
        make(tmp_path, [{"prompt": "a", "chosen": "b"}])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_model_in_memory_is_called_by_its_own_precision(dtype: torch.dtype) -> None:
    tokenizer, model = tiny_tokenizer(None), tiny_model("llama").to(dtype)
    arguments = {"args": BAPOConfig("out", use_cpu=True), "processing_class": tokenizer, "train_dataset": ROWS}
    if dtype == torch.float64:
        with pytest.raises(BapoError, match=r"weights are torch\.float64, which is not trained"):
            BAPOTrainer(model, peft_config=copy.deepcopy(LORA), **arguments)
    else:
        assert BAPOTrainer(model, peft_config=copy.deepcopy(LORA), **arguments)._reference.model.precision == "float16"
