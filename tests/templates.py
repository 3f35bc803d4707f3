"""Published chat templates, tokenizers of the kinds that are met, and what a response's ids must be with them.

The right value comes from the template and the tokenizer alone: the rendering of the whole conversation, encoded.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import re
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from tokenizers import AddedToken, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from bapo.errors import BapoError
from bapo.models import ChatFormat
from bapo.models.chat import LEFT_OUT, NOT_THE_TEMPLATES

VOCABULARIES = Path(sys.prefix) / "vocabularies"
"""Where `make setup` puts the wheel with real SentencePiece vocabularies."""

_MARKER = re.compile(
    r"<\|[^|<>\s]+\|>|<\|?[a-z_]+\|>|<\|[a-z_]+>|<｜[^｜<>\s]+｜>|<(?:start|end)_of_turn>|</?(?:think|tool_call)>"
)

ENDS = {
    "cohere": "<|END_OF_TURN_TOKEN|>", "deepseek": "<｜end▁of▁sentence｜>", "diffusion_gemma": "<turn|>",
    "gemma": "<end_of_turn>", "gemma4": "<turn|>", "glm4moe": "<|user|>", "gptoss": "<|return|>",
    "idefics3": "<end_of_utterance>", "llama3": "<|eot_id|>", "llava_next": "</s>", "muse": "<|eot|>",
    "phi3": "<|end|>", "smolvlm": "<end_of_utterance>",
}  # fmt: skip
"""With what a family's template ends the assistant's turn; all others with <|im_end|>. GLM's ends it with the next."""

CALL = {"function": {"name": "get_weather", "arguments": {"city": "Paris"}}, "type": "function", "id": "abcdefghi"}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "The city."}}},
    },
}

RESPONSES: dict[str, dict[str, Any]] = {
    "plain": {"content": "The answer is 4."},
    "reasoning in text": {"content": "<think>\nTwo and two.\n</think>\n\nThe answer is 4."},
    "reasoning beside": {"content": "The answer is 4.", "reasoning_content": "Two and two."},
    "white space around": {"content": " The answer is 4.\n"},
    "line feeds first": {"content": "\n\nThe answer is 4."},
    "indented": {"content": "    return 4"},
    "tool call": {"content": "I look.", "tool_calls": [CALL]},
    "markup first": {"content": "<b>4</b> is the answer."},
    "markup first, reasoning in text": {"content": "<think>\nTwo and two.\n</think><b>4</b> is the answer."},
    "markup first, reasoning beside": {"content": "<b>4</b> is the answer.", "reasoning_content": "Two and two."},
    "another script": {"content": "答案是四。🙂"},
}


class Verdict(NamedTuple):
    """What became of one response: right, told (the texts differ and that was said), refused, or wrong."""

    kind: str
    why: str = ""


def published_templates() -> dict[str, str]:
    """The chat templates that the installed TRL ships, by name; none without TRL."""
    found = importlib.util.find_spec("trl")
    if found is None or found.origin is None:
        return {}
    folder = Path(found.origin).parent / "chat_templates"
    return {path.stem: path.read_text() for path in sorted(folder.glob("*.jinja"))}


def end_of(name: str) -> str:
    """With which token a template ends the assistant's turn."""
    family = max((own for own in ENDS if name.startswith(own)), key=len, default="")
    return ENDS.get(family, "<|im_end|>")


def have_vocabularies() -> bool:
    """Whether the SentencePiece vocabularies are there."""
    return any(VOCABULARIES.glob("mistral_common-*.whl"))


@cache
def _sentencepiece(version: str) -> Any:
    wheel = next(VOCABULARIES.glob("mistral_common-*.whl"))
    name = {"v1": "tokenizer.model.v1", "v3": "mistral_instruct_tokenizer_240323.model.v3"}[version]
    with TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as packed:
        Path(folder, "tokenizer.model").write_bytes(packed.read(f"mistral_common/data/{name}"))
        told = '{"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "legacy": %s}'
        Path(folder, "tokenizer_config.json").write_text(told % ("true" if version == "v1" else "false"))
        return AutoTokenizer.from_pretrained(folder)


@cache
def _byte_level() -> Any:
    from bapo.models.embedded import embedded_gguf
    from bapo.models.gguf_files import converted_gguf

    return AutoTokenizer.from_pretrained(converted_gguf(embedded_gguf()))


TOKENIZERS = (
    "byte-level",
    "space before every text",
    "space before the first text",
    "space as a normalizer",
    "markers strip (Phi-3)",
    "no space (Gemma)",
)
"""Kinds of tokenizer; the first is a real byte-level BPE, the others have real SentencePiece vocabularies."""


def tokenizer_of(kind: str, template: str, end: str) -> Any:
    """A tokenizer of a kind that knows the template's markers as tokens."""
    own = _byte_level() if kind == "byte-level" else _sentencepiece("v3" if "first" in kind else "v1")
    tokenizer = copy.deepcopy(own)
    backend = tokenizer.backend_tokenizer
    if kind in ("space as a normalizer", "markers strip (Phi-3)"):
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.pre_tokenizer = None
    elif kind == "no space (Gemma)":
        backend.normalizer = normalizers.Replace(" ", "▁")
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    strip = kind == "markers strip (Phi-3)"
    markers = sorted({*_MARKER.findall(template), end})
    special = {marker: marker not in ("<think>", "</think>", "<tool_call>", "</tool_call>") for marker in markers}
    tokenizer.add_tokens(
        [AddedToken(m, special=special[m], normalized=False, rstrip=strip and special[m]) for m in markers]
    )
    tokenizer.chat_template = template
    tokenizer.eos_token = end
    return tokenizer


def judged(tokenizer: Any, end: str, prompt: list[dict[str, Any]], response: dict[str, Any]) -> Verdict:
    """Compare prompt and response ids with the encoding of the template's own rendering."""
    response = {"role": "assistant", **response}
    counts: Counter[str] = Counter()
    tools = [{"role": "tools", "content": json.dumps([TOOL])}] if "tool_calls" in response else []
    try:
        chat = ChatFormat(tokenizer, [tokenizer.eos_token_id])
        prompt_ids = chat.prompt_ids([*tools, *prompt], counts)
        ids = chat.response_ids(response, [*tools, *prompt], counts)
    except BapoError as error:
        return Verdict("refused", str(error))
    told = counts[NOT_THE_TEMPLATES] + counts[LEFT_OUT]
    beside = {"tools": [TOOL]} if tools else {}
    opened = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True, **beside)
    whole = tokenizer.apply_chat_template([*prompt, response], tokenize=False, **beside)
    at = whole.find(end, max(whole.rfind(last) for last in (str(response["content"]).strip()[-8:], "Paris")))
    whole = whole[: at + len(end)] if at > 0 else whole.rstrip() + end
    if prompt_ids != tuple(tokenizer(opened, add_special_tokens=False)["input_ids"]):
        return Verdict("wrong", "the prompt is not what generation sees")
    if ids[-1] != tokenizer.eos_token_id:
        return Verdict("wrong", "the response has no end")
    if not whole.startswith(opened):
        why = _unlike_generated(tokenizer.decode(prompt_ids), tokenizer.decode(ids), response["content"])
        return Verdict("told" if told and not why else "wrong", why or "the rendering does not begin with the prompt")
    right = tuple(tokenizer(whole, add_special_tokens=False)["input_ids"])
    if right[: len(prompt_ids)] == prompt_ids:
        same = right[len(prompt_ids) :] == ids
    else:  # a token lies across the boundary: the text must be the same
        same = tokenizer.decode([*prompt_ids, *ids]) == tokenizer.decode(right)
    if not same:
        return Verdict("wrong", f"{tokenizer.decode(ids)!r} for {tokenizer.decode(right[len(prompt_ids) :])!r}")
    return Verdict("told" if told else "right")


def _unlike_generated(prompt: str, response: str, content: str) -> str:
    """Why a model that was given the prompt would not write the response, though it means the content; or nothing."""
    answer = content.rpartition("</think>")[2].strip()
    if answer not in response:
        return f"the answer is not whole: {response!r}"
    text = prompt.rpartition("2+2?")[2] + response
    if text.count("</think>") > text.count("<think>"):
        return f"reasoning ends that did not begin: {text!r}"
    begins = response.strip()[:3]
    if begins not in ("<th", "</t", content.strip()[:3], answer[:3], "Two"):
        return f"the response begins with a part of something: {response!r}"
    return ""


def verdicts(name: str, template: str, kind: str) -> Iterator[tuple[str, Verdict]]:
    """Of each kind of response with a template and a kind of tokenizer."""
    tokenizer = tokenizer_of(kind, template, end_of(name))
    for told, response in RESPONSES.items():
        yield told, judged(tokenizer, end_of(name), [{"role": "user", "content": "2+2?"}], response)
