"""What a check is, and what it is given.

A check is a module with one `CHECK`. It works in two steps, so that a set larger than memory is audited on every core:
its looks take what they need from one block of pairs at a time, in any process, as arrays that are small beside the
texts; its `find` reads those of all blocks, in the order of the pairs, and says what it found. Checks may share a look.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from demeanor.contract import Contract
from demeanor.errors import InputError
from demeanor.faults import nearest
from demeanor.pairs import PairStore
from demeanor.records import Estimate, PreferencePair

if TYPE_CHECKING:
    from demeanor.model import ModelSource


@dataclass(frozen=True)
class Scope:
    """What an audit is about besides the pairs; it goes to every process.

    `benchmarks` are files of prompts that no pair may repeat, `heldout` files of pairs that are not trained on.
    `margins` gives the model's own margin of each of some pairs, log p(chosen) / tokens - log p(rejected) / tokens in
    nats, None where a pair cannot be scored; it is sent to other processes too, so it is a function that pickle takes.
    """

    contract: Contract | None = None
    model: ModelSource | None = None
    heldout: tuple[str, ...] = ()
    benchmarks: tuple[str, ...] = ()
    confidence: float = 0.95
    seed: int = 0
    limits: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # check -> limit -> value, all of them
    margins: Callable[[Sequence[PreferencePair]], Sequence[float | None]] | None = None


# A function at the top of a module: one block of pairs, in their order -> what a check needs of them.
Look = Callable[[Sequence[PreferencePair], Scope], Any]


@dataclass(frozen=True)
class Context:
    """All that a check may read: the pairs on disk, what the looks saw, and the scope."""

    store: PairStore
    scope: Scope
    seen: Mapping[Look, Sequence[Any]]  # of every block, in order
    limits: Mapping[str, float]  # of this check
    sources: np.ndarray  # [pairs] int32: which of `source_names` each pair comes from
    behaviours: np.ndarray  # [pairs] int32: which of `behaviour_names`
    source_names: Sequence[str]
    behaviour_names: Sequence[str]

    def column(self, look: Look, name: str | None = None) -> np.ndarray:
        """What a look saw, an array a block (or `name` of a dict of arrays), as one array over all pairs."""
        blocks = [block if name is None else block[name] for block in self.seen[look]]
        return np.concatenate(blocks) if blocks else np.empty(0)

    def groups(self) -> list[tuple[str, np.ndarray]]:
        """(name, mask over the pairs): "" with all of them, then each source and each behaviour of several."""
        found = [("", np.ones(len(self.store), bool))]
        for names, of, what in (
            (self.source_names, self.sources, "source"),
            (self.behaviour_names, self.behaviours, "behaviour"),
        ):
            if len(names) > 1:
                found += [(f"{what} {name}", of == number) for number, name in enumerate(names)]
        return found


@dataclass(frozen=True)
class Found:
    """A finding in the making; `pairs` are the places in the store of all the pairs that show it (see `Finding`).

    `notes` says in a few words what is wrong with the pair at a place; without it an example shows its prompt.
    Where the finding blocks because of some of its pairs alone, these are `blocking`.
    """

    kind: str
    severity: str
    what: str
    measure: str
    estimate: Estimate
    remedy: str
    group: str = ""
    pairs: Sequence[int] | np.ndarray = ()
    blocking: np.ndarray | None = None
    notes: Mapping[int, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    num_pairs: int | None = None  # where more rows show it than there are pairs to point at (dropped ones)


@dataclass(frozen=True)
class Check:
    """One thing that is looked for. `kinds` are all that its findings can be of, `limits` maps a limit's name to
    (default, what it bounds).

    `bounds`: (above, up to) of the limits that cannot be any number. `ready` reads what the check needs beside the
    pairs, before these are read; it raises InputError.
    """

    name: str
    about: str
    kinds: tuple[str, ...]
    find: Callable[[Context], Iterable[Found]]
    looks: tuple[Look, ...] = ()
    limits: Mapping[str, tuple[float, str]] = field(default_factory=dict)
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    ready: Callable[[Scope], None] | None = None


def limits_of(checks: Sequence[Check], given: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """The limits of all checks, those that are `given` first.

    Raises:
        InputError: a check or a limit that does not exist, or a limit out of its bounds.
    """
    bounds = {check.name: check.bounds for check in checks}
    known = {check.name: {name: value for name, (value, _) in check.limits.items()} for check in checks}
    for check, limits in given.items():
        if check not in known:
            raise InputError(f"no check is called {check!r}{nearest(check, known)}", where="audit")
        for name, value in limits.items():
            if name not in known[check]:
                remedy = f"it has {', '.join(known[check])}" if known[check] else "it has none"
                raise InputError(f"no limit {name!r}", where=f"audit.{check}", remedy=remedy)
            above, most = bounds[check].get(name, (-math.inf, math.inf))
            if not above < value <= most:  # so is what is not a number
                within = [f" above {above:g}"] * (above > -math.inf) + [f" up to {most:g}"] * (most < math.inf)
                remedy = f"give a number{' and'.join(within)}"
                raise InputError(f"cannot be {value:g}", where=f"audit.{check}.{name}", remedy=remedy)
            known[check][name] = value
    return known
