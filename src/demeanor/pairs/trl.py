"""TRL's shapes, and any table with a prompt, a chosen and a rejected column.

    {"prompt": "Hi", "chosen": "Hello.", "rejected": "What do you want?"}
    {"prompt": [{"role": "user", "content": "Hi"}],
     "chosen": [{"role": "assistant", "content": "Hello."}], "rejected": [{"role": "assistant", "content": "What?"}]}
    {"chosen": [{"role": "user", ...}, {"role": "assistant", ...}], "rejected": [...]}    the prompt is what they share
    {"chosen": "The sky is blue.", "rejected": "The sky is green."}                       the same with texts

A prompt that is a text becomes one user turn. Where replies are whole conversations that repeat the prompt, as in
UltraFeedback, what they share is the prompt. Two texts are cut where they begin to differ, at the last whitespace
before it (TRL cuts within a word: "g" + "ood" / "g" + "reat"), and the whitespace at the cut is stripped.
"""

from __future__ import annotations

from typing import Any

from demeanor.pairs.columns import PROMPT_COLUMNS
from demeanor.pairs.reasons import EMPTY_REPLY, IDENTICAL, Unusable
from demeanor.pairs.turns import (
    Turns,
    is_message,
    is_messages,
    read_reply,
    read_turns,
    shared_turns,
    split_conversations,
    with_system,
)
from demeanor.records import Message

NAME = "TRL prompt/chosen/rejected"
EXAMPLE = '{"prompt": "Hi", "chosen": "Hello.", "rejected": "What do you want?"}'


def matches(row: dict[str, Any]) -> bool:
    if not {"chosen", "rejected"} <= row.keys():
        return False
    chosen, rejected = row["chosen"], row["rejected"]
    if _are_conversations(chosen, rejected):
        return row.get("prompt") is None or _is_prompt(row["prompt"])
    if row.get("prompt") is not None:
        return _is_prompt(row["prompt"]) and _is_reply(chosen) and _is_reply(rejected)
    if any(row.get(name) is not None for name in PROMPT_COLUMNS):
        return False
    if "prompt" in row:  # it is there and empty
        return _is_reply(chosen) and _is_reply(rejected)
    return isinstance(chosen, str) and isinstance(rejected, str)


def to_pair(row: dict[str, Any]) -> tuple[Turns, str, str]:
    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    if "prompt" not in row and isinstance(chosen, str):
        turns, chosen, rejected = _split_texts(chosen, rejected)
    elif _are_conversations(chosen, rejected) and (prompt is None or _repeats(prompt, chosen, rejected)):
        turns, chosen, rejected = split_conversations(read_turns(chosen), read_turns(rejected))
    else:
        turns, chosen, rejected = _read_prompt(prompt), read_reply(chosen), read_reply(rejected)
    return with_system(row, turns), chosen, rejected


def _is_prompt(value: Any) -> bool:
    return isinstance(value, str) or value == [] or is_messages(value)


def _is_reply(value: Any) -> bool:
    return value is None or isinstance(value, str) or value == [] or is_messages(value) or is_message(value)


def _are_conversations(chosen: Any, rejected: Any) -> bool:
    """Two lists of messages, of which one at least is more than a reply."""
    both = is_messages(chosen) and is_messages(rejected)
    return both and max(len(chosen), len(rejected)) > 1


def _read_prompt(prompt: Any) -> Turns:
    if prompt is None or isinstance(prompt, str):
        return (Message("user", prompt or ""),)
    return read_turns(prompt)


def _repeats(prompt: Any, chosen: Any, rejected: Any) -> bool:
    """Do both conversations hold the prompt again?"""
    sides = read_turns(chosen), read_turns(rejected)
    if not isinstance(prompt, str):
        turns = read_turns(prompt)
        return bool(turns) and all(side[: len(turns)] == turns for side in sides)
    return Message("user", prompt.strip()) in (
        Message(turn.role, turn.content.strip()) for turn in shared_turns(*sides)
    )


def _split_texts(chosen: str, rejected: str) -> tuple[Turns, str, str]:
    if not chosen.strip() or not rejected.strip():
        raise Unusable(EMPTY_REPLY)
    if chosen.strip() == rejected.strip():
        raise Unusable(IDENTICAL)
    cut = next(
        (i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), min(len(chosen), len(rejected))
    )
    while cut and not chosen[cut - 1].isspace():
        cut -= 1
    return (Message("user", chosen[:cut].strip()),), chosen[cut:].strip(), rejected[cut:].strip()
