"""The boundary between prompt and response, for templates of every kind."""

from __future__ import annotations

import pytest

from bapo.errors import BapoError
from bapo.models import ChatFormat
from tests.tiny import CHATML, NO_END, NO_SYSTEM, tiny_tokenizer

QUESTION = [{"role": "user", "content": "Why?"}]


def encoded(tokenizer, turns) -> list[int]:
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("template", [CHATML, NO_SYSTEM])
def test_prompt_and_response_ids_are_the_templates_own_encoding(template: str) -> None:
    tokenizer = tiny_tokenizer(template)
    chat = ChatFormat(tokenizer, [tokenizer.convert_tokens_to_ids("<|end|>")])
    joined = [*chat.prompt_ids(QUESTION), *chat.response_ids("Because it is so.")]
    whole = encoded(tokenizer, [*QUESTION, {"role": "assistant", "content": "Because it is so."}])
    assert whole[: len(joined)] == joined
    assert joined[-1] in chat.end_ids
    # What the template writes behind the end of the turn is white space that the model never generates.
    assert tokenizer.decode(whole[len(joined) :]).strip() == ""


def test_a_template_without_an_end_token_gets_the_tokenizers() -> None:
    tokenizer = tiny_tokenizer(NO_END)
    chat = ChatFormat(tokenizer)
    assert chat.response_ids("ok") == (*tokenizer(" ok")["input_ids"], tokenizer.eos_token_id)  # "assistant: ok"


def test_a_system_turn_is_kept_where_the_template_has_one_and_folded_where_not() -> None:
    turns = [{"role": "system", "content": "Be brief."}, *QUESTION]
    with_role, without = (tiny_tokenizer(t) for t in (CHATML, NO_SYSTEM))
    kept = ChatFormat(with_role)
    assert kept.has_system
    assert "<|system|>Be brief." in with_role.decode(kept.prompt_ids(turns))
    folded = ChatFormat(without)
    assert not folded.has_system
    assert "[user] Be brief.\n\nWhy?" in without.decode(folded.prompt_ids(turns))


def test_a_bos_of_the_template_stands_once() -> None:
    tokenizer = tiny_tokenizer(NO_SYSTEM)
    chat = ChatFormat(tokenizer)
    ids = chat.prompt_ids(QUESTION)
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.bos_token_id not in chat.response_ids("x")


def test_plain_text_prompts_need_no_template_and_chat_prompts_do() -> None:
    tokenizer = tiny_tokenizer(None)
    chat = ChatFormat(tokenizer)
    assert chat.prompt_ids("Once upon") == tuple(tokenizer("Once upon")["input_ids"])
    assert chat.response_ids(" a time") == (*tokenizer(" a time")["input_ids"], tokenizer.eos_token_id)
    with pytest.raises(BapoError, match="no chat template"):
        chat.prompt_ids(QUESTION)


REFUSING = (
    "{% if messages|length > 2 %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% for m in messages %}{{ m.content }}{% endfor %}"
)


def test_a_refusing_template_is_one_sentence() -> None:
    chat = ChatFormat(tiny_tokenizer(REFUSING))
    with pytest.raises(BapoError, match="roles must alternate"):
        chat.prompt_ids(QUESTION * 3)


@pytest.mark.slow
def test_embedded_model_generates_exactly_the_ids_that_its_responses_are_encoded_as(smollm2) -> None:
    from bapo.anchoring import GenerationSettings, generate_batch

    prompt = smollm2.chat.prompt_ids([{"role": "user", "content": "What is the capital of France?"}])
    (response,) = generate_batch(smollm2.model, [prompt], GenerationSettings(40), smollm2.chat.end_ids)[0]
    assert response.ended
    assert "Paris" in smollm2.chat.response_text(response.ids)
    assert smollm2.chat.response_ids(smollm2.chat.response_text(response.ids)) == response.ids
