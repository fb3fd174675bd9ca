"""Prefix trees: sequences that share a beginning are laid out once.

A tree is made of segments: runs of tokens that the same sequences share. Segments lie in depth-first order, position
ids follow the path from the root, and token q sees token k exactly when k lies on q's path, which in this order is
`k <= q < stop[k]` with `stop[k]` one past the subtree of k's segment. Several trees fill one row; a token never sees
another tree, because its path holds none of it. The rows need no padding and give every sequence the log-probabilities
that it has alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

MIN_SHARED = 16  # tokens; to share a shorter beginning costs more than to compute it twice

Ints = np.ndarray  # of int64


@dataclass(frozen=True, slots=True)
class Segment:
    """Places `start` to `end` of the row; its subtree ends at `stop`."""

    start: int
    end: int
    stop: int

    @property
    def branches(self) -> bool:
        return self.stop > self.end


@dataclass(frozen=True, slots=True)
class Row:
    """Trees side by side, given to the model as one sequence of L tokens.

    `members` says which of the planned sequences lie here, as (group, item); `paths` holds for each of them the places
    of all its tokens.
    """

    tokens: Ints  # [L]
    positions: Ints  # [L], distance from the root
    segments: tuple[Segment, ...]  # in depth-first order
    members: tuple[tuple[int, int], ...]
    paths: tuple[Ints, ...]

    def __len__(self) -> int:
        return len(self.tokens)

    def stops(self) -> Ints:
        """[L]: for each token one past the last that may see it."""
        return np.repeat([s.stop for s in self.segments], [s.end - s.start for s in self.segments])

    def mask(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> torch.Tensor:
        """Additive attention mask [1, 1, L, L]: 0 where row q may see column k, else the dtype's lowest value."""
        return additive_mask(self.stops(), dtype, device)

    def trees(self) -> list[tuple[Segment, ...]]:
        """The segments, those of one tree together."""
        found: list[list[Segment]] = []
        for segment in self.segments:
            if found and segment.start < found[-1][0].stop:
                found[-1].append(segment)
            else:
                found.append([segment])
        return [tuple(tree) for tree in found]


def additive_mask(stops: Ints, dtype: torch.dtype, device: torch.device | str = "cpu") -> torch.Tensor:
    """[1, 1, L, L]: 0 where k <= q < stops[k] for row q and column k, else the dtype's lowest value."""
    import torch

    place = torch.arange(len(stops), device=device)
    sees = (place[None, :] <= place[:, None]) & (place[:, None] < torch.as_tensor(stops, device=device))
    mask = torch.full((len(stops), len(stops)), torch.finfo(dtype).min, dtype=dtype, device=device)
    return mask.masked_fill_(sees, 0.0)[None, None]


def pad_row(row: Row, length: int, token: int = 0) -> Row:
    """The row with a tree of its own at the end that nobody reads, so that it has `length` tokens."""
    missing = length - len(row)
    if not missing:
        return row
    filler = Row(np.full(missing, token), np.arange(missing), (Segment(0, missing, missing),), (), ())
    return _join([row, filler])


def plan_rows(groups: Sequence[Sequence[Sequence[int]]], budget: int, min_shared: int = MIN_SHARED) -> list[Row]:
    """Lay out all sequences as trees and fill rows with them, longest tree first, each into the first row with room.

    Args:
        groups: token ids; the sequences of a group (a pair) always end up in one row, and so do groups that share a
            whole sequence (the pairs of a ranked list), so that no reply is laid out twice.
        budget: tokens a row. A tree that is longer is split between its groups; what must stay together and is longer
            gets a row of its own.
        min_shared: tokens that sequences must share beyond their common ancestor to be merged.

    Raises:
        ValueError: a sequence is empty.
    """
    if not all(len(sequence) for group in groups for sequence in group):
        raise ValueError("a sequence needs at least one token")
    trees: list[Row] = []
    for own in _same_tree(groups, min_shared):
        trees += _fit(groups, own, budget, min_shared)
    rows: list[list[Row]] = []
    for tree in sorted(trees, key=len, reverse=True):
        room = (row for row in rows if sum(map(len, row)) + len(tree) <= budget)
        row = next(room, None)
        if row is None:
            rows.append([tree])
        else:
            row.append(tree)
    return [_join(row) for row in rows]


def _same_tree(groups: Sequence[Sequence[Sequence[int]]], min_shared: int) -> list[list[int]]:
    """Group numbers, those together whose sequences share a beginning of `min_shared` tokens, or are the same."""
    beginnings = [[tuple(seq[:min_shared]) for seq in group if len(seq) >= min_shared] for group in groups]
    return _together([[*known, *map(tuple, group)] for known, group in zip(beginnings, groups, strict=True)])


def _together(keys: Sequence[Sequence[tuple[int, ...]]]) -> list[list[int]]:
    """The numbers of the items, in groups of those that a chain of common keys joins."""
    first_with: dict[tuple[int, ...], int] = {}
    leader = list(range(len(keys)))

    def find(item: int) -> int:
        while leader[item] != item:
            item = leader[item]
        return item

    for number, own in enumerate(keys):
        for key in own:
            leader[find(number)] = find(first_with.setdefault(key, number))
    result: dict[int, list[int]] = {}
    for number in range(len(keys)):
        result.setdefault(find(number), []).append(number)
    return list(result.values())


def _fit(groups: Sequence[Sequence[Sequence[int]]], own: list[int], budget: int, min_shared: int) -> list[Row]:
    """The trees of the groups `own`, halved until each fits the budget or holds what must stay together."""
    tree = _lay_out([(number, item, seq) for number in own for item, seq in enumerate(groups[number])], min_shared)
    if len(tree) <= budget or len(own) == 1:
        return [tree]
    joined = [[own[place] for place in places] for places in _together([[*map(tuple, groups[n])] for n in own])]
    if len(joined) == 1:
        return [tree]
    joined.sort(key=lambda numbers: list(groups[numbers[0]][0]))  # those of one prompt stay together
    half = len(joined) // 2
    parts = ([number for numbers in part for number in numbers] for part in (joined[:half], joined[half:]))
    return [row for part in parts for row in _fit(groups, part, budget, min_shared)]


def _lay_out(sequences: list[tuple[int, int, Sequence[int]]], min_shared: int) -> Row:
    """One row of all the sequences, given as (group, item, token ids). Those that are the same are laid out once,
    however short."""
    order = sorted((list(ids), group, item) for group, item, ids in sequences)
    fresh = [n == 0 or order[n][0] != order[n - 1][0] for n in range(len(order))]
    which = (np.cumsum(fresh) - 1).tolist()  # for each sequence the number of its own among the different ones
    arrays = [np.asarray(ids) for (ids, _, _), first in zip(order, fresh, strict=True) if first]
    shared = [0] + [_common(a, b) for a, b in pairwise(arrays)]
    pieces: list[Ints] = []
    starts: list[tuple[int, int]] = []  # (depth, length) of each segment
    stops: list[int] = []
    ancestors: list[list[int]] = [[] for _ in arrays]
    used = 0

    def grow(low: int, high: int, depth: int) -> None:
        nonlocal used
        common = min(shared[low + 1 : high], default=len(arrays[low]))
        cuts = [low, *(i for i in range(low + 1, high) if shared[i] == common), high]
        number = len(pieces)
        merge = common > depth and (high == low + 1 or common - depth >= min_shared)
        if merge:
            pieces.append(arrays[low][depth:common])
            starts.append((depth, common - depth))
            stops.append(0)
            used += common - depth
            for member in range(low, high):
                ancestors[member].append(number)
            depth = common
        if high > low + 1:
            for one, two in pairwise(cuts):
                grow(one, two, depth)
        if merge:
            stops[number] = used

    grow(0, len(arrays), 0)
    places, segments, place = [], [], 0
    for (_, length), stop in zip(starts, stops, strict=True):
        places.append(np.arange(place, place + length))
        segments.append(Segment(place, place + length, stop))
        place += length
    return Row(
        tokens=np.concatenate(pieces).astype(np.int64),
        positions=np.concatenate([np.arange(depth, depth + length) for depth, length in starts]),
        segments=tuple(segments),
        members=tuple((group, item) for _, group, item in order),
        paths=tuple(np.concatenate([places[number] for number in ancestors[own]]) for own in which),
    )


def _common(one: Ints, two: Ints) -> int:
    length = min(len(one), len(two))
    differs = one[:length] != two[:length]
    return int(differs.argmax()) if differs.any() else length


def _join(trees: list[Row]) -> Row:
    if len(trees) == 1:
        return trees[0]
    offsets = np.cumsum([0, *map(len, trees)])
    return Row(
        tokens=np.concatenate([tree.tokens for tree in trees]),
        positions=np.concatenate([tree.positions for tree in trees]),
        segments=tuple(
            Segment(s.start + offset, s.end + offset, s.stop + offset)
            for tree, offset in zip(trees, offsets.tolist(), strict=False)
            for s in tree.segments
        ),
        members=tuple(member for tree in trees for member in tree.members),
        paths=tuple(path + offset for tree, offset in zip(trees, offsets, strict=False) for path in tree.paths),
    )
