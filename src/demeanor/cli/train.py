"""`demeanor train`: the stages up to the adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from demeanor.cli import common


def command(
    target: Annotated[Path, typer.Argument(metavar="CONTRACT|RUN", help="A contract, or a run folder to go on with.")],
    out: Annotated[Path | None, typer.Option(help="The run folder; by default runs/NAME.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--restart", help="Go on from the last checkpoint, or start over.")
    ] = True,
    settings: common.SetOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """Read the pairs and train the adapter; nothing is measured.

    Example:

      demeanor train contract.yaml --set training.num_train_epochs=2
    """
    import shutil

    progress = common.console()
    from demeanor.cli.console import print_json
    from demeanor.pipeline import keeping_what_is_done, read_stage, train_stage
    from demeanor.train import check_training

    with common.plan_of(target, out, settings) as plan:
        common.say_plan(plan, progress)
        workspace = plan.workspace
        check_training(plan.source, plan.contract)
        workspace.start(plan.contract)
        if not resume:
            shutil.rmtree(workspace.checkpoints, ignore_errors=True)
            shutil.rmtree(workspace.adapter, ignore_errors=True)
        with keeping_what_is_done(workspace):
            read_stage(plan, progress)
            train_stage(plan, progress)
        summary = workspace.read_json(workspace.training)
    if as_json:
        print_json({key: value for key, value in summary.items() if key != "log"})
    else:
        print(
            f"{workspace.adapter}: {summary['steps']} steps over {summary['num_pairs']} pairs, "
            f"{summary['seconds']:.0f} s"
        )
