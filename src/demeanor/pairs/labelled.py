"""Single replies with a label, thumbs up or down, as TRL's KTO and LLaMA-Factory write them.

    {"prompt": "Hi", "completion": "Hello.", "label": true}
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}], "label": false}
    {"instruction": "Answer kindly.", "input": "Hi", "output": "Hello.", "kto_tag": true}

The reply may be called completion, response or output; prompt and reply may be texts or lists of messages. Good are
true, 1, good, up, thumbs_up and positive, bad are false, 0, bad, down, thumbs_down and negative.
"""

from __future__ import annotations

from typing import Any

from demeanor.pairs.reasons import EMPTY_PROMPT, EMPTY_REPLY, NOT_ASSISTANTS, Unusable
from demeanor.pairs.turns import Turns, find_prompt, is_messages, read_reply, read_turns, with_system
from demeanor.records import Message

NAME = "single labelled replies"
EXAMPLE = '{"prompt": "Hi", "completion": "Hello.", "label": true}'

_REPLIES = ("completion", "response", "output")
_CONVERSATIONS = ("messages", "conversations")
_PAIRS = ("chosen", "rejected", "chosen_messages", "rejected_messages")
_LABELS = dict.fromkeys(("true", "1", "1.0", "good", "up", "thumbs_up", "positive"), True)
_LABELS |= dict.fromkeys(("false", "0", "0.0", "bad", "down", "thumbs_down", "negative"), False)


def has_label(row: dict[str, Any]) -> bool:
    """Is it a text with a label, whatever it belongs to?"""
    texts = (*_REPLIES, *_CONVERSATIONS)
    return (
        _label(row) is not None
        and any(row.get(name) for name in texts)
        and all(row.get(name) is None for name in _PAIRS)
    )


def matches(row: dict[str, Any]) -> bool:
    return has_label(row) and (
        _conversation(row) is not None or (find_prompt(row) is not None and _reply(row) is not None)
    )


def to_pair(row: dict[str, Any]) -> tuple[Turns, str, str]:
    conversation = _conversation(row)
    if conversation is None:
        prompt, reply = find_prompt(row), read_reply(_reply(row))
        turns = read_turns(prompt) if isinstance(prompt, list) else (Message("user", prompt or ""),)
    else:
        whole = read_turns(conversation)
        if len(whole) < 2:
            raise Unusable(EMPTY_PROMPT if whole and whole[-1].role == "assistant" else EMPTY_REPLY)
        if whole[-1].role != "assistant":
            raise Unusable(NOT_ASSISTANTS)
        turns, reply = whole[:-1], whole[-1].content
    return with_system(row, turns), *((reply, "") if _label(row) else ("", reply))


def _label(row: dict[str, Any]) -> bool | None:
    label = row.get("label") if row.get("label") is not None else row.get("kto_tag")
    return _LABELS.get(str(label).strip().lower().replace(" ", "_"))


def _conversation(row: dict[str, Any]) -> list[Any] | None:
    if row.get("prompt") is not None or _reply(row) is not None:
        return None
    return next((row[name] for name in _CONVERSATIONS if is_messages(row.get(name))), None)


def _reply(row: dict[str, Any]) -> Any:
    return next((row[name] for name in _REPLIES if isinstance(row.get(name), str) or is_messages(row.get(name))), None)
