"""Personalized Soups (Jang et al. 2023): six style preferences in three dimensions, and their raw files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bapo.errors import BapoError
from bapo.preferences.record import Pair
from bapo.preferences.registry import PaperRows, find_file, source
from bapo.preferences.tables import records

PREFERENCE_PROMPTS = {
    "P1A": "Generate a response that can be easily understood by an elementary school student.",
    "P1B": "Generate a response that only a PhD Student in that specific field could understand.",
    "P2A": "Generate a response that is concise and to the point without being verbose.",
    "P2B": "Generate a response that is very informative without missing any background information.",
    "P3A": "Generate a response that is friendly, witty, funny, and humorous, like a close friend.",
    "P3B": "Generate a response in an unfriendly manner.",
}
"""What the raw files append to an instruction; the reader takes it off again."""

PAPER_TRAINING = 45_000
"""Training rows per type; the rest is for validation (BAPO paper, appendix A)."""

WHERE_TO_GET = "download data.zip, which github.com/joeljang/RLPHF links, and unpack it"


def _pattern(text: str) -> re.Pattern[str]:
    """The preference prompt at the end of a text, with any white space, and with or without commas."""
    words = [re.escape(word.rstrip(",.")) for word in text.split()]
    return re.compile(r",?\s+".join(words) + r"\.?\s*$", re.IGNORECASE)


_PATTERNS = {code: _pattern(text) for code, text in PREFERENCE_PROMPTS.items()}


def strip_preference_prompt(user_input: str, code: str) -> str:
    """The instruction without the preference prompt of its type, whatever the white space between them."""
    return _PATTERNS[code].sub("", user_input).strip()


def psoups_file(code: str, data_folder: Path | None) -> Path:
    """The raw file of a type."""
    places = [f"{place}{code}.json" for place in ("preferences/psoups/", "psoups/", "rm_training/", "")]
    return find_file(f"psoups:{code}", places, data_folder, WHERE_TO_GET)


def _paper_rows(code: str, data_folder: Path | None) -> PaperRows:
    """Rows whose prompt stands in the file of every type."""
    rows = list(read_psoups(code, data_folder))
    shared = {pair.prompt for pair in rows}
    for other in PREFERENCE_PROMPTS:
        if other != code:
            shared &= {pair.prompt for pair in read_psoups(other, data_folder)}
    return PaperRows([pair for pair in rows if pair.prompt in shared], PAPER_TRAINING)


@source(
    "psoups",
    "raw Personalized-Soups files, in the folder named by `--data-folder` or `BAPO_DATA`",
    example="psoups:P1A",
    words=PREFERENCE_PROMPTS,
    paper_rows=_paper_rows,
)
def read_psoups(code: str, data_folder: Path | None) -> Iterator[Pair]:
    """Comparisons of one type; ``completion_a`` is the preferred one.

    Raises:
        BapoError: a row lacks one of its three keys, or there is no file.
    """
    path = psoups_file(code, data_folder)
    return (_pair(row, where, code) for where, row in records(path))


def _pair(row: Any, where: str, code: str) -> Pair:
    keys = ("user_input", "completion_a", "completion_b")
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in keys):
        raise BapoError(
            f"{where} is no P-Soups row, which holds {', '.join(keys)} as text: download the file again, or mend that "
            "row."
        )
    return Pair(strip_preference_prompt(row["user_input"], code), row["completion_a"], row["completion_b"])
