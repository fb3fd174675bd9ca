"""The verdict for machines and pull requests: JUnit XML and Markdown. Names and reasons are hostile text in both."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Collection

from demeanor.promises import over_words
from demeanor.records import Estimate, LimitResult, Verdict
from demeanor.report.headline import headline, holding
from demeanor.report.under_attack import GROUPS, attack_views
from demeanor.report.words import interval_words, value_words
from demeanor.visible import visible

_WORDS = {"pass": "holds", "fail": "fails", "not shown": "not shown", "waived": "waived"}
_SIGNS = {"pass": "✅", "fail": "❌", "not shown": "❔", "waived": "⚠️"}


def junit_xml(verdict: Verdict, name: str) -> str:
    """One test case a limit: failures carry the evidence, what is waived counts as skipped.

    A verdict that fails for another reason than a limit (none is stated, all are waived, one was weakened) has a
    failed case that says so: a consumer of the file never sees a pass where the exit code is 1.
    """
    suite = ET.Element("testsuite", name=visible(f"demeanor {name}"))
    for limit in verdict.limits:
        case = ET.SubElement(suite, "testcase", classname=visible(limit.behaviour), name=visible(limit.id))
        if limit.state == "waived":
            ET.SubElement(case, "skipped", message=visible(waiver_words(limit)))
        elif not limit.passed:
            told = ET.SubElement(case, "failure", message=visible(f"{limit.rule}: {limit.reason}"), type=limit.state)
            told.text = visible(_evidence(limit))
        if limit.passed or limit.state == "waived":
            ET.SubElement(case, "system-out").text = visible(_evidence(limit))
    if not verdict.passed and not suite.findall("testcase/failure"):
        case = ET.SubElement(suite, "testcase", classname="verdict", name="verdict")
        ET.SubElement(case, "failure", message=visible(why_failed(verdict)), type="fail")
    counts = {
        "tests": str(len(suite)),
        "failures": str(len(suite.findall("testcase/failure"))),
        "skipped": str(len(suite.findall("testcase/skipped"))),
        "errors": "0",
    }
    for key, value in counts.items():
        suite.set(key, value)
    root = ET.Element("testsuites", counts)
    root.append(suite)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def markdown_text(verdict: Verdict, name: str, collateral: Collection[str]) -> str:
    """A headline and the table of limits with before, after and interval."""
    word = "PASSED" if verdict.passed else "FAILED"
    lines = [f"### Demeanor: {word} {_code(name)}", "", headline(verdict, collateral), ""]
    if verdict.weakened:
        lines += [f"**{why_failed(verdict, code=True)}**", ""]
    if verdict.limits:
        lines += [
            "| | behaviour | measure | rule | before | after | interval | n | p | p, all limits (Holm) |",
            "|---|---|---|---|--:|--:|--:|--:|--:|--:|",
        ]
    for limit in verdict.limits:
        cells = (
            f"{_SIGNS.get(limit.state, '')} {_WORDS.get(limit.state, limit.state)}",
            _code(limit.behaviour),
            _code(over_words(limit.measure, limit.over)),
            _code(limit.rule),
            value_words(limit.before, limit.measure),
            value_words(limit.after, limit.measure),
            _interval(limit),
            f"{limit.n:,}",
            _p(limit.p),
            _p(limit.p_holm),
        )
        lines.append("| " + " | ".join(cells) + " |")
    told = [f"- {_code(one.id)}: {_code(waiver_words(one) or one.reason)}" for one in verdict.limits if not one.passed]
    lines += ["", *told, *([""] if told else []), holding(verdict)]
    for view in attack_views(verdict):
        lines += ["", f"Under attack, {_code(view.behaviour)}:", "", f"| | {' | '.join(GROUPS)} |", "|---|--:|--:|--:|"]
        for row in view.rows:
            told = [f"{c.change} {c.interval} (n = {c.n:,})" if c else "" for c in row.cells]
            lines.append(f"| {_code(row.name) if row.is_family else row.name} | {' | '.join(told)} |")
        lines += ["", _code(view.worst)]
    return "\n".join(lines) + "\n"


def waiver_words(limit: LimitResult) -> str:
    """Who lets it through, why, and until when; "" without a waiver."""
    waiver = limit.waiver
    return f"waived by {waiver['who']} until {waiver['until']}: {waiver['why']} ({limit.reason})" if waiver else ""


def why_failed(verdict: Verdict, *, code: bool = False) -> str:
    """Why no single limit is the reason; "" when the verdict passed."""
    if verdict.passed:
        return ""
    if verdict.weakened:
        named = ", ".join(_code(name) if code else name for name in verdict.weakened)
        return (
            f"Limits were loosened, removed or measured otherwise after they had been fixed for the training: {named}"
        )
    if not verdict.limits:
        return "The contract states no limit, so nothing is proven"
    return "No limit holds by its evidence, so nothing is proven"


def _evidence(limit: LimitResult) -> str:
    parts = [
        f"rule: {limit.rule}",
        f"before: {value_words(limit.before, limit.measure)}",
        f"after: {value_words(limit.after, limit.measure)}",
        f"interval: {_interval(limit) or 'none'}",
        f"n: {limit.n}, unscored: {limit.unscored}",
        f"p: {_p(limit.p)}, among all limits (Holm): {_p(limit.p_holm)}",
        limit.reason,
    ]
    return "\n".join(parts)


def _interval(limit: LimitResult) -> str:
    """Of what the rule is about."""
    evidence = limit.evidence or Estimate(None, None, None, 0)
    words = interval_words(evidence, limit.measure, change="before" in limit.rule or "accepted" in limit.rule)
    return f"{words} at {100 * limit.confidence:g} %" if words and limit.confidence else words


def _p(value: float | None) -> str:
    return "" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _code(text: str) -> str:
    """A code span of one line that no text can end, inside a table as well; mentions and links in it are not live."""
    flat = " ".join(visible(text).split()).replace("|", "\\|") or " "
    fence = "`" * (max((len(run) for run in re.findall("`+", flat)), default=0) + 1)
    pad = " " if flat.startswith("`") or flat.endswith("`") else ""
    return f"{fence}{pad}{flat}{pad}{fence}"
