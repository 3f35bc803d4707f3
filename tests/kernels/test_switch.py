"""The switch is honoured wherever a model is computed: what was not chosen is not used, what was chosen is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bapo.anchoring import AnchorStore, GenerationSettings, anchor, generate_batch
from bapo.evaluation import evaluate_preferences
from bapo.evaluation.harness import BapoLM
from bapo.kernels import KERNELS, fused_lora, kept_memory, lean_layers
from bapo.likelihood import ResponseScorer
from bapo.likelihood import passes as passes_of
from bapo.models import ChatFormat, LoadedModel
from tests.kernels.test_fused_lora import with_random_adapter
from tests.likelihood.test_scoring import groups
from tests.test_as_it_came import adapted, trainer_of
from tests.test_stages import preferences
from tests.tiny import tiny_tokenizer

IN_TRAINING = set(KERNELS) - {"packed-weights"}


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the kernels that are used, as that happens."""
    names: set[str] = set()

    def note(owner: Any, attribute: str, name: str) -> None:
        original: Callable[..., Any] = getattr(owner, attribute)

        def noted(*own: Any, **named: Any) -> Any:
            names.add(name)
            return original(*own, **named)

        monkeypatch.setattr(owner, attribute, noted)

    note(fused_lora._FusedForward, "__call__", "fused-lora")
    note(lean_layers._LeanNorm, "__call__", "lean-layers")
    note(passes_of, "GradientRows", "gradient-rows")
    note(passes_of, "in_strands", "strands")
    note(kept_memory, "_set", "kept-memory")
    note(torch.nn.Linear, "forward", "")
    monkeypatch.setattr(passes_of, "strands_for", lambda model: 2)
    import bapo.anchoring.generate as generating

    note(generating, "packed_weights", "packed-weights")
    return names


SETTINGS = ["off", "auto", *KERNELS]


def expected(setting: str, possible: set[str]) -> set[str]:
    return possible & (set(KERNELS) if setting == "auto" else {setting})


def seen(used: set[str]) -> set[str]:
    """What was used since; probes of kernels do not count, so they are made before."""
    found = used - {""}
    used.clear()
    return found


@pytest.mark.parametrize("setting", SETTINGS)
def test_scoring_and_generation(setting: str, used: set[str]) -> None:
    model = with_random_adapter("llama")
    scorer = ResponseScorer(model, setting)
    used.clear()
    scorer(groups()).summed().sum().backward()
    assert seen(used) == expected(setting, IN_TRAINING - {"kept-memory"})
    generate_batch(model, [(3, 4, 5)], GenerationSettings(3), [2], setting)
    assert seen(used) == expected(setting, {"packed-weights", "fused-lora", "lean-layers"})
    lm = BapoLM(LoadedModel("tiny", model, ChatFormat(tiny_tokenizer()), "float32", setting))
    used.clear()
    lm._loglikelihood_tokens([(None, [3, 4], [5, 6]), (None, [3, 4, 5, 6], [5, 6, 7, 8])])
    assert seen(used) == expected(setting, IN_TRAINING)


@pytest.mark.parametrize("setting", SETTINGS)
def test_anchoring_and_evaluation(setting: str, used: set[str], tmp_path: Path) -> None:
    model = LoadedModel("tiny", with_random_adapter("llama"), ChatFormat(tiny_tokenizer()), "float32", setting)
    ResponseScorer(model.model, setting)
    used.clear()
    anchored = anchor(preferences(), model, AnchorStore(tmp_path, model), generation=GenerationSettings(3))
    assert seen(used) == expected(setting, set(KERNELS) - {"kept-memory"})
    evaluate_preferences(model.model, anchored, kernels=setting)
    assert seen(used) == expected(setting, IN_TRAINING - {"kept-memory"})


@pytest.mark.parametrize("setting", SETTINGS)
def test_training(setting: str, used: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAPO_CACHE", str(tmp_path / "cache"))
    trainer = trainer_of(adapted(), tmp_path, kernels=setting)
    used.clear()
    trainer.train()
    assert seen(used) == expected(setting, IN_TRAINING)
