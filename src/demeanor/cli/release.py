"""`demeanor release`: the merged model, if it gives the adapter's numbers."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from demeanor.cli import common


class Dtype(StrEnum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def command(
    run: common.RunArgument,
    dtype: Annotated[
        Dtype, typer.Option(help="Precision of the merged weights; auto: that of the base model.")
    ] = Dtype.auto,
    unproven: Annotated[bool, typer.Option("--unproven", help="Release although the verdict failed.")] = False,
    settings: common.SetOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """Merge the adapter into the base model, load it with plain transformers, and refuse it when its log-probabilities
    on the probes are not the adapter's.

    Example:

      demeanor release runs/demo --dtype float32
    """
    progress = common.console()
    from demeanor.cli.console import print_json
    from demeanor.errors import InputError
    from demeanor.pipeline import release_stage, require
    from demeanor.plan import plan_run
    from demeanor.workspace import Workspace

    with Workspace.open(run).locked() as workspace:
        plan = plan_run(workspace.contract(tuple(settings or ())), workspace)
        require(workspace, plan.contract, plan.identity, "read", "before", "train", "after", "prove")
        if not workspace.read_json(workspace.verdict)["passed"] and not unproven:
            raise InputError(
                "the verdict of this run failed", where=str(run), remedy="--unproven releases it all the same"
            )
        workspace.start(plan.contract)
        parity = release_stage(plan, progress, dtype.value)
    if as_json:
        print_json({"model": str(workspace.model), **parity})
        return
    print(
        f"{workspace.model}: {parity['dtype']}, mean difference {parity['mean_difference_nats']:.2g} nats a token "
        f"from the adapter over {parity['num_replies']} replies (at most {parity['tolerance_nats']:g})"
    )
