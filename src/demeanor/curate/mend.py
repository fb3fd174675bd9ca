"""First step: what changes single pairs, or takes them out, whatever the others are: decisions, then private data.

The rest of the steps see the pairs as they will be trained on: two that differ only in an e-mail address are
duplicates once it is redacted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from demeanor.audit import Scope, look_at
from demeanor.curate.decisions import DROP, EDIT, KEEP, SWAP, Decision, decisions_in_words, why_no_pair
from demeanor.curate.redact import Change, edits, redact_pair
from demeanor.errors import PairsError
from demeanor.pairs import PairStore, PairView
from demeanor.progress import Named, Progress
from demeanor.records import PreferencePair, Record

REVIEW, PRIVATE = "dropped in review", "private data"  # why a pair is dropped here, beside the readers' own reasons


@dataclass(frozen=True, slots=True)
class Step(Record):
    """One alteration of a pair: `swapped` (chosen and rejected changed places), `edited` or `redacted`.

    The spans of a step count in the texts that the step before left.
    """

    how: str
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True)
class Mended:
    """The pairs that are left, as they are now; what each changed one went through, and why each other one is out.

    `steps` and `reasons` are by the place in the store beneath; `used` counts the decisions by their kind.
    """

    pairs: PairView
    steps: Mapping[int, tuple[Step, ...]]
    reasons: Mapping[int, str]
    used: Mapping[str, int]


def mend(
    store: PairStore,
    decisions: Mapping[str, Decision],
    private: str = "keep",
    kinds: Sequence[str] = (),
    progress: Progress | None = None,
    workers: int | None = None,
) -> Mended:
    """Apply `decisions` (by pair id); `redact` or `drop` what holds private data of `kinds`, or `keep` it."""
    kinds = kinds if private != "keep" else ()
    if not decisions and not kinds:
        return Mended(PairView(store, np.arange(len(store)), {}), {}, {}, {})
    look = partial(_mend, decisions, private, frozenset(kinds))
    blocks = look_at(store, [look], Scope(), Named(progress or Progress(), "decisions and private data"), workers)[look]
    changed: dict[int, PreferencePair] = {}
    steps: dict[int, tuple[Step, ...]] = {}
    reasons: dict[int, str] = {}
    used = dict.fromkeys(("decisions", KEEP, DROP, SWAP, EDIT), 0)
    start = 0
    met: set[str] = set()
    for num_pairs, found, decided in blocks:
        for offset, pair, pair_steps, reason in found:
            if reason:
                reasons[start + offset] = reason
            else:
                changed[start + offset], steps[start + offset] = pair, pair_steps
        for pair_id, kind in decided:
            used[kind] += 1
            met.add(pair_id)
        start += num_pairs
    used["decisions"] = len(met)
    out = np.zeros(len(store), bool)
    out[list(reasons)] = True
    return Mended(PairView(store, np.flatnonzero(~out), changed), steps, reasons, used)


def decided(store: PairStore, decisions: Mapping[str, Decision], progress: Progress) -> PairView:
    """The pairs as they were decided, for an audit; the decisions are told.

    Raises:
        PairsError: all pairs were dropped.
    """
    mended = mend(store, decisions, progress=progress)
    if decisions:
        progress.say(decisions_in_words(decisions, mended.used))
    if not len(mended.pairs):
        raise PairsError("the decisions drop all pairs", where="--decisions", remedy="undo some with `demeanor review`")
    return mended.pairs


def _mend(
    decisions: Mapping[str, Decision],
    private: str,
    kinds: frozenset[str],
    pairs: Sequence[PreferencePair],
    scope: Scope,
) -> tuple[int, list[tuple[int, PreferencePair, tuple[Step, ...], str]], list[tuple[str, str]]]:
    """Of a block: its number of pairs; (offset, pair, steps, reason) of the changed and dropped; (id, decision)."""
    found, decided = [], []
    for offset, pair in enumerate(pairs):
        decision, mended, steps, reason = decisions.get(pair.id), pair, [], ""
        if decision is not None:
            decided.append((pair.id, decision.decision))
            if decision.decision == DROP:
                reason = REVIEW
            elif decision.decision != KEEP:
                mended = decision.apply(pair)
                steps.append(
                    Step("swapped") if decision.decision == SWAP else Step("edited", tuple(edits(pair, mended)))
                )
        own = kinds if decision is None else frozenset(kind for kind in kinds if not decision.keeps(f"private.{kind}"))
        if own and not reason:
            mended, changes = redact_pair(mended, own)
            if changes:
                steps.append(Step("redacted", tuple(changes)))
                reason = PRIVATE if private == "drop" else ""
        if steps and not reason:
            reason = why_no_pair(mended) or ""
        if steps or reason:
            found.append((offset, mended, tuple(steps), reason))
    return len(pairs), found, decided


def steps_to_json(steps: Sequence[Step]) -> list[dict[str, Any]]:
    return [asdict(step) for step in steps]
