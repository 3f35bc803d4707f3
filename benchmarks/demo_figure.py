"""The README's picture: what the demo learned and what it forgot, drawn from the records of its runs.

bapo personalize --recipe demo --output demo-0
bapo personalize --recipe demo --output demo-1 --seed 1
python benchmarks/demo_figure.py demo-0 demo-1 --output docs/figures/demo.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bapo.reporting import WORDED_HEADER, draw_outcome, markdown_table, worded_rows
from bapo.results import PERSONALIZATION


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="outputs of the demo, one a seed")
    parser.add_argument("--output", type=Path, default=Path("demo.png"), help="the picture")
    told = parser.parse_args()
    results = [PERSONALIZATION.read(folder / "report.json").content for folder in told.folders]
    draw_outcome(results, told.output, preferred=results[0].source.rpartition(":")[2])
    for folder, result in zip(told.folders, results, strict=True):
        print(f"{folder}\n\n{markdown_table(WORDED_HEADER, worded_rows(result.held_out, result.likelier))}\n")


if __name__ == "__main__":
    main()
