"""`demeanor compare`: finished runs side by side, and which to take."""

from __future__ import annotations

from collections.abc import Iterable
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
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of finished runs.")],
    out: Annotated[Path, typer.Option(help="Where compare.json and compare.html are written.")] = Path("runs/compare"),
    price_per_hour: PriceOption = None,
    settings: common.SetOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """Finished runs side by side: proof, collateral damage, time, memory and cost of each, and which to take.

    They must share the model, the pairs, the probes and how they were measured. Exit code 0: a run is recommended; 1:
    none holds all its limits.

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
    from textwrap import wrap

    from rich.markup import escape
    from rich.table import Table

    from demeanor.compare.page import view_of

    view = view_of(compared)
    console = common.table_console()
    title = f"{compared.name}: {len(compared.runs)} runs, before → after training on {compared.num_probes} probes"
    table = Table(title=escape(title), title_justify="left", title_style="bold", show_lines=True)
    table.add_column("run")
    table.add_column("behaviour")
    for name in ("bad reply", "good reply"):
        table.add_column(name, justify="right")
    table.add_column("collateral damage")
    table.add_column("training", justify="right")
    for row in view.rows:
        colour = "green" if row.passed else "red"
        limits = f"[{colour}]{'✓' if row.passed else '✗'} {row.limits} limits[/{colour}]"
        names = [text for proof in row.proofs for text in (proof.behaviour, "")]
        bad = [text for proof in row.proofs for text in proof.bad]
        good = [text for proof in row.proofs for text in proof.good]
        damage = [
            text
            for item in row.damages
            for text in (f"{item.name}, {item.measure}", f"  {item.change}, {item.share}", f"  {item.interval}")
        ]
        took = [row.training, row.reference, f"peak {row.memory}", row.cost, row.money]
        table.add_row(
            "\n".join(
                [*map(escape, wrap(row.name, 28)), limits, *(["[bold]recommended[/bold]"] if row.chosen else [])]
            ),
            *(_lines(texts) for texts in (names, bad, good, damage or ["none promised"], filter(None, took))),
        )
    console.print(table)
    for note in compared.notes:
        console.print(note, markup=False)
    console.print(view.headline, markup=False, style="bold")
    console.print(f"Rule: {view.rule}{view.price}", markup=False)


def _lines(texts: Iterable[str]) -> str:
    from rich.markup import escape

    return "\n".join(map(escape, texts)).rstrip()
