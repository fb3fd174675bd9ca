"""A limit against its evidence: pass, fail, not shown, or waived; and whether the limits are those that were fixed.

`demeanor.significance` says how the levels of the limits and of the verdict fit together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

from demeanor.contract import Contract, Limit, Waiver
from demeanor.errors import InputError
from demeanor.prove.measured import Measured
from demeanor.prove.series import Series
from demeanor.records import Comparison, Estimate, LimitResult

MIN_PROBES = 5  # a bootstrap over fewer is no interval worth the name
PASS, FAIL, NOT_SHOWN, WAIVED = "pass", "fail", "not shown", "waived"
_NONE = Estimate(None, None, None, 0)


def judge(behaviour: str, limit: Limit, series: Series | None, confidence: float) -> LimitResult:
    """Hold one limit against the measure's values (None: the measure has none); `confidence` unless it has its own.

    A relative limit, after <= r * before, is judged by the mean of after - r * before, paired by probe: the interval
    of a ratio would need the denominator to be away from 0.
    """
    kind, bound = limit.kind, limit.bound
    confidence = limit.confidence or confidence
    comparison = Comparison(behaviour, limit.measure, _NONE, _NONE, _NONE)
    estimate, effective, p, reason = _NONE, 0.0, 1.0, ""
    keeps = holds = False
    if series is not None:
        comparison = series.compare(confidence)
        sample = series.sample(None if kind in ("max", "min") else bound if kind.endswith("_ratio") else 1.0)
        effective = sample.num_effective
        estimate, target = sample.estimate(confidence), 0.0 if kind.endswith("_ratio") else bound
        reason = _no_evidence(estimate, effective)
        if estimate.value is not None and estimate.low is not None and estimate.high is not None:
            what = f"of after - {bound:g} * before " if kind.endswith("_ratio") else ""
            value, low, high = estimate.value, estimate.low, estimate.high
            if kind == "within":
                holds, keeps = -bound <= low and high <= bound, abs(value) <= bound
                end = f"the interval is [{low:.4g}, {high:.4g}]"
            elif kind.startswith("max"):
                holds, keeps = high <= target, value <= target
                end = f"the interval's upper end {what}is {high:.4g}"
            else:
                holds, keeps = low >= target, value >= target
                end = f"the interval's lower end {what}is {low:.4g}"
            if not reason:
                p = (
                    sample.p_between(-bound, bound)
                    if kind == "within"
                    else sample.p_at_most(target)
                    if kind.startswith("max")
                    else sample.p_at_least(target)
                )
            holds, reason = holds and not reason, reason or end
    else:
        reason = _no_evidence(estimate, effective)
    return LimitResult(
        id=limit.id(behaviour),
        behaviour=behaviour,
        measure=limit.measure,
        rule=limit.rule,
        before=comparison.before.value,
        after=comparison.after.value,
        difference=comparison.difference.value,
        low=comparison.difference.low,
        high=comparison.difference.high,
        after_low=comparison.after.low,
        after_high=comparison.after.high,
        n=estimate.n,
        unscored=estimate.unscored,
        passed=holds,
        reason=reason,
        state=PASS if holds else FAIL if not keeps and not reason.startswith(NOT_SHOWN) else NOT_SHOWN,
        evidence=estimate,
        confidence=confidence,
        p=p,
        over=limit.over,
    )


def _no_evidence(estimate: Estimate, effective: float) -> str:
    """Why nothing can be said; "" when something can. `effective`: number of clusters of one size."""
    if estimate.value is None:
        return "not shown: there is no score"
    if estimate.unscored:
        return f"not shown: {estimate.unscored} probes could not be scored"
    if estimate.n < MIN_PROBES:
        return f"not shown: {estimate.n} probes are too few, at least {MIN_PROBES} are needed"
    if estimate.clusters is not None and estimate.clusters < MIN_PROBES:
        return f"not shown: {estimate.clusters} clusters of probes are too few, at least {MIN_PROBES} are needed"
    if effective < MIN_PROBES:
        return (
            f"not shown: {estimate.clusters} clusters of probes of such unequal sizes count as {effective:.1f}, "
            f"at least {MIN_PROBES} are needed"
        )
    if estimate.low is None or estimate.high is None:
        return f"not shown: {estimate.n} probes give no interval"
    return ""


def corrected(limits: Sequence[LimitResult]) -> tuple[LimitResult, ...]:
    """With Holm's p-values over all of them."""
    from demeanor.significance import holm

    adjusted = holm([1.0 if limit.p is None else limit.p for limit in limits])
    return tuple(replace(limit, p_holm=p) for limit, p in zip(limits, adjusted, strict=True))


def waived(limit: LimitResult, waivers: Sequence[Waiver], today: date) -> LimitResult:
    """A limit that does not hold, under a waiver that still counts; one that ended is said."""
    own = [waiver for waiver in waivers if waiver.limit == limit.id]
    if limit.passed or not own:
        return limit
    last = max(own, key=lambda waiver: waiver.until)
    if last.until < today:
        return replace(limit, reason=f"{limit.reason}; its waiver by {last.who} ended on {last.until}")
    return replace(limit, state=WAIVED, waiver={"who": last.who, "why": last.why, "until": last.until.isoformat()})


def waivers_in_effect(contract: Contract, today: date | None = None) -> list[dict[str, Any]]:
    """As JSON: what a verdict of today (by default the day in UTC) depends on."""
    day = today or datetime.now(UTC).date()
    return [waiver.model_dump(mode="json") for waiver in contract.waivers if waiver.until >= day]


def fixed_limits(contract: Contract, measured: Measured | None = None) -> list[dict[str, Any]]:
    """The limits as they are stored before the training starts: {behaviour, limit, confidence, measured}."""
    return [
        {
            "behaviour": name,
            "limit": limit.model_dump(mode="json", exclude_none=True),
            "confidence": limit.confidence or contract.measurement.confidence,
            **({} if measured is None else {"measured": measured.of(name, limit)}),
        }
        for name, promise in contract.promises.items()
        for limit in promise.limits
    ]


def weakened_limits(
    fixed: Sequence[dict[str, Any]], contract: Contract, measured: Measured | None = None
) -> tuple[str, ...]:
    """Ids of the limits that were fixed and that no limit of the contract implies at their confidence, or that are now
    measured otherwise, with what differs.

    A verdict that passes under stricter or additional limits passes under those that were fixed too; one that passes
    only because a limit was loosened, removed or given another meaning, after the scores could be seen, has no level.
    Run folders of older versions do not say how their limits were measured.

    Raises:
        InputError: `fixed` is not what `fixed_limits` wrote.
    """
    default, found = contract.measurement.confidence, []
    for item in fixed:
        try:
            name, confidence, limit = item["behaviour"], float(item["confidence"]), Limit(**item["limit"])
            then = dict(item.get("measured", {}))
        except (KeyError, TypeError, ValueError):
            raise InputError(
                "the limits that were fixed before the training are damaged", where="manifest.json"
            ) from None
        promise = contract.promises.get(name)
        kept = any(
            own.implies(limit) and (own.confidence or default) >= confidence
            for own in (promise.limits if promise else ())
        )
        if not kept:
            found.append(f"{limit.id(name)} at {confidence:.4g}, max_regression {limit.regression:g}")
        elif measured is not None and then:
            now = measured.of(name, limit)
            differing = [part for part, value in then.items() if now.get(part) != value]
            if differing:
                found.append(f"{limit.id(name)}, measured otherwise than was fixed ({', '.join(differing)})")
    return tuple(found)
