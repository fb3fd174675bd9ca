"""Clusters of unequal sizes: they count as fewer, and the intervals and the gate keep their level."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
from conftest import contract_of

from demeanor.prove import prove_contract
from demeanor.records import Score
from demeanor.statistics import Sample

UNEQUAL = {"50 and 50 of 1": [50] + [1] * 50, "30, 20 and 50 of 1": [30, 20] + [1] * 50}
SIZES = {**UNEQUAL, "20 of 5": [5] * 20, "50 of 2": [2] * 50}
CLUSTERS = {name: [f"c{c}" for c, size in enumerate(sizes) for _ in range(size)] for name, sizes in SIZES.items()}
ENDS: dict[str, tuple[float, float] | None] = {"outcomes": (0.0, 1.0), "probabilities": (0.0, 1.0), "nats": None}


def drawn(rng: np.random.Generator, sizes: list[int], kind: str, mean: float) -> np.ndarray:
    """Values whose clusters differ: of outcomes each cluster has its own rate (intraclass correlation 1/2)."""
    if kind == "outcomes":
        own = rng.beta(mean, 1 - mean, len(sizes))
        return (rng.random(sum(sizes)) < np.repeat(own, sizes)).astype(float)
    own = rng.normal(0, 1, len(sizes)) if kind == "nats" else rng.beta(20 * mean, 20 * (1 - mean), len(sizes))
    spread = rng.normal(0, 0.5, sum(sizes)) if kind == "nats" else 1.0
    values = np.repeat(own, sizes)
    return values + spread + mean if kind == "nats" else values * rng.uniform(0.5, 1.5, sum(sizes)).clip(0, 1 / values)


def missed(name: str, kind: str, mean: float, runs: int, resamples: int = 1000) -> tuple[float, float]:
    """Shares of 95 % intervals that lie below, and above, the true mean."""
    rng, low, high = np.random.default_rng(0), 0, 0
    for seed in range(runs):
        values = drawn(rng, SIZES[name], kind, mean).tolist()
        how: dict[str, Any] = {"ends": ENDS[kind], "outcomes": kind == "outcomes", "clusters": CLUSTERS[name]}
        sample = Sample(values, resamples=resamples, seed=seed, **how)
        found = sample.estimate(0.95)
        assert found.low is not None and found.high is not None
        low += found.high < mean
        high += found.low > mean
    return low / runs, high / runs


@pytest.mark.parametrize("mean", [0.02, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("name", SIZES)
def test_intervals_of_outcomes_in_clusters_cover_as_often_as_they_say(name: str, mean: float) -> None:
    below, above = missed(name, "outcomes", mean, 1000)
    assert 1 - below - above >= 0.94
    assert below <= 0.035  # the side on which a limit is passed wrongly: 2.5 % by the interval's confidence


@pytest.mark.parametrize(("clusters", "size", "share"), [(10, 40, 0.3), (20, 40, 0.15)])
def test_what_rises_and_falls_in_the_same_clusters_narrows_no_interval(clusters: int, size: int, share: float) -> None:
    """Probes of a share of the clusters rise or fall, those of the others stay: both parts vary together."""
    rng, passed, names = np.random.default_rng(3), 0, [f"c{c}" for c in range(clusters) for _ in range(size)]
    for _ in range(300):
        unstable, drawn_there = np.repeat(rng.random(clusters) < share, size), rng.random(clusters * size)
        values = np.where(unstable, np.where(drawn_there < 0.6, 1.0, np.where(drawn_there < 0.9, -1.0, 0.0)), 0.0)
        sample = Sample(values.tolist(), resamples=1000, seed=0, ends=(-1.0, 1.0), outcomes=True, clusters=names)
        ends = [sample.estimate(confidence) for confidence in (0.9, 0.95, 0.99)]
        assert ends[2].low <= ends[1].low <= ends[0].low < ends[0].high <= ends[1].high <= ends[2].high  # type: ignore[operator]
        passed += ends[1].low > share * 0.3  # type: ignore[operator]  # a limit on the rise, at the truth
    assert passed / 300 <= 0.05


@pytest.mark.parametrize(("kind", "mean"), [("nats", 0.0), ("probabilities", 0.2)])
@pytest.mark.parametrize("name", [*UNEQUAL, "20 of 5"])
def test_so_do_those_of_other_values(name: str, kind: str, mean: float) -> None:
    below, above = missed(name, kind, mean, 400)
    assert 1 - below - above >= 0.93 and below <= 0.045


def test_the_error_of_unequal_clusters_is_that_of_leaving_each_out() -> None:
    """Written out; the linearised one is half of it where one cluster holds half of all."""
    sizes, rng = UNEQUAL["50 and 50 of 1"], np.random.default_rng(0)
    values, names = drawn(rng, sizes, "outcomes", 0.4), np.array(CLUSTERS["50 and 50 of 1"])
    sample = Sample(values.tolist(), resamples=1000, seed=0, outcomes=True, clusters=names.tolist())
    left = np.array([values[names != f"c{c}"].mean() for c in range(len(sizes))])
    error = np.sqrt((len(sizes) - 1) / len(sizes) * ((left - values.mean()) ** 2).sum())
    assert sample._jackknife_error == pytest.approx(error) and sample._error < 0.6 * error
    shrink = (scipy.stats.norm.ppf(0.025) / scipy.stats.t.ppf(0.025, sample.num_effective - 1)) ** 2
    count = shrink * values.mean() * (1 - values.mean()) / error**2
    hits, misses = values.mean() * count, (1 - values.mean()) * count
    for end, tail in zip(sample._korn_graubard(0.025), (0.025, 0.975), strict=True):
        more, as_many = (scipy.stats.beta.cdf(end, hits + k, misses + 1 - k) for k in (1, 0))
        assert (more + as_many) / 2 == pytest.approx(tail)


def test_the_effective_number_is_that_of_clusters_of_one_size() -> None:
    def effective(sizes: list[int]) -> float:
        clusters = [str(c) for c, size in enumerate(sizes) for _ in range(size)]
        values = [0.5] * len(clusters)
        return Sample(values, resamples=1000, seed=0, ends=(0.0, 1.0), clusters=clusters).num_effective

    assert effective([5] * 20) == 20 and effective([1] * 7) == 7 and effective([3]) == 1
    assert effective(UNEQUAL["50 and 50 of 1"]) == pytest.approx(100**2 / 2550)
    assert Sample([], resamples=1000, seed=0, ends=None).num_effective == 0


def verdict_of(sizes: list[int], measure: str = "violating_sampled_rate") -> Any:
    sides: list[list[Score]] = []
    for side in ("before", "after"):
        sides.append(
            [
                Score(f"p{c}-{n}", "b", side, None, {measure: 0.0, "reply_tokens": 3.0}, f"c{c}")
                for c, size in enumerate(sizes)
                for n in range(size)
            ]
        )
    limits = [{"measure": measure, "max": 0.8}]
    return prove_contract(sides[0], sides[1], contract_of(behaviours={"b": {"limits": limits}})).limits[0]


def test_the_gate_asks_for_5_clusters_that_count() -> None:
    """51 clusters, of which one holds half of all probes, are no 51."""
    few = verdict_of(UNEQUAL["50 and 50 of 1"])
    assert few.state == "not shown" and "51 clusters of probes of such unequal sizes count as 3.9" in few.reason
    assert verdict_of([5] * 20).passed and verdict_of(UNEQUAL["30, 20 and 50 of 1"]).passed


def test_what_occurred_nowhere_is_bounded_by_the_clusters_that_count() -> None:
    found = verdict_of(UNEQUAL["30, 20 and 50 of 1"])
    assert found.after_high == pytest.approx(1 - 0.025 ** (1350 / 100**2))
