"""Templates take no more than they may, and those that take little are rendered as `transformers` renders them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from bapo.errors import BapoError
from bapo.models import ChatFormat
from bapo.models.template_limits import _LEFT_OUT, LARGEST, LONGEST, limited
from tests.fuzz.model_targets import TEMPLATES
from tests.templates import CALL, TOOL, published_templates
from tests.tiny import CHATML, tiny_tokenizer

TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "I look.", "tool_calls": [CALL]},
    {"role": "tool", "content": "4", "name": "get_weather", "tool_call_id": CALL["id"]},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "And 3 + 3?"},
]


HOSTILE = [content.decode().removeprefix(CHATML) for content in TEMPLATES]
SLOW = ("%}x", "f(40)", "'%Y'", "title")  # which take their second


@pytest.mark.parametrize("added", [added for added in HOSTILE if not any(part in added for part in SLOW)])
def test_a_hostile_template_ends_soon_and_in_a_sentence(added: str) -> None:
    """That it takes neither long nor much memory, the fuzzing finds out in processes of its own."""
    with suppress(BapoError):  # any other error is a fault
        chat = ChatFormat(tiny_tokenizer(CHATML + added))
        assert len(chat.prompt_ids(TURNS[:1])) < 10_000


@pytest.mark.parametrize(
    ("added", "why"),
    [
        ("{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}", "16,777,216"),
        ("{{ 'x' * 10**9 }}", "16,777,216"),
        ("{{ 'x'|center(10**9) }}", "16,777,216"),
        ("{{ '{:>1000000000}'.format(1) }}", "width"),
        ("{{ '%1000000000d' % 1 }}", "width"),
        ("{% for i in range(9999) %}{{ 'x' * 99999 }}{% endfor %}", "in all"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}", "of the processor|in all"),
        ("{{ 'x' * 999999 }}", "it writes 1,0"),
        ("x" * 300_000, "more than 262,144 letters"),
    ],
)
def test_what_is_too_much_is_said(added: str, why: str) -> None:
    with pytest.raises(
        BapoError, match=rf"takes too much for one prompt \(.*({why}).*\).*: take the template from where"
    ):
        ChatFormat(tiny_tokenizer(CHATML + added))


@pytest.mark.parametrize("name", published_templates())
def test_published_templates_are_rendered_as_transformers_renders_them(name: str) -> None:
    tokenizer = tiny_tokenizer(published_templates()[name])

    def rendered(turns: Any, **more: Any) -> Any:
        try:
            return tokenizer.apply_chat_template(turns, tokenize=False, **more)
        except Exception as error:
            return type(error), str(error)

    for turns, more in ((TURNS, {"tools": [TOOL]}), (TURNS[:1], {"add_generation_prompt": True}), (TURNS[3:], {})):
        with limited():
            here = rendered(turns, **more)
        assert here == rendered(turns, **more)
        if isinstance(here, str):
            assert len(here) < LARGEST
    assert not any(f"| {name}" in tokenizer.chat_template for name in _LEFT_OUT)


def test_a_long_conversation_is_no_hostile_one() -> None:
    chat = ChatFormat(tiny_tokenizer())
    turns = [{"role": role, "content": "x " * 30_000} for _ in range(3) for role in ("user", "assistant")][:-1]
    assert len(chat.prompt_ids(turns)) > 300_000 > LONGEST
