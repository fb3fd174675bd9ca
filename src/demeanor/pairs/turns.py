"""Lists of messages, in the two ways the field writes them, as `Message` turns.

    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]      OpenAI, TRL
    [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]               ShareGPT

`content` may be a list of parts, {"type": "text", "text": "Hi"} (LLaMA-Factory writes `value` for `text`).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from demeanor.pairs.reasons import (
    MORE_THAN_ONE_TURN,
    NO_IMAGES,
    NO_TOOLS,
    NOT_ASSISTANTS,
    NOT_THE_SHAPE,
    PROMPTS_DIFFER,
    UNKNOWN_ROLE,
    Unusable,
)
from demeanor.records import Message

Turns = tuple[Message, ...]

_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}


def find_prompt(row: Mapping[str, Any]) -> str | list[Any] | None:
    """A canonical row's prompt as it stands there, a text or messages, or its instruction with the input; else None."""
    prompt = row.get("prompt")
    if isinstance(prompt, str) or is_messages(prompt):
        return prompt
    texts = [row.get(name) for name in ("instruction", "input")]
    if isinstance(texts[0], str) and isinstance(texts[1], str | None):
        return "\n".join(text for text in texts if text and text.strip())
    return None


def read_turns(value: Any) -> Turns:
    """The turns of a list of messages (an empty list or None: no turns).

    Raises:
        Unusable: an unknown role, an image, or something that is not a list of messages.
    """
    if value is None:
        return ()
    if not isinstance(value, list):
        raise Unusable(NOT_THE_SHAPE)
    return tuple(_turn(item) for item in value)


def read_reply(value: Any) -> str:
    """The text of a reply that is a text, one message, or a list of exactly one message; None is the empty text."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    turns = read_turns([value] if isinstance(value, dict) else value)
    if not turns:
        return ""
    if len(turns) > 1:
        raise Unusable(MORE_THAN_ONE_TURN)
    if turns[0].role != "assistant":
        raise Unusable(NOT_ASSISTANTS)
    return turns[0].content


def split_conversations(chosen: Turns, rejected: Turns) -> tuple[Turns, str, str]:
    """Two whole conversations as prompt and replies: the prompt is what they share, a reply is the last turn."""
    if not chosen or not rejected:
        return (chosen or rejected)[:-1], _last(chosen), _last(rejected)
    if chosen[:-1] != rejected[:-1]:
        shared = len(shared_turns(chosen, rejected))
        next_turns = chosen[shared : shared + 1] + rejected[shared : shared + 1]
        replies_fork = shared > 0 and all(turn.role == "assistant" for turn in next_turns)
        raise Unusable(MORE_THAN_ONE_TURN if replies_fork else PROMPTS_DIFFER)
    return chosen[:-1], _last(chosen), _last(rejected)


def shared_turns(one: Turns, other: Turns) -> Turns:
    """The turns with which both begin."""
    same = takewhile(lambda turns: turns[0] == turns[1], zip(one, other, strict=False))
    return tuple(turn for turn, _ in same)


def with_system(row: Mapping[str, Any], turns: Turns) -> Turns:
    """`turns` behind the row's `system` column, unless they open with a system turn of their own."""
    system = row.get("system")
    if not isinstance(system, str) or not system.strip() or (turns and turns[0].role == "system"):
        return turns
    return (Message("system", system), *turns)


def is_messages(value: Any) -> bool:
    """Is it a list of messages? Their roles are not looked at."""
    return isinstance(value, list) and bool(value) and all(is_message(item) for item in value)


def is_message(value: Any) -> bool:
    return isinstance(value, dict) and ({"role", "content"} <= value.keys() or {"from", "value"} <= value.keys())


def _last(turns: Turns) -> str:
    if not turns:
        return ""
    if turns[-1].role != "assistant":
        raise Unusable(NOT_ASSISTANTS)
    return turns[-1].content


def _turn(item: Any) -> Message:
    if not is_message(item):
        raise Unusable(NOT_THE_SHAPE)
    role, content = (item["role"], item["content"]) if "role" in item else (item["from"], item["value"])
    if item.get("tool_calls"):
        raise Unusable(NO_TOOLS)
    known = _ROLES.get(role.strip().lower()) if isinstance(role, str) else None
    if known is None:
        raise Unusable(UNKNOWN_ROLE)
    return Message(known, _text(content))


def _text(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Unusable(NOT_THE_SHAPE)
    return "".join(_part(part) for part in content)


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise Unusable(NOT_THE_SHAPE)
    if part.get("type", "text") != "text":
        raise Unusable(NO_IMAGES if is_media(part) else NOT_THE_SHAPE)
    text = part.get("text") if part.get("text") is not None else part.get("value")
    if not isinstance(text, str):
        raise Unusable(NOT_THE_SHAPE)
    return text


def is_media(part: Any) -> bool:
    """Is it a part of a message's content that is an image, a video or a sound?"""
    kind = part.get("type") if isinstance(part, dict) else None
    return isinstance(kind, str) and kind.startswith(("image", "video", "audio", "input_image", "input_audio"))
