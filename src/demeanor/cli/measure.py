"""`demeanor measure`: the probes under the base model and, when there is one, with the adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from demeanor.cli import common


def command(
    target: Annotated[Path, typer.Argument(metavar="CONTRACT|RUN", help="A contract, or a run folder.")],
    out: Annotated[Path | None, typer.Option(help="The run folder; by default runs/NAME.")] = None,
    settings: common.SetOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """Measure the probes before training, and after it when the run has an adapter.

    Example:

      demeanor measure runs/demo --json
    """
    progress = common.console()
    from demeanor.cli.console import print_json
    from demeanor.pipeline import keeping_what_is_done, measure_stage, read_stage, require
    from demeanor.records import Score

    with common.plan_of(target, out, settings) as plan, keeping_what_is_done(plan.workspace):
        workspace = plan.workspace
        workspace.start(plan.contract)
        sides = ["before", "after"] if "train" in workspace.manifest()["stages"] else ["before"]
        read_stage(plan, progress)
        if "after" in sides:
            require(workspace, plan.contract, plan.identity, "train")
        for side in sides:
            measure_stage(plan, side, progress)
        means = {side: _means(workspace.read_records(workspace.scores(side), Score.from_json)) for side in sides}
    if as_json:
        print_json(means)
        return
    for side, behaviours in means.items():
        for behaviour, values in behaviours.items():
            print(f"{side} {behaviour}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))


def _means(scores: list) -> dict[str, dict[str, float]]:  # type: ignore[type-arg]
    """Mean of each measure by behaviour, over the probes that have it."""
    result: dict[str, dict[str, float]] = {}
    for behaviour in dict.fromkeys(score.behaviour for score in scores):
        own = [score.values for score in scores if score.behaviour == behaviour]
        for name in dict.fromkeys(name for values in own for name in values):
            values = [value for value in (one.get(name) for one in own) if value is not None]
            if values:
                result.setdefault(behaviour, {})[name] = sum(values) / len(values)
    return result
