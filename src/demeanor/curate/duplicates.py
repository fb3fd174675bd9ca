"""Duplicates: the same pair twice, word for word or nearly so. The first one stays.

Two pairs are near-duplicates when their prompts are, and so are their replies taken together, the chosen with the
chosen and the rejected with the rejected one: two other answers to one question, or the same two labelled the other way
round, are none. A pair is dropped when it is near to an earlier one that is kept, not to one that was dropped itself;
so each dropped pair has its like among the kept ones.

Candidates are searched by the shingles of prompt and replies together: where the Jaccard index of both is t or more,
that of the whole is, since it is a weighted mean of the two. A long prompt that many pairs share makes all of them one
cluster, though, whatever their replies are; so a large cluster is taken apart by the replies alone, and by the prompts,
before its members are compared. What a cluster then costs is its size times the number of its pairs that stay.
"""

from __future__ import annotations

import numpy as np

from demeanor.audit.near import ALL_PAIRS, Shingles, clusters, exact_jaccard, near_duplicates
from demeanor.curate.texts import Texts
from demeanor.curate.traits import Traits

EXACT, NEAR = "exact duplicate", "near-duplicate"


def exact_duplicates(traits: Traits, kept: np.ndarray) -> dict[int, int]:
    """Place of each pair that repeats an earlier one -> the first one's place; `kept`: ascending places to look at."""
    texts = np.stack([traits.prompt[kept], traits.chosen[kept], traits.rejected[kept]], axis=1)
    _, first, which = np.unique(texts, axis=0, return_index=True, return_inverse=True)
    earliest = kept[first[which.ravel()]]  # `return_index` gives the first of equals
    return {int(place): int(own) for place, own in zip(kept, earliest, strict=True) if place != own}


def near_pairs(texts: Texts, kept: np.ndarray, threshold: float, seed: int) -> dict[int, int]:
    """Place of each pair that is near an earlier kept one -> that one's place.

    Args:
        kept: ascending places to look at.
        threshold: the least Jaccard index of the prompts, and of the replies.
    """
    labels = clusters(len(kept), near_duplicates(texts.whole.take(kept), threshold, seed=seed)[0])
    for view in (texts.replies, texts.prompt):
        labels = _taken_apart(labels, view, kept, threshold, seed)
    members = np.flatnonzero(np.bincount(labels)[labels] > 1)
    members = members[np.argsort(labels[members], kind="stable")]
    dropped: dict[int, int] = {}
    for cluster in np.split(kept[members], np.flatnonzero(np.diff(labels[members])) + 1):
        while len(cluster) > 1:  # its first is kept, since it is near to none that was kept before it
            near = _near(texts, cluster[0], cluster[1:], threshold)
            dropped |= dict.fromkeys(cluster[1:][near].tolist(), int(cluster[0]))
            cluster = cluster[1:][~near]
    return dropped


def _taken_apart(labels: np.ndarray, view: Shingles, kept: np.ndarray, threshold: float, seed: int) -> np.ndarray:
    """The clusters, those of more than ALL_PAIRS members split where nothing in `view` connects their parts."""
    members = np.flatnonzero(np.bincount(labels)[labels] > ALL_PAIRS)
    if not len(members):
        return labels
    own, inner = view.take(kept[members]), np.zeros(len(labels), np.int64)
    # one search misses one in 20 of the pairs at the threshold itself; two in other orders, one in 400
    links = np.concatenate([near_duplicates(own, threshold, seed=seed + more)[0] for more in (1, 2)])
    inner[members] = clusters(len(members), links)
    return np.unique(labels * len(labels) + inner, return_inverse=True)[1]


def _near(texts: Texts, place: int, others: np.ndarray, threshold: float) -> np.ndarray:
    """[others] bool; the replies first, which are shorter than prompts that many pairs share."""
    near = np.ones(len(others), bool)
    for view in (texts.replies, texts.prompt):
        left = np.flatnonzero(near)
        jaccard = exact_jaccard(view, np.full(len(left), place), view, others[left])
        near[left] = jaccard >= np.float32(threshold)
    return near
