"""One comparison from one record, in each of TRL's preference formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bapo.errors import BapoError
from bapo.preferences.record import Message, Pair, Prompt


def pair_from_record(record: Mapping[str, Any], where: str) -> Pair:
    """Read ``chosen``, ``rejected`` and perhaps ``prompt``.

    Standard: all are strings. Conversational: prompt is a list of turns, chosen and rejected are lists whose last turn
    is the response. Without a prompt it is what chosen and rejected begin with in common: whole turns, or text up to
    the last white space.

    Args:
        record: the record.
        where: its place, for the error, e.g. ``mine.jsonl line 17``.

    Raises:
        BapoError: a key is missing or holds something else; names the place, the key and what was found.
    """
    if not isinstance(record, Mapping):
        raise BapoError(f"{where} is not an object with the keys prompt, chosen, rejected.")
    for key in ("chosen", "rejected"):
        if key not in record or record[key] is None:
            raise BapoError(
                f"{where} has no {key!r} (found: {', '.join(map(str, record)) or 'nothing'}): "
                "each comparison needs prompt, chosen and rejected."
            )
    chosen, rejected, prompt = record["chosen"], record["rejected"], record.get("prompt")
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _standard(prompt, chosen, rejected, where)
    if _is_turns(chosen) and _is_turns(rejected):
        return _conversational(prompt, _turns(chosen, where), _turns(rejected, where), where)
    raise BapoError(f"{where}: chosen and rejected must both be text, or both be lists of turns with role and content.")


def _standard(prompt: Any, chosen: str, rejected: str, where: str) -> Pair:
    if prompt is None:
        common = chosen[: _common_length(chosen, rejected)]
        cut = max(common.rfind(" "), common.rfind("\n")) + 1 if len(common) < min(len(chosen), len(rejected)) else 0
        if not common[:cut].strip():
            raise BapoError(f"{where} has no 'prompt', and chosen and rejected begin with nothing in common to be one.")
        return Pair(chosen[:cut].rstrip(), chosen[cut:], rejected[cut:])
    if _is_turns(prompt):
        return Pair(_ask(_turns(prompt, where), where), chosen, rejected)
    if not isinstance(prompt, str) or not prompt.strip():
        raise BapoError(f"{where}: 'prompt' must be text that is not empty, or a list of turns.")
    return Pair(prompt, chosen, rejected)


def _conversational(prompt: Any, chosen: list[Message], rejected: list[Message], where: str) -> Pair:
    if prompt is None:
        at = _common_length(chosen, rejected)
        asked, chosen, rejected = chosen[:at], chosen[at:], rejected[at:]
        if not chosen and not rejected and asked:  # equal to the end: the last turn is the response of both
            asked, chosen, rejected = asked[:-1], asked[-1:], asked[-1:]
    elif isinstance(prompt, str):
        asked = [Message("user", prompt)]
    else:
        asked = _turns(prompt, where)
    if len(chosen) != 1 or len(rejected) != 1 or {chosen[0].role, rejected[0].role} != {"assistant"}:
        raise BapoError(f"{where}: behind the prompt, chosen and rejected must each be one assistant turn.")
    return Pair(_ask(asked, where), chosen[0].content, rejected[0].content)


def _ask(turns: Sequence[Message], where: str) -> Prompt:
    if not turns or turns[-1].role != "user" or not turns[-1].content.strip():
        raise BapoError(f"{where}: a chat prompt must end with a user turn that is not empty.")
    return tuple(turns)


def _common_length(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many items two sequences begin with in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _is_turns(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _turns(value: Sequence[Any], where: str) -> list[Message]:
    turns = []
    for turn in value:
        if (
            not isinstance(turn, Mapping)
            or not isinstance(turn.get("role"), str)
            or not isinstance(turn.get("content"), str)
        ):
            raise BapoError(f"{where}: every turn needs a role and a content that are text.")
        turns.append(Message(turn["role"], turn["content"]))
    return turns
