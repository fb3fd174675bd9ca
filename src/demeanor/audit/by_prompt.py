"""Pairs of one prompt count together: intervals and folds that do not take them for independent draws."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from demeanor.audit.check import Scope
from demeanor.records import Estimate, PreferencePair, flat_text


def prompt_keys(pairs: Sequence[PreferencePair], scope: Scope) -> np.ndarray:
    """A look. [pairs] int64: hash of the prompt's last turn with case and spacing flattened, as the split takes it."""
    texts = (flat_text(pair.prompt[-1].content) for pair in pairs)
    keys = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(b"".join(keys), dtype=np.int64).copy()


def share_by_prompt(hits: np.ndarray, prompts: np.ndarray, confidence: float) -> Estimate:
    """The share of the pairs that hit, and its two-sided interval with the prompts as the sampled units.

    The interval is Clopper and Pearson's with the effective number of pairs n* = p (1 - p) / v, at most n, where v is
    the linearised variance of the share over the prompts (Korn and Graubard 1998, Survey Methodology 24:193). When
    every prompt has one pair it is the exact one. Where all pairs hit, or none, n* is the number of prompts.

    Args:
        hits: [pairs] between 0 and 1; a tie is a half.
        prompts: [pairs] which prompt each pair has.
    """
    from scipy.stats import beta

    n = hits.size
    if n == 0:
        return Estimate(None, None, None, 0)
    share = float(hits.mean())
    different, which = np.unique(prompts, return_inverse=True)
    if different.size == n and np.isin(hits, (0, 1)).all():
        effective = float(n)
    else:
        variance = _variance(hits - share, which)
        effective = min(float(n), share * (1 - share) / variance) if variance > 0 else float(different.size)
    tail, found = (1 - confidence) / 2, share * effective
    low = 0.0 if share <= 0 else float(beta.ppf(tail, found, effective - found + 1))
    high = 1.0 if share >= 1 else float(beta.ppf(1 - tail, found + 1, effective - found))
    return Estimate(share, low, high, n)


def mean_by_prompt(values: np.ndarray, prompts: np.ndarray, confidence: float) -> Estimate:
    """The mean over the pairs of values without ends, and Student's interval with the prompts as the sampled units."""
    from scipy.stats import t

    if values.size == 0:
        return Estimate(None, None, None, 0)
    mean, (different, which) = float(values.mean()), np.unique(prompts, return_inverse=True)
    variance = _variance(values - mean, which)
    if different.size < 2 or variance <= 0:
        return Estimate(mean, None, None, values.size)
    reach = float(t.ppf((1 + confidence) / 2, different.size - 1)) * variance**0.5
    return Estimate(mean, mean - reach, mean + reach, values.size)


def area_by_prompt(chosen: np.ndarray, rejected: np.ndarray, prompts: np.ndarray, confidence: float) -> Estimate:
    """Area under the ROC curve of a score that is to tell chosen replies from rejected ones; ties are a half.

    It is the share of (chosen, rejected) over all replies, not within a pair, in which the chosen one scores higher.
    The interval is DeLong's (1988) with the components summed over each prompt (Obuchowski 1997, Biometrics 53:567), on
    the logit scale. It has none with fewer than two prompts, or where the scores part the replies wholly.
    """
    from scipy.stats import norm

    n = chosen.size
    if n == 0:
        return Estimate(None, None, None, 0)
    below = _place(np.sort(rejected), chosen) / n  # [pairs] share of the rejected that score lower, ties half
    above = 1 - _place(np.sort(chosen), rejected) / n
    area = float(below.mean())
    different, which = np.unique(prompts, return_inverse=True)
    variance = _variance(below + above - 2 * area, which)
    if different.size < 2 or not 0 < area < 1 or variance <= 0:
        return Estimate(area, None, None, n)
    reach = float(norm.ppf((1 + confidence) / 2)) * variance**0.5 / (area * (1 - area))
    low, high = (1 / (1 + (1 - area) / area * np.exp(side * reach)) for side in (1, -1))
    return Estimate(area, float(low), float(high), n)


def folds_by_prompt(prompts: np.ndarray, seed: int, count: int = 5) -> np.ndarray:
    """[pairs] int: a fold for each pair, all pairs of a prompt in one; of about equal size."""
    different, which, sizes = np.unique(prompts, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(different.size)
    ends = np.cumsum(sizes[order])
    folds = np.empty(different.size, np.int8)
    folds[order] = np.minimum((ends - sizes[order] / 2) * count // max(prompts.size, 1), count - 1)
    return folds[which]


def _variance(residuals: np.ndarray, which: np.ndarray) -> float:
    """Of the mean of what the residuals are of, over the prompts `which` names by number (Taylor linearisation)."""
    sums = np.bincount(which, weights=residuals)
    return float(sums @ sums) / residuals.size**2 * sums.size / max(sums.size - 1, 1)


def _place(ordered: np.ndarray, values: np.ndarray) -> np.ndarray:
    left, right = np.searchsorted(ordered, values, "left"), np.searchsorted(ordered, values, "right")
    return (left + right) / 2
