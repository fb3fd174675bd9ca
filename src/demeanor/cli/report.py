"""`demeanor report`: the page of a run."""

from __future__ import annotations

from demeanor.cli import common


def command(run: common.RunArgument, settings: common.SetOption = None, as_json: common.JsonOption = False) -> None:
    """Write report.html: one file, no network, the verdict first.

    Example:

      demeanor report runs/demo
    """
    progress = common.console()
    from demeanor.cli.console import print_json
    from demeanor.pipeline import report_stage, require
    from demeanor.plan import recorded_identity
    from demeanor.workspace import Workspace

    with Workspace.open(run).locked() as workspace:
        contract, identity = workspace.contract(tuple(settings or ())), recorded_identity(workspace)
        require(workspace, contract, identity, "read", "before", "train", "after", "prove")
        workspace.start(contract)
        report_stage(workspace, contract, identity, progress)
    print_json({"report": str(workspace.report)}) if as_json else print(workspace.report)
