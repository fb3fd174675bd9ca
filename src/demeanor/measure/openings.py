"""Openings as token sequences: every way in which the tokens of a vocabulary spell a text.

A reply begins with an opening when its first bytes are the opening's. Tokens t1 ... tn spell it when their bytes begin
with it and those of t1 ... t(n-1) do not: the last token may say more than the opening. These sequences are
prefix-free, so that the probability of the opening is the sum of theirs. There are too many of them, and nearly all are
improbable: the search (`Search`) goes through the model's own tokenization and through every other beginning that the
model gives more than `SMALL` of probability, and states what the beginnings that it left alone have together, which
bounds what is missing. (The sums over token sequences and their cover are those of Vieira et al. 2024, "From language
models over tokens to language models over characters".)
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Ids = np.ndarray  # of int64

SMALL = 1e-7  # a beginning that is less probable is not gone into
ENOUGH = 1e-5  # nor is any, once what was left alone is less than this together
MOST = 64  # beginnings of one opening that are gone into, besides those of its own tokenization


@dataclass(frozen=True)
class Opening:
    """An opening by its own tokenization, and its bytes, or None where only that tokenization counts."""

    tokens: tuple[int, ...]
    text: bytes | None = None


@dataclass(frozen=True)
class Mass:
    """The probability of an opening: at least `found`, at most `found + left_out`. Without other splits than the
    tokenizer's own, `left_out` is not known: None."""

    found: float
    left_out: float | None


class Spellings:
    """The bytes of each token that is text.

    Args:
        texts: by token id; None for what is no text (the end of a turn, say).
    """

    def __init__(self, texts: Sequence[bytes | None]) -> None:
        self.texts = texts
        known = sorted((text, number) for number, text in enumerate(texts) if text)
        self._sorted = [text for text, _ in known]
        self._ids = np.array([number for _, number in known], dtype=np.int64)
        self._same: dict[bytes, list[int]] = {}
        for text, number in known:
            self._same.setdefault(text, []).append(number)
        self._after: dict[bytes, tuple[Ids, Ids]] = {}

    def opening(self, tokens: Sequence[int]) -> Opening:
        """Of the tokens that a tokenizer gives a text; by these alone when one of them has no bytes."""
        parts = [self.texts[token] if token < len(self.texts) else None for token in tokens]
        return Opening(tuple(tokens), None if None in parts else b"".join(part or b"" for part in parts))

    def after(self, rest: bytes) -> tuple[Ids, Ids]:
        """(tokens that spell all of `rest`, or more; tokens that spell a beginning of it)"""
        if rest not in self._after:
            first = bisect_left(self._sorted, rest)
            last = first
            while last < len(self._sorted) and self._sorted[last].startswith(rest):
                last += 1
            shorter = [number for size in range(1, len(rest)) for number in self._same.get(rest[:size], ())]
            self._after[rest] = self._ids[first:last], np.array(shorter, dtype=np.int64)
        return self._after[rest]


def make_spellings(inner: Any, vocabulary: int) -> Spellings | None:
    """Of a Hugging Face tokenizer; None where its tokens have no bytes of their own (WordPiece, say).

    Args:
        vocabulary: tokens that the model knows; a tokenizer may have more.
    """
    backend = getattr(inner, "backend_tokenizer", None)
    if backend is None:
        return None
    decoder = json.loads(backend.to_str()).get("decoder") or {}
    steps = {step["type"]: step for step in (decoder.get("decoders") or [decoder]) if step.get("type")}
    if "ByteLevel" in steps:
        byte_of = _bytes_of_letters()

        def spell(piece: str) -> bytes | None:
            return bytes(byte_of[letter] for letter in piece) if all(letter in byte_of for letter in piece) else None
    elif "Metaspace" in steps or steps.get("Replace", {}).get("pattern") == {"String": "\u2581"}:

        def spell(piece: str) -> bytes | None:
            if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
                return bytes([int(piece[3:5], 16)])
            return piece.replace("\u2581", " ").encode("utf-8", "surrogatepass")
    else:
        return None
    added = inner.added_tokens_decoder
    texts: list[bytes | None] = [None] * vocabulary
    for piece, number in inner.get_vocab().items():
        if number < vocabulary:
            own = added.get(number)
            texts[number] = spell(piece) if own is None else None if own.special else own.content.encode()
    return Spellings(texts)


def _bytes_of_letters() -> dict[str, int]:
    """The letter that byte-level BPE writes for each byte: itself where it is printable, else from 256 on."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + n): byte for n, byte in enumerate(hidden)}


@dataclass
class Search:
    """The search for one opening after one prompt: asks in rounds (`questions`), takes the answers (`learn`)."""

    opening: Opening
    spellings: Spellings | None
    found: float = 0.0
    alone: dict[tuple[int, ...], float] = field(default_factory=dict)  # beginnings not gone into: probability
    num_gone: int = 0

    def first(self) -> list[Ids]:
        """Tokens to ask for after each beginning of the opening's own tokenization."""
        tokens, text = self.opening.tokens, self.opening.text
        if self.spellings is None or text is None:
            return [np.array([token]) for token in tokens]
        return [self._wanted(tokens[:size]) for size in range(len(tokens))]

    def learn_first(self, answers: Sequence[np.ndarray]) -> None:
        """Takes the log-probabilities of `first`."""
        tokens, logp = self.opening.tokens, 0.0
        if self.spellings is None or self.opening.text is None:
            self.found = math.exp(sum(float(answer[0]) for answer in answers))
            return
        for size, answer in enumerate(answers):
            own = tokens[: size + 1] if size + 1 < len(tokens) else None
            following = self._take(tokens[:size], math.exp(logp), answer, own)
            logp += math.log(following) if following > 0 else following - math.inf  # what is no number stays none

    def questions(self) -> list[tuple[int, ...]]:
        """The beginnings to go into next, the most probable first; none when enough is known."""
        left = sum(self.alone.values())
        chosen: list[tuple[int, ...]] = []
        for beginning, mass in sorted(self.alone.items(), key=lambda item: -item[1]):
            if left <= ENOUGH or mass <= SMALL or self.num_gone + len(chosen) >= MOST:
                break
            chosen.append(beginning)
            left -= mass
        return chosen

    def wanted(self, beginning: tuple[int, ...]) -> Ids:
        return self._wanted(beginning)

    def learn(self, beginning: tuple[int, ...], answer: np.ndarray) -> None:
        """Takes the log-probabilities of `wanted(beginning)`."""
        self.num_gone += 1
        self._take(beginning, self.alone.pop(beginning), answer, None)

    def mass(self) -> Mass:
        if self.spellings is None or self.opening.text is None:
            return Mass(self.found, None)
        return Mass(self.found, sum(self.alone.values()))

    def _after(self, beginning: tuple[int, ...]) -> tuple[Ids, Ids]:
        assert self.spellings is not None and self.opening.text is not None
        said = sum(len(self.spellings.texts[token] or b"") for token in beginning)
        return self.spellings.after(self.opening.text[said:])

    def _wanted(self, beginning: tuple[int, ...]) -> Ids:
        return np.concatenate(self._after(beginning))

    def _take(self, beginning: tuple[int, ...], mass: float, answer: np.ndarray, own: tuple[int, ...] | None) -> float:
        """Add what ends the opening, put aside what goes on; the conditional probability of the token to `own`, the
        next beginning of the opening's own tokenization, which is not put aside."""
        ending, going_on = self._after(beginning)
        probabilities = np.exp(np.asarray(answer, dtype=np.float64))
        self.found += mass * float(probabilities[: len(ending)].sum())
        following = 0.0
        for token, probability in zip(going_on.tolist(), probabilities[len(ending) :].tolist(), strict=True):
            longer = (*beginning, token)
            if longer == own:
                following = probability
            else:
                self.alone[longer] = mass * probability
        return following
