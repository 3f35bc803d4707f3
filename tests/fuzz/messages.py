"""The sentences that bapo says, as they stand in its source: values are named by the expressions that give them."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from types import TracebackType

import bapo

SOURCE = Path(bapo.__file__).parent
LIST = Path(__file__).with_name("messages.txt")
_RAISED = ("BapoError", "RefusedError")


@cache
def _calls(path: Path) -> tuple[tuple[int, int, str], ...]:
    """Of a file: first and last line of each place where a sentence is made, and the sentence. Inner ones come last."""
    places = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and _name(node.exc) in _RAISED:
            places.append((node.lineno, node.end_lineno or 0, _sentence(node.exc.args[0])))
        elif isinstance(node, ast.With):
            for item in node.items:
                if isinstance(item.context_expr, ast.Call) and _name(item.context_expr) == "foreign":
                    failed, todo = (_sentence(argument) for argument in item.context_expr.args[:2])
                    places.append((node.lineno, node.end_lineno or 0, f"{failed} ({{first_line(error)}}): {todo}."))
    return tuple(sorted(places, key=lambda place: (place[0], -place[1])))


def _name(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _sentence(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_sentence(part) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return "{" + ast.unparse(node.value) + "}"
    return "{" + ast.unparse(node) + "}"


def sentence_of(traceback: TracebackType | None) -> str:
    """The place where an error became a sentence: file and sentence, as they stand in the list."""
    best = ""
    while traceback is not None:
        path = Path(traceback.tb_frame.f_code.co_filename)
        if SOURCE in path.parents and path.name != "errors.py":
            inside = [place for place in _calls(path) if place[0] <= traceback.tb_lineno <= place[1]]
            if inside:
                best = f"{path.relative_to(SOURCE)}: {inside[-1][2]}"
        traceback = traceback.tb_next
    return best


def all_sentences() -> set[str]:
    """Every sentence in the source."""
    return {
        f"{path.relative_to(SOURCE)}: {sentence}"
        for path in sorted(SOURCE.rglob("*.py"))
        for _, _, sentence in _calls(path)
    }


def listed() -> set[str]:
    """Those of the committed list."""
    return {line for line in LIST.read_text().splitlines() if line and not line.startswith("#")}
