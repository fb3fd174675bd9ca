"""`demeanor prove`: the verdict on the scores of a run."""

from __future__ import annotations

import typer

from demeanor.cli import common


def command(run: common.RunArgument, settings: common.SetOption = None, as_json: common.JsonOption = False) -> None:
    """Hold the scores before and after against the contract's limits. Exit code 0: passed; 1: failed.

    Example:

      demeanor prove runs/demo --set measurement.confidence=0.99
    """
    progress = common.console()
    from demeanor.cli.console import print_json, print_verdict
    from demeanor.pipeline import prove_stage, require
    from demeanor.plan import recorded_identity
    from demeanor.workspace import Workspace

    with Workspace.open(run).locked() as workspace:
        contract, identity = workspace.contract(tuple(settings or ())), recorded_identity(workspace)
        require(workspace, contract, identity, "read", "before", "train", "after")
        workspace.start(contract)
        verdict = prove_stage(workspace, contract, identity, progress)
    if as_json:
        print_json(verdict.to_json())
    else:
        print_verdict(verdict, contract.collateral)
    raise typer.Exit(0 if verdict.passed else 1)
