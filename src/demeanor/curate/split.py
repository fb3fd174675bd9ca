"""Training and held-out pairs without leakage: whole clusters of prompts change sides, never parts of them.

Two pairs are in one cluster when their prompts, or only the last questions in them, are near-duplicates, or by a chain
of such. Within each source and behaviour together (a stratum) about the asked share of the pairs is held out: the
clusters are drawn in seeded order, and one is held out when no stratum of its pairs gets more than its share by it. So
a cluster that is larger than the share of its stratum is trained on.

The search for near-duplicates finds one at its own threshold with probability .95. So clusters are made from `LINK` on,
at which one of Jaccard `NEAR` is found with .998, and then the two sides are compared with each other, in new random
orders, until nothing of `NEAR` or more is found on both: what was found is linked, and the sides are drawn again.
"""

from __future__ import annotations

import numpy as np

from demeanor.audit.near import clusters, near_duplicates
from demeanor.curate.texts import Texts
from demeanor.curate.traits import Traits

NEAR = 0.5  # Jaccard of word 3-grams from which on the audit calls prompts near-duplicates
LINK = 0.4


def heldout_pairs(
    traits: Traits, texts: Texts, kept: np.ndarray, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which pairs are held out, and the cluster of each.

    Args:
        kept: [kept] ascending places of the pairs to split.
        fraction: of them to hold out.

    Returns:
        [kept] bool and [kept] int64.
    """
    views = [side.take(kept) for side in (texts.prompt, texts.question)]
    links = [near_duplicates(view, LINK, seed=seed)[0] for view in views]
    for digests in (traits.prompt[kept], traits.question[kept]):  # also texts without a word, which have no shingles
        links.append(_repeats(digests))
    attempt = 0
    while True:  # each round has at least one cluster less than the one before
        attempt += 1
        labels = clusters(len(kept), np.concatenate(links))
        held = heldout_clusters(labels, traits.strata[kept], traits.prompt[kept], fraction, seed)
        sides, found = (np.flatnonzero(held), np.flatnonzero(~held)), []
        for view in views:
            here, there = (view.take(side) for side in sides)
            pairs, jaccard = near_duplicates(here, LINK, seed=seed + attempt, other=there)
            pairs = pairs[jaccard >= np.float32(NEAR)]
            found.append(np.stack([sides[0][pairs[:, 0]], sides[1][pairs[:, 1]]], axis=1))
        if not sum(map(len, found)):
            return held, labels
        links += found


def _repeats(digests: np.ndarray) -> np.ndarray:
    """[links, 2]: each place whose digest occurs before, with the first place of it."""
    _, first, which = np.unique(digests, return_index=True, return_inverse=True)
    own = np.arange(len(digests))
    return np.asarray(np.stack([first[which], own], axis=1)[first[which] != own])


def heldout_clusters(
    labels: np.ndarray, strata: np.ndarray, keys: np.ndarray, fraction: float, seed: int
) -> np.ndarray:
    """Which pairs are held out.

    Args:
        labels: [pairs] the cluster of each.
        strata: [pairs] int64, its source and behaviour.
        keys: [pairs] uint64, digests of the prompts: a cluster's turn depends on them and the seed, not on the order
            of the pairs.
        fraction: of the pairs of each stratum; rounded, but at least one pair of the largest stratum.

    Returns:
        [pairs] bool.
    """
    held = np.zeros(len(labels), bool)
    if not len(labels) or fraction <= 0:
        return held
    names, counts = np.unique(strata, return_counts=True)
    room = dict(zip(names.tolist(), np.rint(counts * fraction).astype(int).tolist(), strict=True))
    if not any(room.values()):
        room[int(names[counts.argmax()])] = 1
    by_cluster = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(labels[by_cluster]) != 0])
    turns = np.minimum.reduceat(_shuffled(keys, seed)[by_cluster], starts)
    stops = np.r_[starts[1:], len(labels)]
    left = sum(room.values())
    for at in np.argsort(turns, kind="stable"):
        if not left:
            break
        places = by_cluster[starts[at] : stops[at]]
        wanted = dict(zip(*(part.tolist() for part in np.unique(strata[places], return_counts=True)), strict=True))
        if all(count <= room[name] for name, count in wanted.items()):
            held[places] = True
            left -= len(places)
            for name, count in wanted.items():
                room[name] -= count
    return held


def _shuffled(keys: np.ndarray, seed: int) -> np.ndarray:
    """Seeded, and without regard to the order: the finalizer of splitmix64 (Steele et al. 2014)."""
    mixed = keys.astype(np.uint64) + np.uint64((0x9E3779B97F4A7C15 * (seed + 1)) % 2**64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))
