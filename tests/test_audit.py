"""What `make audit` says of pip-audit's reports."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from audit import outcome


def report(*packages: dict[str, object]) -> str:
    return json.dumps({"dependencies": packages, "fixes": []})


SAFE = {"name": "safe", "version": "1.0", "vulns": []}
OLD = {"name": "old", "version": "0.1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["0.2", "1.0"]}]}
UNKNOWN = {"name": "unknown", "skip_reason": "Dependency not found on PyPI"}


def test_what_is_known_is_listed_and_counted() -> None:
    assert outcome(report(SAFE, UNKNOWN)) == (["Known vulnerabilities: none; 1 of 2 packages were looked up."], 0)
    lines, code = outcome(report(SAFE, OLD))
    assert lines == [
        "old 0.1: PYSEC-1, mended in 0.2, 1.0",
        "Known vulnerabilities: 1; 2 of 2 packages were looked up.",
    ]
    assert code == 1


def test_where_nobody_could_be_asked_nothing_is_called_safe() -> None:
    lines, code = outcome(report(UNKNOWN, UNKNOWN))
    assert (len(lines), code) == (1, 2)
    assert "knows none of the 2 packages" in lines[0]
    lines, code = outcome("", "Traceback ...\nConnectionError: no route")
    assert (len(lines), code) == (1, 2)
    assert lines[0].endswith("cannot be reached: ConnectionError: no route")
