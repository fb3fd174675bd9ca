"""`demeanor report`: the page of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from demeanor.cli import common


def command(
    run: common.RunArgument,
    inspect_log: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also write every prompt, reply and score as logs of inspect-ai."),
    ] = None,
    settings: common.SetOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """Write report.html: one file, no network, the verdict first.

    Examples:

      demeanor report runs/demo

      demeanor report runs/demo --inspect-log logs && inspect view --log-dir logs
    """
    progress = common.console()
    from demeanor.cli.console import print_json
    from demeanor.pipeline import report_stage, require
    from demeanor.plan import recorded_identity
    from demeanor.report.inspect_log import write_inspect_logs
    from demeanor.workspace import Workspace

    with Workspace.open(run).locked() as workspace:
        contract, identity = workspace.contract(tuple(settings or ())), recorded_identity(workspace)
        require(workspace, contract, identity, "read", "before", "train", "after", "prove")
        workspace.start(contract)
        report_stage(workspace, contract, identity, progress)
        logs = write_inspect_logs(workspace, inspect_log) if inspect_log is not None else []
    if as_json:
        print_json({"report": str(workspace.report), **({"inspect_logs": list(map(str, logs))} if logs else {})})
    else:
        print("\n".join(map(str, [workspace.report, *logs])))
