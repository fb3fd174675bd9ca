"""Which source and which behaviour each pair belongs to: the groups within which pairs are looked at alone.

A row may say itself where it is from, in a column `source` (as sets that were put together from others do, and curated
pairs); that tells more than the file's name. Where rows name more than MAX_SOURCES, an address each say, the files are
the sources.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from demeanor.audit.check import Scope
from demeanor.records import PreferencePair

MAX_SOURCES = 100
Named = tuple[list[str], np.ndarray]  # different names, and for each pair the place of its own [pairs] int32


@dataclass(frozen=True)
class Origins:
    """`sources` and `behaviours` are [pairs] int32, places in the names; a pair that names no behaviour has ""."""

    source_names: list[str]
    sources: np.ndarray
    behaviour_names: list[str]
    behaviours: np.ndarray


def origins(pairs: Sequence[PreferencePair], scope: Scope) -> tuple[Named, Named, Named]:
    """A look: what each row says of its source, the file's name where it says nothing; that name; its behaviour."""
    own = [pair.origin or pair.source for pair in pairs]
    return _numbered(own), _numbered([pair.source for pair in pairs]), _numbered([p.behaviour or "" for p in pairs])


def joined(blocks: Sequence[tuple[Named, Named, Named]]) -> Origins:
    """What `origins` saw of every block, in order."""
    own, files, behaviours = (_joined([block[place] for block in blocks]) for place in range(3))
    return Origins(*(own if len(own[0]) <= MAX_SOURCES else files), *behaviours)


def _numbered(names: Sequence[str]) -> Named:
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return list(numbers), np.fromiter((numbers[name] for name in names), np.int32, len(names))


def _joined(blocks: Sequence[Named]) -> Named:
    numbers = {name: number for number, name in enumerate(dict.fromkeys(name for names, _ in blocks for name in names))}
    parts = [np.array([numbers[name] for name in names], np.int32)[codes] for names, codes in blocks]
    return list(numbers), np.concatenate(parts) if parts else np.empty(0, np.int32)
