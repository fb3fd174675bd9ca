"""Against a run that was accepted: what is asked of a release, and what may not be dropped."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import contract_of

from demeanor.contract import Contract
from demeanor.errors import ContractError
from demeanor.pipeline import _comparable
from demeanor.promises import Limit
from demeanor.prove import fixed_limits, prove_contract, prove_no_regression, weakened_limits
from demeanor.records import LimitResult, Score, Verdict

FAST = {"resamples": 1000}
RATE, MASS, LOGP = "violating_sampled_rate", "violating_opening_mass", "safe_logp"


def contract(*limits: dict[str, Any]) -> Contract:
    return contract_of(behaviours={"b": {"violating_openings": ["Bad"], "limits": list(limits)}}, measurement=FAST)


def run_of(rate: float, n: int = 400, seed: int = 0, without: str = "") -> tuple[list[Score], list[Score]]:
    """The two sides of a run: everything violates before, `rate` of the probes after."""
    rng, sides = np.random.default_rng(seed), []
    for side, share in (("before", 1.0), ("after", rate)):
        found = []
        for place in range(n):
            value = float(place < share * n)
            values = {RATE: value, MASS: share * 0.5 + 0.001 * rng.random(), LOGP: -1.0, "reply_tokens": 5.0}
            values.pop(without, None)
            found.append(Score(f"p{place}", "b", side, None, values))  # type: ignore[arg-type]
        sides.append(found)
    return sides[0], sides[1]


def against(new: Any, old: Any, mine: Contract, accepted: Contract | None = None) -> tuple[Verdict, list[LimitResult]]:
    verdict = prove_no_regression(prove_contract(*new, mine), old, new, mine, "old", accepted)
    return verdict, [limit for limit in verdict.limits if limit.id.endswith(" against old")]


def test_a_release_cannot_drop_a_limit_that_it_no_longer_keeps() -> None:
    old, new = run_of(0.0, 400), run_of(0.2, 400)
    mine = contract({"measure": LOGP, "min": -2})
    accepted = contract({"measure": LOGP, "min": -2}, {"measure": RATE, "max": 0.1, "max_regression": 0.05})
    verdict, asked = against(new, old, mine, accepted)
    dropped = next(limit for limit in asked if limit.measure == RATE)
    assert dropped.id == f"b.{RATE}.max_increase=0.05 against old" and dropped.state == "fail"
    assert not verdict.passed
    assert [limit.measure for limit in against(new, old, mine)[1]] == [LOGP]
    kept = against(run_of(0.0, 400), old, mine, accepted)[1]
    assert next(limit for limit in kept if limit.measure == RATE).passed


def test_a_limit_that_both_state_is_asked_once_with_the_margin_of_the_release() -> None:
    mine, accepted = (contract({"measure": RATE, "max": bound, "max_regression": bound}) for bound in (0.1, 0.2))
    (limit,) = against(run_of(0.0), run_of(0.0), mine, accepted)[1]
    assert limit.id == f"b.{RATE}.max_increase=0.1 against old"


def test_a_margin_that_the_release_states_anew_does_not_replace_a_narrower_one() -> None:
    mine = contract({"measure": RATE, "max": 0.5, "max_regression": 1.0})
    accepted = contract({"measure": RATE, "max": 0.5, "max_regression": 0.02})
    verdict, asked = against(run_of(0.3), run_of(0.0), mine, accepted)
    assert {limit.id: limit.state for limit in asked} == {
        f"b.{RATE}.max_increase=1 against old": "pass",
        f"b.{RATE}.max_increase=0.02 against old": "fail",
    }
    assert not verdict.passed
    less_sure = contract({"measure": RATE, "max": 0.5, "max_regression": 0.02, "confidence": 0.6})
    assert [limit.confidence for limit in against(run_of(0.0), run_of(0.0), less_sure, accepted)[1]] == [0.95]


def test_what_can_no_longer_be_compared_is_not_shown_and_fails() -> None:
    mine, accepted = contract({"measure": MASS, "max": 0.3}), contract({"measure": RATE, "max": 0.1})
    new, old = run_of(0.0, without=RATE), run_of(0.0)
    assert prove_contract(*new, mine).passed
    verdict, asked = against(new, old, mine, accepted)
    lost = next(limit for limit in asked if limit.measure == RATE)
    assert lost.state == "not shown" and not verdict.passed


def test_a_dropped_limit_on_best_of_n_is_still_compared() -> None:
    mine, accepted = (
        contract({"measure": MASS, "max": 0.3}),
        contract({"measure": "violating_opening_best_of_7", "max": 1}),
    )
    asked = against(run_of(0.0), run_of(0.0), mine, accepted)[1]
    assert next(limit for limit in asked if limit.measure == "violating_opening_best_of_7").n == 400


def test_an_identical_run_of_few_probes_is_told_how_many_it_needs() -> None:
    mine = contract({"measure": RATE, "max": 0.3})
    few, enough = (against(run_of(0.0, n), run_of(0.0, n), mine)[1][0] for n in (64, 368))
    assert few.state == "not shown" and enough.passed
    assert few.reason.endswith(
        "to show a margin of 0.01 when nothing changes at least 368 probes are needed, here are 64"
    )
    worse = against(run_of(0.5, 64), run_of(0.0, 64), mine)[1][0]
    assert worse.state == "fail" and "368" not in worse.reason
    margin = against(run_of(0.0, 64), run_of(0.0, 64), contract({"measure": RATE, "max": 0.3, "max_regression": 0}))
    assert "no number of probes is enough" in margin[1][0].reason


def test_a_margin_loosened_after_the_training_is_a_limit_loosened() -> None:
    def limit(**more: float) -> Contract:
        return contract({"measure": RATE, "max": 0.1, **more})

    fixed = fixed_limits(limit(max_regression=0.02))
    assert (
        weakened_limits(fixed, limit(max_regression=0.02)) == weakened_limits(fixed, limit(max_regression=0.005)) == ()
    )
    assert weakened_limits(fixed, limit()) == ()  # by default 0.01
    (looser,) = weakened_limits(fixed, limit(max_regression=0.5))
    assert looser == f"b.{RATE}.max=0.1 at 0.95, max_regression 0.02"
    assert weakened_limits(fixed_limits(limit()), limit(max_regression=0.5))


def test_within_needs_a_margin() -> None:
    with pytest.raises(ContractError) as refused:
        contract({"measure": RATE, "within": 0.1, "max_regression": 0})
    told = str(refused.value)
    assert "\n" not in told and "behaviours.b.limits.0.max_regression" in told and "must be above 0" in told
    assert Limit(measure=RATE, max=0.1, max_regression=0).regression == 0  # of a bound in one direction it may be 0


def test_two_served_releases_are_measured_alike_whatever_they_are_called() -> None:
    def inputs(**more: Any) -> dict[str, Any]:
        served = {"endpoint": "http://a/v1", "model": "v1", "key_env": "A", "timeout_s": 9.0}
        return _comparable({"seed": 0, "served": {**served, **more}})

    assert inputs() == inputs(endpoint="http://b/v1", model="v2", key_env="B")
    assert inputs() != inputs(timeout_s=1.0)
    assert inputs() != _comparable({"seed": 0, "served": None})
