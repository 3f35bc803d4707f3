"""Starter preferences, written for this library: six styles of answer to everyday prompts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files

from bapo.preferences.record import Pair

STARTER_TYPES = {
    "elementary": "P1A",
    "expert": "P1B",
    "concise": "P2A",
    "detailed": "P2B",
    "friendly": "P3A",
    "unfriendly": "P3B",
}
"""The six styles and the P-Soups type that each corresponds to."""


def read_starter(style: str) -> Iterator[Pair]:
    """Comparisons of one style: its response against each of the other five, 5 pairs a prompt (paper, Section 4.1)."""
    parts = sorted((part for part in files(__package__).iterdir() if part.name.endswith(".json")), key=lambda p: p.name)
    for part in parts:
        for item in json.loads(part.read_text("utf-8")):
            for other in STARTER_TYPES:
                if other != style:
                    yield Pair(item["prompt"], item["responses"][style], item["responses"][other])
