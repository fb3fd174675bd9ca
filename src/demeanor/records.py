"""The nouns of the journey: what one stage hands to the next.

Every record is frozen and is written as one JSON object (`to_json`), read back by `from_json`. Log-probabilities are
natural (nats); probabilities and rates lie in [0, 1]; a value that could not be computed is None, never 0.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

SEVERITIES = ("blocks", "warns", "informs")
SIDES = ("before", "after")  # the base model, and the same model with the trained adapter


class Record:
    """JSON in and out for the frozen dataclasses below."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Build the record from `to_json`'s dict. Raises TypeError on missing or unknown keys."""
        return cls(**data)


@dataclass(frozen=True, slots=True)
class Message(Record):
    """One turn of a conversation; `role` is system, user or assistant."""

    role: str
    content: str


def _messages(items: Any) -> tuple[Message, ...]:
    return tuple(item if isinstance(item, Message) else Message(**item) for item in items)


def content_id(*parts: Any) -> str:
    """A stable id: 16 hexadecimal digits of the SHA-256 of the parts as canonical JSON."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def mean(values: Sequence[float] | None) -> float | None:
    """None of nothing."""
    return sum(values) / len(values) if values else None


def flat_text(text: str) -> str:
    """The text by which two are the same, word for word, whatever their case and spacing."""
    return " ".join(text.casefold().split())


@dataclass(frozen=True, slots=True)
class PreferencePair(Record):
    """A prompt x with the reply that won (y_w) and the one that lost (y_l). A tie is not a pair.

    A reply that was labelled on its own, good (y_w) or bad (y_l), has "" on the other side. `id` depends on the texts
    alone. `row` is the row of `source` it was read from, counted from 1; `origin` is what the row itself calls its
    source, as rows of a set do that was put together from several; `attack` names the family of the attack that
    the prompt is, `cluster` the group of prompts that count as one draw (wrappers around one question, say),
    `annotator` who compared the replies. `confidence`, how sure the label is, is kept; no loss uses it. Pairs made of
    one ranked list have the same `list_id`, and `weight` is how much one of them counts beside the others of its list
    (`curate.loss_weights`).
    """

    id: str
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    source: str = ""
    row: int | None = None
    behaviour: str | None = None
    attack: str | None = None
    confidence: float | None = None
    list_id: str | None = None
    weight: float = 1.0
    annotator: str | None = None
    cluster: str | None = None
    origin: str | None = None

    @classmethod
    def make(cls, prompt: tuple[Message, ...], chosen: str, rejected: str, **more: Any) -> PreferencePair:
        turns = [[m.role, m.content] for m in prompt]
        return cls(content_id(turns, chosen, rejected), prompt, chosen, rejected, **more)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> PreferencePair:
        return cls(**{**data, "prompt": _messages(data["prompt"])})


@dataclass(frozen=True, slots=True)
class DroppedRow(Record):
    """A row that was not used, and why. `excerpt` shows at most its first 200 characters."""

    source: str
    row: int
    reason: str
    excerpt: str = ""


@dataclass(frozen=True, slots=True)
class Example(Record):
    """A pair that a finding is about: where it was read, and in a few words what is wrong there."""

    id: str
    source: str
    row: int | None
    excerpt: str


@dataclass(frozen=True, slots=True)
class Finding(Record):
    """What a check found in the pairs.

    `kind` names it within its `check` and never changes; `group` is the source or behaviour that it is about ("" for
    all pairs). `what` says it in one sentence, `measure` what `estimate` is an estimate of. `num_pairs` pairs show it,
    of which `examples` are the first few (0 where it is about the set as a whole). `severity`: blocks (a training on
    these pairs would teach something else than what is meant), warns, informs. `details` are what a plot of it needs.
    """

    check: str
    kind: str
    severity: str  # one of SEVERITIES
    what: str
    measure: str
    estimate: Estimate
    remedy: str
    group: str = ""
    num_pairs: int = 0
    examples: tuple[Example, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Finding:
        examples = tuple(Example(**item) for item in data["examples"])
        return cls(**{**data, "estimate": Estimate(**data["estimate"]), "examples": examples})


@dataclass(frozen=True, slots=True)
class Probe(Record):
    """A held-out prompt with replies that must not be said (violating) and replies that should be (safe).

    `attack` names the wrapper family when the prompt is an attack, else None. Probes of one `cluster` are one draw.
    `wraps` is the id of the plain probe that this one was made of (`attacks/`); None of one that was given. `unseen`:
    an attack of a family that no training pair holds.
    """

    id: str
    behaviour: str
    prompt: tuple[Message, ...]
    violating: tuple[str, ...]
    safe: tuple[str, ...]
    attack: str | None = None
    cluster: str | None = None
    wraps: str | None = None
    unseen: bool = False

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Probe:
        lists = {key: tuple(data[key]) for key in ("violating", "safe")}
        return cls(**{**data, **lists, "prompt": _messages(data["prompt"])})

    @classmethod
    def from_pair(cls, pair: PreferencePair, behaviour: str) -> Probe:
        violating, safe = (tuple(text for text in (side,) if text) for side in (pair.rejected, pair.chosen))
        return cls(pair.id, behaviour, pair.prompt, violating, safe, pair.attack, pair.cluster)


@dataclass(frozen=True, slots=True)
class Reply(Record):
    """One sampled reply. `judgement` is violating, safe, other or invalid; None when no rule was given, or the judge
    gave no answer. `why` is what the judge had to say (JSON); `fault` why there is no reply to judge."""

    probe_id: str
    behaviour: str
    model: str  # one of SIDES
    sample: int
    text: str
    num_tokens: int
    judgement: str | None
    reward: float | None = None  # the weighted sum of `training.rewards`; None when there are none
    prefill: int = 0  # tokens that were put into the model's mouth, and their text; `num_tokens` counts its own
    forced: str = ""
    why: dict[str, Any] | None = None
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Score(Record):
    """All measures of one probe under one model; `values` maps a measure's name to its value or None. `attack`,
    `cluster`, `wraps` and `unseen` are the probe's.

    `evidence` is what a measure rests on: `depth_nats` (KL at each token of the violating reply), `adaptive` (the worst
    prompt that was found, its wrapper, suffix and mass, and how many prompts were asked).
    """

    probe_id: str
    behaviour: str
    model: str  # one of SIDES
    attack: str | None
    values: dict[str, float | None]
    cluster: str | None = None
    wraps: str | None = None
    unseen: bool = False
    evidence: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, probe: Probe, side: str, values: dict[str, float | None]) -> Score:
        return cls(probe.id, probe.behaviour, side, probe.attack, values, probe.cluster, probe.wraps, probe.unseen)


@dataclass(frozen=True, slots=True)
class Estimate(Record):
    """A mean over `n` probes with its interval [low, high]; `unscored` probes gave no value.

    `value`, `low`, `high` are None when nothing could be computed. `clusters`: how many independent groups the probes
    form; None where each stands alone.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    unscored: int = 0
    clusters: int | None = None


@dataclass(frozen=True, slots=True)
class Comparison(Record):
    """One measure of one behaviour, before and after, and the difference paired by probe (after - before).

    `p` is the p-value of "nothing changed": McNemar's exact test, or sign flips of the probes' differences. `over` says
    of which probes (`attack_settings.GROUPS`, or a family of attacks); `unseen`: a family that no training pair holds.
    """

    behaviour: str
    measure: str
    before: Estimate
    after: Estimate
    difference: Estimate
    p: float | None = None
    over: str = "given"
    unseen: bool = False

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Comparison:
        sides = {key: Estimate(**data[key]) for key in ("before", "after", "difference")}
        return cls(**{**data, **sides})


@dataclass(frozen=True, slots=True)
class LimitResult(Record):
    """One limit of the contract with its evidence. `low` and `high` bound `difference`, `after_low` and
    `after_high` bound `after`, at the limit's own `confidence`. `reason` says in words why it passed or failed.

    `evidence` estimates what the rule is about: after, after - before, or after - ratio * before. `state`: pass, fail
    (the estimate itself breaks the limit), not shown (it does not, but its interval does, or there is too little
    evidence), waived (either of the two, and `waiver` says who answers for it). `p` is the least 1 - confidence at
    which the limit would hold, `p_holm` the same among all limits of the verdict (Holm 1979).
    """

    id: str
    behaviour: str
    measure: str
    rule: str
    before: float | None
    after: float | None
    difference: float | None
    low: float | None
    high: float | None
    after_low: float | None
    after_high: float | None
    n: int
    unscored: int
    passed: bool
    reason: str
    state: str = ""
    evidence: Estimate | None = None
    confidence: float | None = None
    p: float | None = None
    p_holm: float | None = None
    waiver: dict[str, str] | None = None  # who, why, until (a date)
    over: str = "given"  # which probes it is about

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> LimitResult:
        evidence = data.get("evidence")
        return cls(**{**data, "evidence": None if evidence is None else Estimate(**evidence)})


@dataclass(frozen=True, slots=True)
class Verdict(Record):
    """Every limit with its evidence; passed only when at least one passed and all others passed or are waived.

    `weakened` are the limits that were fixed before the training and are no longer asked, less strictly, or measured
    otherwise: with any, nothing passes. None where it is not known what was fixed. `comparisons` are over the probes as
    they were given, `attacks` over the plain ones, the attacks of seen and of unseen families, and each family.
    """

    passed: bool
    limits: tuple[LimitResult, ...]
    comparisons: tuple[Comparison, ...]
    confidence: float
    seed: int
    weakened: tuple[str, ...] | None = None
    attacks: tuple[Comparison, ...] = ()

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Verdict:
        known = {f.name for f in fields(cls)}
        rest = {key: value for key, value in data.items() if key in known}
        rest["limits"] = tuple(LimitResult.from_json(item) for item in data["limits"])
        for name in ("comparisons", "attacks"):
            rest[name] = tuple(Comparison.from_json(item) for item in data.get(name, ()))
        weakened = data.get("weakened")
        rest["weakened"] = None if weakened is None else tuple(weakened)
        return cls(**rest)
