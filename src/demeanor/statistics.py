"""Means with intervals: a seeded bootstrap over prompts, and an exact interval where a bootstrap would be blind.

A percentile bootstrap (Efron 1979) resamples the prompts, so that several replies of one prompt count as one draw. It
cannot see what did not occur: of n values that are all the same it makes an interval of zero width. But when something
occurs at none of n prompts, its share of all prompts is at most s = 1 - (tail)^(1/n) (Clopper and Pearson 1934). So a
mean m of values that lie between two ends (0 and 1; -1 and 1 for a difference of two such) is bounded by letting the
share s of the prompts lie at an end:

    [m - s (m - lowest), m + s (highest - m)]

That is the interval of values that are all the same (Clopper and Pearson's own at 0 and n of n), and the least interval
of counted outcomes, so that one violation is never better evidence than none. Without ends (nats, tokens), or with one
value only that lies at no end, values that are all the same give no interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from demeanor.records import Estimate

Ends = tuple[float, float]
SHARE: Ends = (0.0, 1.0)  # a probability or a rate
_BLOCK = 2_000_000  # drawn values held in memory at a time
_ROUNDING = 1e-12  # values that differ by less, in relation to the largest, are the same


def estimate_mean(
    values: Sequence[float | None],
    *,
    confidence: float,
    resamples: int,
    seed: int,
    ends: Ends | None = SHARE,
    outcomes: bool = False,
) -> Estimate:
    """The mean of the values that are known, one a prompt, with its two-sided interval; their order does not matter.

    Args:
        values: one a prompt; None (or not finite) where a prompt could not be scored, which is counted as `unscored`.
        confidence: of the interval, for example 0.95.
        resamples: bootstrap draws.
        seed: of the draws; the same seed and values give the same interval.
        ends: the least and the greatest value that a prompt can have; None where there is no such.
        outcomes: the values are counted outcomes (rates of sampled replies, say), not exact probabilities.
    """
    known = np.sort(np.array([value for value in values if is_known(value)], dtype=np.float64))
    unscored = len(values) - known.size
    if known.size == 0:
        return Estimate(None, None, None, 0, unscored)
    low, high = _interval(known, confidence, resamples, seed, ends, outcomes)
    return Estimate(float(known.mean()), low, high, int(known.size), unscored)


def estimate_difference(
    before: Sequence[float | None],
    after: Sequence[float | None],
    *,
    confidence: float,
    resamples: int,
    seed: int,
    ends: Ends | None = SHARE,
    outcomes: bool = False,
) -> Estimate:
    """The mean of after - before, paired by prompt; a prompt that lacks either side is unscored.

    `ends` are those of either side, not of the difference.
    """
    pairs = zip(before, after, strict=True)
    differences = [None if a is None or b is None else a - b for b, a in pairs]
    reach = None if ends is None else (ends[0] - ends[1], ends[1] - ends[0])
    return estimate_mean(
        differences, confidence=confidence, resamples=resamples, seed=seed, ends=reach, outcomes=outcomes
    )


def estimate_share(hits: int, n: int, confidence: float) -> Estimate:
    """A share of counted outcomes, `hits` of `n`, with its exact two-sided interval; n = 0 gives no estimate."""
    if n == 0:
        return Estimate(None, None, None, 0)
    low, high = _clopper_pearson(hits, n, (1.0 - confidence) / 2)
    return Estimate(hits / n, low, high, n)


def is_known(value: float | None) -> bool:
    """Is it a number? None and what is not finite are no evidence."""
    return value is not None and math.isfinite(value)


def _interval(
    values: np.ndarray, confidence: float, resamples: int, seed: int, ends: Ends | None, outcomes: bool
) -> tuple[float | None, float | None]:
    mean, tail = float(values.mean()), (1.0 - confidence) / 2
    same = bool(np.ptp(values) <= _ROUNDING * np.abs(values).max())
    if same and (ends is None or (values.size == 1 and mean not in ends)):
        return None, None
    if ends == SHARE and np.isin(values, SHARE).all():
        return _clopper_pearson(int(values.sum()), values.size, tail)
    low = high = mean
    if not same:
        means = _resampled_means(values, resamples, seed)
        low, high = (float(end) for end in np.quantile(means, [tail, 1.0 - tail]))
    if ends is not None and (same or outcomes):
        share = 1.0 - tail ** (1.0 / values.size)
        low = min(low, mean - share * (mean - ends[0]))
        high = max(high, mean + share * (ends[1] - mean))
    return (low, high) if low < high else (None, None)


def _clopper_pearson(hits: int, n: int, tail: float) -> tuple[float, float]:
    """The exact interval of `hits` of `n` (Clopper and Pearson 1934), `tail` on either side."""
    from scipy.stats import beta

    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, n - hits + 1))
    high = 1.0 if hits == n else float(beta.ppf(1.0 - tail, hits + 1, n - hits))
    return low, high


def _resampled_means(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    block = max(1, _BLOCK // values.size)
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        means[start : start + count] = values[rng.integers(0, values.size, (count, values.size))].mean(axis=1)
    return means
