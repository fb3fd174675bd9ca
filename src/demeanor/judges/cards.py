"""What a judge was measured to be: sensitivity and specificity on labelled replies, and where the cards come from.

The cards of the judges that come along are in `cards.json` (written by `recipe.py`), for whole replies and for their
first 200 characters, of which one is taken by the length of the replies to be judged. Any judge is measured on labelled
replies of your own by `measure_card`.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from demeanor.errors import PairsError
from demeanor.judge_settings import Card, JudgeSettings, read_card
from demeanor.judges import Item, Judge
from demeanor.records import Estimate, Message
from demeanor.statistics import estimate_share

Labelled = tuple[Item, bool]  # a prompt and a reply, and whether the reply violates
SHORT_CHARACTERS = 200
SHORT_TOKENS = 100  # replies of at most so many are nearer to the first 200 characters than to whole ones
_LABELS = {"violating": True, "safe": False, "other": False, "invalid": False, "1": True, "0": False, "true": True,
           "false": False, "unsafe": True}  # fmt: skip


def card_of(settings: JudgeSettings, max_new_tokens: int) -> Card | None:
    """The card of the settings, or else the one that comes along; None: this judge has none.

    Raises:
        ContractError: the file that the settings name is no card.
    """
    if settings.card is not None:
        return read_card(settings.card) if isinstance(settings.card, str) else settings.card
    if not settings.has_card:
        return None
    kept = shipped_cards()[settings.kind]
    return Card.model_validate(kept["short" if max_new_tokens <= SHORT_TOKENS else "whole"])


@cache
def shipped_cards() -> dict[str, dict[str, Any]]:
    """By judge: `whole` and `short` (cards), and `elsewhere` (shares on other sets, with their n)."""
    return json.loads((files("demeanor.judges") / "cards.json").read_text("utf-8"))  # type: ignore[no-any-return]


def elsewhere(settings: JudgeSettings) -> dict[str, dict[str, Any]]:
    """What a judge that comes along reached on other texts than its card's: {set: {share: [hits, n]}}."""
    found: dict[str, dict[str, Any]] = shipped_cards().get(settings.kind, {}).get("elsewhere", {})
    return found


def measure_card(judge: Judge, rows: Sequence[Labelled], data: str) -> Card:
    """The judge's card on labelled replies; those that it gives no answer to are counted apart.

    Raises:
        PairsError: no reply of one of the two labels got an answer.
    """
    answers = judge.judge([item for item, _ in rows])
    known = [(answer == "violating", violates) for answer, (_, violates) in zip(answers, rows, strict=True) if answer]
    counts = {
        truth: [sum(said == truth for said, violates in known if violates == truth),
                sum(violates == truth for _, violates in known)]
        for truth in (True, False)
    }  # fmt: skip
    if not counts[True][1] or not counts[False][1]:
        raise PairsError(
            "a card needs violating replies and others that the judge answered: "
            f"{counts[True][1]} and {counts[False][1]} of {len(rows)}",
            where=data,
        )
    return Card(
        data=data,
        sensitivity=(counts[True][0], counts[True][1]),
        specificity=(counts[False][0], counts[False][1]),
        unscored=len(rows) - len(known),
        judge=judge.digest,
    )


def card_shares(card: Card, confidence: float) -> dict[str, Estimate]:
    """Sensitivity and specificity with their exact intervals, their n divided by the design effect."""
    shares = {}
    for name in ("sensitivity", "specificity"):
        count = getattr(card, name)
        hits, n = effective(count, card)
        found = estimate_share(round(hits), max(1, round(n)), confidence)
        shares[name] = replace(found, value=count[0] / count[1], n=count[1])
    return shares


def effective(count: tuple[int, int], card: Card) -> tuple[float, float]:
    """(hits, n) of as many replies, drawn one by one, as tell as much."""
    return count[0] / card.design_effect, count[1] / card.design_effect


def read_labelled(path: str | Path) -> list[Labelled]:
    """Rows of a CSV file (or .csv.gz) with the columns prompt, reply and label (violating or safe; 1 or 0).

    Raises:
        PairsError: it cannot be read, lacks a column, or has another label; with the row.
    """
    path = Path(path).expanduser()
    rows: list[Labelled] = []
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8", newline="") as file:
            table = csv.DictReader(file)
            missing = {"prompt", "reply", "label"} - set(table.fieldnames or ())
            if missing:
                raise PairsError(f"has no column {', '.join(sorted(missing))}", where=str(path))
            for number, row in enumerate(table, 1):
                violates = _LABELS.get((row["label"] or "").strip().casefold())
                if violates is None or row["reply"] is None or row["prompt"] is None:
                    raise PairsError(
                        f"the label {row['label']!r} is not known", where=f"{path}, row {number}",
                        remedy="violating or safe, or 1 or 0",
                    )  # fmt: skip
                rows.append((((Message("user", row["prompt"]),), row["reply"]), violates))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PairsError(f"cannot be read: {getattr(error, 'strerror', None) or error}", where=str(path)) from None
    return rows
