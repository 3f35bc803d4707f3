"""The one scoring core: log p(response | prompt) under a model, for groups of responses."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bapo.errors import BapoError
from bapo.likelihood.attention import SEGMENT_ATTENTION, UnsupportedAttentionError, kernels_for
from bapo.likelihood.head import LogitRule, response_logps
from bapo.likelihood.layout import Layout, TokenGroup, by_token_budget, lay_out
from bapo.likelihood.noise import NoiseFloor, gap_of, noise_floor, nudged
from bapo.likelihood.strands import MOST_STRANDS, cut, in_strands, strands_for
from bapo.models import GradientRows, in_float32, machine, noting

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

SCORING_VERSION = 3
"""Part of every cache key: raised whenever a score could come out differently."""

MAX_TOKENS = 8192
"""Input tokens scored at once when no gradient is needed."""


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


class ResponseScorer:
    """Scores responses under a causal language model.

    The first use compares the shared layout with the model's own plain forward pass on a small probe. An architecture
    that the layout does not fit (attention sinks, recurrent state, unknown logit rules) is scored one sequence at a
    time through the model's own code instead: slower, and right.

    Args:
        model: a `transformers` causal language model, or a PEFT model around one.

    Attributes:
        fallback: None, or why the plain path is in use.
        kernel: how segment attention is computed on the model's device.
        has_float32: whether the model can be computed in float32 (`float32`), whatever its precision.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        whole: Any = model
        self.causal_lm: Any = whole.get_base_model() if hasattr(whole, "get_base_model") else whole
        self.rule = LogitRule.of(self.causal_lm.config)
        self._own_attention: str = self.causal_lm.config._attn_implementation
        self.fallback: str | None = None
        self.kernel = getattr(self.causal_lm, "_bapo_kernel", "split")
        self.has_float32 = getattr(self.causal_lm, "_bapo_has_float32", True)
        if self._own_attention == SEGMENT_ATTENTION:  # another scorer of the same model was here first
            self._own_attention = getattr(self.causal_lm, "_bapo_own_attention", "sdpa")
        else:
            self.causal_lm._bapo_own_attention = self._own_attention
            self.fallback = self._find_misfit()

    def __call__(self, groups: Sequence[TokenGroup], *, most_strands: int = MOST_STRANDS) -> ResponseLogps:
        """Score all responses of all groups in one row, with gradients where the model has them.

        On a CPU the row is computed in up to ``most_strands`` strands side by side.
        """
        if self.fallback is not None:
            return self._score_plainly(groups)
        layout = lay_out(groups, self.causal_lm.device)
        layout.segments.kernel = self.kernel
        most = min(most_strands, strands_for(self.causal_lm)) if self.kernel == "split" else 1
        strands = cut(layout, most) if most > 1 else []
        if len(strands) <= 1:
            tokens, greedy = self._compute(layout)
        else:
            trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
            tokens, greedy = in_strands(self._compute, strands, trained)
        return ResponseLogps(tokens, tuple(len(response) for group in groups for response in group.responses), greedy)

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

    def _nudged(self, groups: Sequence[TokenGroup], most_strands: int = MOST_STRANDS) -> Tensor:
        embeddings: nn.Module = self.causal_lm.get_input_embeddings()
        hook = embeddings.register_forward_hook(lambda module, inputs, output: nudged(output))
        try:
            return self.row(groups, most_strands)
        finally:
            hook.remove()

    def _backbone(self) -> Any:
        return self.causal_lm.get_decoder()

    def _score_plainly(self, groups: Sequence[TokenGroup]) -> ResponseLogps:
        """One unpadded sequence at a time, through the model's own attention, head and logit rule."""
        tokens: list[Tensor] = []
        greedy: list[Tensor] = []
        for group in groups:
            for response in group.responses:
                ids = torch.tensor([[*group.header, *group.prompt, *response]], device=self.causal_lm.device)
                start = len(group.header) + len(group.prompt)
                logits = self.causal_lm(input_ids=ids, use_cache=False).logits[0, start - 1 : -1].float()
                target = ids[0, start:, None]
                tokens.append(logits.log_softmax(-1).gather(-1, target)[:, 0])
                greedy.append(logits.argmax(-1) == target[:, 0])
        lengths = tuple(len(response) for group in groups for response in group.responses)
        return ResponseLogps(torch.cat(tokens), lengths, torch.cat(greedy))

    def probe(self) -> list[TokenGroup]:
        """Two prompts with two responses each, spread over the vocabulary, the same every time."""
        vocabulary = self.causal_lm.config.get_text_config().vocab_size
        ids = [(7919 * (i + 1)) % vocabulary for i in range(40)]
        return [
            TokenGroup(tuple(ids[0:9]), (tuple(ids[9:15]), tuple(ids[15:19]))),
            TokenGroup(tuple(ids[19:24]), (tuple(ids[24:31]), tuple(ids[31:34]))),
        ]

    def _find_misfit(self) -> str | None:
        """Compare layout and plain path on a probe; leave the model on whichever is right."""
        probe = self.probe()
        own = self.causal_lm.dtype
        plain = {own: self._plain_floor(probe)}
        if own != torch.float32:  # what is wrong by less than bf16 rounds shows there
            try:
                with in_float32(self.model):
                    plain[torch.float32] = self._plain_floor(probe)
            except (RuntimeError, TypeError, ValueError) as error:  # code of a model's own may insist on its precision
                logger.debug("The model cannot be computed in float32 (%s).", error)
                self.has_float32 = self.causal_lm._bapo_has_float32 = False
        misfit: str | None = None
        for kernel in kernels_for(self.causal_lm.device):
            self.kernel = self.causal_lm._bapo_kernel = kernel
            misfit = self._misfit_on(probe, plain)
            if misfit is None:
                break
            logger.debug("The %s kernel does not fit (%s).", kernel, misfit)
        if misfit is not None:
            self.causal_lm.set_attn_implementation(self._own_attention)
            logger.warning(
                "%s is scored one sequence at a time, because the shared layout does not fit it (%s).",
                type(self.causal_lm).__name__,
                misfit,
            )
        if not all(torch.isfinite(tokens).all() for tokens, _ in plain.values()):
            raise BapoError(
                "The model gives a log-probability that is not a number for a plain prompt: "
                "its weights are damaged or its precision is too low."
            )
        return misfit

    def _plain_floor(self, probe: list[TokenGroup]) -> tuple[Tensor, NoiseFloor]:
        """The model's own numbers, and how far rounding moves them."""
        self.fallback = "being measured"
        try:
            passes = {"plain": self.row(probe), "nudged": self._nudged(probe)}
        finally:
            self.fallback = None
        return passes["plain"], noise_floor(passes, float32=next(self.model.parameters()).dtype == torch.float32)

    def _misfit_on(self, probe: list[TokenGroup], plain: Mapping[torch.dtype, tuple[Tensor, NoiseFloor]]) -> str | None:
        try:
            self.causal_lm.set_attn_implementation(SEGMENT_ATTENTION)
            for dtype, (expected, floor) in plain.items():
                exact = dtype == torch.float32
                gap = gap_of(self.float32(probe) if exact else self.row(probe), expected)
                if not gap <= floor.limit:
                    return (
                        f"in {str(dtype).removeprefix('torch.')} token log-probs differ by {gap:.3g} nats from the "
                        f"model's own forward pass, and rounding explains {floor.limit:.3g}"
                    )
        except (UnsupportedAttentionError, ValueError, TypeError, AttributeError, KeyError) as error:
            return f"{type(error).__name__}: {error}"
        except RuntimeError as error:  # what flex attention raises where it cannot be compiled
            if self.kernel != "flex":
                raise
            return f"{type(error).__name__}: {error}"
        return None


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
