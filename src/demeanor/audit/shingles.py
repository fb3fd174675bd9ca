"""Texts as sets of shingles: n-grams of their words as 32-bit hashes, in arrays, with no loop over words.

A set says what a text is like without its order, capitals, punctuation and blanks (Broder, On the resemblance and
containment of documents, 1997); a hash takes 4 bytes, so that the sets of many texts fit where the texts do not.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_CHARACTERS = 1 << 20  # of texts that are cut into words in one go
_GAP = re.compile(r"[\s!-/:-@\[-`{-~]")  # of what lies between words, enough to cut a long text there
_LONGEST_WORD = 1024  # characters, after which the factors of their places repeat
_SPACELESS = (  # scripts without blanks between words: each character is a word
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF), (0x20000, 0x3FFFF),
)  # fmt: skip


@dataclass(frozen=True)
class Shingles:
    """The shingles of texts: text i has `hashes[offsets[i] : offsets[i + 1]]`, different and in rising order.

    `offsets` is [texts + 1] int64, `hashes` [all] uint32.
    """

    offsets: np.ndarray
    hashes: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def sizes(self) -> np.ndarray:
        """[texts] int64: how many each has."""
        return np.diff(self.offsets)

    @classmethod
    def join(cls, blocks: Iterable[Shingles]) -> Shingles:
        """The texts of all blocks, one block after the other."""
        blocks = list(blocks)
        sizes = np.concatenate([np.empty(0, np.int64), *(block.sizes for block in blocks)])
        return cls(offsets_of(sizes), np.concatenate([np.empty(0, np.uint32), *(block.hashes for block in blocks)]))

    def take(self, rows: np.ndarray) -> Shingles:
        """The texts at the places `rows` [m], in that order."""
        offsets = offsets_of(self.sizes[rows])
        places = np.repeat(self.offsets[rows] - offsets[:-1], self.sizes[rows])
        places += np.arange(len(places))
        return Shingles(offsets, self.hashes[places])


def shingle(texts: Sequence[str], n: int = 3) -> Shingles:
    """The different n-grams of words of each text; one of the whole for a text of fewer words, none for one of none.

    A word is a run of letters, marks and digits; in scripts that write no blanks, one character.
    """
    blocks, start, num_characters = [], 0, 0
    for place, text in enumerate(texts):
        num_characters += len(text) + 1
        if num_characters >= _CHARACTERS:
            blocks.append(_shingle_block(texts[start : place + 1], n))
            start, num_characters = place + 1, 0
    return Shingles.join([*blocks, _shingle_block(texts[start:], n)])


def ngrams(texts: Sequence[str], sizes: Iterable[int]) -> dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """By size n the n-grams of words that the texts hold, in their order.

    Each [m]: which text int64, at which word (counted over all texts) int64, hash uint64.
    """
    words, num_words = _words([text.casefold() for text in texts])
    text = np.repeat(np.arange(len(texts)), num_words)
    sizes, found = set(sizes), {}
    for size, left, hashes in _rolled(words, num_words, max(sizes)):
        if size in sizes:
            begins = np.flatnonzero(left >= size)
            found[size] = (text[begins], begins, hashes[begins])
    return found


def _shingle_block(texts: Sequence[str], n: int) -> Shingles:
    words, num_words = _words([text.casefold() for text in texts])
    *_, (_, left, hashes) = _rolled(words, num_words, n)
    begins = left >= np.minimum(n, np.repeat(num_words, num_words))
    text = np.repeat(np.arange(len(texts), dtype=np.uint64), num_words)
    keys = distinct((text[begins] << np.uint64(32)) | (hashes[begins] >> np.uint64(32)))
    sizes = np.bincount((keys >> np.uint64(32)).astype(np.int64), minlength=len(texts))
    return Shingles(offsets_of(sizes), keys.astype(np.uint32))


def _rolled(words: np.ndarray, num_words: np.ndarray, longest: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(n, words from each word to the end of its text, hash of each word and the n - 1 after it), n = 1 ... longest.

    What lies beyond the end of the text counts as 0, which is no word's hash.
    """
    left = np.repeat(np.cumsum(num_words), num_words) - np.arange(len(words))
    hashes = mixed(words)
    yield 1, left, hashes
    for distance in range(1, longest):
        following = np.zeros_like(words)
        following[:-distance] = words[distance:]
        following[left <= distance] = 0
        hashes = mixed(hashes ^ following)
        yield distance + 1, left, hashes


def _words(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of all words [words] uint64, none of them 0, and how many each text has [texts] int64.

    Piece by piece: what is computed on the way takes about 50 bytes a character.
    """
    hashes, num_words = [np.empty(0, np.uint64)], np.zeros(len(texts), np.int64)
    for owners, pieces in _pieces(texts):
        found, counts = _words_of(pieces)
        hashes.append(found)
        np.add.at(num_words, owners, counts)
    return np.concatenate(hashes), num_words


def _pieces(texts: Sequence[str]) -> Iterator[tuple[list[int], list[str]]]:
    """The texts, in order, about _CHARACTERS in one go: which text, and a piece of it; cut between words if at all."""
    owners, pieces, size = [], [], 0
    for owner, text in enumerate(texts):
        start = 0
        while start < len(text):
            gap = _GAP.search(text, start + _CHARACTERS) if len(text) - start > _CHARACTERS else None
            stop = gap.start() if gap else len(text)
            owners.append(owner)
            pieces.append(text[start:stop])
            start, size = stop, size + stop - start
            if size >= _CHARACTERS:
                yield owners, pieces
                owners, pieces, size = [], [], 0
    yield owners, pieces


def _words_of(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """`_words` in one go.

    The hash of a word is a multilinear one of its characters, sum of factor[place] * character modulo 2^64 (Lemire and
    Kaser, Strongly universal string hashing is fast, 2014).
    """
    kinds, factors = _kinds(), _factors()
    characters = np.frombuffer("\n".join([*texts, ""]).encode("utf-32-le", "surrogatepass"), np.uint32)
    kind = kinds[characters]
    before = np.concatenate([np.zeros(1, np.uint8), kind[:-1]])
    starts = np.flatnonzero((kind == 2) | ((kind == 1) & (before != 1)))
    lengths = np.fromiter(map(len, texts), np.int64, len(texts)) + 1
    num_words = np.diff(np.searchsorted(starts, offsets_of(lengths)))
    if not len(starts):
        return np.empty(0, np.uint64), num_words
    kind = kind[starts[0] :]
    starts, characters = starts - starts[0], characters[starts[0] :]
    place = np.arange(len(characters)) - np.repeat(starts, np.diff(starts, append=len(characters)))
    weighted = factors[place % _LONGEST_WORD] * (characters + np.uint64(1))
    weighted[kind == 0] = 0
    return mixed(np.add.reduceat(weighted, starts)) | np.uint64(1), num_words


@lru_cache(maxsize=1)
def _kinds() -> np.ndarray:
    """[characters] uint8: 0 between words, 1 part of a word, 2 a word of its own."""
    kinds = np.fromiter((unicodedata.category(chr(code))[0] in "LMN" for code in range(0x110000)), np.uint8, 0x110000)
    for low, high in _SPACELESS:
        kinds[low : high + 1] *= 2
    return kinds


@lru_cache(maxsize=1)
def _factors() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**64, _LONGEST_WORD, dtype=np.uint64) | np.uint64(1)


def mixed(values: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit numbers that spreads every bit (the finalizer of SplitMix64, Steele et al. 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values ^= values >> np.uint64(shift)
        values *= np.uint64(factor)
    values ^= values >> np.uint64(31)
    return values


def offsets_of(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])


def distinct(values: np.ndarray) -> np.ndarray:
    """The different values in rising order; for such numbers many times faster than `np.unique`, which hashes."""
    values = np.sort(values)
    kept = np.ones(len(values), bool)
    kept[1:] = values[1:] != values[:-1]
    return np.asarray(values[kept])
