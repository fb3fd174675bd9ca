"""A person goes through the flagged pairs, one key each; every decision is on disk before the next pair is shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from demeanor.audit import CHECKS, Audit
from demeanor.curate.decisions import DROP, EDIT, KEEP, SWAP, UNDO, Decision, append_decision, why_no_pair
from demeanor.errors import InputError
from demeanor.faults import nearest
from demeanor.pairs import PairView
from demeanor.records import SEVERITIES, PreferencePair

KEYS = {"k": KEEP, "d": DROP, "s": SWAP}
ASKED = ("blocks", "warns")  # the severities that are asked about, when no finding is named


@dataclass(frozen=True)
class Flagged:
    """A pair and what was found about it: (severity, check.kind, what the finding says), the gravest first.

    `copies` of it are flagged, word for word the same; a decision is about all of them.
    """

    pair: PreferencePair
    found: tuple[tuple[str, str, str], ...]
    copies: int = 1


class Screen(Protocol):
    """What the person sees and does."""

    def show(self, item: Flagged, number: int, total: int) -> None: ...
    def say(self, line: str) -> None: ...
    def key(self) -> str:
        """The next key; "" when there will be none."""

    def edit(self, pair: PreferencePair) -> dict[str, str]:
        """The new texts by the names in `decisions.EDITED`; empty when nothing was changed."""


def checks_of(names: Sequence[str]) -> list[str]:
    """The checks of findings that are named `check` or `check.kind`.

    Raises:
        InputError: there is no such check.
    """
    known = [check.name for check in CHECKS]
    for name in names:
        if name.partition(".")[0] not in known:
            raise InputError(f"no check is called {name!r}{nearest(name, known)}", where="--findings")
    return list(dict.fromkeys(name.partition(".")[0] for name in names))


def flagged_pairs(
    audit: Audit, pairs: PairView, decided: Mapping[str, Decision], names: Sequence[str] = ()
) -> list[Flagged]:
    """The pairs to ask about, the gravest first, then in the order of the set; decided ones are left out.

    Args:
        pairs: what was audited; a pair that a decision changed is known by its id before.
        names: of findings, `check` or `check.kind`; by default all that block or warn.
    """
    found: dict[int, list[tuple[str, str, str]]] = {}
    seen: set[tuple[str, str]] = set()
    for finding in audit.findings:  # the gravest first
        key = (finding.check, finding.kind)
        name = ".".join(key)
        wanted = name in names or finding.check in names if names else finding.severity in ASKED
        if not wanted or key in seen:
            continue
        seen.add(key)
        for place in audit.flagged.get(key, ()):
            found.setdefault(int(place), []).append((finding.severity, name, finding.what))
    items: dict[str, Flagged] = {}
    copies: Counter[str] = Counter()
    for place in sorted(found, key=lambda place: (SEVERITIES.index(found[place][0][0]), place)):
        pair = pairs.store[int(pairs.places[place])]
        if pair.id not in decided:
            copies[pair.id] += 1
            items.setdefault(pair.id, Flagged(pair, tuple(found[place])))
    return [Flagged(item.pair, item.found, copies[item.pair.id]) for item in items.values()]


def review(items: Sequence[Flagged], file: Path, screen: Screen) -> Counter[str]:
    """Ask about each item and write the decisions to `file`; how many of each kind now stand.

    k keeps, d drops, s swaps, e edits, n goes on without a decision, u takes the last step back, q ends.

    Raises:
        InputError: `file` cannot be written.
    """
    taken: list[Decision | None] = []  # of the items so far; None: no decision
    while len(taken) < len(items):
        item = items[len(taken)]
        screen.show(item, len(taken) + 1, len(items))
        while True:
            key = screen.key()
            if key in ("q", ""):
                return _standing(taken)
            if key == "u":
                if taken:
                    _take_back(taken.pop(), file)
                    break
                screen.say("nothing to undo here")
            elif key == "n":
                taken.append(None)
                break
            elif (decision := _decision(key, item.pair, screen)) is not None:
                append_decision(file, decision)
                taken.append(decision)
                break
        # the next item, or with undo the one before
    return _standing(taken)


def _decision(key: str, pair: PreferencePair, screen: Screen) -> Decision | None:
    if key in KEYS:
        return Decision(pair.id, KEYS[key])
    if key != "e":
        screen.say("k keep, d drop, s swap, e edit, n next, u undo, q quit")
        return None
    decision = Decision(pair.id, EDIT, screen.edit(pair))
    if not decision.changed:
        screen.say("nothing was changed")
        return None
    fault = why_no_pair(decision.apply(pair))
    if fault:
        screen.say(f"that would be no pair: {fault}")
    return None if fault else decision


def _take_back(decision: Decision | None, file: Path) -> None:
    if decision is not None:
        append_decision(file, Decision(decision.id, UNDO))


def _standing(taken: Sequence[Decision | None]) -> Counter[str]:
    return Counter(decision.decision for decision in taken if decision is not None)
