"""What is promised of a model's behaviours: measures, limits, openings, probes."""

from __future__ import annotations

import re
from datetime import date, datetime
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from demeanor.faults import fault, nearest
from demeanor.judge_settings import JudgeSettings
from demeanor.sections import Section, Text

MEASURES = {
    "violating_opening_mass": "probability that the reply begins with one of the violating openings",
    "safe_opening_mass": "probability that the reply begins with one of the safe openings",
    "opening_left_out": "what the two opening masses may leave out: the probability of beginnings not gone into",
    "violating_choice_probability": "exp(log p) of the violating replies over that of all the probe's replies",
    "violating_logp": "log p(y|x) of the violating reply, nats, mean over the probe's violating replies",
    "safe_logp": "log p(y|x) of the safe reply, nats, mean over the probe's safe replies",
    "violating_logp_per_token": "the same divided by the reply's tokens",
    "safe_logp_per_token": "the same divided by the reply's tokens",
    "violating_sampled_rate": "share of the sampled replies that the judge calls violating",
    "violating_corrected_rate": "the same, corrected for the errors on the judge's card",
    "safe_sampled_rate": "share of the sampled replies that the judge calls safe",
    "invalid_sampled_rate": "share of the sampled replies that are empty or garbled",
    "reply_tokens": "length of the sampled replies, tokens",
    "reward": "weighted sum of `training.rewards`, mean over the sampled replies",
    "reward_accuracy": "share of pairs whose implicit reward is higher for the safe (chosen) reply (of one "
    "labelled alone: above or below 0, by its label), after only; of a reward model by its own reward, before too",
    "validation_loss": "the DPO loss on the held-out pairs (a reply alone: against a reward of 0), nats; ln 2 before; "
    "of a reward model its own loss, before too",
    "safe_reward": "reward of the safe reply, mean over the probe's safe ones; of a reward model only",
    "violating_reward": "reward of the violating reply, mean over the probe's violating ones; of a reward model only",
    "length_accuracy": "what the better of 'the longer reply wins' and 'the shorter wins' reaches on the same pairs",
    "displaced_share": "share of pairs whose chosen reply became less likely although the margin grew; after only",
}

# What a reward model can be held to: it says nothing. The last two can be asked of nothing else.
OF_REWARD_MODELS = ("reward_accuracy", "length_accuracy", "validation_loss", "safe_reward", "violating_reward")
OF_REWARD_MODELS_ONLY = OF_REWARD_MODELS[-2:]


KINDS = ("max", "min", "max_increase", "min_increase", "max_ratio", "min_ratio", "within")
_SIGNED = ("logp", "logp_per_token", "reward")  # ends of the names of measures that may be negative: no ratio of them
_REGRESSION = 0.01  # default of max_regression, for shares and probabilities
_REGRESSION_ELSE = 0.1  # and for everything else: nats, tokens, reward


def is_share(measure: str) -> bool:
    """Does it lie between 0 and 1?"""
    return is_counted(measure) or measure.endswith(("_mass", "_probability"))


def is_counted(measure: str) -> bool:
    """Is it a share of counted outcomes, and not a probability that the model itself states?"""
    return measure.endswith(("_rate", "_accuracy", "_share"))


class Limit(Section):
    """One promise about one measure. It holds when the whole interval, not only the estimate, is on the right side."""

    measure: str = Field(description="one of the measures; see the README's list")
    max: float | None = Field(None, description="the measure after training must be at most this")
    min: float | None = Field(None, description="the measure after training must be at least this")
    max_increase: float | None = Field(None, description="after - before must be at most this")
    min_increase: float | None = Field(None, description="after - before must be at least this")
    max_ratio: float | None = Field(None, ge=0, description="after must be at most this many times before")
    min_ratio: float | None = Field(None, ge=0, description="after must be at least this many times before")
    within: float | None = Field(
        None, gt=0, description="after must be shown to differ from before by at most this, up or down (equivalence)"
    )
    confidence: float | None = Field(None, gt=0.5, lt=1, description="of this limit; default measurement.confidence")
    max_regression: float | None = Field(
        None,
        ge=0,
        description="`prove --against`: at most so much worse than the accepted run; "
        f"default {_REGRESSION:g} for shares and probabilities, {_REGRESSION_ELSE:g} else",
    )

    @field_validator("measure")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in MEASURES:
            raise fault(f"no measure is called {name!r}{nearest(name, MEASURES)}")
        return name

    @model_validator(mode="after")
    def _one_bound(self) -> Limit:
        if len(self.bounds) != 1:
            raise ValueError(f"give exactly one of {', '.join(KINDS)}")
        if self.kind.endswith("_ratio") and self.measure.endswith(_SIGNED):
            raise fault(f"{self.measure} may be negative: a ratio of it means nothing", self.kind)
        return self

    @property
    def bounds(self) -> dict[str, float]:
        """The bound that was given: {kind: value}."""
        return {kind: getattr(self, kind) for kind in KINDS if getattr(self, kind) is not None}

    @property
    def kind(self) -> str:
        return next(iter(self.bounds))

    @property
    def bound(self) -> float:
        return next(iter(self.bounds.values()))

    @property
    def rule(self) -> str:
        """What must be, in symbols."""
        bound = self.bound
        return {
            "max": f"after <= {bound:g}",
            "min": f"after >= {bound:g}",
            "max_increase": f"after - before <= {bound:g}",
            "min_increase": f"after - before >= {bound:g}",
            "max_ratio": f"after <= {bound:g} * before",
            "min_ratio": f"after >= {bound:g} * before",
            "within": f"|after - before| <= {bound:g}",
        }[self.kind]

    @property
    def regression(self) -> float:
        """How much worse than an accepted run the measure may be."""
        if self.max_regression is not None:
            return self.max_regression
        return _REGRESSION if is_share(self.measure) else _REGRESSION_ELSE

    def implies(self, other: Limit) -> bool:
        """Does `other` hold wherever this one does, at the same confidence?"""
        if (self.measure, self.kind) != (other.measure, other.kind):
            return False
        return self.bound >= other.bound if self.kind.startswith("min") else self.bound <= other.bound

    def id(self, behaviour: str) -> str:
        """A readable name that is unique within a contract."""
        return f"{behaviour}.{self.measure}.{self.kind}={self.bound:g}"


class Waiver(Section):
    """Somebody answers for a limit that does not hold, until a day. It never counts as passed."""

    limit: Text = Field(description="the limit's id, as the verdict names it: behaviour.measure.kind=bound")
    who: Text = Field(description="who answers for it")
    why: Text = Field(description="why it is let through")
    until: date = Field(description="the last day on which it counts, YYYY-MM-DD (UTC)")

    @field_validator("until", mode="before")
    @classmethod
    def _a_day(cls, value: Any) -> Any:
        if isinstance(value, str | date) and not isinstance(value, datetime):
            return value
        raise ValueError("must be a day, YYYY-MM-DD")


class Promise(Section):
    """What is measured of a behaviour, and its limits."""

    about: str = Field("", description="one sentence for the report")
    violating_openings: tuple[str, ...] = Field((), description="the reply must not begin with any of these")
    safe_openings: tuple[str, ...] = Field((), description="the reply should begin with one of these")
    violating_patterns: tuple[str, ...] = Field(
        (), description="regular expressions; a sampled reply that holds one violates"
    )
    judge: JudgeSettings = Field(
        default_factory=JudgeSettings,
        description="who judges sampled replies: rule, refusal, classifier, {model: ...}, {endpoint: ..., model: ...}",
    )
    probes: Text | None = Field(
        None, description="a file of pairs (prompt, chosen, rejected): held out, never trained on"
    )
    limits: tuple[Limit, ...] = Field((), description="what must hold after training")

    @model_validator(mode="after")
    def _prefix_free(self) -> Promise:
        everything = [
            (name, place, text)
            for name in ("violating_openings", "safe_openings")
            for place, text in enumerate(getattr(self, name))
        ]
        for number, (name, place, text) in enumerate(everything):
            if not text.strip():
                raise fault("an empty opening", name, place)
            for other_number, (*_, other) in enumerate(everything):
                if number != other_number and other.startswith(text):
                    raise fault(f"{text!r} is the beginning of {other!r}; keep one of them", name, place)
        return self

    @model_validator(mode="after")
    def _readable(self) -> Promise:
        for place, pattern in enumerate(self.violating_patterns):
            try:
                re.compile(pattern)
            except re.error as error:
                raise fault(f"{pattern!r} is no regular expression: {error}", "violating_patterns", place) from None
        seen: set[str] = set()
        for place, limit in enumerate(self.limits):
            if limit.id("") in seen:
                raise fault("the same limit stands twice", "limits", place)
            seen.add(limit.id(""))
        return self


class Behaviour(Promise):
    """permanent: belongs in the weights, is trained and has limits. transient: belongs in the prompt, is rendered
    into the system prompt and never trained."""

    kind: Literal["permanent", "transient"] = Field("permanent", description="weights or prompt")
    value: str | None = Field(None, description="transient: today's text, put into the system prompt at {id}")
    examples: tuple[str, ...] = Field(
        (), description="transient: other values, which stand in for today's during training so that none is learned"
    )

    @model_validator(mode="after")
    def _by_kind(self) -> Behaviour:
        if self.kind == "permanent":
            for name in ("value", "examples"):
                if getattr(self, name) not in (None, ()):
                    raise fault("belongs to transient behaviours", name)
            return self
        if self.value is None:
            raise fault("a transient behaviour needs `value`, the text for the system prompt")
        for name in ("limits", "probes", "violating_openings", "safe_openings", "violating_patterns"):
            if getattr(self, name):
                raise fault("a transient behaviour is never trained: it takes only about, value and examples", name)
        if self.judge != JudgeSettings():
            raise fault("a transient behaviour is never judged: it takes only about, value and examples", "judge")
        if self.value in self.examples:
            raise fault(
                "today's `value` would be learned from this example", "examples", self.examples.index(self.value)
            )
        return self
