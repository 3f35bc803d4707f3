"""TRL's own trainers as an independent implementation: same tiny models, same batch, same loss and gradient."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from bapo.objectives import PairLogps, make_objective
from tests.objectives.logps import pair
from tests.tiny import tiny_model, tiny_tokenizer

trl = pytest.importorskip("trl")

ROWS = [
    {"prompt": "Why is the sky blue?", "chosen": " Light scatters.", "rejected": " It is painted, by hand, each day."},
    {"prompt": "2+2", "chosen": " is four, as it happens", "rejected": " 5"},
    {"prompt": "Hello", "chosen": " Hi!", "rejected": " Go away."},
]
SAME_AS = {"dpo": "sigmoid", "ipo": "ipo", "rso": "hinge"}  # ours -> TRL's loss_type


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory):
    """TRL's DPO trainer, whose reference differs from its policy."""
    from datasets import Dataset

    return trl.DPOTrainer(
        model=tiny_model("llama", seed=0),
        ref_model=tiny_model("llama", seed=1),
        args=trl.DPOConfig(
            output_dir=str(tmp_path_factory.mktemp("trl")),
            per_device_train_batch_size=len(ROWS),
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=False,
            report_to="none",
        ),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tiny_tokenizer(template=None),
    )


def plain_logps(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Summed log-probs of the responses, neither by TRL nor by the library."""
    ids, mask = batch["input_ids"], batch["completion_mask"][:, 1:]
    logits = model(input_ids=ids, attention_mask=batch["attention_mask"]).logits[:, :-1]
    logps = logits.float().log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return (logps * mask).sum(1)


@pytest.mark.parametrize("beta", [0.1, 0.02])
@pytest.mark.parametrize("name", SAME_AS)
def test_loss_and_gradient_are_those_of_trl(name: str, beta: float, trainer) -> None:
    trainer.loss_types, trainer.beta = [SAME_AS[name]], beta
    trainer.model.zero_grad()
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(trainer.model, dict(batch))
    theirs.backward()
    weights = dict(trainer.model.named_parameters())
    their_gradients = {key: weight.grad.clone() for key, weight in weights.items()}
    trainer.model.zero_grad()

    chosen, rejected = plain_logps(trainer.model, batch).chunk(2)
    with torch.no_grad():
        ref_chosen, ref_rejected = plain_logps(trainer.ref_model, batch).chunk(2)
    lengths = batch["completion_mask"].sum(1).float().chunk(2)
    objective = make_objective(name, beta=beta)
    pairs = PairLogps(chosen, rejected, ref_chosen, ref_rejected, *lengths)
    ours = objective.total(objective(pairs)) / len(ROWS)
    ours.backward()

    assert any(gradient.any() for gradient in their_gradients.values())  # no comparison of satisfied hinges
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    for key, weight in weights.items():
        torch.testing.assert_close(weight.grad, their_gradients[key], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("chosen", "rejected"), [(-10.0, -12.0), (-0.5, -40.0), (-900.0, -0.06)])
def test_odds_ratio_is_that_of_trl(chosen: float, rejected: float) -> None:
    orpo = pytest.importorskip("trl.experimental.orpo")
    pairs, beta = pair(chosen, rejected), 0.1
    means = (pairs.chosen / pairs.chosen_tokens, pairs.rejected / pairs.rejected_tokens)
    settings = SimpleNamespace(beta=beta, accelerator=SimpleNamespace(device="cpu"))
    theirs, *_ = orpo.ORPOTrainer.odds_ratio_loss(settings, *means)  # beta * log sigmoid, subtracted from the NLL
    torch.testing.assert_close(make_objective("orpo", beta=beta).pair_loss(pairs), -means[0] - theirs)
