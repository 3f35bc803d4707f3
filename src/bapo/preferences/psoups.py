"""Personalized Soups (Jang et al. 2023): six style preferences in three dimensions, and their raw files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bapo.errors import BapoError
from bapo.preferences.comparisons import records
from bapo.preferences.record import Pair

PREFERENCE_PROMPTS = {
    "P1A": "Generate a response that can be easily understood by an elementary school student.",
    "P1B": "Generate a response that only a PhD Student in that specific field could understand.",
    "P2A": "Generate a response that is concise and to the point without being verbose.",
    "P2B": "Generate a response that is very informative without missing any background information.",
    "P3A": "Generate a response that is friendly, witty, funny, and humorous, like a close friend.",
    "P3B": "Generate a response in an unfriendly manner.",
}
"""What the raw files append to an instruction; the reader takes it off again."""

WHERE_TO_GET = "download data.zip, linked from GitHub joeljang/RLPHF, and unpack it"


def _pattern(text: str) -> re.Pattern[str]:
    """The preference prompt at the end of a text, with any white space, and with or without commas."""
    words = [re.escape(word.rstrip(",.")) for word in text.split()]
    return re.compile(r"\s*" + r",?\s+".join(words) + r"\.?\s*$", re.IGNORECASE)


_PATTERNS = {code: _pattern(text) for code, text in PREFERENCE_PROMPTS.items()}


def strip_preference_prompt(user_input: str, code: str) -> str:
    """The instruction without the preference prompt of its type, whatever the white space between them."""
    return _PATTERNS[code].sub("", user_input).strip()


def read_psoups(path: Path, code: str) -> Iterator[Pair]:
    """Comparisons of one raw file; ``completion_a`` is the preferred one.

    Raises:
        BapoError: a row lacks one of its three keys.
    """
    for where, row in records(path):
        yield _pair(row, where, code)


def _pair(row: Any, where: str, code: str) -> Pair:
    keys = ("user_input", "completion_a", "completion_b")
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in keys):
        raise BapoError(f"{where} is no P-Soups row: it needs {', '.join(keys)} as text.")
    return Pair(strip_preference_prompt(row["user_input"], code), row["completion_a"], row["completion_b"])
