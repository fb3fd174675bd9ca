"""`demeanor curate`: the pairs that are worth training on, split without leakage, and what became of the others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from demeanor.cli import common

if TYPE_CHECKING:
    from demeanor.curate import Curated
    from demeanor.records import Estimate


def command(
    sources: Annotated[list[str], typer.Argument(metavar="PAIRS", help="Files, folders or Hub ids.")],
    out: Annotated[Path, typer.Option(help="Folder for the curated pairs.")],
    private: Annotated[
        str, typer.Option(help="Private data: redact ([EMAIL] in its place), drop the pairs, or keep it.")
    ] = "redact",
    kind: Annotated[
        list[str] | None, typer.Option(help="A kind of private data to look for; by default all but link and person.")
    ] = None,
    conflicts: Annotated[
        str, typer.Option(help="A over B and B over A: resolve (the better supported side stays), drop both, or keep.")
    ] = "resolve",
    near: Annotated[
        float, typer.Option(help="Likeness (Jaccard) from which on pairs are the same; 0: exact ones only.")
    ] = 0.8,
    balance: Annotated[
        str, typer.Option(help="Balance lengths in characters, words or tokens; or none.")
    ] = "characters",
    heldout: Annotated[float, typer.Option(help="Share of each source and behaviour to hold out.")] = 0.1,
    decisions: Annotated[Path | None, typer.Option(help="The decisions of `demeanor review`.")] = None,
    model: Annotated[str | None, typer.Option(help="Folder or Hub id, for lengths in its tokens.")] = None,
    limit: Annotated[int | None, typer.Option(help="Read at most so many rows of each source.")] = None,
    split: Annotated[str, typer.Option(help="Of a data set that has several.")] = "train",
    seed: Annotated[int, typer.Option(help="Decides between pairs that fit equally well, and who is held out.")] = 0,
    as_json: common.JsonOption = False,
) -> None:
    """Drop or mend what should not be trained on, balance the lengths, and split without leakage.

    Writes train.jsonl, heldout.jsonl, dropped.jsonl (each dropped row with its reason), altered.jsonl (where a kept row
    was changed) and curate.json. The same input and seed give the same bytes.

    Example:

      demeanor curate pairs.jsonl --out curated
    """
    progress = common.console()
    from demeanor.cli.console import print_json
    from demeanor.curate import Settings, curate_pairs
    from demeanor.curate.redact import REDACTED_KINDS
    from demeanor.model import find_model

    settings = Settings(
        private=private, conflicts=conflicts, near=near, balance=balance, heldout=heldout, decisions=decisions,
        seed=seed, model=find_model(model) if model else None,
        kinds=tuple(kind) if kind else REDACTED_KINDS,
    )  # fmt: skip
    files = [common.pairs_file(source) for source in sources]
    curated = curate_pairs(files, out, settings, split=split, limit=limit, progress=progress)
    if as_json:
        print_json(curated.to_json())
    else:
        print_curated(curated)
        progress.say(f"curated pairs: {out}")


def print_curated(curated: Curated) -> None:
    """What was dropped and altered, and the lengths before and after."""
    from rich.markup import escape
    from rich.table import Table

    from demeanor.visible import on_terminal

    console = common.table_console()
    kept = curated.kept
    told = f"{curated.rows:,} rows → {kept['train']:,} pairs to train on, {kept['heldout']:,} held out"
    console.print(told, style="bold", markup=False)
    for verb, counts in (("dropped", curated.dropped), ("altered", curated.altered)):
        if counts:
            told = ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))
            console.print(f"{verb}: {told}", markup=False)
    if curated.not_kept:
        told = ", ".join(f"{on_terminal(name)} ({count:,} rows)" for name, count in curated.not_kept.items())
        console.print(f"columns that are not kept: {told}", markup=False)
    unit = "characters" if curated.settings["balance"] == "none" else curated.settings["balance"]
    title = f"how often the longer reply is the chosen one, of pairs that differ in {unit}"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("")
    for name in ("pairs", "before", "pairs", "to train on", "pairs", "held out"):
        table.add_column(name, justify="right")
    columns = [{row.group: row for row in curated.lengths[side]} for side in ("before", "train", "heldout")]
    for group in dict.fromkeys(name for column in columns for name in column):
        found = (column.get(group) for column in columns)
        cells = [cell for row in found for cell in ((f"{row.pairs:,}", _share(row.longer_wins)) if row else ("0", "–"))]
        table.add_row(escape(on_terminal(group)), *cells)
    console.print(table)
    for note in curated.notes:
        console.print(on_terminal(note), markup=False)
    lost = curated.dropped.get("length balance", 0)
    if lost:
        console.print(
            f"The balance dropped {lost:,} pairs. A length-normalised objective needs none of it: --balance none, then "
            "training.objective: simpo or ipo.",
            markup=False,
        )


def _share(estimate: Estimate) -> str:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "–"
    return f"{estimate.value:.1%} [{estimate.low:.1%}, {estimate.high:.1%}]"
