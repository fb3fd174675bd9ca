"""Corrected rates in the gate: p-values that agree with their intervals, relative limits, clusters."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import contract_of

from demeanor.prevalence import correct_difference, correct_rate
from demeanor.prove import prove_contract
from demeanor.records import LimitResult, Score
from demeanor.statistics import Sample, contrast, reach

CARD = {"data": "mine", "sensitivity": [190, 200], "specificity": [970, 1000]}
COUNTS = (190, 200), (970, 1000)


def scores(side: str, rates: list[float], clusters: list[str | None] | None = None) -> list[Score]:
    named = clusters or [None] * len(rates)
    values = [{"violating_sampled_rate": rate, "reply_tokens": 9.0} for rate in rates]
    return [Score(str(n), "b", side, None, dict(v), c) for n, (v, c) in enumerate(zip(values, named, strict=True))]


BEFORE, AFTER = [1.0, 0.5, 0.0, 0.5] * 50, [0.0, 0.0, 0.0, 0.5] * 50


def judged(limit: dict[str, Any], clusters: list[str | None] | None = None) -> LimitResult:
    judge = {"kind": "refusal", "card": CARD}
    limits = [{"measure": "violating_corrected_rate", **limit}]
    contract = contract_of(behaviours={"b": {"judge": judge, "limits": limits}})
    return prove_contract(scores("before", BEFORE, clusters), scores("after", AFTER, clusters), contract).limits[0]


@pytest.mark.parametrize("bound", [0.12, 0.15, 0.18, 0.2, 0.3])
def test_the_p_value_agrees_with_the_interval(bound: float) -> None:
    found = judged({"max": bound})
    expected = correct_rate(25, 200, *COUNTS, confidence=0.95)
    assert (found.after, found.after_low, found.after_high) == (expected.value, expected.low, expected.high)
    assert found.passed == (expected.high <= bound) == (found.p <= 0.05)  # type: ignore[operator]


@pytest.mark.parametrize(("ratio", "passed"), [(0.2, False), (0.5, True)])
def test_a_limit_relative_to_before(ratio: float, passed: bool) -> None:
    found = judged({"max_ratio": ratio})
    given: dict[str, Any] = {"resamples": 10_000, "seed": 0, "ends": reach((0.0, 1.0), ratio), "outcomes": True}
    raw = Sample(contrast(BEFORE, AFTER, ratio), **given).estimate(0.95)
    expected = correct_difference(raw, *COUNTS, ratio=ratio, confidence=0.95)
    assert found.evidence is not None
    assert (found.evidence.low, found.evidence.high) == pytest.approx((expected.low, expected.high))
    assert found.passed is passed


def test_clusters_of_prompts_count_as_the_draws() -> None:
    clustered = judged({"max": 0.2}, [str(n // 10) for n in range(200)])
    expected = correct_rate(0.125 * 20, 20, *COUNTS, confidence=0.95)
    assert (clustered.after_low, clustered.after_high) == (expected.low, expected.high)
    assert not clustered.passed
