"""Chat templates that write the date: what they take for now is told them, so that a prompt stays the same prompt."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

_DIRECTIVES = "aAbBcCdDeFfgGhHIjklmMnpPrRsStTuUVwWxXyYzZ"
_MACRO = (
    "{%% macro strftime_now(format) %%}{%% set text = namespace(now=format.replace('%%%%', '\x00')) %%}"
    "{%% for directive, meaning in %s.items() %%}"
    "{%% set text.now = text.now.replace(directive, meaning) %%}"
    "{%% endfor %%}{{ text.now.replace('\x00', '%%') }}{%% endmacro %%}\n"
)
"""On a line of its own, as `transformers` has the line feed behind a block and the white space before one left out."""


def writes_date(tokenizer: Any) -> bool:
    """Whether a tokenizer's chat template writes the date, so that the same turns are another prompt on another day."""
    return "strftime_now" in str(getattr(tokenizer, "chat_template", None))


def at_moment(template: str, today: datetime) -> str:
    """A chat template whose ``strftime_now`` tells this moment instead of that of the machine's clock.

    `transformers` hands templates text only, so the function is written in front, as a macro.
    """
    directives = [f"%{flag}{letter}" for flag in ("-", "") for letter in _DIRECTIVES]
    return _MACRO % json.dumps({directive: _written(today, directive) for directive in directives}) + template


def _written(today: datetime, directive: str) -> str:
    try:
        return today.strftime(directive)
    except ValueError:  # one that this system does not know
        return directive
