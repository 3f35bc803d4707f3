"""What a GPU has to pass: its noise floor, the flex backend, and a run that starts at its reference."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
import torch

from bapo.anchoring import AnchorStore, GenerationSettings, anchor
from bapo.likelihood import ResponseScorer, TokenGroup, gap_of, noise_floor
from bapo.likelihood.attention import flex_agrees
from bapo.models import add_lora, load_model
from bapo.preferences import read_preferences
from bapo.training import BAPOConfig, BAPOTrainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: run on a machine that has one"),
]
GPU = torch.device("cuda")


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_floor_and_a_run_that_starts_at_its_reference(precision: str, tmp_path: Path) -> None:
    loaded = load_model("smollm2", precision=precision, device=GPU)
    store = AnchorStore(tmp_path / "store", loaded)
    data = anchor(read_preferences("starter:concise"), loaded, store, generation=GenerationSettings(16))
    scorer = ResponseScorer(loaded.model)
    assert scorer.fallback is None
    groups = [TokenGroup(group.tokens.prompt, group.tokens.responses) for group in data.groups[:4]]
    layouts = scorer.layouts(groups)
    for a, b in combinations(layouts, 2):
        print(f"{precision} {scorer.backend}: {a} and {b} differ by {gap_of(layouts[a], layouts[b]):.2g} nats a token")
    floor = noise_floor(layouts, float32=precision == "float32")
    assert gap_of(layouts["row"], layouts["groups"]) <= floor.limit

    told = BAPOConfig(str(tmp_path / "out"), max_steps=3, save_strategy="no", disable_tqdm=True)
    trainer = BAPOTrainer(add_lora(loaded.model), args=told, train_dataset=data, processing_class=loaded.tokenizer)
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["loss"] == pytest.approx(0.6931472, abs=1e-6)
    assert first["anchor/active"] == first["logratios/base"] == 0


def test_the_flex_backend_agrees_with_split() -> None:
    assert flex_agrees(GPU)
    scorer = ResponseScorer(load_model("smollm2", precision="bf16", device=GPU).model)
    assert scorer.backend == "flex"
