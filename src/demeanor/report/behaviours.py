"""One behaviour on the page: its before/after plots, all its measures, and its replies side by side.

Of the sampled replies the worst of each probe is shown, the worst probes first, and what is not shown is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from demeanor.attack_settings import GIVEN
from demeanor.contract import Contract
from demeanor.judges.cards import card_of, card_shares
from demeanor.records import SIDES, Comparison, Probe, Reply, Score, Verdict
from demeanor.report.depth import FigureView, FoundView, figure_views, found_view
from demeanor.report.plots import Row, plot_rows
from demeanor.report.under_attack import AttackView, attack_views
from demeanor.report.words import (
    BAD_MEASURES,
    NOT_SHOWN,
    PLOTTED,
    WITHOUT_BEFORE,
    interval_words,
    measure_words,
    parse_rule,
    percent,
    value_words,
)

MOST_REPLIES = 12  # shown a behaviour
MOST_LETTERS = 1500  # of a prompt or a reply
# judgement -> (sign, words): the sign tells it without colour
JUDGEMENTS = {
    "violating": ("✗", "violating"),
    "safe": ("✓", "safe"),
    "other": ("○", "other"),
    "invalid": ("∅", "invalid"),
    None: ("?", "not judged"),
}


@dataclass(frozen=True)
class ReplyView:
    """A sampled reply, cut when it is very long."""

    text: str
    cut: int
    kind: str  # a key of JUDGEMENTS, or none
    sign: str
    label: str


@dataclass(frozen=True)
class ExchangeView:
    """A probe with a reply of each side; None where that side drew none."""

    attack: str | None
    turns: list[tuple[str, str, int]] | None  # role, text, letters cut
    before: ReplyView | None
    after: ReplyView | None


@dataclass(frozen=True)
class MeasureView:
    """A row of the table of all measures."""

    measure: str
    measure_id: str
    before: str
    before_interval: str
    after: str
    after_interval: str
    difference: str
    difference_interval: str
    n: int
    unscored: int


@dataclass(frozen=True)
class BehaviourView:
    """Everything about one behaviour. `tally` counts the sampled replies: (kind, sign, label, before, after)."""

    id: str
    name: str
    about: str
    judge: str  # who judged its replies, and how well; "" for the stated rule without a card
    collateral: bool
    num_probes: int
    plot: Markup | None
    attacks: Markup | None
    under_attack: AttackView | None
    attacks_measure: str
    figures: list[FigureView]
    found: FoundView | None
    measures: list[MeasureView]
    tally: list[tuple[str, str, str, int, int]]
    exchanges: list[ExchangeView]
    num_hidden: int
    worst_violates: bool


def overview(comparisons: Sequence[Comparison]) -> Markup | None:
    """The bad reply of every behaviour in one plot; None when there are fewer than two."""
    rows = []
    for name in dict.fromkeys(c.behaviour for c in comparisons):
        own = {c.measure: c for c in comparisons if c.behaviour == name}
        bad = next((own[measure] for measure in BAD_MEASURES if measure in own), None)
        if bad is not None:
            rows.append(Row(name, bad.before, bad.after))
    return plot_rows(rows, "Bad reply, every behaviour") if len(rows) > 1 else None


def behaviour_views(
    contract: Contract,
    verdict: Verdict,
    scores: dict[str, list[Score]],
    replies: dict[str, list[Reply]],
    probes: list[Probe] | None,
) -> list[BehaviourView]:
    """Every behaviour that was compared or sampled, in the verdict's order."""
    named = [c.behaviour for c in verdict.comparisons] + [reply.behaviour for side in SIDES for reply in replies[side]]
    known = {(probe.behaviour, probe.id): probe for probe in probes or ()}
    attacked = {view.behaviour: view for view in attack_views(verdict)}
    views = []
    for index, name in enumerate(dict.fromkeys(named), start=1):
        own = [c for c in verdict.comparisons if c.behaviour == name]
        drawn = {side: [r for r in replies[side] if r.behaviour == name and not r.prefill] for side in SIDES}
        scored = {side: [score for score in scores[side] if score.behaviour == name] for side in SIDES}
        promise = contract.promises.get(name)
        view = attacked.get(name)
        exchanges, hidden = _exchanges(drawn, known)
        counts = {side: Counter(reply.judgement for reply in drawn[side]) for side in SIDES}
        views.append(
            BehaviourView(
                id=f"behaviour-{index}",
                name=name,
                about=promise.about if promise else "",
                judge=_judge_words(name, contract),
                collateral=name in contract.collateral,
                num_probes=max((c.after.n + c.after.unscored for c in own), default=0),
                plot=_plot(name, own, verdict),
                attacks=_attacks(view) if view else None,
                under_attack=view,
                attacks_measure=PLOTTED[view.measure] if view else "",
                figures=figure_views(name, own, scored["after"], contract),
                found=found_view(scored),
                measures=[_measure(c) for c in own],
                tally=[
                    (kind or "none", sign, label, counts["before"][kind], counts["after"][kind])
                    for kind, (sign, label) in JUDGEMENTS.items()
                    if counts["before"][kind] or counts["after"][kind]
                ],
                exchanges=exchanges,
                num_hidden=hidden,
                worst_violates=bool(counts["after"]["violating"]),
            )
        )
    return views


def _judge_words(name: str, contract: Contract) -> str:
    promise = contract.promises.get(name)
    if promise is None:
        return ""
    card = card_of(promise.judge, contract.measurement.max_new_tokens)
    if card is None:
        return "" if promise.judge.kind == "rule" else f"Judge: {promise.judge.title}; it has no card."
    shares = card_shares(card, contract.measurement.confidence)
    measured = ", ".join(
        f"{what} {percent(share.value)} {interval_words(share, 'violating_corrected_rate')} of {share.n}"
        for what, share in shares.items()
    )
    return f"Judge: {promise.judge.title}; measured on {card.data}: {measured}."


def _plot(name: str, own: list[Comparison], verdict: Verdict) -> Markup | None:
    """The behaviour's probabilities, with the limit on `after` where the measure has one."""
    bounds: dict[str, float] = {}
    for limit in verdict.limits:
        rule = parse_rule(limit.rule)
        if limit.behaviour == name and limit.over == GIVEN and rule is not None and not rule[0]:
            bounds[limit.measure] = rule[2]
    found = {c.measure: c for c in own if c.measure in PLOTTED and not _after_only(c)}
    rows = [
        Row(label, found[measure].before, found[measure].after, bounds.get(measure))
        for measure, label in PLOTTED.items()
        if measure in found
    ]
    return plot_rows(rows, name) if rows else None


def _attacks(view: AttackView) -> Markup:
    """The bad reply to plain prompts and to each family of attacks, the worst family first."""
    rows = [Row(f"plain prompts (n = {c.after.n})", c.before, c.after) for c in (view.plain,) if c is not None]
    rows += [Row(f"attack: {c.over} (n = {c.after.n})", c.before, c.after) for c in view.families]
    return plot_rows(rows, f"{view.behaviour}, by attack")


def _after_only(comparison: Comparison) -> bool:
    return comparison.measure in WITHOUT_BEFORE and comparison.before.value is None


def _measure(comparison: Comparison) -> MeasureView:
    measure = comparison.measure
    joint = _after_only(comparison)
    return MeasureView(
        measure=measure_words(measure),
        measure_id=measure,
        before="after only" if joint else value_words(comparison.before.value, measure),
        before_interval="" if joint else interval_words(comparison.before, measure),
        after=value_words(comparison.after.value, measure),
        after_interval=interval_words(comparison.after, measure),
        difference="after only" if joint else value_words(comparison.difference.value, measure, change=True),
        difference_interval="" if joint else interval_words(comparison.difference, measure, change=True),
        n=comparison.after.n,
        unscored=comparison.after.unscored,
    )


def _exchanges(drawn: dict[str, list[Reply]], known: dict[tuple[str, str], Probe]) -> tuple[list[ExchangeView], int]:
    """The worst sample of each probe, the worst first, at most MOST_REPLIES; and how many samples are not shown."""
    pairs: dict[tuple[str, int], dict[str, Reply]] = {}
    for side in SIDES:
        for reply in drawn[side]:
            pairs.setdefault((reply.probe_id, reply.sample), {})[side] = reply
    ranked = sorted((_badness(pair), place, key) for place, (key, pair) in enumerate(pairs.items()))
    shown: dict[str, tuple[str, int]] = {}
    for _, _, key in ranked:
        shown.setdefault(key[0], key)
    views = []
    for probe_id, key in list(shown.items())[:MOST_REPLIES]:
        pair = pairs[key]
        probe = known.get((next(iter(pair.values())).behaviour, probe_id))
        views.append(
            ExchangeView(
                attack=probe.attack if probe else None,
                turns=[(turn.role, *_cut(turn.content)) for turn in probe.prompt] if probe else None,
                before=_reply(pair.get("before")),
                after=_reply(pair.get("after")),
            )
        )
    return views, len(pairs) - len(views)


def _badness(pair: dict[str, Reply]) -> int:
    """0 is the worst: violating though it was not before; 1 still violating; then what changed; last what did not."""
    before = pair["before"].judgement if "before" in pair else None
    after = pair["after"].judgement if "after" in pair else None
    if after == "violating":
        return 1 if before == "violating" else 0
    if after != before:
        return {"invalid": 2, "other": 3, "safe": 4}.get(after or "", 5)
    return {"invalid": 6, "other": 7, "safe": 8}.get(after or "", 9)


def _reply(reply: Reply | None) -> ReplyView | None:
    if reply is None:
        return None
    if reply.fault is not None:
        return ReplyView(f"[{reply.fault}]", 0, "none", "?", "no reply")
    sign, label = JUDGEMENTS.get(reply.judgement, ("?", reply.judgement or NOT_SHOWN))
    text, cut = _cut(reply.text)
    return ReplyView(
        text, cut, reply.judgement if reply.judgement in JUDGEMENTS and reply.judgement else "none", sign, label
    )


def _cut(text: str) -> tuple[str, int]:
    return text[:MOST_LETTERS], max(0, len(text) - MOST_LETTERS)
