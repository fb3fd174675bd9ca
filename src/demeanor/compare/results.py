"""What a comparison says of each run: its proof, its collateral damage, and what its training took."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from demeanor.attack_settings import GIVEN
from demeanor.contract import Contract, Limit
from demeanor.records import Comparison, Estimate, Record, Verdict
from demeanor.report.words import BAD_MEASURES, WITHOUT_BEFORE, parse_rule, unit

# the first that a behaviour has; the last of a reward model alone, which has one before training
GOOD_MEASURES = ("safe_opening_mass", "safe_logp_per_token", "safe_sampled_rate", "reward_accuracy")
# A change for the worse that counts as all that is allowed where the contract states no such bound, by unit.
ALLOWED = {"probability": 0.05, "nats": 0.5}


@dataclass(frozen=True, slots=True)
class Proof(Record):
    """A permanent behaviour: the bad and the good reply before and after. `limit`: the most the bad one may be."""

    behaviour: str
    bad: Comparison | None
    good: Comparison | None
    limit: float | None


@dataclass(frozen=True, slots=True)
class Damage(Record):
    """One measure of something that must not get worse.

    `allowed` is the change for the worse that the contract allows (`stated`), or else ALLOWED, in the measure's unit;
    `used` is the change for the worse as a share of it: 1 is all of it, below 0 the measure got better.
    """

    comparison: Comparison
    allowed: float
    stated: bool
    used: Estimate


@dataclass(frozen=True, slots=True)
class Usage(Record):
    """What the training took; None where it was not measured.

    `reference_seconds` is what this run spent on the reference, `reward_model_seconds` what the training of its reward
    models took. `charged_seconds` is what a run that finds neither would have spent on both: for the reference the most
    that any of the compared runs did, 0 without one or where the training has it inside.
    `peak_bytes` is above the process's memory before the model was loaded. `hours` are those of a core or accelerator.
    """

    training_seconds: float | None
    reference_seconds: float | None
    charged_seconds: float
    peak_bytes: int | None
    device: str | None
    name: str | None
    count: int | None
    reward_model_seconds: float | None = None

    @property
    def hours(self) -> float | None:
        if self.training_seconds is None or self.count is None:
            return None
        return (self.training_seconds + self.charged_seconds) * self.count / 3600

    @property
    def hours_of(self) -> str:
        return "core hours" if self.device in ("cpu", None) else "GPU hours"

    def to_json(self) -> dict[str, Any]:
        return {**Record.to_json(self), "hours": self.hours, "hours_of": self.hours_of}


@dataclass(frozen=True, slots=True)
class RunResult(Record):
    """One run. `settings` are the keys of its training in which the compared runs differ."""

    name: str
    folder: str
    objective: str
    settings: dict[str, Any]
    passed: bool
    num_passed: int
    num_limits: int
    proofs: tuple[Proof, ...]
    damages: tuple[Damage, ...]
    usage: Usage

    @property
    def worst_damage(self) -> Damage | None:
        """The measure that used up most of what is allowed; one that could not be computed is worse than any."""
        return max(self.damages, key=lambda d: math.inf if d.used.value is None else d.used.value, default=None)

    @property
    def worst_proof(self) -> Proof | None:
        """The behaviour whose bad reply is likeliest after training."""
        known = [p for p in self.proofs if p.bad is not None and p.bad.after.value is not None]
        return max(known, key=lambda p: (p.bad.after.value or 0.0) if p.bad else 0.0, default=None)

    def to_json(self) -> dict[str, Any]:
        worst = self.worst_damage
        named = None if worst is None else [worst.comparison.behaviour, worst.comparison.measure]
        return {**Record.to_json(self), "usage": self.usage.to_json(), "worst_damage": named}


def proofs_of(verdict: Verdict, collateral: Collection[str]) -> tuple[Proof, ...]:
    """One a behaviour that is not collateral."""
    names = dict.fromkeys(c.behaviour for c in verdict.comparisons if c.behaviour not in collateral)
    found = []
    for name in names:
        bad, good = (_first(verdict, name, measures) for measures in (BAD_MEASURES, GOOD_MEASURES))
        given = [limit for limit in verdict.limits if limit.behaviour == name and limit.over == GIVEN]
        own = [limit for limit in given if bad and limit.measure == bad.measure]
        rules = [rule for limit in own if (rule := parse_rule(limit.rule)) is not None]
        bounds = [bound for relative, upper, bound in rules if upper and not relative]
        found.append(Proof(name, bad, good, min(bounds, default=None)))
    return tuple(found)


def damages_of(verdict: Verdict, contract: Contract) -> tuple[Damage, ...]:
    """Of each collateral promise: the bad reply, the good one, and every other measure that a limit names."""
    found = []
    for name, promise in contract.collateral.items():
        limits = [limit for limit in promise.limits if limit.measure not in WITHOUT_BEFORE and limit.over == GIVEN]
        usual = [_first(verdict, name, measures) for measures in (BAD_MEASURES, GOOD_MEASURES)]
        measures = dict.fromkeys([*(c.measure for c in usual if c), *(limit.measure for limit in limits)])
        for measure in measures:
            own = _first(verdict, name, (measure,))
            if own is None:
                none = Estimate(None, None, None, 0)
                own = Comparison(name, measure, none, none, none)
            found.append(_damage(own, [limit for limit in limits if limit.measure == measure]))
    return tuple(found)


def _damage(comparison: Comparison, limits: list[Limit]) -> Damage:
    rooms = [room for limit in limits if (room := _room(limit, comparison.before.value)) is not None]
    stated = [size for _, size in rooms if size > 0]
    falls = {sign < 0 for sign, _ in rooms} or {comparison.measure in GOOD_MEASURES}
    allowed = min(stated, default=ALLOWED.get(unit(comparison.measure), 1.0))
    scale = (-1.0 if falls == {True} else 1.0) / allowed
    change = comparison.difference
    ends = sorted(scale * end for end in (change.low, change.high) if end is not None)
    low, high = ends if len(ends) == 2 else (None, None)
    value = None if change.value is None else scale * change.value
    return Damage(comparison, allowed, bool(stated), Estimate(value, low, high, change.n, change.unscored))


def _room(limit: Limit, before: float | None) -> tuple[int, float] | None:
    """(1 where a rise is harm and -1 where a fall is, how much of it the limit allows), in the measure's unit."""
    kind, bound = limit.kind, limit.bound
    if kind == "within":  # both are harm: the one that is harm where nothing is stated
        return -1 if limit.measure in GOOD_MEASURES else 1, bound
    sign = 1 if kind.startswith("max") else -1
    if kind.endswith("_increase"):
        return sign, sign * bound
    if kind.endswith("_ratio"):
        return None if before is None else (sign, sign * (bound - 1.0) * before)
    return None if before is None else (sign, sign * (bound - before))


def _first(verdict: Verdict, behaviour: str, measures: Collection[str]) -> Comparison | None:
    own = {
        c.measure: c
        for c in verdict.comparisons
        if c.behaviour == behaviour and not (c.measure in WITHOUT_BEFORE and c.before.value is None)
    }
    return next((own[measure] for measure in measures if measure in own), None)
