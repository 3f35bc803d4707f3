"""The kernels of segment attention against a plain masked softmax, and which one is taken."""

import pytest
import torch

from bapo.likelihood.attention import _flex, _split, flex_agrees, kernels_for
from bapo.likelihood.layout import Segments

SEGMENTS = Segments(((5, (3, 0, 4)), (6, (2,)), (1, (7, 1))))
TOKENS = sum(SEGMENTS.lengths)


def plain(query, key, value, scaling, window, softcap):
    """Every token against every token, with a mask that is written out by definition."""
    allowed = torch.zeros(TOKENS, TOKENS, dtype=torch.bool)
    start = 0
    for prompt, responses in SEGMENTS.groups:
        at = start + prompt
        spans = [(list(range(start, at)))]
        for length in responses:
            spans.append(list(range(start, start + prompt)) + list(range(at, at + length)))
            at += length
        for own in spans:
            for j, q in enumerate(own):
                for i, k in enumerate(own[: j + 1]):
                    allowed[q, k] |= window is None or j - i < window
        start = at
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.mT * (scaling or query.shape[-1] ** -0.5)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    return (scores.masked_fill(~allowed, -torch.inf).softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("kernel", [_split, _flex])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize(("scaling", "window", "softcap"), [(None, None, None), (0.1, 4, None), (None, 3, 2.0)])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_kernels_are_masked_softmax(kernel, key_heads, scaling, window, softcap):
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, TOKENS, 16) * 2 for heads in (4, key_heads, key_heads))
    segments = Segments(SEGMENTS.groups)
    found = kernel(query, key, value, scaling, window, softcap, segments)
    torch.testing.assert_close(found, plain(query, key, value, scaling, window, softcap), rtol=1e-5, atol=1e-5)


def test_owners_say_where_each_token_belongs():
    segment, prompt, position = Segments(((2, (1, 2)), (1, (1,)))).owners(torch.device("cpu"))
    assert segment.tolist() == [0, 0, 1, 2, 2, 3, 4]
    assert prompt.tolist() == [0, 0, 0, 0, 0, 3, 3]
    assert position.tolist() == [0, 1, 2, 2, 3, 0, 1]


def test_flex_is_not_taken_where_it_does_not_run():
    assert kernels_for(torch.device("cpu")) == ("split",)
    assert not flex_agrees(torch.device("cpu")), "flex attention has learned backward on CPU: it may be taken there too"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_flex_agrees_with_split_on_cuda():
    assert flex_agrees(torch.device("cuda"))
