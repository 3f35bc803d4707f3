"""The anchor strength from step to step: what its control is told of a step, and what a checkpoint keeps of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from bapo.errors import BapoError
from bapo.files import read_bytes, write_text
from bapo.objectives import AnchorControl, BaseLogps
from bapo.settings import check_number

STATE = "anchor_control.json"


class StepDrift(TrainerCallback):
    """Sums up the drift of a step's batches and, when all of them are through, tells its mean to the anchor control.

    Args:
        control: of the objective that is trained, asked for anew each time.
        reduce: sums a tensor over processes.
    """

    def __init__(self, control: Callable[[], AnchorControl], reduce: Callable[[Tensor], Tensor]) -> None:
        self._control, self._reduce = control, reduce
        self._drift_and_tokens = torch.zeros(2, dtype=torch.float64)

    @torch.no_grad()
    def add(self, base: BaseLogps) -> None:
        """Look at the base responses of one batch; each counts as often as it is anchored."""
        sums = [float((base.weight * sums_of).sum()) for sums_of in (base.drift, base.lengths)]
        self._drift_and_tokens += torch.tensor(sums, dtype=torch.float64)

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is left of a run before."""
        self._drift_and_tokens.zero_()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Behind the optimizer's step, and before it is logged and saved. A step that anchors nothing says nothing."""
        drift, tokens = self._reduce(self._drift_and_tokens.clone()).tolist()
        self._drift_and_tokens.zero_()
        if tokens:
            made = self._control()
            made.update(state.global_step, drift / tokens)
            check_number("anchor_strength", made.strength, shown=f"The strength that {type(made).__name__} sets")


def save_state(control: AnchorControl, checkpoint: Path) -> None:
    """Keep the state of an anchor control in a checkpoint.

    Raises:
        BapoError: it is not made of numbers and texts.
    """
    try:
        text = json.dumps(control.state_dict())
    except TypeError as error:
        raise BapoError(f"The state_dict of {type(control).__name__} must be JSON, and is not ({error}).") from error
    write_text(checkpoint / STATE, text + "\n")


def load_state(control: AnchorControl, checkpoint: Path) -> None:
    """Go on with the state that a checkpoint keeps.

    Raises:
        BapoError: it keeps none.
    """
    if not (checkpoint / STATE).is_file():
        raise BapoError(
            f"{checkpoint} keeps no anchor strength ({STATE}), so it is of an objective without an anchor or of an "
            "earlier version: start anew without it."
        )
    control.load_state_dict(json.loads(read_bytes(checkpoint / STATE)))
