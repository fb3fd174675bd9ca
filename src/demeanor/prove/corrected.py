"""The sampled rate of violations, corrected for the errors of the judge that counted them.

Only a judge with a card has one. Prompts (or clusters of them) count as the draws: replies of one prompt resemble each
other, and a mean over n prompts is never less sure than n replies of which each violates or not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from demeanor.contract import Contract
from demeanor.judge_settings import Card
from demeanor.judges.cards import card_of, effective
from demeanor.prove.series import Series

if TYPE_CHECKING:
    from demeanor.records import Estimate
    from demeanor.statistics import Sample

RAW, CORRECTED = "violating_sampled_rate", "violating_corrected_rate"


def with_corrected(found: list[Series], contract: Contract) -> list[Series]:
    """The series, and after each raw rate whose judge has a card the corrected one."""
    series = []
    for one in found:
        series.append(one)
        promise = contract.promises.get(one.behaviour)
        card = card_of(promise.judge, contract.measurement.max_new_tokens) if promise else None
        if one.measure == RAW and card is not None:
            raw = (one.before, one.after, one.probes, one.clusters, one.resamples, one.seed)
            series.append(CorrectedSeries(one.behaviour, CORRECTED, *raw, card=card))
    return series


@dataclass
class CorrectedSeries(Series):
    """The values are the raw rates of the probes; the samples of them are corrected."""

    card: Card | None = None

    def _sample(self, values: list[float | None], ends: tuple[float, float] | None) -> Sample:
        raw = super()._sample(values, ends)
        assert self.card is not None and ends is not None
        return _corrected(raw, self.card, ratio=-ends[0])


def _corrected(raw: Sample, card: Card, ratio: float) -> Sample:
    """A sample whose value and intervals are the corrected ones of `raw`, that of after - ratio * before."""
    from demeanor.prevalence import correct_difference, correct_rate
    from demeanor.statistics import Sample

    counts = effective(card.sensitivity, card), effective(card.specificity, card)

    class Corrected(Sample):
        def __init__(self) -> None:
            self.__dict__.update(raw.__dict__)
            self.value = self._found(0.95).value

        def _found(self, confidence: float) -> Estimate:
            if ratio == 0.0:
                draws = raw.num_effective
                return correct_rate((raw.value or 0.0) * draws, draws, *counts, confidence=confidence)
            given: dict[str, Any] = {"ratio": ratio, "confidence": confidence}
            return correct_difference(raw.estimate(confidence), *counts, **given)

        def _interval(self, tail: float) -> tuple[float | None, float | None]:
            found = self._found(1.0 - 2.0 * tail)
            return found.low, found.high

    return Corrected()
