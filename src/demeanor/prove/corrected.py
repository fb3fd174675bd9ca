"""The sampled rate of violations, corrected for the errors of the judge that counted them.

Only a judge with a card has one. Prompts count as the draws: replies of one prompt resemble each other, and a mean over
n prompts is never less sure than n replies of which each violates or not.
"""

from __future__ import annotations

from dataclasses import replace

from demeanor.contract import Contract
from demeanor.judges.cards import card_of, effective
from demeanor.records import Comparison

RAW, CORRECTED = "violating_sampled_rate", "violating_corrected_rate"


def corrected(raw: Comparison, contract: Contract) -> Comparison | None:
    """`violating_corrected_rate` of a behaviour from its `violating_sampled_rate`; None when its judge has no card."""
    from demeanor.prevalence import correct_difference, correct_rate

    promise = contract.promises.get(raw.behaviour)
    card = card_of(promise.judge, contract.measurement.max_new_tokens) if promise else None
    if card is None:
        return None
    counts = effective(card.sensitivity, card), effective(card.specificity, card)
    confidence = contract.measurement.confidence
    sides = [
        replace(
            correct_rate((side.value or 0.0) * side.n, side.n, *counts, confidence=confidence), unscored=side.unscored
        )
        for side in (raw.before, raw.after)
    ]
    difference = correct_difference(raw.difference, *counts, confidence=confidence)
    return Comparison(raw.behaviour, CORRECTED, sides[0], sides[1], difference)
