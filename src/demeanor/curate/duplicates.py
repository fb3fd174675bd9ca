"""Duplicates: the same pair twice, word for word or nearly so. The first one stays.

Two pairs are near-duplicates when their prompts are, and so are their replies taken together, the chosen with the
chosen and the rejected with the rejected one: two other answers to one question, or the same two labelled the other way
round, are none. A pair is dropped when it is near to an earlier one that is kept, not to one that was dropped itself;
so each dropped pair has its like among the kept ones.

Candidates are searched by the shingles of prompt and replies together: where the Jaccard index of both is t or more,
that of the whole is, since it is a weighted mean of the two.
"""

from __future__ import annotations

import numpy as np

from demeanor.audit.near import ALL_PAIRS, clusters, exact_jaccard, near_duplicates
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
    dropped: dict[int, int] = {}
    crowded = True
    while crowded:  # of a crowd of candidates not all pairs are listed: look again at who is left
        found, _ = near_duplicates(texts.whole.take(kept), threshold, seed=seed)
        candidates = kept[found]
        for shingles in (texts.prompt, texts.replies):
            jaccard = exact_jaccard(shingles, candidates[:, 0], shingles, candidates[:, 1])
            candidates = candidates[jaccard >= np.float32(threshold)]
        now = _later_ones(candidates)
        dropped |= now
        crowded = bool(now) and int(np.bincount(clusters(len(kept), found)).max(initial=0)) > ALL_PAIRS
        kept = kept[~np.isin(kept, list(now))]
    return dropped


def _later_ones(near: np.ndarray) -> dict[int, int]:
    """Of [pairs, 2] places that are near each other: those to drop -> the kept one that each is near to."""
    ordered = np.sort(near, axis=1)
    dropped: dict[int, int] = {}
    for earlier, later in ordered[np.lexsort((ordered[:, 0], ordered[:, 1]))].tolist():
        if later not in dropped and earlier not in dropped:
            dropped[later] = earlier
    return dropped
