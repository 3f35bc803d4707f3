"""One model that wears adapters one after another gives the numbers of a model that is loaded with each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

import bapo.models.fingerprint as fingerprint
from bapo.errors import BapoError
from bapo.likelihood import ResponseScorer
from bapo.models import SharedModel, add_lora, load_model, model_fingerprint
from tests.tiny import tiny_model, tiny_tokenizer


def saved(folder: Path, seed: int, **config: Any) -> Path:
    torch.manual_seed(seed)
    model = get_peft_model(tiny_model("llama"), LoraConfig(target_modules="all-linear", r=4, **config))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path


@pytest.fixture
def loads() -> list[str | None]:
    """The adapters with which a model was loaded, None for a bare one."""
    return []


def shared(place: Path, loads: list[str | None]) -> SharedModel:
    def load(adapter: str | None, trainable: bool) -> Any:
        loads.append(adapter)
        how = {"precision": "float32", "device": "cpu", "adapter_trainable": trainable}
        return load_model(str(place / "model"), adapter=adapter, **how)

    return SharedModel(load)


def scores(model: Any) -> list[float]:
    scorer = ResponseScorer(model)
    return scorer.score(scorer.probe()).tokens.tolist()


def state(model: torch.nn.Module) -> dict[str, tuple[Any, ...]]:
    return {
        name: (type(module), module.training, tuple(vars(module)), [p.requires_grad for p in module.parameters()])
        for name, module in model.named_modules()
    }


def test_numbers_are_those_of_a_fresh_load_and_the_model_is_as_it_came(place: Path, loads: list[str | None]) -> None:
    adapters = [saved(place / name, seed) for seed, name in enumerate("ab")]
    worn = shared(place, loads)
    bare_scores, bare_hash = scores(worn.bare.model), model_fingerprint(worn.bare.model)
    bare_state = state(worn.bare.model)
    weights = {name: tensor.clone() for name, tensor in worn.bare.model.state_dict().items()}
    for adapter in (*adapters, adapters[0]):
        alone = load_model(str(place / "model"), precision="float32", adapter=adapter, device="cpu").model
        with worn.wearing(adapter) as loaded:
            assert scores(loaded.model) == scores(alone) != bare_scores
            assert model_fingerprint(loaded.model) == model_fingerprint(alone) != bare_hash
        assert scores(worn.bare.model) == bare_scores
        assert state(worn.bare.model) == bare_state
    assert loads == [None]
    assert all(torch.equal(weights[name], tensor) for name, tensor in worn.bare.model.state_dict().items())


def test_an_adapter_is_checked_as_when_it_is_loaded(place: Path, loads: list[str | None]) -> None:
    worn = shared(place, loads)
    broken = saved(place / "broken", 0)
    from safetensors.torch import load_file, save_file

    tensors = load_file(broken / "adapter_model.safetensors")
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name] * float("nan")}, broken / "adapter_model.safetensors")
    before = scores(worn.bare.model)
    with pytest.raises(BapoError, match="infinite or not a number"), worn.wearing(broken):
        pass
    save_file({n: t for n, t in tensors.items() if n != name}, broken / "adapter_model.safetensors")
    with pytest.raises(BapoError, match="does not fit the model"), worn.wearing(broken):
        pass
    with pytest.raises(BapoError, match="There is no adapter"), worn.wearing(place / "nowhere"):
        pass
    assert scores(worn.bare.model) == before


@pytest.mark.parametrize("config", [{"bias": "all"}, {"modules_to_save": ["lm_head"]}, {"init_lora_weights": "olora"}])
def test_an_adapter_that_changes_more_than_it_adds_gets_a_model_of_its_own(
    config: dict[str, Any], place: Path, loads: list[str | None]
) -> None:
    adapter = saved(place / "more", 0, **config)
    worn = shared(place, loads)
    before = scores(worn.bare.model)
    with worn.wearing(adapter) as loaded:
        assert loaded.model is not worn.bare.model
    assert loads == [None, str(adapter)]
    assert scores(worn.bare.model) == before


def test_an_adapter_with_a_vocabulary_of_its_own_gets_a_model_of_its_own(place: Path, loads: list[str | None]) -> None:
    adapter = saved(place / "own-words", 0)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template += "!"
    tokenizer.save_pretrained(adapter)
    with shared(place, loads).wearing(adapter) as loaded:
        assert loaded.tokenizer.chat_template.endswith("!")
    assert loads == [None, str(adapter)]


def test_weights_are_hashed_once_and_again_once_they_change(
    place: Path, loads: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = []
    of_tensor = fingerprint._bytes
    monkeypatch.setattr(fingerprint, "_bytes", lambda tensor: hashed.append(tensor.numel()) or of_tensor(tensor))
    worn = shared(place, loads)
    with worn.wearing(None) as loaded:
        first = model_fingerprint(loaded.model)
        passes = len(hashed)
        assert model_fingerprint(loaded.model) == first
    with worn.fresh(lambda model: add_lora(model, rank=4)) as loaded:
        assert model_fingerprint(loaded.model) == first, "a fresh adapter is zero"
        assert len(hashed) == passes
        with torch.no_grad():
            loaded.model.get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight[0, 0] += 1
        assert model_fingerprint(loaded.model) != first
        assert len(hashed) == 2 * passes
    assert model_fingerprint(worn.bare.model) != first, "outside nobody holds the weights"
    assert len(hashed) == 3 * passes
