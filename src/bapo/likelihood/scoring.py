"""The one scoring core: log p(response | prompt) under a model, for groups of responses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from bapo.errors import BapoError
from bapo.kernels import Kernels
from bapo.likelihood.finding import FitFinder
from bapo.likelihood.fit import Verdict, judge
from bapo.likelihood.layout import TokenGroup, by_token_budget
from bapo.likelihood.noise import NoiseFloor, noise_floor
from bapo.likelihood.passes import Passes, ResponseLogps, as_in_training, evaluating, lengths_of
from bapo.likelihood.strands import MOST_STRANDS
from bapo.likelihood.ways import Way, computed, own_passes
from bapo.models import in_float32, machine

MAX_TOKENS = 8192
"""Input tokens scored at once when no gradient is needed."""


class ResponseScorer:
    """Scores responses under a causal language model.

    The first use compares the shared row with the model's own plain forward pass on a small probe. An architecture
    that the row does not fit (attention sinks, recurrent state, unknown logit rules) is scored one sequence at a
    time through the model's own code instead: slower, and right. So are sequences that the row does not fit because
    they are long: beyond a window or chunk that the configuration names, which is looked at when the first such
    sequence comes, and beyond the length from which rotary frequencies depend on the longest sequence of a pass.

    Each call leaves the model as it came. Inside of a ``with`` of the scorer the model stays as scoring needs it, which
    saves a little time, and which a backward pass needs that computes activations again.

    Args:
        model: a `transformers` causal language model, or a PEFT model around one.
        kernels: speed-ups that may be used (`bapo.kernels`).

    Attributes:
        fallback: None, or why the plain path is in use for everything.
        backend: how segment attention is computed on the model's device.
        has_float32: whether the model can be computed in float32 (`float32`), whatever its precision.

    Raises:
        BapoError: the model cannot be computed, gives numbers that are none or others each time, or looks at tokens
            that come later.
    """

    def __init__(self, model: nn.Module, kernels: Kernels = "auto") -> None:
        self.model = model
        self.passes = Passes(model, kernels)
        self.causal_lm: Any = self.passes.causal_lm
        self._finder = FitFinder(self.passes)
        self._held: list[ExitStack] = []

    def __enter__(self) -> ResponseScorer:
        """Keep the model as scoring needs it until the end of the ``with``, over several calls and backward passes."""
        undo = ExitStack()
        undo.enter_context(self.passes.in_use())
        self._held.append(undo)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.pop().close()

    @property
    def fallback(self) -> str | None:
        """None, or why everything is scored one sequence at a time."""
        return self.passes.fit.misfit

    @property
    def backend(self) -> str:
        """How segment attention is computed on the model's device."""
        return self.passes.fit.backend

    @property
    def has_float32(self) -> bool:
        """Whether the model can be computed in float32, whatever its precision."""
        return self.passes.fit.has_float32

    def __call__(self, groups: Sequence[TokenGroup], *, most_strands: int = MOST_STRANDS) -> ResponseLogps:
        """Score all responses of all groups in one row, with gradients where the model has them.

        On a CPU the row is computed in up to ``most_strands`` strands side by side. Groups that the row does not fit
        are scored one sequence at a time.
        """
        self._check_held()
        with self.passes.in_use():
            return self._score(groups, most_strands)

    def _score(self, groups: Sequence[TokenGroup], most_strands: int) -> ResponseLogps:
        in_row = [self._finder.fits(group) for group in groups]
        if all(in_row):
            return self.passes.in_row(groups, most_strands)
        if not any(in_row):
            return self.passes.plainly(groups)
        row = self.passes.in_row([group for group, fits in zip(groups, in_row, strict=True) if fits], most_strands)
        plain = self.passes.plainly([group for group, fits in zip(groups, in_row, strict=True) if not fits])
        logps_of = {True: row.by_response(), False: plain.by_response()}
        order = [next(logps_of[fits]) for group, fits in zip(groups, in_row, strict=True) for _ in group.responses]
        tokens, greedy = (torch.cat(parts) for parts in zip(*order, strict=True))
        return ResponseLogps(tokens, lengths_of(groups), greedy)

    def _check_held(self) -> None:
        """Activations that are computed again in the backward pass must be computed as they were."""
        if self._held or not (torch.is_grad_enabled() and self.causal_lm.training):
            return
        if any(getattr(module, "gradient_checkpointing", False) for module in self.causal_lm.modules()):
            raise BapoError(
                "The model checkpoints its activations, which are computed again in the backward pass: put scoring and "
                "backward pass together into a `with` of the scorer, so that they are computed the same way."
            )

    def fits(self, group: TokenGroup) -> bool:
        """Whether the group is scored in the row, and not one sequence at a time."""
        return self._finder.fits(group)

    def own_passes(self, groups: Sequence[TokenGroup], *, float32: bool = False) -> dict[str, Tensor]:
        """(P,) token log-probs by the model's own code, without kernels, and again where rounding has moved them."""
        return own_passes(self.passes, groups, self._dtype(float32))

    def computed(self, way: Way, groups: Sequence[TokenGroup], *, float32: bool = False) -> Tensor:
        """(P,) token log-probs computed one way, with kernels."""
        with self.passes.layers():
            return computed(way, self.passes, groups, self._dtype(float32))

    def judge(self, found: Tensor, own: Mapping[str, Tensor], *, float32: bool = False) -> Verdict:
        """How far numbers are from the model's own (`own_passes`), of which the first are compared."""
        return judge(found, own, self._dtype(float32))

    def _dtype(self, float32: bool) -> torch.dtype:
        return torch.float32 if float32 else self.causal_lm.dtype

    def see_lengths(self, groups: Sequence[TokenGroup]) -> None:
        """Find out now, and not when they are scored, whether the row fits the longest of these sequences."""
        for group in groups:
            self._finder.fits(group)

    @torch.no_grad()
    def score(
        self,
        groups: Sequence[TokenGroup],
        *,
        max_tokens: int = MAX_TOKENS,
        on_progress: Callable[[int], None] | None = None,
    ) -> ResponseLogps:
        """Score without gradients and without dropout, in batches of at most ``max_tokens`` input tokens together.

        ``on_progress`` is told the number of groups of each finished batch.
        """
        tokens: list[Tensor] = [torch.zeros(0)]
        greedy: list[Tensor] = [torch.zeros(0, dtype=torch.bool)]
        lengths: list[int] = []
        with self.passes.in_use(), evaluating(self.model):
            for batch in by_token_budget(groups, max_tokens):
                scored = self(batch)
                tokens.append(scored.tokens.cpu())
                greedy.append(scored.greedy.cpu())
                lengths += scored.lengths
                if on_progress is not None:
                    on_progress(len(batch))
        return ResponseLogps(torch.cat(tokens), tuple(lengths), torch.cat(greedy))

    @torch.no_grad()
    def distributions(self, groups: Sequence[TokenGroup], *, float32: bool = False) -> Tensor:
        """(P, V) log-probs of every token of the vocabulary where a response token is predicted, nats, float32.

        All of them are in memory together: hand over few groups. In one row where it fits all groups, without dropout.

        Args:
            groups: prompts and responses.
            float32: compute in it, whatever the model's precision.
        """
        plainly = not all(self._finder.fits(group) for group in groups)
        with in_float32(self.model) if float32 else nullcontext(), self.passes.in_use(), evaluating(self.model):
            return self.passes.distributions(groups, plainly=plainly)

    def float32(self, groups: Sequence[TokenGroup]) -> Tensor:
        """(P,) token log-probs computed in float32 with the model's weights, in one thread's row; without gradients."""
        with in_float32(self.model):
            return self.row(groups, most_strands=1)

    def layouts(self, groups: Sequence[TokenGroup], *, float32: bool = False) -> dict[str, Tensor]:
        """(P,) token log-probs by layout, the same tokens in each: what `noise_floor` compares.

        The layouts are one row; a row for each group; and one row whose embeddings are moved by a rounding here and
        there, because a machine may compute all others alike. In float32 only the first and the last. The model's own
        forward pass is none of them: what it differs by may be a fault.
        """
        if float32:
            with in_float32(self.model):
                return {"row": self.row(groups, most_strands=1), "nudged": self._nudged(groups, most_strands=1)}
        layouts = {"row": self.row(groups), "nudged": self._nudged(groups)}
        return layouts if self.fallback else layouts | {"groups": torch.cat([self.row([group]) for group in groups])}

    def probe(self) -> list[TokenGroup]:
        """Two prompts with two responses each, spread over the vocabulary, the same every time."""
        return self._finder.probe()

    @property
    def is_float32(self) -> bool:
        """Whether that is the model's own precision."""
        return bool(self.causal_lm.dtype == torch.float32)

    def noise_floor(self, groups: Sequence[TokenGroup]) -> NoiseFloor:
        """What rounding alone moves these tokens' log-probs by, in the model's precision on its device."""
        return noise_floor(self.layouts(groups), float32=self.is_float32)

    def made_on(self, groups: Sequence[TokenGroup] | None = None) -> dict[str, Any]:
        """For records: the machine, and the model's noise floor on it, by these groups or a few made-up ones."""
        return {**machine(self.causal_lm.device), "noise_floor": asdict(self.noise_floor(groups or self.probe()))}

    @torch.no_grad()
    def row(self, groups: Sequence[TokenGroup], most_strands: int = MOST_STRANDS) -> Tensor:
        """(P,) token log-probs of the groups in one row, without gradients and without dropout."""
        with evaluating(self.model):
            return self(groups, most_strands=most_strands).tokens.cpu()

    def verdict_on_training_mode(self) -> Verdict:
        """How far training mode, adapters' dropout off, is from evaluation mode."""
        probe, dtype = self.probe(), self._dtype(self.has_float32)
        with torch.no_grad(), self.passes.precision(dtype):
            passes = {"row": self.row(probe, most_strands=1), "nudged": self._nudged(probe, most_strands=1)}
            with as_in_training(self.model):
                return judge(self(probe, most_strands=1).tokens.cpu(), passes, dtype)

    def check_training_mode(self) -> None:
        """In training mode, adapters' dropout off, the model must compute what it computes in evaluation mode.

        Raises:
            BapoError: it does not, because it drops or draws something that is not switched off.
        """
        verdict = self.verdict_on_training_mode()
        if not verdict.right:
            raise BapoError(
                f"{type(self.causal_lm).__name__} computes something else in training mode than in evaluation mode "
                f"(token log-probs differ by {verdict.gap:.3g} nats in {verdict.precision}, and rounding explains "
                f"{verdict.floor.limit:.3g}): more than dropout goes by the mode, so what is trained would not be what "
                "is scored; take another model."
            )

    def _nudged(self, groups: Sequence[TokenGroup], most_strands: int = MOST_STRANDS) -> Tensor:
        with self.passes.nudging():
            return self.row(groups, most_strands)
