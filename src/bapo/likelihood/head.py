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
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 2**22  # logits held at once: 16 MB in float32, which allocators keep and reuse


@dataclass(frozen=True, slots=True)
class LogitRule:
    """What a model does to its logits after the output layer: z -> softcap(scale * z)."""

    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, config: Any) -> LogitRule:
        """Read the rule from a configuration: Gemma's final soft-capping, Cohere's and Granite's scale."""
        scale = float(getattr(config, "logit_scale", None) or 1.0)
        scale /= float(getattr(config, "logits_scaling", None) or 1.0)
        return cls(scale, getattr(config, "final_logit_softcapping", None))

    def __call__(self, logits: Tensor) -> Tensor:
        """Apply the rule, in float32."""
        logits = logits.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def slope(self, ruled: Tensor) -> Tensor | float:
        """Derivative of the rule, in terms of its own output."""
        return self.scale if self.softcap is None else self.scale * (1 - (ruled / self.softcap) ** 2)


def response_logps(hidden_PD: Tensor, head: Any, target_P: Tensor, rule: LogitRule) -> Tensor:
    """Log-probability of each target under the softmax of its hidden state's logits.

    Args:
        hidden_PD: final hidden states, in the model's dtype.
        head: the model's output layer.
        target_P: token ids.
        rule: what the model does to its logits.

    Returns:
        (P,) nats, float32, differentiable.
    """
    frozen = (
        type(head) is nn.Linear and not head.weight.requires_grad and (head.bias is None or not head.bias.requires_grad)
    )
    if frozen:
        return _FrozenHead.apply(hidden_PD, head.weight, head.bias, target_P, rule)

    def of_chunk(hidden: Tensor, target: Tensor) -> Tensor:
        logits = rule(head(hidden))
        return logits.gather(-1, target[:, None])[:, 0] - logits.logsumexp(-1)

    chunk = max(1, CHUNK_ELEMENTS // head.out_features)
    return torch.cat(
        [
            checkpoint(of_chunk, hidden, target, use_reentrant=False)
            for hidden, target in zip(hidden_PD.split(chunk), target_P.split(chunk), strict=True)
        ]
    )


class _FrozenHead(torch.autograd.Function):
    """Log-probs with a constant head: d logp / d hidden = -(softmax - onehot(target)) * slope @ W."""

    @staticmethod
    def forward(
        ctx: Any, hidden_PD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, target_P: Tensor, rule: LogitRule
    ) -> Tensor:
        needs_gradient = ctx.needs_input_grad[0]
        chunk = max(1, CHUNK_ELEMENTS // weight_VD.shape[0])
        logps, gradients = [], []
        for hidden, target in zip(hidden_PD.split(chunk), target_P.split(chunk), strict=True):
            logits = rule(nn.functional.linear(hidden.to(weight_VD.dtype), weight_VD, bias_V))
            log_normalizer = logits.logsumexp(-1, keepdim=True)
            logps.append((logits.gather(-1, target[:, None]) - log_normalizer)[:, 0])
            if needs_gradient:
                slope = rule.slope(logits)
                push = logits.sub_(log_normalizer).exp_()  # softmax - onehot, in the logits' own memory
                push[torch.arange(len(target), device=target.device), target] -= 1
                if rule != LogitRule():
                    push.mul_(slope)
                gradients.append(push.to(weight_VD.dtype) @ weight_VD)
        if needs_gradient:
            ctx.save_for_backward(torch.cat(gradients))
            ctx.dtype = hidden_PD.dtype
        return torch.cat(logps)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_PD,) = ctx.saved_tensors
        return (gradient_PD * -upstream[0][:, None]).to(ctx.dtype), None, None, None, None
