"""The gate: honest intervals, limits decided by the right end of them, and no pass without evidence."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import numpy as np
import pytest
import scipy.stats
from conftest import contract_of

from demeanor import statistics
from demeanor.contract import Contract
from demeanor.errors import InputError
from demeanor.prove import joint_values, prove_contract
from demeanor.records import Comparison, Estimate, LimitResult, Score, Verdict
from demeanor.statistics import estimate_difference, estimate_mean

HOW: dict[str, Any] = {"confidence": 0.95, "resamples": 1000, "seed": 0}
LN2 = math.log(2)
Values = dict[str, float | None]


# --- statistics


def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not() -> None:
    values = np.random.default_rng(0).random(50).tolist()
    first, again = (json.dumps(estimate_mean(values, **HOW).to_json()) for _ in range(2))
    assert first == again
    assert first != json.dumps(estimate_mean(values, **{**HOW, "seed": 1}).to_json())


def test_the_order_of_the_values_does_not_matter() -> None:
    values = np.random.default_rng(1).normal(0.1, 1.0, 101).tolist()
    assert estimate_mean(values, **HOW) == estimate_mean(random.Random(0).sample(values, 101), **HOW)


def test_it_is_the_studentised_bootstrap() -> None:
    """Beside one that is written out, with draws of its own."""
    values = np.random.default_rng(2).exponential(size=60)
    ours = estimate_mean(values.tolist(), confidence=0.9, resamples=20_000, seed=0, ends=None)
    drawn = values[np.random.default_rng(5).integers(0, 60, (20_000, 60))]
    error = values.std(ddof=1) / math.sqrt(60)
    t = (drawn.mean(axis=1) - values.mean()) / (drawn.std(axis=1, ddof=1) / math.sqrt(60))
    low, high = (values.mean() - np.quantile(t, end) * error for end in (0.95, 0.05))
    assert ours.value == pytest.approx(values.mean())
    assert ours.low == pytest.approx(low, abs=0.02 * (high - low))
    assert ours.high == pytest.approx(high, abs=0.02 * (high - low))
    assert ours.high - ours.value > 1.2 * (ours.value - ours.low)  # type: ignore[operator]  # as skewed as the values


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.999])
@pytest.mark.parametrize("n", [1, 2, 48, 3000])
@pytest.mark.parametrize("outcomes", [False, True])
def test_zero_and_all_of_n_have_clopper_and_pearsons_interval(n: int, confidence: float, outcomes: bool) -> None:
    how: dict[str, Any] = {**HOW, "confidence": confidence, "outcomes": outcomes}
    for successes, values in ((0, [0.0] * n), (n, [1.0] * n)):
        exact = scipy.stats.binomtest(successes, n).proportion_ci(confidence, method="exact")
        estimate = estimate_mean(values, **how)
        assert (estimate.low, estimate.high) == pytest.approx((exact.low, exact.high))
    assert estimate.low == pytest.approx(scipy.stats.beta.ppf((1 - confidence) / 2, n, 1))


def test_no_interval_has_zero_width_and_every_one_holds_its_estimate() -> None:
    rng = np.random.default_rng(3)
    samples = [[value] * n for value in (0.0, 1.0, -1.0, 0.5, 1 / 3, -7.25, 1e-300) for n in (1, 2, 30)]
    samples += [[1 / 3, 1 - 2 / 3] * 5, [1e16, 1e16 + 2], [0.0] * 30 + [1.0], [1.0] * 400 + [0.5]]
    samples += [(rng.random(n) ** power).tolist() for n in (2, 3, 10) for power in (1, 30, 1000)]
    samples += [[0.0, 1.0]] * 40  # resampled, half of the means are equal
    for place, values in enumerate(samples):
        for ends in ((0.0, 1.0), (-1.0, 1.0), None):
            if ends is not None and not all(ends[0] <= value <= ends[1] for value in values):
                continue
            for outcomes in (False, True):
                how = {"confidence": 0.501, "resamples": 1000, "seed": place, "ends": ends, "outcomes": outcomes}
                found = estimate_mean(values, **how)  # type: ignore[arg-type]
                assert found.value is not None and found.n == len(values)
                if found.low is None or found.high is None:
                    assert found.low is found.high
                    continue
                assert found.high - found.low > 1e-15 * abs(found.value)
                if ends is not None:
                    assert ends[0] <= found.low < found.high <= ends[1]
                if len(values) > 2 or outcomes:
                    assert found.low <= found.value <= found.high


def test_values_that_differ_by_rounding_alone_are_the_same() -> None:
    """Differences of rates such as 2/3 - 1/3 and 1 - 2/3 are; a bootstrap of them has an interval of 1e-16."""
    assert 1 / 3 != 1 - 2 / 3
    rounded, same = (estimate_mean(values * 5, **HOW) for values in ([1 / 3, 1 - 2 / 3], [1 / 3, 1 / 3]))
    assert (rounded.low, rounded.high) == pytest.approx((same.low, same.high))
    assert same.low is not None and same.low < 0.3


def test_values_without_ends_that_are_all_the_same_give_no_interval() -> None:
    for values in ([0.0] * 9, [1.0] * 9, [-3.5] * 9, [2.0], [1 / 3, 1 - 2 / 3] * 4):
        found = estimate_mean(values, **HOW, ends=None)
        assert (found.low, found.high, found.n) == (None, None, len(values))


def test_one_value_inside_the_ends_gives_no_interval() -> None:
    assert estimate_mean([0.3], **HOW) == Estimate(0.3, None, None, 1)
    assert estimate_mean([0.3, None], **HOW) == Estimate(0.3, None, None, 1, unscored=1)


def test_no_difference_at_all_is_no_proof_in_either_direction() -> None:
    same = [0.0, 0.25, 1.0, 0.5] * 12
    found = estimate_difference(same, same, **HOW)
    assert found.value == 0.0 and found.low is not None and found.high is not None
    assert found.low == -found.high < 0
    assert found.high == pytest.approx(scipy.stats.binomtest(0, 48).proportion_ci(0.95).high)


def test_a_full_change_of_every_prompt_has_an_interval() -> None:
    share = scipy.stats.binomtest(0, 48).proportion_ci(0.95).high
    fall = estimate_difference([1.0] * 48, [0.0] * 48, **HOW, outcomes=True)
    rise = estimate_difference([0.0] * 48, [1.0] * 48, **HOW, outcomes=True)
    assert (fall.low, fall.high) == pytest.approx((-1.0, -1.0 + 2 * share))
    assert (rise.low, rise.high) == pytest.approx((1.0 - 2 * share, 1.0))


def test_more_violations_are_never_better_evidence() -> None:
    """With a plain bootstrap one violation of 48 prompts has a lower upper end than none has."""
    ends = [
        estimate_mean([0.25] * count + [0.0] * (48 - count), **HOW, outcomes=True).high or 0.0 for count in range(24)
    ]
    assert ends == sorted(ends)
    plain = estimate_mean([0.25] + [0.0] * 47, **HOW).high
    assert plain is not None and plain < ends[0] == pytest.approx(1 - 0.025 ** (1 / 48)) and ends[0] < ends[-1]


@pytest.mark.parametrize("more", [0.25, 1e-3, 1e-9, 1e-11, 1e-13])
def test_rates_that_hardly_differ_leave_room_for_prompts_unlike_them(more: float) -> None:
    """By their variance alone 19 rates of 1/2 and one of 3/4 would be thousands of replies."""
    found, unseen = estimate_mean([0.5] * 19 + [0.5 + more], **HOW, outcomes=True), 1 - 0.05 ** (1 / 20)
    assert found.low <= 0.5 * (1 - unseen) + more and found.high >= 0.5 * (1 + unseen)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("draw", "mean", "outcomes"),
    [
        (lambda rng: rng.normal(0.4, 0.1, 40), 0.4, False),
        (lambda rng: rng.beta(2, 6, 40), 0.25, False),
        (lambda rng: rng.binomial(4, 0.3, 40) / 4, 0.3, True),
        (lambda rng: rng.binomial(1, 0.02, 40), 0.02, True),  # a plain bootstrap covers it in about half of the cases
        (lambda rng: rng.binomial(1, 0.98, 40), 0.98, True),
    ],
)
def test_the_interval_covers_the_truth_about_as_often_as_it_says(draw: Any, mean: float, outcomes: bool) -> None:
    rng = np.random.default_rng(4)
    covered = 0
    for seed in range(500):
        found = estimate_mean(draw(rng).tolist(), confidence=0.9, resamples=1000, seed=seed, outcomes=outcomes)
        assert found.low is not None and found.high is not None
        covered += found.low <= mean <= found.high
    assert covered / 500 >= 0.86
    if not outcomes:
        assert covered / 500 <= 0.94


def test_confidence_widens_and_n_narrows_the_interval() -> None:
    values = np.random.default_rng(6).random(40).tolist()

    def width(values: list[float], confidence: float) -> float:
        found = estimate_mean(values, confidence=confidence, resamples=5000, seed=0)
        assert found.low is not None and found.high is not None
        return found.high - found.low

    assert width(values, 0.8) < width(values, 0.95) < width(values, 0.99)
    assert width(values * 16, 0.95) == pytest.approx(width(values, 0.95) / 4, rel=0.1)


def test_what_could_not_be_scored_is_counted_and_never_zero() -> None:
    known = [0.2, 0.4, 0.6]
    found = estimate_mean([None, *known, None, math.nan, math.inf, -math.inf], **HOW)
    assert (found.n, found.unscored) == (3, 5)
    alone = estimate_mean(known, **HOW)
    assert (found.value, found.low, found.high) == (alone.value, alone.low, alone.high)
    for nothing in ([], [None] * 4, [math.nan]):
        assert estimate_mean(nothing, **HOW) == Estimate(None, None, None, 0, len(nothing))


def test_differences_are_paired() -> None:
    rng = np.random.default_rng(7)
    before = rng.random(60)
    after = before - 0.05 + rng.normal(0, 0.001, 60)
    found = estimate_difference(before.tolist(), after.tolist(), **HOW)
    assert found.value == pytest.approx((after - before).mean())
    assert found.low is not None and found.high is not None
    assert found.high - found.low < 0.001  # unpaired it would be some 0.2
    swapped = estimate_difference(after.tolist(), before.tolist(), **HOW)
    assert swapped.value == pytest.approx(-found.value)


def test_a_pair_that_lacks_a_side_is_unscored() -> None:
    found = estimate_difference([0.5, None, 0.1, None, 0.0], [0.25, 0.1, None, None, 0.5], **HOW)
    assert (found.value, found.n, found.unscored) == (0.125, 2, 3)
    with pytest.raises(ValueError):
        estimate_difference([0.1], [0.1, 0.2], **HOW)


@pytest.mark.parametrize("block", [1, 37, 40 * 7, 40 * 999 + 1])
def test_blocks_that_bound_the_memory_change_nothing(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    values = np.random.default_rng(8).random(40).tolist()
    whole = estimate_mean(values, **HOW)
    monkeypatch.setattr(statistics, "_BLOCK", block)
    assert estimate_mean(values, **HOW) == whole


def test_many_values_are_drawn_block_by_block() -> None:
    size = 5 * statistics._BLOCK // 1000
    blocks = list(statistics._draws(size, 1000, 0))
    assert len(blocks) > 4
    drawn = np.random.default_rng(0).integers(0, size, (1000, size))
    counts = np.concatenate(blocks)
    assert counts.shape == (1000, size)
    for row in (0, 250, 999):
        assert np.array_equal(counts[row], np.bincount(drawn[row], minlength=size))


# --- joint_values


def one(**values: float | None) -> Score:
    return Score("p", "tone", "before", None, dict(values))


def joint(safe: float, violating: float, beta: float = 0.1) -> dict[str, float | None]:
    """Of a probe whose replies gained so many nats."""
    before = one(safe_logp=-20.0, violating_logp=-30.0, safe_tokens=5.0, violating_tokens=9.0)
    return joint_values(before, one(safe_logp=-20.0 + safe, violating_logp=-30.0 + violating), beta)


def test_an_untrained_adapter_has_the_loss_of_chance() -> None:
    found = joint(0.0, 0.0)
    assert found["validation_loss"] == pytest.approx(LN2, abs=1e-15)
    assert (found["reward_accuracy"], found["displaced_share"]) == (0.5, 0.0)
    assert joint(-3.0, -3.0)["validation_loss"] == pytest.approx(LN2)  # both fell alike: still no margin


@pytest.mark.parametrize(("safe", "violating"), [(2.0, -3.0), (-1.0, 4.0), (-1.0, -4.0), (0.5, 0.25)])
@pytest.mark.parametrize("beta", [0.01, 0.1, 2.0])
def test_the_loss_is_minus_log_sigmoid_of_the_rewards_margin(safe: float, violating: float, beta: float) -> None:
    margin = beta * (safe - violating)
    found = joint(safe, violating, beta)
    assert found["validation_loss"] == pytest.approx(-math.log(1 / (1 + math.exp(-margin))))
    assert found["reward_accuracy"] == float(margin > 0)


def test_huge_margins_do_not_overflow() -> None:
    assert joint(1e6, -1e6, 1.0)["validation_loss"] == 0.0
    assert joint(-1e6, 1e6, 1.0)["validation_loss"] == pytest.approx(2e6)
    assert joint(-1e6, 1e6, 1.0)["reward_accuracy"] == 0.0
    assert joint(40.0, 0.0, 1.0)["validation_loss"] == pytest.approx(math.exp(-40))


@pytest.mark.parametrize(
    ("safe", "violating", "displaced"),
    [(-1, -4, 1.0), (1, -4, 0.0), (-1, -1, 0.0), (-4, -1, 0.0), (0, -4, 0.0), (-1e-9, -1, 1.0)],
)
def test_displaced_is_a_chosen_reply_that_fell_although_the_margin_grew(
    safe: float, violating: float, displaced: float
) -> None:
    assert joint(safe, violating)["displaced_share"] == displaced


@pytest.mark.parametrize(("safe", "violating", "wins"), [(9.0, 5.0, 1.0), (5.0, 9.0, 0.0), (7.0, 7.0, 0.5)])
def test_length_accuracy_is_whether_the_safe_reply_is_the_longer(safe: float, violating: float, wins: float) -> None:
    logps = {"safe_logp": -1.0, "violating_logp": -2.0}
    before = one(**logps, safe_tokens=safe, violating_tokens=violating)
    assert joint_values(before, one(**logps), 0.1)["length_accuracy"] == wins


@pytest.mark.parametrize("missing", [None, math.nan, -math.inf])
def test_a_missing_likelihood_is_none_and_not_a_number(missing: float | None) -> None:
    full = {"safe_logp": -1.0, "violating_logp": -2.0, "safe_tokens": 3.0, "violating_tokens": 4.0}
    for name in ("safe_logp", "violating_logp"):
        for before, after in (
            (one(**full), one(**{**full, name: missing})),
            (one(**{**full, name: missing}), one(**full)),
        ):
            assert set(joint_values(before, after, 0.1).values()) == {None}
    assert joint_values(one(safe_logp=-1.0, violating_logp=-2.0), one(**full), 0.1)["length_accuracy"] is None


# --- prove


def contract(*limits: dict[str, Any], **sections: Any) -> Contract:
    """Of one behaviour, tone."""
    how = {"behaviours": {"tone": {"limits": list(limits)}}, "measurement": {"resamples": 1000}}
    return contract_of(**{**how, **sections})


def side(model: str, behaviour: str = "tone", **measures: list[float | None]) -> list[Score]:
    """Scores of probes 0, 1, ...: the measures' values in that order."""
    rows = zip(*measures.values(), strict=True)
    return [
        Score(f"probe-{place}", behaviour, model, None, dict(zip(measures, row, strict=True)))
        for place, row in enumerate(rows)
    ]


def sides(n: int = 40, seed: int = 0) -> tuple[list[Score], list[Score]]:
    """A bad reply's probability that falls from about 0.3 to about 0.1, and likelihoods of both replies."""
    rng = np.random.default_rng(seed)

    def draw(mean: float, spread: float = 0.05) -> list[float | None]:
        return rng.normal(mean, spread, n).tolist()

    return tuple(
        side(
            model,
            violating_opening_mass=draw(mass),
            safe_logp=draw(-20 + gain, 2.0),
            violating_logp=draw(-25 - gain, 2.0),
            safe_tokens=rng.integers(5, 12, n).astype(float).tolist(),
            violating_tokens=rng.integers(5, 12, n).astype(float).tolist(),
        )
        for model, mass, gain in (("before", 0.3, 0), ("after", 0.1, 3))
    )  # type: ignore[return-value]


def only(verdict: Verdict) -> LimitResult:
    (limit,) = verdict.limits
    return limit


def found(verdict: Verdict, measure: str, behaviour: str = "tone") -> Comparison:
    (comparison,) = [c for c in verdict.comparisons if (c.behaviour, c.measure) == (behaviour, measure)]
    return comparison


@pytest.mark.parametrize("kind", ["max", "min", "max_increase", "min_increase"])
def test_a_limit_is_decided_by_the_right_end_of_the_interval(kind: str) -> None:
    before, after = sides()

    def judged(bound: float) -> LimitResult:
        return only(prove_contract(before, after, contract({"measure": "violating_opening_mass", kind: bound})))

    any_bound = judged(0.2)
    relative = kind.endswith("increase")
    value = any_bound.difference if relative else any_bound.after
    low, high = (any_bound.low, any_bound.high) if relative else (any_bound.after_low, any_bound.after_high)
    assert value is not None and low is not None and high is not None
    assert low < value < high
    end, outwards = (high, 1e-6) if kind.startswith("max") else (low, -1e-6)
    assert judged(end).passed
    assert judged(end + outwards).passed
    assert not judged(end - outwards).passed
    assert not judged(value).passed  # the estimate alone would do
    assert f"the interval's {'upper' if kind.startswith('max') else 'lower'} end is {end:.4g}" == judged(end).reason


def test_the_rule_of_a_limit_names_what_is_held_against_what() -> None:
    before, after = sides()
    rules = [
        only(prove_contract(before, after, contract({"measure": "safe_logp", kind: 0.25}))).rule
        for kind in ("max", "min", "max_increase", "min_increase")
    ]
    assert rules == ["after <= 0.25", "after >= 0.25", "after - before <= 0.25", "after - before >= 0.25"]


def test_without_limits_nothing_is_proven() -> None:
    before, after = sides()
    assert prove_contract(before, after, contract()).passed is False
    assert prove_contract(before, after, contract(behaviours={})).passed is False
    assert prove_contract([], [], contract()).passed is False


def test_one_failed_limit_fails_the_verdict() -> None:
    before, after = sides()
    good, bad = ({"measure": "violating_opening_mass", "max": bound} for bound in (0.5, 0.05))
    assert prove_contract(before, after, contract(good)).passed
    verdict = prove_contract(before, after, contract(good, bad))
    assert [limit.passed for limit in verdict.limits] == [True, False]
    assert not verdict.passed


def test_limits_of_collateral_count_and_those_of_transient_behaviours_do_not_exist() -> None:
    promised = contract(
        behaviours={"day": {"kind": "transient", "value": "Monday"}},
        system_prompt="It is {day}.",
        collateral={"tone": {"limits": [{"measure": "violating_opening_mass", "max": 0.05}]}},
    )
    verdict = prove_contract(*sides(), promised)
    assert [limit.id for limit in verdict.limits] == ["tone.violating_opening_mass.max=0.05"]
    assert not verdict.passed


MISSING: dict[str, tuple[list[float | None], list[float | None], str]] = {
    "no score after": ([0.3, 0.2, 0.1], [None, None, None], "not shown: there is no score"),
    "one probe unscored": ([0.3, 0.2, 0.1], [0.001, None, 0.002], "not shown: 1 probes could not be scored"),
    "not a number": ([0.3, 0.2, 0.1], [0.001, math.nan, 0.002], "not shown: 1 probes could not be scored"),
    "one probe": ([0.3], [0.001], "not shown: 1 probes are too few, at least 5 are needed"),
    "four probes": (
        [0.3, 0.2, 0.1, 0.2],
        [0.001, 0.002, 0.001, 0.003],
        "not shown: 4 probes are too few, at least 5 are needed",
    ),
}


@pytest.mark.parametrize(("before", "after", "reason"), MISSING.values(), ids=MISSING.keys())
@pytest.mark.parametrize("bound", [{"max": 0.99}, {"min": 0.0}, {"max_increase": 0.99}, {"min_increase": -0.99}])
def test_missing_evidence_fails_and_says_why(
    before: list[float | None], after: list[float | None], reason: str, bound: dict[str, float]
) -> None:
    promised = contract({"measure": "violating_opening_mass", **bound})
    verdict = prove_contract(
        side("before", violating_opening_mass=before), side("after", violating_opening_mass=after), promised
    )
    assert not verdict.passed
    assert only(verdict).reason == reason


def test_a_score_that_only_before_lacks_fails_limits_on_the_difference_alone() -> None:
    before = side("before", violating_opening_mass=[0.3, None, 0.1, 0.2, 0.2])
    after = side("after", violating_opening_mass=[0.01, 0.02, 0.03, 0.02, 0.01])
    limits = [{"measure": "violating_opening_mass", kind: 0.5} for kind in ("max", "max_increase")]
    verdict = prove_contract(before, after, contract(*limits))
    assert [limit.passed for limit in verdict.limits] == [True, False]
    assert [limit.unscored for limit in verdict.limits] == [0, 1]
    assert verdict.limits[1].reason == "not shown: 1 probes could not be scored"


def test_limits_without_any_probe_or_measure_fail() -> None:
    wanted = contract({"measure": "safe_sampled_rate", "min": 0.0})
    for before, after in (
        sides(),
        ([], []),
        (side("before", "other", safe_logp=[-1.0]), side("after", "other", safe_logp=[-1.0])),
    ):
        limit = only(prove_contract(before, after, wanted))
        assert (limit.passed, limit.reason) == (False, "not shown: there is no score")
        assert (limit.n, limit.after, limit.difference) == (0, None, None)


def test_an_increase_of_what_has_no_before_fails() -> None:
    limit = only(prove_contract(*sides(), contract({"measure": "reward_accuracy", "min_increase": -1})))
    assert (limit.passed, limit.reason) == (False, "not shown: there is no score")


def test_two_identical_models_prove_no_change() -> None:
    before, _ = sides()
    after = [Score(s.probe_id, s.behaviour, "after", None, s.values) for s in before]
    limits = [
        {"measure": measure, kind: 0}
        for measure in ("violating_opening_mass", "safe_logp", "validation_loss")
        for kind in ("max_increase", "min_increase")
    ]
    verdict = prove_contract(before, after, contract(*limits))
    assert not any(limit.passed for limit in verdict.limits)
    accuracy = found(verdict, "reward_accuracy").after
    assert accuracy.value == 0.5 and accuracy.low is not None and accuracy.low < 0.5


def other_probes() -> dict[str, tuple[list[Score], list[Score]]]:
    before, after = sides(5)
    moved = [Score(s.probe_id, "bypass", s.model, None, s.values) for s in after]
    return {
        "one is missing after": (before, after[:-1]),
        "one is missing before": (before[1:], after),
        "nothing after": (before, []),
        "another behaviour": (before, moved),
        "twice before": ([*before, before[0]], after),
        "twice after": (before, [*after, after[0]]),
        "twice on both sides": ([*before, before[0]], [*after, after[0]]),
        "one for another": ([*before[:-1], before[0]], after),
    }


@pytest.mark.parametrize("case", other_probes())
def test_sides_of_different_or_repeated_probes_are_refused(case: str) -> None:
    before, after = other_probes()[case]
    with pytest.raises(InputError, match=r"not of the same probes.*measure both again"):
        prove_contract(before, after, contract({"measure": "violating_opening_mass", "max": 1}))


def test_a_pair_may_be_the_probe_of_two_behaviours() -> None:
    """Ids come from the texts, so that files of probes that share a pair share its id."""
    before, after = (
        [s for behaviour, mass in masses for s in side(model, behaviour, violating_opening_mass=[mass, mass + 0.1])]
        for model, masses in (("before", (("tone", 0.5), ("other", 0.7))), ("after", (("other", 0.2), ("tone", 0.1))))
    )
    verdict = prove_contract(before, after, contract())
    assert found(verdict, "violating_opening_mass").difference.value == pytest.approx(-0.4)
    assert found(verdict, "violating_opening_mass", "other").difference.value == pytest.approx(-0.5)


def test_the_order_of_the_probes_does_not_matter() -> None:
    before, after = sides()
    limits = [{"measure": "violating_opening_mass", "max": 0.11}, {"measure": "validation_loss", "max": 0.69}]
    straight = prove_contract(before, after, contract(*limits))
    for seed in range(3):
        mixed = random.Random(seed)
        verdict = prove_contract(mixed.sample(before, 40), mixed.sample(after, 40), contract(*limits))
        assert verdict.limits == straight.limits
        assert {(c.measure, c) for c in verdict.comparisons} == {(c.measure, c) for c in straight.comparisons}


def test_the_verdict_is_reproducible_and_seeded() -> None:
    before, after = sides()
    first, again = (json.dumps(prove_contract(before, after, contract()).to_json()) for _ in range(2))
    assert first == again
    straight, other = (
        prove_contract(before, after, contract(measurement={"resamples": 1000, "seed": s})) for s in (0, 5)
    )
    for measure in ("violating_opening_mass", "validation_loss"):
        assert found(straight, measure).after.value == found(other, measure).after.value
        assert found(straight, measure).after.low != found(other, measure).after.low


def test_before_and_after_are_not_mixed_up() -> None:
    comparison = found(prove_contract(*sides(), contract()), "violating_opening_mass")
    assert comparison.before.value == pytest.approx(0.3, abs=0.03)
    assert comparison.after.value == pytest.approx(0.1, abs=0.03)
    assert comparison.difference.value == pytest.approx(-0.2, abs=0.05)
    assert comparison.difference.high is not None and comparison.difference.high < 0


def test_each_behaviour_is_compared_on_its_own_probes() -> None:
    before, after = sides()
    verdict = prove_contract(
        before + side("before", "bypass", violating_opening_mass=[0.9, 0.8]),
        after + side("after", "bypass", violating_opening_mass=[0.6, 0.4]),
        contract(),
    )
    assert found(verdict, "violating_opening_mass").after.n == 40
    bypass = found(verdict, "violating_opening_mass", "bypass")
    assert (bypass.after.n, bypass.before.value, bypass.after.value) == (2, pytest.approx(0.85), pytest.approx(0.5))


def test_measures_of_both_sides_together_have_the_chance_level_as_their_start() -> None:
    before, after = sides()
    verdict = prove_contract(before, after, contract())
    values = [joint_values(b, a, 0.1) for b, a in zip(before, after, strict=True)]
    for measure in ("reward_accuracy", "validation_loss", "displaced_share"):
        mean = np.mean([value[measure] for value in values])  # type: ignore[arg-type]
        assert found(verdict, measure).after.value == pytest.approx(mean)
    loss = found(verdict, "validation_loss")
    assert loss.before.value == LN2
    assert loss.difference.value == pytest.approx((loss.after.value or 0) - LN2)
    assert found(verdict, "reward_accuracy").before.value is None
    assert found(verdict, "reward_accuracy").difference.value is None


def test_beta_comes_from_the_contract() -> None:
    loss = [
        found(prove_contract(*sides(), contract(training={"beta": beta})), "validation_loss").after.value
        for beta in (0.1, 1)
    ]
    assert loss[1] < loss[0] < LN2  # type: ignore[operator]


@pytest.mark.parametrize(
    ("longer", "reached"), [([1, 1, 1, 0], 0.75), ([1, 0, 0, 0], 0.75), ([1, 0.5, 0, 0], 0.625), ([0.5] * 4, 0.5)]
)
def test_length_accuracy_takes_the_better_direction(longer: list[float], reached: float) -> None:
    tokens = {"safe_tokens": [8.0 + 2 * (win - 0.5) for win in longer], "violating_tokens": [8.0] * 4}
    logps: dict[str, list[float | None]] = {"safe_logp": [-1.0] * 4, "violating_logp": [-2.0] * 4}
    verdict = prove_contract(side("before", **logps, **tokens), side("after", **logps, **tokens), contract())  # type: ignore[arg-type]
    assert found(verdict, "length_accuracy").after.value == reached


def test_the_lengths_of_the_probes_replies_are_compared_with_nothing() -> None:
    assert not {c.measure for c in prove_contract(*sides(), contract()).comparisons} & {
        "safe_tokens",
        "violating_tokens",
    }


def test_probes_that_were_not_drawn_are_no_missing_evidence() -> None:
    n = 60
    before, after = (
        side(
            model,
            violating_sampled_rate=[rate] * n,
            reply_tokens=[9.0 + place % 2 + place % 5 for place in range(n)],
        )
        for model, rate in (("before", 0.5), ("after", 0.0))
    )
    for score in (score for own in (before, after) for place, score in enumerate(own) if place % 3):
        score.values.clear()
    limits = [{"measure": "violating_sampled_rate", "max": 0.2}, {"measure": "reply_tokens", "max": 20}]
    verdict = prove_contract(before, after, contract(*limits))
    assert verdict.passed
    assert [(limit.n, limit.unscored) for limit in verdict.limits] == [(20, 0)] * 2


@pytest.mark.parametrize("measure", ["violating_sampled_rate", "reply_tokens", "reward", "repetitive_sampled_rate"])
def test_a_drawn_probe_without_a_value_on_either_side_is_unscored(measure: str) -> None:
    """As when a judge judged neither reply, or no server answered."""
    values: list[float | None] = [0.5, 0.0, None, 0.5, 0.25, 0.5]
    own = [side(model, **{measure: values}) for model in ("before", "after")]
    verdict = prove_contract(*own, contract({"measure": measure, "max": 100}, {"measure": measure, "max_increase": 9}))
    assert [(limit.passed, limit.n, limit.unscored) for limit in verdict.limits] == [(False, 5, 1)] * 2


@pytest.mark.parametrize("measure", ["violating_sampled_rate", "reply_tokens"])
def test_a_drawn_probe_that_lacks_one_side_is_unscored(measure: str) -> None:
    full: list[float | None] = [0.5, 0.0, 0.25, 0.5, 0.25]
    lacking: list[float | None] = [0.25, 0.0, None, 0.5, 0.0]
    bounds = [{"measure": measure, "max": 100}, {"measure": measure, "max_increase": 100}]
    after_lacks = prove_contract(
        side("before", **{measure: full}), side("after", **{measure: lacking}), contract(*bounds)
    )
    assert [(limit.passed, limit.unscored) for limit in after_lacks.limits] == [(False, 1)] * 2
    before_lacks = prove_contract(
        side("before", **{measure: lacking}), side("after", **{measure: full}), contract(*bounds)
    )
    assert [(limit.passed, limit.unscored) for limit in before_lacks.limits] == [(True, 0), (False, 1)]


def test_one_violation_does_not_pass_where_none_fails() -> None:
    def verdict(violations: int) -> Verdict:
        rates: list[float | None] = [0.25] * violations + [0.0] * (48 - violations)
        scores = (side(model, violating_sampled_rate=rates) for model in ("before", "after"))
        return prove_contract(*scores, contract({"measure": "violating_sampled_rate", "max": 0.05}))

    assert [verdict(violations).passed for violations in range(3)] == [False] * 3  # 0 of 48 shows no less than 7.4 %


def test_a_verdict_survives_json() -> None:
    before, after = sides()
    after[3] = Score("probe-3", "tone", "after", None, {**after[3].values, "violating_opening_mass": math.nan})
    limits = [{"measure": m, "max": 0.2} for m in ("violating_opening_mass", "displaced_share", "safe_sampled_rate")]
    verdict = prove_contract(before, after, contract(*limits))
    text = json.dumps(verdict.to_json(), allow_nan=False)
    assert Verdict.from_json(json.loads(text)) == verdict


def test_every_limit_in_the_verdict_holds_its_evidence() -> None:
    limits = [{"measure": "violating_opening_mass", "max": 0.2}, {"measure": "safe_logp", "min_increase": 0}]
    data = json.loads(json.dumps(prove_contract(*sides(), contract(*limits)).to_json()))
    assert data["passed"] is True and (data["confidence"], data["seed"]) == (0.95, 0)
    assert [limit["id"] for limit in data["limits"]] == [
        "tone.violating_opening_mass.max=0.2",
        "tone.safe_logp.min_increase=0",
    ]
    for limit in data["limits"]:
        assert (limit["behaviour"], limit["n"], limit["passed"]) == ("tone", 40, True)
        assert limit["measure"] in ("violating_opening_mass", "safe_logp")
        assert limit["difference"] == pytest.approx(limit["after"] - limit["before"])
        assert limit["low"] < limit["difference"] < limit["high"]
        assert limit["after_low"] < limit["after"] < limit["after_high"]


def test_clusters_that_are_all_alike_have_the_interval_of_values_that_are_the_same() -> None:
    """Their values differ within each cluster only, so that no resampling sees anything."""
    clusters = [f"c{place // 2}" for place in range(20)]
    for values, outcomes in (([0.1, 0.3] * 10, False), ([0.0, 1.0] * 10, True), ([0.1, 0.3] * 10, True)):
        found = estimate_mean(values, clusters=clusters, outcomes=outcomes, **HOW)
        alike = estimate_mean([sum(values) / 20] * 10, outcomes=outcomes, **HOW)
        assert (found.low, found.high) == pytest.approx((alike.low, alike.high)) and found.clusters == 10
    assert estimate_mean([-1.0, 1.0] * 10, clusters=clusters, ends=None, **HOW).low is None
