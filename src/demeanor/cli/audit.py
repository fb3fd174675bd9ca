"""`demeanor audit`: what a training on these pairs would really teach."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from demeanor.cli import common

if TYPE_CHECKING:
    from rich.table import Table

    from demeanor.audit import Audit
    from demeanor.pairs import PairStore
    from demeanor.records import Finding
    from demeanor.workspace import Workspace

MOST_PARTS = 12  # rows of a finding's own table
_COLOURS = {"blocks": "bold red", "warns": "yellow", "informs": "cyan"}
_TOLD = {  # of one, and of any other number
    "blocks": ("finding that blocks", "findings that block"),
    "warns": ("warning", "warnings"),
    "informs": ("to know", "to know"),
}


def command(
    sources: Annotated[
        list[str] | None, typer.Argument(metavar="PAIRS", help="Files, folders or Hub ids; or those of the contract.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Folder or Hub id; some checks ask the model itself.")] = None,
    contract: Annotated[
        Path | None, typer.Option(help="What the pairs are to teach; and the limits in `audit`.")
    ] = None,
    heldout: Annotated[list[str] | None, typer.Option(help="Pairs or prompts that will not be trained on.")] = None,
    benchmark: Annotated[list[str] | None, typer.Option(help="Prompts that no pair may repeat.")] = None,
    decisions: Annotated[
        Path | None,
        typer.Option(help="The decisions of `demeanor review`: the pairs are audited as they were decided."),
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Run this check alone (may be given several times).")] = None,
    skip: Annotated[list[str] | None, typer.Option(help="Leave this check out.")] = None,
    limit: Annotated[int | None, typer.Option(help="Read at most so many rows of each source.")] = None,
    split: Annotated[str, typer.Option(help="Of a data set that has several.")] = "train",
    out: Annotated[Path, typer.Option(help="Where findings.json, findings.html and flagged.jsonl are written.")] = Path(
        "runs/audit"
    ),
    list_checks: Annotated[bool, typer.Option("--checks", help="List the checks and their limits, and stop.")] = False,
    settings: common.SetOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """What a training on these pairs would really teach: findings, each with its evidence and remedy.

    Exit code 1: a finding blocks.

    Example:

      demeanor audit pairs.jsonl --model Qwen/Qwen3-0.6B
    """
    import tempfile
    from dataclasses import replace
    from functools import partial

    from demeanor.audit import CHECKS, Scope, audit_pairs, chosen_checks, prepared
    from demeanor.cli.console import print_json
    from demeanor.curate.decisions import kept_for, read_decisions
    from demeanor.curate.mend import decided
    from demeanor.errors import InputError
    from demeanor.measure.margins import pair_margins
    from demeanor.model import find_model
    from demeanor.pairs import PairStore
    from demeanor.workspace import Workspace

    if list_checks:
        for check in CHECKS:
            print(f"{check.name}: {check.about}")
            for name, (value, about) in check.limits.items():
                print(f"    audit.{check.name}.{name} = {value:g}: {about}")
        return
    Workspace(out).check_writable()  # before the work, not after it
    chosen_checks(only or (), skip or ())
    known = read_decisions(decisions) if decisions is not None else None
    progress = common.console()
    promised = common.contract_given(contract, settings)
    named = list(sources or (promised.data.pairs if promised else ()))
    if not named:
        raise InputError("no pairs were named", remedy="demeanor audit pairs.jsonl, or --contract contract.yaml")
    _, scope = prepared(Scope(promised, None, tuple(heldout or ()), tuple(benchmark or ())), only or (), skip or ())
    found = find_model(model) if model else find_model(promised.model, revision=promised.revision) if promised else None
    asked = partial(pair_margins, found, promised) if found else None
    scope = replace(scope, model=found, margins=asked)
    with tempfile.TemporaryDirectory(prefix="demeanor-") as folder:
        files = [common.pairs_file(name) for name in named]
        store = PairStore.collect(files, Path(folder), split=split, limit=limit, progress=progress)
        if known is not None:
            store = decided(store, known, progress)
        kept = kept_for(known or {})
        audit = audit_pairs(store, scope, only=only or (), skip=skip or (), kept=kept, progress=progress)
        workspace = write_findings(audit, store, out, scope.confidence)
    if as_json:
        print_json(audit.to_json())
    else:
        print_table(audit)
    progress.say(f"all of it, with plots and remedies: {workspace.findings_page}")
    raise typer.Exit(1 if audit.blocks else 0)


def write_findings(audit: Audit, store: PairStore, folder: Path, confidence: float) -> Workspace:
    """The findings as JSON and as a page, and a line for each flagged pair.

    Raises:
        InputError: the folder cannot be written.
    """
    from demeanor.audit import CHECKS
    from demeanor.errors import InputError, one_line
    from demeanor.report.findings import findings_page
    from demeanor.workspace import Workspace

    workspace = Workspace(folder)
    title = ", ".join(store.sources)
    page = findings_page(
        audit.findings,
        [(check.name, check.about) for check in CHECKS if check.name in audit.checks],
        title=title,
        num_pairs=audit.num_pairs,
        num_rows=audit.num_rows,
        confidence=confidence,
    )
    try:
        workspace.write_json(workspace.findings, audit.to_json())
        workspace.write_text(workspace.findings_page, page)
        workspace.write_lines(workspace.flagged, audit.flags(store))
    except OSError as error:
        what = f"cannot be written: {error.strerror or one_line(error)}"
        raise InputError(what, where=str(folder), remedy="give another --out") from None
    return workspace


def print_table(audit: Audit) -> None:
    """What is good to know in short; then a row a finding that blocks or warns, next to the prompt where it is seen."""
    from rich.markup import escape
    from rich.table import Table

    from demeanor.report.findings import estimate_words
    from demeanor.report.words import plural

    console = common.table_console()
    known = Table(title="to know", title_justify="left", title_style="bold", box=None, show_header=False)
    grave = Table(title="to look at", title_justify="left", title_style="bold", show_lines=True)
    known.add_column(no_wrap=True)
    known.add_column()
    for name in ("", "check", "finding", "remedy"):
        grave.add_column(name, ratio={"finding": 3, "remedy": 2}.get(name))
    for finding in audit.findings:
        colour = _COLOURS[finding.severity]
        check = escape(finding.check) + (f"\n[dim]{escape(finding.group)}[/dim]" if finding.group else "")
        lines = [finding.what, f"{finding.measure}: {' '.join(estimate_words(finding.estimate))}"]
        if finding.severity == "informs":
            told = f"{escape(lines[0])} [dim]({escape(lines[1])}) {escape(finding.remedy)}[/dim]"
            known.add_row(f"[{colour}]{check}[/{colour}]", told)
            continue
        rows = ", ".join(str(example.row) for example in finding.examples)
        lines += [f"rows {rows}{', ...' if finding.num_pairs > len(finding.examples) else ''}"] if rows else []
        severity = f"[{colour}]{finding.severity}[/{colour}]"
        grave.add_row(severity, check, escape("\n".join(lines)), escape(finding.remedy))
    parts = [finding for finding in audit.findings if "table" in finding.details]
    for table in (known, *map(_parts_table, parts), grave):
        if table.row_count:
            console.print(table)
    counts = audit.to_json()["counts"]
    told = ", ".join(plural(counts[kind], *_TOLD[kind]) for kind in counts)
    console.print(f"{plural(audit.num_pairs, 'pair')} of {plural(audit.num_rows, 'row')}: {told}", markup=False)


def _parts_table(finding: Finding) -> Table:
    """A finding's own table, of sources and behaviours: the first MOST_PARTS rows, all are on the page."""
    from rich.markup import escape
    from rich.table import Table

    given = finding.details["table"]
    table = Table(title=finding.check, title_justify="left", title_style="bold", box=None)
    for place, name in enumerate(given["columns"]):
        table.add_column(name, justify="right" if place else "left")
    for row in given["rows"][:MOST_PARTS]:
        table.add_row(*map(escape, row))
    return table
