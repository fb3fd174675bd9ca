"""Topics of the prompts: seeded k-means over their hashed words, named by the words that set them apart."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from demeanor.audit.check import Context
from demeanor.audit.words import column_of, content_words, prompt_words, weighted

NUM_DIRECTIONS = 32  # of the latent semantic analysis that goes before
MOST_TOPICS = 20
PAIRS_A_TOPIC = 50  # at least, in the mean
NUM_READ = 60  # prompts of a topic that are read again for its words
NUM_WORDS = 5


@dataclass(frozen=True)
class Topic:
    """A cluster of prompts: the words that are more frequent in it than elsewhere, and its pairs' places."""

    words: tuple[str, ...]
    places: np.ndarray


def find_topics(context: Context) -> list[Topic]:
    """The topics, the largest first; none for a set too small to have two of PAIRS_A_TOPIC pairs.

    Tf-idf rows of length 1, projected by a seeded truncated SVD (Deerwester et al. 1990), then k-means in mini-batches
    (Sculley 2010) with one cluster for every PAIRS_A_TOPIC pairs, at most MOST_TOPICS.
    """
    count = min(len(context.store) // PAIRS_A_TOPIC, MOST_TOPICS)
    if count < 2:
        return []
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.decomposition import TruncatedSVD
    from sklearn.preprocessing import normalize

    matrix = normalize(weighted(context, prompt_words), copy=False)
    directions = min(NUM_DIRECTIONS, np.unique(matrix.indices).size - 1)
    if directions < 2:
        return []  # hardly any words: the prompts are all alike
    seed = context.scope.seed
    rows = normalize(TruncatedSVD(directions, random_state=seed).fit_transform(matrix), copy=False)
    which = MiniBatchKMeans(count, random_state=seed, batch_size=2048, n_init=3).fit_predict(rows)
    mean = np.asarray(matrix.mean(axis=0)).ravel()
    found = []
    for number in range(count):
        places = np.flatnonzero(which == number)
        if places.size:
            found.append(Topic(_words(context, matrix, mean, places), places))
    return sorted(found, key=lambda topic: -topic.places.size)


def _words(context: Context, matrix: Any, mean: np.ndarray, places: np.ndarray) -> tuple[str, ...]:
    """The words of some of the topic's prompts whose columns are heaviest in it, in relation to all prompts."""
    apart = np.asarray(matrix[places].mean(axis=0)).ravel() - mean
    read = places[np.linspace(0, places.size - 1, min(NUM_READ, places.size)).astype(int)]
    counts = Counter(
        word for place in read for word in set(content_words(context.store[int(place)].prompt[-1].content))
    )
    known = sorted(counts, key=lambda word: (-counts[word], word))
    if not known:
        return ()
    columns = column_of(known)
    named: dict[int, str] = {}
    for place in np.argsort(-apart[columns], kind="stable"):
        named.setdefault(int(columns[place]), known[place])  # of words that share a column the more frequent one
    return tuple(named.values())[:NUM_WORDS]
