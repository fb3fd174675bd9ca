"""The page of an audit: everything a finding says is on it, nothing in it is run or loaded, and the words are right."""

from __future__ import annotations

import re

import pytest

from demeanor.records import Estimate, Example, Finding
from demeanor.report.findings import estimate_words, findings_page, plot_bars

HOSTILE = "<script>alert(1)</script>\u202e<b>&"


def finding(severity: str, what: str, num_pairs: int = 0, group: str = "", **details: object) -> Finding:
    share = Estimate(0.25, 0.1, 0.4, 1234)
    examples = (Example("id", HOSTILE, 7, HOSTILE),) if num_pairs else ()
    measure = "share of pairs that are near (3-gram Jaccard >= 0.5)"
    return Finding("length", "kind", severity, what, measure, share, "mend it", group, num_pairs, examples, details)


def page(*findings: Finding) -> str:
    checks = [("shape", "rows"), ("length", "who is longer")]
    return findings_page(findings, checks, title=HOSTILE, num_pairs=1234, num_rows=1300, confidence=0.95)


def text_of(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html.partition("<body>")[2]).split())


def test_everything_is_said_and_escaped() -> None:
    histogram = {"edges": [-1, 0, 1], "counts": [2, 3], "unit": "characters", "mark": 0}
    table = {"columns": ["", "pairs"], "rows": [["a <b>", "7"]]}
    html = page(
        finding("blocks", HOSTILE, 1, "source a", histogram=histogram),
        finding(
            "informs",
            "in source a all is well",
            2,
            "source a",
            table=table,
            bars=[[HOSTILE, 0.5], ["b", -0.5]],
            unit="weight",
        ),
    )
    assert "<script" not in html and "<b>" not in html and not re.search(r"(?:src|href)=.(?!#)", html)
    assert html.count("<svg") == 2 and "\u202e" not in html.partition("<svg")[2].partition("</svg>")[0]
    text = text_of(html)
    assert "BLOCKED" in text and "Blocking 1 Warnings 0 To know 1 Intervals at 95 %" in text
    assert "Share of pairs that are near (3-gram Jaccard &gt;= 0.5): 0.25 [0.1, 0.4], n 1,234; 1 pair or row " in text
    assert "pairs a &lt;b&gt; 7" in text
    assert "2 pairs or rows" in text and ", row 7" in text and "What to do: mend it" in text
    assert "source a : &lt;script" in text and "to know in source a all is well" in text  # the group is said once
    assert "Found nothing shape rows" in text


@pytest.mark.parametrize(
    ("severities", "words"),
    [
        ((), "NOTHING BLOCKS Nothing was found that would teach something else"),
        (("warns",), "NOTHING BLOCKS Nothing blocks a training; 1 warning to look at first."),
        (("blocks", "warns"), "BLOCKED What is wrong."),
        (("blocks", "blocks", "blocks"), "BLOCKED What is wrong, and 2 other findings that block."),
        (("blocks", "blocks"), "BLOCKED What is wrong, and 1 other finding that blocks."),
    ],
)
def test_the_headline(severities: tuple[str, ...], words: str) -> None:
    assert words in text_of(page(*(finding(severity, "What is wrong") for severity in severities)))


def test_figures_are_short_and_what_is_not_shown_says_so() -> None:
    assert estimate_words(Estimate(1948.0, None, None, 1992)) == ("1,948", "n 1,992")
    assert estimate_words(Estimate(121.66, 120.5, 123.0, 9)) == ("121.7", "[120.5, 123], n 9")
    assert estimate_words(Estimate(0.0, 0.0, 0.0032, 1094)) == ("0", "[0, 0.0032], n 1,094")
    assert estimate_words(Estimate(None, None, None, 0, 5)) == ("not shown", "n 0, 5 unscored")
    assert estimate_words(Estimate(0.5, None, None, 4, 2)) == ("0.5", "n 4, 2 unscored")


def test_bars_are_the_first_dozen() -> None:
    svg = plot_bars([[f"name {number}", number] for number in range(20)], "pairs", "about")
    assert "name 11" in svg and "name 12" not in svg
