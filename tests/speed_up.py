"""Kernels of layers that stay on a model."""

from __future__ import annotations

import torch

from bapo.kernels.layers import FastLayers


def speed_up(model: torch.nn.Module, kernels: str = "auto") -> int:
    """Put them on, and say on how many layers."""
    return len(FastLayers(model, kernels).__enter__())
