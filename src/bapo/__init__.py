"""Personalize an instruction-tuned language model to preferences without making it forget what it knew."""

TYPE_CHECKING = False  # typing's own, which takes longer to import than the signals of a command may wait
if TYPE_CHECKING:
    from typing import Any

    from bapo.anchoring import AnchorStore, anchor
    from bapo.errors import BapoError
    from bapo.evaluation import evaluate_preferences
    from bapo.jobs import Recipe, evaluate, personalize
    from bapo.likelihood import ResponseScorer
    from bapo.models import load_model
    from bapo.objectives import make_objective
    from bapo.preferences import Preferences, PromptGroup, read_preferences, split_by_prompt
    from bapo.training import BAPOConfig, BAPOTrainer

__version__ = "0.1.0"

# Public names and the rooms they live in, imported on first use: importing bapo imports no torch.
_ROOMS = {
    "AnchorStore": "anchoring",
    "BAPOConfig": "training",
    "BAPOTrainer": "training",
    "BapoError": "errors",
    "Preferences": "preferences",
    "PromptGroup": "preferences",
    "Recipe": "jobs",
    "ResponseScorer": "likelihood",
    "anchor": "anchoring",
    "evaluate": "jobs",
    "evaluate_preferences": "evaluation",
    "load_model": "models",
    "make_objective": "objectives",
    "personalize": "jobs",
    "read_preferences": "preferences",
    "split_by_prompt": "preferences",
}

__all__ = [
    "AnchorStore",
    "BAPOConfig",
    "BAPOTrainer",
    "BapoError",
    "Preferences",
    "PromptGroup",
    "Recipe",
    "ResponseScorer",
    "anchor",
    "evaluate",
    "evaluate_preferences",
    "load_model",
    "make_objective",
    "personalize",
    "read_preferences",
    "split_by_prompt",
]


def __getattr__(name: str) -> "Any":
    if name in _ROOMS:
        from importlib import import_module

        return getattr(import_module(f"bapo.{_ROOMS[name]}"), name)
    raise AttributeError(f"module 'bapo' has no attribute {name!r}")
