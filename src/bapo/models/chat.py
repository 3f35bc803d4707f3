"""From prompts and responses to token ids, with the boundary between them fixed.

All responses of a prompt stand behind the same prompt ids: those that generation sees. A response's ids are what the
chat template's own rendering of the whole conversation, up to the end of the turn, adds behind them.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import copy, deepcopy
from datetime import datetime
from typing import Any, NamedTuple

from bapo.errors import BapoError, BapoWarning, foreign
from bapo.models.template import PROBE, QUESTION, ChatTemplate, Turn, Turns, common, squeezed, turn_dict
from bapo.models.text import HeldWords, TextEncoder, whose

CONTROL_TOKENS, CHANGED, NOT_THE_TEMPLATES, LEFT_OUT, ENDED = (
    "texts hold control tokens of the chat in words: encoded as text",
    "prompts in which the template changes words",
    "responses are not what the template writes: scored as the model would generate them",
    "responses hold reasoning that the template leaves out",
    "responses end with an end token in words: taken as the end of the turn",
)
"""What is counted while texts are encoded."""


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

    Raises:
        BapoError: nothing can end a response, or the template hides what the assistant says.
    """

    def __init__(self, tokenizer: Any, end_ids: Sequence[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.end_ids: tuple[int, ...] = tuple(
            dict.fromkeys(i for i in (*end_ids, tokenizer.eos_token_id) if i is not None)
        )
        self.has_template = bool(getattr(tokenizer, "chat_template", None))
        self._template = ChatTemplate(tokenizer, self.end_ids) if self.has_template else None
        if self._template is not None and self._template.end_id is not None:
            self.end_ids = tuple(dict.fromkeys((*self.end_ids, self._template.end_id)))
        self._texts = TextEncoder(tokenizer)
        self._last: tuple[tuple[Any, ...], _Opened] | None = None
        self._warned = False
        if not self.end_ids:
            raise BapoError(
                f"{whose(tokenizer)} names no end-of-text token, so no response could ever end: set its eos_token."
            )
        words = (tokenizer.convert_ids_to_tokens(i) for i in self.end_ids)
        self._ends = tuple(word for word in words if word)
        self._eos: int = self.end_ids[-1] if tokenizer.eos_token_id is None else tokenizer.eos_token_id
        self.has_system = self._template is not None and self._template.shows("system")

    @property
    def today(self) -> datetime | None:
        """What the template takes for now: the moment of making if nobody says otherwise. None where it writes no date.

        Where it does, the same turns are another prompt on another day.
        """
        return None if self._template is None else self._template.today

    def at(self, today: datetime | None) -> ChatFormat:
        """The same chat format at another moment; None leaves it as it is."""
        if today is None or self._template is None:
            return self
        moved = copy(self)
        moved._template, moved._last = self._template.at(today), None
        return moved

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
            counts.update([CONTROL_TOKENS] * bool(opened.held.has_held) + [CHANGED] * opened.changed)
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
            prompt = self._last[0] if self._last is not None else QUESTION
        opened = self._opened(prompt)
        return self._behind(opened, turn_dict(response), Counter() if counts is None else counts)

    def response_text(self, response_ids: Sequence[int]) -> str:
        """Text of a response, for people."""
        with foreign(f"{whose(self.tokenizer)} could not decode a response", "take its files from where it came"):
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
        if self._last is not None and self._last[0] == tuple(prompt):
            return self._last[1]
        template = self._required()
        turns, settings = template.prepared(prompt)
        held = HeldWords(template.controls)
        kept = [_with_strings(turn, held.hold) for turn in turns]
        goes_on = turns[-1]["role"] == "assistant"
        text = template.render(kept, settings, add_generation_prompt=not goes_on, continue_last=goes_on)
        changed = template.changed(turns, settings, held.restore(text))
        opened = _Opened(kept, settings, text, held, self._texts.chat(text, held), changed)
        self._last = (tuple(deepcopy(turn) if isinstance(turn, Mapping) else turn for turn in prompt), opened)
        return opened

    def _required(self) -> ChatTemplate:
        if self._template is None:
            raise BapoError(
                f"{whose(self.tokenizer)} has no chat template, so chat prompts cannot be written for it: "
                "use an instruction-tuned model, or plain-text prompts (--plain)."
            )
        return self._template

    def _behind(self, opened: _Opened, response: dict[str, Any], counts: Counter[str]) -> tuple[int, ...]:
        template = self._required()
        held = HeldWords(template.controls, opened.held.words)
        content = response.get("content") or ""
        said = _with_strings({**response, "content": self._without_end(content)}, held.hold)
        counts.update([ENDED] * content.rstrip().endswith(self._ends))
        if held.has_held:
            counts[CONTROL_TOKENS] += 1

        def rendered(turn: dict[str, Any]) -> str:
            return template.up_to_the_end(template.render(_joined(opened.turns, turn), opened.settings))

        whole = rendered(said)
        if not whole.startswith(opened.text) and any(map(_is_reasoning, said)):  # the prompt may have closed it already
            bare = rendered({key: text for key, text in said.items() if not _is_reasoning(key)})
            whole = bare if bare.startswith(opened.text) else whole
        if whole.startswith(opened.text):
            behind = whole[len(opened.text) :]
        else:
            begins = min(common(opened.text, other) for other in (whole, rendered({"content": PROBE})))
            behind = _as_generated(opened.text[begins:], whole[begins:], said, template.end)
            counts[NOT_THE_TEMPLATES] += 1
            self._warn(held.restore(whole), held.restore(opened.text + behind))
        content_parts = (said["content"], *(text for key, text in said.items() if _is_reasoning(key)))
        if not all(squeezed(part) in squeezed(opened.text + behind) for part in content_parts if isinstance(part, str)):
            counts[LEFT_OUT] += 1
        template.check_calls(response, held.restore(behind))
        end = self._eos if template.end_id is None else template.end_id
        ids = self._texts.chat(opened.text + behind, held)
        if ids[: len(opened.ids)] == opened.ids:
            return self._ended(ids[len(opened.ids) :], end)
        return self._ended(self._texts.chat(behind, held, behind=True), end)  # a token would lie across the boundary

    def _without_end(self, text: str) -> str:
        """A response that was rendered already loses its end tokens, which the template writes."""
        bare = text
        while (stripped := bare.rstrip()).endswith(self._ends):
            bare = next(stripped.removesuffix(end) for end in self._ends if stripped.endswith(end))
        return bare

    def _warn(self, template: str, generated: str) -> None:
        if self._warned:
            return
        self._warned = True
        at = max(0, common(template, generated) - 40)
        warnings.warn(
            BapoWarning(
                f"The chat template writes {template[at : at + 120]!r}, and behind its own generation prompt stands "
                f"{generated[at : at + 120]!r}: such responses are scored as the model would generate them."
            ),
            stacklevel=2,
        )

    def render(self, turns: Turns, *, add_generation_prompt: bool = True, continue_last: bool = False) -> str:
        """Turns as text in the chat format.

        Args:
            turns: role and content of each; a system turn first, if there is one.
            add_generation_prompt: whether the text ends where the assistant would begin.
            continue_last: whether the last turn is left open.

        Raises:
            BapoError: the template refuses the turns.
        """
        template = self._required()
        prepared, settings = template.prepared(turns)
        return template.render(
            prepared, settings, add_generation_prompt=add_generation_prompt, continue_last=continue_last
        )


def _as_generated(opened: str, whole: str, said: Mapping[str, Any], end: str) -> str:
    """What stands behind a prompt with which the template's rendering of the whole does not begin.

    Args:
        opened: what only the prompt has, behind what opens the assistant's turn in both.
        whole: what only the rendering has there.
        said: the response.
        end: what the template writes behind a response.
    """
    if said.keys() - {"role", "content"}:  # more than text: as the template writes it
        return whole
    text, opens = str(said["content"]), opened.strip()
    if opens and text.lstrip().startswith(opens):  # the prompt opens what the response opens once more
        text = text.lstrip().removeprefix(opens).lstrip("\n")
    return text + end


def _is_reasoning(key: str) -> bool:
    return key.startswith(("reasoning", "thinking"))


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
        return {key: inner if key == "role" else _with_strings(inner, change) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_strings(inner, change) for inner in value]
    return value
