"""`demeanor measure`: the probes under the base model and, when there is one, with the adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from demeanor.cli import common

_SIDES = ("before", "after")


def command(
    target: Annotated[Path, typer.Argument(metavar="CONTRACT|RUN", help="A contract, or a run folder.")],
    out: Annotated[Path | None, typer.Option(help="The run folder; by default runs/NAME.")] = None,
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="A server (OpenAI-compatible, up to /v1) that gives the replies.")
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="With --endpoint: the served model.")] = None,
    key_env: Annotated[
        str | None, typer.Option(metavar="VARIABLE", help="With --endpoint: the environment variable with its key.")
    ] = None,
    side: Annotated[
        str | None, typer.Option(help="With --endpoint: which side the served model is, before or after (default).")
    ] = None,
    settings: common.SetOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """Measure the probes before training, and after it when the run has an adapter.

    With --endpoint a served model takes the place of one side; `demeanor prove` then judges it. Its likelihoods are not
    known, so that limits on them fail. --set measurement.served={} measures the run's own model again.

    Examples:

      demeanor measure runs/demo --json

      demeanor measure runs/demo --endpoint http://localhost:8000/v1 --model larkhold --side after
    """
    progress = common.console()
    from demeanor.cli.console import print_json
    from demeanor.errors import InputError
    from demeanor.pipeline import keeping_what_is_done, measure_stage, read_stage, require
    from demeanor.records import Score

    settings = [*(settings or ()), *_served(endpoint, model, key_env, side)]
    with common.plan_of(target, out, settings) as plan, keeping_what_is_done(plan.workspace):
        workspace = plan.workspace
        workspace.start(plan.contract)
        if "after" in plan.contract.measurement.served and "train" not in workspace.manifest()["stages"]:
            raise InputError(
                "the run has no trained model for the served one to take the place of",
                where=str(workspace),
                remedy="--side before",
            )
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


def _served(endpoint: str | None, model: str | None, key_env: str | None, side: str | None) -> list[str]:
    """The options about a served model as a key of the contract.

    Raises:
        InputError: one is missing.
    """
    from demeanor.errors import InputError

    if endpoint is None and model is None:
        if key_env is not None or side is not None:
            raise InputError("belongs to --endpoint", where="--key-env" if key_env is not None else "--side")
        return []
    if endpoint is None or model is None:
        raise InputError(
            "a served model has an address and a name", where="measure", remedy="give both --endpoint and --model"
        )
    if side not in (None, *_SIDES):
        raise InputError(f"{side} is no side", where="--side", remedy=" or ".join(_SIDES))
    served = {"endpoint": endpoint, "model": model, **({"key_env": key_env} if key_env is not None else {})}
    return [f"measurement.served.{side or 'after'}={json.dumps(served)}"]


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
