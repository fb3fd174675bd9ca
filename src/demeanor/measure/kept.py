"""Likelihoods that are kept for later runs: the base model is measured once for all runs over the same probes.

A number depends on the weights (the adapter's included), the precision, the kind of device, and the token ids of prompt
and reply or opening; nothing else is in its key. It is kept where the reference of a training is, by the same means
(`train/reference.py`). A few probes are computed again in each run; when they disagree with what is kept, all of it is
forgotten, and one line says so. What is not finite is not kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from demeanor.measure.openings import ENOUGH, MOST, SMALL, Mass, Opening
from demeanor.records import content_id
from demeanor.train.reference import ReferenceCache, ids_digest

VERSION = 2  # of what is kept

# a prompt, replies with their per-token log-probabilities, openings with their masses
Found = tuple[list[int], Sequence[tuple[list[int], list[float]]], Sequence[tuple[Opening, Mass]]]


class KeptLikelihoods:
    """The likelihoods of one model.

    Args:
        weights: digest of all that makes the model: its files, and its adapter's.
        dtype, device: it computes with and on, as text.

    Raises:
        StageError: the cache's folder cannot be written.
    """

    def __init__(self, weights: str, *, dtype: str, device: str) -> None:
        self._cache = ReferenceCache(content_id(VERSION, weights, dtype, device), kind="likelihoods")
        self.num_found = 0

    @property
    def path(self) -> str:
        return str(self._cache.path)

    def replies(self, prompt: list[int], replies: Sequence[list[int]]) -> list[list[float] | None]:
        """Per-token log-probabilities (nats) of each reply that is known."""
        found = self._cache.find_rows([ids_digest(prompt, r) for r in replies], [(len(r), 0) for r in replies])
        self.num_found += sum(row is not None for row in found)
        return [None if row is None else row[0].tolist() for row in found]

    def masses(self, prompt: list[int], openings: Sequence[Opening]) -> list[Mass | None]:
        """The mass of each opening that is known."""
        found = self._cache.find_rows([_digest(prompt, o) for o in openings], [(2, 0) for _ in openings])
        self.num_found += sum(row is not None for row in found)
        return [None if row is None else _mass(*row[0].tolist()) for row in found]

    def keep(self, found: Iterable[Found]) -> None:
        """In one transaction: each waits for the disk.

        Raises:
            StageError: there is no room.
        """
        rows: dict[bytes, np.ndarray] = {}
        for prompt, replies, masses in found:
            rows |= {ids_digest(prompt, reply): np.array(logps) for reply, logps in replies}
            rows |= {_digest(prompt, opening): _values(mass) for opening, mass in masses}
        rows = {key: values for key, values in rows.items() if np.isfinite(values).all()}
        nothing = np.zeros(0)
        self._cache.keep_rows(rows, [(value, nothing) for value in rows.values()])

    def rounded(self, mass: Mass) -> Mass:
        """As it will be found: the cache is in float32, and a run that finds numbers must see the same as one that
        computed them."""
        return _mass(*_values(mass).astype(np.float32).tolist())

    def forget(self) -> None:
        self._cache.forget()
        self.num_found = 0


def _digest(prompt: list[int], opening: Opening) -> bytes:
    how = f"{opening.text!r} {SMALL} {ENOUGH} {MOST}" if opening.text is not None else ""
    return ids_digest(prompt, opening.tokens, list(how.encode()))


def _values(mass: Mass) -> np.ndarray:
    log_found = math.log(mass.found) if mass.found > 0 else mass.found - math.inf  # what is no number stays none
    return np.array([log_found, -1.0 if mass.left_out is None else mass.left_out])


def _mass(log_found: float, left_out: float) -> Mass:
    return Mass(math.exp(log_found), None if left_out < 0 else left_out)
