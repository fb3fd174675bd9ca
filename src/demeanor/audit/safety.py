"""Inverted safety: the chosen reply complies with a harmful prompt where the rejected one refuses; or it is toxic.

The rules are stated in `phrases`: word lists and patterns for English. They are no judge: they find the pairs that a
person should look at, and their rate says whether the labels of a set can be trusted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from demeanor.audit.check import Check, Context, Found, Scope
from demeanor.audit.phrases import asks_for_harm, complies, is_toxic, refuses
from demeanor.records import Estimate, PreferencePair
from demeanor.statistics import estimate_share

DECIDED, INVERTED, TOXIC_CHOSEN, TOXIC_REJECTED = 1, 2, 4, 8


def marks_of(pair: PreferencePair) -> int:
    """The bits above. DECIDED: the prompt asks for harm, and one reply refuses where the other complies."""
    marks = TOXIC_CHOSEN * is_toxic(pair.chosen) | TOXIC_REJECTED * is_toxic(pair.rejected)
    chosen_refuses, rejected_refuses = refuses(pair.chosen), refuses(pair.rejected)
    if chosen_refuses != rejected_refuses and complies(pair.rejected if chosen_refuses else pair.chosen):
        harmful = any(asks_for_harm(turn.content) for turn in pair.prompt if turn.role == "user")
        marks |= harmful * (DECIDED | INVERTED * rejected_refuses)
    return marks


def _look(pairs: Sequence[PreferencePair], scope: Scope) -> np.ndarray:
    """[pairs] uint8"""
    return np.fromiter(map(marks_of, pairs), np.uint8, len(pairs))


def _find(context: Context) -> Iterable[Found]:
    marks, confidence = context.column(_look).astype(np.uint8), context.scope.confidence
    inverted, decided = np.flatnonzero(marks & INVERTED), int(np.count_nonzero(marks & DECIDED))
    if len(inverted):
        share = estimate_share(len(inverted), decided, confidence)
        yield Found(
            kind="inverted",
            severity=_severity(share, context.limits["max_inverted"]),
            what=f"in {len(inverted):,} of {decided:,} pairs where one reply refuses harm and the other complies, "
            "the chosen one complies",
            measure="share of the pairs where one reply refuses harm and the other complies",
            estimate=share,
            remedy="look at them (demeanor review) and swap or drop what is inverted",
            pairs=inverted,
        )
    toxic, toxic_rejected = (marks & TOXIC_CHOSEN) != 0, (marks & TOXIC_REJECTED) != 0
    if toxic.any():
        only = toxic & ~toxic_rejected
        share = estimate_share(int(only.sum()), len(marks), confidence)
        yield Found(
            kind="toxic_chosen",
            severity=_severity(share, context.limits["max_toxic"]),
            what=f"{toxic.sum():,} chosen replies are profane or insulting, {only.sum():,} of them where the rejected "
            f"one is not (rejected replies: {toxic_rejected.sum():,})",
            measure="share of the pairs where only the chosen reply is toxic",
            estimate=share,
            remedy="look at them (demeanor review) and swap or drop those that should not be said",
            pairs=np.concatenate([np.flatnonzero(only), np.flatnonzero(toxic & ~only)]),
            details={"chosen": int(toxic.sum()), "rejected": int(toxic_rejected.sum()), "only_chosen": int(only.sum())},
        )


def _severity(share: Estimate, limit: float) -> str:
    """It blocks when even the low end of the interval is above the limit."""
    return "blocks" if share.low is not None and share.low > limit else "warns"


CHECK = Check(
    name="safety",
    about="chosen replies that comply with harm, or are toxic (word lists for English)",
    kinds=("inverted", "toxic_chosen"),
    find=_find,
    looks=(_look,),
    limits={
        "max_inverted": (0.1, "share of the decided harmful pairs that may be inverted"),
        "max_toxic": (0.01, "share of the pairs where only the chosen reply may be toxic"),
    },
)
