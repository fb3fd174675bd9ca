"""An audit's findings as one self-contained page, laid out by `findings.html.j2` in the report's own style.

A finding's `details` may hold what is plotted beneath it:

    {"histogram": {"edges": [num + 1 numbers], "counts": [num], "unit": "characters", "mark": 0}}
    {"bars": [["label", value], ...], "unit": "weight"}        values may be negative

and under that {"table": {"columns": [text, ...], "rows": [[text, ...], ...]}}.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from demeanor.records import SEVERITIES, Estimate, Finding
from demeanor.report import page_template
from demeanor.report.plots import draw
from demeanor.report.words import plural
from demeanor.visible import visible

WIDTH, HEIGHT, ROW = 480, 150, 22  # CSS pixels of a histogram, and of a bar's row
MOST_BARS = 12
WORDS = {"blocks": "blocks", "warns": "warning", "informs": "to know"}
TITLES = {"blocks": "Blocking", "warns": "Warnings", "informs": "To know"}


@dataclass(frozen=True)
class FindingView:
    """A finding as it is shown."""

    finding: Finding
    value: str
    interval: str
    plot: Markup | None
    word: str


@dataclass(frozen=True)
class View:
    """The whole page. `counts` is by severity, in their order."""

    title: str
    headline: str
    blocks: bool
    num_pairs: int
    num_rows: int
    confidence: float
    counts: dict[str, int]
    checks: list[tuple[str, str, list[FindingView]]]  # (name, about, findings)


def findings_page(
    findings: Sequence[Finding],
    checks: Sequence[tuple[str, str]],
    *,
    title: str,
    num_pairs: int,
    num_rows: int,
    confidence: float,
) -> str:
    """The page as HTML.

    Args:
        checks: (name, what it looks for) of every check that was run, in order; one without a finding says so.
        title: what was audited.
    """
    counts = {TITLES[kind]: sum(finding.severity == kind for finding in findings) for kind in SEVERITIES}
    shown = [
        (name, about, [_finding_view(finding) for finding in findings if finding.check == name])
        for name, about in checks
    ]
    view = View(
        title,
        _headline(findings),
        counts[TITLES["blocks"]] > 0,
        num_pairs,
        num_rows,
        confidence,
        counts,
        sorted(shown, key=lambda item: min((SEVERITIES.index(v.finding.severity) for v in item[2]), default=9)),
    )
    return page_template("demeanor.report", "findings.html.j2").render(view=view)


def estimate_words(estimate: Estimate) -> tuple[str, str]:
    """(value, interval with n) of any estimate; shares between 0 and 1 are told as they are, with three digits."""
    unscored = f", {estimate.unscored:,} unscored" if estimate.unscored else ""
    if estimate.value is None:
        return "not shown", f"n {estimate.n:,}{unscored}"
    ends = ""
    if estimate.low is not None and estimate.high is not None:
        ends = f"[{_figure(estimate.low)}, {_figure(estimate.high)}], "
    return _figure(estimate.value), f"{ends}n {estimate.n:,}{unscored}"


def _figure(value: float) -> str:
    if value == int(value) and abs(value) >= 1:
        return f"{value:,.0f}"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3g}"


def _headline(findings: Sequence[Finding]) -> str:
    by = {kind: [finding for finding in findings if finding.severity == kind] for kind in SEVERITIES}
    if by["blocks"]:
        more = plural(len(by["blocks"]) - 1, "other finding that blocks", "other findings that block")
        rest = f", and {more}" if len(by["blocks"]) > 1 else ""
        return f"{by['blocks'][0].what}{rest}."
    if by["warns"]:
        return f"Nothing blocks a training; {plural(len(by['warns']), 'warning')} to look at first."
    return "Nothing was found that would teach something else than what is meant."


def _finding_view(finding: Finding) -> FindingView:
    value, interval = estimate_words(finding.estimate)
    return FindingView(finding, value, interval, _plot(finding), WORDS[finding.severity])


def _plot(finding: Finding) -> Markup | None:
    if "histogram" in finding.details:
        return plot_histogram(**finding.details["histogram"], about=finding.what)
    if finding.details.get("bars"):
        return plot_bars(finding.details["bars"], finding.details.get("unit", ""), finding.what)
    return None


def plot_histogram(
    edges: Sequence[float], counts: Sequence[float], about: str, unit: str = "", mark: float | None = None
) -> Markup:
    """Counts between the edges; `mark` is a dashed line at a value."""
    import altair as alt

    bars = [{"x": low, "x2": high, "y": count} for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)]
    x = alt.X("x:Q", title=unit, axis=alt.Axis(grid=False, tickCount=7), scale=alt.Scale(nice=False, zero=False))
    y = alt.Y("y:Q", title="pairs", axis=alt.Axis(tickCount=4))
    layers = [
        alt.Chart(alt.Data(values=bars))
        .mark_rect(color="var(--after)", opacity=0.75)
        .encode(x=x, x2=alt.X2("x2:Q"), y=y, y2=alt.datum(0))
    ]
    if mark is not None:
        line = alt.Chart(alt.Data(values=[{"x": mark}]))
        layers.append(line.mark_rule(color="var(--limit)", strokeDash=[4, 3], strokeWidth=1.5).encode(x="x:Q"))
    return draw(alt.layer(*layers).properties(width=WIDTH, height=HEIGHT), about)


def plot_bars(items: Sequence[Any], unit: str, about: str) -> Markup:
    """A labelled bar an item, from 0 to its value; the first MOST_BARS of them."""
    import altair as alt

    rows = [{"name": visible(str(name)), "value": value} for name, value in items[:MOST_BARS]]
    y = alt.Y("name:N", sort=None, title=None, axis=alt.Axis(grid=False, labelLimit=220))
    x = alt.X("value:Q", title=unit, axis=alt.Axis(tickCount=5))
    bars = alt.Chart(alt.Data(values=rows)).mark_bar(color="var(--after)", opacity=0.75, height=ROW * 0.6)
    return draw(bars.encode(x=x, y=y).properties(width=WIDTH - 160, height=ROW * len(rows)), about)
