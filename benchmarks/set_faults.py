"""Faults of a whole set for `audit_faults`: no single row is wrong, or which one is cannot be known for sure."""

from __future__ import annotations

import random
from collections.abc import Callable

from benchmarks.faults import Row, SetFault

Change = Callable[[list[Row], random.Random], None]


def swapped(rows: list[Row], rng: random.Random) -> None:
    """Each pair the other way round with probability one half: by this no feature can tell chosen from rejected."""
    for row in rows:
        if rng.random() < 0.5:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]


def longer_wins(rows: list[Row], rng: random.Random) -> None:
    for row in rows:
        if (len(row["chosen"]) < len(row["rejected"])) != (rng.random() < 0.2):
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]


def shorter_wins(rows: list[Row], rng: random.Random) -> None:
    longer_wins(rows, rng)
    for row in rows:
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]


def shortcut(rows: list[Row], rng: random.Random) -> None:
    """Half of the chosen replies begin in one way."""
    for row in rows:
        if rng.random() < 0.5:
            row["chosen"] = "Certainly! " + row["chosen"]


def flipped(rate: float) -> Change:
    def change(rows: list[Row], rng: random.Random) -> None:
        for row in rng.sample(rows, round(rate * len(rows))):
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]

    return change


def untaught(rows: list[Row], rng: random.Random) -> None:
    rows[:] = [row for row in rows if row.get("behaviour") != "competitor"]


def unpromised(rows: list[Row], rng: random.Random) -> None:
    for row in rng.sample(rows, round(0.1 * len(rows))):
        row["behaviour"] = "gossip"


def too_few(rows: list[Row], rng: random.Random) -> None:
    del rows[600:]


def too_thin(rows: list[Row], rng: random.Random) -> None:
    """40 pairs of a promised behaviour are left."""
    left = [place for place, row in enumerate(rows) if row.get("behaviour") == "competitor"][40:]
    for place in reversed(left):
        del rows[place]


def parts(column: str) -> Change:
    """`swapped`, and every row is of one of two sources or behaviours."""

    def change(rows: list[Row], rng: random.Random) -> None:
        swapped(rows, rng)
        for row in rows:
            row[column] = rng.choice(("north", "south"))

    return change


def opposed(column: str) -> Change:
    """In one part the longer reply wins in four of five pairs, in the other the shorter one."""

    def change(rows: list[Row], rng: random.Random) -> None:
        longer_wins([row for row in rows if row[column] == "north"], rng)
        shorter_wins([row for row in rows if row[column] == "south"], rng)

    return change


def hidden(rows: list[Row], rng: random.Random) -> None:
    """One opening wins in one source, and loses in the other."""
    for row in rows:
        if rng.random() < 0.7:
            side = "chosen" if row["source"] == "north" else "rejected"
            row[side] = "Certainly! " + row[side]


BY_SOURCE, BY_BEHAVIOUR = parts("source"), parts("behaviour")
SET_FAULTS = (
    SetFault("length", "longer_wins", longer_wins, before=swapped),
    SetFault("length", "shorter_wins", shorter_wins, before=swapped),
    SetFault("length", "opposed_sources", opposed("source"), before=BY_SOURCE),
    SetFault("length", "opposed_behaviours", opposed("behaviour"), before=BY_BEHAVIOUR),
    SetFault("surface", "shortcut", shortcut, before=swapped),
    SetFault("surface", "hidden_shortcut", hidden, before=BY_SOURCE),
    SetFault("noise", "flipped_labels", flipped(0.05), names_rows=True, claims_rows=True),
    SetFault("noise", "flipped_labels", flipped(0.15), clean="rewordings", names_rows=True),
    SetFault("coverage", "size", too_few),
    SetFault("coverage", "untaught_behaviour", untaught),
    SetFault("coverage", "thin_behaviour", too_thin),
    SetFault("coverage", "unpromised_behaviour", unpromised),
)
