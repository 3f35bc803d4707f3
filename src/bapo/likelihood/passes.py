"""The ways to compute a model's log-probs: as a row, and one sequence at a time through the model's own code."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bapo.kernels import Kernels, chosen
from bapo.kernels.gradient_rows import GradientRows, noting
from bapo.kernels.layers import FastLayers, fast_layers
from bapo.likelihood.attention import SEGMENT_ATTENTION
from bapo.likelihood.fit import Fit
from bapo.likelihood.head import LogitRule, response_logps
from bapo.likelihood.layout import Layout, TokenGroup, TokenIds, lay_out
from bapo.likelihood.noise import nudged
from bapo.likelihood.strands import cut, in_strands, strands_for
from bapo.models import bare_model, forget_positions, in_float32, is_sharded, sharded_root, through_hooks


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


class Passes:
    """Forward passes of a causal language model. The model is changed inside of `in_use` only.

    Args:
        model: a `transformers` causal language model, or a PEFT model around one.
        kernels: the kernels that may be used.

    Attributes:
        fit: what is known of how the row fits the model.
        sharded: whether its weights are there only between hooks: then passes go through these, and it is computed
            neither in strands nor in another precision than its own.
    """

    fit: Fit

    def __init__(self, model: nn.Module, kernels: Kernels) -> None:
        self.model = model
        self.causal_lm: Any = bare_model(model)
        self.kernels = chosen(kernels)
        self.rule = LogitRule.of(self.causal_lm.config)

    @property
    def sharded(self) -> bool:
        """See the class."""
        return is_sharded(self.model)

    @property
    def strands(self) -> int:
        """In how many strands a row may be computed."""
        alone = self.fit.backend == "flex" or self.fit.changes or self.sharded or "strands" not in self.kernels
        return 1 if alone else strands_for(self.causal_lm)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """The model's layers have their kernels, and attend by segments where the row fits."""
        by_segments = self.attention(SEGMENT_ATTENTION) if self.fit.misfit is None else nullcontext()
        with self.layers(), by_segments:
            yield

    def layers(self) -> FastLayers:
        """The model's layers that have kernels; they are in use inside of a ``with``."""
        return fast_layers(self.model, self.kernels)

    @contextmanager
    def attention(self, name: str) -> Iterator[None]:
        """Another attention of `transformers`; then all parts of the model have their own one again."""
        if self.causal_lm.config._attn_implementation == name:
            yield
            return
        configs = _configs_of(self.causal_lm)
        before = [config._attn_implementation_internal for config in configs]
        self.causal_lm.set_attn_implementation(name)
        try:
            yield
        finally:
            for config, implementation in zip(configs, before, strict=True):
                config._attn_implementation_internal = implementation

    @contextmanager
    def precision(self, dtype: torch.dtype) -> Iterator[None]:
        """Compute in the model's own precision, or in float32."""
        with nullcontext() if dtype == self.causal_lm.dtype else in_float32(self.model):
            yield

    @contextmanager
    def nudging(self) -> Iterator[None]:
        """Embeddings are moved by a rounding here and there, because a machine may compute all passes alike."""
        embeddings: nn.Module = self.causal_lm.get_input_embeddings()
        hook = embeddings.register_forward_hook(lambda module, inputs, output: nudged(output))
        try:
            yield
        finally:
            hook.remove()

    def in_row(self, groups: Sequence[TokenGroup], most_strands: int) -> ResponseLogps:
        """All responses of all groups in one row, with gradients where the model has them."""
        layout = lay_out(groups, self.causal_lm.device)
        layout.segments.backend = self.fit.backend
        most = min(most_strands, self.strands)
        strands = cut(layout, most) if most > 1 else []
        if self.fit.longest is not None:
            forget_positions(self.causal_lm)
        with self.attention(SEGMENT_ATTENTION):
            if len(strands) > 1:
                trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
                tokens, greedy = in_strands(self._compute, strands, trained)
            else:
                tokens, greedy = self._through_root(self._compute, layout)
        return ResponseLogps(tokens, lengths_of(groups), greedy)

    def _through_root(self, function: Callable[..., Any], *arguments: Any) -> Any:
        root = sharded_root(self.model, self.causal_lm)
        return function(*arguments) if root is None else through_hooks(root, function, *arguments)

    def _compute(self, layout: Layout) -> tuple[Tensor, Tensor]:
        """Of each predicted token its log-prob, and whether none is likelier."""
        rows = GradientRows(layout.tokens) if "gradient-rows" in self.kernels else None
        with noting(rows) if rows is not None else nullcontext():
            hidden_PD = self._hidden(layout)
        head = self.causal_lm.get_output_embeddings()
        tokens, greedy = response_logps(hidden_PD, head, layout.target_P, self.rule)
        return (tokens if rows is None else _NoteReached.apply(tokens, rows, layout)), greedy

    def _hidden(self, layout: Layout) -> Tensor:
        """(P, D) hidden states from which response tokens are predicted."""
        hidden: Tensor = self._backbone()(
            input_ids=layout.input_ids,
            position_ids=layout.position_ids,
            attention_mask=_mask_already_made(layout.input_ids.device),
            segments=layout.segments,
            use_cache=False,
        ).last_hidden_state[0]
        return hidden[layout.source_P]

    def _backbone(self) -> Any:
        return self.causal_lm.get_decoder()

    def distributions(self, groups: Sequence[TokenGroup], *, plainly: bool) -> Tensor:
        """(P, V) log-probs of all tokens where a response token is predicted, float32; in one row, or plainly."""
        if plainly:
            with self.attention(self.fit.own_attention):
                return normalized(torch.cat([self._plain_logits(*each) for each in _sequences(groups)]))
        layout = lay_out(groups, self.causal_lm.device)
        layout.segments.backend = self.fit.backend
        if self.fit.longest is not None:
            forget_positions(self.causal_lm)
        with self.attention(SEGMENT_ATTENTION):
            logits: Tensor = self._through_root(self._row_logits, layout)
        return normalized(logits)

    def _row_logits(self, layout: Layout) -> Tensor:
        return self.rule(self.causal_lm.get_output_embeddings()(self._hidden(layout)))

    def plainly(self, groups: Sequence[TokenGroup]) -> ResponseLogps:
        """One unpadded sequence at a time, through the model's own attention, head and logit rule."""
        tokens: list[Tensor] = []
        greedy: list[Tensor] = []
        with self.attention(self.fit.own_attention):
            for before, response in _sequences(groups):
                logits = self._plain_logits(before, response)
                tokens.append(_of_response(logits, response))
                target = torch.tensor(response, device=logits.device)
                greedy.append(logits.argmax(-1) == target)
        return ResponseLogps(torch.cat(tokens), lengths_of(groups), torch.cat(greedy))

    def padded(self, groups: Sequence[TokenGroup]) -> Tensor:
        """(P,) token log-probs by the model's own code in one batch whose sequences are padded in front, as answers
        are generated."""
        sequences = list(_sequences(groups))
        rows = [(*before, *response) for before, response in sequences]
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=self.causal_lm.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=ids.device)
        with self.attention(self.fit.own_attention):
            logits = self.causal_lm(**_as_generated(self.causal_lm, ids, mask)).logits
        each = zip(logits, sequences, strict=True)
        return torch.cat([_of_response(row[-len(response) - 1 : -1].float(), response) for row, (_, response) in each])

    def _plain_logits(self, before: TokenIds, response: TokenIds) -> Tensor:
        """(P, V) logits where the tokens of a response are predicted, float32, by the model's own code."""
        if self.fit.longest is not None:
            forget_positions(self.causal_lm)
        ids = torch.tensor([[*before, *response]], device=self.causal_lm.device)
        root = sharded_root(self.model, self.causal_lm)
        outer = None if root is self.causal_lm else root
        whole = self._logits(ids) if outer is None else through_hooks(outer, self._logits, ids)
        return whole[0, len(before) - 1 : -1].float()

    def _logits(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.causal_lm(input_ids=ids, use_cache=False).logits
        return logits


class _NoteReached(torch.autograd.Function):
    """The token log-probs as they are; when the backward pass begins, it notes which responses it concerns."""

    @staticmethod
    def forward(ctx: Any, tokens_P: Tensor, rows: GradientRows, layout: Layout) -> Tensor:
        ctx.rows, ctx.layout = rows, layout
        return tokens_P.clone()  # a view would lose the hooks that gather sharded weights

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        reached_T = torch.zeros(ctx.layout.tokens, dtype=torch.bool, device=upstream[0].device)
        reached_T[ctx.layout.source_P[upstream[0] != 0]] = True
        reached = reached_T.tolist()
        ctx.rows.leave_out([place for place in ctx.layout.places if not any(reached[place])])
        return upstream[0], None, None


def _sequences(groups: Sequence[TokenGroup]) -> Iterator[tuple[TokenIds, TokenIds]]:
    """What stands before each response of all groups, and the response."""
    for group in groups:
        for response in group.responses:
            yield (*group.header, *group.prompt), response


def _of_response(logits: Tensor, response: TokenIds) -> Tensor:
    """(P,) log-probs of a response's tokens by the (P, V) logits from which they are predicted."""
    target = torch.tensor(response, device=logits.device)[:, None]
    return normalized(logits).gather(-1, target)[:, 0]


def normalized(logits: Tensor) -> Tensor:
    """Log-probs of logits.

    `log_softmax` adds up a vocabulary one by one on a CPU, by which all log-probs of 152,000 tokens are off by up to
    3e-5 nats together in float32; `logsumexp` adds up parts, and is right to 1e-6.
    """
    return logits - logits.logsumexp(-1, keepdim=True)


def _as_generated(causal_lm: Any, ids: Tensor, mask: Tensor) -> dict[str, Any]:
    """What `generate` hands to a model's forward for a batch that is padded in front."""
    handed = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    if "position_ids" in inspect.signature(causal_lm.forward).parameters:
        handed["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    return handed


def longest_sequence(group: TokenGroup) -> int:
    """Tokens of the group's longest sequence."""
    return len(group.header) + len(group.prompt) + max(map(len, group.responses), default=0)


def lengths_of(groups: Sequence[TokenGroup]) -> tuple[int, ...]:
    """Tokens of each response of all groups."""
    return tuple(len(response) for group in groups for response in group.responses)


def _configs_of(model: nn.Module) -> list[Any]:
    """All configurations of a model and its parts."""
    todo: list[Any] = [module.config for module in model.modules() if hasattr(module, "config")]
    by_id: dict[int, Any] = {}
    while todo:
        config = todo.pop()
        if id(config) not in by_id and hasattr(config, "_attn_implementation_internal"):
            by_id[id(config)] = config
            todo += [getattr(config, name, None) for name in config.sub_configs]
    return list(by_id.values())


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
