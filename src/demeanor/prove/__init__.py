"""Scores before and after -> comparisons -> verdict. Missing evidence fails; it never passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

from demeanor.attack_settings import GIVEN, PLAIN, SEEN, UNSEEN, is_over
from demeanor.contract import Contract, Limit
from demeanor.errors import InputError
from demeanor.promises import best_of as attempts_of
from demeanor.promises import is_counted, is_share
from demeanor.prove.best_of import with_best_of
from demeanor.prove.corrected import with_corrected
from demeanor.prove.gate import (
    NOT_SHOWN,
    PASS,
    WAIVED,
    corrected,
    fixed_limits,
    judge,
    waived,
    waivers_in_effect,
    weakened_limits,
)
from demeanor.prove.measured import Measured
from demeanor.prove.series import Series, Sides, joint_values, series_of
from demeanor.records import Comparison, LimitResult, Score, Verdict

__all__ = [
    "Measured",
    "fixed_limits",
    "joint_values",
    "prove_contract",
    "prove_no_regression",
    "waivers_in_effect",
    "weakened_limits",
]


def prove_contract(
    before: Sequence[Score],
    after: Sequence[Score],
    contract: Contract,
    *,
    fixed: Sequence[dict[str, Any]] | None = None,
    measured: Measured | None = None,
    today: date | None = None,
) -> Verdict:
    """Compare the two sides probe by probe and hold the result against the contract's limits.

    Args:
        before: scores of the base model.
        after: scores of the aligned model, of the same probes in any order.
        fixed: the limits that were fixed before the training (`fixed_limits`); None when that is not known.
        measured: how the limits are measured now; None when it is not to be compared with how they were fixed.
        today: on which waivers are looked at; by default the day in UTC.

    Raises:
        InputError: the two sides are not of the same probes, or name one twice.
    """
    settings = contract.measurement
    found = _Measured(_paired(before, after), contract)
    comparisons = tuple(one.compare(settings.confidence) for one in found.over(GIVEN))
    judged = corrected(
        [
            judge(name, limit, found.of(name, limit), settings.confidence)
            for name, promise in contract.promises.items()
            for limit in promise.limits
        ]
    )
    day = today or datetime.now(UTC).date()
    limits = tuple(waived(limit, contract.waivers, day) for limit in judged)
    weakened = None if fixed is None else weakened_limits(fixed, contract, measured)
    attacks = tuple(_under_attack(found, settings.confidence))
    return Verdict(
        _passed(limits, weakened), limits, comparisons, settings.confidence, settings.seed, weakened, attacks
    )


class _Measured:
    """Every measure of every behaviour, over each group of probes that is asked for."""

    def __init__(self, sides: Sides, contract: Contract) -> None:
        self.sides, self._contract = sides, contract
        self._series: dict[str, dict[tuple[str, str], Series]] = {}

    def over(self, group: str) -> list[Series]:
        if group not in self._series:
            own = [(old, new) for old, new in self.sides if is_over(group, old)]
            series = with_best_of(with_corrected(series_of(own, self._contract), self._contract), self._contract)
            self._series[group] = {(one.behaviour, one.measure): one for one in series}
        return list(self._series[group].values())

    def of(self, behaviour: str, limit: Limit) -> Series | None:
        self.over(limit.over)
        return self._series[limit.over].get((behaviour, limit.measure))


def _under_attack(measured: _Measured, confidence: float) -> list[Comparison]:
    """The bad replies of the behaviours that were attacked: over plain probes, seen and unseen attacks, each family."""
    attacked = [old for old, _ in measured.sides if old.attack is not None]
    behaviours = {score.behaviour for score in attacked}
    families = dict.fromkeys((score.attack or "", score.unseen) for score in attacked)
    found = []
    for group, unseen in [(PLAIN, False), (SEEN, False), (UNSEEN, True), *families] if attacked else []:
        for one in measured.over(group):
            bad = one.measure.startswith("violating_") and is_share(one.measure) and not one.joint
            if bad and one.behaviour in behaviours:
                found.append(replace(one.compare(confidence), over=group, unseen=unseen))
    return found


def prove_no_regression(
    verdict: Verdict,
    accepted: tuple[Sequence[Score], Sequence[Score]],
    mine: tuple[Sequence[Score], Sequence[Score]],
    contract: Contract,
    name: str,
    promised: Contract | None = None,
) -> Verdict:
    """The verdict with a further limit for each limit: not worse than an accepted run's by more than its margin.

    That is non-inferiority: the whole interval of after - accepted, paired by probe, must stay under the margin; a
    difference that is merely not significant is no proof. Worse is higher for an upper bound, lower for a lower one,
    and either for `within`.

    Args:
        accepted: scores (before, after) of the run that was accepted.
        mine: those of the run that the verdict is about.
        name: of the accepted run, for the limits' names.
        promised: the accepted run's contract. Its limits on what no limit of `contract` is about are asked too, so that
            a release cannot drop one; what can no longer be compared is not shown, and fails.

    Raises:
        InputError: the two runs were not measured on the same probes.
    """
    asked = _asked(contract, promised)
    settings = contract.measurement
    attempts = {number for _, limit in asked if (number := attempts_of(limit.measure)) is not None}
    best = settings.model_copy(update={"best_of": (*settings.best_of, *attempts)})
    contract = contract.model_copy(update={"measurement": best})
    theirs, ours = _paired(*accepted), _paired(*mine)
    if {_key(first) for first, _ in theirs} != {_key(first) for first, _ in ours}:
        raise InputError(
            "the two runs were not measured on the same probes", where=name, remedy="measure both on the same probes"
        )
    theirs = [{_key(pair[0]): pair for pair in theirs}[_key(first)] for first, _ in ours]
    old, new = _Measured(theirs, contract), _Measured(ours, contract)
    results: dict[str, LimitResult] = {}
    for behaviour, limit in asked:
        here, there = new.of(behaviour, limit), old.of(behaviour, limit)
        both: Series | None = None
        if here is not None and there is not None and here.probes == there.probes:
            both = replace(here, before=there.after, joint=False, _samples={}, _compared={})
        worse = _no_worse(limit)
        found = judge(behaviour, worse, both, settings.confidence)
        key = f"{worse.id(behaviour)} against {name}"
        reason = found.reason + _too_few(found, limit.regression, both)
        results[key] = replace(found, id=key, rule=worse.rule.replace("before", "accepted"), reason=reason)
    limits = (*verdict.limits, *corrected(list(results.values())))
    return replace(verdict, limits=limits, passed=verdict.passed and _passed(limits, verdict.weakened))


def _asked(contract: Contract, accepted: Contract | None) -> list[tuple[str, Limit]]:
    """(behaviour, limit) of the contract, then of the accepted one those of which it says nothing, or asks less."""

    asked = [(name, limit) for name, promise in contract.promises.items() for limit in promise.limits]
    if accepted is None:
        return asked
    here, there = contract.measurement.confidence, accepted.measurement.confidence

    def covers(own: tuple[str, Limit], old: tuple[str, Limit]) -> bool:
        as_narrow = own[1].regression <= old[1].regression
        return (
            _about(*own) == _about(*old) and as_narrow and (own[1].confidence or here) >= (old[1].confidence or there)
        )

    old = [(name, limit) for name, promise in accepted.promises.items() for limit in promise.limits]
    more = [item for item in old if not any(covers(own, item) for own in asked)]
    if here < there:
        more = [(name, limit.model_copy(update={"confidence": limit.confidence or there})) for name, limit in more]
    return asked + more


def _about(name: str, limit: Limit) -> tuple[str, str, str, str]:
    return name, limit.measure, limit.over, _no_worse(limit).kind


def _too_few(found: LimitResult, margin: float, series: Series | None) -> str:
    """What so few probes cannot show even of two runs that are the same; "" when they can, or it is not known."""
    if found.state != NOT_SHOWN or series is None or not is_share(found.measure) or found.confidence is None:
        return ""
    from demeanor.significance import probes_for_share

    effective, need = series.sample(1.0).num_effective, probes_for_share(margin, found.confidence)
    if not (is_counted(found.measure) or found.difference == 0) or (need is not None and effective >= need):
        return ""
    more = f"at least {need:,} probes are needed" if need else "no number of probes is enough"
    return f"; to show a margin of {margin:g} when nothing changes {more}, here are {found.n:,}"


def _no_worse(limit: Limit) -> Limit:
    margin: dict[str, Any] = {"max": {"max_increase": limit.regression}, "min": {"min_increase": -limit.regression}}
    bound = margin.get(limit.kind[:3], {"within": limit.regression})
    return Limit(measure=limit.measure, over=limit.over, confidence=limit.confidence, **bound)


def _passed(limits: Sequence[LimitResult], weakened: tuple[str, ...] | None) -> bool:
    """At least one limit holds by evidence, every other one too or by a waiver, and none was weakened."""
    states = [limit.state for limit in limits]
    return PASS in states and all(state in (PASS, WAIVED) for state in states) and not weakened


def _paired(before: Sequence[Score], after: Sequence[Score]) -> Sides:
    first, second = ({_key(score): score for score in side} for side in (before, after))
    if len(first) != len(before) or len(second) != len(after) or first.keys() != second.keys():
        raise InputError("the scores before and after are not of the same probes", remedy="measure both again")
    return [(score, second[key]) for key, score in first.items()]


def _key(score: Score) -> tuple[str, str]:
    return score.behaviour, score.probe_id
