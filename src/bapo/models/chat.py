"""From prompts and responses to token ids, with the boundary between them fixed.

All responses of a prompt stand behind the same prompt ids: those that generation sees. A response's ids are what the
chat template's own rendering of the whole conversation, up to the end of the turn, adds behind them.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from datetime import datetime
from typing import Any, NamedTuple, Protocol, TypeAlias

from bapo.errors import BapoError, BapoWarning, first_line
from bapo.models.template_date import at_moment, writes_date
from bapo.models.text import HeldWords, TextEncoder

_PROBE = "\u2042probe\u2042"  # stands for a text whose surroundings in the template are looked for

CONTROL_TOKENS, CHANGED, NOT_THE_TEMPLATES, LEFT_OUT = (
    "texts hold control tokens of the chat in words: encoded as text",
    "prompts in which the template changes words",
    "responses are not what the template writes: scored as the model would generate them",
    "responses hold reasoning that the template leaves out",
)
"""What is counted while texts are encoded."""


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

_QUESTION: tuple[dict[str, Any], ...] = ({"role": "user", "content": "x"},)


class _Opened(NamedTuple):
    """A prompt in the chat format, up to where the response begins.

    Attributes:
        turns: as the template gets them, with control tokens held.
        settings: what the template gets beside them.
        text: the rendering.
        held: the words in it that are text.
        ids: its token ids.
        changed: whether the template shows some turn in other words.
    """

    turns: list[dict[str, Any]]
    settings: dict[str, Any]
    text: str
    held: HeldWords
    ids: tuple[int, ...]
    changed: bool


class ChatFormat:
    """A tokenizer and its chat template, seen as a pair of functions on prompts and responses.

    Texts of a chat are text: where they hold the markers of the chat in words, these are not read as control tokens.
    In plain prompts and their responses they are, since such data are often rendered already.

    Args:
        tokenizer: any `transformers` tokenizer.
        end_ids: the token ids with which the model ends a response (its generation configuration's EOS ids).

    Attributes:
        has_template: False for tokenizers without a chat template; prompts must then be plain text.
        has_system: whether the template shows a system turn. Where it does not, the system text goes in front of the
            first user turn.
        end_ids: token ids that end a response: the given ones, the tokenizer's EOS, and the one with which the template
            ends a turn.
        today: what a template that writes the date takes for now; the moment of making if nobody says otherwise.

    Raises:
        BapoError: nothing can end a response, or the template hides what the assistant says.
    """

    def __init__(self, tokenizer: Any, end_ids: Sequence[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.end_ids: tuple[int, ...] = tuple(
            dict.fromkeys(i for i in (*end_ids, tokenizer.eos_token_id) if i is not None)
        )
        self.today = datetime.now()
        self.has_template = bool(getattr(tokenizer, "chat_template", None))
        self._texts = TextEncoder(tokenizer)
        self._controls: tuple[str, ...] = ()
        self._shown: dict[str, bool] = {}
        self._last: tuple[Turns, _Opened] | None = None
        self._warned = False
        self._tail, self._end = "", ""
        self._end_id: int | None = None  # of a turn
        if self.has_template:
            self._read_template()
        if not self.end_ids:
            raise BapoError(
                "The tokenizer names no end-of-text token, so no response could ever end: set its eos_token."
            )
        self._eos: int = self.end_ids[-1] if tokenizer.eos_token_id is None else tokenizer.eos_token_id
        self.has_system = self.has_template and self._shows("system")

    @property
    def is_dated(self) -> bool:
        """Whether the template writes the date, so that the same turns are another prompt on another day."""
        return writes_date(self.tokenizer)

    def at(self, today: datetime | None) -> ChatFormat:
        """The same chat format at another moment; None leaves it as it is."""
        if today is None:
            return self
        moved = copy(self)
        moved.today, moved._last = today, None
        return moved

    # ---- ids --------------------------------------------------------------------------------------------------------

    def prompt_ids(self, prompt: str | Turns, counts: Counter[str] | None = None) -> tuple[int, ...]:
        """Token ids of a prompt: plain text as the tokenizer encodes it, turns through the chat template.

        Args:
            prompt: plain text; or turns, of which a last one of the assistant is gone on with.
            counts: where it is counted that a text holds control tokens in words, or that the template changes words.

        Raises:
            BapoError: the prompt has turns and the tokenizer no chat template, or the template refuses them or leaves
                something of them out.
        """
        if isinstance(prompt, str):
            return self._texts.started(prompt)
        opened = self._opened(prompt)
        if counts is not None:
            counts.update([CONTROL_TOKENS] * bool(opened.held.words) + [CHANGED] * opened.changed)
        return opened.ids

    def response_ids(
        self,
        response: str | Mapping[str, Any] | Turn,
        prompt: str | Turns | None = None,
        counts: Counter[str] | None = None,
    ) -> tuple[int, ...]:
        """Token ids of a whole response behind its prompt, ending with the token that ends the turn.

        Args:
            response: text, or an assistant turn that holds more.
            prompt: what it stands behind; None for the turns that `prompt_ids` was given last, or a short question.
            counts: where it is counted what is not as the template has it.

        Raises:
            BapoError: see `prompt_ids`.
        """
        if isinstance(prompt, str) or (prompt is None and not self.has_template):
            if not isinstance(response, str):
                raise BapoError("A plain-text prompt can only have responses of plain text: give the prompt as turns.")
            return self._plain_response(prompt, response)
        if prompt is None:
            prompt = self._last[0] if self._last is not None else _QUESTION
        opened = self._opened(prompt)
        return self._behind(opened, _turn_dict(response), Counter() if counts is None else counts)

    def response_text(self, response_ids: Sequence[int]) -> str:
        """Text of a response, for people."""
        text: str = self.tokenizer.decode(list(response_ids), skip_special_tokens=True)
        return text.strip()

    def _plain_response(self, prompt: str | None, response: str) -> tuple[int, ...]:
        if prompt is None:
            ids = self._texts.plain(response)
        else:
            before, whole = self._texts.started(prompt), self._texts.started(prompt + response)
            ids = whole[len(before) :] if whole[: len(before)] == before else self._texts.middle(response)
        return self._ended(ids, self._eos)

    def _ended(self, ids: tuple[int, ...], end: int) -> tuple[int, ...]:
        return ids if ids and ids[-1] in self.end_ids else (*ids, end)

    def _opened(self, prompt: Turns) -> _Opened:
        """A prompt as generation sees it; the last one is kept, because its responses come next."""
        if self._last is not None and self._last[0] == prompt:
            return self._last[1]
        if not self.has_template:
            raise BapoError(
                "The model's tokenizer has no chat template, so chat prompts cannot be written for it: "
                "use an instruction-tuned model, or plain-text prompts (--plain)."
            )
        turns, settings = self._prepared(prompt)
        held = HeldWords(self._controls)
        kept = [_with_strings(turn, held.hold) for turn in turns]
        goes_on = turns[-1]["role"] == "assistant"
        text = self._render(kept, settings, add_generation_prompt=not goes_on, continue_last=goes_on)
        changed = self._changed(turns, settings, held.restore(text))
        opened = _Opened(kept, settings, text, held, self._texts.chat(text, held), changed)
        self._last = (prompt, opened)
        return opened

    def _behind(self, opened: _Opened, response: dict[str, Any], counts: Counter[str]) -> tuple[int, ...]:
        held = HeldWords(self._controls, opened.held.words)
        said = _with_strings({**response, "content": self._without_end(response.get("content") or "")}, held.hold)
        if len(held.words) > len(opened.held.words):
            counts[CONTROL_TOKENS] += 1
        whole = self._up_to_the_end(self._render(_joined(opened.turns, said), opened.settings))
        if whole.startswith(opened.text):
            behind = whole[len(opened.text) :]
        else:
            behind = self._as_generated(opened.text, whole, said)
            counts[NOT_THE_TEMPLATES] += 1
            self._warn(held.restore(whole), held.restore(opened.text + behind))
        told = (said["content"], *(own for key, own in said.items() if key.startswith("reasoning")))
        if not all(_squeezed(part) in _squeezed(opened.text + behind) for part in told if isinstance(part, str)):
            counts[LEFT_OUT] += 1
        self._check_calls(response, held.restore(behind))
        end = self._eos if self._end_id is None else self._end_id
        ids = self._texts.chat(opened.text + behind, held)
        if ids[: len(opened.ids)] == opened.ids:
            return self._ended(ids[len(opened.ids) :], end)
        return self._ended(self._texts.chat(behind, held, behind=True), end)  # a token would lie across the boundary

    def _without_end(self, text: str) -> str:
        """A response that was rendered already loses its end token, which the template writes."""
        bare = text.rstrip()
        for end in (self.tokenizer.convert_ids_to_tokens(i) for i in self.end_ids):
            if end and bare.endswith(end):
                return bare.removesuffix(end)
        return text

    def _up_to_the_end(self, whole: str) -> str:
        """A rendered conversation up to the end of its last turn."""
        behind_the_end = len(self._tail) - len(self._end)
        if whole.endswith(self._tail):
            return whole[: len(whole) - behind_the_end]
        at = whole.rfind(self._end.lstrip()) if self._end.strip() else -1
        return whole[: at + len(self._end.lstrip())] if at > 0 else whole.rstrip()

    def _as_generated(self, opened: str, whole: str, said: Mapping[str, Any]) -> str:
        """What stands behind a prompt with which the template's rendering of the whole does not begin."""
        at = _common(opened, whole)
        if len(said) > 2:  # more than text: as the template writes it
            return whole[at:]
        text, opens = str(said["content"]), opened[at:].strip()
        if opens and text.lstrip().startswith(opens):  # the prompt opens what the response opens once more
            text = text.lstrip().removeprefix(opens).lstrip("\n")
        return text + self._end

    def _warn(self, template: str, generated: str) -> None:
        if self._warned:
            return
        self._warned = True
        at = max(0, _common(template, generated) - 40)
        warnings.warn(
            BapoWarning(
                f"The chat template writes {template[at : at + 120]!r}, and behind its own generation prompt stands "
                f"{generated[at : at + 120]!r}: such responses are scored as the model would generate them."
            ),
            stacklevel=2,
        )

    # ---- template ---------------------------------------------------------------------------------------------------

    def render(self, turns: Turns, *, add_generation_prompt: bool = True, continue_last: bool = False) -> str:
        """Turns as text in the chat format.

        Args:
            turns: role and content of each; a system turn first, if there is one.
            add_generation_prompt: whether the text ends where the assistant would begin.
            continue_last: whether the last turn is left open.

        Raises:
            BapoError: the template refuses the turns.
        """
        prepared, settings = self._prepared(turns)
        return self._render(
            prepared, settings, add_generation_prompt=add_generation_prompt, continue_last=continue_last
        )

    def _render(
        self,
        turns: Sequence[Mapping[str, Any]],
        settings: Mapping[str, Any],
        *,
        add_generation_prompt: bool = False,
        continue_last: bool = False,
    ) -> str:
        try:
            text: str = self.tokenizer.apply_chat_template(
                [dict(turn) for turn in turns],
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_last,
                chat_template=self._template_of_today(settings),
                **settings,
            )
        except Exception as error:  # templates are programs
            raise BapoError(
                f"The model's chat template refuses a prompt ({first_line(error)}): check its turns and their order."
            ) from error
        return text

    def _template_of_today(self, settings: Mapping[str, Any]) -> str | None:
        if not self.is_dated:
            return None
        return at_moment(self.tokenizer.get_chat_template(tools=settings.get("tools")), self.today)

    def _prepared(self, prompt: Turns) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Turns as this template takes them, and what it takes beside them."""
        settings: dict[str, Any] = {}
        turns: list[dict[str, Any]] = []
        for turn in map(_turn_dict, prompt):
            if turn["role"] == "tools":
                settings["tools"] = json.loads(turn["content"])
            elif turn["role"] == "template":
                settings |= json.loads(turn["content"])
            elif turn["role"] == "developer" and not self._shows("developer"):
                turns.append({**turn, "role": "system"})
            else:
                turns.append(turn)
        if turns and turns[0]["role"] == "system" and not self._shows("system"):
            if len(turns) < 2 or turns[1]["role"] != "user":
                raise BapoError(
                    "A system turn must be followed by a user turn for this model, whose template has no system role."
                )
            turns[:2] = [{**turns[1], "content": f"{turns[0]['content']}\n\n{turns[1]['content']}"}]
        return turns, settings

    def _shows(self, role: str) -> bool:
        """Whether the template shows a first turn of this role."""
        if role not in self._shown:
            try:
                text = self._render([{"role": role, "content": _PROBE}, *_QUESTION], {}, add_generation_prompt=True)
            except BapoError:
                text = ""
            self._shown[role] = _PROBE in text
        return self._shown[role]

    def _changed(self, turns: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], text: str) -> bool:
        """Whether the template shows a turn in other words; of the assistant's earlier turns it may show less.

        Raises:
            BapoError: it shows nothing of a turn.
        """
        shown, changed = _squeezed(text), False
        for at, turn in enumerate(turns):
            self._check_calls(turn, text)
            said = str(turn.get("content") or "")
            in_json = (json.dumps(said, ensure_ascii=ascii)[1:-1] for ascii in (True, False))
            if turn["role"] == "assistant" or any(_squeezed(own) in shown for own in (said, *in_json)):
                continue
            probed = [*turns[:at], {**turn, "content": _PROBE}, *turns[at + 1 :]]
            if _PROBE not in self._render(probed, settings):
                raise BapoError(
                    f"The model's chat template leaves out what a turn of the role {turn['role']} says "
                    f"({said[:60]!r}): leave such prompts out, or use a model whose template shows them."
                )
            changed = True
        for tool in settings.get("tools", ()):
            name = str(tool.get("function", tool).get("name", "")) if isinstance(tool, Mapping) else ""
            if name not in text:
                raise BapoError(
                    f"The model's chat template does not show the tool {name!r} of the column 'tools': "
                    "leave that column out, or use a model that calls tools."
                )
        return changed

    def _check_calls(self, turn: Mapping[str, Any], text: str) -> None:
        for call in turn.get("tool_calls") or ():
            name = str(call.get("function", call).get("name", "")) if isinstance(call, Mapping) else ""
            if name not in text:
                raise BapoError(
                    f"The model's chat template does not show the 'tool_calls' of a turn (a call of {name!r}): "
                    "leave such comparisons out, or use a model that calls tools."
                )

    def _read_template(self) -> None:
        """What the template writes around turns, and with which token it ends the assistant's."""
        opened = self._render(_QUESTION, {}, add_generation_prompt=True)
        answered: list[dict[str, Any]] = [*_QUESTION, {"role": "assistant", "content": _PROBE}]
        whole = self._render(answered, {})
        if _PROBE not in whole:
            raise BapoError(
                "The model's chat template hides what the assistant says, so responses cannot be scored with it."
            )
        self._tail = whole.rpartition(_PROBE)[2]
        added = [word for word in self.tokenizer.get_added_vocab() if word.strip()]
        ends = [word for word in map(self.tokenizer.convert_ids_to_tokens, self.end_ids) if word]
        end = _first_of(ends, self._tail) or _first_of(added, self._tail)
        if end:
            self._end = self._tail[: self._tail.index(end) + len(end)]
        else:
            end = _first_of(ends, self._rendered_or_nothing([*answered, *_QUESTION]).rpartition(_PROBE)[2])
        if end:
            self._end_id = int(self.tokenizer.convert_tokens_to_ids(end))
            self.end_ids = tuple(dict.fromkeys((*self.end_ids, self._end_id)))
        question = self._render(_QUESTION, {})
        asked = self._rendered_or_nothing([{"role": "system", "content": "x"}, *_QUESTION]) + question
        opens = _first_of(
            added, opened[_common(opened, question) :]
        )  # what stands behind it is the response's: <think>
        around = {*ends, end, opens, self.tokenizer.bos_token, self.tokenizer.pad_token}
        self._controls = tuple(word for word in {*added, *ends} if word in asked or word in around)

    def _rendered_or_nothing(self, turns: Sequence[Mapping[str, Any]]) -> str:
        try:
            return self._render(turns, {})
        except BapoError:
            return ""


def _turn_dict(turn: str | Mapping[str, Any] | Turn) -> dict[str, Any]:
    """A turn as templates take it; text is the assistant's."""
    if isinstance(turn, str):
        return {"role": "assistant", "content": turn}
    own = turn if isinstance(turn, Mapping) else {"role": turn.role, "content": turn.content, "more": turn.more}
    told = dict(own)
    more = told.pop("more", "")
    return {**told, **(json.loads(more) if more else {})}


def _joined(turns: Sequence[dict[str, Any]], response: dict[str, Any]) -> list[dict[str, Any]]:
    """The turns and the response; it goes on with a last turn of the assistant."""
    if turns[-1]["role"] != "assistant":
        return [*turns, {**response, "role": "assistant"}]
    return [*turns[:-1], {**response, "role": "assistant", "content": turns[-1]["content"] + response["content"]}]


def _with_strings(value: Any, change: Callable[[str], str]) -> Any:
    """A turn whose texts are changed, however deep they lie; its role stays."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: own if key == "role" else _with_strings(own, change) for key, own in value.items()}
    if isinstance(value, list):
        return [_with_strings(own, change) for own in value]
    return value


def _first_of(words: Sequence[str], text: str) -> str | None:
    """The word that stands first in the text; the longest of several."""
    found = [(text.index(word), -len(word), word) for word in words if word in text]
    return min(found)[2] if found else None


def _common(a: str, b: str) -> int:
    """Letters that two texts begin with in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _squeezed(text: str) -> str:
    return "".join(text.split())
