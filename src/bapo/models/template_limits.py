"""What a chat template may take: a program of somebody else's, of which a sandbox bounds neither time nor memory.

`transformers` renders templates in a sandbox of `jinja2`. Here the same sandbox counts: what each operation, call and
filter makes is measured, before it is made where one alone could fill the memory, and loops look at the clock, those of
filters too.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache, wraps
from typing import Any

from jinja2 import Undefined, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context
from jinja2.visitor import NodeTransformer

SECONDS = 1.0
"""Of the processor that one rendering may take."""

LARGEST, MOST = 2**24, 2**28
"""Letters of one text, or of a list, and of all that one rendering makes."""

ENTRY, WORD = 64, 16
"""Letters that an entry of a list counts as, and a letter where a filter looks for words."""

LONGEST, TIMES = 2**18, 8
"""Letters that a template may write of its own, and how many times those that it is given."""

LONGEST_TEMPLATE = 2**18
"""Letters. Published templates have up to 30,000."""

_LEFT_OUT = ("urlize", "striptags", "xmlattr", "pprint")
"""Filters for web pages, whose time grows with the square of a text's length."""

_LOOPING = frozenset(
    ("batch", "list", "map", "max", "min", "reject", "rejectattr", "select", "selectattr", "slice", "sum", "unique")
)
"""Filters that go through what they are given item by item, some of them only when somebody goes through them."""

_AT_ONCE = frozenset(("groupby", "join", "sort", "urlencode"))
"""Filters that have all items in their hands before the first one is done."""

_WIDE = re.compile(r"%[^a-zA-Z%]*(?:\d{5}|\*)|\{[^{}]*:[^{}]*\d{5}|\{[^{}]*:[^{}]*\{")
"""In a format: a width of five digits, or one that is a value."""


class TooMuchError(Exception):
    """A template takes more than it may."""


def check_length(text: str, given: Any) -> None:
    """A rendering is no longer than what was given explains.

    Raises:
        TooMuchError: it is.
    """
    if len(text) > LONGEST and len(text) > LONGEST + TIMES * _size(given):
        raise TooMuchError(f"it writes {len(text):,} letters")


@contextmanager
def limited() -> Iterator[None]:
    """Inside, `transformers` renders chat templates within these limits.

    Raises:
        TooMuchError: a template takes more; from inside.
    """
    from transformers.utils import chat_template_utils

    original = _compile_of_transformers()
    chat_template_utils._compile_jinja_template = _compiled
    try:
        yield
    finally:
        chat_template_utils._compile_jinja_template = original


@lru_cache(1)
def _compile_of_transformers() -> Callable[[str], Any]:
    from transformers.utils import chat_template_utils

    compile_template: Callable[[str], Any] = chat_template_utils._compile_jinja_template
    return compile_template


def _compiled(source: str) -> Any:
    template = _compiled_once(source)
    template.environment.spent = _Spent()
    return template


@lru_cache(128)
def _compiled_once(source: str) -> Any:
    if len(source) > LONGEST_TEMPLATE:
        raise TooMuchError(f"it has more than {LONGEST_TEMPLATE:,} letters")
    known = _compile_of_transformers()("").environment  # with the filters and functions of this version of transformers
    environment = known.overlay()
    environment.__class__ = _Limited
    environment.spent = _Spent()
    environment.finalize = environment.shown
    environment.globals = {name: value for name, value in known.globals.items() if name != "lipsum"}
    filters = {name: value for name, value in known.filters.items() if name not in _LEFT_OUT}
    filters |= {" joined": lambda parts: "".join(map(str, parts))}
    filters |= {" measured": lambda value: value, " cut": lambda value: value}
    environment.filters = {name: environment.checked(name, value) for name, value in filters.items()}
    environment.filters[" tick"] = environment.tick
    return environment.from_string(source)


class _Spent:
    """What a rendering has taken so far."""

    def __init__(self) -> None:
        self.made, self.count, self.until = 0, 0, time.thread_time() + SECONDS

    def add(self, letters: int) -> None:
        if letters > LARGEST:
            _check_size(letters)
        self.made += letters
        self.count += 1
        if not self.count % 64 or letters > LONGEST:
            self.check()

    def check(self) -> None:
        if self.made > MOST:
            raise TooMuchError(f"it makes texts of more than {MOST:,} letters in all")
        if time.thread_time() > self.until:
            raise TooMuchError(f"it takes more than {SECONDS:g} s of the processor")


class _Limited(ImmutableSandboxedEnvironment):
    """The sandbox, which counts."""

    spent: _Spent
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def _generate(self, source: nodes.Template, *arguments: Any, **more: Any) -> str:
        watched = _Watched(self).visit(source)
        watched.set_environment(self)
        return super()._generate(watched, *arguments, **more)

    def checked(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that is measured."""
        handed = 1 if hasattr(function, "jinja_pass_arg") else 0

        @wraps(function)
        def measured(*arguments: Any, **named: Any) -> Any:
            if len(arguments) > handed:
                given = (*arguments[handed + 1 :], *named.values())
                value = self.items(name, arguments[handed], given)
                arguments = (*arguments[:handed], value, *arguments[handed + 1 :])
            if name in _GROWING or len(arguments) + len(named) > handed + 1:
                _check(name, arguments[handed], (*arguments[handed + 1 :], *named.values()))
            made = function(*arguments, **named)
            self.spent.add(_length(made))
            self.spent.check()
            return made

        return measured

    def items(self, name: str, value: Any, given: tuple[Any, ...]) -> Any:
        """What a filter goes through, counted: while it does so, or before, where it has all of it at once."""
        if name in _AT_ONCE:
            return self.listed(value)
        if name not in _LOOPING or isinstance(value, Undefined) or not isinstance(value, Iterable):
            return value
        is_short = all(_length(argument) <= ENTRY**2 for argument in given)
        return self.counted(value, ENTRY if is_short else 1)

    def listed(self, value: Any) -> Any:
        """A list of what is given out item by item; anything else as it is."""
        return list(self.counted(value)) if isinstance(value, Iterator) else value

    def counted(self, values: Iterable[Any], at_once: int = ENTRY) -> Iterator[Any]:
        """The same items; after so many the clock is looked at."""
        for count, value in enumerate(values):
            if not count % at_once:
                self.spent.check()
                _check_size(count * ENTRY)
            yield value

    def shown(self, value: Any) -> Any:
        """A value that is written out."""
        self.spent.add(len(value) if isinstance(value, str) else _size(value))
        return value

    @property
    def tick(self) -> Callable[..., None]:
        """A pass of a loop, which writes so many letters of the template's own."""

        @pass_context  # so that it is not computed while the template is read
        def pass_of_loop(context: Any, letters: int) -> None:
            self.spent.add(letters + 1)

        return pass_of_loop

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator != "+":
            _check_operation(operator, left, right)
        made = self.binop_table[operator](left, right)
        self.spent.add(_length(made))
        return made

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        if args or kwargs:
            method = getattr(__obj, "__wrapped__", __obj)
            of = getattr(method, "__self__", None)
            name = getattr(method, "__name__", "") if isinstance(of, str | bytes) else ""
            args = tuple(map(__self.listed, args)) if name else args
            _check(name, of, (*args, *kwargs.values()))
        made = super().call(__context, __obj, *args, **kwargs)
        __self.spent.add(_length(made))
        return made


class _Watched(NodeTransformer):
    """Joined texts, parts of texts, and lists in which something may stand many times, are measured; passes of loops,
    those that the loop's condition leaves out too, are counted."""

    def __init__(self, environment: _Limited) -> None:
        self.environment = environment

    def _through(self, node: Any, name: str) -> nodes.Filter:
        return nodes.Filter(node, name, [], [], None, None, lineno=getattr(node, "lineno", 1))

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return self._through(nodes.List(node.nodes, lineno=node.lineno), " joined")

    def visit_List(self, node: Any) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        is_stored = getattr(node, "ctx", "load") != "load"
        plain = all(isinstance(item, nodes.Const) for item in getattr(node, "items", ()))
        return node if is_stored or plain else self._through(node, " measured")

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return self._through(node, " cut") if isinstance(node.arg, nodes.Slice) else node

    visit_Tuple = visit_Dict = visit_List

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        if node.test is not None:
            looked_at = self._through(nodes.Const(0, lineno=node.lineno), " tick")
            node.test = nodes.And(nodes.Not(looked_at, lineno=node.lineno), node.test, lineno=node.lineno)
        written = sum(len(text.data) for child in node.body for text in child.find_all(nodes.TemplateData))
        self.generic_visit(node)
        pass_of_loop = self._through(nodes.Const(written, lineno=node.lineno), " tick")
        node.body.insert(0, nodes.ExprStmt(pass_of_loop, lineno=node.lineno))
        return node


def _length(value: Any) -> int:
    """Letters or entries of a value, without what is in these."""
    if isinstance(value, str):
        return len(value)
    return ENTRY * (1 + len(value)) if isinstance(value, list | tuple | dict) else 1


def _size(value: Any) -> int:
    """Letters and entries of a value with all that is in it, which may stand there many times."""
    size, left = 0, [value]
    while left:
        inner = left.pop()
        if isinstance(inner, Namespace):
            inner = object.__getattribute__(inner, "_Namespace__attrs")
        if isinstance(inner, str | bytes):
            size += len(inner)
        elif isinstance(inner, dict):
            left += [*inner, *inner.values()]
        elif isinstance(inner, list | tuple | set | frozenset):
            left += inner
        size += ENTRY
        if size + ENTRY * len(left) > LARGEST:
            _check_size(size + ENTRY * len(left))
    return size


def _check_size(letters: int) -> None:
    if letters > LARGEST:
        raise TooMuchError(f"it makes a text of more than {LARGEST:,} letters, or as large a list")


def _check_operation(operator: str, left: Any, right: Any) -> None:
    """Before it is computed: a text or a list so many times, a whole number of too many digits, or a format."""
    if operator == "%":
        if isinstance(left, str):
            _check("format", left, right if isinstance(right, tuple) else (right,))
    elif isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * max(0, right) if operator == "**" else left.bit_length() + right.bit_length()
        _check_size(bits * ENTRY)
    elif operator == "*":
        times, value = (left, right) if isinstance(left, int) else (right, left)
        if isinstance(times, int):
            _check_size(_length(value) * max(0, times))


def _check(name: str, value: Any, arguments: tuple[Any, ...]) -> None:
    """Before a filter, or a method of a text, is called: what it would make of what it is given."""
    texts = [argument for argument in arguments if isinstance(argument, str)]
    largest = max((abs(argument) for argument in arguments if isinstance(argument, int)), default=0)
    if largest > LONGEST:
        _check_size(largest * ENTRY)
    if name in _GROWING:
        longest = max(map(len, texts), default=0)
        letters = _GROWING[name](value, texts, longest, largest, arguments)
        _check_size(letters)


def _of_format(value: Any, texts: Any, longest: int, largest: int, arguments: Any) -> int:
    if isinstance(value, str) and _WIDE.search(value):
        raise TooMuchError("it fills up a text to a width of five digits, or to one that is a value")
    return len(str(value)) + sum(map(_size, arguments))


def _of_sum(value: Any, texts: Any, longest: int, largest: int, arguments: Any) -> int:
    if any(not isinstance(argument, int | float | str | None) for argument in arguments):
        raise TooMuchError("it adds up what are no numbers")
    return 0


def _lines(value: Any) -> int:
    return str(value).count("\n") + str(value).count("\t") + 1


_GROWING: dict[str, Callable[[Any, list[str], int, int, tuple[Any, ...]], int]] = {
    "format": _of_format,
    "format_map": _of_format,
    "sum": _of_sum,
    "replace": lambda value, texts, *_: str(value).count(texts[0]) * len(texts[1]) if len(texts) > 1 else 0,
    "translate": lambda value, texts, longest, largest, given: len(value) * max(map(_size, given), default=1),
    "join": lambda value, texts, longest, largest, given: (
        _size(value) + sum(map(_size, given)) + longest * max(map(_length, (value, *given))) // ENTRY
        if isinstance(value, list | tuple | dict)
        else sum(map(_size, given)) + len(str(value)) * max(map(_length, (value, *given))) // (1 if longest else ENTRY)
    ),
    "indent": lambda value, texts, longest, largest, given: _lines(value) * max(longest, largest),
    "expandtabs": lambda value, texts, longest, largest, given: _lines(value) * largest,
    "wordwrap": lambda value, texts, longest, largest, given: len(str(value)) * max(longest, WORD),
    **dict.fromkeys(("title", "wordcount"), lambda value, *_: WORD * len(str(value))),
    "batch": lambda value, texts, longest, largest, given: largest * (ENTRY + sum(map(_size, given))),
    "slice": lambda value, texts, longest, largest, given: largest * ENTRY,
    **dict.fromkeys(
        ("groupby", "sort"),
        lambda value, texts, longest, *_: _size(value) + (ENTRY + longest) * (_length(value) // ENTRY),
    ),
    "urlencode": lambda value, *_: 12 * _size(value),
    "dictsort": lambda value, *_: _size(value),
    "tojson": lambda value, texts, longest, largest, given: _size(value) * (1 + largest + longest),
    **dict.fromkeys(("string", "e", "escape", "forceescape", " joined", " measured"), lambda value, *_: _size(value)),
}
"""By filter or method: about how many letters it makes of a value and what it is given beside it."""
