"""What a person sees: headings, bars, tables. Results go to standard output, everything else to standard error."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from demeanor.progress import Advance, Progress

if TYPE_CHECKING:
    from rich.console import Console

    from demeanor.records import Comparison, Verdict

NAMES = {
    "read": "reading the pairs",
    "before": "measuring the base model",
    "train": "training the adapter",
    "after": "measuring the trained model",
    "prove": "proving",
    "report": "writing the report",
    "release": "merging, and comparing with the adapter",
}


def complain(line: str) -> None:
    """One line on standard error."""
    print(f"demeanor: {line}", file=sys.stderr)


def quiet_libraries() -> None:
    """The libraries' own bars and warnings would bury ours. Must run before they are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DATASETS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # else each try to reach the Hub is told twice
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")
    import warnings

    warnings.filterwarnings("ignore")


class ConsoleProgress(Progress):
    """Prints stages, lines and bars to standard error; without a terminal, a line when a bar ends."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False, soft_wrap=True)

    def stage(self, name: str, *, done: bool) -> None:
        what = NAMES.get(name, name)
        if done:
            self.console.print(f"[dim]✓ {what}: done before[/dim]")
        else:
            self.console.print(f"[bold]• {what}[/bold]")

    def say(self, line: str) -> None:
        self.console.print(f"  {line}", markup=False)

    @contextmanager
    def bar(self, label: str, total: int | None) -> Iterator[Advance]:
        from rich.progress import BarColumn, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        started, last = time.time(), {"figures": ""}
        columns: list[ProgressColumn] = [TextColumn("  {task.description}"), BarColumn(bar_width=24)]
        if total is not None:
            columns += [TextColumn("{task.percentage:>3.0f}%"), TextColumn("left"), TimeRemainingColumn()]
        columns += [TimeElapsedColumn(), TextColumn("{task.fields[figures]}")]
        shown: dict[str, str] = {}
        hidden = not self.console.is_terminal  # it would leave an empty line
        with Bars(*columns, console=self.console, transient=True, refresh_per_second=4, disable=hidden) as bars:
            task = bars.add_task(label, total=total, figures="")

            def advance(done_now: int = 1, **figures: Any) -> None:
                shown.update({name: str(value) for name, value in figures.items()})
                last["figures"] = "  ".join(f"{name} {value}" for name, value in shown.items())
                bars.update(task, advance=done_now, figures=last["figures"])

            yield advance
        self.say(f"{label}: {time.time() - started:.0f} s  {last['figures']}".rstrip())


def print_json(data: Any) -> None:
    """`data` on standard output, for `--json`."""
    print(json.dumps(data, ensure_ascii=False, indent=1))


def print_verdict(verdict: Verdict, collateral: Container[str]) -> None:
    """The table of before and after, then the limits that failed, then the verdict; `collateral` is marked."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from demeanor.promises import over_words
    from demeanor.report.headline import holds_among_all
    from demeanor.report.summaries import waiver_words, why_failed
    from demeanor.visible import visible

    console = Console(highlight=False, soft_wrap=True)
    table = Table(title="before → after training, on held-out probes", title_justify="left", title_style="bold")
    table.add_column("behaviour")
    table.add_column("probes", justify="right")
    for name in ("bad reply", "good reply", "sampled bad replies"):
        table.add_column(name, justify="right")
    for behaviour in dict.fromkeys(c.behaviour for c in verdict.comparisons):
        own = {c.measure: c for c in verdict.comparisons if c.behaviour == behaviour}
        bad = own.get("violating_opening_mass") or own.get("violating_choice_probability")
        good = own.get("safe_opening_mass") or own.get("safe_logp_per_token")
        num = max(c.after.n for c in own.values())
        name = escape(behaviour) + ("\n(must not get worse)" if behaviour in collateral else "")
        table.add_row(name, str(num), _cell(bad), _cell(good), _cell(own.get("violating_sampled_rate")))
    if any(c.measure in _IN_TABLE for c in verdict.comparisons):  # a reward model has nothing to show there
        console.print(table)
    _print_attacks(console, verdict)
    told = {c.behaviour for c in verdict.comparisons if c.measure.endswith("opening_mass")}
    general = [c for c in verdict.comparisons if c.measure in _ON_PAIRS and c.behaviour not in told]
    for c in general:
        interval = f" [{c.after.low:.3f}, {c.after.high:.3f}]" if c.after.low is not None else ""
        measured = c.before.value is not None and c.before.low != c.before.high  # ln 2 is a constant
        before = f"{c.before.value:.3f} → " if measured else ""
        beside = " (ln 2 = 0.693 before training)" if c.measure == "validation_loss" and not before else ""
        name = c.measure.replace("_", " ")
        console.print(f"{c.behaviour}: {name} {before}{c.after.value:.3f}{interval}{beside}", markup=False)
    for c in (c for c in verdict.comparisons if c.measure == "reward" and c.difference.value is not None):
        ends = f" [{c.difference.low:+.3f}, {c.difference.high:+.3f}]" if c.difference.low is not None else ""
        console.print(
            f"{c.behaviour}: reward {c.before.value:.3f} → {c.after.value:.3f}, {c.difference.value:+.3f}{ends}",
            markup=False,
        )
    for limit in verdict.limits:
        if not limit.passed:
            sign = {"waived": "[yellow]![/yellow]", "not shown": "[red]?[/red]"}.get(limit.state, "[red]✗[/red]")
            measure = over_words(limit.measure, limit.over)
            line = f"{limit.behaviour}: {measure} {limit.rule}: {waiver_words(limit) or limit.reason}"
            console.print(f"{sign} {escape(visible(line))}")
    if verdict.weakened:
        console.print(f"[red]✗[/red] {escape(visible(why_failed(verdict)))}")
    passed, waived = (sum(limit.state == state for limit in verdict.limits) for state in ("pass", "waived"))
    word = "[bold green]PASSED[/bold green]" if verdict.passed else "[bold red]FAILED[/bold red]"
    more = f", {waived} waived" if waived else ""
    if not verdict.passed and (among := sum(map(holds_among_all, verdict.limits))) < passed:
        more += f"; {among} of them as claims picked from all, by Holm"
    console.print(
        f"Verdict: {word} ({passed} of {len(verdict.limits)} limits hold at {verdict.confidence:.0%} confidence{more})"
    )


def _print_attacks(console: Console, verdict: Verdict) -> None:
    """The bad reply of each behaviour that was attacked, by column of plain, seen and unseen, and its worst family."""
    from rich.markup import escape
    from rich.table import Table

    from demeanor.report.under_attack import attack_views
    from demeanor.visible import visible

    views = attack_views(verdict)
    if not views:
        return
    table = Table(title="bad reply under attack, before → after", title_justify="left", title_style="bold")
    table.add_column("")
    for name in ("plain", "seen attacks", "unseen attacks"):
        table.add_column(name, justify="right")
    for view in views:
        table.add_row(f"[bold]{escape(visible(view.behaviour))}[/bold]", "", "", "")
        for row in view.rows:
            cells = [escape(f"{c.change}\n{c.interval} n={c.n}".replace("\u00a0", "")) if c else "" for c in row.cells]
            table.add_row(("  under " if row.is_family else "  ") + escape(visible(row.name)), *cells)
    console.print(table)
    for view in views:
        console.print(escape(visible(f"{view.behaviour}: {view.worst}")))


_IN_TABLE = (
    "violating_opening_mass",
    "violating_choice_probability",
    "safe_opening_mass",
    "safe_logp_per_token",
    "violating_sampled_rate",
)
_ON_PAIRS = ("reward_accuracy", "length_accuracy", "validation_loss")


def _cell(comparison: Comparison | None) -> str:
    if comparison is None or comparison.before.value is None or comparison.after.value is None:
        return "–"
    if (
        comparison.measure.startswith(("violating", "safe_opening", "safe_sampled"))
        and "logp" not in comparison.measure
    ):
        after = comparison.after
        ends = (
            f" \\[{_percent(after.low)}, {_percent(after.high)}]"
            if after.low is not None and after.high is not None
            else ""
        )
        return f"{_percent(comparison.before.value)} → {_percent(after.value)}{ends}"
    return f"{comparison.before.value:.2f} → {comparison.after.value:.2f} nats/token"


def _percent(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1%}" if value >= 0.1 else f"{value:.2%}"
