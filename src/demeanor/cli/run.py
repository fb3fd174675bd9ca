"""`demeanor run`: the whole journey, from pairs to a verdict and a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from demeanor.cli import common

if TYPE_CHECKING:
    from demeanor.plan import Plan
    from demeanor.progress import Progress


def command(
    contract: Annotated[Path | None, typer.Argument(metavar="CONTRACT", help="The contract (YAML).")] = None,
    pairs: Annotated[str | None, typer.Option(help="Pairs without a contract: a file, folder or Hub id.")] = None,
    model: Annotated[str | None, typer.Option(help="With --pairs: a model's folder or Hub id.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; by default runs/NAME.")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Go on with a run that stopped.")] = None,
    settings: common.SetOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """Read pairs, measure, train, measure again, prove, report.

    A run that was stopped goes on where it was when the same command is given again. Exit code 0: the verdict passed;
    1: it failed.

    Examples:

      demeanor run contract.yaml

      demeanor run --pairs Anthropic/hh-rlhf --model Qwen/Qwen3-0.6B --out runs/hh --set training.beta=0.05
    """
    from demeanor.contract import STARTER, resolve_paths
    from demeanor.errors import InputError

    progress = common.console()
    given = [
        name for name, value in (("CONTRACT", contract), ("--pairs", pairs), ("--resume", resume)) if value is not None
    ]
    if len(given) != 1:
        raise InputError(
            f"{' and '.join(given)} exclude each other" if given else "nothing to run",
            remedy="give a CONTRACT, or --pairs and --model, or --resume RUN",
        )
    from demeanor.plan import default_contract, plan_run
    from demeanor.workspace import Workspace

    target = resume if contract is None else contract
    if target is not None:
        if model is not None:
            raise InputError("--model belongs to --pairs", remedy="set it in the contract, or with --set model=...")
        with common.plan_of(target, out, settings) as plan:
            finish(plan, progress, as_json)
    elif model is None:
        raise InputError("--pairs needs --model", remedy=f"a folder, a Hub id, or {STARTER}")
    else:
        folder = out or Path("runs") / Path(str(pairs)).name.split(".")[0]
        made = default_contract(str(pairs), model, folder.name, tuple(settings or ()))
        with Workspace(folder).locked() as workspace:
            finish(plan_run(resolve_paths(made, Path.cwd()), workspace), progress, as_json)


def finish(plan: Plan, progress: Progress, as_json: bool) -> None:
    """Run the plan, print the verdict, and exit with its code."""
    from demeanor.cli.console import print_json, print_verdict
    from demeanor.pipeline import run

    common.say_plan(plan, progress)
    verdict = run(plan, progress)
    if as_json:
        print_json(verdict.to_json())
    else:
        print_verdict(verdict, plan.contract.collateral)
    common.show_report(plan.workspace, progress)
    raise typer.Exit(0 if verdict.passed else 1)
