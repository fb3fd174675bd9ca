"""Plots as inline SVG, made by altair and vl-convert, then rebuilt from an allow-list of SVG elements and attributes.

Probabilities stand on an axis that is stretched near 0 % and near 100 %: with c = 0.003, p stands at
log(1 + p/c) - log(1 + (1-p)/c). So 1 % and 0.1 % can be told apart, and 0 and 1 have a place, which a logarithm or a
logit would not give them. Colours are the page's CSS variables, so that a plot follows the page's light or dark look.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup

from demeanor.records import Estimate
from demeanor.report.words import percent
from demeanor.visible import visible

WIDTH = 500  # of every plot, CSS pixels; a page scales it down on a narrow screen
ROW_HEIGHT = 50
_STRETCH = 0.003
_BEFORE, _AFTER = "var(--before)", "var(--after)"
_FILLED = 0.97  # share of the width from 0 % to 100 %: room for the marks at the ends
_TICKS = {0.0: "0", 0.01: "1 %", 0.1: "10 %", 0.5: "50 %", 0.9: "90", 0.99: "99", 1.0: "100 %"}
_STYLE = {
    "aria": False,
    "background": "transparent",
    "font": "sans-serif",
    "padding": 4,
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--soft)",
        "titleColor": "var(--soft)",
        "gridColor": "var(--line)",
        "domain": False,
        "ticks": False,
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "labelPadding": 6,
    },
}
_ELEMENTS = {"svg", "g", "path", "text", "line", "rect", "circle"}
_ATTRIBUTES = {
    *(
        "width",
        "height",
        "viewBox",
        "transform",
        "d",
        "x",
        "y",
        "x1",
        "x2",
        "y1",
        "y2",
        "cx",
        "cy",
        "r",
        "rx",
        "dx",
        "dy",
    ),
    *("fill", "fill-opacity", "stroke", "stroke-width", "stroke-opacity", "stroke-dasharray", "stroke-linecap"),
    *("stroke-linejoin", "stroke-miterlimit", "opacity", "text-anchor", "font-size", "font-weight"),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a before/after plot. `limit` is the bound that `after` is held against, when there is one."""

    label: str
    before: Estimate
    after: Estimate
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class Curve:
    """One line over the training steps: (step, value)."""

    points: tuple[tuple[float, float], ...]
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Band:
    """Estimates by a whole number (a token's place, say), joined by a line; `before` or after training."""

    points: tuple[tuple[int, Estimate], ...]
    before: bool = False


def plot_rows(rows: Sequence[Row], about: str) -> Markup:
    """Before (hollow) and after (filled) of each row, each with its interval as a bar, on the stretched axis.

    Args:
        about: what a screen reader says before the numbers.
    """
    import altair as alt

    height = ROW_HEIGHT * len(rows) + 8
    ticks = [{"x": _place(p), "y": 0, "y2": height - 6} for p in _TICKS]
    names = [{"x": _place(p), "y": height - 3, "text": text} for p, text in _TICKS.items()]
    labels, numbers, spans, points, links, limits, spoken = [], [], [], [], [], [], []
    for index, row in enumerate(rows):
        top = ROW_HEIGHT * index
        labels.append({"x": 0, "y": top + 12, "text": visible(row.label)})
        both = f"{percent(row.before.value)} → {percent(row.after.value)}"
        numbers.append({"x": 1, "y": top + 12, "text": both})
        spoken.append(f"{row.label}: {percent(row.before.value)} before, {percent(row.after.value)} after")
        placed = []
        for ink, estimate, y in ((_BEFORE, row.before, top + 27), (_AFTER, row.after, top + 37)):
            if estimate.value is None:
                continue
            placed.append({"x": _place(estimate.value), "y": y})
            points.append({**placed[-1], "ink": ink})
            if estimate.low is not None and estimate.high is not None and estimate.low < estimate.high:
                spans.append({"x": _place(estimate.low), "x2": _place(estimate.high), "y": y, "ink": ink})
        if len(placed) == 2:
            links.append({**placed[0], "x2": placed[1]["x"], "y2": placed[1]["y"]})
        if row.limit is not None and 0 <= row.limit <= 1:
            limits.append({"x": _place(row.limit), "y": top + 20, "y2": top + 44})
    x = alt.X("x:Q", axis=None, scale=alt.Scale(domain=[0, 1], range=[0, WIDTH]))
    y = alt.Y("y:Q", axis=None, scale=alt.Scale(domain=[0, height], range=[0, height]))

    def layer(data: list[dict[str, Any]]) -> Any:
        return alt.Chart(alt.Data(values=data))

    x2, y2, text, ink = alt.X2("x2:Q"), alt.Y2("y2:Q"), alt.Text("text:N"), alt.Color("ink:N", scale=None)
    layers = [
        layer(ticks).mark_rule(color="var(--line)").encode(x=x, y=y, y2=y2),
        layer(names).mark_text(color="var(--soft)", fontSize=11, baseline="top").encode(x=x, y=y, text=text),
        layer(labels)
        .mark_text(color="currentColor", fontSize=12.5, align="left", limit=WIDTH - 200)
        .encode(x=x, y=y, text=text),
        layer(numbers).mark_text(color="currentColor", fontSize=12.5, align="right").encode(x=x, y=y, text=text),
        layer(links).mark_rule(color=_BEFORE, opacity=0.55).encode(x=x, x2=x2, y=y, y2=y2),
        layer(spans).mark_rule(strokeWidth=6, opacity=0.35, strokeCap="butt").encode(x=x, x2=x2, y=y, color=ink),
        layer(limits).mark_rule(color="var(--limit)", strokeDash=[4, 3], strokeWidth=1.5).encode(x=x, y=y, y2=y2),
        layer(points).mark_circle(size=64, opacity=1).encode(x=x, y=y, color=ink),
        layer([p for p in points if p["ink"] == _BEFORE])
        .mark_circle(size=22, opacity=1, color="var(--paper)")
        .encode(x=x, y=y),
    ]
    return draw(alt.layer(*layers).properties(width=WIDTH, height=height), f"{about}. {'; '.join(spoken)}")


def plot_curves(curves: Sequence[Curve], about: str, reference: float | None = None, *, shares: bool = False) -> Markup:
    """Lines over the training steps; `reference` is a thin dashed level to compare with.

    Args:
        about: what a screen reader says.
        shares: the values are shares: the axis goes from 0 to 100 %.
    """
    import altair as alt

    values = [
        {"step": step, "value": value, "line": index}
        for index, curve in enumerate(curves)
        for step, value in curve.points
    ]
    in_percent = {"labelExpr": "format(100 * datum.value, '.0f') + ' %'"} if shares else {}
    scale = alt.Scale(domain=[0, 1]) if shares else alt.Scale(zero=False, nice=True)
    x = alt.X(
        "step:Q",
        title="step",
        scale=alt.Scale(zero=False, nice=False),
        axis=alt.Axis(grid=False, tickCount=6, format="d"),
    )
    y = alt.Y("value:Q", title=None, scale=scale, axis=alt.Axis(tickCount=5, **in_percent))
    layers = []
    if reference is not None:
        level = alt.Chart(alt.Data(values=[{"value": reference}]))
        layers.append(level.mark_rule(color="var(--limit)", strokeDash=[2, 3]).encode(y=y))
    for index, curve in enumerate(curves):
        own = alt.Chart(alt.Data(values=[item for item in values if item["line"] == index]))
        color = _BEFORE if curve.dashed else _AFTER
        layers.append(
            own.mark_line(color=color, strokeWidth=1.8, strokeDash=[5, 3] if curve.dashed else []).encode(x=x, y=y)
        )
        if len(curve.points) <= 12:
            layers.append(own.mark_circle(color=color, size=30, opacity=1).encode(x=x, y=y))
    return draw(alt.layer(*layers).properties(width=WIDTH - 48, height=150), about)


def plot_bands(bands: Sequence[Band], about: str, *, under: str, shares: bool = False) -> Markup:
    """A line a band with each estimate's interval as a bar.

    Args:
        about: what a screen reader says.
        under: what the numbers below the axis count.
        shares: the values are shares: the axis goes from 0 to 100 %.
    """
    import altair as alt

    in_percent = {"labelExpr": "format(100 * datum.value, '.0f') + ' %'"} if shares else {}
    numbers = sorted({number for band in bands for number, _ in band.points})
    few = {"values": numbers} if len(numbers) <= 12 else {"tickCount": 8}
    x = alt.X(
        "x:Q",
        title=under,
        scale=alt.Scale(zero=False, nice=False, padding=8),
        axis=alt.Axis(grid=False, format="d", **few),
    )
    scale = alt.Scale(domain=[0, 1]) if shares else alt.Scale(zero=True, nice=True)
    axis = alt.Axis(tickCount=5, **in_percent)
    y, low = (alt.Y(f"{name}:Q", title=None, scale=scale, axis=axis) for name in ("y", "low"))
    layers = []
    for band in bands:
        ink = _BEFORE if band.before else _AFTER
        known = [(number, item) for number, item in band.points if item.value is not None]
        values = [{"x": number, "y": item.value, "low": item.low, "high": item.high} for number, item in known]
        spans = alt.Chart(alt.Data(values=[value for value in values if value["low"] is not None]))
        layers.append(
            spans.mark_rule(color=ink, strokeWidth=5, opacity=0.3, strokeCap="butt").encode(
                x=x, y=low, y2=alt.Y2("high:Q")
            )
        )
        own = alt.Chart(alt.Data(values=values))
        dash = [5, 3] if band.before else []
        layers.append(own.mark_line(color=ink, strokeWidth=1.8, strokeDash=dash).encode(x=x, y=y))
        layers.append(own.mark_circle(color=ink, size=36, opacity=1).encode(x=x, y=y))
    return draw(alt.layer(*layers).properties(width=WIDTH - 48, height=150), about)


def thin(points: Sequence[tuple[float, float]], most: int = 300) -> tuple[tuple[tuple[float, float], ...], int]:
    """(at most `most` points, how many logs each is the mean of): a plot has no more pixels than that."""
    size = math.ceil(len(points) / most) or 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return tuple((group[-1][0], sum(value for _, value in group) / len(group)) for group in groups), size


def _place(p: float) -> float:
    """Where a probability stands on the stretched axis, of width 1."""
    p = min(max(p, 0.0), 1.0)
    full = math.log1p(1 / _STRETCH)
    return 0.5 + _FILLED * (math.log1p(p / _STRETCH) - math.log1p((1 - p) / _STRETCH)) / (2 * full)


def draw(chart: Any, about: str) -> Markup:
    """The chart as SVG in the page's style; a screen reader says `about`."""
    import vl_convert

    spec = chart.to_dict(validate=False)  # altair's check takes longer than the drawing
    spec["config"] = _STYLE
    return clean_svg(vl_convert.vegalite_to_svg(spec, allowed_base_urls=[]), about)


def clean_svg(text: str, about: str) -> Markup:
    """The SVG rebuilt with only the elements and attributes that a plot needs: no script, link, image, style or id."""
    root = _rebuilt(ElementTree.fromstring(text))
    if root is None:
        raise ValueError("the plot is not an SVG")
    root.attrib |= {"role": "img", "aria-label": visible(about)}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _rebuilt(old: ElementTree.Element) -> ElementTree.Element | None:
    tag = old.tag.rpartition("}")[2]
    if tag not in _ELEMENTS or old.get("display") == "none":
        return None
    kept = {key: value for key, value in old.attrib.items() if key in _ATTRIBUTES and "url(" not in value.lower()}
    if tag == "path" and kept.get("d", "") in ("", "M0,0h0v0h0Z"):
        return None
    new = ElementTree.Element(tag, kept)
    if tag == "text":
        new.text = old.text
    children = [child for child in map(_rebuilt, old) if child is not None]
    if tag == "g" and not children:
        return None
    new.extend(children)
    return new
