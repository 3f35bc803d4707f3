"""Text as it is shown: what a terminal, a browser or an editor would obey stands there in words, such as ``\\x1b``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls, with the escapes that terminals take
    "\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # breaks, directions, no width
    "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0d\uffa0\ufff0-\ufff8"  # fillers, variants, no width
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"  # of shorthand and music, tags, variants
    "\ud800-\udfff]"  # halves of pairs
)
"""What is not seen but does something, with all that Unicode lets nobody see (Default_Ignorable_Code_Point).

The joiners of Persian, Indian scripts and emojis (U+200C, U+200D) stay, and so do the two that say whether a sign is
an emoji (U+FE0E, U+FE0F).
"""

_OBEYED_OR_BREAK = re.compile(f"[\t\n]|{_OBEYED.pattern}")


def visible(text: str, *, lines: bool = True) -> str:
    """Text in which every character that is obeyed and not seen stands as Python writes it: ``\\r``, ``\\u202e``.

    Args:
        text: from anywhere.
        lines: whether it may have several lines; if not, a line feed and a tab are shown too.
    """
    return (_OBEYED if lines else _OBEYED_OR_BREAK).sub(_in_words, text)


def visible_in(value: Any) -> Any:
    """`visible` of all texts in a value as JSON has it."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {visible_in(key): visible_in(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [visible_in(inner) for inner in value]
    return value


def visible_json(text: str) -> str:
    """JSON, in which these characters stand only in strings, with each of them as JSON escapes it: the same value."""
    return _OBEYED.sub(_in_json, text)


def _in_words(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


def _in_json(match: re.Match[str]) -> str:
    pair = match[0].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{pair[at : at + 4]}" for at in range(0, len(pair), 4))
