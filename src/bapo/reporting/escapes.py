"""Text in other formats: what a name or a text holds of a format's own signs is shown, and not obeyed."""

from __future__ import annotations

import re

from bapo.visible import visible

_MARKDOWN = re.compile(r"[\\`*<>|$~&]|(?<!\w)_|_(?!\w)|](?=[(\[:])|^(?=[#+-] )")
_NUMBERS = re.compile(r"[+-][\d\s.,()\[\]%/e+-]*(unknown)?]?")
_LATEX = str.maketrans(
    {
        **{letter: f"\\{letter}" for letter in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
    }
)


def in_markdown(text: str) -> str:
    """Text in a line of Markdown, or in a cell of a table."""
    return _MARKDOWN.sub(lambda sign: f"\\{sign[0]}", visible(text, lines=False))


def in_csv(cell: str) -> str:
    """A cell of CSV: behind an apostrophe where a spreadsheet would take it for a formula, as numbers are not."""
    text = visible(cell)
    obeyed = text.startswith(("=", "+", "-", "@", "\t", "|")) and not _NUMBERS.fullmatch(text)
    return f"'{text}" if obeyed else text


def in_latex(text: str) -> str:
    """Text in a cell of a LaTeX table; the end of the row before it would take a bracket or a star for its own."""
    shown = visible(text, lines=False).translate(_LATEX)
    return f"{{}}{shown}" if shown.startswith(("[", "*")) else shown
