"""The Alpaca ranking shape of LLaMA-Factory; rasbt's instruction/input/output/chosen/rejected rows are the same.

    {"instruction": "Answer kindly.", "input": "Hi", "chosen": "Hello.", "rejected": "What do you want?"}
    {"instruction": "Answer kindly.", "input": "Hi", "output": ["Hello.", "What do you want?"]}     before 2024

`instruction` and `input` are joined by a newline, as LLaMA-Factory does; an empty one is left out. `system` and
`history`, a list of [question, answer] turns that went before, are optional. Beside `chosen`, an `output` is not read.
"""

from __future__ import annotations

from typing import Any

from demeanor.pairs.reasons import NOT_THE_SHAPE, Unusable
from demeanor.pairs.turns import Turns, is_message, is_messages, read_reply, with_system
from demeanor.records import Message

NAME = "Alpaca ranking"
EXAMPLE = '{"instruction": "Answer kindly.", "input": "Hi", "chosen": "Hello.", "rejected": "What do you want?"}'


def matches(row: dict[str, Any]) -> bool:
    if not isinstance(row.get("instruction"), str) or row.get("prompt") is not None:
        return False
    if not isinstance(row.get("input"), (str, type(None))):
        return False
    if {"chosen", "rejected"} <= row.keys():
        return _is_reply(row["chosen"]) and _is_reply(row["rejected"])
    return _is_ranked(row.get("output"))


def to_pair(row: dict[str, Any]) -> tuple[Turns, str, str]:
    good, bad = (row["chosen"], row["rejected"]) if "chosen" in row else row["output"]
    question = "\n".join(text for text in (row["instruction"], row.get("input")) if text and text.strip())
    turns = (*_history(row.get("history")), Message("user", question))
    return with_system(row, turns), read_reply(good), read_reply(bad)


def _is_reply(value: Any) -> bool:
    return value is None or isinstance(value, str) or is_message(value) or (is_messages(value) and len(value) == 1)


def _is_ranked(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(text, str) for text in value)


def _history(value: Any) -> Turns:
    if value is None or value == "":
        return ()
    if not isinstance(value, list):
        raise Unusable(NOT_THE_SHAPE)
    turns: list[Message] = []
    for item in value:
        if not isinstance(item, (list, tuple)) or [type(text) for text in item] != [str, str]:
            raise Unusable(NOT_THE_SHAPE)
        turns += Message("user", item[0]), Message("assistant", item[1])
    return tuple(turns)
