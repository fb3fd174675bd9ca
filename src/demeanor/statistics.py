"""Means with intervals that are honest at small n: over prompts, or over clusters of prompts that belong together.

A prompt is one draw, however many replies were sampled for it; so is a cluster (an attack's wrappers around one
question, prompts that are all but the same). With u_c a cluster's sum less the mean times its size, over G clusters
with N values in all, the variance of the mean is G / (G - 1) sum u_c^2 / N^2 (linearised, as of a ratio: Cochran 1977;
of counted outcomes by the jackknife, Tukey 1958, which is the same where clusters are of one size).
Clusters of unequal sizes n_c tell less than G: where G counts below (degrees of freedom of t, what did not occur) it is
the effective number N^2 / sum n_c^2 (Kish 1965), G where all are of one size. One cluster of 50 beside 50 of 1 counts
as 3.9; with G = 51 the intervals cover down to .78 in place of .95 (tests/test_clusters.py).

Four intervals, by what the values are. None is ever of zero width.

1. Every value is 0 or 1, and stands alone: of x of n the mid-p interval (Lancaster 1961), whose ends are the shares at
   which more than x, and half of x itself, have the probability `tail`. It covers about as often as it says, where the
   exact one of Clopper and Pearson (1934) covers too often. A mid-p value is more than half the exact one, so that an
   end errs with less than 2 tail, which is the gate's level. At 0 and at n of n it is the exact one.
2. Other counted outcomes in [0, 1] (rates of several replies a prompt, 0 and 1 in clusters): the same for the number of
   independent outcomes that would have this variance (Korn and Graubard 1998; here with the whole of Student's t). Its
   upper end is never below that of no hit at all, nor its lower end above that of hits alone: one violation is never
   better evidence than none. And it allows for prompts unlike all that were seen, as below, with 2 tail.
3. Differences of counted outcomes: what rose and what fell are such shares, each with its interval; they are put
   together as of two estimates whose correlation is known (Newcombe 1998, method 10; Zou and Donner 2008).
4. Everything else (exact probabilities, nats, their differences): the studentised bootstrap (Efron 1979; Hall 1988)
   over clusters, seeded; of unequal ones wider by the ratio of Student's t at the effective number to that at G. A
   percentile bootstrap covers 84 to 89 % of the time, not 95, at 20 very skewed values, and its misses lie on the side
   where a limit is passed (tests/test_coverage.py).

No resampling sees what did not occur. But when something occurs at none of G clusters, its share of all is at most s =
1 - tail^(1/G) (Clopper and Pearson; G effective). So where all values are the same, a mean m between two ends (0 and 1;
-1 and 1 for a difference of two such) is bounded by letting the share s lie at an end: [m - s (m - lowest), m + s
(highest - m)]. Without ends (nats, tokens), or with one value only that lies at no end, such values give no interval.

What no interval over n exact probabilities can exclude is a kind of prompt that none of the n is like.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache

import numpy as np

from demeanor.records import Estimate

Ends = tuple[float, float]
SHARE: Ends = (0.0, 1.0)  # a probability or a rate
_BLOCK = 2_000_000  # drawn values held in memory at a time
_ROUNDING = 1e-12  # values that differ by less, in relation to the largest, are the same
_MOST_OUTCOMES = 1000  # that a value is thought to be the rate of
_TINY = 1e-300
_LEAST_TAIL = 1e-12  # the smallest that an exact interval is asked for


def estimate_mean(
    values: Sequence[float | None],
    *,
    confidence: float,
    resamples: int,
    seed: int,
    ends: Ends | None = SHARE,
    outcomes: bool = False,
    clusters: Sequence[str | None] | None = None,
) -> Estimate:
    """The mean of the values that are known, one a prompt, with its two-sided interval; their order does not matter.

    Args:
        values: one a prompt; None (or not finite) where a prompt could not be scored, which is counted as `unscored`.
        confidence: of the interval, for example 0.95.
        resamples: bootstrap draws.
        seed: of the draws; the same seed and values give the same interval.
        ends: the least and the greatest value that a prompt can have; None where there is no such.
        outcomes: the values are counted outcomes (rates of sampled replies, say), not exact probabilities.
        clusters: the cluster of each value; None for a value (or for all) that stands alone.
    """
    sample = Sample(values, resamples=resamples, seed=seed, ends=ends, outcomes=outcomes, clusters=clusters)
    return sample.estimate(confidence)


def estimate_difference(
    before: Sequence[float | None],
    after: Sequence[float | None],
    *,
    confidence: float,
    resamples: int,
    seed: int,
    ends: Ends | None = SHARE,
    outcomes: bool = False,
    clusters: Sequence[str | None] | None = None,
) -> Estimate:
    """The mean of after - before, paired by prompt; a prompt that lacks either side is unscored.

    `ends` are those of either side, not of the difference.
    """
    sample = Sample(
        contrast(before, after), resamples=resamples, seed=seed, ends=reach(ends), outcomes=outcomes, clusters=clusters
    )
    return sample.estimate(confidence)


def estimate_share(hits: int, n: int, confidence: float) -> Estimate:
    """A share of counted outcomes, `hits` of `n`, with its exact two-sided interval; n = 0 gives no estimate."""
    if n == 0:
        return Estimate(None, None, None, 0)
    low, high = _clopper_pearson(hits, n, (1.0 - confidence) / 2)
    return Estimate(hits / n, low, high, n)


def contrast(before: Sequence[float | None], after: Sequence[float | None], ratio: float = 1.0) -> list[float | None]:
    """after - ratio * before of each prompt; None where a side is."""
    pairs = zip(before, after, strict=True)
    return [None if a is None or b is None else a - ratio * b for b, a in pairs]


def reach(ends: Ends | None, ratio: float = 1.0) -> Ends | None:
    """The ends of `contrast`, for sides that lie between `ends`."""
    return None if ends is None else (ends[0] - ratio * ends[1], ends[1] - ratio * ends[0])


class Sample:
    """The known values of a measure, and every interval of their mean; arguments are those of `estimate_mean`."""

    def __init__(
        self,
        values: Sequence[float | None],
        *,
        resamples: int,
        seed: int,
        ends: Ends | None = SHARE,
        outcomes: bool = False,
        clusters: Sequence[str | None] | None = None,
    ) -> None:
        named = clusters if clusters is not None else [None] * len(values)
        known = [(v, c) for v, c in zip(values, named, strict=True) if v is not None and math.isfinite(v)]
        self.n, self.unscored = len(known), len(values) - len(known)
        self.ends, self.outcomes, self._resamples, self._seed = ends, outcomes, resamples, seed
        self._known = known
        self._values = np.sort(np.array([value for value, _ in known], dtype=np.float64))
        self.sums, self._sizes = _clustered(known)  # one entry a cluster
        self.value = float(self._values.mean()) if known else None
        # of all clusters; what differs within one only tells nothing of how clusters differ
        rest = np.abs(self.sums - (self.value or 0.0) * self._sizes)
        scale = np.abs(self._values).max(initial=0.0) * self._sizes.max(initial=0.0)
        self._same = bool((rest <= _ROUNDING * scale).all())
        self._binary = ends == SHARE and bool(np.isin(self._values, SHARE).all())

    @property
    def num_clusters(self) -> int:
        return int(self.sums.size)

    @property
    def num_effective(self) -> float:
        """How many clusters of one size tell as much (Kish 1965): N^2 / sum n_c^2, at most their number G."""
        return float(self._sizes.sum() ** 2 / (self._sizes @ self._sizes)) if self.n else 0.0

    def estimate(self, confidence: float) -> Estimate:
        low, high = self._interval((1.0 - confidence) / 2)
        clusters = self.num_clusters if self.num_clusters < self.n else None
        return Estimate(self.value, low, high, self.n, self.unscored, clusters)

    def p_at_most(self, bound: float) -> float:
        """Against "the mean is greater than `bound`": the least 1 - confidence whose whole interval is at most it.

        Twice the one-sided p-value of the test that the interval inverts: for 0 and 1 the binomial test's mid-p, the
        exact one at none and at all.
        """
        return self._least_level(lambda low, high: high <= bound)

    def p_at_least(self, bound: float) -> float:
        """Against "the mean is less than `bound`"; the same."""
        return self._least_level(lambda low, high: low >= bound)

    def p_between(self, low: float, high: float) -> float:
        """Against "the mean is outside of [low, high]": two one-sided tests, both of which must reject (TOST;
        Schuirmann 1987; doubled like the others)."""
        return max(self.p_at_most(high), self.p_at_least(low))

    def _least_level(self, holds: Callable[[float, float], bool]) -> float:
        def right(tail: float) -> bool:
            low, high = self._interval(tail)
            return low is not None and high is not None and holds(low, high)

        inside, outside = 0.49, _LEAST_TAIL if self._is_exact else 1.0 / (self._resamples + 1)
        if not right(inside):
            return 1.0
        if right(outside):
            return 2 * outside
        while inside / outside > 1.0 + 1e-4:
            middle = math.sqrt(inside * outside)
            inside, outside = (middle, outside) if right(middle) else (inside, middle)
        return 2 * inside

    @property
    def _is_exact(self) -> bool:
        """No bootstrap is needed."""
        return self._same or self._is_share or self._parts is not None

    @property
    def _is_share(self) -> bool:
        return self.ends == SHARE and (self._binary or self.outcomes)

    @cached_property
    def _parts(self) -> tuple[Sample, Sample] | None:
        """Of a difference of counted outcomes: what rose, and what fell, each as a share of the way to its end."""
        if not self.outcomes or self.ends is None or not self.ends[0] < 0.0 < self.ends[1]:
            return None
        clusters = [cluster for _, cluster in self._known]

        def part(end: float) -> Sample:
            values = [max(0.0, value / end) for value, _ in self._known]
            return Sample(values, resamples=self._resamples, seed=self._seed, outcomes=True, clusters=clusters)

        return part(self.ends[1]), part(self.ends[0])

    def _interval(self, tail: float) -> tuple[float | None, float | None]:
        if self.value is None:
            return None, None
        mean, ends = self.value, self.ends
        if self._same:
            if ends is None or (self.num_clusters == 1 and mean not in ends):
                return None, None
            share = self._unseen(tail)
            low, high = mean - share * (mean - ends[0]), mean + share * (ends[1] - mean)
        elif self._binary and self.num_clusters == self.n:
            low, high = _mid_p(self._values.sum(), self.n, tail)
        elif self.num_clusters == 1:
            return None, None  # nothing is known of how clusters differ
        elif self._is_share:
            (low, high), share, rare = self._korn_graubard(tail), self._unseen(tail), self._unseen(2.0 * tail)
            low, high = min(low, 1.0 - share, mean * (1.0 - rare)), max(high, share, mean + rare * (1.0 - mean))
        elif self._parts is not None:
            low, high = self._risen_less_fallen(*self._parts, tail)
        else:
            low, high = self._studentised(tail)
        if ends is not None:
            low, high = max(low, ends[0]), min(high, ends[1])
        return (low, high) if low < high else (None, None)

    def _unseen(self, tail: float) -> float:
        """The greatest share of what occurred at none of the clusters."""
        return float(1.0 - tail ** (1.0 / self.num_effective))

    def _risen_less_fallen(self, risen: Sample, fallen: Sample, tail: float) -> tuple[float, float]:
        """Of u - v, of two estimates with intervals and their correlation r, the lower end is u - v less the root of
        a^2 + b^2 - 2 r a b, with a from u down to its lower end and b from v up to its upper (Zou and Donner 2008)."""
        mean, (least, most) = self.value or 0.0, self.ends or SHARE
        (u_down, u_up), (v_down, v_up) = (
            (scale * down, scale * up)
            for scale, (down, up) in ((most, risen._reach(tail)), (-least, fallen._reach(tail)))
        )
        u, v = most * risen._jackknife_error, -least * fallen._jackknife_error
        product = (u * u + v * v - self._jackknife_error**2) / 2  # r u v, by the variance of u - v
        # what rises and falls together, in the same clusters, would take the ends towards each other: not relied on
        together = max(-1.0, min(0.0, product / (u * v))) if u * v > 0.0 else 0.0

        def joined(a: float, b: float) -> float:
            return math.sqrt(a * a + b * b - 2.0 * together * a * b)

        return mean - joined(u_down, v_up), mean + joined(u_up, v_down)

    def _reach(self, tail: float) -> tuple[float, float]:
        """How far below and above the mean the interval ends; there must be one."""
        low, high = self._interval(tail)
        assert self.value is not None and low is not None and high is not None
        return self.value - low, high - self.value

    @cached_property
    def _error(self) -> float:
        """Standard error of the mean."""
        rest = self.sums - float(self.value or 0.0) * self._sizes
        count = self.num_clusters
        return math.sqrt(count / (count - 1) * float(rest @ rest)) / self.n

    @cached_property
    def _jackknife_error(self) -> float:
        """The same where clusters are of one size. A large one draws the mean to itself, so that its rest is too small:
        here each is left out of the mean that it is compared with (Tukey 1958; Bell and McCaffrey 2002)."""
        rest = (self.sums - float(self.value or 0.0) * self._sizes) / (self.n - self._sizes)
        count = self.num_clusters
        return math.sqrt((count - 1) / count * float(rest @ rest))

    def _korn_graubard(self, tail: float) -> tuple[float, float]:
        from scipy.special import ndtri, stdtrit  # as scipy.stats' ppf, without its checks, which take most of the time

        mean = float(self.value or 0.0)
        shrink = float(ndtri(tail) / stdtrit(self.num_effective - 1, tail)) ** 2
        most = self.n * _MOST_OUTCOMES  # where the values hardly differ, however many they would seem to be
        count = max(1.0, min(most, shrink * mean * (1.0 - mean) / max(_TINY, self._jackknife_error**2)))
        return _mid_p(mean * count, count, tail)

    def _studentised(self, tail: float) -> tuple[float, float]:
        """[mean - t_high error, mean - t_low error]; t_low and t_high cut off `tail` of the resampled t.

        A resample without any spread has no t; where the quantile is such a one, or beyond the draws, the furthest t
        that is finite or Student's stands in, whichever is further.
        """
        from scipy.special import stdtrit

        place = int(tail * (self._resamples + 1)) - 1
        student = float(stdtrit(self.num_clusters - 1, 1.0 - tail))
        wider = float(stdtrit(self.num_effective - 1, 1.0 - tail)) / student  # 1 of clusters of one size

        def end(drawn: np.ndarray) -> float:
            """Of one side's t, ascending, how far the interval reaches on that side, in standard errors."""
            found = float(drawn[-1 - place]) if place >= 0 else math.inf
            reached = max(0.0, found) if math.isfinite(found) else max(student, *drawn[np.isfinite(drawn)][-1:])
            return float(f"{reached * wider:.12g}")  # the last bits depend on how many threads summed

        mean, drawn = float(self.value or 0.0), self._resampled_t
        return mean - end(drawn) * self._error, mean + end(-drawn[::-1]) * self._error

    @cached_property
    def _resampled_t(self) -> np.ndarray:
        """(resampled mean - mean) / its own standard error, sorted [resamples]; without spread: infinite."""
        sizes, count = self._sizes, self.num_clusters
        rest = self.sums - float(self.value or 0.0) * sizes
        parts = np.stack([rest, sizes, rest * rest, rest * sizes, sizes * sizes], axis=1)
        sums = np.concatenate([drawn @ parts for drawn in _draws(count, self._resamples, self._seed)])
        shift = sums[:, 0] / sums[:, 1]
        spread = sums[:, 2] - 2 * shift * sums[:, 3] + shift**2 * sums[:, 4]
        flat = spread <= _ROUNDING * float((rest * rest).max())
        error = np.sqrt(count / (count - 1) * np.where(flat, 1.0, spread)) / sums[:, 1]
        return np.sort(np.where(flat, np.copysign(np.inf, shift), shift / error))


def _clustered(known: list[tuple[float, str | None]]) -> tuple[np.ndarray, np.ndarray]:
    """(sum, number) of each cluster's values, in an order that depends on them alone."""
    groups: dict[object, list[float]] = {}
    for place, (value, cluster) in enumerate(known):
        groups.setdefault(place if cluster is None else cluster, []).append(value)
    pairs = sorted((math.fsum(own) if len(own) > 1 else own[0], float(len(own))) for own in groups.values())
    table = np.array(pairs, dtype=np.float64).reshape(len(pairs), 2)
    return table[:, 0].copy(), table[:, 1].copy()


def _clopper_pearson(hits: float, n: float, tail: float) -> tuple[float, float]:
    """The exact interval of `hits` of `n` (Clopper and Pearson 1934), `tail` on either side."""
    from scipy.special import betaincinv

    low = 0.0 if hits <= 0 else float(betaincinv(hits, n - hits + 1, tail))
    high = 1.0 if hits >= n else float(betaincinv(hits + 1, n - hits, 1.0 - tail))
    return low, high


def _mid_p(hits: float, n: float, tail: float) -> tuple[float, float]:
    """The mid-p interval of `hits` of `n`, neither of which need be whole; at 0 and at n of n the exact one.

    The chance of more than x hits at a share p is I_p(x + 1, n - x), of x or more I_p(x, n - x + 1), the regularised
    incomplete beta function; mid-p is halfway between.
    """
    if hits <= 0 or hits >= n:
        return _clopper_pearson(hits, n, tail)
    from scipy.optimize import brentq
    from scipy.special import betainc, betaincinv

    def end(chance: float) -> float:
        def excess(p: float) -> float:
            return float(betainc(hits, n - hits + 1, p) + betainc(hits + 1, n - hits, p)) / 2 - chance

        low, high = (float(betaincinv(hits + more, n - hits + 1 - more, chance)) for more in (0, 1))
        return low if excess(low) >= 0 else high if excess(high) <= 0 else float(brentq(excess, low, high, xtol=1e-15))

    return min(hits / n, end(tail)), max(hits / n, end(1.0 - tail))  # at tails near 1/2 an end may lie beyond


def _draws(size: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of `size` clusters is drawn, in blocks of resamples [block, size] that bound the memory."""
    if size * resamples <= _BLOCK:
        yield _all_draws(size, resamples, seed)
        return
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // size)
    for start in range(0, resamples, block):
        yield _counted(rng, min(block, resamples - start), size)


@lru_cache(maxsize=4)  # the measures of a behaviour have the same probes
def _all_draws(size: int, resamples: int, seed: int) -> np.ndarray:
    return _counted(np.random.default_rng(seed), resamples, size)


def _counted(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    drawn = rng.integers(0, size, (count, size)) + size * np.arange(count)[:, None]
    return np.bincount(drawn.ravel(), minlength=count * size).reshape(count, size).astype(np.float64)
