"""Run folder -> what the page says, as plain records: the template only lays it out.

Everything comes from the run folder's files; a file that is missing makes its part None, which the page names as not
shown. The manifest's entry of the report itself is not read: the same results give the same page.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from demeanor.contract import Contract
from demeanor.measure.samplers import sampling_words
from demeanor.promises import over_words
from demeanor.records import SIDES, DroppedRow, Estimate, LimitResult, Probe, Reply, Score, Verdict
from demeanor.report import words
from demeanor.report.behaviours import BehaviourView, behaviour_views, overview
from demeanor.report.collateral import UnchangedView, unchanged_views
from demeanor.report.evidence import (
    AccuracyView,
    DroppedView,
    accuracy_views,
    date_words,
    displacement_words,
    dropped_views,
    input_digests,
    output_digests,
    settings_rows,
    short_name,
    stage_rows,
)
from demeanor.report.headline import headline, holding
from demeanor.report.plots import Curve, plot_curves, thin
from demeanor.report.summaries import waiver_words, why_failed
from demeanor.report.words import measure_words, percent, value_words
from demeanor.workspace import Workspace


@dataclass(frozen=True)
class Run:
    """What the run folder holds; None or {} where a file is missing."""

    contract: Contract
    contract_text: str
    manifest: dict[str, Any]
    verdict: Verdict
    scores: dict[str, list[Score]]  # by side
    replies: dict[str, list[Reply]]  # by side
    probes: list[Probe] | None
    num_pairs: int | None
    dropped: list[DroppedRow] | None
    training: dict[str, Any] | None
    release: dict[str, Any] | None


@dataclass(frozen=True)
class LimitView:
    """A row of the table of limits."""

    behaviour: str
    measure: str
    measure_id: str
    rule: str
    before: str
    after: str
    after_interval: str
    difference: str
    difference_interval: str
    n: int
    unscored: int
    passed: bool
    reason: str
    state: str
    p: str
    waiver: str


@dataclass(frozen=True)
class CurveView:
    """A training curve with the words below it."""

    title: str
    svg: Markup
    note: str
    two_lines: bool = False


@dataclass(frozen=True)
class View:
    """The whole page."""

    run: Run
    model: str
    headline: str
    holding: str
    date: str | None
    num_probes: int | None
    weakened: str
    failed: list[LimitView]
    limits: list[LimitView]
    overview: Markup | None
    behaviours: list[BehaviourView]
    unchanged: list[UnchangedView]
    curves: list[CurveView]
    curves_note: str
    displacement: str
    accuracy: list[AccuracyView]
    dropped: list[DroppedView] | None
    dropped_more: int
    notes: list[str]
    sampling: list[str]
    settings: list[tuple[str, Any]]
    stages: list[tuple[str, float | None, str]]
    inputs: list[tuple[str, str]]
    outputs: list[tuple[str, str]]
    versions: str


def read_view(workspace: Workspace) -> View:
    """Raises RunFolderError when there is no verdict or a file is damaged."""
    run = _read_run(workspace)
    stages = run.manifest["stages"]
    limits = [_limit_view(limit) for limit in run.verdict.limits]
    curves, note = _curves(run)
    dropped, more = dropped_views(run.dropped)
    return View(
        run=run,
        model=short_name(run.contract.model),
        headline=headline(run.verdict, run.contract.collateral),
        holding=holding(run.verdict),
        date=date_words(stages.get("prove", {}).get("finished")),
        num_probes=None if run.probes is None else sum(probe.wraps is None for probe in run.probes),
        weakened=why_failed(run.verdict) if run.verdict.weakened else "",
        failed=[limit for limit in limits if not limit.passed],
        limits=limits,
        overview=overview(run.verdict.comparisons),
        behaviours=behaviour_views(run.contract, run.verdict, run.scores, run.replies, run.probes),
        unchanged=unchanged_views(run.contract, run.verdict),
        curves=curves,
        curves_note=note,
        displacement=displacement_words(run.verdict.comparisons, run.contract.collateral),
        accuracy=accuracy_views(run.verdict.comparisons),
        dropped=dropped,
        dropped_more=more,
        notes=list(stages.get("read", {}).get("notes", [])),
        sampling=sampling_words(run.contract),
        settings=settings_rows(run.contract, run.training),
        stages=stage_rows(stages, released=run.release is not None),
        inputs=input_digests(workspace, stages),
        outputs=output_digests(stages),
        versions=_versions(stages),
    )


def _versions(stages: dict[str, Any]) -> str:
    """Demeanor's own version and those of the libraries, as far as the manifest has them."""
    ours = stages.get("prove", {}).get("inputs", {}).get("demeanor")
    named = {**({"Demeanor": ours} if ours else {}), **stages.get("train", {}).get("versions", {})}
    return ", ".join(f"{name} {version}" for name, version in named.items())


def _read_run(workspace: Workspace) -> Run:
    def records(path: Path, record: Callable[[dict[str, Any]], Any]) -> list[Any] | None:
        return workspace.read_records(path, record) if path.exists() else None

    def data(path: Path) -> Any:
        return workspace.read_json(path) if path.exists() else None

    num_pairs = None
    if workspace.train_pairs.exists():
        with workspace.train_pairs.open("rb") as file:
            num_pairs = sum(1 for _ in file)
    return Run(
        contract=workspace.contract(),
        contract_text=workspace.contract_file.read_text("utf-8"),
        manifest=workspace.manifest(),
        verdict=Verdict.from_json(workspace.read_json(workspace.verdict)),
        scores={side: records(workspace.scores(side), Score.from_json) or [] for side in SIDES},
        replies={side: records(workspace.replies(side), Reply.from_json) or [] for side in SIDES},
        probes=records(workspace.probes, Probe.from_json),
        num_pairs=num_pairs,
        dropped=records(workspace.dropped, lambda row: DroppedRow(**row)),
        training=data(workspace.training),
        release=data(workspace.release),
    )


def _limit_view(limit: LimitResult) -> LimitView:
    measure = limit.measure
    after = Estimate(limit.after, limit.after_low, limit.after_high, limit.n, limit.unscored)
    difference = Estimate(limit.difference, limit.low, limit.high, limit.n, limit.unscored)
    rule = words.parse_rule(limit.rule)
    joint = measure in words.WITHOUT_BEFORE and limit.before is None and limit.after is not None
    return LimitView(
        behaviour=limit.behaviour,
        measure=measure_words(measure) + words.over_words(limit.over),
        measure_id=over_words(measure, limit.over),
        rule=words.rule_words(limit.rule, measure),
        before="after only" if joint else value_words(limit.before, measure),
        after=value_words(limit.after, measure),
        after_interval=words.interval_words(after, measure),
        difference="after only" if joint else value_words(limit.difference, measure, change=True),
        difference_interval=words.interval_words(difference, measure, change=True),
        n=limit.n,
        unscored=limit.unscored,
        passed=limit.passed,
        reason=words.reason_words(difference if rule and rule[0] else after, limit.rule, measure, limit.reason),
        state=limit.state or ("pass" if limit.passed else "fail"),
        p=_p_words(limit),
        waiver=waiver_words(limit),
    )


def _p_words(limit: LimitResult) -> str:
    if limit.p is None or limit.p_holm is None:
        return ""
    alone, among = (f"{p:.3f}" if p >= 0.001 else "< 0.001" for p in (limit.p, limit.p_holm))
    return f"p {alone}; among all limits {among}"


def _curves(run: Run) -> tuple[list[CurveView], str]:
    """The four training curves, and a note on what is not shown."""
    log = (run.training or {}).get("log") or []

    def points(key: str) -> list[tuple[float, float]]:
        return [(row["step"], row[key]) for row in log if _finite(row.get("step")) and _finite(row.get(key))]

    panels: tuple[tuple[str, tuple[str, ...], float | None], ...] = (
        ("Loss, nats", ("loss",), math.log(2)),
        ("Reward accuracy on the training pairs", ("rewards/accuracies",), 0.5),
        ("Log-probability of the training replies, nats", ("logps/chosen", "logps/rejected"), None),
        ("Reward margin of chosen over rejected, nats", ("rewards/margins",), 0.0),
    )
    if any("mean_reward" in row for row in log):  # of a reward model
        panels = (
            panels[0],
            ("Accuracy on the training pairs", ("accuracy",), 0.5),
            ("Reward margin of chosen over rejected", ("margin",), 0.0),
            ("Mean reward of the training replies", ("mean_reward",), None),
        )
    if any("frac_reward_zero_std" in row for row in log):  # replies were sampled
        panels = (
            ("Reward of the sampled replies", ("reward",), None),
            ("Groups of replies that were all rewarded alike", ("frac_reward_zero_std",), None),
            ("Length of the sampled replies, tokens", ("completions/mean_length",), None),
            ("KL divergence from the model before training, nats a token", ("kl",), 0.0),
        )
    views, missing, widest = [], [], 1
    for title, keys, reference in panels:
        thinned = {key: thin(points(key)) for key in keys if points(key)}
        missing += [key for key in keys if key not in thinned]
        if not thinned:
            continue
        widest = max(widest, *(size for _, size in thinned.values()))
        lines = [Curve(line, dashed=key.endswith("rejected")) for key, (line, _) in thinned.items()]
        shares = keys in (("rewards/accuracies",), ("accuracy",), ("frac_reward_zero_std",))
        spell = percent if shares else lambda value: f"{value:.3g}".replace("-", words.MINUS)
        ends = {key: f"{spell(line[0][1])} → {spell(line[-1][1])}" for key, (line, _) in thinned.items()}
        note = "; ".join((f"{key.rpartition('/')[2]} " if len(keys) > 1 else "") + text for key, text in ends.items())
        views.append(
            CurveView(title, plot_curves(lines, f"{title}: {note}", reference, shares=shares), note, len(keys) > 1)
        )
    notes = []
    if missing:
        notes.append(f"Not shown: training.json has no log of {', '.join(missing)}.")
    if widest > 1:
        notes.append(f"Each point is the mean of up to {widest} logs.")
    return views, " ".join(notes)


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
