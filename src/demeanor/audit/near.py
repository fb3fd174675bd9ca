"""Near-duplicates of many texts: word n-grams, MinHash, banded locality-sensitive hashing, then the exact Jaccard.

A text is the set of its shingles (Broder, On the resemblance and containment of documents, 1997): n-grams of its
words, casefolded, without punctuation and blanks, as 32-bit hashes. Two texts resemble each other as the Jaccard
index of their sets, J = |A and B| / |A or B|. A random order of all hashes makes one of A the first, and the first ones
of A and B are the same with probability J. So with b bands of r orders each, the probability that A and B have the same
firsts in all orders of some band is (Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, section 3.4)

    P(J) = 1 - (1 - J^r)^b

Texts that meet in a band are candidates; their exact J is then computed from their sets, so that nothing is reported
that is not there. r is the largest for which P(threshold) >= RECALL with at most MAX_ORDERS orders: .95 at the
threshold itself, more above it (for a threshold of .5: r = 4, b = 47, P(.5) = .952, P(.55) = .989, P(.6) = .9985).
An order is the 64-bit product of a random odd number with the hash, plus a random one (multiply-shift; Dietzfelbinger
et al. 1997). Bands are computed one after another, so that no signature of a text is ever kept.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from demeanor.audit.shingles import Shingles, distinct, mixed, offsets_of, shingle

__all__ = ["Shingles", "bands_for", "clusters", "exact_jaccard", "near_duplicates", "shingle"]

RECALL = 0.95  # of pairs at the threshold
MAX_ORDERS = 192
ALL_PAIRS = 64  # texts of a bucket of which each is compared with each
_CHUNK = 1 << 16  # shingles that are put in order in one go: 512 KB
_CANDIDATES = 1 << 20  # that are held before they are compared
_COMPARED = 1 << 22  # shingles that are compared in one go


def near_duplicates(
    shingles: Shingles, threshold: float, *, seed: int = 0, other: Shingles | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of texts whose Jaccard index is `threshold` or more.

    Texts with the same set count as one: the first stands for all of them in pairs with others, and each other is
    paired with that first. Where more than ALL_PAIRS texts meet in a band, each is compared with one for all and with
    its neighbour only, in a new random order each time, and not where they are connected already: such a cluster is
    found, but not all its pairs are listed.

    Args:
        threshold: in (0, 1].
        seed: of the random orders.
        other: look for pairs of a text of `shingles` with one of `other` instead. Of texts with the same set, those
            after the first are paired with the closest on the other side.

    Returns:
        pairs [m, 2] int64, in rising order: places i < j in `shingles`, or i in `shingles` and j in `other`.
        jaccard [m] float32.
    """
    assert 0 < threshold <= 1, "a Jaccard index to reach"
    joined = shingles if other is None else Shingles.join([shingles, other])
    search = _Search(joined, len(shingles), threshold)
    search.compare(*search.equals())
    if threshold < 1:
        orders, bands = bands_for(threshold)
        rng = np.random.default_rng(seed)
        for _ in range(bands):
            numbers = rng.integers(0, 2**64, (orders, 2), dtype=np.uint64) | np.array([1, 0], np.uint64)
            search.look_in(_band(search.firsts, numbers), rng)
    pairs, jaccard = search.result()
    if other is not None:
        pairs, jaccard = _spread(pairs, jaccard, search.first, len(shingles))
        pairs[:, 1] -= len(shingles)
    return pairs, jaccard


def clusters(num: int, pairs: np.ndarray) -> np.ndarray:
    """[num] int64: texts that `pairs` [m, 2] connect, directly or through others, have the same number."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(num, num))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def bands_for(threshold: float) -> tuple[int, int]:
    """(r, b): orders a band and bands for a threshold below 1; see above."""
    found = (1, _num_bands(threshold, 1))
    for orders in range(2, MAX_ORDERS + 1):
        bands = _num_bands(threshold, orders)
        if orders * bands <= MAX_ORDERS:
            found = (orders, bands)
    return found


def _num_bands(threshold: float, orders: int) -> int:
    """The least b for which 1 - (1 - threshold^r)^b >= RECALL."""
    return int(np.ceil(np.log1p(-RECALL) / np.log1p(-(threshold**orders)))) if threshold**orders > 1e-9 else 1 << 30


class _Search:
    """Candidates go in, those that are near enough are kept.

    Places are those of `shingles`. Bands are about the first of each group of texts with the same set: `firsts`, which
    stand at `places`.
    """

    def __init__(self, shingles: Shingles, num_own: int, threshold: float) -> None:
        num = len(shingles)
        self.shingles, self.threshold, self.num_own = shingles, threshold, num_own
        self._across, self._sizes, self._digests = num_own < num, shingles.sizes, _digests(shingles)
        filled = np.flatnonzero(self._sizes)
        keys = self._digests[filled] ^ mixed((filled >= num_own).astype(np.uint64))  # a side has its own firsts
        _, first, of = np.unique(keys, return_index=True, return_inverse=True)
        self.first = np.full(num, -1, np.int64)  # -1: a text without words
        self.first[filled] = filled[first[of]]
        self.places = np.sort(filled[first])
        self.firsts = shingles if len(self.places) == num else shingles.take(self.places)
        self._keys, self._jaccard = np.empty(0, np.int64), np.empty(0, np.float32)  # of the pairs that are kept
        self._waiting: list[np.ndarray] = []
        self._labels, self._num_labelled = np.arange(num), 0

    def equals(self) -> tuple[np.ndarray, np.ndarray]:
        """Each text that has the set of an earlier one, after that one; or, across the sides, firsts with one set."""
        if not self._across:
            later = np.flatnonzero((self.first >= 0) & (self.first != np.arange(len(self.first))))
            return self.first[later], later
        own, others = self.places[self.places < self.num_own], self.places[self.places >= self.num_own]
        _, i, j = np.intersect1d(self._digests[own], self._digests[others], return_indices=True)
        return own[i], others[j]

    def look_in(self, keys: np.ndarray, rng: np.random.Generator) -> None:
        """Compare firsts that have the same key [firsts] uint64: a bucket of a band."""
        num_own = int(np.searchsorted(self.places, self.num_own))
        shuffled = np.concatenate([rng.permutation(num_own), rng.permutation(len(keys) - num_own) + num_own])
        order = shuffled[np.argsort(keys[shuffled], kind="stable")]  # in a bucket: own texts, then others
        same = np.flatnonzero(keys[order][1:] == keys[order][:-1])
        if not len(same):
            return
        members, begins = self.places[order], np.flatnonzero(np.diff(same, prepend=-2) > 1)
        starts, lengths = same[begins], np.diff(begins, append=len(same)) + 1
        large = lengths > ALL_PAIRS
        if large.any():
            self._look_in_large(members, starts[large], lengths[large])
            starts, lengths = starts[~large], lengths[~large]
        for distance in range(1, ALL_PAIRS):
            starts, lengths = starts[lengths > distance], lengths[lengths > distance]
            left = _ranges(starts, lengths - distance)
            self.compare(members[left], members[left + distance])

    def _look_in_large(self, members: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> None:
        self._flush()
        if len(self._keys) > self._num_labelled:
            self._num_labelled, self._labels = len(self._keys), clusters(len(self.shingles), self._pairs())
        rest, first = _ranges(starts + 1, lengths - 1), np.repeat(starts, lengths - 1)
        links = [(first, rest), (rest - 1, rest)]
        if self._across:  # also each own text with the first of the others
            theirs = np.where(members[rest] >= self.num_own, rest, len(members))
            turn = np.minimum.reduceat(theirs, offsets_of(lengths - 1)[:-1])
            turns = np.repeat(turn, lengths - 1)
            links.append((rest[turns < len(members)], turns[turns < len(members)]))
        for left, right in links:
            left, right = members[left], members[right]
            apart = self._labels[left] != self._labels[right]
            self.compare(left[apart], right[apart])

    def compare(self, left: np.ndarray, right: np.ndarray) -> None:
        """Candidates: places [m] of one and of the other text."""
        low, high = np.minimum(left, right), np.maximum(left, right)
        sizes = self._sizes[low], self._sizes[high]
        possible = np.minimum(*sizes) >= self.threshold * np.maximum(*sizes)
        if self._across:
            possible &= (low < self.num_own) & (high >= self.num_own)
        self._waiting.append(low[possible] * len(self.shingles) + high[possible])
        if sum(map(len, self._waiting)) > _CANDIDATES:
            self._flush()

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        self._flush()
        return self._pairs(), self._jaccard

    def _pairs(self) -> np.ndarray:
        return np.stack(np.divmod(self._keys, max(len(self.shingles), 1)), axis=1)

    def _flush(self) -> None:
        keys, self._waiting = distinct(np.concatenate([np.empty(0, np.int64), *self._waiting])), []
        keys = keys[~np.isin(keys, self._keys, assume_unique=True)]
        low, high = np.divmod(keys, max(len(self.shingles), 1))
        jaccard = exact_jaccard(self.shingles, low, self.shingles, high)
        near = jaccard >= np.float32(self.threshold)
        keys, jaccard = np.concatenate([self._keys, keys[near]]), np.concatenate([self._jaccard, jaccard[near]])
        order = np.argsort(keys)
        self._keys, self._jaccard = keys[order], jaccard[order]


def exact_jaccard(shingles: Shingles, left: np.ndarray, other: Shingles, right: np.ndarray) -> np.ndarray:
    """[m] float32: the Jaccard index of text left[k] of `shingles` and right[k] of `other`; 0 where both are empty."""
    both = shingles.sizes[left] + other.sizes[right]
    jaccard, done = np.zeros(len(left), np.float32), np.cumsum(both)
    start = 0
    while start < len(left):
        before = done[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(done, before + _COMPARED, side="right")))
        some = slice(start, stop)
        one, two = shingles.take(left[some]), other.take(right[some])
        number = np.arange(stop - start, dtype=np.uint64) << np.uint64(32)
        keys = np.concatenate([np.repeat(number, one.sizes) | one.hashes, np.repeat(number, two.sizes) | two.hashes])
        keys.sort()
        shared = keys[1:][keys[1:] == keys[:-1]] >> np.uint64(32)  # each of the two sets has a hash once
        common = np.bincount(shared.astype(np.int64), minlength=stop - start)
        jaccard[some] = common / np.maximum(both[some] - common, 1)
        start = stop
    return jaccard


def _spread(pairs: np.ndarray, jaccard: np.ndarray, first: np.ndarray, num_own: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of firsts across the sides, and each other text with the closest of its first."""
    found, values = [pairs], [jaccard]
    for side, places in ((0, np.arange(num_own)), (1, np.arange(num_own, len(first)))):
        order = np.lexsort((pairs[:, 1 - side], -jaccard, pairs[:, side]))
        matched, best = np.unique(pairs[order, side], return_index=True)
        later = places[(first[places] >= 0) & (first[places] != places)]
        where = np.searchsorted(matched, first[later])
        known = where < len(matched)
        known[known] = matched[where[known]] == first[later[known]]
        closest = order[best[where[known]]]
        more = pairs[closest].copy()
        more[:, side] = later[known]
        found.append(more)
        values.append(jaccard[closest])
    pairs, jaccard = np.concatenate(found), np.concatenate(values)
    pairs, kept = np.unique(pairs, axis=0, return_index=True)
    return pairs, jaccard[kept]


def _band(shingles: Shingles, numbers: np.ndarray) -> np.ndarray:
    """[texts] uint64: one key for the firsts of a text in all orders of a band, each (odd factor, addend) [r, 2]."""
    keys = np.zeros(len(shingles), np.uint64)
    for start, stop in _chunks(shingles.offsets):
        begin = shingles.offsets[start]
        hashes = shingles.hashes[begin : shingles.offsets[stop]].astype(np.uint64)
        starts, ordered = shingles.offsets[start:stop] - begin, np.empty_like(hashes)
        for factor, addend in numbers:
            np.multiply(hashes, factor, out=ordered)
            ordered += addend
            keys[start:stop] = mixed(keys[start:stop] ^ np.minimum.reduceat(ordered, starts))
    return keys


def _digests(shingles: Shingles) -> np.ndarray:
    """[texts] uint64: the same for texts with the same set, and else different but for a chance of 2^-64."""
    digests = np.zeros(len(shingles), np.uint64)
    filled = np.flatnonzero(shingles.sizes)
    starts = np.append(shingles.offsets[filled], len(shingles.hashes))
    for start, stop in _chunks(starts):
        spread = mixed(shingles.hashes[starts[start] : starts[stop]].astype(np.uint64) + np.uint64(1))
        digests[filled[start:stop]] = np.add.reduceat(spread, starts[start:stop] - starts[start])
    return digests


def _chunks(offsets: np.ndarray) -> Iterator[tuple[int, int]]:
    """(start, stop) of texts that have about _CHUNK shingles together."""
    start, num = 0, len(offsets) - 1
    while start < num:
        stop = max(start + 1, int(np.searchsorted(offsets, offsets[start] + _CHUNK, side="right")) - 1)
        yield start, stop
        start = stop


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """start, start + 1, ... of each range, one after the other."""
    offsets = offsets_of(lengths)
    return np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
