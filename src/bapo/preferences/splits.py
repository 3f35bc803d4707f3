"""Training and held-out preferences."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bapo.errors import BapoError
from bapo.preferences.grouping import group_pairs
from bapo.preferences.reading import in_chat, read_paper_rows, read_preferences
from bapo.preferences.record import Preferences

Protocol = Literal["by-prompt", "paper"]


@dataclass(frozen=True, slots=True)
class Split:
    """Preferences to train on, and preferences held out."""

    train: Preferences
    held_out: Preferences

    @property
    def whole(self) -> Preferences:
        """Both sides as one."""
        return Preferences(
            self.train.name, self.train.groups + self.held_out.groups, self.train.rows, self.train.dropped
        )

    @property
    def leak(self) -> int:
        """Held-out prompts that are trained on too; 0 but under the paper's protocol."""
        known = {group.prompt for group in self.train.groups}
        return sum(group.prompt in known for group in self.held_out.groups)


def read_split(
    source: str,
    *,
    protocol: Protocol = "by-prompt",
    held_out: int | None = None,
    seed: int = 0,
    data_folder: Path | None = None,
    plain: bool = False,
) -> Split:
    """Read preferences and split them.

    Args:
        source: see `read_preferences`.
        protocol: ``by-prompt`` removes duplicates first and holds out whole prompts; ``paper`` is `paper_split`.
        held_out: prompts held out (by-prompt); a fifth, at most 100, by default.
        seed: seed of the split.
        data_folder, plain: see `read_preferences`.

    Raises:
        BapoError: see `read_preferences`, `split_by_prompt` and `paper_split`.
    """
    if protocol == "paper":
        return paper_split(source, seed=seed, data_folder=data_folder, plain=plain)
    preferences = read_preferences(source, data_folder=data_folder, plain=plain)
    return split_by_prompt(preferences, held_out, seed)


def split_by_prompt(preferences: Preferences, held_out: int | None = None, seed: int = 0) -> Split:
    """Hold out whole prompts, chosen by the seed; both sides keep the order of reading.

    Args:
        preferences: what is split.
        held_out: prompts held out; a fifth, at most 100, by default.
        seed: seed of the choice.

    Raises:
        BapoError: nothing would be left to train on.
    """
    total = len(preferences.groups)
    if total < 2:
        raise BapoError(
            f"{preferences.name} has {total} prompt, and at least 2 are needed: one to learn, one held out."
        )
    if held_out is None:
        held_out = max(1, min(100, total // 5))
    if not 0 < held_out < total:
        raise BapoError(
            f"{preferences.name} has {total} prompts, so between 1 and {total - 1} can be held out, not {held_out} "
            "(--held-out)."
        )
    out = set(random.Random(seed).sample(range(total), held_out))
    sides = (
        [g for i, g in enumerate(preferences.groups) if i not in out],
        [preferences.groups[i] for i in sorted(out)],
    )
    train, held = (Preferences(preferences.name, tuple(side), preferences.rows, preferences.dropped) for side in sides)
    return Split(train, held)


def paper_split(source: str, *, seed: int = 0, data_folder: Path | None = None, plain: bool = False) -> Split:
    """The paper's protocol (appendix A): split by row, duplicates and all.

    P-Soups: only prompts that every type has, 45,000 training rows, the rest for validation. DSP: 2,000 validation
    pairs. **It leaks**: 82 % of the raw P-Soups rows are repetitions, and a DSP prompt has four pairs, so most held-out
    prompts, and many held-out rows, are trained on too; held-out accuracy is then partly memory. `Split.leak` counts.

    Raises:
        BapoError: another source, or too few rows.
    """
    rows, at = read_paper_rows(source, data_folder)
    if not 0 < at < len(rows):
        raise BapoError(
            f"The paper's protocol needs more rows than {source} has ({len(rows):,}): get the full data, "
            "or use the by-prompt protocol."
        )
    random.Random(seed).shuffle(rows)
    train, held_out = (
        group_pairs(source, side if plain else in_chat(side), drop_duplicates=False) for side in (rows[:at], rows[at:])
    )
    return Split(train, held_out)
