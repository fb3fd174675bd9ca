"""The order in which the pairs of ranked lists are trained on: a list's in one batch, where they are one tree."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler


class ListSampler(Sampler[int]):
    """Numbers of pairs, shuffled by lists. An epoch's order depends on the seed and the epoch alone, so that a resumed
    training sees the pairs that an uninterrupted one sees.

    A batch takes the next list, then each further one that still fits. Where none does, it is filled up from a list
    that is parted for this, one after the other; a list with more pairs than a batch has is parted into whole batches
    first. All batches but the last have the same size, as TRL's and Accelerate's loaders expect; so lists of 6 pairs
    are all whole in batches of 6 or 12, and three of four in batches of 8.

    Args:
        list_of: for each pair the list that it is of; a pair of its own is a list of one.
        batch_size: pairs.
    """

    def __init__(self, list_of: Sequence[object], batch_size: int, seed: int) -> None:
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0
        members: dict[object, list[int]] = {}
        for number, name in enumerate(list_of):
            members.setdefault(name, []).append(number)
        self.lists = list(members.values())

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(map(len, self.lists))

    def __iter__(self) -> Iterator[int]:
        return (number for batch in self.batches() for number in batch)

    def batches(self) -> list[list[int]]:
        """The epoch's; all but the last are full."""
        lists = list(self.lists)
        random.Random(f"{self.seed} {self.epoch}").shuffle(lists)
        waiting: dict[int, list[tuple[int, list[int]]]] = {}  # by size, the next one last
        result: list[list[int]] = []
        for place, numbers in reversed(list(enumerate(lists))):
            whole = len(numbers) - len(numbers) % self.batch_size
            result += [numbers[start : start + self.batch_size] for start in range(0, whole, self.batch_size)]
            if whole < len(numbers):
                waiting.setdefault(len(numbers) - whole, []).append((place, numbers[whole:]))

        def next_of(sizes: list[int]) -> list[int]:
            size = min(sizes, key=lambda size: waiting[size][-1][0])
            _, numbers = waiting[size].pop()
            if not waiting[size]:
                del waiting[size]
            return numbers

        parted: list[int] = []
        while waiting or parted:
            batch: list[int] = []
            while (waiting or parted) and len(batch) < self.batch_size:
                room = self.batch_size - len(batch)
                fitting = [size for size in waiting if size <= room]
                if fitting:
                    batch += next_of(fitting)
                    continue
                parted = parted or next_of(list(waiting))
                batch, parted = batch + parted[:room], parted[room:]
            result.append(batch)
        full = [batch for batch in result if len(batch) == self.batch_size]
        random.Random(f"{self.seed} {self.epoch} batches").shuffle(full)
        return full + [batch for batch in result if len(batch) < self.batch_size]

    def num_whole(self) -> int:
        """Lists of the epoch of which all pairs are in one batch."""
        of_pair = {number: place for place, batch in enumerate(self.batches()) for number in batch}
        return sum(len({of_pair[number] for number in numbers}) == 1 for numbers in self.lists)
