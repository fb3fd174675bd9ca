"""`demeanor review`: the flagged pairs, one by one, in the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from demeanor.cli import common

if TYPE_CHECKING:
    from demeanor.curate.review import Flagged
    from demeanor.records import PreferencePair

_COLOURS = {"blocks": "bold red", "warns": "yellow", "informs": "cyan"}
_HELP = "k keep   d drop   s swap   e edit   n next   u undo   v all of it   q quit"
_SHOWN = 3000  # characters of the prompt's end that are shown at first


def command(
    sources: Annotated[list[str], typer.Argument(metavar="PAIRS", help="Files, folders or Hub ids.")],
    decisions: Annotated[Path, typer.Option(help="Where decisions are kept; those in it are not asked again.")] = Path(
        "decisions.jsonl"
    ),
    findings: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Of a `demeanor audit`; without it, the pairs are audited now."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="CHECK[.KIND]", help="Ask about these findings; by default all that block or warn."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Folder or Hub id; some checks ask the model itself.")] = None,
    contract: Annotated[Path | None, typer.Option(help="What the pairs are to teach, and the audit's limits.")] = None,
    limit: Annotated[int | None, typer.Option(help="Read at most so many rows of each source.")] = None,
    split: Annotated[str, typer.Option(help="Of a data set that has several.")] = "train",
    settings: common.SetOption = None,
) -> None:
    """Go through the pairs that the audit flags, one key each; decisions are kept for curate, audit and later reviews.

    Each decision is written at once, so that a review can be left at any time and goes on where it was.

    Example:

      demeanor review pairs.jsonl && demeanor curate pairs.jsonl --decisions decisions.jsonl --out curated
    """
    import tempfile
    from dataclasses import replace

    from demeanor.audit import Scope, audit_pairs, prepared
    from demeanor.curate.decisions import read_decisions
    from demeanor.curate.mend import decided
    from demeanor.curate.review import checks_of, flagged_pairs, found_before, review
    from demeanor.errors import InputError
    from demeanor.model import find_model
    from demeanor.pairs import PairStore

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise InputError(
            "a review needs a terminal",
            remedy='elsewhere, write {"id": ..., "decision": "drop"} lines into --decisions',
        )
    progress = common.console()
    names = only or []
    checks = checks_of(names)
    before = found_before(findings) if findings else None
    promised = common.contract_given(contract, settings)
    scope = Scope(promised) if before else prepared(Scope(promised), checks)[1]
    scope = replace(scope, model=find_model(model) if model else None)
    known = read_decisions(decisions) if decisions.exists() else {}
    with tempfile.TemporaryDirectory(prefix="demeanor-") as folder:
        files = [common.pairs_file(name) for name in sources]
        store = PairStore.collect(files, Path(folder), split=split, limit=limit, progress=progress)
        pairs = decided(store, known, progress)
        if before is None:
            audit = audit_pairs(pairs, scope, only=checks, progress=progress)
            before = list(audit.findings), list(audit.flags(pairs))
        items = flagged_pairs(*before, store, known, names)
        if not items:
            progress.say("no flagged pair is undecided")
            return
        with _keys() as keys:
            counts = review(items, decisions, _Terminal(keys))
    told = ", ".join(f"{count:,} {kind}" for kind, count in counts.items()) or "none"
    progress.say(f"decisions: {told}; {len(items) - counts.total():,} of {len(items):,} pairs are undecided")
    progress.say(f"demeanor curate {' '.join(sources)} --decisions {decisions} --out curated")


class _Terminal:
    """`curate.review.Screen` on this terminal. All texts are hostile: no control character reaches it."""

    def __init__(self, keys: _Keys) -> None:
        from rich.console import Console

        self.console, self.keys = Console(highlight=False), keys
        self.last: tuple[Flagged, int, int] | None = None

    def show(self, item: Flagged, number: int, total: int, *, whole: bool = False) -> None:
        from rich.text import Text

        from demeanor.visible import on_terminal

        self.last = (item, number, total)
        pair, console = item.pair, self.console
        console.rule(Text(f"{number} of {total}   {on_terminal(pair.source)}, row {pair.row}"), align="left")
        for severity, name, what in item.found:
            console.print(Text.assemble((f"{severity} {name} ", _COLOURS[severity]), on_terminal(what)))
        if item.copies > 1:
            console.print(Text(f"{item.copies} rows are this very pair: a decision is about all of them", "bold"))
        prompt = "\n".join(f"{turn.role}: {turn.content}" for turn in pair.prompt)
        cut = 0 if whole else max(0, len(prompt) - _SHOWN)
        console.print(Text.assemble(("prompt ", "bold"), f"… {cut:,} characters before … " if cut else ""))
        console.print(Text(on_terminal(prompt[cut:])))
        for name, colour, text in (("chosen", "green", pair.chosen), ("rejected", "red", pair.rejected)):
            console.print(Text(f"{name} ({len(text):,} characters)", f"bold {colour}"))
            console.print(Text(on_terminal(text)))
        console.print(Text(_HELP, "dim"))

    def say(self, line: str) -> None:
        from rich.text import Text

        self.console.print(Text(line, "yellow"))

    def key(self) -> str:
        while (key := self.keys.read()) == "v":
            if self.last is not None:
                self.show(*self.last, whole=True)
        return key.lower()

    def edit(self, pair: PreferencePair) -> dict[str, str]:
        editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
        with self.keys.lines():
            try:
                return _edit_in(editor, pair) if editor else self._edit_inline(pair)
            except (ValueError, OSError, EOFError) as error:
                self.say(f"not taken: {error}")
                return {}

    def _edit_inline(self, pair: PreferencePair) -> dict[str, str]:
        """Without an editor: a line for each text."""
        self.say("new texts, a line each, \\n for a line break; nothing leaves a text as it is")
        texts = {"prompt": pair.prompt[-1].content, "chosen": pair.chosen, "rejected": pair.rejected}
        typed = {name: input(f"{name}: ").replace("\\n", "\n") for name in texts}
        return {name: text for name, text in typed.items() if text and text != texts[name]}


def _edit_in(editor: str, pair: PreferencePair) -> dict[str, str]:
    import shlex
    import subprocess
    import tempfile

    from demeanor.curate.edit import from_text, to_text

    with tempfile.TemporaryDirectory(prefix="demeanor-") as folder:  # for nobody else's eyes
        file = Path(folder) / "pair.txt"
        file.write_bytes(to_text(pair).encode())
        if subprocess.call([*shlex.split(editor), str(file)]):
            raise ValueError(f"{editor} failed")
        return from_text(file.read_bytes().decode(), pair)


class _Keys:
    """Single keys from the terminal, and lines in between."""

    def __init__(self, handle: int, single: Any, usual: Any) -> None:
        self._handle, self._single, self._usual = handle, single, usual

    def read(self) -> str:
        """One key, ESC for those that send a sequence (arrows, say); "" at the terminal's end."""
        import select

        if self._single is None:
            return typer.getchar()
        try:
            key = os.read(self._handle, 1)
        except OSError:  # the terminal was closed
            return ""
        while key == b"\x1b" and select.select([self._handle], [], [], 0.05)[0]:
            os.read(self._handle, 1)
        return "" if key == b"\x04" else key.decode("latin-1")

    @contextmanager
    def lines(self) -> Iterator[None]:
        """The terminal as it is elsewhere: for an editor, or a line that is typed."""
        self._set(self._usual)
        try:
            yield
        finally:
            self._set(self._single)

    def _set(self, state: Any) -> None:
        if state is not None:
            import termios

            termios.tcsetattr(self._handle, termios.TCSADRAIN, state)  # what was typed ahead is kept


@contextmanager
def _keys() -> Iterator[_Keys]:
    """Until the block ends, keys come one by one; the terminal is then as it was."""
    try:
        import termios
        import tty
    except ImportError:  # Windows
        yield _Keys(0, None, None)
        return
    handle = sys.stdin.fileno()
    usual = termios.tcgetattr(handle)
    tty.setcbreak(handle, termios.TCSADRAIN)
    keys = _Keys(handle, termios.tcgetattr(handle), usual)
    try:
        yield keys
    finally:
        keys._set(usual)
