"""A pair loss with a setting of its own."""

from torch import Tensor

from bapo.objectives import PairLogps, pair_loss


@pair_loss("squared")
def squared(pairs: PairLogps, beta: float, target: float = 1.0) -> Tensor:
    """(target - beta * margin)^2."""
    return (target - beta * pairs.margin) ** 2


def nothing_registers_this(pairs: PairLogps, beta: float) -> Tensor:
    """Its entry point is there and its decorator is not."""
    return pairs.margin
