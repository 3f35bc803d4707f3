"""The noise floor: measured, the same question for every machine, and no constant in nats."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from bapo.likelihood import ResponseScorer, TokenGroup, gap_of, noise_floor
from bapo.likelihood.noise import FLOORS_IN_FLOAT32, nudged
from bapo.models import in_float32, load_model
from tests.likelihood.test_scoring import groups, with_lora
from tests.rounding import rounding_by_rows
from tests.tiny import CONFIGS, tiny_model


@pytest.fixture(params=["products as they are", "rounding by rows"])
def _products(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param == "rounding by rows":
        with rounding_by_rows():
            yield
    else:
        yield


def test_the_floor_is_that_of_the_two_layouts_that_differ_most() -> None:
    passes = {"a": torch.tensor([-1.0, -2.0]), "b": torch.tensor([-1.0, -2.5]), "c": torch.tensor([-1.25, -2.25])}
    floor = noise_floor(passes, float32=True)  # a and b 0.25, a and c 0.25, b and c 0.25: means of (0, 0.5), ...
    assert (floor.mean, floor.largest, floor.tokens) == (0.25, 0.5, 2)
    assert floor.limit == FLOORS_IN_FLOAT32 * 0.25
    assert gap_of(passes["a"], passes["b"]) == 0.25


def test_a_nudge_moves_a_few_numbers_by_one_rounding() -> None:
    embedded = torch.randn(40, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    moved = nudged(embedded)
    assert torch.equal(moved, nudged(embedded))
    changed = moved != embedded
    assert 0.005 < float(changed.float().mean()) < 0.03
    assert float(((moved - embedded).abs() / embedded.abs()).float().max()) < 0.012  # one step of 2^-8 to 2^-7


@pytest.mark.parametrize("name", [*CONFIGS, "gpt-oss-sinks", "mamba-recurrent"])
def test_in_float32_a_bf16_model_is_its_float32_copy(name: str) -> None:
    model, batch = tiny_model(name).bfloat16(), groups(seed=8)
    before = {n: p.data.clone() for n, p in model.named_parameters()}
    copy = tiny_model(name).bfloat16().float()
    found = ResponseScorer(model).float32(batch)
    torch.testing.assert_close(found, ResponseScorer(copy).score(batch).tokens, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(p.data, before[n]) and p.dtype == torch.bfloat16 for n, p in model.named_parameters())


def test_a_forward_that_breaks_off_gives_the_weights_back() -> None:
    model = tiny_model("llama").bfloat16()
    model.model.layers[1].mlp.register_forward_hook(lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError), in_float32(model):
        model(input_ids=torch.tensor([[5, 6]]))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.usefixtures("_products")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_rounding_is_no_misfit(name: str, dtype: torch.dtype) -> None:
    assert ResponseScorer(tiny_model(name).to(dtype)).fallback is None


@pytest.mark.usefixtures("_products")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layout_that_shares_wrongly_is_a_misfit(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """By little: here and there the first token of a prompt is not seen for what it is."""
    from bapo.likelihood import attention

    original = attention._at

    def forgetful(tensor: torch.Tensor, seen: tuple[slice, ...]) -> torch.Tensor:
        forgetful.calls += 1
        found = original(tensor, seen)
        if len(seen) == 2 and forgetful.calls % 16 == 0:
            found[:, :, 0] = 0
        return found

    forgetful.calls = 0
    monkeypatch.setattr(attention, "_at", forgetful)
    assert "differ" in (ResponseScorer(tiny_model("gpt2").to(dtype)).fallback or "")


@pytest.fixture(scope="module")
def embedded() -> ResponseScorer:
    return ResponseScorer(load_model("smollm2", precision="bf16", device="cpu").model)


def real_groups(scorer: ResponseScorer, count: int) -> list[TokenGroup]:
    """Whole sentences of the packaged preferences under the embedded model."""
    from transformers import AutoTokenizer

    from bapo.anchoring.tokens import LengthPolicy, tokenize
    from bapo.models import chat_format
    from bapo.preferences import read_preferences

    tokenizer = AutoTokenizer.from_pretrained(scorer.causal_lm.config._name_or_path)
    read = read_preferences("starter:concise")
    found = tokenize(read, chat_format(scorer.causal_lm, tokenizer), LengthPolicy()).groups[:count]
    return [TokenGroup(own.tokens.prompt, own.tokens.responses[:2]) for own in found]


@pytest.mark.slow
def test_rounding_alone_raises_an_alarm_at_most_once_in_a_thousand(embedded: ResponseScorer) -> None:
    """What is stored comes from rows of another composition; tokens are drawn anew a thousand times."""
    batch = real_groups(embedded, 3)
    with rounding_by_rows():
        layouts = embedded.layouts(batch)
        stored = torch.cat([embedded.row([TokenGroup(group.prompt, (r,))]) for group in batch for r in group.responses])
    assert gap_of(layouts["row"], stored) > 0
    limit, floor = (found := noise_floor(layouts, float32=False)).limit, found.mean
    assert floor < limit < 1.5 * floor, "so that it can tell something"
    generator = torch.Generator().manual_seed(0)
    alarms = 0
    for _ in range(1000):
        drawn = torch.randint(len(stored), (len(stored),), generator=generator)
        floor = noise_floor({name: tokens[drawn] for name, tokens in layouts.items()}, float32=False)
        alarms += gap_of(layouts["row"][drawn], stored[drawn]) > floor.limit
    assert alarms <= 1


@pytest.mark.slow
def test_float32_stands_hundreds_of_times_lower(embedded: ResponseScorer) -> None:
    batch = real_groups(embedded, 1)
    own, exact = embedded.noise_floor(batch), noise_floor(embedded.layouts(batch, float32=True), float32=True)
    assert exact.limit < own.mean / 100


def test_a_policy_in_training_mode_is_measured_without_dropout() -> None:
    policy = with_lora(tiny_model("llama"))
    for module in policy.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    scorer, batch = ResponseScorer(policy), groups(seed=9)
    expected = scorer.layouts(batch)
    policy.train()
    found = scorer.layouts(batch)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert policy.training
