"""Known vulnerabilities of the versions that the tests ran with, `constraints.txt`, looked up with pip-audit.

    make audit

The last line is one sentence. The exit code is 0 if none is known, 1 if one is, and 2 if nobody could be asked:
pip-audit itself ends with 0 where its service knows none of the packages, as behind a mirror that has the files alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

VERSIONS = Path(__file__).parents[1] / "constraints.txt"


def outcome(report: str, error: str = "") -> tuple[list[str], int]:
    """Lines to print, and the exit code.

    Args:
        report: what pip-audit printed, JSON if all went well.
        error: what it said of an error.
    """
    try:
        packages = json.loads(report)["dependencies"]
    except (ValueError, KeyError, TypeError):
        why = (error.strip().splitlines() or ["it printed no report"])[-1]
        return [f"Nothing was looked up, because the service of pip-audit cannot be reached: {why[:200]}"], 2
    known = [package for package in packages if "vulns" in package]
    if not known:
        return [
            f"Nothing was looked up, because the service of pip-audit knows none of the {len(packages)} packages: try "
            "it where pypi.org itself can be reached."
        ], 2
    lines = [
        f"{package['name']} {package['version']}: {found['id']}, mended in {', '.join(found['fix_versions']) or 'none'}"
        for package in known
        for found in package["vulns"]
    ]
    looked_up = f"{len(known)} of {len(packages)} packages were looked up"
    return [*lines, f"Known vulnerabilities: {len(lines) or 'none'}; {looked_up}."], int(bool(lines))


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(VERSIONS), "--no-deps", "--disable-pip"]
    asked = subprocess.run(
        [*command, "--format", "json", "--progress-spinner", "off"], capture_output=True, text=True, timeout=1800
    )
    lines, code = outcome(asked.stdout, asked.stderr)
    print("\n".join(lines))
    sys.exit(code)


if __name__ == "__main__":
    main()
