"""A chat template that writes the date is told what now is."""

from __future__ import annotations

from datetime import datetime

import pytest

from bapo.models import ChatFormat
from tests.tiny import CHATML, tiny_tokenizer

DAY = datetime(2024, 7, 6, 9, 5, 3)
TURNS = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("{{ strftime_now('%d %b %Y') }}", "06 Jul 2024"),
        ('{{ strftime_now("%Y-%m-%d") }}', "2024-07-06"),
        ("{{ strftime_now('%B %d, %Y') }}", "July 06, 2024"),
        ("{{- strftime_now('%A, %-d %B %Y, %H:%M:%S') }}", "Saturday, 6 July 2024, 09:05:03"),
        ("{%- set how = '%j of %y' %}{{ strftime_now(how) }}", "188 of 24"),
        ("{%- if strftime_now is defined %}{% set d = strftime_now('%d') %}{% endif %}{{ d }}", "06"),
        ("{{ strftime_now('%F %R, %e %B, 100%%d') }}", "2024-07-06 09:05,  6 July, 100%d"),
        ("{% macro head() %}on {{ strftime_now('%d.%m.') }}{% endmacro %}{{ head() }}", "on 06.07."),
        ("{% for m in messages %}{{ strftime_now('%d') }} 100%{% endfor %}", "06 100%"),
        ("{% if not day is defined %}{% set day = strftime_now('%d %b %Y') %}{% endif %}{{ day }}", "06 Jul 2024"),
    ],
)  # fmt: skip
def test_the_date_is_the_one_that_was_told(written: str, expected: str) -> None:
    chat = ChatFormat(tiny_tokenizer(f"<|end|>{written}<|end|>{CHATML}"))
    assert chat.today is not None
    assert chat.at(DAY).render(TURNS) == f"<|end|>{expected}<|end|><|user|>hi<|end|>\n<|assistant|>"
    assert chat.at(DAY).prompt_ids(TURNS) != chat.at(datetime(2021, 1, 31)).prompt_ids(TURNS)
    assert chat.at(None) is chat


@pytest.mark.parametrize("front", ["\n", "  ", "\n\n  ", "{# so #}\n "])
def test_white_space_at_the_beginning_is_as_transformers_has_it(front: str) -> None:
    template = front + "{% set d = strftime_now('%Y') %}{{ d }}" + CHATML
    tokenizer = tiny_tokenizer(template)
    expected = tokenizer.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=True)
    assert ChatFormat(tokenizer).at(datetime.now()).render(TURNS) == expected


def test_without_being_told_it_is_today() -> None:
    before = datetime.now().strftime("%d %b %Y")
    text = ChatFormat(tiny_tokenizer("{{ strftime_now('%d %b %Y') }}" + CHATML)).render(TURNS)
    assert text.removesuffix("<|user|>hi<|end|>\n<|assistant|>") in (before, datetime.now().strftime("%d %b %Y"))


def test_a_template_that_writes_no_date_is_left_alone() -> None:
    chat = ChatFormat(tiny_tokenizer())
    assert chat.today is None
    assert chat.at(DAY).render(TURNS) == chat.render(TURNS) == "<|user|>hi<|end|>\n<|assistant|>"
    assert ChatFormat(tiny_tokenizer(None)).today is None
