"""The one scoring core: log p(response | prompt) under a model, for groups of responses."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bapo.errors import BapoError, first_line, foreign
from bapo.likelihood.attention import SEGMENT_ATTENTION, kernels_for
from bapo.likelihood.fit import Fit, judge, named_lengths
from bapo.likelihood.head import LogitRule, response_logps
from bapo.likelihood.layout import Layout, TokenGroup, by_token_budget, lay_out
from bapo.likelihood.noise import NoiseFloor, gap_of, noise_floor, nudged
from bapo.likelihood.strands import MOST_STRANDS, cut, in_strands, noting_changes, strands_for
from bapo.models import GradientRows, forget_positions, in_float32, machine, noting, steady_length

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

SCORING_VERSION = 4
"""Part of every cache key: raised whenever a score could come out differently."""

MAX_TOKENS = 8192
"""Input tokens scored at once when no gradient is needed."""

REPEATS_WITHIN = 1e-3
"""Share of its log-probs that a model's float32 passes may differ by when repeated: devices that add in no fixed order
differ by a thousandth of it, and dropout by a hundred times more."""

LONGER = 256
"""Tokens by which a probe of what changes at some length is longer, at most."""


@dataclass(frozen=True, slots=True)
class ResponseLogps:
    """Log-probabilities of R responses.

    Attributes:
        tokens: (P,) nats in float32, response after response.
        lengths: how many of them belong to each response.
        greedy: (P,) whether the model finds no other token likelier there.
    """

    tokens: Tensor
    lengths: tuple[int, ...]
    greedy: Tensor

    def per_response(self) -> tuple[Tensor, ...]:
        """Token log-probs of each response."""
        return self.tokens.split(self.lengths)

    def summed(self) -> Tensor:
        """(R,) log p(response | prompt) in nats: each response is summed by itself, so company cannot change it."""
        return torch.stack([tokens.sum() for tokens in self.per_response()])

    def by_response(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Token log-probs of each response, and whether the model finds no other token likelier."""
        return iter(zip(self.per_response(), self.greedy.split(self.lengths), strict=True))


class ResponseScorer:
    """Scores responses under a causal language model.

    The first use compares the shared row with the model's own plain forward pass on a small probe. An architecture
    that the row does not fit (attention sinks, recurrent state, unknown logit rules) is scored one sequence at a
    time through the model's own code instead: slower, and right. So are sequences that the row does not fit because
    they are long: beyond a window or chunk that the configuration names, which is looked at when the first such
    sequence comes, and beyond the length from which rotary frequencies depend on the longest sequence of a pass.

    Args:
        model: a `transformers` causal language model, or a PEFT model around one.

    Attributes:
        fallback: None, or why the plain path is in use for everything.
        kernel: how segment attention is computed on the model's device.
        has_float32: whether the model can be computed in float32 (`float32`), whatever its precision.

    Raises:
        BapoError: the model cannot be computed, gives numbers that are none or others each time, or looks at tokens
            that come later.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        whole: Any = model
        self.causal_lm: Any = whole.get_base_model() if hasattr(whole, "get_base_model") else whole
        self.rule = LogitRule.of(self.causal_lm.config)
        attention: str = self.causal_lm.config._attn_implementation
        fit: Fit | None = getattr(self.causal_lm, "_bapo_fit", None)
        first = fit is None or attention != SEGMENT_ATTENTION
        if fit is None or first:
            own_attention = "sdpa" if attention == SEGMENT_ATTENTION else attention
            fit = Fit(own_attention, longest=steady_length(self.causal_lm.config))
        self._fit = fit
        if first:
            self._find_misfit()
            self.causal_lm._bapo_fit = fit
        elif fit.modules != _count_modules(self.causal_lm):  # an adapter has come or gone
            self._note_changes(self.probe()[:1])
        self._lengths = named_lengths(self.causal_lm.config, above=max(map(_longest, self.probe())))

    @property
    def fallback(self) -> str | None:
        """None, or why everything is scored one sequence at a time."""
        return self._fit.misfit

    @property
    def kernel(self) -> str:
        """How segment attention is computed on the model's device."""
        return self._fit.kernel

    @property
    def has_float32(self) -> bool:
        """Whether the model can be computed in float32, whatever its precision."""
        return self._fit.has_float32

    def __call__(self, groups: Sequence[TokenGroup], *, most_strands: int = MOST_STRANDS) -> ResponseLogps:
        """Score all responses of all groups in one row, with gradients where the model has them.

        On a CPU the row is computed in up to ``most_strands`` strands side by side. Groups that the row does not fit
        are scored one sequence at a time.
        """
        in_row = [self._fits(group) for group in groups]
        if all(in_row):
            return self._score_row(groups, most_strands)
        if not any(in_row):
            return self._score_plainly(groups)
        row = self._score_row([group for group, fits in zip(groups, in_row, strict=True) if fits], most_strands)
        plain = self._score_plainly([group for group, fits in zip(groups, in_row, strict=True) if not fits])
        found = {True: row.by_response(), False: plain.by_response()}
        order = [next(found[fits]) for group, fits in zip(groups, in_row, strict=True) for _ in group.responses]
        tokens, greedy = (torch.cat(parts) for parts in zip(*order, strict=True))
        return ResponseLogps(tokens, _lengths_of(groups), greedy)

    def see_lengths(self, groups: Sequence[TokenGroup]) -> None:
        """Find out now, and not when they are scored, whether the row fits the longest of these sequences."""
        for group in groups:
            self._fits(group)

    def _score_row(self, groups: Sequence[TokenGroup], most_strands: int) -> ResponseLogps:
        layout = lay_out(groups, self.causal_lm.device)
        layout.segments.kernel = self.kernel
        alone = self.kernel == "flex" or bool(self._fit.changes)
        most = 1 if alone else min(most_strands, strands_for(self.causal_lm))
        strands = cut(layout, most) if most > 1 else []
        if self._fit.longest is not None:
            forget_positions(self.causal_lm)
        if len(strands) <= 1:
            tokens, greedy = self._compute(layout)
        else:
            trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
            tokens, greedy = in_strands(self._compute, strands, trained)
        return ResponseLogps(tokens, _lengths_of(groups), greedy)

    def _compute(self, layout: Layout) -> tuple[Tensor, Tensor]:
        """Of each predicted token its log-prob, and whether none is likelier."""
        rows = GradientRows(layout.tokens)
        with noting(rows):
            hidden = self._backbone()(
                input_ids=layout.input_ids,
                position_ids=layout.position_ids,
                attention_mask=_mask_already_made(layout.input_ids.device),
                segments=layout.segments,
                use_cache=False,
            ).last_hidden_state[0]
        head = self.causal_lm.get_output_embeddings()
        tokens, greedy = response_logps(hidden[layout.source_P], head, layout.target_P, self.rule)
        return _NoteReached.apply(tokens, rows, layout), greedy

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
        with evaluating(self.model):
            for batch in by_token_budget(groups, max_tokens):
                scored = self(batch)
                tokens.append(scored.tokens.cpu())
                greedy.append(scored.greedy.cpu())
                lengths += scored.lengths
                if on_progress is not None:
                    on_progress(len(batch))
        return ResponseLogps(torch.cat(tokens), tuple(lengths), torch.cat(greedy))

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
        found = {"row": self.row(groups), "nudged": self._nudged(groups)}
        return found if self.fallback else found | {"groups": torch.cat([self.row([group]) for group in groups])}

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

    def check_training_mode(self) -> None:
        """In training mode, adapters' dropout off, the model must compute what it computes in evaluation mode.

        Raises:
            BapoError: it does not, because it drops or draws something that is not switched off.
        """
        probe, dtype = self.probe(), torch.float32 if self.has_float32 else self.causal_lm.dtype
        with torch.no_grad(), self._in(dtype):
            passes = {"row": self.row(probe, most_strands=1), "nudged": self._nudged(probe, most_strands=1)}
            with as_in_training(self.model):
                verdict = judge(self(probe, most_strands=1).tokens.cpu(), passes, dtype)
        if not verdict.right:
            raise BapoError(
                f"{type(self.causal_lm).__name__} computes something else in training mode than in evaluation mode "
                f"(token log-probs differ by {verdict.gap:.3g} nats in {verdict.precision}, and rounding explains "
                f"{verdict.floor.limit:.3g}): more than dropout goes by the mode, so what is trained would not be what "
                "is scored; take another model."
            )

    def _nudged(self, groups: Sequence[TokenGroup], most_strands: int = MOST_STRANDS) -> Tensor:
        with self._nudging():
            return self.row(groups, most_strands)

    @contextmanager
    def _nudging(self) -> Iterator[None]:
        embeddings: nn.Module = self.causal_lm.get_input_embeddings()
        hook = embeddings.register_forward_hook(lambda module, inputs, output: nudged(output))
        try:
            yield
        finally:
            hook.remove()

    def _backbone(self) -> Any:
        return self.causal_lm.get_decoder()

    def _score_plainly(self, groups: Sequence[TokenGroup]) -> ResponseLogps:
        """One unpadded sequence at a time, through the model's own attention, head and logit rule."""
        tokens: list[Tensor] = []
        greedy: list[Tensor] = []
        with self._own_attention():
            for group in groups:
                start = len(group.header) + len(group.prompt)
                for response in group.responses:
                    ids = torch.tensor([[*group.header, *group.prompt, *response]], device=self.causal_lm.device)
                    if self._fit.longest is not None:
                        forget_positions(self.causal_lm)
                    logits = self.causal_lm(input_ids=ids, use_cache=False).logits[0, start - 1 : -1].float()
                    target = ids[0, start:, None]
                    tokens.append(logits.log_softmax(-1).gather(-1, target)[:, 0])
                    greedy.append(logits.argmax(-1) == target[:, 0])
        return ResponseLogps(torch.cat(tokens), _lengths_of(groups), torch.cat(greedy))

    @contextmanager
    def _own_attention(self) -> Iterator[None]:
        now: str = self.causal_lm.config._attn_implementation
        if now == self._fit.own_attention:
            yield
            return
        self.causal_lm.set_attn_implementation(self._fit.own_attention)
        try:
            yield
        finally:
            self.causal_lm.set_attn_implementation(now)

    # ---- does the row fit? ------------------------------------------------------------------------------------------

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

    def _fits(self, group: TokenGroup) -> bool:
        """Whether the row gives the group's sequences their own numbers."""
        fit, length = self._fit, _longest(group)
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
        dtype = torch.float32 if self.has_float32 else self.causal_lm.dtype
        with self._in(dtype):
            own = self._own_passes(probe)
        misfit = self._misfit_on(probe, {dtype: own})
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
        """Compare row and plain path on a probe; leave the model on whichever is right."""
        fit, probe = self._fit, self.probe()
        own: dict[torch.dtype, dict[str, Tensor]] = {}
        own[self.causal_lm.dtype] = self._note_changes(probe)
        if not self.is_float32:  # what is wrong by less than bf16 rounds shows there
            try:
                with self._in(torch.float32):
                    own[torch.float32] = self._own_passes(probe)
            except (RuntimeError, TypeError, ValueError) as error:  # code of a model's own may insist on its precision
                logger.debug("The model cannot be computed in float32 (%s).", error)
                fit.has_float32 = False
        if not all(tokens.isfinite().all() for passes in own.values() for tokens in passes.values()):
            raise BapoError(
                "The model gives a log-probability that is not a number for a plain prompt: "
                "its weights are damaged or its precision is too low."
            )
        self._refuse_drawing(probe, own)
        for kernel in kernels_for(self.causal_lm.device):
            fit.kernel = kernel
            fit.misfit = self._misfit_on(probe, own)
            if fit.misfit is None:
                return
            logger.debug("The %s kernel does not fit (%s).", kernel, fit.misfit)
        self.causal_lm.set_attn_implementation(fit.own_attention)
        self._refuse_looking_ahead(probe, own)
        logger.warning(
            "%s is scored one sequence at a time, because the shared layout does not fit it (%s).",
            type(self.causal_lm).__name__,
            fit.misfit,
        )

    def _note_changes(self, probe: list[TokenGroup]) -> dict[str, Tensor]:
        """The model's own numbers, while it is noted whether its modules change as they compute."""
        failed, todo = f"{type(self.causal_lm).__name__} cannot be computed", "check the model, or take another one"
        with foreign(failed, todo), noting_changes(self.causal_lm) as changes:
            own = self._own_passes(probe)
        self._fit.modules, self._fit.changes = _count_modules(self.causal_lm), tuple(dict.fromkeys(changes))
        return own

    def _own_passes(self, probe: list[TokenGroup]) -> dict[str, Tensor]:
        """The model's own numbers, and again where rounding has moved them."""
        with torch.no_grad(), evaluating(self.model):
            plain = self._score_plainly(probe).tokens.cpu()
            with self._nudging():
                return {"plain": plain, "nudged": self._score_plainly(probe).tokens.cpu()}

    def _misfit_on(self, probe: list[TokenGroup], own: Mapping[torch.dtype, Mapping[str, Tensor]]) -> str | None:
        try:
            self.causal_lm.set_attn_implementation(SEGMENT_ATTENTION)
            for dtype, passes in own.items():
                strands = MOST_STRANDS if dtype == self.causal_lm.dtype else 1  # not while layers take turns
                with torch.no_grad(), evaluating(self.model), self._in(dtype):
                    verdict = judge(self._score_row(probe, strands).tokens.cpu(), passes, dtype)
                if not verdict.right:
                    return str(verdict)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # an architecture that the row does not fit may break off anywhere
            return f"{type(error).__name__}: {first_line(error)}"
        return None

    def _refuse_drawing(self, probe: list[TokenGroup], own: Mapping[torch.dtype, Mapping[str, Tensor]]) -> None:
        """The same pass once more must give the same numbers: nothing may be dropped or drawn in evaluation mode."""
        for dtype, passes in own.items():  # the model's own precision, and float32, where order hardly shows
            with torch.no_grad(), evaluating(self.model), self._in(dtype):
                again = self._score_plainly(probe).tokens.cpu()
            if torch.equal(again, passes["plain"]):
                return
        if (gap := gap_of(again, passes["plain"])) > REPEATS_WITHIN * float(again.abs().mean()):
            raise BapoError(
                f"{type(self.causal_lm).__name__} gives other numbers each time that it is asked (log-probs differ by "
                f"{gap:.3g} nats in evaluation mode): it drops or draws something, so nothing can be compared with it."
            )

    def _refuse_looking_ahead(self, probe: list[TokenGroup], own: Mapping[torch.dtype, Mapping[str, Tensor]]) -> None:
        """What a token is predicted from must not change with the tokens behind it."""
        dtype, passes = list(own.items())[-1]
        ends = [len(response) for group in probe for response in group.responses]
        others = [TokenGroup(g.prompt, tuple((*r[:-1], g.prompt[0]) for r in g.responses)) for g in probe]
        with torch.no_grad(), evaluating(self.model), self._in(dtype):
            changed = self._score_plainly(others).tokens.cpu()

        def before_the_last(tokens: Tensor) -> Tensor:
            return torch.cat([own[:-1] for own in tokens.split(ends)])

        ahead = judge(before_the_last(changed), {n: before_the_last(own) for n, own in passes.items()}, dtype)
        if not ahead.right:
            self._refuse_drawing(probe, own)  # what changes now and then may have given the same twice
            raise BapoError(
                f"{type(self.causal_lm).__name__} looks at the tokens behind the one that it predicts (log-probs move "
                f"by {ahead.gap:.3g} nats with the last token): it is no causal language model as it is configured."
            )

    @contextmanager
    def _in(self, dtype: torch.dtype) -> Iterator[None]:
        """Compute in the model's own precision, or in float32."""
        with nullcontext() if dtype == self.causal_lm.dtype else in_float32(self.model):
            yield


class _NoteReached(torch.autograd.Function):
    """The token log-probs as they are; when the backward pass begins, it notes which responses it concerns."""

    @staticmethod
    def forward(ctx: Any, tokens_P: Tensor, rows: GradientRows, layout: Layout) -> Tensor:
        ctx.rows, ctx.layout = rows, layout
        return tokens_P.view_as(tokens_P)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        reached_T = torch.zeros(ctx.layout.tokens, dtype=torch.bool, device=upstream[0].device)
        reached_T[ctx.layout.source_P[upstream[0] != 0]] = True
        reached = reached_T.tolist()
        ctx.rows.leave_out([place for place in ctx.layout.places if not any(reached[place])])
        return upstream[0], None, None


def _longest(group: TokenGroup) -> int:
    """Tokens of the group's longest sequence."""
    return len(group.header) + len(group.prompt) + max(map(len, group.responses), default=0)


def _lengths_of(groups: Sequence[TokenGroup]) -> tuple[int, ...]:
    return tuple(len(response) for group in groups for response in group.responses)


def _count_modules(model: nn.Module) -> int:
    return sum(1 for _ in model.modules())


def _mask_already_made(device: torch.device) -> Tensor:
    """A 4-D mask, which `transformers` hands on untouched: it builds none, and segment attention reads none."""
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode (no dropout) inside; every module gets back the mode that it had."""
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in in_training:
            module.training = True


@contextmanager
def as_in_training(model: nn.Module) -> Iterator[None]:
    """Training mode inside, but for adapters' dropout; every module gets back the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    dropouts = [module for name, module in model.named_modules() if "lora_dropout" in name and hasattr(module, "p")]
    before: list[Any] = [module.p for module in dropouts]
    model.train()
    for module in dropouts:
        module.p = 0.0
    try:
        yield
    finally:
        for module, p in zip(dropouts, before, strict=True):
            module.p = p
        for module, mode in modes:
            module.training = mode
