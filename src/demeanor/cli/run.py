"""`demeanor run`: the whole journey, from pairs to a verdict and a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from demeanor.cli import common

if TYPE_CHECKING:
    from demeanor.plan import Plan
    from demeanor.progress import Progress


def command(
    contract: Annotated[
        list[str] | None, typer.Argument(metavar="CONTRACT", help="The contract (YAML), or starter.")
    ] = None,
    pairs: Annotated[str | None, typer.Option(help="Pairs without a contract: a file, folder or Hub id.")] = None,
    model: Annotated[str | None, typer.Option(help="With --pairs: a model's folder or Hub id.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; by default runs/NAME.")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Go on with a run that stopped.")] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE,VALUE ...",
            help="A run for every combination of these values, compared at the end; keys are those of training.",
        ),
    ] = None,
    settings: common.SetOption = None,
    measured: Annotated[list[Path] | None, typer.Option("--measured-in", metavar="RUN", hidden=True)] = None,
    as_json: common.JsonOption = False,
) -> None:
    """Read pairs, measure, train, measure again, prove, report.

    A run that was stopped goes on where it was when the same command is given again; so does a sweep, whose runs lie in
    folders of their own under --out (by default runs/NAME-sweep). Exit code 0: the verdict, or that of one run of the
    sweep, passed; 1: it failed.

    Examples:

      demeanor run contract.yaml

      demeanor run --pairs Anthropic/hh-rlhf --model Qwen/Qwen3-0.6B --out runs/hh --set training.beta=0.05

      demeanor run contract.yaml --sweep objective=dpo,simpo,orpo beta=0.05,0.1
    """
    from demeanor.contract import STARTER, resolve_paths
    from demeanor.errors import InputError

    progress = common.console()
    words = list(contract or ())
    axes = [word for word in words if sweep and "=" in word and not Path(word).exists()]
    words = [word for word in words if word not in axes]
    if sweep and not words and pairs is None and resume is None:
        progress.say("no CONTRACT is given: the embedded starter's is swept")
        words = [STARTER]
    if len(words) > 1:
        raise InputError(f"one CONTRACT at a time, not {' and '.join(words)}", remedy="--sweep KEY=VALUE,VALUE")
    given = [name for name, value in (("CONTRACT", words), ("--pairs", pairs), ("--resume", resume)) if value]
    if len(given) != 1:
        raise InputError(
            f"{' and '.join(given)} exclude each other" if given else "nothing to run",
            remedy="give a CONTRACT, or --pairs and --model, or --resume RUN",
        )
    from demeanor.plan import default_contract, plan_run
    from demeanor.workspace import Workspace

    target = Path(words[0]) if words else resume
    chosen = tuple(settings or ())
    if target is not None and model is not None:
        raise InputError("--model belongs to --pairs", remedy="set it in the contract, or with --set model=...")
    if target is None and model is None:
        raise InputError("--pairs needs --model", remedy=f"a folder, a Hub id, or {STARTER}")
    if sweep:
        from demeanor.cli.sweep import sweep_contract, sweep_pairs

        if resume is not None:
            raise InputError("--sweep needs no --resume", remedy="the same command goes on with a sweep that stopped")
        if target is not None:
            sweep_contract(target, [*sweep, *axes], out, chosen, progress, as_json)
        else:
            sweep_pairs(str(pairs), str(model), [*sweep, *axes], out, chosen, progress, as_json)
    elif target is not None:
        with common.plan_of(target, out, settings) as plan:
            finish(plan, progress, as_json, measured or ())
    else:
        folder = out or Path("runs") / named_after(str(pairs))
        made = default_contract(str(pairs), str(model), folder.name, chosen)
        with Workspace(folder).locked() as workspace:
            finish(plan_run(resolve_paths(made, Path.cwd()), workspace), progress, as_json)


def named_after(pairs: str) -> str:
    """A run's name from where its pairs come from."""
    return Path(pairs).name.split(".")[0]


def finish(plan: Plan, progress: Progress, as_json: bool, measured: Sequence[Path] = ()) -> None:
    """Run the plan, print the verdict, and exit with its code."""
    from demeanor.cli.console import print_json, print_verdict
    from demeanor.pipeline import run

    common.say_plan(plan, progress)
    verdict = run(plan, progress, measured)
    if as_json:
        print_json(verdict.to_json())
    else:
        print_verdict(verdict, plan.contract.collateral)
    common.show_report(plan.workspace, progress)
    raise typer.Exit(0 if verdict.passed else 1)
