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
    from demeanor.pipeline import report_stage

    plan = common.open_plan(run, progress, settings)
    plan.workspace.start(plan.contract)
    path = report_stage(plan.workspace, progress)
    print_json({"report": str(path)}) if as_json else print(path)
