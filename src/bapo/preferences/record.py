"""The record of the library: a prompt, its distinct responses, and the pairs among them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from bapo.errors import BapoError

ROLES = ("system", "developer", "user", "assistant", "tool")

TOOLS, TEMPLATE = "tools", "template"
"""Roles of what a chat prompt may begin with and that is no turn, each as JSON: the schemas of the tools that the
assistant may call, and arguments of the chat template."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat.

    Attributes:
        role: system, developer, user, assistant or tool; or `TOOLS` or `TEMPLATE`.
        content: what is said.
        more: what else the turn holds (tool_calls, reasoning_content, name, ...) as a JSON object; empty for nothing.

    Raises:
        BapoError: another role.
    """

    role: str
    content: str
    more: str = ""

    def __post_init__(self) -> None:
        if self.role not in (*ROLES, TOOLS, TEMPLATE):
            raise BapoError(f"Unknown role {self.role!r} in a chat prompt: use one of {', '.join(ROLES)}.")


Prompt: TypeAlias = str | tuple[Message, ...]
"""Plain text, or the turns of a chat up to the response."""

Response: TypeAlias = str | Message
"""Text, or an assistant turn that holds more than text."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One comparison as it was read, with the model's own earlier responses to its prompt where they are known."""

    prompt: Prompt
    chosen: Response
    rejected: Response
    bases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptGroup:
    """A prompt with all that was said to it.

    Attributes:
        prompt: plain text or chat turns.
        responses: distinct responses.
        pairs: (chosen, rejected) as indices into the responses. Under the paper's protocol a pair may repeat.
        bases: base responses that came with the data, distinct; none where they are to be generated.

    Raises:
        BapoError: responses repeat, or a pair names a response that is not there or compares one with itself.
    """

    prompt: Prompt
    responses: tuple[Response, ...]
    pairs: tuple[tuple[int, int], ...]
    bases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.responses)) < len(self.responses):
            raise BapoError(f"The responses of a prompt group repeat (prompt: {prompt_text(self.prompt)[:60]!r}).")
        for chosen, rejected in self.pairs:
            if chosen == rejected or not (0 <= chosen < len(self.responses) and 0 <= rejected < len(self.responses)):
                raise BapoError(
                    f"Pair ({chosen}, {rejected}) does not fit a prompt group of {len(self.responses)} responses."
                )


@dataclass(frozen=True)
class Preferences:
    """Prompt groups of one preference.

    Attributes:
        name: what the source is called.
        groups: prompt groups in order of first appearance.
        rows: comparisons that were read.
        dropped: comparisons that were not kept, by reason.
    """

    name: str
    groups: tuple[PromptGroup, ...]
    rows: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)

    @property
    def pair_count(self) -> int:
        """Pairs in all groups."""
        return sum(len(group.pairs) for group in self.groups)

    def fingerprint(self) -> str:
        """Hash of the content; the name does not count, the order does."""
        digest = hashlib.sha256(b"[")
        for at, group in enumerate(self.groups):
            digest.update(f"{', ' if at else ''}{in_json(group)}".encode())
        digest.update(b"]")
        return digest.hexdigest()


def in_json(group: PromptGroup) -> str:
    """All that a group holds, as JSON."""
    prompt = group.prompt if isinstance(group.prompt, str) else [_turn_fields(turn) for turn in group.prompt]
    responses = [answer if isinstance(answer, str) else _turn_fields(answer) for answer in group.responses]
    return json.dumps({"prompt": prompt, "responses": responses, "pairs": group.pairs, "bases": group.bases})


def _turn_fields(turn: Message) -> dict[str, str]:
    return {"role": turn.role, "content": turn.content, "more": turn.more}


def as_chat(prompt: Prompt) -> tuple[Message, ...]:
    """The prompt as chat turns; plain text becomes one user turn."""
    return (Message("user", prompt),) if isinstance(prompt, str) else prompt


def turn_as_dict(turn: Message) -> dict[str, Any]:
    """A turn as it is written in files: role, content and what else it holds."""
    return {"role": turn.role, "content": turn.content, **json.loads(turn.more or "{}")}


def turns_of(prompt: tuple[Message, ...]) -> tuple[Message, ...]:
    """The turns of a chat prompt, without what is handed to the template beside them."""
    return tuple(turn for turn in prompt if turn.role not in (TOOLS, TEMPLATE))


def prompt_text(prompt: Prompt) -> str:
    """The prompt for people: plain text, or its turns one below the other (a single user turn without its role)."""
    if isinstance(prompt, str):
        return prompt
    turns = turns_of(prompt)
    if len(turns) == 1:
        return response_text(turns[0])
    return "\n".join(f"{turn.role}: {response_text(turn)}" for turn in turns)


def response_text(response: Response) -> str:
    """The response for people: its text, and what else it holds as JSON."""
    if isinstance(response, str):
        return response
    return "\n".join(part for part in (response.content, response.more) if part)
