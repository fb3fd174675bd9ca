"""The shingles of the pairs' texts: what near-duplicates of pairs and of prompts are searched by, 4 bytes a word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from demeanor.audit import Scope, look_at
from demeanor.audit.near import Shingles, shingle
from demeanor.pairs import PairStore
from demeanor.progress import Named, Progress
from demeanor.records import PreferencePair


@dataclass(frozen=True)
class Texts:
    """Of each pair, in order."""

    prompt: Shingles  # all turns but the system's, which many prompts share
    question: Shingles  # the last turn
    replies: Shingles  # chosen and rejected, each shingle marked by its side
    whole: Shingles  # prompt, chosen and rejected, marked too


def texts_of(pairs: PairStore, progress: Progress | None = None, workers: int | None = None) -> Texts:
    """Read all pairs once, on every core."""
    blocks: list[Texts] = look_at(pairs, [_look], Scope(), Named(progress or Progress(), "word n-grams"), workers)[
        _look
    ]
    return Texts(*(Shingles.join(getattr(block, part.name) for block in blocks) for part in fields(Texts)))


def _look(pairs: Sequence[PreferencePair], scope: Scope) -> Texts:
    prompt = shingle(["\n".join(turn.content for turn in pair.prompt if turn.role != "system") for pair in pairs])
    question = shingle([pair.prompt[-1].content for pair in pairs])
    replies = _marked([shingle([pair.chosen for pair in pairs]), shingle([pair.rejected for pair in pairs])])
    return Texts(prompt, question, replies, _marked([replies, prompt]))


def _marked(sides: Sequence[Shingles]) -> Shingles:
    """The union of the texts' shingles, in which the same one of two sides is not the same."""
    keys = []
    for number, side in enumerate(sides, start=1):
        text = np.repeat(np.arange(len(side), dtype=np.uint64), side.sizes)
        marked = side.hashes * np.uint32(2654435761) + np.uint32(number * 0x3C6EF372 % 2**32)  # a bijection a side
        keys.append(text << np.uint64(32) | marked)
    united = np.unique(np.concatenate(keys))
    sizes = np.bincount((united >> np.uint64(32)).astype(np.int64), minlength=len(sides[0]))
    return Shingles(np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)]), united.astype(np.uint32))
