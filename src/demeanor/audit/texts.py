"""Looks that several checks share: what a pair's texts are, as digests and as shingles, small beside the texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np

from demeanor.audit.check import Scope
from demeanor.audit.shingles import Shingles, distinct, offsets_of, shingle
from demeanor.records import Message, PreferencePair


def digests(pairs: Sequence[PreferencePair], scope: Scope) -> dict[str, np.ndarray]:
    """64-bit digests [pairs] uint64 of prompt, chosen and rejected, and of the annotator (0 where none is named)."""
    return {
        "prompt": digest(prompt_key(pair.prompt) for pair in pairs),
        "chosen": digest(_flat(pair.chosen) for pair in pairs),
        "rejected": digest(_flat(pair.rejected) for pair in pairs),
        "annotator": digest(pair.annotator or "" for pair in pairs),
    }


def prompt_shingles(pairs: Sequence[PreferencePair], scope: Scope) -> Shingles:
    """Of the prompts' turns but for the system's, which many prompts share."""
    return shingle([prompt_text(pair.prompt) for pair in pairs])


def pair_shingles(pairs: Sequence[PreferencePair], scope: Scope) -> Shingles:
    """Of prompt, chosen and rejected together; the same shingle in two of the three counts as two."""
    chosen, rejected = shingle([pair.chosen for pair in pairs]), shingle([pair.rejected for pair in pairs])
    keys = []
    for factor, side in zip(_FACTORS, (prompt_shingles(pairs, scope), chosen, rejected), strict=True):
        text = np.repeat(np.arange(len(side), dtype=np.uint64), side.sizes)
        keys.append(text << np.uint64(32) | side.hashes * np.uint32(factor))
    together = distinct(np.concatenate(keys))
    sizes = np.bincount((together >> np.uint64(32)).astype(np.int64), minlength=len(pairs))
    return Shingles(offsets_of(sizes), together.astype(np.uint32))


_FACTORS = (1, 0x9E3779B1, 0x85EBCA77)  # odd: each maps the 32-bit numbers one to one


def prompt_text(prompt: Iterable[Message]) -> str:
    return "\n".join(turn.content for turn in prompt if turn.role != "system")


def prompt_key(prompt: Iterable[Message]) -> str:
    """The same for prompts that differ in capitals and white space only."""
    return "\x00".join(f"{turn.role} {_flat(turn.content)}" for turn in prompt).casefold()


def digest(texts: Iterable[str]) -> np.ndarray:
    """[texts] uint64; 0 for an empty text."""
    found = [
        blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() if text else bytes(8) for text in texts
    ]
    return np.frombuffer(b"".join(found), np.uint64)


def _flat(text: str) -> str:
    return " ".join(text.split())
