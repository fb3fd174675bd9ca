"""`demeanor demo`: the journey on the embedded starter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from demeanor.cli import common
from demeanor.cli.run import finish


def command(
    out: Annotated[Path, typer.Option(help="The run folder.")] = Path("runs/demo"),
    settings: common.SetOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """Watch a small model lose a bad habit, with proof. Needs no network and takes minutes on two cores.

    Example:

      demeanor demo
    """
    progress = common.console()
    from demeanor.contract import load_contract
    from demeanor.plan import plan_run
    from demeanor.starter import starter_contract
    from demeanor.workspace import Workspace

    contract = load_contract(starter_contract(), tuple(settings or ()))
    with Workspace(out).locked() as workspace:
        finish(plan_run(contract, workspace), progress, as_json)
