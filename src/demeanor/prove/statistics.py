"""Means with intervals: a seeded bootstrap over prompts, and an exact interval where a bootstrap would be blind.

A percentile bootstrap (Efron 1979) resamples the prompts, so that several replies of one prompt count as one draw. When
all values are 0 or all are 1 it would give an interval of zero width; then the bound is Clopper and Pearson's (1934)
for 0 (or n) of n. When all values are the same otherwise, or there is one value only, no interval can be given.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from demeanor.records import Estimate


def estimate_mean(values: Sequence[float | None], *, confidence: float, resamples: int, seed: int) -> Estimate:
    """The mean of the values that are not None, one a prompt, with its two-sided interval.

    Args:
        values: one a prompt; None where a prompt could not be scored, which is counted as `unscored`.
        confidence: of the interval, for example 0.95.
        resamples: bootstrap draws.
        seed: of the draws; the same seed and values give the same interval.
    """
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    unscored = len(values) - len(known)
    if known.size == 0:
        return Estimate(None, None, None, 0, unscored)
    mean = float(known.mean())
    low, high = _interval(known, confidence, resamples, seed)
    return Estimate(mean, low, high, int(known.size), unscored)


def estimate_difference(
    before: Sequence[float | None], after: Sequence[float | None], *, confidence: float, resamples: int, seed: int
) -> Estimate:
    """The mean of after - before, paired by prompt; a prompt that lacks either side is unscored."""
    pairs = zip(before, after, strict=True)
    differences = [None if a is None or b is None else a - b for b, a in pairs]
    return estimate_mean(differences, confidence=confidence, resamples=resamples, seed=seed)


def _interval(values: np.ndarray, confidence: float, resamples: int, seed: int) -> tuple[float | None, float | None]:
    if np.ptp(values) == 0.0:
        if values[0] == 0.0:
            return 0.0, 1.0 - ((1.0 - confidence) / 2) ** (1.0 / values.size)
        if values[0] == 1.0:
            return ((1.0 - confidence) / 2) ** (1.0 / values.size), 1.0
        return None, None
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    block = max(1, 2_000_000 // values.size)  # bounds the memory of the drawn indices
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        means[start : start + count] = values[rng.integers(0, values.size, (count, values.size))].mean(axis=1)
    tail = (1.0 - confidence) / 2
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return float(low), float(high)
