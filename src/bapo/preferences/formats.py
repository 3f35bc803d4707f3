"""One comparison from one record, in each of TRL's preference formats and the forms of them that are met."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import replace
from typing import Any

from bapo.errors import BapoError
from bapo.files import DEEPEST, is_deep, parse_json, readable
from bapo.preferences.record import ROLES, TEMPLATE, TOOLS, Message, Pair, Prompt, Response, turns_of
from bapo.progress import counted

_PROMPTS = ("prompt", "conversations", "question")
"""Names of the column that holds the prompt, the first of those that are there."""

_MAY_BE_PROMPTS = ("prompt", "instruction", "question", "query", "input", "problem")
"""Names under which a prompt is met as well; it is asked for by name and not guessed."""

_ANSWER = "\n\nAssistant:"
"""What stands before the answers in texts of the kind of hh-rlhf."""

_BEGINS_LIKE_TURNS, _BETWEEN_OBJECTS = re.compile(r"\s*(\[\s*)?\{"), re.compile(r"\}\s+\{")
"""Turns in text; numpy, and so pandas, puts no comma between those of an array."""

_NOT_TEXT = ("images", "image", "videos", "video", "audio", "audios")
"""Columns that hold a part of the prompt that is no text."""

_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "observation": "tool"}
"""Other names of roles."""


def pair_from_record(record: Mapping[str, Any], where: str) -> Pair:
    """Read ``chosen``, ``rejected`` and perhaps ``prompt``.

    Standard: all are strings. Conversational: prompt is a list of turns, chosen and rejected are a turn, or lists whose
    last turn is the response and which may begin with the prompt; lists may be written as text (JSON or Python).
    Without a prompt it is what chosen and rejected begin with in common: whole turns, or text up to the last
    "Assistant:", or up to the last white space, which goes with the responses.

    Beside them a record may hold ``system``, a text that becomes the first turn; ``tools``, the schemas that the
    template shows; ``chat_template_kwargs``; and ``base``, the model's own earlier response in words, or several.
    Turns keep all that they hold (tool_calls, reasoning_content, ...).

    Args:
        record: the record.
        where: its place, for the error, e.g. ``mine.jsonl line 17``.

    Raises:
        BapoError: a key is missing or holds something else; names the place, the key and what was found.
    """
    if not isinstance(record, Mapping):
        raise BapoError(
            f"{where} is no object: write each comparison as one with the keys prompt, chosen and rejected."
        )
    _check_depth(record, where)
    for key in ("chosen", "rejected"):
        if record.get(key) is None:
            instead = "it is null" if key in record else f"found: {', '.join(map(str, record)) or 'nothing'}"
            raise BapoError(f"{where} has no {key!r} ({instead}): each comparison needs prompt, chosen and rejected.")
        if isinstance(record[key], Mapping) and record[key] and all(str(name).isdigit() for name in record[key]):
            raise BapoError(
                f"{where} holds whole columns, and not comparisons: write them one by one, with pandas by "
                'to_json(..., orient="records", lines=True).'
            )
    for key in _NOT_TEXT:
        if record.get(key):
            raise BapoError(f"{where} has {key!r}, and only text can be scored: leave such comparisons out.")
    chosen, rejected = _written_turns(record["chosen"]), _written_turns(record["rejected"])
    prompt = _written_turns(next((record[key] for key in _PROMPTS if record.get(key) is not None), None))
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None and not (_ANSWER in chosen and _ANSWER in rejected):
            _refuse_other_prompts(record, where)
        pair = _standard(prompt, chosen, rejected, where)
    elif not isinstance(chosen, str) and not isinstance(rejected, str):
        pair = _conversational(prompt, _turns(chosen, where, "chosen"), _turns(rejected, where, "rejected"), where)
    else:
        raise BapoError(
            f"{where}: chosen and rejected must both be text, or both be lists of turns with role and content."
        )
    return replace(_with_columns(pair, record, where), bases=_bases(record.get("base"), where))


def pairs_from_dataset(rows: Iterable[Mapping[str, Any]], name: str) -> Iterator[Pair]:
    """Comparisons of any iterable of records in one of TRL's preference formats."""
    told = counted(rows, f"reading {name}", len(rows)) if isinstance(rows, Sized) else rows
    for number, row in enumerate(told, start=1):
        where = f"{name} row {number}"
        _check_depth(row, where)
        yield pair_from_record(readable(row), where)


def _check_depth(record: Any, where: str) -> None:
    if is_deep(record):
        raise BapoError(
            f"{where} is nested in more than {DEEPEST} levels, so it cannot be looked through: leave that comparison "
            "out, or the column that is nested so."
        )


def _refuse_other_prompts(record: Mapping[str, Any], where: str) -> None:
    for key, value in record.items():
        if str(key).strip().lower() in _MAY_BE_PROMPTS and isinstance(value, str) and value.strip():
            raise BapoError(
                f"{where} has no 'prompt', and {key!r} may be it: call that column prompt if it is, and leave that "
                "column out if it is not."
            )


def _bases(base: Any, where: str) -> tuple[str, ...]:
    base = _parsed(base) if isinstance(base, str) and base.lstrip().startswith("[") else base
    if base is None or base == "" or base != base:  # NaN is what pandas writes for nothing
        return ()
    texts = (base,) if isinstance(base, str) else base
    if isinstance(texts, Sequence) and not isinstance(texts, str):
        texts = [text for text in texts if text is not None]
        if not texts:
            return ()
    if not isinstance(texts, Sequence) or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
        raise BapoError(f"{where}: 'base' must be text that is not empty, or a list of such.")
    return tuple(texts)


def _written_turns(value: Any) -> Any:
    """Turns that were written as text, as spreadsheets and `pandas` do; any other value as it is."""
    if not isinstance(value, str) or not _BEGINS_LIKE_TURNS.match(value):
        return value
    for read in (_parsed, ast.literal_eval, lambda text: ast.literal_eval(_BETWEEN_OBJECTS.sub("}, {", text))):
        try:
            turns = read(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if all(map(_is_turn, turns if isinstance(turns, list) else [turns])):
            return turns
    return value


def _is_turn(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    role = value.get("role", value.get("from"))
    return role in (*ROLES, *_ROLES) and bool({"content", "value", "tool_calls"} & value.keys())


def _standard(prompt: Any, chosen: str, rejected: str, where: str) -> Pair:
    if prompt is None:
        common = chosen[: _common_length(chosen, rejected)]
        before, answer, _ = common.rpartition(_ANSWER)
        prompt = before + answer or common[: max(common.rfind(" "), common.rfind("\n")) + 1].rstrip()
        if not prompt and chosen != rejected:
            raise BapoError(
                f"{where} has no 'prompt', and chosen and rejected begin with nothing in common to be one: write the "
                "prompt under that key, or leave that comparison out."
            )
        return Pair(prompt, chosen[len(prompt) :], rejected[len(prompt) :])
    if not isinstance(prompt, str):
        return Pair(_ask(_turns(prompt, where, "prompt"), where), chosen, rejected)
    return Pair(prompt, chosen, rejected)


def _conversational(prompt: Any, chosen: list[Message], rejected: list[Message], where: str) -> Pair:
    common = _common_length(chosen, rejected)
    if prompt is None:
        at = min(common, len(chosen) - 1, len(rejected) - 1)  # equal to the end: the last turn is the response of both
        asked = chosen[:at]
    elif isinstance(prompt, str):
        at = _turns_up_to(prompt, chosen[:common])
        asked = chosen[:at] or [Message("user", prompt)]
    else:
        asked = _turns(prompt, where, "prompt")
        at = len(asked) if chosen[: len(asked)] == rejected[: len(asked)] == asked else 0
    chosen, rejected = chosen[at:], rejected[at:]
    if len(chosen) != 1 or len(rejected) != 1 or {chosen[0].role, rejected[0].role} != {"assistant"}:
        raise BapoError(
            f"{where}: behind the prompt, chosen and rejected must each be one assistant turn: "
            "put the turns before it into the prompt, and leave out those behind it."
        )
    return Pair(_ask(asked, where), _response(chosen[0]), _response(rejected[0]))


def _turns_up_to(prompt: str, turns: Sequence[Message]) -> int:
    """How many of the turns lead to the one that says the prompt; 0 where none does."""
    said = [at for at, turn in enumerate(turns, start=1) if turn.role == "user" and turn.content == prompt]
    return said[-1] if said else 0


def _response(turn: Message) -> Response:
    return turn if turn.more else turn.content


def _with_columns(pair: Pair, record: Mapping[str, Any], where: str) -> Pair:
    """The pair with what the record holds for the chat template beside turns."""
    prompt = pair.prompt
    system = record.get("system")
    if system is not None and not isinstance(system, str):
        raise BapoError(f"{where}: 'system' must be text.")
    handed: list[Message] = []
    for key, role, kind in (("tools", TOOLS, list), ("chat_template_kwargs", TEMPLATE, dict)):
        value = _without_none(_parsed(record.get(key)))
        if value and not isinstance(value, kind):
            raise BapoError(f"{where}: {key!r} must be {'a list of schemas' if kind is list else 'an object'}.")
        if value:
            handed.append(Message(role, json.dumps(value, ensure_ascii=False)))
    if not (system and system.strip()) and not handed:
        return pair
    turns = (Message("user", prompt),) if isinstance(prompt, str) else prompt
    if system and system.strip() and not (turns[0].role == "system" and turns[0].content.strip() == system.strip()):
        if turns[0].role == "system":
            raise BapoError(
                f"{where}: 'system' says something else than the prompt's own system turn: leave one of them."
            )
        turns = (Message("system", system), *turns)
    return Pair((*handed, *turns), pair.chosen, pair.rejected)


def _ask(turns: Sequence[Message], where: str) -> Prompt:
    if not turns or not any(turn.role in ("user", "tool") for turn in turns):
        raise BapoError(
            f"{where}: a chat prompt needs a user turn, and this one has none: add the one that is answered, or leave "
            "that comparison out."
        )
    if turns[-1].role not in ("user", "tool", "assistant"):
        raise BapoError(
            f"{where}: a chat prompt must end with a user turn, and this one ends with a {turns[-1].role} turn: put "
            "that one first, or leave it out."
        )
    if turns[-1].role == "assistant" and turns[-1].more:
        raise BapoError(
            f"{where}: an assistant turn that the response goes on with can hold nothing but text: leave what else it "
            f"holds out ({', '.join(json.loads(turns[-1].more))}), or that comparison."
        )
    return turns_of(tuple(turns))


def _common_length(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many items two sequences begin with in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _turns(value: Any, where: str, key: str) -> list[Message]:
    """Turns, or the one turn, of a record."""
    turns = [value] if isinstance(value, Mapping) else value
    if not isinstance(turns, Iterable) or isinstance(turns, str | bytes):
        raise BapoError(f"{where}: {key!r} must be text that is not empty, or a list of turns with role and content.")
    return [_turn(turn, where) for turn in turns]


def _turn(turn: Any, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise BapoError(f"{where}: every turn needs a role and a content that are text.")
    fields = {key: _without_none(value) for key, value in turn.items() if value is not None}
    role, content = fields.pop("role", fields.pop("from", None)), fields.pop("content", fields.pop("value", None))
    if isinstance(fields.get("tool_calls"), str):
        fields["tool_calls"] = _parsed(fields["tool_calls"])
    more = {key: value for key, value in fields.items() if value not in ("", [], {})}
    if content is None and more:
        content = ""
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = "".join(_text_of(part, where) for part in content)
    if not isinstance(role, str) or not isinstance(content, str):
        raise BapoError(f"{where}: every turn needs a role and a content that are text.")
    role = _ROLES.get(role, role)
    if role not in ROLES:
        raise BapoError(f"{where}: unknown role {role!r} in a turn: use one of {', '.join(ROLES)}.")
    return Message(role, content, json.dumps(more, ensure_ascii=False, default=str) if more else "")


def _text_of(part: Any, where: str) -> str:
    """A part of a content that is given in parts."""
    if isinstance(part, Mapping) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise BapoError(
        f"{where}: a content has a part of type {kind!r}, and only text can be scored: leave such comparisons out."
    )


def _parsed(value: Any) -> Any:
    """A column that may hold JSON as text; text that cannot be read as JSON stays text."""
    if not isinstance(value, str) or not value.strip():
        return value or None
    try:
        return parse_json(value, "")
    except BapoError:
        return value


def _without_none(value: Any) -> Any:
    """What Arrow fills up with nulls, without them."""
    if isinstance(value, Mapping):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_without_none(inner) for inner in value]
    return value
