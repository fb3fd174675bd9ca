"""The pairs of LLaMA-Factory's v1: two whole conversations, whose contents are lists of parts.

    {"chosen_messages":   [{"role": "user", "content": [{"type": "text", "value": "Hi"}], "loss_weight": 0.0},
                           {"role": "assistant", "content": [{"type": "text", "value": "Hello."}], "loss_weight": 1.0}],
     "rejected_messages": [...]}

The prompt is what both share up to the last turn. `loss_weight` is not read: the last turn is the reply.
"""

from __future__ import annotations

from typing import Any

from demeanor.pairs.turns import Turns, is_messages, read_turns, split_conversations, with_system

NAME = "LLaMA-Factory v1 messages"
EXAMPLE = (
    '{"chosen_messages": [{"role": "user", "content": [{"type": "text", "value": "Hi"}]}, '
    '{"role": "assistant", "content": [{"type": "text", "value": "Hello."}]}], '
    '"rejected_messages": [{"role": "user", "content": [{"type": "text", "value": "Hi"}]}, '
    '{"role": "assistant", "content": [{"type": "text", "value": "What do you want?"}]}]}'
)


def matches(row: dict[str, Any]) -> bool:
    sides = [row.get("chosen_messages"), row.get("rejected_messages")]
    return any(is_messages(side) for side in sides) and all(_is_side(side) for side in sides)


def to_pair(row: dict[str, Any]) -> tuple[Turns, str, str]:
    chosen, rejected = read_turns(row["chosen_messages"]), read_turns(row["rejected_messages"])
    turns, good, bad = split_conversations(chosen, rejected)
    return with_system(row, turns), good, bad


def _is_side(value: Any) -> bool:
    return value == [] or is_messages(value)
