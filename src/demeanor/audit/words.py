"""Replies as hashed words: the difference of two tf-idf vectors, in a fixed number of columns, without a vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from demeanor.audit.check import Context, Look, Scope
from demeanor.records import PreferencePair

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import HashingVectorizer

TOKEN = r"[^\W_]+(?:['’][^\W_]+)?|[^\w\s]"  # a word, or a mark
PROMPT_TOKEN = r"[^\W\d_]{3,}"
LONGEST = 4_000  # characters of a reply that are looked at


def reply_words(pairs: Sequence[PreferencePair], scope: Scope) -> Any:
    """A look. [pairs, 2**16] CSR float32: words, marks and pairs of them, log(1 + count), each reply of length 1."""
    from sklearn.preprocessing import normalize

    hashed = _hasher(16, (1, 2), TOKEN)
    chosen, rejected = (
        normalize(_logarithmic(hashed.transform([text[:LONGEST] for text in texts])))
        for texts in ([pair.chosen for pair in pairs], [pair.rejected for pair in pairs])
    )
    return (chosen - rejected).tocsr()


def prompt_words(pairs: Sequence[PreferencePair], scope: Scope) -> Any:
    """A look. [pairs, 2**12] CSR float32: log(1 + count) of the content words of the prompt's last turn."""
    texts = [pair.prompt[-1].content[:LONGEST] for pair in pairs]
    return _logarithmic(_hasher(12, (1, 1), PROMPT_TOKEN, "english").transform(texts))


def content_words(text: str) -> list[str]:
    """The words of a text that `prompt_words` counts: of 3 letters or more, and none of English's most frequent."""
    analyse: Any = _hasher(12, (1, 1), PROMPT_TOKEN, "english").build_analyzer()
    return list(analyse(text))


def column_of(words: Sequence[str]) -> np.ndarray:
    """[words] the column of `prompt_words` of each content word."""
    return np.asarray(_hasher(12, (1, 1), PROMPT_TOKEN).transform(words).argmax(axis=1)).ravel()


def weighted(context: Context, look: Look) -> Any:
    """[pairs, columns] CSR float32: all blocks of a look, each column times its idf, log((1 + n) / (1 + df)) + 1.

    A column that only one pair has is left out: it tells nothing about another.
    """
    from scipy.sparse import vstack

    matrix = vstack(context.seen[look], format="csr", dtype=np.float32)
    frequency = np.bincount(matrix.indices, minlength=matrix.shape[1])
    idf = np.where(frequency > 1, np.log((1 + matrix.shape[0]) / (1 + frequency)) + 1, 0).astype(np.float32)
    matrix.data *= idf[matrix.indices]
    return matrix


def _hasher(bits: int, ngrams: tuple[int, int], token: str, stop: str | None = None) -> HashingVectorizer:
    from sklearn.feature_extraction.text import HashingVectorizer

    return HashingVectorizer(
        n_features=2**bits, ngram_range=ngrams, token_pattern=token, stop_words=stop, alternate_sign=False, norm=None,
        dtype=np.float32,
    )  # fmt: skip


def _logarithmic(counts: Any) -> Any:
    np.log1p(counts.data, out=counts.data)
    return counts
