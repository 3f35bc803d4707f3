"""The kernels of segment attention against a plain masked softmax, and which one is taken."""

import pytest
import torch

from bapo.likelihood.attention import _flex, _split, backends_for, flex_agrees
from bapo.likelihood.layout import Segments

# A prompt with three responses, one with one; then a header with two prompts behind it, each with a response.
SEGMENTS = Segments((5, 3, 0, 4, 6, 2, 3, 2, 1, 4, 3), (-1, 0, 0, 0, -1, 4, -1, 6, 7, 6, 9))
TOKENS = SEGMENTS.tokens


def plain(query, key, value, scaling, window, softcap):
    """Every token against every token, with a mask that is written out by definition."""
    allowed = torch.zeros(TOKENS, TOKENS, dtype=torch.bool)
    starts = [sum(SEGMENTS.lengths[:at]) for at in range(len(SEGMENTS.lengths))]
    for at in range(len(SEGMENTS.lengths)):
        line, up = [], at
        while up >= 0:
            line, up = list(range(starts[up], starts[up] + SEGMENTS.lengths[up])) + line, SEGMENTS.parents[up]
        for j, q in enumerate(line):
            for i, k in enumerate(line[: j + 1]):
                allowed[q, k] |= window is None or j - i < window
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.mT * (scaling or query.shape[-1] ** -0.5)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    return (scores.masked_fill(~allowed, -torch.inf).softmax(-1) @ value).transpose(1, 2)


CASES = [(None, None, None), (0.1, 4, None), (None, 3, 2.0), (0.3, None, None), (None, 1, None)]


def random_inputs(key_heads: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [(torch.randn(1, heads, TOKENS, 16) * 2).requires_grad_() for heads in (4, key_heads, key_heads)]


@pytest.mark.parametrize("kernel", [_split, _flex])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize(("scaling", "window", "softcap"), CASES)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_kernels_are_masked_softmax(kernel, key_heads, scaling, window, softcap):
    inputs = [tensor.detach() for tensor in random_inputs(key_heads)]
    segments = Segments(SEGMENTS.lengths, SEGMENTS.parents)
    found = kernel(*inputs, scaling, window, softcap, segments)
    torch.testing.assert_close(found, plain(*inputs, scaling, window, softcap), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize(("scaling", "window", "softcap"), CASES)
@pytest.mark.parametrize("queries_at_once", [2, 256])
def test_gradients_are_those_of_masked_softmax(key_heads, scaling, window, softcap, queries_at_once, monkeypatch):
    monkeypatch.setattr("bapo.likelihood.attention.QUERIES_AT_ONCE", queries_at_once)
    inputs = random_inputs(key_heads)
    upstream = torch.randn(1, TOKENS, 4, 16)
    found = torch.autograd.grad(_split(*inputs, scaling, window, softcap, SEGMENTS), inputs, upstream)
    expected = torch.autograd.grad(plain(*inputs, scaling, window, softcap), inputs, upstream)
    for own, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-5)


def test_gradients_in_bf16_err_no_more_than_torchs_own():
    """Against float64, beside plain attention in bf16 through torch's own forward and backward."""
    exact = [tensor.double().detach().requires_grad_() for tensor in random_inputs(2)]
    rounded = [tensor.detach().bfloat16().requires_grad_() for tensor in exact]
    upstream = torch.randn(1, TOKENS, 4, 16).bfloat16()
    truth = torch.autograd.grad(plain(*exact, None, None, None), exact, upstream.double())
    ours = torch.autograd.grad(_split(*rounded, None, None, None, SEGMENTS), rounded, upstream)
    torchs = torch.autograd.grad(plain(*rounded, None, None, None), rounded, upstream)
    for own, theirs, true in zip(ours, torchs, truth, strict=True):
        assert (own - true).norm() < 1.1 * (theirs - true).norm()


def test_owners_say_where_each_token_belongs_and_what_it_sees():
    segments = Segments((2, 1, 2, 1, 1), (-1, 0, 0, -1, 3))
    segment, position, sees = segments.owners(torch.device("cpu"))
    assert segment.tolist() == [0, 0, 1, 2, 2, 3, 4]
    assert position.tolist() == [0, 1, 2, 2, 3, 0, 1]
    assert sees.dtype == torch.bool, "flex attention joins it with another by &"
    assert sees.int().tolist() == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]
    assert {tensor.device.type for tensor in segments.owners(torch.device("meta"))} == {"meta"}


def test_masks_lie_where_what_they_are_for_lies():
    segments = Segments((2,), (-1,))
    assert segments.mask(2, 3, 1, torch.device("meta")).device.type == "meta"
    assert segments.bias(2, 3, None, 1, torch.empty(1, device="meta")).device.type == "meta"


def test_on_a_cpu_attention_is_split():
    assert backends_for(torch.device("cpu")) == ("split",)


@pytest.mark.skipif(torch.__version__.startswith("2.6"), reason="torch 2.6 has flex attention's backward on a CPU")
def test_flex_is_not_taken_where_it_does_not_run():
    assert not flex_agrees(torch.device("cpu")), "flex attention has learned backward on CPU: it may be taken there too"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_flex_agrees_with_split_on_cuda():
    assert flex_agrees(torch.device("cuda"))
