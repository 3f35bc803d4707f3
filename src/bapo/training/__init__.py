"""The trainer, its settings, and what it logs."""

from bapo.training.config import BAPOConfig
from bapo.training.trainer import BAPOTrainer

__all__ = ["BAPOConfig", "BAPOTrainer"]
