"""Best of n: closed forms against brute force, on both sides of a verdict, and names that are checked."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from conftest import contract_of

from demeanor.contract import Contract
from demeanor.errors import ContractError
from demeanor.promises import MEASURES, best_of, is_counted, is_share, of_family
from demeanor.prove import prove_contract
from demeanor.prove.best_of import of_mass, of_rate
from demeanor.records import Score
from demeanor.report.words import measure_words, unit


@pytest.mark.parametrize("samples", [1, 2, 5, 8])
def test_of_samples_it_is_the_share_of_all_draws_without_replacement(samples: int) -> None:
    for violating in range(samples + 1):
        drawn = [True] * violating + [False] * (samples - violating)
        for attempts in range(1, samples + 1):
            subsets = list(itertools.combinations(drawn, attempts))
            exact = sum(any(subset) for subset in subsets) / len(subsets)
            assert of_rate(violating / samples, samples, attempts) == pytest.approx(exact, abs=1e-12)
        assert of_rate(violating / samples, samples, samples + 1) is None


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("attempts", [1, 2, 5])
def test_of_a_mass_it_is_the_sum_over_all_sequences_of_attempts(p: float, attempts: int) -> None:
    exact = sum(
        math.prod(p if bad else 1 - p for bad in outcome)
        for outcome in itertools.product((True, False), repeat=attempts)
        if any(outcome)
    )
    assert of_mass(p, attempts) == pytest.approx(exact, abs=1e-12)


def test_the_estimator_of_samples_is_unbiased() -> None:
    """Its mean over all outcomes of k samples is 1 - (1 - p)^n; that of 1 - (1 - c/k)^n is not."""
    p, samples, attempts = 0.2, 6, 3
    chances = [math.comb(samples, c) * p**c * (1 - p) ** (samples - c) for c in range(samples + 1)]
    mean = sum(chance * (of_rate(c / samples, samples, attempts) or 0.0) for c, chance in enumerate(chances))
    assert mean == pytest.approx(of_mass(p, attempts), abs=1e-12)
    plugged = sum(chance * (1 - (1 - c / samples) ** attempts) for c, chance in enumerate(chances))
    assert abs(plugged - mean) > 0.01


def test_small_probabilities_keep_their_digits() -> None:
    assert of_mass(1e-12, 64) == pytest.approx(64e-12, rel=1e-9)
    assert of_mass(1.0 + 1e-9, 4) == 1.0  # a sum of probabilities may round to a little more
    for wrong in (None, math.nan, -0.1, 1.1):
        assert of_mass(wrong, 4) is None
    assert of_rate(0.3, 4, 2) is None  # of no four samples
    assert of_rate(None, 4, 2) is None


# --- in the verdict

RULE = {"violating_openings": ["You"]}


def score(place: int, side: str, mass: float | None, rate: float | None) -> Score:
    values = {"violating_opening_mass": mass}
    if rate is not None:  # the probe was drawn
        values |= {"violating_sampled_rate": rate, "reply_tokens": 5.0}
    return Score(f"p{place}", "tone", side, None, values)


def contract(limits: list[dict[str, Any]], **measurement: Any) -> Contract:
    return contract_of(
        behaviours={"tone": {**RULE, "limits": limits}},
        measurement={"samples": 4, "resamples": 1000, **measurement},
    )


def test_both_sides_have_it_and_a_limit_may_ask_for_any_number() -> None:
    before = [score(place, "before", 0.5, 0.5) for place in range(12)]
    after = [score(place, "after", 0.01 * place, 0.25 * (place % 2)) for place in range(12)]
    limits = [
        {"measure": "violating_opening_best_of_7", "max": 0.9},
        {"measure": "violating_sampled_best_of_3", "max_increase": 0},
    ]
    verdict = prove_contract(before, after, contract(limits, best_of=[16]))
    found = {c.measure: c for c in verdict.comparisons}
    assert [name for name in found if "best_of" in name] == [
        "violating_opening_best_of_7",
        "violating_opening_best_of_16",
        "violating_sampled_best_of_3",
    ]
    exact = sum(1 - (1 - 0.01 * place) ** 16 for place in range(12)) / 12
    assert found["violating_opening_best_of_16"].after.value == pytest.approx(exact)
    assert found["violating_opening_best_of_16"].before.value == pytest.approx(1 - 0.5**16)
    sampled = found["violating_sampled_best_of_3"]
    assert sampled.after.value == pytest.approx(0.5 * (1 - math.comb(3, 3) / math.comb(4, 3)))
    assert sampled.after.low is not None and sampled.after.low < sampled.after.value < sampled.after.high  # type: ignore[operator]
    assert [limit.passed for limit in verdict.limits] == [True, True]


def test_a_probe_without_a_mass_is_unscored_and_fails_the_limit() -> None:
    sides = [
        [score(place, side, None if place == 3 else 0.001, None) for place in range(12)] for side in ("before", "after")
    ]
    verdict = prove_contract(*sides, contract([{"measure": "violating_opening_best_of_4", "max": 0.5}]))
    assert verdict.limits[0].state == "not shown" and verdict.limits[0].unscored == 1


@pytest.mark.parametrize(
    ("measure", "words"),
    [
        ("violating_opening_best_of_N", "no measure is called"),
        ("violating_opening_best_of_0", "no measure is called"),
        ("violating_opening_best_of_04", "no measure is called"),
        ("violating_opening_best_of_1.5", "no measure is called"),
        ("violating_best_of_4", "no measure is called"),
        ("reply_tokens_4", "no measure is called"),
        ("violating_sampled_best_of_16", "needs measurement.samples of 16 or more, not 4"),
    ],
)
def test_a_name_that_is_none_is_refused(measure: str, words: str) -> None:
    with pytest.raises(ContractError, match=words):
        contract([{"measure": measure, "max": 0.5}])


def test_numbers_of_attempts_are_checked_and_sorted() -> None:
    assert contract([], best_of=[64, 1, 4, 4]).measurement.best_of == (1, 4, 64)
    with pytest.raises(ContractError, match=r"measurement.best_of.1: must be between 1 and 999,999, not 0"):
        contract([], best_of=[4, 0])


def test_what_the_names_mean() -> None:
    for name, counted in (("violating_opening_best_of_16", False), ("violating_sampled_best_of_16", True)):
        assert of_family(name) in MEASURES and best_of(name) == 16
        assert is_share(name) and is_counted(name) is counted
        assert "16" in measure_words(name) and unit(name) == "probability"
    assert best_of("reply_tokens") is None and of_family("reply_tokens") == "reply_tokens"
