"""The ShareGPT ranking shape of LLaMA-Factory, and its OpenAI spelling.

    {"conversations": [{"from": "system", "value": "Be kind."}, {"from": "human", "value": "Hi"}],
     "chosen": {"from": "gpt", "value": "Hello."}, "rejected": {"from": "gpt", "value": "What do you want?"}}
    {"messages": [{"role": "user", "content": "Hi"}],
     "chosen": {"role": "assistant", "content": "Hello."}, "rejected": {"role": "assistant", "content": "What?"}}

A `system` column is put first when the conversation has no system turn. A reply may also be a plain text.
"""

from __future__ import annotations

from typing import Any

from demeanor.pairs.turns import Turns, is_message, is_messages, read_reply, read_turns, with_system

NAME = "ShareGPT ranking"
EXAMPLE = (
    '{"conversations": [{"from": "human", "value": "Hi"}], "chosen": {"from": "gpt", "value": "Hello."}, '
    '"rejected": {"from": "gpt", "value": "What do you want?"}}'
)


def matches(row: dict[str, Any]) -> bool:
    conversation = _conversation(row)
    replies = [row.get("chosen"), row.get("rejected")]
    return (
        {"chosen", "rejected"} <= row.keys()
        and (row.get("prompt") is None or all(map(is_message, replies)))
        and (conversation == [] or is_messages(conversation))
        and all(reply is None or isinstance(reply, str) or _is_one_message(reply) for reply in replies)
    )


def to_pair(row: dict[str, Any]) -> tuple[Turns, str, str]:
    turns = read_turns(_conversation(row))
    return with_system(row, turns), read_reply(row["chosen"]), read_reply(row["rejected"])


def _conversation(row: dict[str, Any]) -> Any:
    return row["conversations"] if row.get("conversations") is not None else row.get("messages")


def _is_one_message(reply: Any) -> bool:
    return is_message(reply) or (is_messages(reply) and len(reply) == 1)
