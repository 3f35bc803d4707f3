"""Preferences: prompts, their responses, and who prefers which. Knows nothing of models."""

from bapo.preferences.arrow import check_text
from bapo.preferences.formats import pairs_from_dataset
from bapo.preferences.grouping import check_usable, doubtful, group_pairs
from bapo.preferences.reading import known_names, preference_in_words, read_preferences
from bapo.preferences.record import (
    Message,
    Pair,
    Preferences,
    Prompt,
    PromptGroup,
    Response,
    as_chat,
    in_json,
    prompt_text,
    response_text,
    turns_of,
)
from bapo.preferences.registry import SOURCES, PaperRows, examples, source
from bapo.preferences.splits import Split, paper_split, read_split, split_by_prompt
from bapo.preferences.summary import Summary, summarize

__all__ = [
    "SOURCES",
    "Message",
    "Pair",
    "PaperRows",
    "Preferences",
    "Prompt",
    "PromptGroup",
    "Response",
    "Split",
    "Summary",
    "as_chat",
    "check_text",
    "check_usable",
    "doubtful",
    "examples",
    "group_pairs",
    "in_json",
    "known_names",
    "pairs_from_dataset",
    "paper_split",
    "preference_in_words",
    "prompt_text",
    "read_preferences",
    "read_split",
    "response_text",
    "source",
    "split_by_prompt",
    "summarize",
    "turns_of",
]
