"""Responses are defined by our settings alone, and end where the model's context does."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig

from bapo.anchoring import GenerationSettings, generate_batch
from bapo.anchoring.sampling import OwnDraws, draws_of
from bapo.errors import BapoError
from bapo.models import context_length
from tests.tiny import tiny_model

PROMPTS = [(9, 9, 9, 9), (8, 9, 10, 11, 12)]  # the first is answered with tokens that repeat
HOW = {
    "greedy": GenerationSettings(max_new_tokens=12),
    "sampled": GenerationSettings(max_new_tokens=12, temperature=0.7, top_p=0.9, responses=2),
}
END = [2]

# What each setting of `transformers` would have to be to do harm; those that are not named are set to 7.
HARMFUL: dict[str, Any] = {
    "max_length": 4,
    "max_new_tokens": 2,
    "min_length": 40,
    "min_new_tokens": 40,
    "early_stopping": True,
    "max_time": 1e-6,
    "stop_strings": ["a"],
    "do_sample": True,
    "num_beams": 3,
    "use_cache": False,
    "cache_implementation": "static",
    "cache_config": {"backend": "quanto"},
    "temperature": 5.0,
    "top_k": 1,
    "top_p": 0.01,
    "min_p": 0.99,
    "top_h": 0.01,
    "typical_p": 0.01,
    "epsilon_cutoff": 0.9,
    "eta_cutoff": 0.9,
    "repetition_penalty": 20.0,
    "encoder_repetition_penalty": 20.0,
    "length_penalty": -5.0,
    "no_repeat_ngram_size": 1,
    "bad_words_ids": [[token] for token in range(3, 259)],
    "renormalize_logits": True,
    "forced_bos_token_id": 9,
    "forced_eos_token_id": 2,
    "remove_invalid_values": True,
    "exponential_decay_length_penalty": (1, 5.0),
    "suppress_tokens": list(range(3, 259)),
    "begin_suppress_tokens": list(range(3, 259)),
    "sequence_bias": [[[9], 100.0]],
    "token_healing": True,
    "guidance_scale": 3.0,
    "output_scores": True,
    "output_attentions": True,
    "return_dict_in_generate": False,
    "eos_token_id": list(range(3, 259)),
    "pad_token_id": None,
    "assistant_ensemble_weight": 0.5,
    "num_assistant_tokens_schedule": "heuristic",
    "speculation_type": "dflash",
    "disable_compile": False,
    "watermarking_config": {"greenlist_ratio": 0.5, "bias": 50.0},
    "a_setting_of_tomorrow": 7,
}
NEVER_SET = {"transformers_version", "_from_model_config"}


def settings_of_transformers() -> list[str]:
    return sorted({name for name in vars(GenerationConfig()) if name not in NEVER_SET} | HARMFUL.keys())


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def expected(model: Any) -> dict[str, Any]:
    return {name: generate_batch(model, PROMPTS, how, END) for name, how in HOW.items()}


def harmed(name: str) -> GenerationConfig:
    config = GenerationConfig()
    setattr(config, name, HARMFUL.get(name, 7))
    return config


@pytest.mark.parametrize("name", settings_of_transformers())
def test_no_setting_that_a_model_comes_with_changes_a_response(name: str, model: Any, expected: dict[str, Any]) -> None:
    own = model.generation_config
    model.generation_config = harmed(name)
    before = deepcopy(model.generation_config)
    try:
        for kind, how in HOW.items():
            assert generate_batch(model, PROMPTS, how, END) == expected[kind]
        assert vars(model.generation_config) == vars(before), "the model leaves as it came"
    finally:
        model.generation_config = own


def test_the_settings_above_would_do_harm(model: Any, expected: dict[str, Any]) -> None:
    """Handed to `transformers` the usual way, at least the notorious ones change what is generated, or raise."""

    def plain(name: str) -> Any:
        own = model.generation_config
        model.generation_config = harmed(name)
        how = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
        try:
            return model.generate(torch.tensor([PROMPTS[0]]), **{k: v for k, v in how.items() if k != name}).tolist()
        except Exception as error:
            return type(error)
        finally:
            model.generation_config = own

    right = [[*PROMPTS[0], *expected["greedy"][0][0].ids]]
    assert plain("top_p") == right, "which greedy decoding does not look at"
    notorious = (
        "suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "no_repeat_ngram_size", "repetition_penalty",
        "guidance_scale", "max_time", "num_beams", "stop_strings", "forced_eos_token_id", "eos_token_id",
        "exponential_decay_length_penalty", "sequence_bias", "watermarking_config", "max_new_tokens",
    )  # fmt: skip
    assert [name for name in notorious if plain(name) == right] == []


def test_greedy_responses_are_the_likeliest_tokens_of_plain_forward_passes(
    model: Any, expected: dict[str, Any]
) -> None:
    for prompt, (response,) in zip(PROMPTS, expected["greedy"], strict=True):
        ids = list(prompt)
        while len(ids) - len(prompt) < 12 and (len(ids) == len(prompt) or ids[-1] not in END):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert list(response.ids) == ids[len(prompt) :]


def test_a_model_with_an_adapter_leaves_as_it_came(model: Any, expected: dict[str, Any]) -> None:
    policy = get_peft_model(deepcopy(model), LoraConfig(r=2, target_modules=["q_proj"]))
    policy.generation_config = harmed("suppress_tokens")
    inner = policy.get_base_model().generation_config
    named = set(vars(policy.base_model))
    assert generate_batch(policy, PROMPTS, HOW["greedy"], END) == expected["greedy"]
    assert policy.get_base_model().generation_config is inner
    assert set(vars(policy.base_model)) == named


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "llama", "mistral-window"])
def test_a_response_ends_where_the_context_does(architecture: str) -> None:
    model = tiny_model(architecture)
    assert context_length(model) == 512
    prompts = [tuple(5 + i % 200 for i in range(n)) for n in (507, 470, 511, 20)]
    nothing = [999]  # no token ends a response, so that all are as long as they can be
    together = generate_batch(model, prompts, GenerationSettings(max_new_tokens=50), [0, *nothing])
    for prompt, (own,) in zip(prompts, together, strict=True):
        assert len(own.ids) == min(50, 512 - len(prompt)) or own.ended
        (alone,) = generate_batch(model, [prompt], GenerationSettings(max_new_tokens=50), [0, *nothing])
        assert own == alone[0]
    with pytest.raises(BapoError, match="fills the model's 512 positions"):
        generate_batch(model, [(5,) * 512], HOW["greedy"], END)


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", float("nan")), ("temperature", -1), ("top_p", 0), ("max_new_tokens", 0), ("seed", -1)],
)
def test_settings_that_are_no_numbers_of_their_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(BapoError, match=f"{name} must be a"):
        GenerationSettings(**{name: value})


def test_a_model_whose_configuration_names_no_bound_has_none() -> None:
    assert context_length(tiny_model("mamba-recurrent")) is None


def test_a_response_does_not_depend_on_its_company(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [*PROMPTS, (30, 31), (5, 6, 7, 8, 9, 10, 11)]
    for how in HOW.values():
        together = generate_batch(model, prompts, how, END)
        assert together == [generate_batch(model, [prompt], how, END)[0] for prompt in prompts]
        assert generate_batch(model, prompts[::-1], how, END) == together[::-1]
    monkeypatch.setattr("bapo.anchoring.generate.STAGE", 3)
    assert generate_batch(model, prompts, how, END) == together
    other = generate_batch(model, prompts, replace(how, seed=1), END)
    assert all(own != another for own, another in zip(together, other, strict=True))
    assert len({response.ids for own in together for response in own}) == 8, "responses to a prompt differ"


@pytest.mark.parametrize(
    ("temperature", "top_p", "expected"),
    [
        (1.0, 1.0, [0.5, 0.3, 0.15, 0.05, 0.0]),
        (0.5, 1.0, [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365, 0.0]),  # squares
        (1.0, 0.7, [0.625, 0.375, 0.0, 0.0, 0.0]),  # the likeliest that reach 0.7
    ],
)
def test_tokens_are_drawn_as_often_as_they_are_likely(temperature: float, top_p: float, expected: list[float]) -> None:
    rows = 20_000
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0]).log().expand(rows, -1)
    draws = [draws_of(0, (1, 2), number) for number in range(rows)]
    kept = OwnDraws(draws, temperature, top_p)(torch.zeros(rows, 1, dtype=torch.long), logits.clone())
    assert (kept == 0).sum().item() == rows, "one token a row is left"
    shares = (kept == 0).float().mean(0)
    for share, likely in zip(shares.tolist(), expected, strict=True):
        assert abs(share - likely) <= 5 * (likely * (1 - likely) / rows) ** 0.5  # five standard deviations


def test_a_draw_of_nearly_one_takes_the_last_token_that_is_possible() -> None:
    class Nearly:
        def random(self) -> float:
            return 1 - 2**-53

    logits = torch.tensor([[0.0, 1.0, -torch.inf, 2.0, -torch.inf]])
    assert OwnDraws([Nearly()], 1.0, 1.0)(torch.zeros(1, 1), logits).argmax() == 3  # type: ignore[list-item]
