"""From prompts and responses to token ids, with the boundary between them fixed.

Prompt and response are tokenized apart and joined as ids, so the boundary never moves. A response's ids are those that
the model itself would have to generate: the text and the token that ends the turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from datetime import datetime
from typing import Any

from jinja2 import TemplateError

from bapo.errors import BapoError
from bapo.models.template_date import at_moment, writes_date

_PROBE = "\u2042probe\u2042"  # stands for a text whose surroundings in the template are looked for

Turns = Sequence[Mapping[str, str]]


class ChatFormat:
    """A tokenizer and its chat template, seen as a pair of functions on prompts and responses.

    Args:
        tokenizer: any `transformers` tokenizer.
        end_ids: the token ids with which the model ends a response (its generation configuration's EOS ids).

    Attributes:
        has_template: False for tokenizers without a chat template; prompts must then be plain text.
        has_system: whether the template shows a system turn. Where it does not, the system text goes in front of the
            first user turn.
        end_ids: token ids that end a response.
        today: what a template that writes the date takes for now; the moment of making if nobody says otherwise.
    """

    def __init__(self, tokenizer: Any, end_ids: Sequence[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.end_ids: tuple[int, ...] = tuple(
            dict.fromkeys(i for i in (*end_ids, tokenizer.eos_token_id) if i is not None)
        )
        if not self.end_ids:
            raise BapoError(
                "The tokenizer names no end-of-text token, so no response could ever end: set its eos_token."
            )
        self.today = datetime.now()
        self.has_template = bool(getattr(tokenizer, "chat_template", None))
        self.has_system = self.has_template and self._shows_system()
        self._before, self._after = self._response_surroundings() if self.has_template else ("", "")

    @property
    def is_dated(self) -> bool:
        """Whether the template writes the date, so that the same turns are another prompt on another day."""
        return writes_date(self.tokenizer)

    def at(self, today: datetime | None) -> ChatFormat:
        """The same chat format at another moment; None leaves it as it is."""
        if today is None:
            return self
        moved = copy(self)
        moved.today = today
        return moved

    def prompt_ids(self, prompt: str | Turns) -> tuple[int, ...]:
        """Token ids of a prompt: plain text as the tokenizer encodes it, turns through the chat template.

        Raises:
            BapoError: the prompt has turns and the tokenizer no chat template, or the template refuses the turns.
        """
        if isinstance(prompt, str):
            return tuple(self.tokenizer(prompt)["input_ids"])
        if not self.has_template:
            raise BapoError(
                "The model's tokenizer has no chat template, so chat prompts cannot be written for it: "
                "use an instruction-tuned model, or plain-text prompts (--plain)."
            )
        return tuple(self._encode(self.render(prompt)))

    def render(self, turns: Turns, *, add_generation_prompt: bool = True, continue_last: bool = False) -> str:
        """Turns as text in the chat format.

        Args:
            turns: role and content of each; a system turn first, if there is one.
            add_generation_prompt: whether the text ends where the assistant would begin.
            continue_last: whether the last turn is left open.

        Raises:
            BapoError: the template refuses the turns.
        """
        return self._render(
            self._with_system(turns), add_generation_prompt=add_generation_prompt, continue_last=continue_last
        )

    def response_ids(self, response: str, *, chat: bool = True) -> tuple[int, ...]:
        """Token ids of a whole response, ending with the token that ends the turn."""
        if not (chat and self.has_template):
            return (*self._encode(response), self.end_ids[-1])
        return tuple(self._encode(self._before + response + self._after))

    def response_text(self, response_ids: Sequence[int]) -> str:
        """Text of a response, for people."""
        text: str = self.tokenizer.decode(list(response_ids), skip_special_tokens=True)
        return text.strip()

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _render(self, turns: Turns, *, add_generation_prompt: bool, continue_last: bool = False) -> str:
        try:
            text: str = self.tokenizer.apply_chat_template(
                [dict(turn) for turn in turns],
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_last,
                chat_template=at_moment(self.tokenizer.get_chat_template(), self.today) if self.is_dated else None,
            )
        except TemplateError as error:
            raise BapoError(
                f"The model's chat template refuses a prompt ({error}): check the order of its turns."
            ) from error
        return text

    def _shows_system(self) -> bool:
        try:
            text = self._render(
                [{"role": "system", "content": _PROBE}, {"role": "user", "content": "x"}], add_generation_prompt=True
            )
        except BapoError:
            return False
        return _PROBE in text

    def _with_system(self, turns: Turns) -> Turns:
        if self.has_system or not turns or turns[0]["role"] != "system":
            return turns
        if len(turns) < 2 or turns[1]["role"] != "user":
            raise BapoError(
                "A system turn must be followed by a user turn for this model, whose template has no system role."
            )
        return [{"role": "user", "content": f"{turns[0]['content']}\n\n{turns[1]['content']}"}, *turns[2:]]

    def _response_surroundings(self) -> tuple[str, str]:
        """What the template writes between the generation prompt and a response, and after it up to the end token."""
        question = [{"role": "user", "content": "x"}]
        opened = self._render(question, add_generation_prompt=True)
        whole = self._render([*question, {"role": "assistant", "content": _PROBE}], add_generation_prompt=False)
        if _PROBE not in whole:
            raise BapoError(
                "The model's chat template hides what the assistant says, so responses cannot be scored with it."
            )
        head, tail = whole.split(_PROBE, 1)
        before = head[len(opened) :] if head.startswith(opened) else ""
        ends = [self.tokenizer.convert_ids_to_tokens(i) for i in self.end_ids]
        places = [(tail.find(end), end) for end in ends if end and end in tail]
        if not places:
            return before, self.tokenizer.convert_ids_to_tokens(self.end_ids[-1])
        at, end = min(places)
        return before, tail[: at + len(end)]
