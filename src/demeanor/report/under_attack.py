"""The bad reply under attack, as rows: plain, seen and unseen attacks, then each family, the worst named.

A family is seen when training pairs hold it; only of unseen ones it can be said that the model met them unprepared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from demeanor.attack_settings import PLAIN, SEEN, UNSEEN
from demeanor.promises import best_of
from demeanor.prove.best_of import OF_SINGLE
from demeanor.records import Comparison, Verdict
from demeanor.report.words import BAD_MEASURES, PLOTTED, interval_words, percent, value_words

GROUPS = (PLAIN, SEEN, UNSEEN)


@dataclass(frozen=True)
class Cell:
    """A rate before and after, its interval, and how many probes it is of; in the column of `group`."""

    group: str
    change: str
    interval: str
    n: int


@dataclass(frozen=True)
class AttackRow:
    """`name` is the behaviour's measure in words, or a family; `cells` are in the order of GROUPS, None where empty."""

    name: str
    is_family: bool
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class AttackView:
    """Of one behaviour. `measure` is what the families are told by; `worst` names the worst of them in a sentence."""

    behaviour: str
    measure: str
    rows: list[AttackRow]
    worst: str
    families: list[Comparison]  # the worst first
    plain: Comparison | None


def attack_views(verdict: Verdict) -> list[AttackView]:
    """One a behaviour that was attacked."""
    views = []
    for behaviour in dict.fromkeys(c.behaviour for c in verdict.attacks):
        own = [c for c in verdict.attacks if c.behaviour == behaviour]
        view = _view(behaviour, own)
        if view is not None:
            views.append(view)
    return views


def _view(behaviour: str, own: Sequence[Comparison]) -> AttackView | None:
    measures = [m for m in BAD_MEASURES if any(c.measure == m and c.over not in GROUPS for c in own)]
    if not measures:
        return None
    told = measures[0]
    families = [c for c in own if c.measure == told and c.over not in GROUPS]
    families.sort(key=lambda c: (-(c.after.value if c.after.value is not None else 2.0), c.over))
    attempts = dict.fromkeys(c.measure for c in own if best_of(c.measure) is not None)
    rows = []
    for single in measures:
        kind = OF_SINGLE.get(single, "-").removesuffix("N")
        for measure in (single, *(name for name in attempts if name.startswith(kind))):
            rows.append(AttackRow(measure_label(measure), False, _groups([c for c in own if c.measure == measure])))
    rows += [AttackRow(c.over, True, _family(c)) for c in families]
    plain = next((c for c in own if c.measure == told and c.over == PLAIN), None)
    return AttackView(behaviour, told, rows, _worst(families), families, plain)


def measure_label(measure: str) -> str:
    """Short enough for a row; those of several attempts stand below that of one."""
    attempts = best_of(measure)
    return PLOTTED.get(measure, measure.replace("_", " ")) if attempts is None else f"any of {attempts:,} replies"


def _groups(own: Sequence[Comparison]) -> tuple[Cell | None, ...]:
    found = {c.over: c for c in own}
    return tuple(_cell(group, found[group]) if group in found else None for group in GROUPS)


def _family(comparison: Comparison) -> tuple[Cell | None, ...]:
    place = UNSEEN if comparison.unseen else SEEN
    return tuple(_cell(group, comparison) if group == place else None for group in GROUPS)


def _cell(group: str, c: Comparison) -> Cell:
    change = f"{value_words(c.before.value, c.measure)} → {value_words(c.after.value, c.measure)}"
    return Cell(group, change, interval_words(c.after, c.measure), c.after.n)


def _worst(families: Sequence[Comparison]) -> str:
    known = [c for c in families if c.after.value is not None]
    if not known:
        return "No family of attacks has a score."
    worst = known[0]
    held = "no training pair holds it" if worst.unseen else "training pairs hold it too"
    more = f" {interval_words(worst.after, worst.measure)}".rstrip()
    return f"Worst: {worst.over}, {percent(worst.after.value)}{more} after training, {worst.after.n:,} probes ({held})."
