"""Every way to compute a response's log-prob, and how far each is from the model's own code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from bapo.likelihood.fit import Verdict, judge
from bapo.likelihood.layout import TokenGroup
from bapo.likelihood.passes import Passes, evaluating
from bapo.likelihood.strands import MOST_STRANDS

Way = Callable[[Passes, Sequence[TokenGroup], int], Tensor]
"""Of passes, groups and the most strands: (P,) token log-probs, response after response."""


def plain(passes: Passes, groups: Sequence[TokenGroup], most_strands: int) -> Tensor:
    """One unpadded sequence at a time, through the model's own code."""
    return passes.plainly(groups).tokens


def padded(passes: Passes, groups: Sequence[TokenGroup], most_strands: int) -> Tensor:
    """All sequences in one batch, padded, through the model's own code: as answers are generated."""
    return passes.padded(groups)


def packed(passes: Passes, groups: Sequence[TokenGroup], most_strands: int) -> Tensor:
    """All sequences in one row, each behind a prompt of its own."""
    alone = [TokenGroup(group.prompt, (response,)) for group in groups for response in group.responses]
    return passes.in_row(alone, most_strands).tokens


def shared(passes: Passes, groups: Sequence[TokenGroup], most_strands: int) -> Tensor:
    """A row for each prompt, with all of its responses behind it."""
    return torch.cat([passes.in_row([group], most_strands).tokens for group in groups])


def grouped(passes: Passes, groups: Sequence[TokenGroup], most_strands: int) -> Tensor:
    """All prompts in one row, each with all of its responses behind it: as the library scores and trains."""
    return passes.in_row(groups, most_strands).tokens


PLAIN: Way = plain
PADDED: Mapping[str, Way] = {"padded": padded}
ROWS: Mapping[str, Way] = {"packed": packed, "shared": shared, "grouped": grouped}
"""By their names: the model's own code, and what there is beside it."""


def computed(way: Way, passes: Passes, groups: Sequence[TokenGroup], dtype: torch.dtype) -> Tensor:
    """(P,) token log-probs computed one way, without gradients and dropout, in the model's precision or in float32."""
    strands = MOST_STRANDS if dtype == passes.causal_lm.dtype else 1  # not while layers take turns
    with torch.no_grad(), evaluating(passes.model), passes.precision(dtype):
        return way(passes, groups, strands).cpu()


def own_passes(passes: Passes, groups: Sequence[TokenGroup], dtype: torch.dtype) -> dict[str, Tensor]:
    """The model's own numbers, and again where rounding has moved them: what `judge` compares others with."""
    once = computed(plain, passes, groups, dtype)
    with passes.nudging():
        return {"plain": once, "nudged": computed(plain, passes, groups, dtype)}


def verdict_on(
    way: Way, passes: Passes, groups: Sequence[TokenGroup], own: Mapping[str, Tensor], dtype: torch.dtype
) -> Verdict:
    """How far a way to compute is from the model's own numbers (`own_passes` of the same groups and precision)."""
    return judge(computed(way, passes, groups, dtype), own, dtype)
