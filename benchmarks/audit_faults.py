"""Does every check of the audit find its own kinds of fault, and nothing where there is none?

    python -m benchmarks.audit_faults [--seeds 3] [--sets 20] [--rate 0.02] [--only CHECK ...]

*Of rows* (`faults.py`): the faults are planted into clean pairs at a known rate, all kinds of a check into different
rows of one file, seeded; then the check runs. *Found* is the share of the planted rows that its finding names, *false*
the share of the clean rows that it names without any fault. *Of a whole set* (`set_faults.py`): `--sets` seeded
subsamples of 90 % of the clean rows, each without and with the fault; found and false are the shares of them in which
the check warns or blocks. The intervals are Clopper and Pearson's at 95 %; the sets overlap, so they say what the
draws of the fault are worth, not that other pairs would do as well.

Flipped labels are planted into two sets, and each has a second line for the rows that were flipped. The starter's own
labels (5 % flipped) follow from the replies' words, and there 95 % of the flipped rows are claimed (with 15 % flipped,
which the model must learn from, it finds 94.8 % [93.9, 95.5]: not quite). The rewordings'
(15 %) do so in 93 % only: a cross-validated model of words cannot know every flipped one (Northcutt et al. 2021 rank,
too), so of that line none are; what is claimed is that the set which holds them is told from the one that does not.

Clean are the starter's pairs; as ranked lists for what only those can have; and for facts and labels the rewordings of
`../shared/data/polite-rude`, whose replies say the same things. For facts the starter is not clean: 86 of its 1,179
chosen replies name a menu, a button or a plan ("in Payments", "to Medium", "Plus") that neither the prompt nor the
rejected reply holds, which is what `knowledge` looks for. Of rows with one prompt or the same
replies the first is kept.
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
from benchmarks.faults import ROW_FAULTS, Fault, Row, SetFault
from benchmarks.set_faults import SET_FAULTS
from demeanor.audit import CHECKS, Audit, Scope, audit_pairs
from demeanor.contract import Contract, load_contract
from demeanor.model import find_model
from demeanor.pairs import PairStore, read_pairs
from demeanor.starter import starter_contract, starter_file
from demeanor.statistics import estimate_share

HERE = Path(__file__).parent
REWORDINGS = HERE.parents[1] / "shared" / "data" / "polite-rude" / "pairs.json"
SETS = ("starter", "lists", "rewordings")
ASKED = ("heldout", "benchmark", "probes")  # the files of `leakage`, by the beginning of their kinds
NUM_HELDOUT = 150  # rows, of which each of these files has a third
CONFIDENCE = 0.95
# a template that renders what it is given, and refuses two turns of one role as many do
STRICT = (
    "{% set turns = messages[1:] if messages[0]['role'] == 'system' else messages %}{% for m in turns %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% endfor %}{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


def clean_rows(name: str) -> list[Row]:
    """Those of one of `SETS`, without repeated prompts and replies."""
    rows: list[Row] = []
    seen: set[str] = set()
    for pair in read_pairs(REWORDINGS if name == "rewordings" else starter_file("pairs.jsonl")).pairs:
        prompt = pair.prompt[-1].content
        if not seen & {prompt.lower(), pair.chosen, pair.rejected}:
            seen |= {prompt.lower(), pair.chosen, pair.rejected}
            replies: Row = {"chosen": pair.chosen, "rejected": pair.rejected}
            if name == "lists":
                replies = {"replies": [pair.chosen, pair.rejected], "scores": [1, 0]}
            rows.append({"prompt": prompt, **replies} | ({"behaviour": pair.behaviour} if pair.behaviour else {}))
    return rows


def audited(rows: Sequence[Row], check: str, heldout: Sequence[Row] = ()) -> tuple[Audit, dict[str, set[int]]]:
    """The check's findings, and for each kind the rows (from 0) that it names."""
    with tempfile.TemporaryDirectory(prefix="demeanor-") as name:
        folder = Path(name)
        _write(folder / "pairs.jsonl", rows)
        for place, kind in enumerate(ASKED):
            _write(folder / f"{kind}.jsonl", heldout[place :: len(ASKED)])
        held, benchmark = ((f"{folder}/{kind}.jsonl",) if heldout else () for kind in ("heldout", "benchmark"))
        model = find_model("starter") if check == "budget" else None
        (folder / "store").mkdir()
        store = PairStore.collect([folder / "pairs.jsonl"], folder / "store")
        scope = Scope(_contract(check, folder), model, held, benchmark)
        audit = audit_pairs(store, scope, only=[check], workers=1)
        places = [pair.row or 0 for pair in store]
        named = {kind: {places[place] - 1 for place in found} for (_, kind), found in audit.flagged.items()}
        for dropped in store.all_dropped():
            named.setdefault(dropped.reason.replace(" ", "_"), set()).add(dropped.row - 1)
    return audit, named


def _contract(check: str, folder: Path) -> Contract | None:
    """The starter's, with what the check needs; None for one that needs none."""
    promises = ("behaviours.tone", "behaviours.bypass", "behaviours.competitor", "collateral.benign")
    changes: dict[str, tuple[str, ...]] = {
        "knowledge": (),
        "coverage": ("attacks.unseen=encoding",),
        "budget": ("training.max_length=256", f"chat_template={folder}/strict.jinja"),
        "leakage": tuple(f"{promise}.probes={folder}/probes.jsonl" for promise in promises),
    }
    (folder / "strict.jinja").write_text(STRICT)
    return load_contract(starter_contract(), changes[check]) if check in changes else None


def _write(file: Path, rows: Sequence[Row]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def planted(
    rows: Sequence[Row], faults: Sequence[Fault], rate: float, seed: int, others: Sequence[Row] = ()
) -> tuple[list[Row], dict[str, set[int]]]:
    """`rows` with each fault in round(rate * len(rows)) rows of the second half, and in which. The faults that need
    another row take one of the first half, or of `others`: those of the file that the fault's name begins with. Rows
    that belong to a planted one go to the end."""
    rng, found = random.Random(seed), copy.deepcopy(list(rows))
    half, count = len(found) // 2, max(1, round(rate * len(found)))
    if count * len(faults) > len(found) - half:
        raise ValueError(f"{len(faults)} faults at a rate of {rate} do not fit into half of {len(found)} rows")
    free = rng.sample(range(half, len(found)), count * len(faults))
    places: dict[str, set[int]] = {}
    extra: list[Row] = []
    for number, fault in enumerate(faults):
        own = free[number * count : (number + 1) * count]
        file = next((place for place, kind in enumerate(ASKED) if fault.name.startswith(kind)), 0)
        sources = list(others[file :: len(ASKED)]) or found[:half]
        for place in own:
            extra += fault.plant(found[place], sources, rng) or []
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
        found_of, false_of = (hits[fault.name], totals[fault.name]), (len(_named(clean, fault)), len(rows))
        yield _line(fault, "rows", found_of, false_of)


def measure_sets(faults: Sequence[SetFault], rows: Sequence[Row], sets: int) -> list[dict[str, Any]]:
    """A line a fault of one check, clean set and `before`; where the check names rows, one more about these."""
    check, before = faults[0].check, faults[0].before
    found, false = dict.fromkeys(faults, 0), dict.fromkeys(faults, 0)
    hits, planted_rows, right, clean_hits = (dict.fromkeys(faults, 0) for _ in range(4))
    size = round(0.9 * len(rows))
    for seed in range(sets):
        rng = random.Random(seed)
        clean = copy.deepcopy(rng.sample(list(rows), size))
        if before is not None:
            before(clean, rng)
        audit, clean_named = audited(clean, check)
        for fault in faults:
            own = copy.deepcopy(clean)
            fault.plant(own, random.Random(seed))
            audit_of_fault, all_named = audited(own, check)
            false[fault] += _warns(audit, fault)
            found[fault] += _warns(audit_of_fault, fault)
            if fault.names_rows:
                named = _named(all_named, fault)
                changed = {place for place, (old, new) in enumerate(zip(clean, own, strict=True)) if old != new}
                hits[fault] += len(named & changed)
                planted_rows[fault] += len(changed)
                right[fault] += len(named)
                clean_hits[fault] += len(_named(clean_named, fault))
    lines = [_line(fault, "sets", (found[fault], sets), (false[fault], sets)) for fault in faults]
    for fault in faults:
        if fault.names_rows:
            line = _line(fault, "rows", (hits[fault], planted_rows[fault]), (clean_hits[fault], sets * size))
            share = round(hits[fault] / right[fault], 4) if right[fault] else None
            claimed = {"claimed": fault.claims_rows, "named_rightly": share}
            lines.append(line | {"kind": f"{fault.name} (which rows)"} | claimed)
    return lines


def _warns(audit: Audit, fault: SetFault) -> bool:
    return any(finding.kind in fault.counted and finding.severity != "informs" for finding in audit.findings)


def _named(named: dict[str, set[int]], fault: Fault | SetFault) -> set[int]:
    return set().union(*(named.get(kind, set()) for kind in fault.counted))


def _line(fault: Fault | SetFault, unit: str, found: tuple[int, int], false: tuple[int, int]) -> dict[str, Any]:
    """Of (hits, all) of what was planted and of what is clean."""
    shares: dict[str, Any] = {}
    for name, (hits, num) in (("found", found), ("false_alarms", false)):
        share = estimate_share(hits, num, CONFIDENCE)
        values = [None if value is None else round(value, 4) for value in (share.value, share.low, share.high)]
        shares |= {name: values[0], f"{name}_interval": values[1:]}
    return {"check": fault.check, "kind": fault.name, "unit": unit, "planted": found[1], "clean": false[1], **shares,
            "clean_set": fault.clean, "claimed": True}  # fmt: skip


def measure(seeds: int, rate: float, only: Sequence[str] = (), sets: int = 20) -> list[dict[str, Any]]:
    """The table, in the order of the checks; kinds whose clean set or check is not there are left out."""
    clean = {name: clean_rows(name) for name in SETS if name != "rewordings" or REWORDINGS.exists()}
    lines: list[dict[str, Any]] = []
    for check in CHECKS:
        if only and check.name not in only:
            continue
        for name, rows in clean.items():
            of_rows = [fault for fault in ROW_FAULTS if (fault.check, fault.clean) == (check.name, name)]
            if of_rows:
                lines += measure_rows(of_rows, rows, rate, seeds)
            of_sets = [fault for fault in SET_FAULTS if (fault.check, fault.clean) == (check.name, name)]
            for before in dict.fromkeys(fault.before for fault in of_sets):
                lines += measure_sets([fault for fault in of_sets if fault.before is before], rows, sets)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="files with planted rows, of each check")
    parser.add_argument("--sets", type=int, default=20, help="subsamples for each fault of a whole set")
    parser.add_argument("--rate", type=float, default=0.02, help="share of the rows that get each kind")
    parser.add_argument("--only", nargs="*", default=[], help="checks to run; all by default, and only then saved")
    options = parser.parse_args()
    lines = measure(options.seeds, options.rate, options.only, options.sets)
    print(f"{'check':12}{'kind':42}{'planted':>12}{'found':>9} {'':16}{'clean':>12}{'false':>9}")
    for line in lines:
        low, high = line["found_interval"]
        print(
            f"{line['check']:12}{line['kind']:42}{line['planted']:>7,} {line['unit']}{line['found']:>9.1%}"
            f" {f'[{low:.1%}, {high:.1%}]':16}{line['clean']:>7,} {line['unit']}{line['false_alarms']:>9.2%}"
            + ("" if line["claimed"] else f"  not claimed; {line['named_rightly']:.1%} of the named are right")
        )
    if not options.only:
        result = {"seeds": options.seeds, "sets": options.sets, "rate": options.rate, "lines": lines}
        machine.write(HERE / "results" / "audit_faults.json", result, with_machine=False)


if __name__ == "__main__":
    main()
