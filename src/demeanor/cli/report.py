"""`demeanor report`: the page of a run."""

from __future__ import annotations

from demeanor.cli import common


def command(run: common.RunArgument, as_json: common.JsonOption = False) -> None:
    """Write report.html: one file, no network, the verdict first.

    Example:

      demeanor report runs/demo
    """
    progress = common.console()
    from demeanor.cli.console import print_json
    from demeanor.pipeline import report_stage
    from demeanor.workspace import Workspace

    path = report_stage(Workspace.open(run), progress)
    print_json({"report": str(path)}) if as_json else print(path)
