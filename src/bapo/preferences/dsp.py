"""Domain-Specific Preference (Cheng et al. 2023): four domains and a normal response for every query."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bapo.errors import BapoError
from bapo.preferences.comparisons import records
from bapo.preferences.record import Pair

DOMAINS = ("academy", "business", "entertainment", "literature")
DOMAIN_PROMPTS = {
    "academy": "Respond as a scholar would in an academic paper: precise, formal and objective.",
    "business": "Respond as a business person would: practical, concise and focused on results.",
    "entertainment": "Respond as an entertainer would: lively, vivid and amusing.",
    "literature": "Respond as a writer of literature and poetry would: imaginative, emotional and rich in imagery.",
}
"""The domains in words; ours, since the data name them only."""

WHERE_TO_GET = "download the data folder of GitHub Linear95/DSP"


def read_dsp(path: Path, domain: str) -> Iterator[Pair]:
    """Comparisons of one domain: its response against each of the other four, 4 pairs a query.

    Raises:
        BapoError: a record lacks its query or one of its five responses.
    """
    for where, row in records(path):
        responses = row.get("responses") if isinstance(row, dict) else None
        wanted = (*DOMAINS, "normal")
        if (
            not isinstance(responses, dict)
            or not isinstance(row.get("query"), str)
            or not all(isinstance(responses.get(name), str) for name in wanted)
        ):
            raise BapoError(f"{where} is no DSP record: it needs query, and responses with {', '.join(wanted)}.")
        for other in wanted:
            if other != domain:
                yield Pair(row["query"], responses[domain], responses[other])
