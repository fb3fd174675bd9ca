"""`demeanor compare`: finished runs side by side, and which to take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from demeanor.cli import common

if TYPE_CHECKING:
    from demeanor.compare import RunsCompared
    from demeanor.workspace import Workspace

PriceOption = Annotated[
    float | None, typer.Option("--price-per-hour", help="Of one core, or of one GPU; adds the money to the cost.")
]


def command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN ...", help="Folders of finished runs.")],
    out: Annotated[Path, typer.Option(help="Where compare.json and compare.html are written.")] = Path("runs/compare"),
    price_per_hour: PriceOption = None,
    settings: common.SetOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """Compare runs over the same model, pairs and probes: proof, collateral damage, time, memory and cost of each.

    A recommendation states its rule. Exit code 0: there is one; 1: no run holds all its limits.

    Example:

      demeanor compare runs/dpo runs/simpo runs/orpo --price-per-hour 0.04
    """
    common.console()
    import math

    from demeanor.compare import compare_runs, write_comparison
    from demeanor.errors import InputError

    if len(runs) < 2:
        raise InputError("one run cannot be compared", remedy="name at least two: demeanor compare RUN RUN ...")
    if price_per_hour is not None and not (price_per_hour >= 0 and math.isfinite(price_per_hour)):
        raise InputError("must be a price", where="--price-per-hour")
    compared = compare_runs(runs, tuple(settings or ()), price_per_hour)
    workspace = write_comparison(compared, out)
    show(compared, workspace, as_json)
    raise typer.Exit(0 if compared.choice.run is not None else 1)


def show(compared: RunsCompared, workspace: Workspace, as_json: bool) -> None:
    """The table and the recommendation on standard output, where the page is on standard error."""
    from demeanor.cli.console import print_json

    if as_json:
        print_json(compared.to_json())
    else:
        print_table(compared)
    common.console().say(f"comparison: {workspace.compared_page}")


def print_table(compared: RunsCompared) -> None:
    """A row a run, a line a behaviour."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from demeanor.compare.page import view_of

    view = view_of(compared)
    console = Console(highlight=False, soft_wrap=True)
    title = f"{compared.name}: {len(compared.runs)} runs, before → after training on {compared.num_probes} probes"
    table = Table(title=escape(title), title_justify="left", title_style="bold", show_lines=True)
    for name in ("run", "limits", "behaviour"):
        table.add_column(name)
    for name in ("bad reply", "good reply", "collateral damage", "training", "peak memory", "cost"):
        table.add_column(name, justify="right")
    for row in view.rows:
        colour = "green" if row.passed else "red"
        names = [text for proof in row.proofs for text in (proof.behaviour, "")]
        bad = [text for proof in row.proofs for text in proof.bad]
        good = [text for proof in row.proofs for text in proof.good]
        damage = [
            text
            for item in row.damages
            for text in (f"{item.name}, {item.measure}: {item.change}", f"{item.interval} {item.share}".strip())
        ]
        table.add_row(
            escape(_lines(row.name.replace("_", "_\n") if len(row.name) > 24 else row.name))
            + ("\n[green]recommended[/green]" if row.chosen else ""),
            f"[{colour}]{'✓' if row.passed else '✗'} {row.limits}[/{colour}]",
            *(escape(_lines(*cell)) for cell in (names, bad, good, damage or ["none promised"])),
            escape(_lines(row.training, row.reference)),
            row.memory,
            escape(_lines(row.cost, row.money)),
        )
    console.print(table)
    for note in compared.notes:
        console.print(note, markup=False)
    console.print(view.headline, markup=False, style="bold")
    console.print(f"Rule: {view.rule}{view.price}", markup=False)


def _lines(*texts: str) -> str:
    return "\n".join(texts).rstrip("\n")
