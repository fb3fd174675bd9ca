"""The share that an imperfect judge would have found, had it made no errors: sensitivity and specificity put right.

Epidemiologists know the problem as the true prevalence behind an imperfect test.
"""

from __future__ import annotations

import math
from dataclasses import replace

from demeanor.records import Estimate
from demeanor.statistics import estimate_share

Count = tuple[float, float]  # hits, n


def correct_rate(hits: float, n: float, sensitivity: Count, specificity: Count, *, confidence: float) -> Estimate:
    """The share of replies that do violate, from the share that an imperfect judge calls so.

    The estimate is p = (q + Sp - 1) / (Se + Sp - 1) within [0, 1] (Rogan and Gladen 1978), with q = hits / n. Its
    interval knows that Se and Sp are estimates too (Lang and Reiczigel 2014): with z of the confidence, q' of n + z²
    draws (z²/2 hits added), Se' and Sp' of 2 draws more (1 hit added) and p' made of them, it is

        p' + d +- z sqrt(v(q') + p'² v(Se') + (1 - p')² v(Sp')) / (Se' + Sp' - 1),    v(x) = x (1 - x) / draws
        d = 2 z² (p' v(Se') - (1 - p') v(Sp'))

    A q that no p can make (fewer hits than the false alarms alone would be) says that the sensitivity and specificity
    are not those of these replies; then the exact interval of q is joined to it, so that it never has zero width.

    Args:
        hits, n: replies called violating, of how many that were drawn one by one.
        sensitivity: violating replies that the judge called so, of how many.
        specificity: other replies that it did not call so, of how many.

    Returns:
        No estimate when n is 0 or the judge tells nothing apart (Se + Sp <= 1).
    """
    from scipy.stats import norm

    num_prompts = int(n)
    if n <= 0 or min(sensitivity[1], specificity[1]) <= 0:
        return Estimate(None, None, None, num_prompts)
    z = float(norm.ppf((1.0 + confidence) / 2))
    youden = sensitivity[0] / sensitivity[1] + specificity[0] / specificity[1] - 1.0
    draws = (n + z * z, sensitivity[1] + 2.0, specificity[1] + 2.0)
    q, se, sp = (hits + z * z / 2) / draws[0], (sensitivity[0] + 1.0) / draws[1], (specificity[0] + 1.0) / draws[2]
    if youden <= 0 or se + sp <= 1.0:
        return Estimate(None, None, None, num_prompts)
    value = min(1.0, max(0.0, (hits / n + specificity[0] / specificity[1] - 1.0) / youden))
    p = (q + sp - 1.0) / (se + sp - 1.0)
    v_q, v_se, v_sp = (share * (1.0 - share) / count for share, count in zip((q, se, sp), draws, strict=True))
    shift = 2.0 * z * z * (p * v_se - (1.0 - p) * v_sp)
    width = z * math.sqrt(v_q + p * p * v_se + (1.0 - p) ** 2 * v_sp) / (se + sp - 1.0)
    low, high = max(0.0, p + shift - width), min(1.0, p + shift + width)
    if low >= high or not 0.0 <= (hits / n + specificity[0] / specificity[1] - 1.0) / youden <= 1.0:
        least, most = (estimate_share(end(hits), math.ceil(n), confidence) for end in (math.floor, math.ceil))
        low, high = min(low, least.low or 0.0), max(high, 1.0 if most.high is None else most.high)
    return Estimate(value, min(low, value), max(high, value), num_prompts)


def correct_difference(
    difference: Estimate, sensitivity: Count, specificity: Count, *, ratio: float = 1.0, confidence: float
) -> Estimate:
    """after - ratio * before of the true shares: x = (d + (1 - ratio) (Sp - 1)) / (Se + Sp - 1), d of the judged ones.

    Each side of the interval adds, in squares, that of d divided by Se + Sp - 1, and what the uncertainty of Se and Sp
    does to x (the delta method: dx/dSe = -x / (Se + Sp - 1), dx/dSp = (1 - ratio - x) / (Se + Sp - 1)).
    """
    from scipy.stats import norm

    if difference.value is None or min(sensitivity[1], specificity[1]) <= 0:
        return replace(difference, value=None, low=None, high=None)
    (se, v_se), (sp, v_sp) = (
        (hits / n, share * (1.0 - share) / (n + 2.0))
        for hits, n in (sensitivity, specificity)
        for share in ((hits + 1.0) / (n + 2.0),)
    )
    youden = se + sp - 1.0
    if youden <= 0:
        return replace(difference, value=None, low=None, high=None)
    free = (difference.value + (1.0 - ratio) * (sp - 1.0)) / youden
    value = max(-ratio, min(1.0, free))
    if difference.low is None or difference.high is None:
        return replace(difference, value=value, low=None, high=None)
    z = float(norm.ppf((1.0 + confidence) / 2))
    own = z * math.sqrt(free**2 * v_se + (1.0 - ratio - free) ** 2 * v_sp) / youden
    low = free - math.hypot((difference.value - difference.low) / youden, own)
    high = free + math.hypot((difference.high - difference.value) / youden, own)
    return replace(difference, value=value, low=max(-ratio, min(low, value)), high=min(1.0, max(high, value)))
