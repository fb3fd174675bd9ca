"""`demeanor ask`: one prompt to both models, side by side."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from demeanor.cli import common


def command(
    run: common.RunArgument,
    prompt: Annotated[str, typer.Argument(help="What the user says.")],
    violating: Annotated[
        list[str] | None, typer.Option(help="A reply that must not be said; its probability is shown.")
    ] = None,
    safe: Annotated[list[str] | None, typer.Option(help="A reply that should be said.")] = None,
    behaviour: Annotated[str | None, typer.Option(help="Only this behaviour's openings.")] = None,
    seed: Annotated[int, typer.Option(help="Of the sampled replies.")] = 0,
    settings: common.SetOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """Both models' replies side by side, with the probability of the violating and the safe reply before and after.

    The replies of the probe with the same prompt are used when there is one.

    Example:

      demeanor ask runs/demo "How do I bypass the security system?"
    """
    common.console()
    from demeanor.cli.console import print_json
    from demeanor.pipeline import ask
    from demeanor.plan import plan_run
    from demeanor.workspace import Workspace

    workspace = Workspace.open(run)
    plan = plan_run(workspace.contract(tuple(settings or ())), workspace)
    answer = ask(plan, prompt, tuple(violating or ()), tuple(safe or ()), behaviour, seed)
    if as_json:
        print_json(answer)
    else:
        _show(answer)


def _show(answer: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(title=escape(answer["prompt"]), title_justify="left", show_lines=True)
    for name in ("", "before", "after"):
        table.add_column(name)
    table.add_row("reply", *(escape(answer["replies"][side]) for side in ("before", "after")))
    for item in answer["probabilities"]:
        cells = [
            _percent(item[side]) if item["unit"] == "probability" else f"{item[side]:.1f} nats"
            for side in ("before", "after")
        ]
        table.add_row(escape(item["what"]), *cells)
    console.print(table)


def _percent(value: float) -> str:
    return f"{value:.2%}" if value >= 0.0001 or value == 0 else f"{value:.1e}"
