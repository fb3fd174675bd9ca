"""The comparison as one self-contained page, laid out by `compare.html.j2` in the report's own style."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from demeanor.compare.choose import NEGLIGIBLE, RULE, short_words
from demeanor.compare.plot import Point, plot_points
from demeanor.compare.results import Damage, Proof, RunResult
from demeanor.records import Comparison
from demeanor.report import page_template
from demeanor.report.evidence import short_name
from demeanor.report.words import SPACE, interval_words, number, percent, plural, seconds, value_words
from demeanor.train.memory import gib

if TYPE_CHECKING:
    from demeanor.compare import RunsCompared

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class ProofView:
    """A line of a run's proof: (before → after, its interval) of the bad and of the good reply."""

    behaviour: str
    bad: tuple[str, str]
    good: tuple[str, str]


@dataclass(frozen=True)
class DamageView:
    """A measure of a collateral promise: its change, the interval, and the share of what is allowed."""

    name: str
    measure: str
    change: str
    interval: str
    share: str
    worst: bool


@dataclass(frozen=True)
class RunView:
    """A row of the table."""

    name: str
    settings: str
    passed: bool
    chosen: bool
    limits: str
    proofs: list[ProofView]
    damages: list[DamageView]
    training: str
    reference: str
    memory: str
    cost: str
    money: str


@dataclass(frozen=True)
class View:
    """The whole page."""

    compared: RunsCompared
    headline: str
    model: str
    device: str
    price: str
    rule: str
    rows: list[RunView]
    plot: Markup | None
    measures: str


def page_of(compared: RunsCompared) -> str:
    """The page as HTML."""
    return page_template("demeanor.compare", "compare.html.j2").render(view=view_of(compared))


def view_of(compared: RunsCompared) -> View:
    """What page and terminal say, in words."""
    devices = dict.fromkeys(_device(run) for run in compared.runs)
    return View(
        compared=compared,
        headline=compared.choice.reason,
        model=short_name(compared.model),
        device="; ".join(devices),
        price=""
        if compared.price_per_hour is None
        else f" The price is at {compared.price_per_hour:g} an hour of one.",
        rule=RULE,
        rows=[_row(run, compared) for run in compared.runs],
        plot=_plot(compared),
        measures=_measures(compared.runs),
    )


def _row(run: RunResult, compared: RunsCompared) -> RunView:
    usage, worst, money = run.usage, run.worst_damage, compared.money(run)
    besides = ("reference", usage.reference_seconds), ("reward model", usage.reward_model_seconds)
    hours = usage.hours
    return RunView(
        name=run.name,
        settings=", ".join(
            f"{key} {number(value)}" for key, value in run.settings.items() if value not in (None, [], {})
        ),
        passed=run.passed,
        chosen=run.name == compared.choice.run,
        limits=f"{run.num_passed} of {run.num_limits}",
        proofs=[_proof(proof) for proof in run.proofs],
        damages=[_damage(damage, damage is worst) for damage in run.damages],
        training=NOT_MEASURED if usage.training_seconds is None else seconds(usage.training_seconds),
        reference=", ".join(f"{name} {seconds(spent)}" for name, spent in besides if spent),
        memory=NOT_MEASURED if usage.peak_bytes is None else gib(usage.peak_bytes).replace(" ", SPACE),
        cost=NOT_MEASURED if hours is None else f"{_two_digits(hours)} {usage.hours_of}",
        money="" if money is None else f"price {_two_digits(money)}",
    )


def _two_digits(value: float) -> str:
    """Two significant digits, never as 1e-05."""
    return f"{value:.{max(0, 1 - math.floor(math.log10(value)))}f}" if value > 0 else "0"


def _proof(proof: Proof) -> ProofView:
    return ProofView(proof.behaviour, _moved(proof.bad), _moved(proof.good))


def _moved(comparison: Comparison | None) -> tuple[str, str]:
    if comparison is None:
        return NOT_MEASURED, ""
    before, after = (value_words(side.value, comparison.measure) for side in (comparison.before, comparison.after))
    if after.endswith(f"{SPACE}nats"):
        before = before.removesuffix(f"{SPACE}nats")
    return f"{before} → {after}", interval_words(comparison.after, comparison.measure)


def _damage(damage: Damage, worst: bool) -> DamageView:
    own = damage.comparison
    used = damage.used.value
    if used is None:
        share = "damage not known"
    elif abs(used) < NEGLIGIBLE:
        share = "no damage"
    else:
        share = "better" if used < 0 else f"{percent(used, 0)} of allowed"
    return DamageView(
        name=own.behaviour,
        measure=short_words(own.measure),
        change=value_words(own.difference.value, own.measure, change=True),
        interval=interval_words(own.difference, own.measure, change=True),
        share=share,
        worst=worst,
    )


def _measures(runs: Sequence[RunResult]) -> str:
    """By which measures the bad and the good reply are told in the table."""
    bad = dict.fromkeys(p.bad.measure for run in runs for p in run.proofs if p.bad)
    good = dict.fromkeys(p.good.measure for run in runs for p in run.proofs if p.good)
    return f"Bad reply: {', '.join(bad) or NOT_MEASURED}; good reply: {', '.join(good) or NOT_MEASURED}."


def _device(run: RunResult) -> str:
    usage = run.usage
    if usage.count is None:
        return NOT_MEASURED
    what = plural(usage.count, "core" if usage.device == "cpu" else "accelerator")
    return f"{what}, {usage.name}" if usage.name else what


def _plot(compared: RunsCompared) -> Markup | None:
    points = []
    for run in compared.runs:
        proof, damage = run.worst_proof, run.worst_damage
        if proof is None or proof.bad is None or damage is None:
            continue
        others = (p.bad.after.value for p in run.proofs if p is not proof and p.bad is not None)
        points.append(
            Point(
                label=run.name if len(run.proofs) == 1 else f"{run.name} ({proof.behaviour})",
                passed=run.passed,
                chosen=run.name == compared.choice.run,
                damage=damage.used,
                bad=proof.bad.after,
                others=tuple(value for value in others if value is not None),
            )
        )
    limits = sorted({p.limit for run in compared.runs for p in run.proofs if p.limit is not None and p.limit > 0})
    starts = [p.bad.before.value for p in compared.runs[0].proofs if p.bad and p.bad.before.value is not None]
    return plot_points(points, limits, max(starts, default=None), "Proof against collateral damage")
