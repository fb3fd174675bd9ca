"""What the commands share: options, and finding the contract and the run folder that the user means."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from demeanor.contract import Contract
    from demeanor.plan import Plan
    from demeanor.progress import Progress
    from demeanor.workspace import Workspace

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the contract, e.g. training.beta=0.05."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")]


def console() -> Progress:
    """The progress that prints; silences the libraries first."""
    from demeanor.cli.console import ConsoleProgress, quiet_libraries

    quiet_libraries()
    return ConsoleProgress()


def open_plan(folder: Path, overrides: list[str] | None = None) -> Plan:
    """The plan of an existing run folder; `overrides` change its contract.

    Raises:
        RunFolderError: it is no run folder.
    """
    from demeanor.contract import parse_contract
    from demeanor.plan import plan_run
    from demeanor.workspace import Workspace

    workspace = Workspace.open(folder)
    text = workspace.contract_file.read_text("utf-8")
    contract = parse_contract(text, str(workspace.contract_file), tuple(overrides or ()))
    return plan_run(contract, workspace)


def open_run(folder: Path, overrides: list[str] | None = None) -> tuple[Workspace, Contract, dict[str, str]]:
    """An existing run without its model: the folder, its contract with `overrides`, and the identity of its model.

    Raises:
        RunFolderError: it is no run folder, or nothing was done in it.
    """
    from demeanor.contract import parse_contract
    from demeanor.plan import recorded_identity
    from demeanor.workspace import Workspace

    workspace = Workspace.open(folder)
    text = workspace.contract_file.read_text("utf-8")
    contract = parse_contract(text, str(workspace.contract_file), tuple(overrides or ()))
    return workspace, contract, recorded_identity(workspace)


def plan_of(target: Path, out: Path | None, overrides: list[str] | None) -> Plan:
    """The plan of a contract file (new run folder `out`, by default runs/NAME) or of a run folder."""
    from demeanor.contract import load_contract
    from demeanor.errors import InputError
    from demeanor.plan import plan_run
    from demeanor.workspace import Workspace

    if target.is_dir():
        if out is not None:
            raise InputError("is a run folder already", where=str(target), remedy="leave --out away")
        return open_plan(target, overrides)
    contract = load_contract(target, tuple(overrides or ()))
    return plan_run(contract, Workspace(out or Path("runs") / contract.name))


def say_plan(plan: Plan, progress: Progress) -> None:
    """What was read, dropped and cut."""
    for note in plan.notes:
        progress.say(note)


def show_report(workspace: Workspace, progress: Progress) -> None:
    progress.say(f"report: {workspace.report}")
