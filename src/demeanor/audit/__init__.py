"""Pairs -> findings: what a training on them would really teach. One check a file; `checks.py` lists them.

The pairs are read once as a stream, and each block of them is looked at by every check in one go, on every core.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from demeanor.audit.check import Check, Context, Found, Look, Scope, limits_of
from demeanor.audit.checks import CHECKS
from demeanor.audit.origins import joined, origins
from demeanor.errors import InputError, one_line
from demeanor.faults import nearest
from demeanor.pairs import PairStore
from demeanor.progress import Progress
from demeanor.records import SEVERITIES, Example, Finding, PreferencePair

__all__ = ["CHECKS", "Audit", "Scope", "audit_pairs", "chosen_checks", "prepared"]

BLOCK = 500  # pairs that are looked at in one go; fewer where they are long (pairs.store.BLOCK_BYTES)
NUM_EXAMPLES = 5
FEW = 4 * BLOCK  # so many pairs are done before other processes have started


@dataclass(frozen=True)
class Audit:
    """The findings, the gravest first, and for (check, kind) of each the places in the store of its pairs."""

    findings: tuple[Finding, ...]
    flagged: Mapping[tuple[str, str], np.ndarray]
    num_pairs: int
    num_rows: int
    checks: tuple[str, ...]

    @property
    def blocks(self) -> bool:
        return any(finding.severity == "blocks" for finding in self.findings)

    def flags(self, store: PairStore) -> Iterator[dict[str, Any]]:
        """A JSON object for each flagged pair: its id, where it was read, and (check, kind) of all its findings."""
        kinds: dict[int, list[str]] = {}
        for (check, kind), places in self.flagged.items():
            for place in places.tolist():
                kinds.setdefault(place, []).append(f"{check}.{kind}")
        for place in sorted(kinds):
            pair = store[place]
            yield {"id": pair.id, "source": pair.source, "row": pair.row, "findings": kinds[place]}

    def to_json(self) -> dict[str, Any]:
        counts = {kind: sum(finding.severity == kind for finding in self.findings) for kind in SEVERITIES}
        findings = [finding.to_json() for finding in self.findings]
        sizes = {"rows": self.num_rows, "pairs": self.num_pairs}
        return {**sizes, "checks": list(self.checks), "counts": counts, "findings": findings}


def audit_pairs(
    store: PairStore,
    scope: Scope | None = None,
    *,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    kept: Mapping[str, Collection[str]] | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
) -> Audit:
    """Look at all pairs with all checks.

    Args:
        scope: the model, the contract and the files that some checks need; a check says what it could not do.
        only: names of the checks to run; all by default.
        skip: names of checks not to run.
        kept: id of a pair that a person looked at and kept -> the findings, check.kind, that it was kept for; none
            named: for all. It counts in them no more, and is told in a number.
        workers: processes; by default one a core, and none beside this one for a small set.

    Raises:
        InputError: see `prepared`.
    """
    progress, kept = progress or Progress(), kept or {}
    checks, scope = prepared(scope or Scope(), only, skip)
    limits = scope.limits
    looks = list(dict.fromkeys(look for check in checks for look in check.looks))
    kept_look = partial(_kept, frozenset(kept))
    seen = look_at(store, [origins, *looks, *([kept_look] if kept else [])], scope, progress, workers)
    of = joined(seen.pop(origins))
    blocks = zip(store.blocks(BLOCK), seen.pop(kept_look, ()), strict=False)  # none where nobody kept any
    kept_for = {start + at: kept[pair_id] for (start, _), block in blocks for at, pair_id in block}
    findings: list[Finding] = []
    flagged: dict[tuple[str, str], np.ndarray] = {}
    with progress.bar("finding", len(checks)) as advance:
        for check in checks:
            context = Context(
                store, scope, seen, limits[check.name], of.sources, of.behaviours, of.source_names, of.behaviour_names
            )
            for found in check.find(context):
                assert found.kind in check.kinds, f"{check.name} does not name its kind {found.kind}"
                name = f"{check.name}.{found.kind}"
                found = _without([place for place, names in kept_for.items() if not names or name in names], found)
                findings.append(_finding(check, found, store))
                places = np.unique(np.asarray(found.pairs, dtype=np.int64))
                key = (check.name, found.kind)
                flagged[key] = np.union1d(flagged[key], places) if key in flagged else places
            advance(1)
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))  # stable: the checks' order within
    num_rows = sum(store.sources.values())
    return Audit(tuple(findings), flagged, len(store), num_rows, tuple(check.name for check in checks))


def prepared(scope: Scope, only: Sequence[str] = (), skip: Sequence[str] = ()) -> tuple[list[Check], Scope]:
    """The checks to run, and the scope with all their limits: what can be refused before the pairs are read, is.

    Raises:
        InputError: a check or a limit that does not exist, a limit out of its bounds, or what a check reads beside the
            pairs cannot be read.
    """
    checks = chosen_checks(only, skip)
    limits = limits_of(CHECKS, {**(scope.contract.audit if scope.contract else {}), **scope.limits})
    scope = replace(scope, limits=limits)
    for check in checks:
        if check.ready is not None:
            check.ready(scope)
    return checks, scope


def chosen_checks(only: Sequence[str], skip: Sequence[str]) -> list[Check]:
    """Raises InputError for a name that no check has, or when none is left."""
    names = [check.name for check in CHECKS]
    for option, given in (("--only", only), ("--skip", skip)):
        for name in given:
            if name not in names:
                raise InputError(f"no check is called {name!r}{nearest(name, names)}", where=option)
    checks = [check for check in CHECKS if (not only or check.name in only) and check.name not in skip]
    if not checks:
        raise InputError("no check is left", where="--skip", remedy=f"there are {', '.join(names)}")
    return checks


def look_at(
    store: PairStore,
    looks: Sequence[Look],
    scope: Scope,
    progress: Progress | None = None,
    workers: int | None = None,
) -> dict[Look, list[Any]]:
    """What each look sees of every block, in the order of the pairs."""
    progress, blocks = progress or Progress(), list(store.blocks(BLOCK))
    workers = workers if workers is not None else (1 if len(store) <= FEW else _num_cores())
    seen: dict[Look, list[Any]] = {look: [] for look in looks}
    with progress.bar("looking at the pairs", len(store)) as advance:
        for (start, stop), results in zip(blocks, _mapped(store, looks, scope, blocks, workers), strict=True):
            for look, result in zip(looks, results, strict=True):
                seen[look].append(result)
            advance(stop - start)
    return seen


def _mapped(
    store: PairStore, looks: Sequence[Look], scope: Scope, blocks: Sequence[tuple[int, int]], workers: int
) -> Iterator[list[Any]]:
    if workers <= 1:
        yield from (_look_at_block(store, looks, scope, *block) for block in blocks)
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    with ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(store, looks, scope)) as pool:
        try:
            yield from pool.map(_in_worker, blocks, chunksize=1)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_WORK: tuple[PairStore, Sequence[Look], Scope] | None = None  # of a worker process


def _begin(store: PairStore, looks: Sequence[Look], scope: Scope) -> None:
    global _WORK
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # there is a process for each core already
    _WORK = (store, looks, scope)


def _in_worker(block: tuple[int, int]) -> list[Any]:
    assert _WORK is not None
    return _look_at_block(*_WORK, *block)


def _look_at_block(store: PairStore, looks: Sequence[Look], scope: Scope, start: int, stop: int) -> list[Any]:
    pairs = store.block(start, stop)
    return [look(pairs, scope) for look in looks]


def _num_cores() -> int:
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _kept(ids: Set[str], pairs: Sequence[PreferencePair], scope: Scope) -> list[tuple[int, str]]:
    """(place in the block, id) of the pairs that a person kept."""
    return [(place, pair.id) for place, pair in enumerate(pairs) if pair.id in ids]


def _without(kept: Sequence[int], found: Found) -> Found:
    """The finding without the kept pairs; when no other shows it, it is only something to know."""
    pairs = np.asarray(found.pairs, dtype=np.int64)
    left = pairs[~np.isin(pairs, kept)]  # in the check's order
    num_kept = len(np.unique(pairs)) - len(np.unique(left))
    if not num_kept:
        return found
    severity = found.severity if len(left) else "informs"
    if severity == "blocks" and found.blocking is not None and np.isin(found.blocking, kept).all():
        severity = "warns"
    what, details = f"{found.what}; {num_kept:,} kept by decision", {**found.details, "kept": num_kept}
    return replace(found, severity=severity, what=what, pairs=left, details=details)


def _finding(check: Check, found: Found, store: PairStore) -> Finding:
    examples = [_example(store[int(place)], found.notes.get(int(place))) for place in found.pairs[:NUM_EXAMPLES]]
    num_pairs = len(found.pairs) if found.num_pairs is None else found.num_pairs
    return Finding(
        check.name, found.kind, found.severity, found.what, found.measure, found.estimate, found.remedy, found.group,
        num_pairs, tuple(examples), found.details,
    )  # fmt: skip


def _example(pair: PreferencePair, note: str | None) -> Example:
    return Example(pair.id, pair.source, pair.row, one_line(note or pair.prompt[-1].content, 160))
