"""Some pairs of a store, a few of them changed: what later steps read instead of the store, without a second file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from demeanor.pairs.store import PairStore
from demeanor.records import PreferencePair

if TYPE_CHECKING:
    import numpy as np


class PairView(PairStore):
    """The pairs of `store` at `places` (ascending), in the order of the store, read like one.

    Attributes:
        places: [pairs] int64, where in `store` each pair stands.
        changed: place in `store` -> the pair that is read there instead.
    """

    def __init__(self, store: PairStore, places: np.ndarray, changed: Mapping[int, PreferencePair]) -> None:
        self.file, self.dropped_file = store.file, store.dropped_file
        self.sources, self.shapes, self.dropped, self.examples = (
            store.sources, store.shapes, store.dropped, store.examples,
        )  # fmt: skip
        self.store, self.places, self.changed = store, places, changed

    def __len__(self) -> int:
        return len(self.places)

    def block(self, start: int, stop: int) -> list[PreferencePair]:
        """Pairs `start` to `stop` (not included) of the view."""
        places = [int(place) for place in self.places[start:stop]]
        if not places:
            return []
        beneath = self.store.block(places[0], places[-1] + 1)
        return [self.changed.get(place, beneath[place - places[0]]) for place in places]

    def _span(self, place: int) -> tuple[int, int]:
        return self.store._span(int(self.places[place]))
