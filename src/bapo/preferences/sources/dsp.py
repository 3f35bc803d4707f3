"""Domain-Specific Preference (Cheng et al. 2023): four domains and a normal response for every query."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bapo.errors import BapoError
from bapo.preferences.record import Pair
from bapo.preferences.registry import PaperRows, find_file, source
from bapo.preferences.tables import records

DOMAIN_PROMPTS = {
    "academy": "Respond as a scholar would in an academic paper: precise, formal and objective.",
    "business": "Respond as a business person would: practical, concise and focused on results.",
    "entertainment": "Respond as an entertainer would: lively, vivid and amusing.",
    "literature": "Respond as a writer of literature and poetry would: imaginative, emotional and rich in imagery.",
}
"""The domains in words; ours, since the data name them only."""

DOMAINS = tuple(DOMAIN_PROMPTS)

PAPER_VALIDATION = 2_000
"""Validation pairs per domain; the rest is for training (BAPO paper, appendix A)."""

WHERE_TO_GET = "download the files of the folder data of github.com/Linear95/DSP"


def _paper_rows(domain: str, data_folder: Path | None) -> PaperRows:
    rows = list(read_dsp(domain, data_folder))
    return PaperRows(rows, len(rows) - PAPER_VALIDATION)


def dsp_file(domain: str, data_folder: Path | None) -> Path:
    """The raw file: training data where they are there, else test data."""
    places = [
        f"{place}{stem}.{split}.json"
        for split in ("train", "test")
        for place in ("preferences/", "", "data/")
        for stem in ("dsp", "domain_specific_preference")
    ]
    return find_file(f"dsp:{domain}", places, data_folder, WHERE_TO_GET)


@source(
    "dsp",
    "raw Domain-Specific-Preference files, in the folder named by `--data-folder` or `BAPO_DATA`",
    example="dsp:academy",
    words=DOMAIN_PROMPTS,
    paper_rows=_paper_rows,
)
def read_dsp(domain: str, data_folder: Path | None) -> Iterator[Pair]:
    """Comparisons of one domain: its response against each of the other four, 4 pairs a query.

    Raises:
        BapoError: a record lacks its query or one of its five responses, or there is no file.
    """
    return _pairs(dsp_file(domain, data_folder), domain)


def _pairs(path: Path, domain: str) -> Iterator[Pair]:
    for where, row in records(path):
        responses = row.get("responses") if isinstance(row, dict) else None
        wanted = (*DOMAINS, "normal")
        if (
            not isinstance(responses, dict)
            or not isinstance(row.get("query"), str)
            or not all(isinstance(responses.get(name), str) for name in wanted)
        ):
            raise BapoError(
                f"{where} is no DSP record, which holds a query, and under responses {', '.join(wanted)}, as text: "
                "download the file again, or mend that record."
            )
        for other in wanted:
            if other != domain:
                yield Pair(row["query"], responses[domain], responses[other])
