"""Surface features of replies: what can be counted without reading them.

Two looks, both of the difference chosen - rejected: the marks, words and forms below, each as log(1 + count), and which
word and which two words a reply opens with, as hashes. `name_of` finds the words of a hash again in the pairs.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from demeanor.audit.check import Context, Scope
from demeanor.records import PreferencePair

MARKS = {
    "exclamation marks": "!", "question marks": "?", "commas": ",", "semicolons": ";", "colons": ":", "quotes": '"',
    "brackets": "(", "long dashes": "—", "ellipses": "...", "line breaks": "\n", "paragraphs": "\n\n", "bold": "**",
    "code": "`", "apostrophes": "'", "full stops": ".",
}  # fmt: skip
FORMS = {
    "headers": r"^#{1,6} ", "list bullets": r"^[ \t]*[-*•+] ", "numbered items": r"^[ \t]*\d+[.)] ",
    "table rows": r"^\|", "links": r"https?://|www\.", "digits": r"\d", "capitals": r"[A-Z]",
    "words in capitals": r"\b[A-Z]{2,}\b",
    "emoji": "[\u2600-\u27bf\U0001f300-\U0001faff]", "letters beyond ASCII": r"[^\W\d_a-zA-Z]",
    "a question at the end": r"\?\s*\Z", "an exclamation at the end": r"!\s*\Z", "no mark at the end": r"\w\s*\Z",
    "a small letter first": r"\A\s*[a-z]",
    "refusal words": r"(?i)\b(?:i (?:can(?:no|['’])t|can not|won['’]t|will not|am unable|must decline|refuse)"
    r"|i['’]m (?:unable|not able)|(?:not|n['’]t) (?:able|willing|allowed|comfortable) |as an ai"
    r"|against (?:my|the) (?:policy|guidelines|law))",
    "apologies": r"(?i)\b(?:sorry|apolog\w+|regret|forgive|excuse me|pardon)\b",
}  # fmt: skip
WORDS = {
    "politeness words": "please thank thanks kindly welcome appreciate grateful pleasure glad happy gladly certainly "
    "delighted respectfully would could may",
    "rude words": "stupid idiot idiots dumb moron fool shut damn hell crap ass shit fuck fucking bitch pathetic lazy",
    "hedges": "maybe perhaps might possibly probably seems seem likely somewhat generally usually think guess could",
    "agreement words": "yes sure ok okay absolutely definitely course right exactly yeah great",
    "denial words": "no not never nothing none don't doesn't isn't shouldn't wouldn't",
    "first person": "i i'm i'd i've i'll me my mine myself we our us",
    "second person": "you your you're you'd you'll yours yourself",
    "duty words": "should must need ought have",
    "warning words": "illegal dangerous harmful unsafe wrong unethical inappropriate hurt risk careful law",
    "connectives": "however therefore although because additionally furthermore moreover overall",
}
NAMES = (*MARKS, *FORMS, *WORDS)
SIZES = ("log of characters", "log of words", "characters", "words")  # of length, for what depends on it
MAX_OPENINGS = 300
MIN_OPENINGS = 0.002  # of the replies, and at least MIN_REPLIES, open like this; else it is no feature
MIN_REPLIES = 5
_FORMS = [re.compile(pattern, re.MULTILINE if pattern.startswith("^") else 0) for pattern in FORMS.values()]
_CLASS_OF: dict[str, list[int]] = {}
for _number, _words in enumerate(WORDS.values()):
    for _word in _words.split():
        _CLASS_OF.setdefault(_word, []).append(_number)
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
LONGEST = 20_000  # characters of a reply that are looked at


def surface(pairs: Sequence[PreferencePair], scope: Scope) -> np.ndarray:
    """A look. [pairs, features + sizes] float32: the differences of `NAMES`, then those of `SIZES`."""
    rows = [(_counts(pair.chosen), _counts(pair.rejected)) for pair in pairs]
    both = np.array(rows, np.float64).reshape(len(rows), 2, len(NAMES) + 2)
    sizes = both[:, :, len(NAMES) :]
    features = np.concatenate([np.log1p(both), sizes], axis=2)
    return np.asarray(features[:, 0] - features[:, 1], np.float32)


def openings(pairs: Sequence[PreferencePair], scope: Scope) -> np.ndarray:
    """A look. [pairs, 2, 2] int64: hash of the first word, and of the first two, of chosen and of rejected."""
    rows = [[[_hash(text) for text in _opening(reply)] for reply in (pair.chosen, pair.rejected)] for pair in pairs]
    return np.array(rows, np.int64).reshape(len(rows), 2, 2)


def without_length(seen: np.ndarray) -> np.ndarray:
    """[pairs, features] float32: the features' differences less what the differences in length explain of them.

    Least squares through the origin on the differences of `SIZES` and their signs. Both sides change sign when the
    replies are swapped, so the label has no part in it. Each column is then divided by its root mean square.
    """
    features, sizes = seen[:, : len(NAMES)].astype(np.float64), seen[:, len(NAMES) :].astype(np.float64)
    basis = _scaled(np.concatenate([sizes, np.sign(sizes[:, :2])], axis=1))
    explained = basis @ np.linalg.lstsq(basis, features, rcond=None)[0]
    left: np.ndarray = features - explained
    left[:, np.square(left).mean(axis=0) < 1e-6 * np.square(features).mean(axis=0)] = 0  # rounding is no feature
    return np.asarray(_scaled(left), np.float32)


def opening_columns(seen: np.ndarray) -> tuple[np.ndarray, Any]:
    """The frequent openings: [openings] int64 hashes, and [pairs, openings] CSR float32, 1 where chosen alone has it,
    -1 where rejected alone has it. Which are frequent is counted over both sides, so the label has no part in it."""
    from scipy.sparse import csr_matrix

    n = len(seen)
    hashes, counts = np.unique(seen.reshape(-1), return_counts=True)
    frequent = counts >= max(MIN_REPLIES, MIN_OPENINGS * 2 * n)
    frequent &= counts < 2 * n  # what every reply opens with tells nothing
    best = np.sort(hashes[frequent][np.argsort(-counts[frequent], kind="stable")[:MAX_OPENINGS]])
    flat = seen.reshape(-1)
    found = np.isin(flat, best)
    column = np.searchsorted(best, flat)
    row = np.repeat(np.arange(n, dtype=np.int32), 4)
    value = np.tile(np.array([1, 1, -1, -1], np.float32), n)
    matrix = csr_matrix((value[found], (row[found], column[found])), shape=(n, best.size), dtype=np.float32)
    matrix.eliminate_zeros()  # both open alike
    return best, matrix


def design(context: Context) -> tuple[list[int | str], Any]:
    """What the linear model sees of all pairs: [pairs, features] CSR float32, and the columns' names; an opening is
    named by its hash, see `name_of`."""
    from scipy.sparse import csr_matrix, hstack

    dense = csr_matrix(without_length(context.column(surface)))
    hashes, sparse = opening_columns(context.column(openings))
    return [*NAMES, *hashes.tolist()], hstack([dense, sparse], format="csr", dtype=np.float32)


def name_of(context: Context, column: int | str) -> str:
    """A feature in words; an opening's are looked up in a pair that has it."""
    if isinstance(column, str):
        return column
    seen = context.column(openings).reshape(-1, 4)
    place = int(np.flatnonzero((seen == column).any(axis=1))[0])
    pair = context.store[place]
    for reply in (pair.chosen, pair.rejected):
        for text in _opening(reply):
            if _hash(text) == column:
                return f"opens with {text!r}" if text else "opens with no word"
    raise AssertionError("an opening without a pair")


def _counts(text: str) -> list[float]:
    text = text[:LONGEST]
    classes = [0] * len(WORDS)
    words = _WORD.findall(text.lower().replace("’", "'"))
    for word in words:
        for number in _CLASS_OF.get(word, ()):
            classes[number] += 1
    marks = [text.count(mark) for mark in MARKS.values()]
    return [*marks, *(len(form.findall(text)) for form in _FORMS), *classes, len(text), len(words)]


def _opening(text: str) -> tuple[str, str]:
    words = _WORD.findall(text[:200].lower())[:2]
    return (words[0] if words else ""), " ".join(words)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def _scaled(columns: np.ndarray) -> np.ndarray:
    root = np.sqrt(np.square(columns).mean(axis=0)) if len(columns) else np.ones(columns.shape[1])
    return columns / np.where(root > 0, root, 1)
