"""`demeanor prove`: the verdict on the scores of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from demeanor.cli import common


def command(
    run: common.RunArgument,
    against: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Also: no limit's measure is worse than in this run, which was accepted."),
    ] = None,
    junit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write JUnit XML, one test case a limit, for CI.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a summary for a pull request, in Markdown.")
    ] = None,
    settings: common.SetOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """Hold the scores before and after against the contract's limits. Exit code 0: passed; 1: failed.

    A limit that was fixed before the training and is now looser, gone or measured otherwise fails the verdict; a waiver
    in the contract lets one that does not hold through by name.

    Examples:

      demeanor prove runs/demo --set measurement.confidence=0.99

      demeanor prove runs/new --against runs/accepted --junit verdict.xml --markdown verdict.md
    """
    progress = common.console()
    from demeanor.cli.console import print_json, print_verdict
    from demeanor.pipeline import prove_against, prove_stage, require
    from demeanor.plan import recorded_identity
    from demeanor.report.summaries import junit_xml, markdown_text
    from demeanor.workspace import Workspace

    with Workspace.open(run).locked() as workspace:
        contract, identity = workspace.contract(tuple(settings or ())), recorded_identity(workspace)
        require(workspace, contract, identity, "read", "before", "train", "after")
        workspace.start(contract)
        verdict = prove_stage(workspace, contract, identity, progress)
        if against is not None:
            verdict = prove_against(workspace, contract, verdict, against, progress)
    for path, text in (
        (junit, junit_xml(verdict, contract.name)),
        (markdown, markdown_text(verdict, contract.name, contract.collateral)),
    ):
        if path is not None:
            common.write_text(path, text)
    if as_json:
        print_json(verdict.to_json())
    else:
        print_verdict(verdict, contract.collateral)
    raise typer.Exit(0 if verdict.passed else 1)
