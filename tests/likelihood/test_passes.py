"""Work that is done side by side: its order, its surroundings, its errors, and where it is not done."""

import threading
from contextvars import ContextVar

import pytest
import torch

from bapo.likelihood import ResponseScorer, TokenGroup, passes_at_once, side_by_side
from bapo.likelihood.layout import tokens_of
from bapo.likelihood.scoring import _plan_passes
from tests.tiny import tiny_model


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_results_come_in_order_from_several_threads_at_once(four_threads: None) -> None:
    together = threading.Barrier(3, timeout=30)  # passed only if three are at work at the same time

    def work(item: int) -> tuple[int, int]:
        together.wait()
        return item * item, torch.get_num_threads()

    assert list(side_by_side(work, [3, 1, 2], at_once=3)) == [(9, 1), (1, 1), (4, 1)]
    assert torch.get_num_threads() == 4


def test_work_finds_the_gradient_mode_and_the_context_of_its_caller(four_threads: None) -> None:
    color = ContextVar("color", default="none")
    color.set("blue")
    with torch.no_grad():
        found = list(side_by_side(lambda _: (torch.is_grad_enabled(), color.get()), [0, 1], at_once=2))
    assert found == [(False, "blue")] * 2
    assert list(side_by_side(lambda _: torch.is_grad_enabled(), [0, 1], at_once=2)) == [True, True]


def test_an_error_reaches_the_caller_and_the_threads_are_given_back(four_threads: None) -> None:
    def work(item: int) -> int:
        return 1 // item

    with pytest.raises(ZeroDivisionError):
        list(side_by_side(work, [1, 0, 1], at_once=2))
    assert torch.get_num_threads() == 4


def test_passes_that_could_disturb_each_other_go_one_after_the_other(four_threads: None) -> None:
    model = tiny_model("llama")
    assert passes_at_once(model) == 4
    model.config.rope_parameters = {"rope_type": "longrope", "rope_theta": 1e4}
    assert passes_at_once(model) == 1
    with torch.autocast("cpu", torch.bfloat16):
        assert passes_at_once(tiny_model("llama")) == 1


@pytest.mark.parametrize("name", ["llama", "gemma2-softcap-window", "gpt2"])
def test_logps_do_not_depend_on_how_many_passes_run_at_once(name: str, four_threads: None) -> None:
    scorer = ResponseScorer(tiny_model(name))
    generator = torch.Generator().manual_seed(0)

    def draw(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 260, (n,), generator=generator).tolist())

    batch = [TokenGroup(draw(20), (draw(9), draw(14))) for _ in range(12)]
    many = scorer.score(batch, max_tokens=160).tokens
    torch.set_num_threads(1)
    torch.testing.assert_close(scorer.score(batch, max_tokens=160).tokens, many, rtol=1e-5, atol=1e-5)


def test_a_long_header_is_computed_once_for_each_pass_and_passes_are_even() -> None:
    header = tuple(range(90))
    groups = [TokenGroup((i, *range(5 + i % 3)), ((1,), (2,)), header=header) for i in range(100)]
    whole = tokens_of(groups)
    batches, at_once = _plan_passes(groups, max_tokens=2 * whole, at_once=2)
    assert at_once == len(batches) == 2
    assert [group for batch in batches for group in batch] == groups
    costs = [tokens_of(batch) for batch in batches]
    assert sum(costs) == whole + len(header)
    assert max(costs) - min(costs) <= 2 * max(group.cost for group in groups)


def test_one_pass_where_a_second_would_mostly_repeat_the_header() -> None:
    groups = [TokenGroup((i, 1, 2), ((1,),), header=tuple(range(90))) for i in range(10)]
    assert _plan_passes(groups, max_tokens=1000, at_once=2) == ([groups], 1)
