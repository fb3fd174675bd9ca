"""P-values: did anything change, which claims hold together, and how many probes a limit needs, said before the run.

How limits and levels fit together. A verdict passes when *all* its limits hold: the hypothesis "some limit is broken"
is a union, and rejecting each of its parts at level a rejects the union at level a, whatever their number and however
they depend on each other (an intersection-union test: Berger 1982). So the gate needs no correction: a correction would
only make good models fail. But whoever reads of one limit of a verdict that failed, "this one holds", picks from many.
For such claims each limit's p-value is corrected over all limits of the verdict (Holm 1979), which holds under any
dependence; both are shown.

A limit holds when its whole two-sided interval is on the right side. Of the 1 - confidence that such an interval may
miss, about one half lies on the harmless side: a spare half, which skewed probabilities and mid-p intervals of few
prompts need (a mid-p end may err with nearly 1 - confidence, never with more). P-values here are doubled alike:
p <= 1 - confidence exactly when the interval holds. Each of both readings, "all hold" uncorrected and single claims by
Holm, keeps the level; both together err with at most twice as much (Bonferroni), with as much where the half is spare.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

EXACT_FLIPS = 13  # up to so many changed clusters every one of the 2^n sign patterns is counted
MASS_VARIATION = 2.0  # assumed of exact probabilities before a run: standard deviation over mean
MASS_SHARE = 0.5  # and the mean as a share of the limit
_BLOCK = 2_000_000  # signs held in memory at a time


def p_of_no_change(
    differences: Sequence[float], *, resamples: int, seed: int, clusters: Sequence[str | None] | None = None
) -> float | None:
    """Two-sided p-value of "nothing changed", paired: under it each cluster's difference could as well be the opposite.

    Where every difference is -1, 0 or 1 and stands alone it is McNemar's exact test (a binomial test of those that
    changed; McNemar 1947); else the sum over sign flips (Fisher 1935): all of them for few clusters, else `resamples`
    seeded ones, with the observed pattern counted among them. None without any difference.
    """
    if not differences:
        return None
    from demeanor.statistics import Sample

    sums = Sample(differences, resamples=resamples, seed=seed, ends=None, clusters=clusters).sums
    sums = sums[sums != 0]
    if sums.size == 0:
        return 1.0
    if np.isin(sums, (-1.0, 1.0)).all():
        from scipy.stats import binomtest

        return float(binomtest(int((sums > 0).sum()), sums.size).pvalue)
    observed = abs(float(sums.sum())) * (1 - 1e-12)
    if sums.size <= EXACT_FLIPS:
        patterns = np.arange(2**sums.size)[:, None] >> np.arange(sums.size) & 1
        return float((np.abs((2.0 * patterns - 1.0) @ sums) >= observed).mean())
    more = sum(int((np.abs(signs @ sums) >= observed).sum()) for signs in _signs(sums.size, resamples, seed))
    return (1 + more) / (resamples + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values, in the given order: the level at which each is rejected among all of them."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, worst = [1.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = worst
    return adjusted


def probes_for_share(bound: float, confidence: float) -> int | None:
    """The least number of probes of which none violates that shows a share of at most `bound`: the smallest n with
    1 - (tail)^(1/n) <= bound (Clopper and Pearson 1934). None when no number does."""
    if bound >= 1:
        return 1
    return None if bound <= 0 else math.ceil(math.log((1.0 - confidence) / 2) / math.log1p(-bound) - 1e-9)


def share_unseen(n: int, confidence: float) -> float:
    """How frequent a kind of prompt may be of which none of n probes is: 1 - (tail)^(1/n) (Clopper and Pearson)."""
    return -math.expm1(math.log((1.0 - confidence) / 2) / n)


def probes_for_power(bound: float, confidence: float, truth: float, power: float = 0.8) -> int | None:
    """Probes with one outcome each of which at most `bound` is shown with probability `power`, when `truth` is the
    share (exact binomial; the saw-tooth's last tooth below `power` decides). None when no number does."""
    from scipy.stats import binom

    if not 0 <= truth < bound < 1:
        return None
    tail = (1.0 - confidence) / 2

    def reached(hits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The least n that shows the bound with so many hits (upper end is decreasing in n), and the power at n."""
        low, high = hits + 1, np.full(hits.shape, 10_000_000)
        while (low < high).any():
            middle = (low + high) // 2
            # exact at none, else mid-p, as the intervals of statistics.py
            fewer = binom.cdf(np.maximum(0, hits - 1), middle, bound)
            shown = (binom.cdf(hits, middle, bound) + fewer) / 2 <= tail
            low, high = np.where(shown, low, middle + 1), np.where(shown, middle, high)
        return low, binom.cdf(hits, low, truth)

    sizes, chances = reached(np.arange(2000))
    # just before the next tooth begins the power is least
    least = np.append(binom.cdf(np.arange(1999), sizes[1:] - 1, truth), chances[-1])
    bad = np.nonzero(least < power)[0]
    first = 0 if bad.size == 0 else int(bad[-1]) + 1
    return int(sizes[first]) if first < sizes.size else None


def probes_for_mass(confidence: float) -> int:
    """Probes that show an exact probability to be under a limit, if its mean is MASS_SHARE of the limit and varies
    MASS_VARIATION times as much: the least n with t(n - 1) MASS_VARIATION / sqrt(n) <= 1 / MASS_SHARE - 1."""
    from scipy.stats import t

    tail, n = (1.0 - confidence) / 2, 2
    while t.ppf(1.0 - tail, n - 1) * MASS_VARIATION / math.sqrt(n) > 1.0 / MASS_SHARE - 1.0:
        n += 1
    return n


def _signs(size: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Rows of -1 and 1, in blocks [block, size] that bound the memory."""
    if size * resamples <= _BLOCK:
        yield _all_signs(size, resamples, seed)
        return
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, block := max(1, _BLOCK // size)):
        yield rng.integers(0, 2, (min(block, resamples - start), size)) * 2.0 - 1.0


@lru_cache(maxsize=4)  # the measures of a behaviour have the same probes
def _all_signs(size: int, resamples: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, (resamples, size)) * 2.0 - 1.0
