"""The strength stays as it is, as in the paper."""

from __future__ import annotations

from bapo.objectives.registry import AnchorControl, anchor_control


@anchor_control("constant")
class Constant(AnchorControl):
    """The strength that was given, in every step."""
