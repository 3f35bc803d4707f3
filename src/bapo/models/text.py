"""Text to token ids where a tokenizer treats the beginning of a text, or some words in it, in its own way."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from bapo.errors import BapoError, foreign

_HELD, _LAST_HELD = 0x100000, 0x10FFFD
"""First and last of the characters that stand for held words: private use, plane 16."""

_HOLDS = f"[{chr(_HELD)}-{chr(_LAST_HELD)}]"

_BEFORE = ("\n", "=", "x", "\u2042")
"""Texts before which another one is put to stand in the middle; the first one that does not grow together with it."""


def whose(tokenizer: Any, part: str = "tokenizer") -> str:
    """The beginning of a sentence about a tokenizer, or a part of it: by the name that it was loaded by, if it was."""
    name = getattr(tokenizer, "name_or_path", None)
    return f"The {part} of {name}" if name else f"The model's {part}"


class HeldWords:
    """Words of a text that are text though a tokenizer would read them as control tokens.

    While a template goes through the text, each is one character that no template looks for, the same one where the
    same word stands again.

    Args:
        words: the control tokens in words.
        before: words that were put aside before, of a text that this one goes on with.

    Attributes:
        has_held: whether a text that it was given held any.
    """

    def __init__(self, words: Iterable[str], before: Iterable[str] = ()) -> None:
        longest_first = sorted(words, key=len, reverse=True)
        self._pattern = re.compile("|".join([*map(re.escape, longest_first), _HOLDS]))
        self._places = {word: at for at, word in enumerate(before)}
        self.has_held = False

    @property
    def words(self) -> list[str]:
        """The words that were put aside, each once."""
        return list(self._places)

    def hold(self, text: str) -> str:
        """The text with a character in place of each word.

        Raises:
            BapoError: it holds more different words, private characters among them, than there are such characters.
        """

        def put_aside(match: re.Match[str]) -> str:
            self.has_held = True
            held = _HELD + self._places.setdefault(match[0], len(self._places))
            if held > _LAST_HELD:
                raise BapoError(
                    f"A prompt or response holds more than {_LAST_HELD - _HELD + 1:,} different characters for private "
                    "use (U+100000 to U+10FFFD) or control tokens in words: leave it out, or take them out of it."
                )
            return chr(held)

        return self._pattern.sub(put_aside, text)

    def pieces(self, text: str) -> list[str]:
        """The text as plain pieces and, at odd places, held words."""
        words = {chr(_HELD + at): word for word, at in self._places.items()}
        parts = re.split(f"({_HOLDS})", text)
        return [words.get(part, part) if at % 2 else part for at, part in enumerate(parts)]

    def restore(self, text: str) -> str:
        """The text with its words."""
        return "".join(self.pieces(text))


class TextEncoder:
    """Token ids of texts that stand at the beginning, behind another text, or in the middle.

    SentencePiece tokenizers put a space before every text that they are given, and byte-level ones join letters across
    a boundary. So text that stands behind other text is encoded behind it.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def plain(self, text: str) -> tuple[int, ...]:
        """Ids of a text at the beginning, with nothing added; control tokens in words are control tokens."""
        return self._encoded(text, add_special_tokens=False)

    def _encoded(self, text: str, **how: Any) -> tuple[int, ...]:
        with foreign(
            f"{whose(self.tokenizer)} could not encode a text", "take its files from where the model came from"
        ):
            return tuple(self.tokenizer(text, **how)["input_ids"])

    def started(self, text: str) -> tuple[int, ...]:
        """The same with what the tokenizer puts before a text (BOS), once, and without what it puts behind (EOS)."""
        unmarked = self.plain(text)
        marked = self._encoded(text)
        front = next(
            (n for n in range(len(marked) - len(unmarked) + 1) if marked[n : n + len(unmarked)] == unmarked), None
        )
        if front is None:
            return marked
        return unmarked if unmarked[:front] == marked[:front] else (*marked[:front], *unmarked)

    def middle(self, text: str) -> tuple[int, ...]:
        """Ids of a text that stands behind other text."""
        if not text:
            return ()
        for before in _BEFORE:
            head, whole = self.plain(before), self.plain(before + text)
            if whole[: len(head)] == head:
                return whole[len(head) :]
        return self.plain(text)

    def chat(self, text: str, held: HeldWords, *, behind: bool = False) -> tuple[int, ...]:
        """Ids of a rendered chat, or of what stands behind one: control tokens are such, held words are text.

        A held word is encoded in two parts, neither of which is a control token.
        """
        first, *others = held.pieces(text)
        ids = self.middle(first) if behind else self.plain(first)
        for at, piece in enumerate(others):
            ids += self.middle(piece) if at % 2 else self.middle(piece[:1]) + self.middle(piece[1:])
        return ids
