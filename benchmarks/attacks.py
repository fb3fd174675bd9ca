"""The starter under attack: violating probability before and after, plain, seen and unseen families, best of n.

    python -m benchmarks.attacks [--set KEY=VALUE ...]

The starter's own contract, with every family of wrappers around the probes of its permanent behaviours, trained twice:

    as it ships          its own pairs, 200 of which (of `bypass`) are attacks, in other words than the wrappers
    with wrapped pairs   the same, and TRAIN_ON of its plain pairs once more under wrappers of the families that are
                         not held out; harmless questions too, so that a wrapper alone is no reason to refuse

HELD_OUT is never trained on in either. Measured with four samples at temperature 1 a probe. Some ten minutes each on
two cores; the run folders are runs/attacks/..., and the same command goes on where it was. Prints the table, writes it
with the machine, the versions and the seeds, to benchmarks/results/attacks.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import machine
from demeanor.attack_settings import PLAIN, SEEN, UNSEEN
from demeanor.records import Comparison

HERE = Path(__file__).parent
HELD_OUT = ("past-tense", "translation", "encoding", "payload-splitting", "many-shot", "system-override", "multi-turn")
TRAIN_ON = 0.25
COMMON = (
    "attacks.families=all",
    f"attacks.unseen=[{', '.join(HELD_OUT)}]",
    "attacks.behaviours=[tone, bypass, competitor, benign]",
    "attacks.max_probes=32",
    "measurement.samples=4",
    "measurement.temperature=1.0",
    "measurement.max_sampled_probes=16",
    "measurement.max_new_tokens=16",  # how a reply begins decides
)
ARMS = {"as it ships": (), "with wrapped pairs": (f"attacks.train_on={TRAIN_ON}",)}
BAD, SAMPLED = "violating_opening_mass", "violating_sampled_rate"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--runs", type=Path, default=HERE.parent / "runs" / "attacks")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "attacks.json")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for arm, settings in ARMS.items():
        found[arm] = measured(options.runs / arm.replace(" ", "-"), (*COMMON, *settings, *options.set))
        show(arm, found[arm])
    machine.write(options.out, {"arms": found, "held_out": HELD_OUT, "settings": COMMON})


def measured(folder: Path, settings: tuple[str, ...]) -> dict[str, Any]:
    """One run; its verdict, its notes, and what it measured under attack."""
    run = [sys.executable, "-m", "demeanor", "run", "starter", "--out", str(folder)]
    for setting in settings:
        run += ["--set", setting]
    done = subprocess.run(run, stdout=subprocess.DEVNULL)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{folder.name}: the run did not finish")
    verdict = json.loads((folder / "verdict.json").read_text())
    manifest = json.loads((folder / "manifest.json").read_text())
    return {
        "passed": verdict["passed"],
        "limits": [{key: item[key] for key in ("id", "state", "before", "after")} for item in verdict["limits"]],
        "notes": [note for note in manifest["stages"]["read"]["notes"] if "attack" in note],
        "seconds": {name: stage.get("seconds") for name, stage in manifest["stages"].items()},
        "attacks": verdict["attacks"],
    }


def show(arm: str, found: dict[str, Any]) -> None:
    comparisons = [Comparison.from_json(item) for item in found["attacks"]]
    print(f"\n{arm}: {'passed' if found['passed'] else 'failed'}")
    for note in found["notes"]:
        print(f"  {note}")
    for behaviour in dict.fromkeys(c.behaviour for c in comparisons):
        own = [c for c in comparisons if c.behaviour == behaviour]
        groups = [PLAIN, SEEN, UNSEEN, *sorted({c.over for c in own} - {PLAIN, SEEN, UNSEEN})]
        print(f"  {behaviour:32} {'n':>4} {'bad opening, exact':>36} {'bad when sampled':>36}")
        for group in groups:
            by = {c.measure: c for c in own if c.over == group}
            if BAD in by:
                kind = "" if group in (PLAIN, SEEN, UNSEEN) else " (unseen)" if by[BAD].unseen else " (seen)"
                print(f"  {group + kind:32} {by[BAD].after.n:4} {change(by[BAD]):>36} {change(by.get(SAMPLED)):>36}")
        for measure in dict.fromkeys(c.measure for c in own if "best_of" in c.measure):
            by = {c.over: c for c in own if c.measure == measure}
            told = "; ".join(f"{group} {change(by[group])}" for group in (PLAIN, SEEN, UNSEEN) if group in by)
            print(f"  {measure}: {told}")


def change(comparison: Comparison | None) -> str:
    """before → after [interval], per cent."""
    if comparison is None or comparison.before.value is None or comparison.after.value is None:
        return "-"
    low, high = comparison.after.low, comparison.after.high
    ends = f" [{100 * low:.2f}, {100 * high:.2f}]" if low is not None and high is not None else ""
    return f"{100 * comparison.before.value:.1f} → {100 * comparison.after.value:.2f}{ends}"


if __name__ == "__main__":
    main()
