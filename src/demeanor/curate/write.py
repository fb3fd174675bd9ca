"""The curated folder: train, heldout, dropped and altered rows as JSON lines, and curate.json."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from demeanor.audit import BLOCK
from demeanor.curate.mend import Mended, Step, steps_to_json
from demeanor.curate.redact import redact
from demeanor.curate.settings import Settings
from demeanor.curate.steps import Sides
from demeanor.errors import one_line
from demeanor.pairs import PairStore, PairView
from demeanor.records import PreferencePair, Record
from demeanor.workspace import Workspace

EXCERPT = 200  # characters of a dropped row


@dataclass(frozen=True, slots=True)
class DroppedPair(Record):
    """A row that is in neither file, why, and what of: `excerpt` shows how its prompt begins, without private data.

    `id` is that of the pair as it was read; "" for a row that is no pair.
    """

    source: str
    row: int | None
    reason: str
    detail: str = ""
    id: str = ""
    excerpt: str = ""


@dataclass(frozen=True, slots=True)
class AlteredPair(Record):
    """A kept pair that is not as it was read: its id then (`id`) and now, its file, and what was done to it."""

    source: str
    row: int | None
    id: str
    id_now: str
    file: str
    steps: tuple[Step, ...]

    def to_json(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("source", "row", "id", "id_now", "file")}
        return {**own, "steps": steps_to_json(self.steps)}


def write_curated(
    workspace: Workspace, store: PairStore, mended: Mended, sides: Sides, settings: Settings, about: dict[str, Any]
) -> None:
    workspace.write_records(workspace.curated_train, _pairs(mended, sides.train))
    workspace.write_records(workspace.curated_heldout, _pairs(mended, sides.heldout))
    workspace.write_records(workspace.dropped, _dropped(store, mended, sides, settings))
    workspace.write_records(workspace.altered, _altered(store, mended, sides))
    workspace.write_json(workspace.curated, about)


def _pairs(mended: Mended, places: np.ndarray) -> Iterator[PreferencePair]:
    """The mended pairs at ascending `places`, read block by block."""
    side = PairView(mended.pairs.store, mended.pairs.places[places], mended.pairs.changed)
    for block in side.blocks(BLOCK):
        yield from side.block(*block)


def _dropped(store: PairStore, mended: Mended, sides: Sides, settings: Settings) -> Iterator[DroppedPair]:
    """First the rows that were no pair, then the others in the order of the pairs."""
    kinds = settings.kinds if settings.private != "keep" else ()
    for row in store.all_dropped():
        yield DroppedPair(row.source, row.row, row.reason, excerpt=redact(row.excerpt, kinds)[0])
    why: dict[int, tuple[str, str]] = {place: (reason, "") for place, reason in mended.reasons.items()}
    why |= {int(mended.pairs.places[place]): reason for place, reason in sides.dropped.items()}
    for place in sorted(why):
        pair = store[place]
        excerpt = one_line(redact(pair.prompt[-1].content, kinds)[0], EXCERPT)
        yield DroppedPair(pair.source, pair.row, *why[place], id=pair.id, excerpt=excerpt)


def _altered(store: PairStore, mended: Mended, sides: Sides) -> Iterator[AlteredPair]:
    held = set(mended.pairs.places[sides.heldout].tolist())
    for place in mended.pairs.places[sides.kept].tolist():
        if steps := mended.steps.get(place):
            pair, file = store[place], "heldout" if place in held else "train"
            yield AlteredPair(pair.source, pair.row, pair.id, mended.pairs.changed[place].id, file, steps)
