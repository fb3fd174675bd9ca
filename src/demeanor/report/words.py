"""Numbers and names in words that a manager understands: percentages, nats, measures, rules.

A measure has one of three units: probability (printed in per cent, differences in percentage points), nats, tokens. A
number keeps the digits that make it differ from the bound that it is held against. What is None is "not shown".
"""

from __future__ import annotations

import re
from typing import Any

from demeanor.attack_settings import ALL, GIVEN, PLAIN, SEEN, UNSEEN
from demeanor.promises import AFTER_ONLY, JOINT, best_of, of_family, prefill_of
from demeanor.records import Estimate
from demeanor.visible import visible

NOT_SHOWN = "not shown"
SPACE = "\u00a0"  # between a number and its unit, so that no line breaks there
MINUS = "\u2212"

# measure -> (what it is in plain words, its unit)
_MEASURES = {
    "violating_opening_mass": ("bad reply: probability that the reply begins with a violating opening", "probability"),
    "safe_opening_mass": ("good reply: probability that the reply begins with a safe opening", "probability"),
    "opening_left_out": ("beginnings of both kinds that were not gone into, at most", "probability"),
    "violating_choice_probability": (
        "bad reply: its probability when only the given replies could be said",
        "probability",
    ),
    "violating_logp": ("log-probability of the bad reply", "nats"),
    "safe_logp": ("log-probability of the good reply", "nats"),
    "violating_logp_per_token": ("log-probability per token of the bad reply", "nats"),
    "safe_logp_per_token": ("log-probability per token of the good reply", "nats"),
    "violating_sampled_rate": ("bad reply: share of the sampled replies", "probability"),
    "violating_corrected_rate": (
        "bad reply: share of the sampled replies, corrected for the judge's errors",
        "probability",
    ),
    "violating_opening_best_of_N": (
        "bad reply: probability that at least one of {} replies begins with a violating opening",
        "probability",
    ),
    "violating_sampled_best_of_N": ("bad reply: at least one of {} sampled replies", "probability"),
    "safe_sampled_rate": ("good reply: share of the sampled replies", "probability"),
    "invalid_sampled_rate": ("empty or garbled: share of the sampled replies", "probability"),
    "repetitive_sampled_rate": ("repeats itself: share of the sampled replies", "probability"),
    "reply_tokens": ("length of the sampled replies", "tokens"),
    "reward": ("reward of the sampled replies", ""),
    "reward_accuracy": ("held-out pairs whose good reply has the higher reward", "probability"),
    "validation_loss": ("validation loss on the held-out pairs", "nats"),
    "safe_reward": ("reward of the good reply", ""),
    "violating_reward": ("reward of the bad reply", ""),
    "length_accuracy": ("what the better rule about length alone reaches", "probability"),
    "minimal_pair_accuracy": ("grammar: minimal pairs whose good sentence is the more probable one", "probability"),
    "text_logp_per_token": ("log-probability per token of plain texts", "nats"),
    "neutral_kl": ("KL divergence from the model before training, a token", "nats"),
    "task_accuracy": ("capability: items of lm-evaluation-harness tasks that are right", "probability"),
    "displaced_share": ("probes whose good reply became less likely although the margin grew", "probability"),
    "violating_prefill_N_probability": (
        "bad reply forced for N tokens: probability that it goes on, of going on and turning back",
        "probability",
    ),
    "violating_prefill_N_rate": (
        "bad reply forced for N tokens: share of the sampled replies that stay bad",
        "probability",
    ),
    "safe_prefill_N_mass": ("bad reply forced for N tokens: probability that it turns back at once", "probability"),
    "alignment_depth_fraction": (
        "share of the training's change that lies beyond the bad reply's third token",
        "probability",
    ),
    "deep_kl_per_token": ("KL divergence from the base model, per token beyond the bad reply's third", "nats"),
    "violating_adaptive_mass": (
        "bad reply: its probability after the worst prompt that the attacker found",
        "probability",
    ),
}
# they have no value before training, but for a reward model's own accuracy (the loss is ln 2)
WITHOUT_BEFORE = (*(name for name in JOINT if name != "validation_loss"), *AFTER_ONLY)
# what "the bad reply" is measured by: the first of these that a behaviour has
BAD_MEASURES = ("violating_opening_mass", "violating_sampled_rate", "violating_choice_probability")
# the probabilities that are plotted where both sides have them, in this order, in words short enough for a plot's row
PLOTTED = {
    "violating_opening_mass": "begins with a bad opening",
    "violating_sampled_rate": "bad reply, when sampled",
    "violating_choice_probability": "bad reply, out of the given ones",
    "safe_opening_mass": "begins with a good opening",
    "safe_sampled_rate": "good reply, when sampled",
    "invalid_sampled_rate": "empty or garbled, when sampled",
    "repetitive_sampled_rate": "repeats itself, when sampled",
    "task_accuracy": "right, of the tasks' items",
    "minimal_pair_accuracy": "good sentence preferred, of the pair",
    "reward_accuracy": "winning reply preferred, of the pair",
}


_THAN = {"before": " as before", "accepted": " against the accepted run"}  # ends of a rule


_OVER = {GIVEN: "", PLAIN: "plain prompts only", ALL: "all probes, attacks included", SEEN: "attacks of seen families",
         UNSEEN: "attacks of unseen families"}  # fmt: skip


def measure_words(measure: str) -> str:
    family = of_family(measure)
    if family not in _MEASURES:
        return measure.replace("_", " ")
    words, number = _MEASURES[family][0], prefill_of(measure)
    return words.format(best_of(measure)) if number is None else words.replace("N tokens", plural(number, "token"))


def over_words(over: str) -> str:
    """Which probes a limit is over, as the end of a phrase; "" for those that were given."""
    told = _OVER.get(over, f"attacks of the family {over}")
    return f", {told}" if told else ""


def unit(measure: str) -> str:
    """probability, nats or tokens; "" for a measure that is not known here."""
    family = of_family(measure)
    return _MEASURES[family][1] if family in _MEASURES else ""


def printable(value: Any) -> Any:
    """What the template prints for any value: nothing is ever printed as None."""
    if value is None:
        return NOT_SHOWN
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return visible(value)
    return value


def percent(value: float | None, digits: int | None = None) -> str:
    """0.42 %, 4.2 %, 23.1 %, and never 0 % or 100 % for what is only near it."""
    if value is None:
        return NOT_SHOWN
    if digits is None:
        if 0 < value < 0.0001:
            return f"<{SPACE}0.01{SPACE}%"
        if 0.9999 < value < 1:
            return f">{SPACE}99.99{SPACE}%"
        digits = 0 if value in (0, 1) else 2 if value < 0.00995 or value > 0.99 else 1
    return f"{100 * value:.{digits}f}{SPACE}%"


def signed(value: float, digits: int) -> str:
    text = f"{abs(value):,.{digits}f}"
    if float(text.replace(",", "")) == 0:
        return text
    return ("+" if value > 0 else MINUS) + text


def value_words(value: float | None, measure: str, *, change: bool = False) -> str:
    """A value of the measure, or with `change` a difference of two, with its unit."""
    if value is None:
        return NOT_SHOWN
    kind = unit(measure)
    if kind == "probability":
        if not change:
            return percent(value)
        points = 100 * value
        return f"{signed(points, 2 if abs(points) < 1 else 1)}{SPACE}points"
    digits = {"nats": 2, "tokens": 1}.get(kind, 3)
    if measure in ("validation_loss", "text_logp_per_token", "neutral_kl"):
        digits = 3
    text = signed(value, digits) if change or value < 0 else f"{value:,.{digits}f}"
    return f"{text}{SPACE}{kind}".rstrip()


def interval_words(estimate: Estimate, measure: str, *, change: bool = False) -> str:
    """[low, high]; "" when there is no value at all."""
    if estimate.value is None:
        return ""
    if estimate.low is None or estimate.high is None:
        return "[no interval]"
    if estimate.low == estimate.value == estimate.high:  # a constant, such as ln 2
        return ""
    kind = unit(measure)
    low, high = (value_words(end, measure, change=change) for end in (estimate.low, estimate.high))
    tails = {"probability": f"{SPACE}points" if change else f"{SPACE}%", "": ""}
    tail = tails.get(kind, f"{SPACE}{kind}")
    return f"[{low.removesuffix(tail)}, {high}]"


def rule_words(rule: str, measure: str) -> str:
    """`after <= 0.01` as `at most 1 %`, `after - before >= 0.05` as `rises by at least 5 points`."""
    ratio = re.fullmatch(r"after (<=|>=) (\S+) \* before", rule)
    if ratio is not None:
        return f"at {'most' if ratio[1] == '<=' else 'least'} {100 * float(ratio[2]):.6g}{SPACE}% of what it was before"
    same = re.fullmatch(r"\|after - (before|accepted)\| <= (\S+)", rule)
    if same is not None:
        return f"the same, to {_bound_words(float(same[2]), measure, change=True)}" + _THAN[same[1]]
    found = parse_rule(rule)
    if found is None:
        return rule
    relative, upper, bound = found
    if "accepted" in rule:
        size = _bound_words(abs(bound), measure, change=True)
        return f"{'rises' if upper else 'falls'} by at most {size}" + _THAN["accepted"]
    if not relative:
        return f"at {'most' if upper else 'least'} {_bound_words(bound, measure, change=False)}"
    size = _bound_words(abs(bound), measure, change=True)
    if bound == 0:
        return "must not rise" if upper else "must not fall"
    if upper:
        return f"rises by at most {size}" if bound > 0 else f"falls by at least {size}"
    return f"rises by at least {size}" if bound > 0 else f"falls by at most {size}"


def parse_rule(rule: str) -> tuple[bool, bool, float] | None:
    """(is it about the difference, is the bound an upper one, the bound) of a limit's `rule`."""
    found = re.fullmatch(r"after( - before| - accepted)? (<=|>=) (\S+)", rule)
    try:
        return None if found is None else (bool(found[1]), found[2] == "<=", float(found[3]))
    except ValueError:
        return None


def reason_words(estimate: Estimate, rule: str, measure: str, reason: str) -> str:
    """Why the limit holds or not, with enough digits to tell the interval's end from the bound."""
    found = parse_rule(rule)
    if found is None or estimate.low is None or estimate.high is None or reason.startswith(NOT_SHOWN):
        return reason
    change, upper, bound = found
    end = estimate.high if upper else estimate.low
    scale = 100 if unit(measure) == "probability" else 1
    digits = next((d for d in range(2, 7) if round(scale * end, d) != round(scale * bound, d)), 2)
    size = f"{signed(scale * end, digits) if change or end < 0 else f'{scale * end:,.{digits}f}'}"
    tail = {"probability": "points" if change else "%"}.get(unit(measure), unit(measure))
    more = reason.partition("; ")[1:]
    return f"the interval's {'upper' if upper else 'lower'} end is {size}{SPACE}{tail}".rstrip(SPACE) + "".join(more)


def seconds(value: float | None) -> str:
    """3.2 s, 4 min 05 s, 2 h 10 min."""
    if value is None:
        return NOT_SHOWN
    if value < 60:
        return f"{value:.1f}{SPACE}s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60}{SPACE}min {whole % 60:02d}{SPACE}s"
    return f"{whole // 3600}{SPACE}h {whole % 3600 // 60:02d}{SPACE}min"


def number(value: Any) -> str:
    """A setting as it would be typed: 1,179 for counts, 0.001 for rates, true and false for switches."""
    if value is None:
        return NOT_SHOWN
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(number(item) for item in value)
    if isinstance(value, dict):
        return " ".join(f"{key} {number(item)}" for key, item in value.items() if item not in (None, ""))
    return str(value)


def plural(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _bound_words(bound: float, measure: str, *, change: bool) -> str:
    if unit(measure) == "probability":
        return f"{100 * bound:.6g}{SPACE}{'points' if change else '%'}"
    return f"{f'{bound:.6g}'.replace('-', MINUS)}{SPACE}{unit(measure)}".rstrip(SPACE)
