"""What stops a training or is said at its end: losses that are broken, a metric that nobody finds, a broken policy."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Collection, Iterable
from typing import NamedTuple

import torch

from bapo.errors import BapoError
from bapo.objectives import BaseLogps, LossParts, PairLogps
from bapo.settings import shortened
from bapo.training.config import BAPOConfig
from bapo.training.metrics import right

logger = logging.getLogger(__name__)


def stop_if_broken(parts: LossParts, step: int, most: float) -> None:
    """Refuse losses that are no numbers, or larger than ``most``.

    Raises:
        BapoError: one is.
    """
    for name, losses in (("pair", parts.pair), ("anchor", parts.anchor)):
        if losses is None:
            continue
        worst = losses.detach().max().item() if losses.numel() else 0.0
        if not math.isfinite(worst) or not bool(torch.isfinite(losses).all()):
            raise BapoError(
                f"The {name} loss is not a number at step {step}, so training stopped: "
                "lower the learning rate or the anchor strength, or use float32."
            )
        if worst > most:
            raise BapoError(
                f"The {name} loss of one example reached {worst:.3g} at step {step}, above "
                f"stop_at_loss ({most:g}): lower the learning rate or the anchor strength."
            )


def check_best_metric(name: str, sets: Collection[str], metrics: Iterable[str]) -> None:
    """What the best model is chosen by must be something that an evaluation finds.

    Args:
        name: the metric, with ``eval_`` or without.
        sets: names of the evaluation sets, if they have names.
        metrics: what is found of each.

    Raises:
        BapoError: it is not.
    """
    metrics = list(metrics)
    known = [f"eval_{of_set}{metric}" for of_set in ([f"{one}_" for one in sets] or [""]) for metric in metrics]
    if f"eval_{name.removeprefix('eval_')}" not in known:
        raise BapoError(
            f"metric_for_best_model names {shortened(name)}, which is no metric of an evaluation: use one of "
            f"{', '.join(known)}."
        )


class Ending:
    """What the last steps of training say of the policy that they leave.

    A policy is called broken where it does worse than guessing on the very data that it was trained on: where chosen or
    base responses, which the reference finds likelier than tokens drawn blindly, have become less likely than that; or
    where a coin would be right so rarely only one time in a thousand.
    """

    PROMPTS = 64
    """Prompts of the last steps that are looked at."""

    CHANCE = 1e-3

    def __init__(self) -> None:
        self._steps: deque[_Step] = deque()

    @torch.no_grad()
    def note(self, pairs: PairLogps, base: BaseLogps | None, prompts: int) -> None:
        """Look at one batch of a training step, whose pairs belong to so many prompts."""
        chosen = (float(pairs.chosen.sum()), float(pairs.ref_chosen.sum()), float(pairs.chosen_tokens.sum()))
        bases = (0.0, 0.0, 0.0)
        if base is not None:
            bases = (float(base.logps.sum()), float(base.ref_logps.sum()), float(base.lengths.sum()))
        self._steps.append(_Step(prompts, float(right(pairs).mean()) * prompts, *chosen, *bases))
        while sum(step.prompts for step in self._steps) - self._steps[0].prompts >= self.PROMPTS:
            self._steps.popleft()

    def fault(self, vocabulary: int) -> str | None:
        """What is wrong with the policy, as a part of a sentence; None where nothing shows.

        Args:
            vocabulary: how many tokens there are to draw from.
        """
        if not self._steps:
            return None
        prompts, won, *nats = (sum(parts) for parts in zip(*self._steps, strict=True))
        blind = -math.log(vocabulary)
        for responses, (policy, reference, tokens) in (
            ("the chosen responses have", nats[:3]),
            ("the model's own earlier responses have", nats[3:]),
        ):
            if tokens and policy / tokens < blind <= reference / tokens:
                return (
                    f"{responses} {policy / tokens:.1f} nats per token, less than tokens drawn blindly "
                    f"({blind:.1f}), where they had {reference / tokens:.1f} before"
                )
        from scipy.stats import binom

        if binom.cdf(math.floor(won), prompts, 0.5) < self.CHANCE:
            return f"the policy prefers the chosen response on only {won / prompts:.0%} of what it was just trained on"
        return None

    def warn(self, vocabulary: int, step: int, args: BAPOConfig) -> None:
        """Say what is wrong with the policy, if anything shows."""
        fault = self.fault(vocabulary)
        if fault is not None:
            logger.warning(
                "After %d steps %s: the learning rate of %g is too high for these data, or they contradict themselves.",
                step,
                fault,
                args.learning_rate,
            )


class _Step(NamedTuple):
    """Sums over one batch: prompts, those won (pairs of a prompt share one), nats and tokens of responses."""

    prompts: int
    won: float
    chosen_policy: float
    chosen_reference: float
    chosen_tokens: float
    base_policy: float
    base_reference: float
    base_tokens: float
