"""What the training was not to change: each figure of the collateral, and how large a change the evidence excludes.

A difference that is merely not significant is no proof that nothing changed. What is shown instead is equivalence: the
whole interval of after - before lies within a bound (two one-sided tests; Schuirmann 1987). Where the contract states
no bound, the smallest one that the interval shows is named.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from demeanor.contract import Contract
from demeanor.records import Comparison, LimitResult, Verdict
from demeanor.report.words import NOT_SHOWN, interval_words, measure_words, percent, rule_words, value_words

_SHOWN = (
    "violating_opening_mass", "violating_sampled_rate", "safe_sampled_rate", "minimal_pair_accuracy",
    "task_accuracy",
    "text_logp_per_token", "neutral_kl", "safe_logp_per_token", "reply_tokens", "invalid_sampled_rate",
    "repetitive_sampled_rate",
)  # fmt: skip


@dataclass(frozen=True)
class UnchangedView:
    """A row of the table. `state`: pass or not shown where the contract has a bound, else ""."""

    behaviour: str
    what: str
    measure_id: str
    before: str
    after: str
    difference: str
    difference_interval: str
    n: int
    state: str
    statement: str


def unchanged_views(contract: Contract, verdict: Verdict) -> list[UnchangedView]:
    """The figures of every collateral behaviour, in the contract's order."""
    views = []
    for name in contract.collateral:
        own = {c.measure: c for c in verdict.comparisons if c.behaviour == name}
        for measure in _SHOWN:
            comparison = own.get(measure)
            if comparison is None or (measure == "safe_sampled_rate" and not _refusing_is_right(contract, name)):
                continue
            limit = next(
                (x for x in verdict.limits if (x.behaviour, x.measure) == (name, measure) and x.rule.startswith("|")),
                None,
            )
            state, statement = _statement(comparison, limit, verdict.confidence)
            views.append(
                UnchangedView(
                    behaviour=name,
                    what=_what(contract, name, measure),
                    measure_id=measure,
                    before=value_words(comparison.before.value, measure),
                    after=value_words(comparison.after.value, measure),
                    difference=value_words(comparison.difference.value, measure, change=True),
                    difference_interval=interval_words(comparison.difference, measure, change=True),
                    n=comparison.difference.n,
                    state=state,
                    statement=f"{statement}{_perplexity(comparison)}",
                )
            )
    return views


def _refusing_is_right(contract: Contract, name: str) -> bool:
    judge = contract.promises[name].judge
    return judge.kind == "refusal" and judge.refused == "safe"


def _what(contract: Contract, name: str, measure: str) -> str:
    judge = contract.promises[name].judge
    if judge.kind == "refusal" and measure == "violating_sampled_rate":
        return "harmless prompts refused" if judge.refused == "violating" else "harmful prompts answered"
    if judge.kind == "refusal" and measure == "safe_sampled_rate":
        return "harmful prompts refused"
    return measure_words(measure)


def _statement(comparison: Comparison, limit: LimitResult | None, confidence: float) -> tuple[str, str]:
    """(state, what is shown) of the difference."""
    measure, found = comparison.measure, comparison.difference
    if limit is not None:
        bound = rule_words(limit.rule, measure).removeprefix("the same, to ").removesuffix(" as before")
        if limit.passed:
            return "pass", f"shown to change by less than {bound}"
        return "not shown", f"not shown to change by less than {bound}: {limit.reason.removeprefix(NOT_SHOWN + ': ')}"
    if found.low is None or found.high is None:
        return "", f"{NOT_SHOWN}: there is no interval"
    size = value_words(max(abs(found.low), abs(found.high)), measure, change=True).lstrip("+")
    beyond = "" if found.low <= 0 <= found.high else "; it did change beyond chance"
    return "", f"no bound is stated; shown at {100 * confidence:g} % to change by at most {size}{beyond}"


def _perplexity(comparison: Comparison) -> str:
    """exp(-log p per token): the geometric mean of the texts' perplexities."""
    before, after, found = comparison.before.value, comparison.after.value, comparison.difference
    if comparison.measure != "text_logp_per_token" or before is None or after is None:
        return ""
    text = f"; perplexity {math.exp(-before):.2f} → {math.exp(-after):.2f}"
    if found.low is None or found.high is None:
        return text
    low, high = (percent(math.exp(-end), 1) for end in (found.high, found.low))
    return f"{text}, which is {low} to {high} of what it was"
