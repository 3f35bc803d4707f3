"""What is kept of groups in a store's index, so that a second start neither tokenizes nor looks into a journal.

A group's token ids are kept under all that they depend on: its texts, the tokenizer as it encodes, what it does to long
texts, and the versions of the code. Its base responses and scores are kept under that and the generation settings; the
store itself says of which model they are.
"""

from __future__ import annotations

import hashlib
import json
import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

from bapo.anchoring.generate import GENERATION_VERSION, GenerationSettings
from bapo.likelihood import TokenIds
from bapo.models import ChatFormat
from bapo.preferences import PromptGroup, in_json

if TYPE_CHECKING:
    from bapo.anchoring.tokens import LengthPolicy

TOKENIZING_VERSION = 1
"""Counted up whenever the same text could become other token ids than before."""


class Packed(NamedTuple):
    """What is kept of a group: a JSON value, rows of token ids, and of some of these a number for each token."""

    facts: Any
    rows: Sequence[TokenIds]
    numbers: Sequence[Sequence[float]] = ()


def tokenizing_mark(chat: ChatFormat, policy: LengthPolicy) -> str | None:
    """Of all but texts that token ids depend on; None for a tokenizer that cannot be known by its content."""
    import tokenizers
    import transformers

    tokenizer = chat.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not type(tokenizer).__module__.startswith("transformers."):
        return None
    simple = {k: v for k, v in tokenizer.init_kwargs.items() if isinstance(v, str | int | float | bool | None)}
    parts = [
        (TOKENIZING_VERSION, transformers.__version__, tokenizers.__version__, sys.byteorder),
        type(tokenizer).__name__,
        backend.to_str(),
        tokenizer.chat_template,
        {k: v for k, v in simple.items() if not k.endswith(("_path", "_file"))},
        tokenizer.special_tokens_map,
        chat.end_ids,
        chat.today,
        asdict(policy),
    ]
    return _hash(json.dumps(parts, sort_keys=True, default=str).encode()).hex()


def anchoring_mark(tokenizing: str, settings: GenerationSettings, end_ids: Sequence[int]) -> str:
    """The same for its base responses and scores, in the store of one model."""
    parts = [tokenizing, asdict(settings), sorted(end_ids), GENERATION_VERSION]
    return _hash(json.dumps(parts, sort_keys=True).encode()).hex()


def text_hash(group: PromptGroup) -> bytes:
    """Of all that a group holds in words."""
    return _hash(in_json(group).encode())


def name_of(mark: str, text: bytes) -> bytes:
    """The name under which something is kept of a group with these texts (`text_hash`)."""
    return _hash(mark.encode() + text)


def _hash(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:16]


def packed(content: Packed) -> bytes:
    """As bytes: how long the JSON is, the JSON, and the numbers as they lie in memory."""
    numbers = [exact(row) for row in content.numbers]
    lengths = [[len(row) for row in content.rows], [(row.typecode, len(row)) for row in numbers]]
    facts = json.dumps([content.facts, *lengths], separators=(",", ":")).encode()
    ids = array("I", [token for row in content.rows for token in row])
    return b"".join([len(facts).to_bytes(4, "little"), facts, ids.tobytes(), *(row.tobytes() for row in numbers)])


def unpacked(content: bytes) -> Packed:
    """What `packed` made bytes of."""
    at = 4 + int.from_bytes(content[:4], "little")
    facts, lengths, kinds = json.loads(content[4:at])
    ids = array("I")
    end = at + sum(lengths) * ids.itemsize
    ids.frombytes(content[at:end])
    return Packed(facts, tuple(_cut(shared_ids(ids), lengths)), tuple(_arrays(content, end, kinds)))


def _cut(ids: TokenIds, lengths: Sequence[int]) -> Iterator[TokenIds]:
    start = 0
    for length in lengths:
        yield ids[start : start + length]
        start += length


def _arrays(content: bytes, start: int, kinds: Sequence[tuple[str, int]]) -> Iterator[array[float]]:
    for kind, length in kinds:
        row: array[float] = array(kind)
        row.frombytes(content[start : start + length * row.itemsize])
        start += length * row.itemsize
        yield row


def exact(numbers: Sequence[float]) -> array[float]:
    """Numbers in four bytes each, or in eight where four are not exact."""
    short = array("f", numbers)
    return short if list(short) == list(numbers) else array("d", numbers)


_SHARED: dict[int, int] = {}
"""Token ids as objects: each stands in memory once, and not once for each place where it occurs."""


def shared_ids(ids: Sequence[int]) -> TokenIds:
    """The same ids, of which equal ones are the same objects."""
    return tuple([_SHARED.setdefault(token, token) for token in ids])
