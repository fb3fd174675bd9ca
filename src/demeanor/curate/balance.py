"""Length balance: as many pairs as possible such that length tells nothing about which reply was chosen.

Let d = length of the chosen reply - length of the rejected one. A set is balanced when its pairs with d > 0 can be
matched one to one with its pairs with d < 0 of about the same size: | |d| - |d'| | <= max(`SLACK`, `SHARE` * larger).
Pairs with d = 0 are free. So "the longer one wins" is right in exactly half of the pairs, and at every size of the
difference, as far as the tolerance tells sizes apart: the distribution of d is symmetric around 0.

The largest balanced subset is a maximum matching. Sorted by |d|, the partners that a pair may have are an interval, and
both its ends grow with |d|; so taking the smallest left of either side whenever the two fit is a maximum (Glover 1967,
matching in a convex bipartite graph). Among the many maxima that one is lopsided: where one side has a surplus, its
smallest pairs are taken. Each pair of the larger side is therefore exchanged for a free one nearer to its partner, in
seeded order, which leaves the number as it is. `tests/test_balance.py` compares with brute force.

(Not taken: bins of |d| with equal numbers of both signs. On hh-rlhf they keep 86 % where matching keeps 89.5 %, of at
most 89.6 % that any set with d > 0 as often as d < 0 can have; and in small held-out sets they lose much more. Weights
n / (2 n_+) and n / (2 n_-) within bins would drop nothing, but no objective here takes a weight for a pair.)
"""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np

SHARE = 0.1  # of the larger difference
SLACK = {"characters": 10, "words": 2, "tokens": 3}  # differences this near are the same size


def balanced(differences: np.ndarray, slack: float, seed: int) -> np.ndarray:
    """Which pairs to keep: the largest subset that is balanced.

    Args:
        differences: [pairs] int, length of the chosen reply less that of the rejected one.
        slack: the tolerance of small differences, in the same unit.
        seed: decides between pairs that fit equally well.

    Returns:
        [pairs] bool.
    """
    rng = np.random.default_rng(seed)
    longer, shorter = (_sorted(side, differences, rng) for side in (differences > 0, differences < 0))
    sizes = np.abs(differences)
    matched = _match(sizes[longer], sizes[shorter], slack)
    if len(longer) >= len(shorter):
        surplus, partners = longer, sizes[shorter[matched[:, 1]]]
        taken = matched[:, 0]
        kept_whole = shorter[matched[:, 1]]
    else:
        surplus, partners = shorter, sizes[longer[matched[:, 0]]]
        taken = matched[:, 1]
        kept_whole = longer[matched[:, 0]]
    keep = differences == 0
    keep[kept_whole] = True
    keep[surplus[_nearer(sizes[surplus], taken, partners, slack, rng)]] = True
    return np.asarray(keep)


def fits(one: int, other: int, slack: float) -> bool:
    """Are two differences of the same size, as far as we tell sizes apart?"""
    return abs(one - other) <= max(slack, SHARE * max(one, other))


def _sorted(mask: np.ndarray, differences: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Places of the pairs by the size of their difference; equals in seeded order."""
    places = rng.permutation(np.flatnonzero(mask))
    return places[np.argsort(np.abs(differences[places]), kind="stable")]


def _match(ones: np.ndarray, others: np.ndarray, slack: float) -> np.ndarray:
    """A maximum matching of two ascending lists: [pairs, 2] places."""
    found, i, j = [], 0, 0
    one, other = ones.tolist(), others.tolist()
    while i < len(one) and j < len(other):
        if fits(one[i], other[j], slack):
            found.append((i, j))
            i, j = i + 1, j + 1
        elif one[i] < other[j]:
            i += 1
        else:
            j += 1
    return np.array(found, np.int64).reshape(-1, 2)


def _nearer(
    sizes: np.ndarray, taken: np.ndarray, partners: np.ndarray, slack: float, rng: np.random.Generator
) -> np.ndarray:
    """`taken` with each place exchanged for a free one that is nearer to its partner, if there is one.

    Args:
        sizes: ascending, of the side that has pairs to spare.
        taken: places in it; `partners` are the sizes on the other side that they were matched with.
    """
    taken = taken.copy()
    used = np.zeros(len(sizes), bool)
    used[taken] = True
    free = [(int(sizes[place]), int(place)) for place in np.flatnonzero(~used)]
    for at in rng.permutation(len(taken)):
        partner = int(partners[at])
        right = bisect_left(free, (partner, -1))
        near = [spot for spot in (right - 1, right) if 0 <= spot < len(free)]
        best = min(near, key=lambda spot: abs(free[spot][0] - partner), default=None)
        if best is None or not fits(free[best][0], partner, slack):
            continue
        mine = int(sizes[taken[at]])
        if abs(free[best][0] - partner) < abs(mine - partner):
            place = free.pop(best)[1]
            insort(free, (mine, int(taken[at])))
            taken[at] = place
    return taken
