"""A person goes through the flagged pairs, one key each; every decision is on disk before the next pair is shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from demeanor.audit import BLOCK, CHECKS
from demeanor.curate.decisions import DROP, EDIT, KEEP, SWAP, UNDO, Decision, append_decision, why_no_pair
from demeanor.errors import InputError, RunFolderError
from demeanor.faults import nearest
from demeanor.pairs import PairStore
from demeanor.records import SEVERITIES, Finding, PreferencePair
from demeanor.workspace import Workspace

KEYS = {"k": KEEP, "d": DROP, "s": SWAP}
ASKED = ("blocks", "warns")  # the severities that are asked about, when no finding is named


@dataclass(frozen=True)
class Flagged:
    """A pair and what was found about it: (severity, check.kind, what the finding says), the gravest first.

    There are `copies` of it, word for word the same; a decision is about all of them.
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
            raise InputError(f"no check is called {name!r}{nearest(name, known)}", where="--only")
    return list(dict.fromkeys(name.partition(".")[0] for name in names))


def found_before(folder: Path) -> tuple[list[Finding], list[dict[str, Any]]]:
    """The findings of an audit and its flagged pairs, from the folder that `demeanor audit` wrote.

    Raises:
        RunFolderError: there are none, or they are damaged.
    """
    workspace = Workspace(folder)
    flags = workspace.read_records(workspace.flagged, lambda row: {"id": row["id"], "findings": row["findings"]})
    try:
        return [Finding.from_json(item) for item in workspace.read_json(workspace.findings)["findings"]], flags
    except (TypeError, LookupError):
        raise RunFolderError(
            "holds no findings", where=str(workspace.findings), remedy="audit the pairs again"
        ) from None


def flagged_pairs(
    findings: Iterable[Finding],
    flags: Iterable[Mapping[str, Any]],
    store: PairStore,
    decided: Collection[str] = (),
    names: Sequence[str] = (),
) -> list[Flagged]:
    """The pairs to ask about, the gravest first, then in the order of the set; the `decided` ids are left out.

    Args:
        findings: the gravest first.
        flags: `id` of each flagged pair and its `findings`, `check.kind` each (`Audit.flags`).
        store: the pairs as they were read.
        names: of findings to ask about, `check` or `check.kind`; by default all that block or warn.
    """
    told: dict[str, Finding] = {}
    for finding in findings:
        name = f"{finding.check}.{finding.kind}"
        if name in names or finding.check in names if names else finding.severity in ASKED:
            told.setdefault(name, finding)
    wanted: dict[str, list[str]] = {}
    for flag in flags:
        own = [name for name in told if name in flag["findings"]]  # the gravest first
        if own and flag["id"] not in decided:
            wanted.setdefault(flag["id"], own)
    items: dict[str, Flagged] = {}
    for start, stop in store.blocks(BLOCK):
        for pair in store.block(start, stop):
            if pair.id in items:
                items[pair.id] = replace(items[pair.id], copies=items[pair.id].copies + 1)
            elif pair.id in wanted:
                items[pair.id] = Flagged(pair, tuple((told[n].severity, n, told[n].what) for n in wanted[pair.id]))
    return sorted(items.values(), key=lambda item: SEVERITIES.index(item.found[0][0]))


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
            elif (decision := _decision(key, item, screen)) is not None:
                append_decision(file, decision)
                taken.append(decision)
                break
        # the next item, or with undo the one before
    return _standing(taken)


def _decision(key: str, item: Flagged, screen: Screen) -> Decision | None:
    pair, findings = item.pair, [name for _, name, _ in item.found]
    if key in KEYS:
        return Decision(pair.id, KEYS[key], findings=findings)
    if key != "e":
        screen.say("k keep, d drop, s swap, e edit, n next, u undo, q quit")
        return None
    decision = Decision(pair.id, EDIT, screen.edit(pair), findings)
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
