"""Where the row fits a model, and what is done where it does not: lengths, training mode, looking ahead."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
import transformers as tf

from bapo.anchoring import GenerationSettings, generate_batch
from bapo.errors import BapoError
from bapo.likelihood import ResponseScorer, TokenGroup, judge
from bapo.likelihood.fit import named_lengths
from bapo.likelihood.passes import normalized
from bapo.models import add_lora, context_length, disable_model_dropout, steady_length
from tests.architectures import STEADY, VOCABULARY, WINDOW, tiny, tiny_config
from tests.tiny import tiny_model


def ids(length: int, seed: int) -> tuple[int, ...]:
    rng = random.Random(seed)
    return tuple(rng.randrange(5, VOCABULARY) for _ in range(length))


SHORT = TokenGroup(ids(7, 0), (ids(6, 1), ids(8, 2)))
LONG = TokenGroup(ids(40, 3), (ids(6, 4), ids(5, 5)))
LONGER = TokenGroup(ids(60, 6), (ids(4, 7),))


def alone(model: Any, group: TokenGroup, response: tuple[int, ...]) -> torch.Tensor:
    """By a copy of the model that has computed nothing before, through its logits."""
    fresh = copy.deepcopy(model).eval()
    causal_lm = fresh.get_base_model() if hasattr(fresh, "get_base_model") else fresh
    causal_lm.set_attn_implementation("eager")
    logps = fresh(input_ids=torch.tensor([[*group.prompt, *response]]), use_cache=False).logits[0].log_softmax(-1)
    return torch.stack([logps[len(group.prompt) - 1 + i, token] for i, token in enumerate(response)]).sum()


def own(model: Any, *groups: TokenGroup) -> torch.Tensor:
    return torch.stack([alone(model, group, response) for group in groups for response in group.responses]).detach()


CHANGING = ["llama+dynamic", "mistral+longrope", "phi3+longrope", "phimoe+longrope", "qwen3_moe+dynamic"]


@pytest.mark.parametrize("case", CHANGING)
def test_company_changes_no_score_where_frequencies_go_by_the_longest_position(case: str) -> None:
    model = tiny(case)
    expected = own(model, SHORT, LONG, LONGER)
    scorer = ResponseScorer(copy.deepcopy(model))
    assert scorer.fallback is None
    torch.testing.assert_close(scorer.score([SHORT, LONG, LONGER]).summed(), expected, rtol=1e-4, atol=1e-4)
    # Whatever has been scored before: LONGER leaves frequencies behind that are not LONG's.
    torch.testing.assert_close(scorer.score([LONG]).summed(), expected[2:4], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scorer.score([SHORT]).summed(), expected[:2], rtol=1e-4, atol=1e-4)


def test_gradients_of_short_and_long_together_are_those_of_each_alone() -> None:
    model = tiny("llama+dynamic")
    ResponseScorer(found := copy.deepcopy(model))([SHORT, LONG]).summed().sum().backward()
    for group in (SHORT, LONG):
        for response in group.responses:
            ids = torch.tensor([[*group.prompt, *response]])
            (single := copy.deepcopy(model))(input_ids=ids).logits[0].log_softmax(-1)[
                range(len(group.prompt) - 1, ids.shape[1] - 1), response
            ].sum().backward()
            for total, part in zip(model.parameters(), single.parameters(), strict=True):
                total.grad = part.grad if total.grad is None else total.grad + part.grad
    for theirs, ours in zip(model.parameters(), found.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("case", ["llama+dynamic", "phi3+longrope"])
def test_company_changes_no_generated_response(case: str) -> None:
    model, settings = tiny(case), GenerationSettings(max_new_tokens=8)
    prompts = [SHORT.prompt, LONG.prompt]
    expected = [generate_batch(copy.deepcopy(model), [prompt], settings, [2])[0] for prompt in prompts]
    assert generate_batch(model, prompts, settings, [2]) == expected
    generate_batch(model, [LONGER.prompt], settings, [2])
    assert generate_batch(model, prompts, settings, [2]) == expected


def test_the_steady_length_is_read_wherever_it_stands() -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    assert steady_length(tiny_config("llama")) is None
    assert steady_length(tiny_config("llama+dynamic")) == STEADY
    assert steady_length(tiny_config("phi3+longrope")) == STEADY
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 64}
    assert steady_length(tf.LlamaConfig(rope_parameters=yarn)) is None
    nested = tf.Gemma3Config(
        text_config={
            "rope_parameters": {
                "full_attention": {**rope, "original_max_position_embeddings": 64},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            }
        }
    )
    assert steady_length(nested) == 64


@pytest.mark.parametrize("case", ["phimoe+window", "gemma2", "mistral", "qwen2+window", "deepseek_v32"])
def test_sequences_beyond_a_window_are_right_whichever_path_they_take(case: str) -> None:
    model = tiny(case)
    assert WINDOW in named_lengths(model.config, above=16)
    scorer = ResponseScorer(copy.deepcopy(model))
    assert scorer.fallback is None
    found = scorer.score([SHORT, LONG, LONGER]).summed()
    torch.testing.assert_close(found, own(model, SHORT, LONG, LONGER), rtol=1e-4, atol=1e-4)
    by_mask_alone = case in ("phimoe+window", "deepseek_v32")
    assert (scorer.passes.fit.beyond[WINDOW] is None) != by_mask_alone


def test_a_window_is_looked_at_when_something_is_longer_and_then_for_good(caplog: pytest.LogCaptureFixture) -> None:
    scorer = ResponseScorer(tiny("phimoe+window"))
    scorer.score([SHORT])
    assert not scorer.passes.fit.beyond
    scorer.score([LONG, SHORT])
    scorer.score([LONG])
    assert caplog.text.count(f"longer than {WINDOW} tokens") == 1


def test_an_architecture_that_breaks_off_in_the_row_takes_the_plain_path() -> None:
    model = tiny("openai-gpt")
    scorer = ResponseScorer(copy.deepcopy(model))
    assert "RuntimeError" in (scorer.fallback or "")
    torch.testing.assert_close(scorer.score([SHORT]).summed(), own(model, SHORT), rtol=1e-4, atol=1e-4)


def test_a_model_that_looks_ahead_is_refused_in_a_sentence() -> None:
    config = tiny_config("bert")
    config.is_decoder = False
    with pytest.raises(BapoError, match=r"looks at the tokens behind .* no causal language model as it is configured"):
        ResponseScorer(tf.BertLMHeadModel(config).eval())


def test_a_model_that_drops_something_in_evaluation_mode_too_is_refused() -> None:
    """Dropout of 1 % behind the embeddings that never looks at the mode, as in code that forgets to hand it on."""
    model = tiny_model("llama")
    dropping = model.get_input_embeddings().register_forward_hook(lambda *a: torch.dropout(a[-1], 0.01, train=True))
    with pytest.raises(BapoError, match="gives other numbers each time"):
        ResponseScorer(model)
    dropping.remove()
    ResponseScorer(model)


def test_a_model_that_cannot_be_computed_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    monkeypatch.setattr(type(model), "forward", lambda *_, **__: {}["nothing"])
    with pytest.raises(BapoError, match="LlamaForCausalLM cannot be computed"):
        ResponseScorer(model)


@pytest.mark.parametrize("architecture", ["llama", "opt", "gpt2"])
def test_training_mode_computes_the_same_once_the_models_own_dropout_is_off(architecture: str) -> None:
    model = add_lora(tiny_model(architecture), rank=4, dropout=0.5)
    disable_model_dropout(model)
    scorer = ResponseScorer(model.train())
    scorer.check_training_mode()
    assert all(module.training for module in model.modules()), "it leaves modes as they were"
    assert {module.p for name, module in model.named_modules() if name.endswith("lora_dropout.default")} == {0.5}


def test_what_training_mode_draws_at_random_is_refused_in_a_sentence() -> None:
    for model in (tiny_model("gpt2"), tiny("phimoe")):  # the latter draws experts, which nothing switches off
        scorer = ResponseScorer(model)
        with pytest.raises(BapoError, match="something else in training mode"):
            scorer.check_training_mode()


def test_large_vocabularies_are_added_up_as_exactly_as_float32_can() -> None:
    """What the plain pass is off by would be taken for a fault of the row, since nudging moves it alike."""
    logits = 3 * torch.randn(4, 151_936, generator=torch.Generator().manual_seed(0))
    right = logits.double().log_softmax(-1)
    one_rounding = torch.finfo(torch.float32).eps * right.abs().max()
    assert (normalized(logits).double() - right).abs().max() <= one_rounding


def test_the_judgement_is_that_of_the_models_own_rounding() -> None:
    own_passes = {"plain": torch.tensor([-1.0, -2.0, -3.0]), "nudged": torch.tensor([-1.0, -2.0, -3.003])}
    just_right = judge(torch.tensor([-1.0, -2.0, -3.029]), own_passes, torch.float32)  # ten floors of 0.001
    wrong = judge(torch.tensor([-1.0, -2.0, -3.031]), own_passes, torch.float32)
    broken = judge(torch.tensor([-1.0, float("nan"), -3.0]), own_passes, torch.float32)
    assert (just_right.right, wrong.right, broken.right) == (True, False, False)


def test_models_whose_modules_change_while_they_compute_have_one_strand(monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT puts the adapters of experts on in the forward pass of their layer, in all threads at once."""
    scorer = ResponseScorer(model := tiny("olmoe"))
    assert not scorer.passes.fit.changes
    policy = add_lora(model, rank=4, dropout=0.0)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    expected = own(policy, SHORT, LONG, LONGER)
    scorer = ResponseScorer(policy)  # the same model, with other modules
    assert any("parametrizations" in change for change in scorer.passes.fit.changes)
    monkeypatch.setattr("bapo.likelihood.passes.strands_for", lambda model: 4)
    for _ in range(3):
        torch.testing.assert_close(scorer.score([SHORT, LONG, LONGER]).summed(), expected, rtol=1e-4, atol=1e-4)


def test_an_adapter_whose_numbers_are_none_is_refused_on_a_model_that_is_known_to_be_right() -> None:
    ResponseScorer(model := tiny("llama"))
    policy = add_lora(model, rank=4, dropout=0.0)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(parameter, torch.inf)
    with pytest.raises(BapoError, match="is not a number"):
        ResponseScorer(policy)


@pytest.mark.parametrize("case", ["llama", "qwen2", "gemma2", "mistral", "phi3", "gpt2", "qwen3_moe"])
def test_ordinary_models_do_not_change(case: str) -> None:
    assert ResponseScorer(tiny(case)).passes.fit.changes == ()


def test_a_context_stretches_where_frequencies_do() -> None:
    assert context_length(tiny("llama")) == 512
    assert context_length(tiny("llama+dynamic")) == 4 * STEADY  # by the factor of its frequencies
