"""Imported once by the server that `tests.command` forks: what is slow to import. Nothing here may start a thread."""

import accelerate
import lm_eval.evaluator
import lm_eval.models.huggingface
import peft
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer

import bapo.anchoring
import bapo.cli
import bapo.evaluation.harness
import bapo.jobs.stages
import bapo.models
import bapo.reporting
import bapo.training

__all__ = [
    "AutoModelForCausalLM",
    "AutoTokenizer",
    "Trainer",
    "accelerate",
    "bapo",
    "lm_eval",
    "peft",
    "torch",
    "transformers",
]
