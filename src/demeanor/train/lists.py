"""The order in which the pairs of ranked lists are trained on: a list's in one batch, where they are one tree."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler


class ListSampler(Sampler[int]):
    """Numbers of pairs, shuffled by lists. An epoch's order depends on the seed and the epoch alone, so that a resumed
    training sees the pairs that an uninterrupted one sees.

    A batch takes the next list, then each further one that still fits. Only where none does, a list is parted to fill
    the batch; one with more pairs than a batch has is parted into whole batches first.

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

        def wait(place: int, numbers: list[int]) -> None:
            waiting.setdefault(len(numbers), []).append((place, numbers))

        result: list[list[int]] = []
        for place, numbers in reversed(list(enumerate(lists))):
            whole = len(numbers) - len(numbers) % self.batch_size
            result += [numbers[start : start + self.batch_size] for start in range(0, whole, self.batch_size)]
            if whole < len(numbers):
                wait(place, numbers[whole:])
        while waiting:
            batch: list[int] = []
            while waiting and len(batch) < self.batch_size:
                room = self.batch_size - len(batch)
                size = min(waiting, key=lambda size: (size > room, waiting[size][-1][0]))
                place, numbers = waiting[size].pop()
                if not waiting[size]:
                    del waiting[size]
                batch += numbers[:room]
                if numbers[room:]:
                    wait(place, numbers[room:])
            result.append(batch)
        full = [batch for batch in result if len(batch) == self.batch_size]
        random.Random(f"{self.seed} {self.epoch} batches").shuffle(full)
        return full + [batch for batch in result if len(batch) < self.batch_size]

    def num_whole(self) -> int:
        """Lists of the epoch of which all pairs are in one batch."""
        of_pair = {number: place for place, batch in enumerate(self.batches()) for number in batch}
        return sum(len({of_pair[number] for number in numbers}) == 1 for numbers in self.lists)
