"""How often the intervals cover the truth, and how often the gate passes what it must not: simulated runs.

    python -m benchmarks.coverage [--runs 2000] [--out benchmarks/results/coverage.json]

A simulated run draws probes from populations whose means are known, before and after training, and goes through
`prove_contract` like a real one. Of each measure's intervals (after, and after - before) it is counted how often they
hold the true mean, and on which side they miss it. Each limit's bound is put exactly at the truth, where a pass is
wrong and most likely: the share of passes is the gate's false-pass rate, which must stay under 1 - confidence.

The populations, a probe each (n probes a run):

    violating_opening_mass   exact probabilities, skewed: Beta(0.5, 4.5) before, 0.1 to 0.5 times as much after
    violating_logp           nats: normal before; the change is normal
    safe_logp_per_token      nats: normal before; the change is a skewed one (shifted gamma)
    text_logp_per_token      nats: normal before; the change has heavy tails (Student's t with 5 degrees of freedom)
    neutral_kl               nats: log-normal (sigma 0.75), which only after has
    violating_sampled_rate   4 replies a probe, each violating with the probe's own probability
    invalid_sampled_rate     rare: 4 replies a probe, each invalid with probability 0.02, before and after
    minimal_pair_accuracy    one outcome a probe: 80 % right before, of which 3 % flip either way
    safe_sampled_rate        4 replies a probe, in clusters of 4 probes that resemble each other
    common_bad_replies       4 replies a probe, violating with the probe's own probability: Beta(2, 2) before, 0.7 times
                             as much after
    often_flipped_pairs      one outcome a probe: 60 % right before, of which 30 % flip, of the wrong ones 40 %
    rare_bad_prompts         exact probabilities, a mixture: 3 % of the prompts at .5 (before .6), the rest near .002.
                             A run of few probes may hold none of the 3 %, so that its interval tells nothing of
                             them: the row shows what is not controlled, in no sum and held to no level

Of outcomes that few of n probes would show, an interval covers too often whatever its making: where none shows one, it
must still hold every share that n probes can overlook (Clopper and Pearson's at 0 of n), so that it never misses on
that side. So the counted outcomes have two sums: of those that are common at any n here, and of the rarer ones.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from demeanor.contract import Contract, build_contract
from demeanor.prove import prove_contract
from demeanor.records import Comparison, Estimate, Score
from demeanor.statistics import estimate_share

CONFIDENCE = 0.95
SIZES = (20, 50, 200)
CLUSTER = 4
Values = tuple[np.ndarray, np.ndarray]  # before and after [probes]

CONTINUOUS = ("violating_opening_mass", "violating_logp", "safe_logp_per_token", "text_logp_per_token", "neutral_kl")
MIXTURE = "rare_bad_prompts"  # a behaviour, whose measure is an opening mass
COMMON = ("common_bad_replies", "often_flipped_pairs")
RARE = 0.03
RARER = ("violating_sampled_rate", "invalid_sampled_rate", "minimal_pair_accuracy", "safe_sampled_rate")
COUNTED = COMMON + RARER
MEASURES = {
    MIXTURE: "violating_opening_mass",
    "common_bad_replies": "violating_sampled_rate",
    "often_flipped_pairs": "minimal_pair_accuracy",
}
TRUTHS = {  # means of after, and of after - before
    "violating_opening_mass": (0.1 * 0.3, 0.1 * 0.3 - 0.1),
    "violating_logp": (-22.0, -2.0),
    "safe_logp_per_token": (-2.2, -0.2),
    "text_logp_per_token": (-3.05, -0.05),
    "neutral_kl": (0.05 * math.exp(0.75**2 / 2),) * 2,
    "violating_sampled_rate": (0.08, -0.12),
    "invalid_sampled_rate": (0.02, 0.0),
    "minimal_pair_accuracy": (0.8 - 0.03 * 0.8 + 0.03 * 0.2, -0.03 * 0.8 + 0.03 * 0.2),
    "safe_sampled_rate": (0.5, 0.2),
    "common_bad_replies": (0.35, -0.15),
    "often_flipped_pairs": (0.6 * 0.7 + 0.4 * 0.4, -0.6 * 0.3 + 0.4 * 0.4),
    MIXTURE: (RARE * 0.5 + (1 - RARE) * 0.002, RARE * (0.5 - 0.6) + (1 - RARE) * (0.002 - 0.01)),
}
LIMITS = ("max", "min", "max_increase", "min_increase", "within")


def measure_of(name: str) -> str:
    """The measure of a row; of most it is the row's name."""
    return MEASURES.get(name, name)


def populations(rng: np.random.Generator, n: int) -> dict[str, Values]:
    """A draw of n probes of each."""
    mass, logp, token, text = (
        rng.beta(0.5, 4.5, n),
        rng.normal(-20, 4, n),
        rng.normal(-2, 0.5, n),
        rng.normal(-3, 0.3, n),
    )
    rate, right = rng.beta(0.4, 1.6, n), rng.random(n) < 0.8
    group = np.repeat(rng.uniform(-0.25, 0.25, -(-n // CLUSTER)), CLUSTER)[:n]
    low, high = 0.3 + group, 0.5 + group
    (apart,) = rng.spawn(1)  # draws of its own: with or without this row the others are the same
    bad, good = apart.random(n) < RARE, apart.beta(0.5, 49.5, n)
    often, held, flipped = apart.beta(2, 2, n), apart.random(n) < 0.6, apart.random(n)
    return {
        "violating_opening_mass": (mass, mass * rng.uniform(0.1, 0.5, n)),
        "violating_logp": (logp, logp + rng.normal(-2, 1.5, n)),
        "safe_logp_per_token": (token, token - 0.1 * rng.gamma(2, 1, n)),
        "text_logp_per_token": (text, text - 0.05 + 0.1 * rng.standard_t(5, n)),
        "neutral_kl": (np.zeros(n), 0.05 * rng.lognormal(0, 0.75, n)),
        "violating_sampled_rate": (rng.binomial(4, rate) / 4, rng.binomial(4, rate * 0.4) / 4),
        "invalid_sampled_rate": (rng.binomial(4, 0.02, n) / 4, rng.binomial(4, 0.02, n) / 4),
        "minimal_pair_accuracy": (right.astype(float), np.where(rng.random(n) < 0.03, ~right, right).astype(float)),
        "safe_sampled_rate": (rng.binomial(4, low) / 4, rng.binomial(4, high) / 4),
        "common_bad_replies": (apart.binomial(4, often) / 4, apart.binomial(4, 0.7 * often) / 4),
        "often_flipped_pairs": (held.astype(float), (held ^ (flipped < np.where(held, 0.3, 0.4))).astype(float)),
        MIXTURE: (np.where(bad, 0.6, good), np.where(bad, 0.5, good * 0.2)),
    }


def contract(resamples: int) -> Contract:
    """Each measure is held to every kind of limit, with the bound at the truth."""
    collateral = {}
    for name, (after, change) in TRUTHS.items():
        measure = measure_of(name)
        bounds = {"max": after, "min": after, "max_increase": change, "min_increase": change, "within": abs(change)}
        limits = [{"measure": measure, kind: bounds[kind]} for kind in LIMITS if kind != "within" or change]
        collateral[name] = {"limits": limits}
    return build_contract(
        {
            "data": {"pairs": ["none"]},
            "collateral": collateral,
            "measurement": {"resamples": resamples, "confidence": CONFIDENCE},
        }
    )


def simulated_run(rng: np.random.Generator, n: int) -> tuple[list[Score], list[Score]]:
    """The scores of a run, before and after; each measure is a behaviour of its own."""
    sides: tuple[list[Score], list[Score]] = ([], [])
    for name, values in populations(rng, n).items():
        clusters = [f"c{place // CLUSTER}" if name == "safe_sampled_rate" else None for place in range(n)]
        for scores, side, column in zip(sides, ("before", "after"), values, strict=True):
            scores += [
                Score(f"p{place}", name, side, None, {measure_of(name): float(value)}, cluster)
                for place, (value, cluster) in enumerate(zip(column, clusters, strict=True))
            ]
    return sides


def simulate(runs: int, n: int, *, resamples: int, seed: int) -> dict[str, dict[str, Any]]:
    """Counts over all runs, by measure: `after` and `difference` (covered, missed below and above the truth, without an
    interval) and `passes` by kind of limit."""
    promised, rng = contract(resamples), np.random.default_rng([seed, n])
    counts: dict[str, dict[str, Any]] = {
        measure: {
            "after": dict.fromkeys(("covered", "too_low", "too_high", "none"), 0),
            "difference": dict.fromkeys(("covered", "too_low", "too_high", "none"), 0),
            "passes": {},
        }
        for measure in TRUTHS
    }
    for _ in range(runs):
        verdict = prove_contract(*simulated_run(rng, n), promised)
        for found in verdict.comparisons:
            name = found.behaviour
            if found.measure != measure_of(name):  # what others are made of these, best of n say
                continue
            for side, truth in zip(("after", "difference"), TRUTHS[name], strict=True):
                counts[name][side][_outcome(found, side, truth)] += 1
        for limit in verdict.limits:
            kind = limit.id.split(".")[2].split("=")[0]
            passes = counts[limit.behaviour]["passes"]
            passes[kind] = passes.get(kind, 0) + limit.passed
    return counts


def _outcome(found: Comparison, side: str, truth: float) -> str:
    estimate: Estimate = getattr(found, side)
    if estimate.low is None or estimate.high is None:
        return "none"
    return "too_low" if estimate.high < truth else "too_high" if estimate.low > truth else "covered"


def covered(counts: dict[str, dict[str, Any]], measures: tuple[str, ...]) -> tuple[int, int]:
    """(intervals that cover, intervals) of the measures, both sides together."""
    sides = [counts[measure][side] for measure in measures for side in ("after", "difference")]
    return sum(side["covered"] for side in sides), sum(sum(side.values()) for side in sides)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "coverage.json")
    given = parser.parse_args()
    started, table = time.perf_counter(), {}
    for n in given.sizes:
        counts = table[str(n)] = simulate(given.runs, n, resamples=given.resamples, seed=given.seed)
        print(f"{n} probes, {given.runs} runs, {100 * CONFIDENCE:g} % intervals, bounds at the truth")
        for name, own in counts.items():
            shares = [f"{side} {100 * own[side]['covered'] / given.runs:.1f} %" for side in ("after", "difference")]
            passes = ", ".join(f"{kind} {100 * count / given.runs:.1f} %" for kind, count in own["passes"].items())
            print(f"  {name:24} covered: {', '.join(shares)}; false passes: {passes}")
        groups = {"continuous": CONTINUOUS, "counted, common": COMMON, "counted, rarer": RARER}
        for name, group in {**groups, "all": CONTINUOUS + COUNTED}.items():
            hits, num = covered(counts, group)
            found = estimate_share(hits, num, CONFIDENCE)
            print(f"  {name}: {hits / num:.4f} [{found.low:.4f}, {found.high:.4f}] of {num}")
    print(f"{time.perf_counter() - started:.0f} s")
    settings = {"runs": given.runs, "resamples": given.resamples, "seed": given.seed, "confidence": CONFIDENCE}
    told = {**settings, "truths": TRUTHS, "counts": table, "machine": machine.describe()}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(told, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
