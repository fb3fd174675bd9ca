"""The command line: one file a command; each parses, calls a stage, prints. Nothing heavy is imported before it."""

from __future__ import annotations

import sys
import traceback

import typer

from demeanor.cli import (
    ask,
    audit,
    compare,
    curate,
    demo,
    init,
    judge_card,
    keep,
    measure,
    prove,
    release,
    report,
    review,
    run,
    train,
)
from demeanor.cli.console import complain
from demeanor.errors import DemeanorError

__all__ = ["main"]

app = typer.Typer(
    name="demeanor",
    help="Turns preference pairs into a language model whose behaviour can be proven.\n\nStart with `demeanor demo`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("demo")(demo.command)
app.command("init")(init.command)
app.command("audit")(audit.command)
app.command("review")(review.command)
app.command("curate")(curate.command)
app.command("keep")(keep.command)
app.command("run")(run.command)
app.command("train")(train.command)
app.command("measure")(measure.command)
app.command("judge-card")(judge_card.command)
app.command("prove")(prove.command)
app.command("report")(report.command)
app.command("release")(release.command)
app.command("compare")(compare.command)
app.command("ask")(ask.command)


def main() -> None:
    """Run a command; an error of ours becomes one line and its exit code."""
    try:
        app()
    except DemeanorError as error:
        complain(str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        complain("interrupted")
        sys.exit(130)
    except Exception:
        traceback.print_exc()
        complain("this is a fault of Demeanor's, not yours; what was done is kept")
        sys.exit(3)
