"""Finding out how the row fits a model: it is compared with the model's own plain forward pass on a small probe."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bapo.errors import BapoError, first_line, foreign
from bapo.likelihood.attention import SEGMENT_ATTENTION, backends_for
from bapo.likelihood.fit import Fit, judge, named_lengths
from bapo.likelihood.layout import TokenGroup
from bapo.likelihood.noise import gap_of
from bapo.likelihood.passes import Passes, longest_sequence
from bapo.likelihood.strands import noting_changes
from bapo.likelihood.ways import computed, grouped, own_passes, verdict_on
from bapo.likelihood.ways import plain as plain_way
from bapo.models import steady_length

logger = logging.getLogger(__name__)

REPEATS_WITHIN = 1e-3
"""Share of its log-probs that a model's float32 passes may differ by when repeated: devices that add in no fixed order
differ by a thousandth of it, and dropout by a hundred times more."""

LONGER = 256
"""Tokens by which a probe of what changes at some length is longer, at most."""

_Passes = Mapping[torch.dtype, Mapping[str, Tensor]]

_fits: weakref.WeakKeyDictionary[nn.Module, dict[tuple[str, frozenset[str], bool], Fit]] = weakref.WeakKeyDictionary()
"""Of each model and each way to compute it (its own attention, the kernels, whether it is sharded)."""


def _check_numbers(passes: Mapping[str, Tensor]) -> None:
    if not all(tokens.isfinite().all() for tokens in passes.values()):
        raise BapoError(
            "The model gives a log-probability that is not a number for a plain prompt: "
            "load it in bf16 or float32, as float16 overflows, or download its weights again."
        )


class FitFinder:
    """What is known of how the row fits a model, found out where it is not known yet.

    Args:
        passes: of the model; their ``fit`` is set.

    Raises:
        BapoError: the model cannot be computed, gives numbers that are none or others each time, or looks at tokens
            that come later.
    """

    def __init__(self, passes: Passes) -> None:
        self.passes = passes
        self.causal_lm = passes.causal_lm
        known = _fits.setdefault(self.causal_lm, {})
        attention: str = self.causal_lm.config._attn_implementation
        if attention == SEGMENT_ATTENTION:  # another scorer has it in use
            attention = next((implementation for implementation, *_ in reversed(known)), "sdpa")
        way = (attention, passes.kernels, passes.sharded)
        fit = known.get(way)
        passes.fit = fit or Fit(attention, longest=steady_length(self.causal_lm.config))
        if fit is None:
            with passes.layers():
                self._find_misfit()
            known[way] = passes.fit
        elif fit.modules != _count_modules(self.causal_lm):  # an adapter has come or gone
            with passes.layers():
                _check_numbers(self._note_changes(self.probe()[:1]))
        self._lengths = named_lengths(self.causal_lm.config, above=max(map(longest_sequence, self.probe())))

    def probe(self, beyond: int = 0) -> list[TokenGroup]:
        """Two prompts with two responses each, spread over the vocabulary, the same every time.

        The first prompt is longer than ``beyond`` tokens, so that what changes there shows in its responses.
        """
        vocabulary = self.causal_lm.config.get_text_config().vocab_size
        ids = [(7919 * (i + 1)) % vocabulary for i in range(40)]
        before = [(104_729 * (i + 1)) % vocabulary for i in range(beyond + min(beyond // 2, LONGER))]
        return [
            TokenGroup((*before, *ids[0:9]), (tuple(ids[9:15]), tuple(ids[15:19]))),
            TokenGroup(tuple(ids[19:24]), (tuple(ids[24:31]), tuple(ids[31:34]))),
        ]

    def fits(self, group: TokenGroup) -> bool:
        """Whether the row gives the group's sequences their own numbers."""
        fit, length = self.passes.fit, longest_sequence(group)
        if fit.misfit is not None or (fit.longest is not None and length > fit.longest):
            return False
        for named in self._lengths:
            if named >= length:
                break
            if named not in fit.beyond:
                fit.beyond[named] = self._misfit_beyond(named)
            if fit.beyond[named] is not None:
                return False
        return True

    def _misfit_beyond(self, named: int) -> str | None:
        probe = self.probe(beyond=named)
        dtype = torch.float32 if self.passes.fit.has_float32 else self.causal_lm.dtype
        with self.passes.layers():
            misfit = self._misfit_on(probe, {dtype: own_passes(self.passes, probe, dtype)})
        if misfit is not None:
            logger.warning(
                "Sequences of %s that are longer than %d tokens are scored one at a time, because the shared row does "
                "not fit them (%s).",
                type(self.causal_lm).__name__,
                named,
                misfit,
            )
        return misfit

    def _find_misfit(self) -> None:
        """Compare row and plain path on a probe; note which of them is right."""
        fit, probe = self.passes.fit, self.probe()
        plain: dict[torch.dtype, dict[str, Tensor]] = {}
        plain[self.causal_lm.dtype] = self._note_changes(probe)
        if self.causal_lm.dtype != torch.float32:  # what is wrong by less than bf16 rounds shows there
            try:
                if self.passes.sharded:
                    raise ValueError("weights are read where they are put together")
                plain[torch.float32] = own_passes(self.passes, probe, torch.float32)
            except (RuntimeError, TypeError, ValueError) as error:  # code of a model's own may insist on its precision
                logger.debug("The model cannot be computed in float32 (%s).", error)
                fit.has_float32 = False
        for passes in plain.values():
            _check_numbers(passes)
        self._refuse_drawing(probe, plain)
        for backend in backends_for(self.causal_lm.device):
            fit.backend = backend
            fit.misfit = self._misfit_on(probe, plain)
            if fit.misfit is None:
                return
            logger.debug("The %s backend does not fit (%s).", backend, fit.misfit)
        self._refuse_looking_ahead(probe, plain)
        logger.warning(
            "%s is scored one sequence at a time, because the shared layout does not fit it (%s).",
            type(self.causal_lm).__name__,
            fit.misfit,
        )

    def _note_changes(self, probe: list[TokenGroup]) -> dict[str, Tensor]:
        """The model's own numbers, while it is noted whether its modules change as they compute."""
        failed, todo = f"{type(self.causal_lm).__name__} cannot be computed", "check the model, or take another one"
        with foreign(failed, todo), noting_changes(self.causal_lm) as changes:
            plain = own_passes(self.passes, probe, self.causal_lm.dtype)
        fit = self.passes.fit
        fit.modules, fit.changes = _count_modules(self.causal_lm), tuple(dict.fromkeys(changes))
        return plain

    def _misfit_on(self, probe: list[TokenGroup], plain: _Passes) -> str | None:
        try:
            for dtype, passes in plain.items():
                verdict = verdict_on(grouped, self.passes, probe, passes, dtype)
                if not verdict.right:
                    return str(verdict)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # an architecture that the row does not fit may break off anywhere
            return f"{type(error).__name__}: {first_line(error)}"
        return None

    def _refuse_drawing(self, probe: list[TokenGroup], plain: _Passes) -> None:
        """The same pass once more must give the same numbers: nothing may be dropped or drawn in evaluation mode."""
        for dtype, passes in plain.items():  # the model's own precision, and float32, where order hardly shows
            again = computed(plain_way, self.passes, probe, dtype)
            if torch.equal(again, passes["plain"]):
                return
        if (gap := gap_of(again, passes["plain"])) > REPEATS_WITHIN * float(again.abs().mean()):
            raise BapoError(
                f"{type(self.causal_lm).__name__} gives other numbers each time that it is asked (log-probs differ by "
                f"{gap:.3g} nats in evaluation mode): it drops or draws something, so nothing can be compared with it."
            )

    def _refuse_looking_ahead(self, probe: list[TokenGroup], plain: _Passes) -> None:
        """What a token is predicted from must not change with the tokens behind it."""
        dtype, passes = list(plain.items())[-1]
        ends = [len(response) for group in probe for response in group.responses]
        others = [TokenGroup(g.prompt, tuple((*r[:-1], g.prompt[0]) for r in g.responses)) for g in probe]
        changed = computed(plain_way, self.passes, others, dtype)

        def before_the_last(tokens: Tensor) -> Tensor:
            return torch.cat([sequence[:-1] for sequence in tokens.split(ends)])

        ahead = judge(before_the_last(changed), {n: before_the_last(tokens) for n, tokens in passes.items()}, dtype)
        if not ahead.right:
            self._refuse_drawing(probe, plain)  # what changes now and then may have given the same twice
            raise BapoError(
                f"{type(self.causal_lm).__name__} looks at the tokens behind the one that it predicts (log-probs move "
                f"by {ahead.gap:.3g} nats with the last token): it is no causal language model as it is configured."
            )


def _count_modules(model: Any) -> int:
    return sum(1 for _ in model.modules())
