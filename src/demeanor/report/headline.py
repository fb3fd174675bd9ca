"""The verdict in one sentence that a manager understands, and no stronger than the numbers."""

from __future__ import annotations

from collections.abc import Collection

from demeanor.records import SIDES, Comparison, LimitResult, Verdict
from demeanor.report.words import BAD_MEASURES, SPACE, percent, plural

BARELY = 0.005  # a probability that changed by at most this, and by at most a tenth, "barely moved"


def headline(verdict: Verdict, collateral: Collection[str]) -> str:
    """The verdict in one sentence: what became of the bad reply, and whether the limits hold."""
    limits = verdict.limits
    num_waived = sum(limit.state == "waived" for limit in limits)
    num_failed = sum(not limit.passed for limit in limits) - num_waived
    if not limits:
        end = "the contract states no limit, so nothing is proven"
    elif verdict.weakened:
        num_failed = num_failed or 1
        were = plural(len(verdict.weakened), "limit was", "limits were")
        end = f"{were} loosened, removed or measured otherwise after the training"
    elif num_failed:
        end = f"{num_failed} of {plural(len(limits), 'limit')} {'does' if num_failed == 1 else 'do'} not hold"
    elif num_waived:
        end = f"{len(limits) - num_waived} of {plural(len(limits), 'limit')} hold, {num_waived} by a waiver only"
        num_failed = 0 if verdict.passed else 1
    else:
        end = {1: "the one limit holds", 2: "both limits hold"}.get(len(limits), f"all {len(limits)} limits hold")
    told = _reward_model(verdict)
    if told is not None:
        return f"{told}; {end}."
    found = _bad_reply(verdict, collateral)
    if found is None:
        return end[0].upper() + end[1:] + "; how likely a bad reply is was not measured."
    measure, parts = found
    what = {
        "violating_opening_mass": "The probability of a bad reply",
        "violating_sampled_rate": "The share of bad replies among the sampled ones",
        "violating_choice_probability": "The probability of the bad reply, when only the given replies could be said,",
    }[measure]
    total = sum(part.after.n for part in parts)
    before, after = (sum(getattr(p, side).value * p.after.n for p in parts) / total for side in SIDES)
    falls = [p for p in parts if p.difference.high is not None and p.difference.high < 0]
    rises = [p for p in parts if p.difference.low is not None and p.difference.low > 0]
    joint = ", but " if falls and (num_failed or not limits) else ", and "
    old, new = _apart(before, after)
    moved = f"from {old} to {new}"
    where = f" on {plural(total, 'held-out prompt')}"
    if abs(after - before) <= min(BARELY, before / 10):
        return f"{what} barely moved, {moved}{where}, {'but' if num_failed or not limits else 'and'} {end}."
    if len(falls) == len(parts) or len(rises) == len(parts):
        return f"{what} {'fell' if falls else 'rose'} {moved}{where}{joint}{end}."
    if not falls and not rises:
        return f"{what} went {moved}{where}, a change that chance alone could explain{joint}{end}."
    counts = {"fell": len(falls), "rose": len(rises)}
    sides = " and ".join(f"{verb} beyond chance in {count}" for verb, count in counts.items() if count)
    return f"{what} went {moved}{where} (it {sides} of {len(parts)} behaviours){joint}{end}."


def _reward_model(verdict: Verdict) -> str | None:
    """What the reward model prefers, beside what length alone reaches; None when the run trained none."""
    own = [c for c in verdict.comparisons if c.measure == "reward_accuracy" and c.before.value is not None]
    if not own:
        return None
    names = {c.behaviour for c in own}
    lengths = [c for c in verdict.comparisons if c.measure == "length_accuracy" and c.behaviour in names]
    total = sum(c.after.n for c in own)
    before, after = (sum((getattr(c, side).value or 0.0) * c.after.n for c in own) / total for side in SIDES)
    text = (
        f"The reward model prefers the winning reply of {percent(after)} of {plural(total, 'held-out pair')} "
        f"({percent(before)} before training"
    )
    known = [(c.after.value, c.after.n) for c in lengths if c.after.value is not None]
    if known:
        text += (
            f"; the better rule about length alone {percent(sum(v * n for v, n in known) / sum(n for _, n in known))}"
        )
    return text + ")"


def _apart(one: float, other: float) -> tuple[str, str]:
    """Both in per cent, with as many digits as tell them apart, if four do."""
    if one != other and percent(one) == percent(other):
        for digits in (2, 3, 4):
            if percent(one, digits) != percent(other, digits):
                return percent(one, digits), percent(other, digits)
    return percent(one), percent(other)


def _bad_reply(verdict: Verdict, collateral: Collection[str]) -> tuple[str, list[Comparison]] | None:
    """The measure of the bad reply that most trained behaviours have, and the comparisons of it."""
    best: tuple[str, list[Comparison]] | None = None
    for measure in BAD_MEASURES:
        own = [
            c
            for c in verdict.comparisons
            if c.measure == measure
            and c.behaviour not in collateral
            and c.before.value is not None
            and c.after.value is not None
        ]
        if own and (best is None or len(own) > len(best[1])):
            best = measure, own
    return best


def holding(verdict: Verdict) -> str:
    """How many limits hold, and at which confidence; of a verdict that failed also how many claims hold together."""
    if not verdict.limits:
        return "No limit is stated."
    passed, total = sum(limit.passed for limit in verdict.limits), len(verdict.limits)
    levels = {limit.confidence or verdict.confidence for limit in verdict.limits}
    level = " to ".join(f"{100 * level:g}" for level in sorted({min(levels), max(levels)}))
    hold = "holds" if passed == 1 else "hold"
    told = f"{passed} of {plural(total, 'limit')} {hold}, each judged by an interval of {level}{SPACE}% confidence."
    together = sum(holds_among_all(limit) for limit in verdict.limits)
    if not verdict.passed and together < passed:
        told += f" As claims of their own, picked from all, {together} of these hold (Holm)."
    waived = sum(limit.state == "waived" for limit in verdict.limits)
    return told + (f" {plural(waived, 'limit is', 'limits are')} waived." if waived else "")


def holds_among_all(limit: LimitResult) -> bool:
    """Does it hold with its p-value corrected over all limits of the verdict?"""
    return limit.passed and (limit.p_holm is None or limit.p_holm <= 1.0 - (limit.confidence or 0.0) + 1e-12)
