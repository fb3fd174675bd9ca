"""What the commands share: options, and finding the contract and the run folder that the user means."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from demeanor.contract import Contract
    from demeanor.plan import Plan
    from demeanor.progress import Progress
    from demeanor.workspace import Workspace

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the contract, e.g. training.beta=0.05."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
WIDTH = 130  # columns of a table without a terminal
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")]


def console() -> Progress:
    """The progress that prints; silences the libraries first."""
    from demeanor.cli.console import ConsoleProgress, quiet_libraries

    quiet_libraries()
    return ConsoleProgress()


def table_console() -> Console:
    """Standard output for tables, WIDTH columns wide where there is no terminal to fit them to."""
    from rich.console import Console

    found = Console(highlight=False, soft_wrap=True)
    if not found.is_terminal:
        found.width = max(found.width, WIDTH)
    return found


def contract_file(target: Path) -> Path:
    """The file; that of the embedded starter for `starter`, unless there is a file of that name."""
    from demeanor.contract import STARTER
    from demeanor.starter import starter_contract

    return starter_contract() if str(target) == STARTER and not target.exists() else target


def contract_given(target: Path | None, overrides: list[str] | None) -> Contract | None:
    """That of `--contract` and `--set`.

    Raises:
        InputError: keys are set of no contract.
    """
    from demeanor.contract import load_contract
    from demeanor.errors import InputError

    if target is not None:
        return load_contract(contract_file(target), tuple(overrides or ()))
    if overrides:
        raise InputError("needs a contract whose keys it sets", where="--set", remedy="give --contract")
    return None


def pairs_file(name: str) -> str | Path:
    """A source of pairs as the user named it; those of the embedded starter for `starter`."""
    from demeanor.contract import STARTER
    from demeanor.starter import starter_file

    return starter_file("pairs.jsonl") if name == STARTER and not Path(name).exists() else name


@contextmanager
def plan_of(target: Path, out: Path | None, overrides: list[str] | None) -> Iterator[Plan]:
    """The plan of a contract file (new run folder `out`, by default runs/NAME) or of a run folder, which is locked."""
    from demeanor.contract import load_contract
    from demeanor.errors import InputError
    from demeanor.plan import plan_run
    from demeanor.workspace import Workspace

    if target.is_dir():
        if out is not None:
            raise InputError("is a run folder already", where=str(target), remedy="leave --out away")
        with Workspace.open(target).locked() as workspace:
            yield plan_run(workspace.contract(tuple(overrides or ())), workspace)
    else:
        contract = load_contract(contract_file(target), tuple(overrides or ()))
        with Workspace(out or Path("runs") / contract.name).locked() as workspace:
            yield plan_run(contract, workspace)


def say_plan(plan: Plan, progress: Progress) -> None:
    """What was read, dropped and cut, and what the probes are too few for."""
    for note in [*plan.notes, *plan.power]:
        progress.say(note)


def show_report(workspace: Workspace, progress: Progress) -> None:
    progress.say(f"report: {workspace.report}")


def write_text(path: Path, text: str) -> None:
    """Raises InputError when it cannot be written."""
    from demeanor.errors import InputError, one_line

    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror or one_line(error)}", where=str(path)) from None
