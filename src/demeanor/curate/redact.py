"""Private data out of the texts: a span becomes a placeholder of its kind, `[EMAIL]`, and where it stood is noted."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from demeanor.audit.private import KINDS, find_private, persons_finder
from demeanor.curate.decisions import remade
from demeanor.records import PreferencePair, Record

# by default: a link is nobody's secret (the audit shows links), and persons need Presidio
REDACTED_KINDS = tuple(kind for kind in KINDS if kind not in ("link", "person"))


@dataclass(frozen=True, slots=True)
class Change(Record):
    """A span [start, end) of characters of a text and what it became; the texts themselves are not repeated.

    `field` is `chosen`, `rejected`, or `prompt.0` for the prompt's first turn; `kind` the kind of private data, or
    `edited`.
    """

    field: str
    kind: str
    before: tuple[int, int]
    after: tuple[int, int]


def redact(text: str, kinds: Collection[str], field: str = "") -> tuple[str, list[Change]]:
    """The text without private data of these kinds, and what was changed.

    Raises:
        InputError: persons are asked for, and Presidio is not there.
    """
    parts: list[str] = []
    changes: list[Change] = []
    place = length = 0
    for kind, start, end in find_private(text, persons_finder() if "person" in kinds else None):
        if kind in kinds:
            placeholder = f"[{kind.upper()}]"
            parts += [text[place:start], placeholder]
            length += start - place
            changes.append(Change(field, kind, (start, end), (length, length + len(placeholder))))
            length, place = length + len(placeholder), end
    return "".join([*parts, text[place:]]), changes


def redact_pair(pair: PreferencePair, kinds: Collection[str]) -> tuple[PreferencePair, list[Change]]:
    """The pair without private data of these kinds; the same pair when it has none."""
    changes: list[Change] = []

    def clean(text: str, field: str) -> str:
        text, found = redact(text, kinds, field)
        changes.extend(found)
        return text

    prompt = tuple(
        replace(turn, content=clean(turn.content, f"prompt.{number}")) for number, turn in enumerate(pair.prompt)
    )
    chosen, rejected = clean(pair.chosen, "chosen"), clean(pair.rejected, "rejected")
    return (remade(pair, prompt, chosen, rejected), changes) if changes else (pair, [])


def edits(before: PreferencePair, after: PreferencePair) -> list[Change]:
    """What an edit changed: in each text the span between what both share at its begin and at its end."""
    texts = [
        (f"prompt.{n}", a.content, b.content) for n, (a, b) in enumerate(zip(before.prompt, after.prompt, strict=True))
    ]
    texts += [(name, getattr(before, name), getattr(after, name)) for name in ("chosen", "rejected")]
    found = []
    for field, old, new in texts:
        if old != new:
            start = _shared(old, new)
            end = min(_shared(old[::-1], new[::-1]), min(len(old), len(new)) - start)
            found.append(Change(field, "edited", (start, len(old) - end), (start, len(new) - end)))
    return found


def _shared(one: str, other: str) -> int:
    """How many characters both begin with."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
