"""What was gained and what was forgotten."""

from bapo.evaluation.bootstrap import Estimate, bootstrap_ratio
from bapo.evaluation.preference import PreferenceReport, PromptScores, evaluate_preferences

__all__ = ["Estimate", "PreferenceReport", "PromptScores", "bootstrap_ratio", "evaluate_preferences"]
