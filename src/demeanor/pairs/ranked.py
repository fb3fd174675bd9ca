"""Ranked lists: a prompt with two or more replies, of which every two of different rank are a pair.

    {"prompt": "Hi", "replies": ["Hello.", "Yes?", "What do you want?"]}                             best first
    {"prompt": "Hi", "responses": ["What?", "Hello."], "scores": [0.1, 0.9]}                         or rewards, ratings
    {"prompt": "Hi", "completions": ["What?", "Hello."], "ranks": [2, 1]}                            1 (or 0) is best
    {"instruction": "Hi", "completions": [{"response": "Hello.", "overall_score": 9.0}, ...]}        UltraFeedback
    {"prompt": "\\n\\nHuman: Hi\\n\\nAssistant: ", "answers": [{"answer": "Hello.", "rank": 1.0}, ...]}   Nectar
    {"prompt": [{"role": "user", ...}], "replies": [{"text": "Hello.", "rank": 0}, ...]}             OASST

A reply is a text, a message, a list of one message, or a table with a text and a rank or a score. Scores count before
ranks; where there are neither, the replies stand in their order. Replies of the same rank or score are tied: a tie is
not a preference, no pair is made of it. A reply that stands there twice at one rank is one reply.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from demeanor.pairs.hh import open_turns
from demeanor.pairs.reasons import ALL_TIED, BAD_RANKS, TOO_FEW, TWO_RANKS, Unusable
from demeanor.pairs.turns import Turns, find_prompt, is_message, is_messages, read_reply, read_turns, with_system
from demeanor.records import Message

NAME = "ranked lists"  # without ranks or scores best first
EXAMPLE = '{"prompt": "Hi", "replies": ["Hello.", "Yes?", "What do you want?"]}'

_LISTS = ("replies", "responses", "completions", "answers", "outputs", "candidates")
_TEXTS = ("text", "response", "completion", "answer", "reply", "output", "content")
_VALUES = (  # columns of the row, keys of a reply, what makes a larger value the better one
    (("scores", "rewards", "ratings"), ("score", "overall_score", "reward", "rating"), 1.0),
    (("ranks", "ranking", "rank"), ("rank",), -1.0),
)
_OTHER_SHAPES = ("chosen", "rejected", "chosen_messages", "rejected_messages", "label", "labels", "kto_tag")


@dataclass(frozen=True, slots=True)
class RankedList:
    """A prompt and its replies; the higher `scores`, the better."""

    prompt: Turns
    replies: tuple[str, ...]
    scores: tuple[float, ...]

    def pairs(self, ranked: str, weights: str) -> tuple[list[tuple[str, str, float]], int]:
        """(chosen, rejected, weight) of the pairs, those of the better replies first, and how many ties were left out.

        Args:
            ranked: "all" pairs, or the "best" reply against each other one (all that are tied for the best).
            weights: "even", or by "gap": a pair's is the difference of the two scores, or of the ranks where there are
                no scores. It is the weight of LiPO's lambda loss (Liu et al. 2024, arXiv 2402.01878) with the score
                itself as the gain and no discount.
        """
        made, ties, best = [], 0, max(self.scores)
        ordered = sorted(zip(self.replies, self.scores, strict=True), key=lambda item: -item[1])
        for (chosen, high), (rejected, low) in combinations(ordered, 2):
            if ranked == "best" and high < best:
                break
            if high == low:
                ties += 1
            else:
                made.append((chosen, rejected, high - low if weights == "gap" else 1.0))
        return made, ties


def matches(row: dict[str, Any]) -> bool:
    return (
        all(row.get(name) is None for name in _OTHER_SHAPES)
        and _replies(row) is not None
        and (find_prompt(row) is not None or _conversation(row) is not None)
    )


def to_list(row: dict[str, Any]) -> RankedList:
    """The list of a row, each reply once.

    Raises:
        Unusable: fewer than two replies, all tied, one at two ranks, or values that are no ranks or scores of them.
    """
    values = _replies(row) or []
    transcript = open_turns(row.get("prompt"))
    replies = [_text(value) for value in values]
    if transcript is not None:
        replies = [reply.strip() for reply in replies]
    known: dict[str, tuple[str, float]] = {}
    for reply, score in zip(replies, _scores(row, values), strict=True):
        if known.setdefault(reply.strip(), (reply, score))[1] != score:
            raise Unusable(TWO_RANKS)
    if len(known) < 2:
        raise Unusable(TOO_FEW)
    if len({score for _, score in known.values()}) < 2:
        raise Unusable(ALL_TIED)
    texts, scores = zip(*known.values(), strict=True)
    return RankedList(with_system(row, _turns(row) if transcript is None else transcript), texts, scores)


def _replies(row: dict[str, Any]) -> list[Any] | None:
    found = next((row[name] for name in _LISTS if isinstance(row.get(name), list) and row[name]), None)
    return found if found and all(isinstance(item, (str, dict)) or is_messages(item) for item in found) else None


def _text(value: Any) -> str:
    if isinstance(value, dict) and not is_message(value):
        value = next((value[name] for name in _TEXTS if value.get(name) is not None), None)
    return read_reply(value)


def _scores(row: dict[str, Any], replies: list[Any]) -> list[float]:
    """One finite number a reply, higher for a better one."""
    for columns, keys, sign in _VALUES:
        values = next((row[name] for name in columns if row.get(name) is not None), None)
        if values is None and all(isinstance(reply, dict) for reply in replies):
            values = [next((reply[key] for key in keys if reply.get(key) is not None), None) for reply in replies]
            values = None if all(value is None for value in values) else values
        if values is None:
            continue
        if not isinstance(values, list) or len(values) != len(replies):
            raise Unusable(BAD_RANKS)
        return [sign * _number(value) for value in values]
    return [-float(place) for place in range(len(replies))]


def _number(value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise Unusable(BAD_RANKS)
    return number


def _conversation(row: dict[str, Any]) -> list[Any] | None:
    return next((row[name] for name in ("messages", "conversations") if is_messages(row.get(name))), None)


def _turns(row: dict[str, Any]) -> Turns:
    prompt = find_prompt(row)
    if isinstance(prompt, str):
        return (Message("user", prompt),)
    return read_turns(_conversation(row) if prompt is None else prompt)
