"""Transcripts, as Anthropic's hh-rlhf writes them.

    {"chosen":   "\\n\\nHuman: Hi\\n\\nAssistant: Hello.\\n\\nHuman: Bye\\n\\nAssistant: See you.",
     "rejected": "\\n\\nHuman: Hi\\n\\nAssistant: Hello.\\n\\nHuman: Bye\\n\\nAssistant: Go away."}

The prompt is all turns up to the last assistant turn of both sides, which must be the same. Sets made from it that
keep the prompt apart are read too:

    {"prompt": "\\n\\nHuman: Bye\\n\\nAssistant:", "chosen": " See you.", "rejected": " Go away."}

The whitespace around each turn is stripped; a marker that does not follow an empty line is text.
"""

from __future__ import annotations

import re
from typing import Any

from demeanor.pairs.reasons import EMPTY_REPLY, MORE_THAN_ONE_TURN, PROMPTS_DIFFER, Unusable
from demeanor.pairs.turns import Turns, with_system
from demeanor.records import Message

NAME = "hh-rlhf transcripts"
EXAMPLE = (
    r'{"chosen": "\n\nHuman: Hi\n\nAssistant: Hello.", "rejected": "\n\nHuman: Hi\n\nAssistant: What do you want?"}'
)

_MARKER = re.compile(r"(?:\A\s*|\r?\n\r?\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def matches(row: dict[str, Any]) -> bool:
    sides = [row.get("chosen"), row.get("rejected")]
    if not {"chosen", "rejected"} <= row.keys() or not all(side is None or isinstance(side, str) for side in sides):
        return False
    blank = [side is None or not side.strip() for side in sides]
    whole = [_is_transcript(side) for side in sides]
    return _open_prompt(row) is not None or (any(whole) and all(a or b for a, b in zip(whole, blank, strict=True)))


def to_pair(row: dict[str, Any]) -> tuple[Turns, str, str]:
    chosen, rejected = row["chosen"] or "", row["rejected"] or ""
    prompt = _open_prompt(row)
    if prompt is None:
        if not chosen.strip() or not rejected.strip():
            raise Unusable(EMPTY_REPLY)
        prompt, chosen = _split(chosen)
        other, rejected = _split(rejected)
        if prompt != other:
            raise Unusable(PROMPTS_DIFFER)
    elif _MARKER.search("-" + chosen) or _MARKER.search("-" + rejected):  # "-": a marker is wanted behind the start
        raise Unusable(MORE_THAN_ONE_TURN)
    return with_system(row, prompt), chosen.strip(), rejected.strip()


def _is_transcript(text: Any) -> bool:
    return isinstance(text, str) and _MARKER.match(text) is not None


def _turns(transcript: str) -> Turns:
    _, *parts = _MARKER.split(transcript)
    return tuple(Message(_ROLES[who], text.strip()) for who, text in zip(parts[::2], parts[1::2], strict=True))


def _split(transcript: str) -> tuple[Turns, str]:
    """All turns before the last assistant turn, and that turn."""
    turns = _turns(transcript)
    last = max((i for i, turn in enumerate(turns) if turn.role == "assistant"), default=None)
    if last is None:
        raise Unusable(EMPTY_REPLY)
    if last != len(turns) - 1:  # the transcript goes on with the human
        raise Unusable(MORE_THAN_ONE_TURN)
    return turns[:last], turns[last].content


def _open_prompt(row: dict[str, Any]) -> Turns | None:
    """The turns of a `prompt` that is a transcript which ends where the assistant is to speak."""
    turns = open_turns(row.get("prompt"))
    return turns if turns is not None and not _is_transcript(row["chosen"]) else None


def open_turns(prompt: Any) -> Turns | None:
    """The turns of a transcript that ends where the assistant is to speak; None when it is no such."""
    if not _is_transcript(prompt):
        return None
    turns = _turns(str(prompt))
    return turns[:-1] if turns[-1].role == "assistant" and not turns[-1].content else None
