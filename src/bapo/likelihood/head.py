"""From hidden states to the log-probability of each response token, without ever holding all logits.

The head sees response positions only, a chunk at a time. When the head is frozen (LoRA on the backbone) the gradient
with respect to a hidden state is the upstream gradient times a vector known in the forward pass, so the forward keeps
that vector and the backward needs no second pass over the vocabulary. A trained head is recomputed chunk by chunk.

Shape suffixes: P predicted tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 12 * 2**20
"""Logits held at once in the model's precision: 24 MB in bf16. Large enough for products at full speed."""

BLOCK_ELEMENTS = 2**18
"""Logits that a CPU holds at once in float32: 1 MB, which stays in the cache of a core while it is worked on."""


@dataclass(frozen=True, slots=True)
class LogitRule:
    """What a model does to its logits after the output layer: z -> softcap(scale * z)."""

    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, config: Any) -> LogitRule:
        """Read the rule from a configuration: Gemma's final soft-capping, Cohere's and Granite's scale.

        What a model of several kinds of input does to its logits stands in the configuration of its text part.
        """

        def said(name: str) -> Any:
            return getattr(config, name, None) or getattr(config.get_text_config(), name, None)

        scale = float(said("logit_scale") or 1.0) / float(said("logits_scaling") or 1.0)
        return cls(scale, said("final_logit_softcapping"))

    def __call__(self, logits: Tensor) -> Tensor:
        """Apply the rule, in float32."""
        logits = logits.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def slope(self, ruled: Tensor) -> Tensor | float:
        """Derivative of the rule, in terms of its own output."""
        return self.scale if self.softcap is None else self.scale * (1 - (ruled / self.softcap) ** 2)


def response_logps(hidden_PD: Tensor, head: Any, target_P: Tensor, rule: LogitRule) -> tuple[Tensor, Tensor]:
    """Log-probability of each target under the softmax of its hidden state's logits.

    Args:
        hidden_PD: final hidden states, in the model's dtype.
        head: the model's output layer.
        target_P: token ids.
        rule: what the model does to its logits.

    Returns:
        (P,) nats, float32, differentiable; and (P,) whether no token is likelier than the target.
    """
    trained = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in head.parameters())
    if type(head) is nn.Linear and not trained:
        logps_P, greedy_P = _FrozenHead.apply(hidden_PD, head.weight, head.bias, target_P, rule)
        return logps_P, greedy_P

    def of_chunk(hidden: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = rule(head(hidden))
        top = logits.detach().amax(-1, keepdim=True)  # the arithmetic of the frozen head, so that rounding agrees too
        total = (logits - top).exp().sum(-1, keepdim=True)
        target_logit = logits.gather(-1, target[:, None])
        return (target_logit - top - total.log())[:, 0], (target_logit.detach() >= top)[:, 0]

    vocabulary = len(head.weight) if hasattr(head, "weight") else head(hidden_PD[:1]).shape[-1]
    chunk = max(1, CHUNK_ELEMENTS // vocabulary)
    logps, greedy = zip(
        *(
            checkpoint(of_chunk, hidden, target, use_reentrant=False)
            for hidden, target in zip(hidden_PD.split(chunk), target_P.split(chunk), strict=True)
        ),
        strict=True,
    )
    return torch.cat(logps), torch.cat(greedy)


class _FrozenHead(torch.autograd.Function):
    """Log-probs with a constant head: d logp / d hidden = -(softmax - onehot(target)) * slope @ W."""

    @staticmethod
    def forward(
        ctx: Any, hidden_PD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, target_P: Tensor, rule: LogitRule
    ) -> tuple[Tensor, Tensor]:
        needs_gradient = ctx.needs_input_grad[0]
        width = weight_VD.shape[0]
        chunk = max(1, min(CHUNK_ELEMENTS // width, len(target_P)))
        block = max(1, BLOCK_ELEMENTS // width) if weight_VD.device.type == "cpu" else chunk
        # Two pieces of memory serve all: fresh ones would cost more time than what is computed in them.
        rounded_CV = weight_VD.new_empty(chunk, width)
        precise_BV = weight_VD.new_empty(block, width, dtype=torch.float32)
        logps, greedy, gradients = [], [], []
        for hidden, target in zip(hidden_PD.to(weight_VD.dtype).split(chunk), target_P.split(chunk), strict=True):
            rounded = rounded_CV[: len(target)]
            torch.mm(hidden, weight_VD.mT, out=rounded)
            if bias_V is not None:
                rounded += bias_V
            blocks = [
                _of_block(part, own_target, rule, precise_BV[: len(part)], needs_gradient)
                for part, own_target in zip(rounded.split(block), target.split(block), strict=True)
            ]
            own_logps, own_greedy, totals, slopes = (torch.cat(parts) for parts in zip(*blocks, strict=True))
            logps.append(own_logps)
            greedy.append(own_greedy)
            if needs_gradient:
                gradients.append((rounded @ weight_VD).float() / totals - weight_VD[target].float() * slopes)
        if needs_gradient:
            ctx.save_for_backward(torch.cat(gradients))
            ctx.dtype = hidden_PD.dtype
        greedy_P = torch.cat(greedy)
        ctx.mark_non_differentiable(greedy_P)
        return torch.cat(logps), greedy_P

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_PD,) = ctx.saved_tensors
        return (gradient_PD * -upstream[0][:, None]).to(ctx.dtype), None, None, None, None


def _of_block(
    rounded_BV: Tensor, target_B: Tensor, rule: LogitRule, precise_BV: Tensor, needs_gradient: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a few rows of logits say of their targets, worked out in ``precise_BV``.

    ``rounded_BV`` holds the logits, and afterwards, where a gradient is needed, slope * odds: the odds are the softmax
    times its sum.

    Returns:
        (B,) log-probs; (B,) whether no token is likelier; (B, 1) sums of the odds; (B, 1) slopes at the targets.
    """
    logits = rule(precise_BV.copy_(rounded_BV))
    target_logit = logits.gather(-1, target_B[:, None])
    slope = rule.slope(logits)
    own_slope = (
        slope.gather(-1, target_B[:, None]) if isinstance(slope, Tensor) else torch.full_like(target_logit, slope)
    )
    top = logits.amax(-1, keepdim=True)
    odds = logits.sub_(top).exp_()
    total = odds.sum(-1, keepdim=True)
    if needs_gradient:
        rounded_BV.copy_(odds if rule == LogitRule() else odds.mul_(slope))
    return (target_logit - top - total.log())[:, 0], (target_logit >= top)[:, 0], total, own_slope
