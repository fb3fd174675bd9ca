"""Does every check of the audit find its own kind of fault, and nothing where there is none?

    python -m benchmarks.audit_faults [--seeds 3] [--rate 0.02] [--only CHECK ...]

Faults of `faults.py` are planted into clean pairs at a known rate, all kinds of a check into different rows of one
file, seeded; then the check runs. *Found* is the share of the planted rows that its finding names (of a fault of the
whole set: the share of the seeds in which it warns or blocks), *false* the share of the clean rows that it names
without any fault (of a whole set: of seeds). Clean are the starter's pairs, and for facts the rewordings of
`../shared/data/polite-rude`, whose replies say the same things (the starter's teach steps of a repair, which are
facts); of rows with one prompt or the same replies the first is kept.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.faults import ROW_FAULTS, SET_FAULTS, Fault, Row, SetFault
from demeanor.audit import CHECKS, Audit, Scope, audit_pairs
from demeanor.contract import load_contract
from demeanor.model import find_model
from demeanor.pairs import PairStore, read_pairs
from demeanor.starter import starter_contract, starter_file

HERE = Path(__file__).parent
REWORDINGS = HERE.parents[1] / "shared" / "data" / "polite-rude" / "pairs.json"
WITH_CONTRACT = ("knowledge", "coverage", "budget")
NUM_HELDOUT = 100


def clean_rows(name: str) -> list[Row]:
    """Those of `starter` or `rewordings`, without repeated prompts and replies."""
    rows: list[Row] = []
    seen: set[str] = set()
    for pair in read_pairs(REWORDINGS if name == "rewordings" else starter_file("pairs.jsonl")).pairs:
        prompt = pair.prompt[-1].content
        if not seen & {prompt.lower(), pair.chosen, pair.rejected}:
            seen |= {prompt.lower(), pair.chosen, pair.rejected}
            row = {"prompt": prompt, "chosen": pair.chosen, "rejected": pair.rejected}
            rows.append(row | ({"behaviour": pair.behaviour} if pair.behaviour else {}))
    return rows


def audited(rows: Sequence[Row], check: str, heldout: Sequence[Row] = ()) -> tuple[Audit, dict[str, set[int]]]:
    """The check's findings, and for each kind the rows (from 0) that it names."""
    with tempfile.TemporaryDirectory(prefix="demeanor-") as name:
        folder = Path(name)
        _write(folder / "pairs.jsonl", rows)
        files = {"heldout": (str(folder / "heldout.jsonl"),), "benchmarks": (str(folder / "benchmarks.jsonl"),)}
        for place, file in enumerate(files):  # half of the held-out rows each
            _write(folder / f"{file}.jsonl", heldout[place::2])
        contract = load_contract(starter_contract(), ("training.max_length=256",)) if check in WITH_CONTRACT else None
        model = find_model("starter") if check == "budget" else None
        (folder / "store").mkdir()
        store = PairStore.collect([folder / "pairs.jsonl"], folder / "store")
        audit = audit_pairs(store, Scope(contract, model, **(files if heldout else {})), only=[check], workers=1)
        places = [pair.row or 0 for pair in store]
        named = {kind: {places[place] - 1 for place in found} for (_, kind), found in audit.flagged.items()}
        for dropped in store.all_dropped():
            named.setdefault(dropped.reason.replace(" ", "_"), set()).add(dropped.row - 1)
    return audit, named


def _write(file: Path, rows: Sequence[Row]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def planted(
    rows: Sequence[Row], faults: Sequence[Fault], rate: float, seed: int, others: Sequence[Row] = ()
) -> tuple[list[Row], dict[str, set[int]]]:
    """`rows` with each fault in round(rate * len(rows)) rows of the second half, and in which. The faults that need
    another row take one of the first half, or of `others`: of their odd places for a benchmark, else of the even ones.
    Rows that belong to a planted one go to the end."""
    rng, found = random.Random(seed), copy.deepcopy(list(rows))
    half, count = len(found) // 2, max(1, round(rate * len(found)))
    if count * len(faults) > len(found) - half:
        raise ValueError(f"{len(faults)} faults at a rate of {rate} do not fit into half of {len(found)} rows")
    free = rng.sample(range(half, len(found)), count * len(faults))
    places: dict[str, set[int]] = {}
    sources = {kind: list(others[kind::2]) or found[:half] for kind in (0, 1)}
    extra: list[Row] = []
    for number, fault in enumerate(faults):
        own = free[number * count : (number + 1) * count]
        for place in own:
            own_sources = copy.deepcopy(sources[fault.name.startswith("benchmark")])
            extra += fault.plant(found[place], own_sources, rng) or []
        places[fault.name] = set(own)
    return found + extra, places


def measure_rows(faults: Sequence[Fault], rows: Sequence[Row], rate: float, seeds: int) -> Iterator[dict[str, Any]]:
    """A line a fault of one check and clean set."""
    check = faults[0].check
    held = list(rows[-NUM_HELDOUT:]) if check == "leakage" else []
    rows = rows[: len(rows) - len(held)]
    _, clean = audited(rows, check, held)
    hits = dict.fromkeys((fault.name for fault in faults), 0)
    totals = dict(hits)
    for seed in range(seeds):
        found, places = planted(rows, faults, rate, seed, held)
        _, named = audited(found, check, held)
        for fault in faults:
            hits[fault.name] += len(places[fault.name] & _named(named, fault))
            totals[fault.name] += len(places[fault.name])
    for fault in faults:
        false = len(_named(clean, fault)) / len(rows)
        yield _line(fault, totals[fault.name], hits[fault.name] / totals[fault.name], false, len(rows))


def measure_set(fault: SetFault, rows: Sequence[Row], seeds: int) -> dict[str, Any]:
    """The line of a fault; where the check names rows, also which share of the changed ones (`rows_found`), and which
    share of those that it names was changed (`rows_right`)."""
    found = false = hits = num_changed = num_named = 0
    for seed in range(seeds):
        rng, own = random.Random(seed), copy.deepcopy(list(rows))
        if fault.before is not None:
            fault.before(own, rng)
        false += _warns(audited(own, fault.check)[0], fault)
        before = copy.deepcopy(own)
        fault.plant(own, rng)
        audit, all_named = audited(own, fault.check)
        found += _warns(audit, fault)
        named = _named(all_named, fault)
        changed = {place for place, (old, new) in enumerate(zip(before, own, strict=False)) if old != new}
        hits, num_changed, num_named = hits + len(named & changed), num_changed + len(changed), num_named + len(named)
    line = _line(fault, seeds, found / seeds, false / seeds, seeds)
    if num_named and num_changed:
        line |= {"rows_found": round(hits / num_changed, 4), "rows_right": round(hits / num_named, 4)}
    return line


def _warns(audit: Audit, fault: SetFault) -> bool:
    return any(finding.kind in fault.counted and finding.severity != "informs" for finding in audit.findings)


def _named(named: dict[str, set[int]], fault: Fault | SetFault) -> set[int]:
    return set().union(*(named.get(kind, set()) for kind in fault.counted))


def _line(fault: Fault | SetFault, num: int, found: float, false: float, num_clean: int) -> dict[str, Any]:
    unit = "sets" if isinstance(fault, SetFault) else "rows"
    return {"check": fault.check, "kind": fault.name, "unit": unit, "planted": num, "found": round(found, 4),
            "clean": num_clean, "false_alarms": round(false, 4), "clean_set": fault.clean}  # fmt: skip


def measure(seeds: int, rate: float, only: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The table, in the order of the checks; kinds whose clean set or check is not there are left out."""
    clean = {"starter": clean_rows("starter")} | (
        {"rewordings": clean_rows("rewordings")} if REWORDINGS.exists() else {}
    )
    lines: list[dict[str, Any]] = []
    for check in CHECKS:
        if only and check.name not in only:
            continue
        for name, rows in clean.items():
            faults = [fault for fault in ROW_FAULTS if (fault.check, fault.clean) == (check.name, name)]
            if faults:
                lines += measure_rows(faults, rows, rate, seeds)
            lines += [
                measure_set(fault, rows, seeds)
                for fault in SET_FAULTS
                if (fault.check, fault.clean) == (check.name, name)
            ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=0.02, help="share of the rows that get each kind")
    parser.add_argument("--only", nargs="*", default=[], help="checks to run; all by default, and only then saved")
    options = parser.parse_args()
    lines = measure(options.seeds, options.rate, options.only)
    print(f"{'check':12}{'kind':36}{'planted':>13}{'found':>9}{'clean':>12}{'false':>9}")
    for line in lines:
        print(
            f"{line['check']:12}{line['kind']:36}{line['planted']:>8,} {line['unit']}{line['found']:>9.1%}"
            f"{line['clean']:>7,} {line['unit']}{line['false_alarms']:>9.2%}"
            + (
                f"  rows: {line['rows_found']:.1%} named, {line['rows_right']:.1%} right"
                if "rows_found" in line
                else ""
            )
        )
    if not options.only:
        result = {"seeds": options.seeds, "rate": options.rate, "lines": lines}
        machine.write(HERE / "results" / "audit_faults.json", result, with_machine=False)


if __name__ == "__main__":
    main()
