"""A chat template as a program that can be asked: what it shows, and what it writes around what is said."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from copy import copy
from datetime import datetime
from typing import Any, Protocol, TypeAlias

from bapo.errors import BapoError, first_line
from bapo.models.template_date import at_moment, writes_date
from bapo.models.template_limits import TooMuchError, check_length, limited
from bapo.models.text import whose

PROBE = "\u2042probe\u2042"
"""Stands for a text whose surroundings in the template are looked for."""


class Turn(Protocol):
    """A turn as an object: role, content, and what else it holds as a JSON object (or nothing)."""

    @property
    def role(self) -> str: ...  # noqa: D102
    @property
    def content(self) -> str: ...  # noqa: D102
    @property
    def more(self) -> str: ...  # noqa: D102


Turns: TypeAlias = Sequence[Mapping[str, Any] | Turn]
"""The turns of a chat. The first may have the roles tools (a JSON list of schemas) and template (a JSON object of
arguments): they are handed to the chat template beside the turns."""

_REASONING = re.compile("think|thought|reason", re.IGNORECASE)
"""In the name of a control token that is a part of responses: <think>, [THINK], <|START_THINKING|>."""

QUESTION: tuple[dict[str, Any], ...] = ({"role": "user", "content": "x"},)
"""A conversation as short as one can be."""


class RefusedError(BapoError):
    """The template refuses turns."""


class ChatTemplate:
    """A tokenizer's chat template.

    Args:
        tokenizer: a `transformers` tokenizer that has one.
        end_ids: token ids that are known to end a response.

    Attributes:
        end: what it writes behind what the assistant says, up to the end of the turn.
        end_id: the token with which it ends the assistant's turn; None where it writes none.
        controls: the control tokens around turns, in words; those around reasoning are the response's own.
        today: what it takes for now: the moment of making if nobody says otherwise. None where it writes no date.

    Raises:
        BapoError: the template hides what the assistant says.
    """

    def __init__(self, tokenizer: Any, end_ids: Sequence[int]) -> None:
        self.tokenizer = tokenizer
        self._whose = whose(tokenizer, "chat template")
        self.today = datetime.now() if writes_date(tokenizer) else None
        self._shown: dict[str, bool] = {}
        self._tail, self.end = "", ""
        self.end_id: int | None = None
        self.controls: tuple[str, ...] = ()
        self._read(end_ids)

    def at(self, today: datetime) -> ChatTemplate:
        """The same template at another moment, if it writes the date."""
        moved = copy(self)
        moved.today = today if self.today else None
        return moved

    def render(
        self,
        turns: Sequence[Mapping[str, Any]],
        settings: Mapping[str, Any],
        *,
        add_generation_prompt: bool = False,
        continue_last: bool = False,
    ) -> str:
        """Prepared turns as text.

        Raises:
            BapoError: the template refuses them.
        """
        try:
            with limited():
                text: str = self.tokenizer.apply_chat_template(
                    [dict(turn) for turn in turns],
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=continue_last,
                    chat_template=self._template_of_today(settings),
                    **settings,
                )
                check_length(text, [*turns, settings])
        except TooMuchError as error:
            raise BapoError(
                f"{self._whose} takes too much for one prompt ({error}), as faulty or hostile ones do: "
                "take the template from where the model came from."
            ) from error
        except Exception as error:  # templates are programs
            raise RefusedError(
                f"{self._whose} refuses a prompt ({first_line(error)}): check its turns, their order and "
                "what their tool calls hold."
            ) from error
        return text

    def _template_of_today(self, settings: Mapping[str, Any]) -> str | None:
        if self.today is None:
            return None
        return at_moment(self.tokenizer.get_chat_template(tools=settings.get("tools")), self.today)

    def prepared(self, prompt: Turns) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Turns as this template takes them, and what it takes beside them."""
        settings: dict[str, Any] = {}
        turns: list[dict[str, Any]] = []
        for turn in map(turn_dict, prompt):
            if turn["role"] == "tools":
                settings["tools"] = json.loads(turn["content"])
            elif turn["role"] == "template":
                settings |= json.loads(turn["content"])
            elif turn["role"] == "developer" and not self.shows("developer"):
                turns.append({**turn, "role": "system"})
            else:
                turns.append(turn)
        if turns and turns[0]["role"] == "system" and not self.shows("system"):
            if len(turns) < 2 or turns[1]["role"] != "user":
                raise BapoError(
                    "A system turn must be followed by a user turn for this model, whose template has no system role."
                )
            turns[:2] = [{**turns[1], "content": f"{turns[0]['content']}\n\n{turns[1]['content']}"}]
        return turns, settings

    def shows(self, role: str) -> bool:
        """Whether the template shows a first turn of this role."""
        if role not in self._shown:
            try:
                text = self.render([{"role": role, "content": PROBE}, *QUESTION], {}, add_generation_prompt=True)
            except RefusedError:
                text = ""
            self._shown[role] = PROBE in text
        return self._shown[role]

    def changed(self, turns: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], text: str) -> bool:
        """Whether the template shows a turn in other words; of the assistant's earlier turns it may show less.

        Raises:
            BapoError: it shows nothing of a turn.
        """
        shown, changed = squeezed(text), False
        for at, turn in enumerate(turns):
            self.check_calls(turn, text)
            said = str(turn.get("content") or "")
            in_json = (json.dumps(said, ensure_ascii=ascii)[1:-1] for ascii in (True, False))
            if turn["role"] == "assistant" or any(squeezed(form) in shown for form in (said, *in_json)):
                continue
            probed = [*turns[:at], {**turn, "content": PROBE}, *turns[at + 1 :]]
            if PROBE not in self.render(probed, settings):
                raise BapoError(
                    f"{self._whose} leaves out what a turn of the role {turn['role']} says "
                    f"({said[:60]!r}): leave such prompts out, or use a model whose template shows them."
                )
            changed = True
        for tool in settings.get("tools", ()):
            name = str(tool.get("function", tool).get("name", "")) if isinstance(tool, Mapping) else ""
            if name not in text:
                raise BapoError(
                    f"{self._whose} does not show the tool {name!r} of the column 'tools': "
                    "leave that column out, or use a model that calls tools."
                )
        return changed

    def check_calls(self, turn: Mapping[str, Any], text: str) -> None:
        """Raise a `BapoError` where a text does not show the tool calls of a turn."""
        for call in turn.get("tool_calls") or ():
            name = str(call.get("function", call).get("name", "")) if isinstance(call, Mapping) else ""
            if name not in text:
                raise BapoError(
                    f"{self._whose} does not show the 'tool_calls' of a turn (a call of {name!r}): "
                    "leave such comparisons out, or use a model that calls tools."
                )

    def _read(self, end_ids: Sequence[int]) -> None:
        """What the template writes around turns, and with which token it ends the assistant's."""
        opened = self.render(QUESTION, {}, add_generation_prompt=True)
        answered: list[dict[str, Any]] = [*QUESTION, {"role": "assistant", "content": PROBE}]
        whole = self.render(answered, {})
        if PROBE not in whole:
            raise BapoError(
                f"{self._whose} hides what the assistant says, so responses cannot be scored with it: "
                "use the template that the model came with."
            )
        self._tail = whole.rpartition(PROBE)[2]
        added = [word for word in self.tokenizer.get_added_vocab() if word.strip()]
        ends = [word for word in map(self.tokenizer.convert_ids_to_tokens, end_ids) if word]
        end = _first_of(ends, self._tail) or _first_of(added, self._tail)
        if end:
            self.end = self._tail[: self._tail.index(end) + len(end)]
        else:
            end = _first_of(ends, self._rendered_or_nothing([*answered, *QUESTION]).rpartition(PROBE)[2])
        if end:
            self.end_id = int(self.tokenizer.convert_tokens_to_ids(end))
        conversation = [{"role": "system", "content": "x"}, *answered, *QUESTION]
        written = self._rendered_or_nothing(conversation) + self._rendered_or_nothing(conversation[1:]) + opened + whole
        around = {*ends, end, self.tokenizer.bos_token, self.tokenizer.pad_token}
        words = [word for word in {*added, *ends} if word in written or word in around]
        self.controls = tuple(word for word in words if word in around or not _REASONING.search(word))

    def _rendered_or_nothing(self, turns: Sequence[Mapping[str, Any]]) -> str:
        try:
            return self.render(turns, {})
        except RefusedError:
            return ""

    def up_to_the_end(self, whole: str) -> str:
        """A rendered conversation up to the end of its last turn."""
        behind_the_end = len(self._tail) - len(self.end)
        if whole.endswith(self._tail):
            return whole[: len(whole) - behind_the_end]
        at = whole.rfind(self.end.lstrip()) if self.end.strip() else -1
        return whole[: at + len(self.end.lstrip())] if at > 0 else whole.rstrip()


def turn_dict(turn: str | Mapping[str, Any] | Turn) -> dict[str, Any]:
    """A turn as templates take it; text is the assistant's."""
    if isinstance(turn, str):
        return {"role": "assistant", "content": turn}
    parts = turn if isinstance(turn, Mapping) else {"role": turn.role, "content": turn.content, "more": turn.more}
    turn_parts = dict(parts)
    more = turn_parts.pop("more", "")
    return {**turn_parts, **(json.loads(more) if more else {})}


def _first_of(words: Sequence[str], text: str) -> str | None:
    """The word that stands first in the text; the longest of several."""
    places = [(text.index(word), -len(word), word) for word in words if word in text]
    return min(places)[2] if places else None


def common(a: str, b: str) -> int:
    """Letters that two texts begin with in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def squeezed(text: str) -> str:
    """A text without white space."""
    return "".join(text.split())
