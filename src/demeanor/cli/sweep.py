"""`demeanor run --sweep`: the runs of every combination, then their comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

from demeanor.cli import common
from demeanor.cli.compare import show

if TYPE_CHECKING:
    from demeanor.progress import Progress
    from demeanor.sweep import Base


def sweep_contract(
    target: Path, axes: Sequence[str], out: Path | None, settings: tuple[str, ...], progress: Progress, as_json: bool
) -> NoReturn:
    """Sweep a contract's file."""
    from demeanor.errors import InputError
    from demeanor.sweep import read_base

    target = common.contract_file(target)
    if target.is_dir():
        raise InputError("is a folder, a sweep needs a contract", where=str(target), remedy="give its contract.yaml")
    _finish(read_base(target), axes, out, settings, progress, as_json)


def sweep_pairs(
    pairs: str,
    model: str,
    axes: Sequence[str],
    out: Path | None,
    settings: tuple[str, ...],
    progress: Progress,
    as_json: bool,
) -> NoReturn:
    """Sweep the default contract over these pairs and this model."""
    from demeanor.cli.run import named_after
    from demeanor.plan import default_contract
    from demeanor.sweep import Base

    made = default_contract(pairs, model, named_after(pairs))
    _finish(Base.of_contract(made, "the default contract"), axes, out, settings, progress, as_json)


def _finish(
    base: Base, axes: Sequence[str], out: Path | None, settings: tuple[str, ...], progress: Progress, as_json: bool
) -> NoReturn:
    from demeanor.cli.console import complain
    from demeanor.compare import compare_runs, write_comparison
    from demeanor.errors import StageError
    from demeanor.sweep import combine, parse_axes, plan_sweep, run_sweep

    combinations, notes = combine(base, parse_axes(axes), settings)
    folder = out or Path("runs") / f"{base.data.get('name', 'run')}-sweep"
    planned, said = plan_sweep(base, combinations, folder)
    for note in (*notes, *said):
        progress.say(note)
    swept = run_sweep(planned, progress)
    passed = False
    if swept.finished:
        compared = compare_runs(swept.finished)
        show(compared, write_comparison(compared, folder), as_json)
        passed = compared.choice.run is not None
    for name, reason in swept.failed.items():
        complain(f"{name}: {reason}")
    if swept.failed:
        count = f"{len(swept.failed)} of {len(planned)} runs"
        raise StageError(f"{count} did not finish: {', '.join(swept.failed)}; the same command tries them again")
    raise typer.Exit(0 if passed else 1)
