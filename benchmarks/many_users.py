"""What a user costs where many share prompts: anchoring, training and evaluation, in the order in which users come.

Users are made up: each has a taste, which is one style of the starter preferences or one domain of DSP, and likes, by a
seeded choice, its response best on nine of ten prompts and another one on the rest. All of a source draw their prompts
from one pool, so base responses and reference log-probs of a prompt are made once; or, as a control, each has prompts
of its own. They are a study: a file with a column `user`, and a run for each. Printed are seconds of each kind of job
for the first user and for later ones by how many came before, and what asking the base takes, once; and of all users
together the reward accuracy on their own held-out prompts, and what an adapter and the store of all of them take on
the disk.

    python benchmarks/many_users.py FOLDER [--users 50] [--sources starter dsp] [--steps 20] [--pool 40] [--prompts 24]
                                           [--own-prompts] [--benchmarks piqa arc_challenge]
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from bapo.preferences import Preferences, prompt_text, read_preferences
from bapo.progress import silent
from bapo.reporting import markdown_table
from bapo.results import BASE, FINISHED_JOB
from bapo.study import Ledger, Study, open_study, run_here

TASTES = {
    "starter": ("concise", "detailed", "elementary", "expert", "friendly", "unfriendly"),
    "dsp": ("academy", "business", "entertainment", "literature"),
}
FAITHFUL = 0.9

Pools = dict[tuple[str, str], Preferences]
"""Prompts with their responses, by source and taste."""


def rows_of(user: int, pools: Pools, prompts: int, *, own: bool) -> Iterator[dict[str, Any]]:
    """Comparisons of one user: what the user likes against one other response to each of some prompts.

    They are drawn from the pool, or (``own``) are those behind the prompts of the users before.
    """
    rng = random.Random(user)
    places = sorted(pools)
    source, taste = places[user % len(places)]
    tastes = TASTES[source]
    everything = range(len(pools[source, taste].groups))
    before = prompts * sum(places[other % len(places)][0] == source for other in range(user))
    mine = list(everything[before : before + prompts]) if own else sorted(rng.sample(everything, prompts))
    if len(mine) < prompts:
        raise SystemExit(f"{source} has too few prompts for so many users with their own: lower --users or --prompts.")
    for at in mine:
        liked = taste if rng.random() < FAITHFUL else rng.choice(tastes)
        group = pools[source, liked].groups[at]
        chosen, rejected = rng.choice(group.pairs)
        said = [response if isinstance(response, str) else response.content for response in group.responses]
        yield {
            "user": f"user-{user}",
            "prompt": prompt_text(group.prompt),
            "chosen": said[chosen],
            "rejected": said[rejected],
        }


def write_study(arguments: argparse.Namespace) -> Path:
    """The users' file and their study."""
    pools: Pools = {}
    pool = None if arguments.own_prompts else arguments.pool
    for source in arguments.sources:
        for taste in TASTES[source]:
            read = read_preferences(f"{source}:{taste}")
            pools[source, taste] = Preferences(read.name, read.groups[:pool], read.rows, {})
    lines = (
        json.dumps(row) + "\n"
        for user in range(arguments.users)
        for row in rows_of(user, pools, arguments.prompts, own=arguments.own_prompts)
    )
    arguments.folder.mkdir(parents=True, exist_ok=True)
    people = arguments.folder / "people.jsonl"
    people.write_text("".join(lines))
    study = {
        "recipe": {
            "model": {"name": arguments.model},
            "preferences": {"held_out": arguments.held_out},
            "anchoring": {"base_max_new_tokens": arguments.new_tokens},
            "training": {"max_steps": arguments.steps, "per_device_train_batch_size": 4},
        },
        "grids": {"users": {"preferences": [f"user:{people}#*"], "methods": ["bapo"]}},
    }
    if arguments.benchmarks:
        study["evaluation"] = {"benchmarks": arguments.benchmarks, "limit": arguments.limit}
    path = arguments.folder / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


def seconds_by_user(study: Study) -> dict[str, list[float]]:
    """Of each kind of job the seconds, user by user; those of the base by its name."""
    ledger, found = Ledger(study), defaultdict(list)
    for job in study.jobs.values():
        record = FINISHED_JOB.read(ledger.path(job))
        found[BASE if job.of == BASE else job.work].append(record.content.seconds)
    return dict(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--sources", nargs="+", choices=sorted(TASTES), default=["starter"], help="dsp needs its data")
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pool", type=int, default=40, help="prompts of a source that its users draw from")
    parser.add_argument("--prompts", type=int, default=24, help="of each user, held-out ones too")
    parser.add_argument("--held-out", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--own-prompts", action="store_true", help="no prompt is another user's; --pool does not count")
    parser.add_argument("--benchmarks", nargs="*", default=[], help="that every user's model is asked, and the base")
    parser.add_argument("--limit", type=int, default=50, help="questions of each")
    arguments = parser.parse_args()
    study = open_study(write_study(arguments))
    left = run_here(study, silent)
    if left:
        raise SystemExit(f"{len(left)} jobs are not done; start it again: {Ledger(study).why_failed(left[0])}")
    seconds = seconds_by_user(study)
    of_base = sum(seconds.pop(BASE, []))
    count = len(seconds["train"])
    parts = [(0, 1), (1, min(5, count)), (5, min(20, count)), (20, count)]
    rows = [
        (
            f"{start + 1}" if end - start == 1 else f"{start + 1} to {end}",
            *(f"{mean(seconds[work][start:end]):.1f}" for work in ("anchor", "train", "evaluate")),
            f"{mean(sum(of) for of in zip(*(seconds[work][start:end] for work in seconds), strict=True)):.1f}",
        )
        for start, end in parts
        if end > start
    ]
    print(markdown_table(("users", "anchoring, s", "training, s", "evaluation, s", "all, s"), rows))
    ledger = Ledger(study)
    reports = [
        record.content.preferences
        for job in study.jobs.values()
        if job.work == "evaluate" and job.of != BASE and (record := ledger.finished(job)) is not None
    ]
    right = [report.reward_accuracy.value for report in reports if report is not None]
    adapters = [path.stat().st_size for path in (study.folder / "runs").glob("*/adapter_model.safetensors")]
    numbers = [
        ("users", str(count)),
        *([("asking the base, once", f"{of_base:.1f} s")] if arguments.benchmarks else []),
        ("mean reward accuracy of a user", f"{100 * mean(right):.0f} %"),
        ("adapter of a user", f"{mean(adapters) / 1e6:.1f} MB"),
        ("anchored store of all", f"{sum(p.stat().st_size for p in study.folder.rglob('anchored/*/*')) / 1e6:.1f} MB"),
    ]
    print(markdown_table(("measured", ""), numbers))


if __name__ == "__main__":
    main()
