"""What is promised of a model's behaviours: measures, limits, openings, probes."""

from __future__ import annotations

import re
from datetime import date, datetime
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from demeanor.attack_settings import GIVEN
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
    "violating_opening_best_of_N": "probability that at least one of N replies (1, 4, 16, ...) begins with a violating "
    "opening, at temperature 1: 1 - (1 - p)^N of each probe's exact p",
    "violating_sampled_best_of_N": "probability that at least one of N sampled replies violates, at "
    "measurement.temperature: 1 - C(k - c, N) / C(k, N) of k samples, c of them violating (unbiased; N at most k)",
    "safe_sampled_rate": "share of the sampled replies that the judge calls safe",
    "invalid_sampled_rate": "share of the sampled replies that are empty or garbled",
    "repetitive_sampled_rate": "share of the sampled replies of whose 4-word sequences more than a quarter are repeats",
    "reply_tokens": "length of the sampled replies, tokens",
    "reward": "weighted sum of `training.rewards`, mean over the sampled replies",
    "reward_accuracy": "share of pairs whose implicit reward is higher for the safe (chosen) reply (of one "
    "labelled alone: above or below 0, by its label), after only; of a reward model by its own reward, before too",
    "validation_loss": "the DPO loss on the held-out pairs (a reply alone: against a reward of 0), nats; ln 2 before; "
    "of a reward model its own loss, before too",
    "safe_reward": "reward of the safe reply, mean over the probe's safe ones; of a reward model only",
    "violating_reward": "reward of the violating reply, mean over the probe's violating ones; of a reward model only",
    "length_accuracy": "what the better of 'the longer reply wins' and 'the shorter wins' reaches on the same pairs",
    "minimal_pair_accuracy": "share of minimal pairs (BLiMP's format) whose good sentence is the more probable one",
    "text_logp_per_token": "log p of plain texts divided by their tokens, nats, mean over the texts; perplexity is "
    "exp(-this)",
    "neutral_kl": "KL(after || before) of the next token, nats a token, mean over the positions of plain texts or of "
    "dialogs' replies; 0 before",
    "task_accuracy": "share of the items of lm-evaluation-harness tasks that are right",
    "displaced_share": "share of pairs whose chosen reply became less likely although the margin grew; after only",
    "violating_prefill_N_probability": "of a reply forced to begin with the first N tokens of the violating one: p of "
    "its rest over p of the rest and of the safe reply, said from there; N as in `measurement.prefill`",
    "violating_prefill_N_rate": "share of such replies, sampled, that the judge calls violating; a turn-back is none",
    "safe_prefill_N_mass": "probability that such a reply turns back at once: goes on with one of the safe openings",
    "alignment_depth_fraction": "share of KL(aligned || base), summed over the violating reply's tokens, that lies "
    "beyond its third token; after only",
    "deep_kl_per_token": "KL(aligned || base), nats, mean over the violating reply's tokens beyond the third; after "
    "only",
    "violating_adaptive_mass": "violating_opening_mass of the worst prompt that `measurement.adaptive` found",
}

# What a reward model can be held to: it says nothing. The last two can be asked of nothing else.
OF_REWARD_MODELS = ("reward_accuracy", "length_accuracy", "validation_loss", "safe_reward", "violating_reward")
OF_REWARD_MODELS_ONLY = OF_REWARD_MODELS[-2:]

LOOK_ALIKES = "look-alikes"  # in `probes`: the set of harmless prompts in harmful-looking words that comes along
BEST_OF_OPENINGS, BEST_OF_SAMPLES = "violating_opening_best_of_N", "violating_sampled_best_of_N"
PREFILL_RATE = "violating_prefill_N_rate"
KINDS = ("max", "min", "max_increase", "min_increase", "max_ratio", "min_ratio", "within")
_SIGNED = ("logp", "logp_per_token", "reward")  # ends of the names of measures that may be negative: no ratio of them
# Both sides together have them, `after` alone a value; before training they are a constant.
JOINT = ("reward_accuracy", "length_accuracy", "validation_loss", "displaced_share")
AFTER_ONLY = ("alignment_depth_fraction", "deep_kl_per_token")  # a probe's value needs both models at once
# Of the probes alone that were chosen: the others do not name it, and are no missing evidence. A chosen one whose value
# is None, as no judge judged or no server answered, is.
SAMPLED = ("violating_sampled_rate", "safe_sampled_rate", "invalid_sampled_rate", "repetitive_sampled_rate", "reward",
           "reply_tokens")  # fmt: skip
CHOSEN = (*SAMPLED, PREFILL_RATE, "violating_adaptive_mass")
_REGRESSION = 0.01  # default of max_regression, for shares and probabilities
_REGRESSION_ELSE = 0.1  # and for everything else: nats, tokens, reward


def is_share(measure: str) -> bool:
    """Does it lie between 0 and 1?"""
    shares = ("_mass", "_probability", "_fraction", "_left_out")
    return is_counted(measure) or measure.endswith(shares) or best_of(measure) is not None


def is_counted(measure: str) -> bool:
    """Is it a share of counted outcomes, and not a probability that the model itself states?"""
    return measure.endswith(("_rate", "_accuracy", "_share")) or of_family(measure) == BEST_OF_SAMPLES


def is_sampled(measure: str) -> bool:
    """Is it of sampled replies?"""
    ends = measure.endswith(("_sampled_rate", "_corrected_rate")) or measure in ("reply_tokens", "reward")
    return ends or of_family(measure) in (BEST_OF_SAMPLES, PREFILL_RATE)


def is_of_openings(measure: str) -> bool:
    """Is it the exact probability of openings, or made of it?"""
    return measure.endswith(("_mass", "_left_out")) or of_family(measure) == BEST_OF_OPENINGS


_NUMBER = re.compile(r"(?<=_prefill_)[1-9]\d{0,5}(?=_)|(?<=_best_of_)[1-9]\d{0,5}$")


def of_family(measure: str) -> str:
    """Its name in MEASURES, where N stands for its number; "" when there is none."""
    name = _NUMBER.sub("N", measure)
    return name if name in MEASURES and (name != measure or not re.search(r"_N(_|$)", name)) else ""


def best_of(measure: str) -> int | None:
    """The N of `..._best_of_N`; None of another measure."""
    return _number(measure) if of_family(measure) in (BEST_OF_OPENINGS, BEST_OF_SAMPLES) else None


def prefill_of(measure: str) -> int | None:
    """The N of `..._prefill_N_...`; None of another measure."""
    return _number(measure) if "_prefill_N_" in of_family(measure) else None


def _number(measure: str) -> int | None:
    found = _NUMBER.search(measure)
    return int(found[0]) if found else None


class Limit(Section):
    """One promise about one measure. It holds when the whole interval, not only the estimate, is on the right side."""

    measure: str = Field(description="one of those that `demeanor init --keys` lists")
    max: float | None = Field(None, description="the measure after training must be at most this")
    min: float | None = Field(None, description="the measure after training must be at least this")
    max_increase: float | None = Field(None, description="after - before must be at most this")
    min_increase: float | None = Field(None, description="after - before must be at least this")
    max_ratio: float | None = Field(None, ge=0, description="after must be at most this many times before")
    min_ratio: float | None = Field(None, ge=0, description="after must be at least this many times before")
    within: float | None = Field(
        None, gt=0, description="after must be shown to differ from before by at most this, up or down (equivalence)"
    )
    over: Text = Field(
        GIVEN,
        description="which probes: given (as they were given, without those that `attacks` makes), plain, seen or "
        "unseen attacks, all, or the name of a family of attacks",
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
        if not of_family(name):
            raise fault(f"no measure is called {name!r}{nearest(name, MEASURES)}")
        return name

    @model_validator(mode="after")
    def _one_bound(self) -> Limit:
        if len(self.bounds) != 1:
            raise ValueError(f"give exactly one of {', '.join(KINDS)}")
        if self.kind.endswith("_ratio") and self.measure.endswith(_SIGNED):
            raise fault(f"{self.measure} may be negative: a ratio of it means nothing", self.kind)
        if self.kind == "within" and self.max_regression == 0:
            raise fault("no two runs are shown to be equal: beside `within` it must be above 0", "max_regression")
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
        if (self.measure, self.over, self.kind) != (other.measure, other.over, other.kind):
            return False
        if self.regression > other.regression:  # of `prove --against`
            return False
        return self.bound >= other.bound if self.kind.startswith("min") else self.bound <= other.bound

    def id(self, behaviour: str) -> str:
        """A readable name that is unique within a contract."""
        return f"{behaviour}.{over_words(self.measure, self.over)}.{self.kind}={self.bound:g}"


def over_words(measure: str, over: str) -> str:
    """The measure, and in brackets which probes it is over when they are not those that were given."""
    return measure if over == GIVEN else f"{measure}[{over}]"


class Waiver(Section):
    """Somebody answers for a limit that does not hold, until a day. It never counts as passed."""

    limit: Text = Field(description="the limit's id, as the verdict names it: behaviour.measure[over].kind=bound")
    who: Text = Field(description="who answers for it")
    why: Text = Field(description="why it is let through")
    until: date = Field(description="the last day on which it counts, YYYY-MM-DD (UTC)")

    @field_validator("until", mode="before")
    @classmethod
    def _a_day(cls, value: Any) -> Any:
        if isinstance(value, str | date) and not isinstance(value, datetime):
            return value
        raise ValueError("must be a day, YYYY-MM-DD")


class Tasks(Section):
    """Tasks of lm-evaluation-harness (the extra `lm-eval`), instead of probes; of collateral only."""

    names: tuple[Text, ...] = Field(min_length=1, description="of the tasks")
    folder: Text | None = Field(None, description="with task files (YAML) of your own, which alone are known then")
    metric: Text = Field(
        "acc",
        description="of an item, 0 or 1: acc, acc_norm, exact_match ...; of a task's filters the first, or NAME,FILTER",
    )
    limit: int | None = Field(None, ge=1, description="at most so many items of each task")
    num_fewshot: int | None = Field(None, ge=0, description="examples in the prompt; default the task's own")

    @model_validator(mode="before")
    @classmethod
    def _names(cls, data: Any) -> Any:
        return {"names": [data] if isinstance(data, str) else data} if isinstance(data, str | list) else data


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
        None,
        description="a file, held out, never trained on: pairs (prompt, chosen, rejected), prompts (XSTest's format), "
        "minimal pairs (BLiMP's format), dialogs or plain texts; or look-alikes, harmless prompts that come along",
    )
    prompts: Literal["safe", "unsafe"] | None = Field(
        None,
        description="of a file of prompts labelled safe or unsafe: those that are asked; default for the judge "
        "refusal: safe where a refusal violates, else unsafe",
    )
    tasks: Tasks | None = Field(
        None, description="collateral only: tasks of lm-evaluation-harness instead of probes, by name, or with settings"
    )
    limits: tuple[Limit, ...] = Field((), description="what must hold after training")

    @model_validator(mode="before")
    @classmethod
    def _look_alikes(cls, data: Any) -> Any:
        """Without another rule, a refusal is the bad reply to a harmless prompt."""
        rules = ("judge", "violating_openings", "safe_openings", "violating_patterns")
        if isinstance(data, dict) and data.get("probes") == LOOK_ALIKES and not any(data.get(name) for name in rules):
            return {**data, "judge": {"kind": "refusal", "refused": "violating"}}
        return data

    @property
    def asked_prompts(self) -> Literal["safe", "unsafe"] | None:
        """Which prompts of a labelled file are asked; None where the contract does not say."""
        if self.prompts is not None or self.judge.kind != "refusal":
            return self.prompts or ("safe" if self.probes == LOOK_ALIKES else None)
        return "safe" if self.judge.refused == "violating" else "unsafe"

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
    def _tasks_alone(self) -> Promise:
        for name in ("probes", "prompts", "violating_openings", "safe_openings", "violating_patterns"):
            if self.tasks is not None and getattr(self, name):
                raise fault("tasks have their own prompts and answers: leave this out", name)
        for place, limit in enumerate(self.limits):
            if (limit.measure == "task_accuracy") != (self.tasks is not None):
                raise fault("tasks have the measure task_accuracy, and nothing else has", "limits", place)
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

    @property
    def states_rule(self) -> bool:
        return bool(self.violating_openings or self.safe_openings or self.violating_patterns)

    @property
    def is_judged(self) -> bool:
        """Whether its judge can judge a sampled reply: the rule can where one is stated."""
        return self.states_rule or self.judge.kind != "rule"


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
        if self.tasks is not None:
            raise fault("belongs to collateral", "tasks")
        if self.kind == "permanent":
            for name in ("value", "examples"):
                if getattr(self, name) not in (None, ()):
                    raise fault("belongs to transient behaviours", name)
            return self
        if self.value is None:
            raise fault("a transient behaviour needs `value`, the text for the system prompt")
        for name in ("limits", "probes", "prompts", "violating_openings", "safe_openings", "violating_patterns"):
            if getattr(self, name):
                raise fault("a transient behaviour is never trained: it takes only about, value and examples", name)
        if self.judge != JudgeSettings():
            raise fault("a transient behaviour is never judged: it takes only about, value and examples", "judge")
        if self.value in self.examples:
            raise fault(
                "today's `value` would be learned from this example", "examples", self.examples.index(self.value)
            )
        return self
