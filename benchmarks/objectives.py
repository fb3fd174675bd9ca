"""Every objective on the same pairs, probes and seeds: proof, collateral damage, time, memory and cost of each.

    python -m benchmarks.objectives [NAME ...] [--contract FILE] [--set KEY=VALUE ...]

Each objective is trained with its shipped defaults (the contract's own with what the contract says), in a process of
its own, in the run folder runs/objectives/objective-NAME; given again, the command goes on where it was. Without
--contract it is the embedded starter's: two to three minutes an objective on two cores, seven for those that sample
their own replies and train for STEPS steps. All are measured with more samples than the starter's contract asks for, at
temperature 1 (MEASURED), so that the sampled rate is as sure as the exact one. Prints the table of `demeanor compare`
and writes it, with the machine, the versions and the seeds, to benchmarks/results/objectives.json.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from benchmarks import machine
from demeanor.cli.compare import print_table
from demeanor.cli.console import ConsoleProgress, quiet_libraries
from demeanor.compare import compare_runs, write_comparison
from demeanor.errors import DemeanorError
from demeanor.objectives import OBJECTIVES
from demeanor.starter import starter_contract
from demeanor.sweep import Combination, combine, parse_axes, plan_sweep, read_base, run_sweep

HERE = Path(__file__).parent
DEFAULT = ("dpo", "ipo", "simpo", "cpo", "orpo", "kto", "grpo", "rloo")
STEPS = 150  # of an objective that samples: two epochs would be 680
MEASURED = ("measurement.samples=4", "measurement.temperature=1.0", "measurement.max_sampled_probes=70")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("objectives", nargs="*", metavar="NAME", help=f"default: {' '.join(DEFAULT)}")
    parser.add_argument("--contract", type=Path, default=starter_contract())
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--runs", type=Path, default=HERE.parent / "runs" / "objectives")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "objectives.json")
    options = parser.parse_args()
    quiet_libraries()
    try:
        failed = measure(options)
    except DemeanorError as error:
        raise SystemExit(str(error)) from None
    if failed:
        raise SystemExit("did not finish: " + "; ".join(f"{name}: {reason}" for name, reason in failed.items()))


def measure(options: argparse.Namespace) -> dict[str, str]:
    """Run, compare, print, write. Returns why runs failed, by name."""
    progress = ConsoleProgress()
    base = read_base(options.contract)
    axes = parse_axes([f"objective={','.join(options.objectives or DEFAULT)}"])
    given = {text.partition("=")[0] for text in options.set}
    measured = (text for text in MEASURED if text.partition("=")[0] not in given)
    combinations, notes = combine(base, axes, (*measured, *options.set))
    if "training.max_steps" not in given:
        combinations = [_shortened(item) for item in combinations]
    planned, said = plan_sweep(base, combinations, options.runs)
    for note in (*notes, *said):
        progress.say(note)
    swept = run_sweep(planned, progress)
    if not swept.finished:
        return swept.failed
    compared = compare_runs(swept.finished)
    print_table(compared)
    progress.say(f"comparison: {write_comparison(compared, options.runs).compared_page}")
    found = {
        **compared.to_json(),
        "trained": {item.name: item.contract.training.model_dump(mode="json") for item in planned},
        "seeds": {
            "training": [item.contract.training.seed for item in planned],
            "measurement": planned[0].contract.measurement.seed,
            "split": planned[0].contract.data.seed,
        },
        "failed": swept.failed,
        "machine": machine.describe(),
    }
    for run in found["runs"]:
        run["folder"] = Path(run["folder"]).name  # no path of this machine
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    return swept.failed


def _shortened(item: Combination) -> Combination:
    name = item.name.removeprefix("objective-")
    steps = (f"training.max_steps={STEPS}",) if OBJECTIVES[name].online else ()
    return replace(item, overrides=(*item.overrides, *steps))


if __name__ == "__main__":
    main()
