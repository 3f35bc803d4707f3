"""The anchored data set: base responses generated once and reference log-probs scored once, on disk."""

from bapo.anchoring.anchored import (
    AnchoredGroup,
    AnchoredPreferences,
    anchor,
    anchor_together,
    few_tokens,
)
from bapo.anchoring.candidates import Candidates, candidate_logps, sample_candidates, sample_responses
from bapo.anchoring.generate import GenerationSettings, Response, generate_batch, plan_batches
from bapo.anchoring.known import stores_of
from bapo.anchoring.parts import add_part, part_of
from bapo.anchoring.probe import Probe, ProbedTokens, first_tokens
from bapo.anchoring.settled import BaseResponse
from bapo.anchoring.store import AnchorStore, forget
from bapo.anchoring.tokens import LengthPolicy
from bapo.anchoring.uses import Use, UsedPrompt, User, uses_of

__all__ = [
    "AnchorStore",
    "AnchoredGroup",
    "AnchoredPreferences",
    "BaseResponse",
    "Candidates",
    "GenerationSettings",
    "LengthPolicy",
    "Probe",
    "ProbedTokens",
    "Response",
    "Use",
    "UsedPrompt",
    "User",
    "add_part",
    "anchor",
    "anchor_together",
    "candidate_logps",
    "few_tokens",
    "first_tokens",
    "forget",
    "generate_batch",
    "part_of",
    "plan_batches",
    "sample_candidates",
    "sample_responses",
    "stores_of",
    "uses_of",
]
