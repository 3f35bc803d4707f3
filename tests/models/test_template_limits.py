"""Templates take no more than they may, and those that take little are rendered as `transformers` renders them."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import pytest

from bapo.errors import BapoError
from bapo.models import ChatFormat
from bapo.models.template_limits import _LEFT_OUT, LARGEST, LONGEST, SECONDS, limited
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


@pytest.mark.parametrize(
    "added",
    [
        "{{ ('x' * 16777216)|selectattr('y')|list }}",
        "{{ ('x' * 16777216)|map(attribute=0)|map(attribute=0)|map(attribute=0)|list }}",
        "{{ ('x' * 16777216)|batch(1)|list }}",
        "{{ ('xyzw' * 4194304)|sort }}",
        "{{ ('x' * 999)|map(attribute='" + "0." * 50000 + "0')|list }}",
        "{% for i in 'x' * 16777216 if " + "i == 'y' or " * 99 + "i == 'z' %}{% endfor %}",
        "{{ ('xy ' * 5592405)|wordcount }}",
        "{{ ('xy ' * 5592405)|wordwrap(3) }}",
        "{{ ('xy ' * 5592405)|title }}",
        "{{ ('xy ' * 300000)|wordcount }}" * 60,
        "{{ (['x' * 9999999] * 99)|select|join }}",
        "{{ ','.join((['x' * 9999999] * 99)|select) }}",
        "{{ ([{'a': 'x' * 9999999}] * 99)|sort(attribute='a') }}",
        "{{ ([{'a': 'x' * 9999999}] * 99)|select|groupby('a') }}",
        "{% set b = 'x' * 9999999 %}" + "".join(f"{{% set a{at} = b[1:] %}}" for at in range(99)),
    ],
)
def test_what_goes_through_many_things_in_one_step_is_stopped_while_it_does(added: str) -> None:
    began = time.thread_time()
    with pytest.raises(BapoError, match="takes too much for one prompt"):
        ChatFormat(tiny_tokenizer(CHATML + added))
    assert time.thread_time() - began < 4 * SECONDS


def test_filters_give_what_they_give() -> None:
    things = "[3, 1, 2]", "'cab'", "{'b': 1, 'a': 2}", "range(5000)", "range(9)|select('odd')", "[]", "''", "missing"
    filters = (
        "list", "sort|list", "unique|list", "map('string')|join(',')", "map('string')|list", "select|list", "first",
        "reject|list", "batch(2)|list", "slice(2)|list", "join(',')", "max", "min", "reverse|list", "last", "length",
        "selectattr('x')|list", "groupby('x')", "urlencode", "dictsort", "items|list",
        "map('string')|reverse|join", "sum", "tojson",
    )  # fmt: skip

    def rendered(text: str) -> Any:
        try:
            return tiny_tokenizer(text).apply_chat_template(TURNS, tokenize=False)
        except Exception as error:
            return type(error), str(error)

    for thing in things:
        for name in filters:
            text = f"{{{{ ({thing})|{name} }}}}"
            with limited():
                here = rendered(text)
            assert here == rendered(text), text


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
