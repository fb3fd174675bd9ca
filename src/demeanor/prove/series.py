"""What is compared: each measure of each behaviour as two columns, before and after, paired by probe."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from demeanor.contract import Contract
from demeanor.promises import AFTER_ONLY, CHOSEN, JOINT, is_counted, is_share, of_family
from demeanor.records import Comparison, Estimate, Score

if TYPE_CHECKING:
    from demeanor.statistics import Sample

Sides = list[tuple[Score, Score]]

_BEFORE = {"validation_loss": math.log(2), "neutral_kl": 0.0}
_DESCRIPTIVE = (
    "violating_tokens",
    "safe_tokens",
    "good_sentence_logp",
    "bad_sentence_logp",
)  # of the probes, not of a model: no comparison of their own


@dataclass
class Series:
    """One measure of one behaviour: a value a probe on each side, and the probes' ids and clusters.

    `joint`: only both sides together have it; before any training it is `start`, if that is known.
    """

    behaviour: str
    measure: str
    before: list[float | None]
    after: list[float | None]
    probes: list[str]
    clusters: list[str | None]
    resamples: int
    seed: int
    joint: bool = False
    start: float | None = None
    _samples: dict[float | None, Sample] = field(default_factory=dict)
    _compared: dict[float, Comparison] = field(default_factory=dict)

    def sample(self, ratio: float | None) -> Sample:
        """of `after`, or with a ratio of after - ratio * before."""
        from demeanor.statistics import SHARE, contrast, reach

        if ratio not in self._samples:
            ends = SHARE if is_share(self.measure) else None
            values = self.after if ratio is None else contrast(self.before, self.after, ratio)
            self._samples[ratio] = self._sample(values, ends if ratio is None else reach(ends, ratio))
        return self._samples[ratio]

    def compare(self, confidence: float) -> Comparison:
        if confidence not in self._compared:
            self._compared[confidence] = self._compare(confidence)
        return self._compared[confidence]

    def _compare(self, confidence: float) -> Comparison:
        from demeanor.significance import p_of_no_change
        from demeanor.statistics import SHARE, contrast

        after, difference = (self.sample(ratio).estimate(confidence) for ratio in (None, 1.0))
        if self.joint:
            before = Estimate(self.start, self.start, self.start, after.n, after.unscored)
        else:
            before = self._sample(self.before, SHARE if is_share(self.measure) else None).estimate(confidence)
        changes = zip(contrast(self.before, self.after), self.clusters, strict=True)
        known = [(change, cluster) for change, cluster in changes if change is not None and math.isfinite(change)]
        p = p_of_no_change(
            [change for change, _ in known],
            resamples=self.resamples,
            seed=self.seed,
            clusters=[cluster for _, cluster in known],
        )
        return Comparison(self.behaviour, self.measure, before, after, difference, p)

    def _sample(self, values: list[float | None], ends: tuple[float, float] | None) -> Sample:
        from demeanor.statistics import Sample

        return Sample(
            values,
            resamples=self.resamples,
            seed=self.seed,
            ends=ends,
            outcomes=is_counted(self.measure),
            clusters=self.clusters,
        )


def series_of(sides: Sides, contract: Contract) -> list[Series]:
    """Every measure of every behaviour that has a value, in the order of the scores."""
    found = []
    for behaviour in dict.fromkeys(first.behaviour for first, _ in sides):
        found += _of_behaviour(behaviour, [pair for pair in sides if pair[0].behaviour == behaviour], contract)
    return found


def _of_behaviour(behaviour: str, sides: Sides, contract: Contract) -> list[Series]:
    seeded = (contract.measurement.resamples, contract.measurement.seed)
    is_mixed = any(first.wraps is not None for first, _ in sides)
    probes = [first.probe_id for first, _ in sides]
    # a plain probe is one draw with the attacks that were made of it, which name it as their cluster
    clusters = [first.cluster or (first.probe_id if is_mixed else None) for first, _ in sides]
    found = []
    for measure in dict.fromkeys(name for pair in sides for score in pair for name in score.values):
        rows = [(old.values.get(measure), new.values.get(measure)) for old, new in sides]
        drawn = list(zip(rows, probes, clusters, strict=True))
        if of_family(measure) in CHOSEN:  # a probe that was chosen on neither side does not name it
            named_it = [any(measure in score.values for score in pair) for pair in sides]
            drawn = [item for item, was_chosen in zip(drawn, named_it, strict=True) if was_chosen]
        old, new = [row[0] for row, *_ in drawn], [row[1] for row, *_ in drawn]
        named = [probe for _, probe, _ in drawn], [cluster for *_, cluster in drawn]
        if measure not in _DESCRIPTIVE and any(value is not None for value in old + new):
            start = _BEFORE.get(measure) if measure == "neutral_kl" else None  # a model's divergence from itself
            joint = start is not None or measure in AFTER_ONLY
            found.append(Series(behaviour, measure, old, new, *named, *seeded, joint=joint, start=start))
    both = [joint_values(old, new, contract.training.reward_beta) for old, new in sides]
    for measure in JOINT:
        values = [value[measure] for value in both]
        if all(value is None for value in values):
            continue
        if measure == "length_accuracy":  # so far "the longer wins"; the rule may choose the better direction
            known = [value for value in values if value is not None]
            if sum(known) < len(known) / 2:
                values = [None if value is None else 1.0 - value for value in values]
        start = _BEFORE.get(measure)
        constant = [start] * len(values)
        found.append(Series(behaviour, measure, constant, values, probes, clusters, *seeded, joint=True, start=start))
    return found


def joint_values(before: Score, after: Score, beta: float) -> dict[str, float | None]:
    """What only the two sides together tell of a probe with a chosen (safe) and a rejected (violating) reply, or one.

    The implicit reward of a reply is beta (log p_after - log p_before); the validation loss is the DPO loss
    -log sigmoid(margin of the rewards), nats (Rafailov et al. 2023, eq. 7), because the base model is the reference.
    A reply that was labelled on its own is held against a reward of 0.
    """
    if "neutral_kl" in after.values:  # a reply of a neutral dialog was labelled by nobody
        return dict.fromkeys(JOINT)
    safe_tokens, violating_tokens = before.values.get("safe_tokens"), before.values.get("violating_tokens")
    gain_safe, gain_violating = (
        _gain(before, after, f"{side}_logp") if tokens is not None or no_other else 0.0
        for side, tokens, no_other in (
            ("safe", safe_tokens, violating_tokens is None),
            ("violating", violating_tokens, safe_tokens is None),
        )
    )
    length = None if violating_tokens is None or safe_tokens is None else _share_above(safe_tokens, violating_tokens)
    if gain_safe is None or gain_violating is None:
        # a reward model's own figures of the pair do without likelihoods
        return {**dict.fromkeys(JOINT), "length_accuracy": length if "reward_accuracy" in after.values else None}
    margin = beta * (gain_safe - gain_violating)
    return {
        "reward_accuracy": _share_above(margin, 0.0),
        "length_accuracy": length,
        "validation_loss": math.log1p(math.exp(-abs(margin))) + max(-margin, 0.0),
        "displaced_share": None
        if (safe_tokens is None) != (violating_tokens is None)
        else float(gain_safe < 0 < margin),
    }


def _gain(before: Score, after: Score, name: str) -> float | None:
    old, new = before.values.get(name), after.values.get(name)
    gain = None if old is None or new is None else new - old
    return gain if gain is not None and math.isfinite(gain) else None


def _share_above(one: float, other: float) -> float:
    return 0.5 if one == other else float(one > other)
