"""How deep is the training that the starter ships? Prefill attacks, divergence by token, and an attacker that searches.

    python -m benchmarks.depth [--budget 256] [--runs runs] [--set KEY=VALUE ...]

The starter's own contract, trained twice (in the folders depth/... below --runs; given again, the command goes on where
it was): as it ships, which is with a recovery pair for each pair of a behaviour, and without them. Measured with more
than the contract asks for:

    prefill     the reply is forced to begin with the first N tokens of the violating one: the exact probability that it
                goes on rather than turns back, the exact probability that it turns back at once, and the share of
                sampled replies (temperature 1) that the rule calls violating
    depth       KL(aligned || base) at each token of the violating replies, and the share of it beyond the third
    attacker    the worst prompt that a random search finds with BUDGET prompts a probe, the same on both sides

Prints the tables and writes them, with the machine, the versions and the seeds, to benchmarks/results/depth.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks import machine
from demeanor.cli.console import ConsoleProgress, print_verdict, quiet_libraries
from demeanor.contract import Contract, load_contract
from demeanor.errors import DemeanorError
from demeanor.promises import AFTER_ONLY, of_family, prefill_of
from demeanor.records import SIDES, Comparison, Estimate, Score, Verdict
from demeanor.starter import starter_contract
from demeanor.workspace import Workspace

HERE = Path(__file__).parent
ARMS = {"as it ships": (), "without recovery pairs": ("training.recovery={}",)}
PREFILL = (1, 2, 3, 5, 10, 15, 20)
MEASURED = (
    f"measurement.prefill={list(PREFILL)}",
    "measurement.temperature=1.0",
    "measurement.max_sampled_probes=24",
    "measurement.adaptive.max_probes=8",
)
KINDS = {
    "violating_prefill_N_rate": "forced for N tokens, sampled: stays bad",
    "violating_prefill_N_probability": "forced for N tokens: goes on, of going on and turning back",
    "safe_prefill_N_mass": "forced for N tokens: turns back at once",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--budget", type=int, default=256)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--runs", type=Path, default=HERE.parent / "runs")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "depth.json")
    options = parser.parse_args()
    quiet_libraries()
    overrides = (*MEASURED, f"measurement.adaptive.budget={options.budget}", *options.set)
    found: dict[str, Any] = {}
    folders: list[Path] = []
    try:
        for arm, settings in ARMS.items():
            contract = load_contract(starter_contract(), (*overrides, *settings))
            folder = options.runs / "depth" / arm.replace(" ", "-")
            verdict, scores = measured(contract, folder, folders)
            folders.append(folder)
            behaviours = figures(contract, verdict, scores)
            print(f"\n{arm}")
            print_verdict(verdict, contract.collateral)
            print_figures(behaviours)
            failed = [limit.id for limit in verdict.limits if not limit.passed]
            found[arm] = {"behaviours": behaviours, "passed": verdict.passed, "failed": failed}
            found[arm] |= {"training": contract.training.model_dump(mode="json")}
    except DemeanorError as error:
        raise SystemExit(str(error)) from None
    about = {"settings": contract.measurement.model_dump(mode="json"), "seed": contract.measurement.seed}
    machine.write(options.out, {"arms": found, **about})


def measured(contract: Contract, folder: Path, others: list[Path]) -> tuple[Verdict, list[Score]]:
    """The run's verdict, and its scores after training; `others`: runs that may have measured the same base model."""
    from demeanor.pipeline import run
    from demeanor.plan import plan_run

    with Workspace(folder).locked() as workspace:
        verdict = run(plan_run(contract, workspace), ConsoleProgress(), others)
        return verdict, workspace.read_records(workspace.scores("after"), Score.from_json)


def figures(contract: Contract, verdict: Verdict, scores: list[Score]) -> dict[str, Any]:
    """By behaviour: the prefill tables, the depth, the attacker."""
    from demeanor.report.depth import depth_curve

    found: dict[str, Any] = {}
    for name in contract.promises:
        own = [c for c in verdict.comparisons if c.behaviour == name]
        after = [score for score in scores if score.behaviour == name]
        known = {c.measure: c for c in own}
        found[name] = {
            "plain": {m: _sides(known[m]) for m in ("violating_opening_mass", "violating_sampled_rate") if m in known},
            "prefill": {
                kind: {str(prefill_of(c.measure)): _sides(c) for c in own if of_family(c.measure) == kind}
                for kind in KINDS
            },
            "depth": {m: known[m].after.to_json() for m in AFTER_ONLY if m in known},
            "kl_nats_by_token": {str(t): estimate.to_json() for t, estimate in depth_curve(after, contract)},
            "attacker": _sides(known["violating_adaptive_mass"]) if "violating_adaptive_mass" in known else None,
            "queries": [score.evidence["adaptive"]["queries"] for score in after if "adaptive" in score.evidence],
            "worst_prompts": _worst(after),
        }
    return found


def _sides(comparison: Comparison) -> dict[str, Any]:
    return {name: getattr(comparison, name).to_json() for name in (*SIDES, "difference")}


def _worst(after: list[Score]) -> list[dict[str, Any]]:
    """The three prompts with the highest mass that the attacker found after training."""
    attacked = [score.evidence["adaptive"] for score in after if "adaptive" in score.evidence]
    ranked = sorted(attacked, key=lambda found: -found["mass"])[:3]
    return [{key: item[key] for key in ("mass", "plain_mass", "wrapper", "suffix")} for item in ranked]


def print_figures(found: dict[str, Any]) -> None:
    for name, own in found.items():
        print(f"\n{name}")
        for kind, words in KINDS.items():
            if own["prefill"][kind]:
                print(f"  {words}; before → after [interval], probes")
            for n, sides in own["prefill"][kind].items():
                print(f"    N = {n:>2}  {_line(sides)}")
        for measure, estimate in own["depth"].items():
            print(f"  {measure}  {_spelt(Estimate(**estimate))}")
        curve = [f"{t}: {item['value']:.2f}" for t, item in own["kl_nats_by_token"].items()]
        print(f"  KL by token, nats  {', '.join(curve)}")
        if own["attacker"]:
            print(f"  attacker, {max(own['queries'])} prompts a probe: bad opening  {_line(own['attacker'])}")
            for worst in own["worst_prompts"]:
                print(f"    {worst['plain_mass']:.3f} → {worst['mass']:.3f}  {worst['wrapper']} + {worst['suffix']!r}")


def _line(sides: dict[str, Any]) -> str:
    before, after = (Estimate(**sides[side]) for side in SIDES)
    return f"{_number(before.value)} → {_spelt(after)}"


def _spelt(estimate: Estimate) -> str:
    missing = f", {estimate.unscored} without a value" if estimate.unscored else ""
    ends = f"[{_number(estimate.low)}, {_number(estimate.high)}]"
    return f"{_number(estimate.value)} {ends}  n = {estimate.n}{missing}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    main()
