"""Damage: bytes of a file that somebody cut, changed, or wrote to do harm."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from typing import Any

from bapo import files

DEEP = 100_000
NUMBERS = (
    0,
    -1,
    1,
    0.5,
    1e-320,
    1e308,
    -1e308,
    math.nan,
    math.inf,
    -math.inf,
    255,
    65536,
    2**31,
    2**32,
    2**53 + 1,
    2**63,
    2**64,
    10**30,
    10**400,
)
TEXTS = (
    "",
    " ",
    "\0",
    "\ud800",
    "\udc00x",
    "\ufeff",
    "\u2028",
    "\x1b]0;owned\x07",
    "\x9b31m",
    "[/red]",
    "{0.__class__}",
    "%999999d",
    "x" * 20_000,
    " " * 20_000,
    "\n" * 5_000,
    "9" * 5_000,
    "-1",
    "1e5",
    "nan",
    "null",
    "true",
    "../../etc/passwd",
    "/dev/zero",
    "/dev/null",
    ".",
    "a/b/c",
    "(a+)+$",
    "(" * 2_000,
    "[",
    "*",
    "٣",
    "é" * 300,
    "🙂",
    "<|end|>",
    "</s>",
    "system",
    "assistant",
)
SNIPPETS = (
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\x80",
    b"\r",
    b"\n\n",
    b"\xe2\x80\xa8",
    b'"',
    b"'",
    b"\\ud800",
    b"\\u0000",
    b"{",
    b"[",
    b"}",
    b"]",
    b",",
    b":",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"99999999999999999999",
    b"-1",
    b"null",
    b"&a [*a,*a]",
    b"*a",
    b"!!python/object/apply:os.system [id]",
    b"!!binary x",
    b"? ",
    b"- - - ",
    b"<<: *a",
    b"%YAML 9.9\n---\n",
    b"{{",
    b"{%",
    b"%}",
    b"{% for i in range(99999) %}",
    b"{% endfor %}",
    b"|safe",
    b" * 99999999",
)


def value_of(rng: random.Random) -> Any:
    """A value that nobody expects there."""
    kind = rng.randrange(8)
    if kind < 2:
        return rng.choice(NUMBERS)
    if kind < 5:
        return rng.choice(TEXTS)
    if kind == 5:
        return rng.choice((None, True, False, [], {}, [None], {"": None}))
    if kind == 6:
        return [rng.choice(NUMBERS + TEXTS) for _ in range(rng.randrange(1, 4))]
    return {rng.choice(TEXTS): rng.choice(NUMBERS + TEXTS) for _ in range(rng.randrange(1, 3))}


def mutate(content: bytes, rng: random.Random) -> bytes:
    """The content after one to four kinds of damage."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        in_values = _json(content, rng) if rng.random() < 0.6 else None
        content = rng.choice(_IN_BYTES)(content, rng) if in_values is None else in_values
        content = content[: 2**20]
    return content


def _flip(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content or b"x")
    for _ in range(rng.choice((1, 1, 4, 16))):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _remove(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content) + 1)
    return content[:start] + content[start + rng.randrange(1, 64) :]


def _insert(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    text = rng.choice(TEXTS).encode("utf-8", "surrogatepass")
    return content[:at] + rng.choice((rng.choice(SNIPPETS), text, rng.randbytes(rng.randrange(1, 32)))) + content[at:]


def _repeat(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content) + 1)
    part = content[start : start + rng.randrange(1, 200)]
    return content[:start] + part * rng.choice((2, 3, 50, 2_000)) + content[start:]


def _swap(content: bytes, rng: random.Random) -> bytes:
    lines = content.split(b"\n")
    one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[one], lines[other] = lines[other], lines[one]
    return b"\n".join(lines)


def _nest(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    return (
        content[:at]
        + rng.choice((b"[", b'{"a":', b"(", b"- ", b"{{", b"!a ")) * rng.choice((20, 2_000, DEEP))
        + content[at:]
    )


def _recode(content: bytes, rng: random.Random) -> bytes:
    text = content.decode("utf-8", "replace")
    return text.encode(rng.choice(("utf-16", "utf-32", "utf-16-le", "latin-1", "utf-8-sig", "utf-7")), "replace")


_IN_BYTES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _flip,
    _flip,
    _cut,
    _remove,
    _insert,
    _insert,
    _repeat,
    _swap,
    _nest,
    _recode,
)


def _json(content: bytes, rng: random.Random) -> bytes | None:
    """The same JSON with something else in it, None of what is no JSON. A checksum is often made to fit again."""
    lines = content.split(b"\n")
    at = rng.randrange(len(lines))
    for parts, place in ((lines, at), ([content], 0)):
        try:
            value = json.loads(parts[place])
        except (ValueError, RecursionError):
            continue
        if not isinstance(value, dict | list) or not value:
            continue
        changed = _sealed(_changed(value, rng)) if rng.random() < 0.7 else _changed(value, rng)
        text = json.dumps(changed, ensure_ascii=rng.random() < 0.5)
        if rng.random() < 0.05:
            text = text.replace("{", '{"chosen": 1, "chosen": 2, ', 1)
        parts[place] = text.encode("utf-8", "surrogatepass")
        return b"\n".join(parts)
    return None


def _changed(value: Any, rng: random.Random) -> Any:
    holder, key = value, None
    while True:  # down to some place
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        key = rng.choice(keys)
        if not isinstance(holder[key], dict | list) or not holder[key] or rng.random() < 0.25:
            break
        holder = holder[key]
    kind = rng.randrange(10)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[rng.choice(TEXTS)] = holder.pop(key)
    elif kind == 2 and isinstance(holder, dict):
        holder[rng.choice(TEXTS)] = value_of(rng)
    elif kind == 3:
        holder[key] = rng.choice(([holder[key]], {"a": holder[key]}, str(holder[key])))
    elif kind == 4 and isinstance(holder, list):
        holder.extend(holder[:1] * rng.choice((1, 2, 500)))
    elif kind == 5 and isinstance(holder[key], int | float) and abs(holder[key]) < 2**64:
        holder[key] = rng.choice((-1, 0.1, 1.0, 1e6, 2**16)) * holder[key]
    else:
        holder[key] = value_of(rng)
    return value


def _sealed(value: Any) -> Any:
    """With a checksum that fits, where there was one: somebody may have written such a record."""
    if isinstance(value, dict) and "records" in value and "checksum" in value:
        return {
            "checksum": files.checksum(json.dumps(value["records"], separators=(",", ":")).encode()),
            "records": value["records"],
        }
    if isinstance(value, dict) and "checksum" in value:
        rest = {name: inner for name, inner in value.items() if name != "checksum"}
        try:
            return {**rest, "checksum": files.checksum(json.dumps(rest, sort_keys=True).encode())}
        except (TypeError, ValueError):
            return value
    return value
