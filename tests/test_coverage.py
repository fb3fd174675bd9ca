"""Simulated runs: the intervals cover the truth as often as they say, and the gate passes too seldom, not too often.

`python -m benchmarks.coverage` prints the whole table; the populations are described there.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from benchmarks import coverage
from benchmarks.coverage import (
    COMMON,
    CONTINUOUS,
    COUNTED,
    LIMITS,
    MIXTURE,
    RARER,
    TRUTHS,
    covered,
    populations,
    simulate,
)
from demeanor.statistics import estimate_mean

LEVEL = 0.05  # 1 - the limits' confidence


def test_the_stated_truths_are_the_populations_means() -> None:
    """Or the simulation would prove nothing: of a million draws the mean is within five standard errors."""
    for measure, (before, after) in populations(np.random.default_rng(0), 1_000_000).items():
        for truth, values in zip(TRUTHS[measure], (after, after - before), strict=True):
            error = values.std() / np.sqrt(values.size) * 2  # clusters of four count less
            assert abs(values.mean() - truth) <= 5 * error + 1e-12, measure


def test_of_200_simulated_runs_the_intervals_cover_93_to_97_per_cent() -> None:
    counts = simulate(200, 50, resamples=1000, seed=0)
    hits, num = covered(counts, CONTINUOUS)
    assert num == 2000 and 0.93 <= hits / num <= 0.97
    hits, num = covered(counts, COMMON)
    assert num == 800 and 0.93 <= hits / num <= 0.97
    hits, num = covered(counts, RARER)
    assert hits / num >= 0.93  # of what is rare they must cover more: none seen is not none
    hits, num = covered(counts, CONTINUOUS + COUNTED)
    assert 0.93 <= hits / num <= 0.97
    assert not any(counts[measure][side]["none"] for measure in TRUTHS for side in ("after", "difference"))
    for measure in CONTINUOUS + COUNTED:
        for kind, passes in counts[measure]["passes"].items():
            assert passes / 200 <= LEVEL, (measure, kind)  # the bound is the truth: every pass is wrong


@pytest.mark.slow
@pytest.mark.parametrize("n", [20, 50, 200])
def test_of_2000_simulated_runs_each_measure_covers_and_no_limit_passes_beyond_its_level(n: int) -> None:
    counts = simulate(2000, n, resamples=2000, seed=0)  # as `python -m benchmarks.coverage` does
    for measure in CONTINUOUS + COUNTED:
        own = counts[measure]
        for side in ("after", "difference"):
            share = own[side]["covered"] / 2000
            assert share >= 0.93 - 0.01 * (n == 20), (measure, side)
            if measure in CONTINUOUS + COMMON:
                assert share <= 0.975, (measure, side)
        for kind in LIMITS:
            assert own["passes"].get(kind, 0) / 2000 <= LEVEL, (measure, kind)


@pytest.mark.parametrize("n", [5, 20, 200])
def test_an_interval_of_a_share_errs_on_either_side_with_less_than_the_gates_level(n: int) -> None:
    """Exactly, over all outcomes; and on average it covers as often as it says, where it can miss on both sides."""
    ends = np.array([_ends([1.0] * hits + [0.0] * (n - hits), (0.0, 1.0)) for hits in range(n + 1)])
    truth, unseen = np.linspace(0.001, 0.999, 999)[:, None], 1 - 0.025 ** (1 / n)
    chance = scipy.stats.binom.pmf(np.arange(n + 1), n, truth)
    below, above = ((chance * missed).sum(axis=1) for missed in (ends[:, 1] < truth, ends[:, 0] > truth))
    assert max(below.max(), above.max()) < LEVEL
    both = ((unseen < truth) & (truth < 1 - unseen))[:, 0]
    assert not both.any() or 0.945 <= 1 - (below + above)[both].mean() <= 0.96


def test_so_does_that_of_a_paired_difference_of_outcomes() -> None:
    n = 20
    counts = [(up, down) for up in range(n + 1) for down in range(n + 1 - up)]
    ends = np.array([_ends([1.0] * u + [-1.0] * d + [0.0] * (n - u - d), (-1.0, 1.0)) for u, d in counts])
    cells, covers = np.array([(up, down, n - up - down) for up, down in counts]), []
    for up, down in ((u / 10, d / 10) for u in range(11) for d in range(11 - u)):
        chance = scipy.stats.multinomial.pmf(cells, n, [up, down, max(0.0, 1 - up - down)])
        below = chance[ends[:, 1] < up - down - 1e-12].sum()
        above = chance[ends[:, 0] > up - down + 1e-12].sum()
        assert max(below, above) < LEVEL, (up, down)
        covers.append(1 - below - above)
    assert min(covers) >= 0.94 and np.mean(covers) <= 0.975


@pytest.mark.parametrize(("n", "replies", "share"), [(20, 4, 0.1), (20, 8, 0.1), (50, 8, 0.05), (20, 32, 0.05)])
def test_prompts_that_always_violate_are_allowed_for_where_none_was_seen(n: int, replies: int, share: float) -> None:
    """The others violate alike, so that their rates alone would leave no room for such."""
    rng, low = np.random.default_rng(7), 0
    for _ in range(500):
        rates = rng.binomial(replies, np.where(rng.random(n) < share, 1.0, 0.1)) / replies
        low += _ends(rates.tolist(), (0.0, 1.0))[1] < share + (1 - share) * 0.1
    assert low / 500 <= LEVEL


def _ends(values: list[float], ends: tuple[float, float]) -> tuple[float, float]:
    found = estimate_mean(values, confidence=0.95, resamples=1000, seed=0, ends=ends, outcomes=True)
    assert found.low is not None and found.high is not None
    return found.low, found.high


def test_a_percentile_bootstrap_would_not_do() -> None:
    """At 20 skewed values it covers under 90 % of the time, and misses where a limit is passed; ours covers more."""
    rng, truth = np.random.default_rng(2), 0.05
    ours = theirs = missed_low = 0
    for seed in range(300):
        values = rng.beta(0.2, 3.8, 20)
        drawn = values[rng.integers(0, 20, (1000, 20))].mean(axis=1)
        low, high = np.quantile(drawn, [0.025, 0.975])
        theirs += low <= truth <= high
        missed_low += high < truth
        found = estimate_mean(values.tolist(), confidence=0.95, resamples=1000, seed=seed)
        ours += (found.low or 0.0) <= truth <= (found.high or 1.0)
    assert theirs / 300 < 0.9 < 0.93 < ours / 300
    assert missed_low > 0.9 * (300 - theirs)


def test_what_is_not_controlled_is_shown_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a few very bad prompts among good ones 20 probes often hold none: such runs pass, and the row says so."""
    out = tmp_path / "new" / "coverage.json"
    few = ["coverage", "--runs", "16", "--resamples", "1000", "--sizes", "20", "--out", str(out)]
    monkeypatch.setattr("sys.argv", few)
    coverage.main()
    written = json.loads(out.read_text("utf-8"))
    passes = written["counts"]["20"][MIXTURE]["passes"]
    assert passes["max"] / 16 > 5 * LEVEL
    assert MIXTURE not in CONTINUOUS + COUNTED and MIXTURE in written["truths"]
    assert written["seed"] == 0 and written["machine"]["versions"]["demeanor"]


def test_without_an_option_the_table_is_kept_with_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Path] = []
    monkeypatch.setattr("sys.argv", ["coverage", "--sizes", "20", "--runs", "1", "--resamples", "1000"])
    monkeypatch.setattr(Path, "write_text", lambda path, *_: kept.append(path))
    coverage.main()
    assert kept == [Path(coverage.__file__).parent / "results" / "coverage.json"]
