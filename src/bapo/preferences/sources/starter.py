"""Starter preferences, written for this library: six styles of answer to everyday prompts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from bapo.preferences.record import Pair
from bapo.preferences.registry import source
from bapo.preferences.sources.psoups import PREFERENCE_PROMPTS

STARTER_TYPES = {
    "elementary": "P1A",
    "expert": "P1B",
    "concise": "P2A",
    "detailed": "P2B",
    "friendly": "P3A",
    "unfriendly": "P3B",
}
"""The six styles and the P-Soups type that each corresponds to."""


@source(
    "starter",
    "packaged with the library",
    example="starter:concise",
    words={style: PREFERENCE_PROMPTS[code] for style, code in STARTER_TYPES.items()},
    aliases={code: style for style, code in STARTER_TYPES.items()},
)
def read_starter(style: str, data_folder: Path | None = None) -> Iterator[Pair]:
    """Comparisons of one style: its response against each of the other five, 5 pairs a prompt (paper, Section 4.1)."""
    parts = [part for part in files("bapo.preferences.starter").iterdir() if part.name.endswith(".json")]
    for part in sorted(parts, key=lambda part: part.name):
        for item in json.loads(part.read_text("utf-8")):
            for other in STARTER_TYPES:
                if other != style:
                    yield Pair(item["prompt"], item["responses"][style], item["responses"][other])
