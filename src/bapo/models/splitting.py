"""Whether a chat template splits cleanly: prompt ids and response ids together must be its own rendering."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from bapo.errors import BapoError
from bapo.models.chat import CHANGED, LEFT_OUT, NOT_THE_TEMPLATES, ChatFormat

CONVERSATIONS: tuple[tuple[dict[str, str], ...], ...] = (
    ({"role": "user", "content": "How many days has a week?"},),
    ({"role": "system", "content": "Answer in few words."}, {"role": "user", "content": "How many days has a week?"}),
    (
        {"role": "user", "content": "How many days has a week?"},
        {"role": "assistant", "content": "It has seven."},
        {"role": "user", "content": "And the month of May?\nTell me all of it."},
    ),
)
RESPONSES = ("It has 31 days.", "    return 31\n", "<b>31</b>, of course.", "Der Mai hat 31 Tage – 三十一天 🙂.")
"""What is tried: prompts with and without a system turn and an earlier answer, each with responses of several kinds."""


@dataclass(slots=True)
class Splits:
    """What became of some responses behind their prompts.

    Attributes:
        tried: how many.
        clean: those whose prompt ids and response ids together are the template's own rendering, encoded.
        told: those that are not what the template writes, because it writes something else than stands behind its
            own generation prompt; they are scored as the model would generate them.
        faults: what is wrong with each of the others.
    """

    tried: int = 0
    clean: int = 0
    told: int = 0
    faults: tuple[str, ...] = ()


def splits(chat: ChatFormat) -> Splits:
    """Try `RESPONSES` behind `CONVERSATIONS`; plain texts where there is no chat template."""
    seen = Splits()
    for prompt in CONVERSATIONS if chat.has_template else ("The month of May has", "Das Jahr:\n"):
        for response in RESPONSES:
            fault = _fault(chat, prompt, response)
            seen.tried += 1
            if fault is None:
                seen.clean += 1
            elif fault == NOT_THE_TEMPLATES:
                seen.told += 1
            else:
                seen.faults += (fault,)
    return seen


def _fault(chat: ChatFormat, prompt: Any, response: str) -> str | None:
    counts: Counter[str] = Counter()
    try:
        before = chat.prompt_ids(prompt, counts)
        ids = (*before, *chat.response_ids(response, prompt, counts))
        if isinstance(prompt, str):
            whole: tuple[int, ...] = chat.prompt_ids(prompt + response)
        else:
            text = chat.render([*prompt, {"role": "assistant", "content": response}], add_generation_prompt=False)
            whole = tuple(chat.tokenizer(text, add_special_tokens=False)["input_ids"])
    except BapoError as error:
        return str(error)
    if counts[CHANGED] or counts[LEFT_OUT]:
        whose = "prompt" if counts[CHANGED] else "response"
        return f"the template leaves out or changes words of a {whose}: {_shown(chat, whole)}"
    if counts[NOT_THE_TEMPLATES]:
        return NOT_THE_TEMPLATES
    if whole[: len(ids)] == ids:
        return None
    bare = ids[:-1]  # a template that writes no end token has the turn end all the same
    written, known = (chat.tokenizer.decode(list(part)) for part in (whole, bare))
    if ids[-1] in chat.end_ids and written.startswith(known.rstrip()) and ids[-1] not in whole[len(before) :]:
        return None if not written[len(known.rstrip()) :].strip() else f"the template goes on: {written!r}"
    if written.startswith(chat.tokenizer.decode(list(ids))):  # a token of the rendering lies across the boundary
        return None
    at = next((i for i, (a, b) in enumerate(zip(ids, whole, strict=False)) if a != b), min(len(ids), len(whole)))
    return f"{_shown(chat, ids[max(0, at - 8) :])} where the template writes {_shown(chat, whole[max(0, at - 8) :])}"


def _shown(chat: ChatFormat, ids: tuple[int, ...]) -> str:
    return repr(chat.tokenizer.decode(list(ids)))[:120]
