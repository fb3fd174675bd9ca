"""The steps that weigh pairs against each other, in their order: conflicts, duplicates, split, balance."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from demeanor.curate.balance import SLACK, balanced
from demeanor.curate.conflicts import conflicting
from demeanor.curate.duplicates import EXACT, NEAR, exact_duplicates, near_pairs
from demeanor.curate.mend import Mended
from demeanor.curate.settings import Settings
from demeanor.curate.split import heldout_pairs
from demeanor.curate.texts import texts_of
from demeanor.curate.traits import Traits
from demeanor.errors import PairsError
from demeanor.progress import Progress

CONFLICT, LENGTH = "conflict", "length balance"
_LEAVE_OUT = {
    "review and private data": "--private keep",
    "conflicts": "--conflicts keep",
    "duplicates": "--near 0",
    "length balance": "--balance none",
}


@dataclass(frozen=True)
class Sides:
    """Places among the mended pairs, ascending; of each dropped one (reason, detail); pairs left after each step."""

    train: np.ndarray
    heldout: np.ndarray
    dropped: dict[int, tuple[str, str]]
    steps: dict[str, int]
    num_clusters: int
    largest_cluster: int

    @property
    def kept(self) -> np.ndarray:
        return np.union1d(self.train, self.heldout)


def choose(
    mended: Mended, traits: Traits, settings: Settings, progress: Progress | None = None, workers: int | None = None
) -> Sides:
    """Which pairs are trained on and which are held out.

    Raises:
        PairsError: none would be.
    """
    dropped: dict[int, tuple[str, str]] = {}
    steps = {"review and private data": len(traits)}

    def left(step: str = "") -> np.ndarray:
        out = np.zeros(len(traits), bool)
        out[list(dropped)] = True
        places = np.flatnonzero(~out)
        if step:
            steps[step] = len(places)
        if not len(places):
            _refuse_no_training(steps)
        return places

    left()
    if settings.conflicts != "keep":
        found = conflicting(traits, resolve=settings.conflicts == "resolve")
        dropped |= {place: (CONFLICT, why) for place, why in found.items()}
    kept = left("conflicts")
    repeats = exact_duplicates(traits, kept)
    texts = texts_of(mended.pairs, progress, workers)
    once = np.setdiff1d(kept, list(repeats))
    near = near_pairs(texts, once, settings.near, settings.seed) if settings.near else {}
    for place, first in (repeats | near).items():
        like = near.get(first, first)  # the first of equals may itself be near an earlier one
        dropped[place] = (EXACT if place in repeats and like == first else NEAR, _like(mended, like))
    kept = left("duplicates")
    held, labels = heldout_pairs(traits, texts, kept, settings.heldout, settings.seed)
    if settings.balance != "none":
        surplus = kept[~_balanced(traits, kept, held, settings)]
        dropped |= dict.fromkeys(surplus.tolist(), (LENGTH, ""))
    kept_now = left("length balance")
    heldout = np.intersect1d(kept[held], kept_now)
    train = np.setdiff1d(kept_now, heldout)
    sizes = np.bincount(labels)
    if not len(train):
        _refuse_no_training(steps)
    if settings.heldout and not len(heldout):
        _refuse_no_heldout(sizes, int(held.sum()), settings.heldout)
    return Sides(train, heldout, dropped, steps, len(sizes), int(sizes.max()))


def _balanced(traits: Traits, kept: np.ndarray, held: np.ndarray, settings: Settings) -> np.ndarray:
    """[kept] bool: each side of the split, each source and each behaviour on its own."""
    keep = np.zeros(len(kept), bool)
    strata = traits.strata[kept] * 2 + held
    for number in np.unique(strata):
        own = strata == number
        keep[own] = balanced(traits.difference[kept[own]], SLACK[settings.balance], settings.seed)
    return keep


def _like(mended: Mended, place: int) -> str:
    pair = mended.pairs[place]
    return f"of row {pair.row} of {pair.source}"


def _refuse_no_training(steps: dict[str, int]) -> None:
    told = ", ".join(f"{count:,} after {step}" for step, count in steps.items())
    lost = {step: before - after for (_, before), (step, after) in pairwise(steps.items())}
    step = max(lost, key=lambda name: lost[name]) if any(lost.values()) else next(iter(steps))
    leave = "--heldout 0" if list(steps.values())[-1] else _LEAVE_OUT[step]
    raise PairsError(
        f"no pair would be left to train on ({told})", remedy=f"bring more pairs, or leave out what took them: {leave}"
    )


def _refuse_no_heldout(sizes: np.ndarray, held: int, fraction: float) -> None:
    """`sizes` [clusters]: pairs of each cluster of prompts; `held`: pairs that were held out before the balance."""
    share, others = f"{fraction:g} of {sizes.sum():,} pairs", "bring other prompts"
    if held:
        why = f"of the {held:,} that {share} came to, the length balance leaves none"
        others = "give a larger --heldout, or --balance none"
    elif len(sizes) == 1:
        why = f"the largest cluster of similar prompts has {sizes[0]:,} of {sizes[0]:,} pairs"
    else:
        why = f"no cluster of similar prompts, of which the smallest has {sizes.min():,} pairs, fits whole into {share}"
        others = "give a larger --heldout, bring other prompts"
    raise PairsError(
        f"no pair would be left to hold out: {why}", where="--heldout", remedy=f"{others}, or give --heldout 0"
    )
