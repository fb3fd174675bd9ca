"""Every objective on the same pairs, probes and seeds: proof, collateral damage, time, memory and cost of each.

    python -m benchmarks.objectives [NAME ...] [--contract FILE] [--set KEY=VALUE ...]

Each objective is trained with its shipped defaults (the contract's own with what the contract says), in a process of
its own, in the run folder runs/objectives/objective-NAME; given again, the command goes on where it was. Without
--contract it is the embedded starter's: two to three minutes an objective on two cores, seven for those that sample
their own replies and train for STEPS steps. rloo is the legacy way: first a reward model is trained on the same pairs
(objective reward, held to its accuracy on the probes' replies), then rloo against it; grpo is rewarded by the rule of
each behaviour. All are measured with more samples than the starter's contract asks for, at temperature 1 (MEASURED), so
that the sampled rate is as sure as the exact one.

Prints the table of `demeanor compare`, the reward model's figures, and of each run the share of bad replies among the
sampled ones before and after, with the p-value of "nothing changed" corrected over the behaviours (Holm 1979), and the
reward; writes all of it, with the machine, the versions and the seeds, to benchmarks/results/objectives.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks import machine
from demeanor.cli.compare import print_table
from demeanor.cli.console import ConsoleProgress, quiet_libraries
from demeanor.compare import compare_runs, write_comparison
from demeanor.errors import DemeanorError
from demeanor.objectives import OBJECTIVES
from demeanor.pairs.probes import read_probes
from demeanor.records import Comparison, Verdict
from demeanor.significance import holm
from demeanor.starter import starter_contract
from demeanor.sweep import Base, Combination, combine, parse_axes, plan_sweep, read_base, run_sweep
from demeanor.workspace import Workspace

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
    runs = options.runs.resolve()
    base, names = read_base(options.contract), options.objectives or DEFAULT
    given = {text.partition("=")[0] for text in options.set}
    settings = (*(text for text in MEASURED if text.partition("=")[0] not in given), *options.set)
    reward_model = None
    if "rloo" in names and "training.rewards" not in given:
        planned, said = plan_sweep(*reward_sweep(base, settings), runs)
        swept = run_sweep(planned, progress)
        if swept.failed:
            return swept.failed
        (reward_model,) = swept.finished
    combinations, notes = combine(base, parse_axes([f"objective={','.join(names)}"]), settings)
    combinations = [_completed(item, reward_model, "training.max_steps" in given) for item in combinations]
    planned, said = plan_sweep(base, combinations, runs)
    for note in (*notes, *said):
        progress.say(note)
    swept = run_sweep(planned, progress)
    if not swept.finished:
        return swept.failed
    compared = compare_runs(swept.finished)
    print_table(compared)
    progress.say(f"comparison: {write_comparison(compared, runs).compared_page}")
    found = {
        **compared.to_json(),
        "reward_model": reward_model and figures_of_reward_model(reward_model),
        "sampled": {folder.name: sampled(folder) for folder in swept.finished},
        "trained": {item.name: item.contract.training.model_dump(mode="json") for item in planned},
        "seeds": {
            "training": [item.contract.training.seed for item in planned],
            "measurement": planned[0].contract.measurement.seed,
            "split": planned[0].contract.data.seed,
        },
        "failed": swept.failed,
    }
    show(found)
    machine.write(options.out, json.loads(json.dumps(found).replace(f"{runs}/", "")))  # no path of this machine
    return swept.failed


def reward_sweep(base: Base, settings: tuple[str, ...]) -> tuple[Base, list[Combination]]:
    """A reward model on the same pairs, each behaviour held to its accuracy instead of what is asked of a policy. What
    has prompts without replies as probes is left out: a reward model has nothing to say of it."""
    better, held, data = "limits=[{measure: reward_accuracy, min: 0.5}]", [], dict(base.data)
    for section in ("behaviours", "collateral"):
        own = data.get(section) or {}
        data[section] = {name: promise for name, promise in own.items() if _has_replies(base, promise, name)}
        held += [f"{section}.{name}.{better}" for name, promise in data[section].items() if "limits" in promise]
    base = replace(base, data=data)
    combinations, _ = combine(base, parse_axes(["objective=reward"]), (*settings, *held))
    return base, combinations


def _has_replies(base: Base, promise: dict[str, Any], name: str) -> bool:
    if "probes" not in promise:  # of pairs that are held out
        return True
    found = read_probes(base.root / promise["probes"], name)
    return all(probe.safe or probe.violating for probe in found.probes)


def figures_of_reward_model(folder: Path) -> dict[str, Any]:
    """Accuracy on the probes' pairs of replies, by behaviour, and what its training took."""
    run = Workspace.open(folder)
    training = run.read_json(run.training)
    return {
        "accuracy": {c.behaviour: asdict(c.after) for c in _comparisons(run, ["reward_accuracy"])},
        **{name: training[name] for name in ("steps", "num_pairs", "learning_rate", "seconds", "peak_bytes")},
    }


def sampled(folder: Path) -> list[dict[str, Any]]:
    """Of each behaviour the share of bad replies among the sampled ones, and the reward where there is one: before,
    after, the difference paired by probe, and `p_holm`, over the behaviours."""
    rows = []
    for measure in ("violating_sampled_rate", "reward"):
        own = _comparisons(Workspace.open(folder), [measure])
        corrected = holm([1.0 if c.p is None else c.p for c in own])
        rows += [{**c.to_json(), "p_holm": p} for c, p in zip(own, corrected, strict=True)]
    return rows


def _comparisons(run: Workspace, measures: Iterable[str]) -> list[Comparison]:
    return [c for c in Verdict.from_json(run.read_json(run.verdict)).comparisons if c.measure in measures]


def show(found: dict[str, Any]) -> None:
    if model := found["reward_model"]:
        told = ", ".join(f"{name} {machine.spelt(own)} (n = {own['n']})" for name, own in model["accuracy"].items())
        print(f"reward model: accuracy {told}; {model['seconds']:.0f} s, peak {model['peak_bytes'] / 2**20:.0f} MiB")
    for name, rows in found["sampled"].items():
        for row in rows:
            before, after, difference = (row[side] for side in ("before", "after", "difference"))
            what = f"{name}, {row['behaviour']}, {row['measure']}"
            change = f"{before['value']:.4f} -> {after['value']:.4f}, {machine.spelt(difference)}"
            print(f"{what}: {change} (n = {difference['n']}), p = {row['p_holm']:.2g}")


def _completed(item: Combination, reward_model: Path | None, has_steps: bool) -> Combination:
    """With STEPS for what samples its own replies, and the reward model for rloo."""
    name = item.name.removeprefix("objective-")
    more = [] if has_steps or not OBJECTIVES[name].online else [f"training.max_steps={STEPS}"]
    if name == "rloo" and reward_model is not None:
        more.append(f"training.rewards=[{{kind: model, path: {json.dumps(str(reward_model))}}}]")
    return replace(item, overrides=(*item.overrides, *more))


if __name__ == "__main__":
    main()
