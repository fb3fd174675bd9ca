"""Pairs on disk: read once as a stream, then looked at block by block or one by one, from any process.

A set of pairs may be larger than memory. `PairStore.collect` writes every usable pair of its sources to one file of
JSON lines and keeps where each begins (8 bytes a pair); the rest of the work asks for blocks of them.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import overload

from demeanor.errors import PairsError
from demeanor.pairs.files import source_names
from demeanor.pairs.read import MAX_PAIRS, iter_pairs
from demeanor.progress import Progress
from demeanor.records import DroppedRow, PreferencePair

# What is kept of each pair beside its texts stays in memory: with texts like hh-rlhf's about 4.5 KB in an audit and
# 5.5 KB in a curation (the slopes of benchmarks/results/audit_scale.json), so that 170,000 pairs take 1 GB, about
# 370,000 take 2, and MAX_PAIRS 5 to 6. It grows with the number of words, of which each shingle takes 4 bytes.
BLOCK_BYTES = 1 << 22  # of the pairs that are read in one go, unless one pair has more: their looks take many times it
NUM_EXAMPLES = 5  # dropped rows that are kept of each reason


class PairStore(Sequence[PreferencePair]):
    """The pairs of some sources, in their order, as a file. It can be sent to another process.

    Attributes:
        sources: name of each source -> its number of rows, in order.
        dropped: reason -> number of rows that are no pair.
        examples: reason -> the first few of them. All are in `dropped_file`.
        unread: column that no pair keeps -> number of usable rows that hold something there.
    """

    def __init__(self, folder: Path) -> None:
        self.file, self.dropped_file = folder / "pairs.jsonl", folder / "dropped.jsonl"
        self.sources: dict[str, int] = {}
        self.shapes: dict[str, str] = {}
        self.dropped: Counter[str] = Counter()
        self.unread: Counter[str] = Counter()
        self.examples: dict[str, list[DroppedRow]] = {}
        self._starts = array("q", [0])  # where each pair begins, and the end

    @classmethod
    def collect(
        cls,
        sources: Iterable[str | Path],
        folder: Path,
        *,
        behaviour: str | None = None,
        split: str = "train",
        limit: int | None = None,
        progress: Progress | None = None,
    ) -> PairStore:
        """Read all pairs of `sources` into `folder`, which exists; at most `limit` rows of each.

        Sources are told apart by as much of their paths as it takes.

        Raises:
            PairsError: a source cannot be read, or holds no usable row; or there are more than MAX_PAIRS.
        """
        store, progress, sources = cls(folder), progress or Progress(), list(sources)
        with store._writing() as write:
            for source, name in zip(sources, source_names(sources), strict=True):
                with progress.bar(f"reading {name}", None) as advance:
                    rows = iter_pairs(source, behaviour=behaviour, split=split, limit=limit, name=name)
                    store.shapes[name] = rows.shape
                    store.sources.setdefault(name, 0)
                    for number, row in enumerate(rows):
                        write(row)
                        if len(store) > MAX_PAIRS:
                            what = f"more than {MAX_PAIRS:,} pairs are more than memory may take"
                            raise PairsError(what, where=name, remedy="give --limit, or take a part at a time")
                        if number % 1000 == 0:
                            advance(1000, pairs=f"{len(store):,}")
                    store.unread.update(rows.unread)
                    advance(0, pairs=f"{len(store):,}")
        if not store.sources:
            raise PairsError("no pairs were named", remedy="name a file, a folder or a Hub id")
        return store

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, place: int) -> PreferencePair: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[PreferencePair]: ...
    def __getitem__(self, place: int | slice) -> PreferencePair | Sequence[PreferencePair]:
        if isinstance(place, slice):
            start, stop, step = place.indices(len(self))
            return self.block(start, stop)[::step] if step > 0 else [self[i] for i in range(start, stop, step)]
        place = range(len(self))[place]
        return self.block(place, place + 1)[0]

    def block(self, start: int, stop: int) -> list[PreferencePair]:
        """Pairs `start` to `stop` (not included)."""
        with self.file.open("rb") as file:
            file.seek(self._starts[start])
            data = file.read(self._starts[stop] - self._starts[start])
        return [PreferencePair.from_json(json.loads(line)) for line in data.splitlines()]

    def blocks(self, size: int) -> Iterator[tuple[int, int]]:
        """(start, stop) of blocks of at most `size` pairs and BLOCK_BYTES, in order; a longer pair has its own."""
        start = 0
        for place in range(1, len(self)):
            if place - start == size or self._span(place)[1] - self._span(start)[0] > BLOCK_BYTES:
                yield start, place
                start = place
        if len(self):
            yield start, len(self)

    def _span(self, place: int) -> tuple[int, int]:
        """Where in the file the pair begins and ends."""
        return self._starts[place], self._starts[place + 1]

    def all_dropped(self) -> Iterator[DroppedRow]:
        with self.dropped_file.open(encoding="utf-8") as file:
            for line in file:
                yield DroppedRow(**json.loads(line))

    @contextmanager
    def _writing(self) -> Iterator[Callable[[PreferencePair | DroppedRow], None]]:
        with self.file.open("wb") as pairs, self.dropped_file.open("wb") as dropped:
            last: PreferencePair | None = None

            def write(row: PreferencePair | DroppedRow) -> None:
                nonlocal last
                line = json.dumps(row.to_json(), ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
                self.sources[row.source] = self.sources.get(row.source, 0) + (not _of_its_list(row, last))
                last = last if isinstance(row, DroppedRow) else row
                if isinstance(row, DroppedRow):
                    self._note(row)
                    dropped.write(line)
                else:
                    self._starts.append(self._starts[-1] + pairs.write(line))

            yield write

    def _note(self, row: DroppedRow) -> None:
        self.dropped[row.reason] += 1
        known = self.examples.setdefault(row.reason, [])
        if len(known) < NUM_EXAMPLES:
            known.append(row)


def _of_its_list(row: PreferencePair | DroppedRow, last: PreferencePair | None) -> bool:
    """Does it come from the row of the source that the pair before it comes from, a ranked list?"""
    if last is None or last.list_id is None or (row.source, row.row) != (last.source, last.row):
        return False
    return isinstance(row, DroppedRow) or row.list_id == last.list_id
