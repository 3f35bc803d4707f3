"""Rows that are computed in strands: the same numbers as in one, on every architecture, and errors that end them."""

import threading
from collections.abc import Iterator
from contextvars import ContextVar

import pytest
import torch
from peft import LoraConfig, get_peft_model

from bapo.kernels.fused_lora import seeded_dropout
from bapo.likelihood import ResponseScorer, TokenGroup, share_headers
from bapo.likelihood.layout import Layout, lay_out
from bapo.likelihood.strands import Exchange, _summed, cut, in_strands, side_by_side, strands_for
from tests.likelihood.test_scoring import gradients, groups, plain_logps, relative_gap, with_lora
from tests.tiny import CONFIGS, tiny_model


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", CONFIGS)
def test_strands_give_the_loss_and_gradients_of_plain_padded_passes(
    name: str, three_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts = []
    monkeypatch.setattr("bapo.likelihood.passes.cut", lambda *a: cuts.append(cut(*a)) or cuts[-1])
    batch, weights = groups(), torch.randn(64, generator=torch.Generator().manual_seed(0))
    weights[1::3] = 0  # as a hinge that is not active weighs
    reference = with_lora(tiny_model(name))
    plain = torch.stack([logp for group in batch for logp in plain_logps(reference, group)])
    (plain * weights[: len(plain)]).sum().backward()

    policy = with_lora(tiny_model(name))
    scorer = ResponseScorer(policy)
    found = scorer(batch).summed()
    (found * weights[: len(found)]).sum().backward()
    assert len(cuts[-1]) == 3
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-4)
    assert relative_gap(gradients(policy), gradients(reference)) < 1e-4


def test_a_header_above_prompts_of_other_strands_gets_its_gradient(three_threads: None) -> None:
    beginning = tuple(range(5, 45))
    batch = [TokenGroup((*beginning, *g.prompt), g.responses) for g in groups(seed=1)]
    found = []
    for own in (batch, share_headers(batch)):
        policy = with_lora(tiny_model("llama"))
        logps = ResponseScorer(policy)(own, most_strands=1 if own is batch else 3).summed()
        logps.sum().backward()
        found.append((logps.detach(), gradients(policy)))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-5, atol=1e-5)
    assert relative_gap(found[1][1], found[0][1]) < 1e-5


def test_a_cut_row_has_every_token_once_and_its_strands_are_even() -> None:
    layout = lay_out(groups(seed=4))
    strands = cut(layout, 3)
    tokens = torch.cat([strand.layout.input_ids[0] for strand in strands])
    assert torch.equal(tokens.sort().values, layout.input_ids[0].sort().values)
    sizes = [strand.layout.tokens for strand in strands]
    assert max(sizes) - min(sizes) <= max(layout.segments.lengths)
    assert sorted(torch.cat([strand.at_P for strand in strands]).tolist()) == list(range(len(layout.source_P)))
    for strand in strands:
        assert torch.equal(strand.layout.target_P, layout.target_P[strand.at_P])
        predicting = strand.layout.input_ids[0, strand.layout.source_P]
        assert torch.equal(predicting, layout.input_ids[0, layout.source_P[strand.at_P]])


@pytest.mark.parametrize("responses", [((7,), (8,), (9,)), ((7,),), ((7, 8), (9,), (10,))])
def test_responses_of_one_token_make_no_strand(responses: tuple[tuple[int, ...], ...], three_threads: None) -> None:
    batch = [TokenGroup((4, 5, 6), responses)]
    policy = with_lora(tiny_model("llama"))
    scorer = ResponseScorer(policy)
    one, many = scorer(batch, most_strands=1).summed(), scorer(batch).summed()
    torch.testing.assert_close(many, one, rtol=1e-5, atol=1e-5)
    many.sum().backward()
    found = gradients(policy)
    one.sum().backward()
    assert relative_gap(found, gradients(policy)) < 1e-5


def test_a_long_prompt_with_short_responses_is_not_cut() -> None:
    layout = lay_out([TokenGroup(tuple(range(5, 95)), ((1, 2, 3), (4, 5, 6)))])
    assert [strand.layout.tokens for strand in cut(layout, 2)] == [layout.tokens]
    even = lay_out([TokenGroup(tuple(range(5, 35)), (tuple(range(30)), tuple(range(31)), tuple(range(32))))])
    assert [strand.layout.tokens for strand in cut(even, 2)] == [60, 60]


def test_scores_without_gradient_do_not_depend_on_strands(three_threads: None) -> None:
    scorer, batch = ResponseScorer(tiny_model("gemma2-softcap-window")), groups(seed=2, prompts=8)
    many = scorer.score(batch, max_tokens=160)
    torch.set_num_threads(1)
    one = scorer.score(batch, max_tokens=160)
    torch.testing.assert_close(many.tokens, one.tokens, rtol=1e-5, atol=1e-5)
    assert many.lengths == one.lengths
    assert torch.equal(many.greedy, one.greedy)


def test_dropout_in_strands_follows_the_seed_alone(three_threads: None) -> None:
    lora = LoraConfig(r=4, lora_dropout=0.5, target_modules="all-linear", task_type="CAUSAL_LM")
    torch.manual_seed(0)
    policy = get_peft_model(tiny_model("llama"), lora)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    scorer, batch = ResponseScorer(policy), groups(seed=3)
    policy.train()

    def drawn(seed: int) -> torch.Tensor:
        with seeded_dropout(seed):
            return scorer(batch).tokens.detach()

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_an_error_in_one_strand_ends_them_all(three_threads: None) -> None:
    strands = cut(lay_out(groups(seed=4)), 3)
    ties = [strand.layout.segments.ties for strand in strands]
    assert all(ties)

    def compute(layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
        if layout.segments.ties is ties[1]:
            raise ZeroDivisionError("of the second")
        return layout.segments.ties.exchange.take("what never comes")

    with pytest.raises(ZeroDivisionError, match="of the second"):
        in_strands(compute, strands, [])
    assert torch.get_num_threads() == 3


def test_what_is_left_is_there_for_as_many_as_was_said() -> None:
    exchange = Exchange()
    exchange.leave("key", 5, takers=2)
    assert exchange.take("key") == exchange.take("key") == 5
    exchange.break_off(KeyError("gone"))
    with pytest.raises(KeyError, match="gone"):
        exchange.take("key")


def test_work_side_by_side_is_at_the_same_time_and_in_the_surroundings_of_its_caller(three_threads: None) -> None:
    together = threading.Barrier(3, timeout=30)  # passed only if three are at work at the same time
    color = ContextVar("color", default="none")
    color.set("blue")

    def work(item: int) -> tuple[int, int, bool, str]:
        together.wait()
        return item * item, torch.get_num_threads(), torch.is_grad_enabled(), color.get()

    with torch.no_grad():
        found = list(side_by_side(work, [3, 1, 2]))
    assert found == [(9, 1, False, "blue"), (1, 1, False, "blue"), (4, 1, False, "blue")]
    assert torch.get_num_threads() == 3


def test_models_that_strands_could_disturb_have_one(three_threads: None) -> None:
    model = tiny_model("llama")
    assert strands_for(model) == 3
    model.config.rope_parameters = {"rope_type": "longrope", "rope_theta": 1e4}
    assert strands_for(model) == 1
    with torch.autocast("cpu", torch.bfloat16):
        assert strands_for(tiny_model("llama")) == 1


def test_gradients_are_summed_in_place_unless_they_are_the_same_memory() -> None:
    same, whole = torch.ones(3), torch.ones(1)
    first = [same, same, whole.expand(4), own := torch.ones(2)]
    second = [torch.full((n,), float(n)) for n in (3, 5, 4, 2)]
    second[1] = second[1][:3]
    total = _summed([first, second])
    for gradient, expected in zip(total, (4.0, 6.0, 5.0, 3.0), strict=True):
        assert (gradient == expected).all()
    assert total[3] is own
    assert torch.equal(whole, torch.ones(1))
