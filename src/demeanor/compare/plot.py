"""Proof against collateral damage, one labelled point a run, as inline SVG.

Up: the probability of the bad reply after training, on a logarithmic axis; to the right: how much of the allowed
collateral damage was used up, on an axis that is linear near 0 and logarithmic further out (asinh), so that a run that
broke something does not squeeze the others. The labels stand in a column of their own, in the order of the points, each
joined to its point by a thin line: so they never cover each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from demeanor.records import Estimate
from demeanor.report.plots import draw
from demeanor.report.words import MINUS, percent
from demeanor.visible import visible

WIDTH, HEIGHT, COLUMN = 520, 330, 400  # of the field, and of the column of labels beside it; CSS pixels
LEFT, TOP, BOTTOM = 52, 10, 40  # room for the axes' own labels
LINE = 17  # least distance of two labels
LEAST = 1e-5  # a probability below it stands here
KNEE = 0.1  # share of what is allowed up to which the axis is about linear
_STEPS = (-10.0, -5.0, -2.0, -1.0, -0.5, -0.25, -0.1, 0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 100.0)
_GAP = 40  # least distance of two ticks


@dataclass(frozen=True, slots=True)
class Point:
    """One run. `bad` is the bad reply of its worst behaviour after training, `others` those of its other behaviours;
    `damage` the share of what is allowed that is used up."""

    label: str
    passed: bool
    chosen: bool
    damage: Estimate
    bad: Estimate
    others: tuple[float, ...] = ()


def plot_points(points: Sequence[Point], limits: Sequence[float], before: float | None, about: str) -> Markup | None:
    """The plot; None when no run has both numbers.

    Args:
        limits: on the bad reply after training, each marked.
        before: the bad reply before training, marked too.
        about: what a screen reader says first.
    """
    import altair as alt

    points = [point for point in points if point.bad.value is not None and point.damage.value is not None]
    if not points:
        return None
    heights = [*limits, *([] if before is None else [before])]
    heights += [value for point in points for value in (*_known(point.bad), *point.others)]
    widths = [0.0, *(value for point in points for value in _known(point.damage))]
    low = math.floor(math.log10(max(LEAST, min(heights))))
    high = max(low + 1.0, min(0.0, math.log10(max(LEAST, *heights)) + 0.15))
    left, right = min(_bent(value) for value in widths), max(_bent(value) for value in widths)
    margin = 0.06 * max(right - left, 1.0)
    left, right = left - margin, right + margin

    def x(value: float) -> float:
        return LEFT + WIDTH * (_bent(value) - left) / (right - left)

    def y(value: float) -> float:
        return TOP + HEIGHT * (high - math.log10(max(LEAST, value))) / (high - low)

    ticks = _ticks([value for value in _STEPS if left <= _bent(value) <= right], x)
    decades = [10.0**power for power in range(low, math.floor(high) + 1)]
    end, floor = LEFT + WIDTH, TOP + HEIGHT
    grid = [{"x": LEFT, "x2": end, "y": y(value), "y2": y(value)} for value in decades]
    grid += [{"x": x(value), "x2": x(value), "y": TOP, "y2": floor} for value in ticks]
    names = [{"x": LEFT - 8, "y": y(value), "text": _decade(value)} for value in decades]
    below = [{"x": x(value), "y": floor + 6, "text": _share(value)} for value in ticks]
    bounds = [{"x": LEFT, "x2": end, "y": y(value), "y2": y(value)} for value in limits]
    told = [{"x": LEFT + 4, "y": y(value) - 3, "text": f"limit {percent(value)}"} for value in limits]
    if left <= _bent(1.0) <= right:
        bounds.append({"x": x(1.0), "x2": x(1.0), "y": TOP, "y2": floor})
    start = [] if before is None else [{"x": LEFT, "x2": end, "y": y(before), "y2": y(before)}]
    start_told = [{"x": LEFT + 4, "y": row["y"] - 3, "text": f"before {percent(before)}"} for row in start]
    spans, small, large, joins, labels = [], [], [], [], []
    ordered = sorted(points, key=lambda point: (y(point.bad.value or 0.0), -x(point.damage.value or 0.0)))
    places = _spread([y(point.bad.value or 0.0) for point in ordered], TOP + 8, floor)
    for point, place in zip(ordered, places, strict=True):
        across, up = x(point.damage.value or 0.0), y(point.bad.value or 0.0)
        ink = "var(--good)" if point.passed else "var(--bad)"
        for ends, horizontal in ((point.damage, True), (point.bad, False)):
            if ends.low is not None and ends.high is not None:
                one, two = ({"x": x(ends.low), "x2": x(ends.high)}, {"y": up, "y2": up})
                if not horizontal:
                    one, two = ({"x": across, "x2": across}, {"y": y(ends.low), "y2": y(ends.high)})
                spans.append({**one, **two, "ink": ink})
        small += [{"x": across, "y": y(value), "ink": ink} for value in point.others]
        large.append({"x": across, "y": up, "ink": ink})
        joins.append({"x": across, "y": up, "x2": end + 10, "y2": place})
        sign = "✓" if point.passed else "✗"
        labels.append({"x": end + 14, "y": place, "text": f"{sign} {visible(point.label)}", "chosen": point.chosen})
    field_x = alt.X("x:Q", axis=None, scale=alt.Scale(domain=[0, end + COLUMN], range=[0, end + COLUMN]))
    bottom = floor + BOTTOM
    field_y = alt.Y("y:Q", axis=None, scale=alt.Scale(domain=[0, bottom], range=[0, bottom]))
    x2, y2, text, ink_of = alt.X2("x2:Q"), alt.Y2("y2:Q"), alt.Text("text:N"), alt.Color("ink:N", scale=None)

    def layer(data: list[dict[str, Any]]) -> Any:
        return alt.Chart(alt.Data(values=data)).encode(x=field_x, y=field_y)

    def rule(data: list[dict[str, Any]], **style: Any) -> Any:
        return layer(data).mark_rule(**style).encode(x2=x2, y2=y2)

    def said(data: list[dict[str, Any]], color: str = "var(--soft)", **style: Any) -> Any:
        return layer(data).mark_text(**{"color": color, "fontSize": 11, **style}).encode(text=text)

    title = "collateral damage: share of what is allowed that is used up (left of 0: better than before)"
    layers = [
        rule(grid, color="var(--line)"),
        said(names, align="right"),
        said(below, baseline="top"),
        said([{"x": LEFT, "y": floor + 24, "text": title}], align="left", baseline="top"),
        rule(start, color="var(--before)", strokeDash=[2, 3]),
        said(start_told, align="left", baseline="bottom"),
        rule(bounds, color="var(--limit)", strokeDash=[4, 3], strokeWidth=1.5),
        said(told, "var(--limit)", align="left", baseline="bottom"),
        rule(joins, color="var(--before)", opacity=0.45),
        rule(spans, strokeWidth=5, opacity=0.3, strokeCap="butt").encode(color=ink_of),
        layer(small).mark_circle(size=26, opacity=0.75).encode(color=ink_of),
        layer(large).mark_circle(size=110, opacity=1).encode(color=ink_of),
        said([row for row in labels if not row["chosen"]], "currentColor", align="left", fontSize=12.5, limit=COLUMN),
        said(
            [row for row in labels if row["chosen"]], "currentColor", align="left", fontSize=12.5, fontWeight="bold",
            limit=COLUMN,
        ),
    ]  # fmt: skip
    spoken = [
        f"{point.label}: bad reply {percent(point.bad.value)}, {percent(point.damage.value, 0)} of the allowed damage"
        for point in ordered
    ]
    chart = alt.layer(*layers).properties(width=end + COLUMN, height=bottom)
    return draw(chart, f"{about}. {'; '.join(spoken)}")


def _known(estimate: Estimate) -> list[float]:
    return [value for value in (estimate.value, estimate.low, estimate.high) if value is not None]


def _bent(value: float) -> float:
    """Where a share stands: linear near 0, logarithmic far from it."""
    return math.asinh(value / KNEE)


def _decade(value: float) -> str:
    return f"{100 * value:g} %"


def _share(value: float) -> str:
    return f"{'+' if value > 0 else MINUS}{abs(100 * value):.0f} %" if value else "0"


def _ticks(values: Sequence[float], x: Any) -> list[float]:
    """0 and 1 first, then those that keep their distance from all that are there."""
    kept: list[float] = []
    for value in sorted(values, key=lambda value: (value not in (0.0, 1.0), abs(value))):
        if all(abs(x(value) - x(other)) >= _GAP for other in kept):
            kept.append(value)
    return kept


def _spread(places: Sequence[float], top: float, bottom: float) -> list[float]:
    """Places in rising order moved apart to LINE, and back up where the last would stand below `bottom`."""
    spread: list[float] = []
    for place in places:
        spread.append(max(place, top if not spread else spread[-1] + LINE))
    last = bottom
    for number in range(len(spread) - 1, -1, -1):
        spread[number] = min(spread[number], last)
        last = spread[number] - LINE
    return spread
