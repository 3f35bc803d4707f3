"""Published chat templates x kinds of tokenizer x kinds of response: are a response's ids what the template writes?

    python benchmarks/templates.py

Right: the ids are those of the template's own rendering. Told: the texts differ, and that is counted and said (the
template writes something else than what stands behind its generation prompt, or leaves reasoning out). Refused: one
sentence says why. Wrong: they differ and nobody is told.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.templates import RESPONSES, TOKENIZERS, published_templates, verdicts

KINDS = ("right", "told", "refused", "wrong")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--templates", nargs="*", help="names of templates; all by default")
    chosen = parser.parse_args().templates
    warnings.simplefilter("ignore")
    by_response: dict[str, Counter[str]] = {response: Counter() for response in RESPONSES}
    by_tokenizer: dict[str, Counter[str]] = {kind: Counter() for kind in TOKENIZERS}
    reasons: Counter[str] = Counter()
    known = published_templates()
    if not known or not set(chosen or known) <= known.keys():
        raise SystemExit(f"TRL ships {', '.join(known) or 'no templates here: pip install trl'}.")
    for name, template in known.items():
        if chosen and name not in chosen:
            continue
        for kind in TOKENIZERS:
            for response, verdict in verdicts(name, template, kind):
                by_response[response][verdict.kind] += 1
                by_tokenizer[kind][verdict.kind] += 1
                if verdict.kind in ("refused", "wrong"):
                    reasons[f"{verdict.kind}: {name}: {verdict.why}"] += 1
        print(name, file=sys.stderr, flush=True)
    for title, table in (("response", by_response), ("tokenizer", by_tokenizer)):
        print(f"| {title} | {' | '.join(KINDS)} |\n|---|{'---|' * len(KINDS)}")
        for row, counts in table.items():
            print(f"| {row} | {' | '.join(str(counts[kind]) for kind in KINDS)} |")
        print()
    for reason, count in sorted(reasons.items()):
        print(f"{count} {reason}")


if __name__ == "__main__":
    main()
