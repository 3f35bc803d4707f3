"""DPO-Positive."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from bapo.objectives.logps import PairLogps
from bapo.objectives.registry import pair_loss
from bapo.settings import Range


@pair_loss("dpop", "DPO-Positive (Pal et al. 2024)", penalty=Range(0, 10**6))
def dpop(pairs: PairLogps, beta: float, penalty: float = 50.0) -> Tensor:
    """-log sigmoid(beta * (margin - penalty * max(0, -chosen log-ratio))). Pal et al. 2024 (Smaug), equation 3.

    The penalty is what the chosen response has lost against the reference, so losing more raises the loss.
    """
    lost = F.relu(-pairs.chosen_logratio)
    return -F.logsigmoid(beta * (pairs.margin - penalty * lost))
