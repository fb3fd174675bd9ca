"""Run folder -> what the page says, as plain records: the template only lays it out.

Everything comes from the run folder's files; a file that is missing makes its part None, which the page names as not
shown. The manifest's entry of the report itself is not read: the same results give the same page.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from demeanor.contract import Contract
from demeanor.records import SIDES, Comparison, DroppedRow, Estimate, LimitResult, Probe, Reply, Score, Verdict
from demeanor.report import words
from demeanor.report.behaviours import BehaviourView, behaviour_views, overview
from demeanor.report.plots import Curve, plot_curves, thin
from demeanor.report.words import measure_words, percent, plural, value_words
from demeanor.workspace import STAGES, Workspace, file_sha256

EXAMPLES = 3  # dropped rows shown a reason
REASONS = 20  # reasons shown


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


@dataclass(frozen=True)
class CurveView:
    """A training curve with the words below it."""

    title: str
    svg: Markup
    note: str
    two_lines: bool = False


@dataclass(frozen=True)
class AccuracyView:
    """Held-out accuracy of a behaviour beside what length alone reaches."""

    behaviour: str
    n: int
    accuracy: str
    length: str
    loss: str
    statement: str


@dataclass(frozen=True)
class DroppedView:
    """A reason with its count and first examples."""

    reason: str
    count: int
    examples: list[DroppedRow]


@dataclass(frozen=True)
class View:
    """The whole page."""

    run: Run
    model: str
    headline: str
    holding: str
    date: str | None
    failed: list[LimitView]
    limits: list[LimitView]
    overview: Markup | None
    behaviours: list[BehaviourView]
    curves: list[CurveView]
    curves_note: str
    displacement: str
    accuracy: list[AccuracyView]
    dropped: list[DroppedView] | None
    dropped_more: int
    notes: list[str]
    settings: list[tuple[str, Any]]
    stages: list[tuple[str, float | None, str]]
    digests: list[tuple[str, str]]
    version: str | None


def read_view(workspace: Workspace) -> View:
    """Raises RunFolderError when there is no verdict or a file is damaged."""
    run = _read_run(workspace)
    stages = run.manifest["stages"]
    limits = [_limit_view(limit) for limit in run.verdict.limits]
    curves, note = _curves(run)
    dropped, more = _dropped(run.dropped)
    return View(
        run=run,
        model=_name(run.contract.model),
        headline=_headline(run),
        holding=_holding(run.verdict),
        date=_date(stages.get("prove", {}).get("finished")),
        failed=[limit for limit in limits if not limit.passed],
        limits=limits,
        overview=overview(run.verdict.comparisons),
        behaviours=behaviour_views(run.contract, run.verdict, run.scores, run.replies, run.probes),
        curves=curves,
        curves_note=note,
        displacement=_displacement(run),
        accuracy=_accuracy(run.verdict.comparisons),
        dropped=dropped,
        dropped_more=more,
        notes=list(stages.get("read", {}).get("notes", [])),
        settings=_settings(run),
        stages=[
            (name, stages[name].get("seconds"), _date(stages[name].get("finished")) or words.NOT_SHOWN)
            for name in STAGES
            if name in stages and (name not in ("report", "release") or (name == "release" and run.release))
        ],
        digests=_digests(workspace, stages),
        version=stages.get("prove", {}).get("inputs", {}).get("demeanor"),
    )


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


def _headline(run: Run) -> str:
    """The verdict in one sentence: what became of the bad reply, and whether the limits hold."""
    limits = run.verdict.limits
    num_failed = sum(not limit.passed for limit in limits)
    if not limits:
        end = "the contract states no limit, so nothing is proven"
    elif num_failed:
        end = f"{num_failed} of {plural(len(limits), 'limit')} {'does' if num_failed == 1 else 'do'} not hold"
    else:
        end = f"all {len(limits)} limits hold" if len(limits) > 1 else "the one limit holds"
    if not limits or num_failed:
        joint = ", but "
    else:
        joint = ", and "
    found = _bad_reply(run)
    if found is None:
        return end[0].upper() + end[1:] + "; how likely a bad reply is was not measured."
    measure, parts = found
    what = {
        "violating_opening_mass": "The probability of a bad reply",
        "violating_sampled_rate": "The share of bad replies among the sampled ones",
        "violating_choice_probability": "The probability of the bad reply, when only the given replies could be said,",
    }[measure]
    total = sum(part.after.n for part in parts)
    before, after = (sum(getattr(p, side).value * p.after.n for p in parts) / total for side in SIDES)
    falls = [p for p in parts if p.difference.high is not None and p.difference.high < 0]
    rises = [p for p in parts if p.difference.low is not None and p.difference.low > 0]
    moved = f"from {percent(before)} to {percent(after)}"
    where = f" on {plural(total, 'held-out prompt')}"
    if len(falls) == len(parts) or len(rises) == len(parts):
        return f"{what} {'fell' if falls else 'rose'} {moved}{where}{joint}{end}."
    if not falls and not rises:
        return f"{what} went {moved}{where}, no more than chance could do{joint}{end}."
    sides = [f"fell beyond chance in {len(falls)}"] * bool(falls) + [f"rose beyond chance in {len(rises)}"] * bool(rises)
    return f"{what} went {moved}{where} (it {' and '.join(sides)} of {len(parts)} behaviours){joint}{end}."


def _bad_reply(run: Run) -> tuple[str, list[Comparison]] | None:
    """The measure of the bad reply that most trained behaviours have, and the comparisons of it."""
    best: tuple[str, list[Comparison]] | None = None
    for measure in words.BAD_MEASURES:
        own = [
            c
            for c in run.verdict.comparisons
            if c.measure == measure
            and c.behaviour not in run.contract.collateral
            and c.before.value is not None
            and c.after.value is not None
        ]
        if own and (best is None or len(own) > len(best[1])):
            best = measure, own
    return best


def _holding(verdict: Verdict) -> str:
    if not verdict.limits:
        return "No limit is stated."
    passed, total = sum(limit.passed for limit in verdict.limits), len(verdict.limits)
    level = f"{100 * verdict.confidence:g}{words.SPACE}%"
    hold = "holds" if passed == 1 else "hold"
    return f"{passed} of {plural(total, 'limit')} {hold}, each judged by an interval of {level} confidence."


def _limit_view(limit: LimitResult) -> LimitView:
    measure = limit.measure
    after = Estimate(limit.after, limit.after_low, limit.after_high, limit.n, limit.unscored)
    difference = Estimate(limit.difference, limit.low, limit.high, limit.n, limit.unscored)
    rule = words.parse_rule(limit.rule)
    joint = measure in words.AFTER_ONLY and limit.after is not None
    return LimitView(
        behaviour=limit.behaviour,
        measure=measure_words(measure),
        measure_id=measure,
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
    )


def _curves(run: Run) -> tuple[list[CurveView], str]:
    """The four training curves, and a note on what is not shown."""
    log = (run.training or {}).get("log") or []

    def points(key: str) -> list[tuple[float, float]]:
        return [(row["step"], row[key]) for row in log if _finite(row.get("step")) and _finite(row.get(key))]

    panels: tuple[tuple[str, tuple[str, ...], float | None], ...] = (
        ("Loss, nats", ("loss",), math.log(2)),
        ("Share of pairs whose chosen reply gained more than the rejected one", ("rewards/accuracies",), 0.5),
        ("Log-probability of the training replies, nats", ("logps/chosen", "logps/rejected"), None),
        ("Reward margin between chosen and rejected reply, nats", ("rewards/margins",), 0.0),
    )
    views, missing, widest = [], [], 1
    for title, keys, reference in panels:
        thinned = {key: thin(points(key)) for key in keys if points(key)}
        missing += [key for key in keys if key not in thinned]
        if not thinned:
            continue
        widest = max(widest, *(size for _, size in thinned.values()))
        lines = [Curve(line, dashed=key.endswith("rejected")) for key, (line, _) in thinned.items()]
        shares = keys == ("rewards/accuracies",)
        spell = percent if shares else lambda value: f"{value:.3g}".replace("-", words.MINUS)
        ends = {key: f"{spell(line[0][1])} → {spell(line[-1][1])}" for key, (line, _) in thinned.items()}
        note = "; ".join((f"{key.rpartition('/')[2]} " if len(keys) > 1 else "") + text for key, text in ends.items())
        views.append(CurveView(title, plot_curves(lines, f"{title}: {note}", reference, shares=shares), note, len(keys) > 1))
    notes = []
    if missing:
        notes.append(f"Not shown: training.json has no log of {', '.join(missing)}.")
    if widest > 1:
        notes.append(f"Each point is the mean of up to {widest} logs.")
    return views, " ".join(notes)


def _displacement(run: Run) -> str:
    """Did the good replies become less likely?"""
    trained = [c for c in run.verdict.comparisons if c.behaviour not in run.contract.collateral]
    gains = [c for c in trained if c.measure == "safe_logp" and c.difference.value is not None]
    if not gains:
        return "Whether the good replies became less likely is not shown: their likelihood was not measured on both sides."
    mean = sum(c.difference.value * c.difference.n for c in gains) / sum(c.difference.n for c in gains)  # type: ignore[operator]
    n = sum(c.difference.n for c in gains)
    move = "more likely" if mean > 0 else "less likely" if mean < 0 else "neither more nor less likely"
    text = (
        f"On {plural(n, 'held-out probe')} the good replies became {move} on average "
        f"({value_words(mean, 'safe_logp', change=True)} a reply)"
    )
    shares = [c for c in trained if c.measure == "displaced_share" and c.after.value is not None]
    if shares:
        share = sum(c.after.value * c.after.n for c in shares) / sum(c.after.n for c in shares)  # type: ignore[operator]
        text += f"; {percent(share)} of them became less likely although the margin over the bad reply grew (displacement)"
    fell = [c for c in gains if c.difference.high is not None and c.difference.high < 0]
    if fell:
        named = [f"{c.behaviour} ({value_words(c.difference.value, c.measure, change=True)})" for c in fell]
        text += f"; beyond chance in {', '.join(named)}" if mean < 0 else f"; less likely beyond chance in {', '.join(named)}"
    return text + "."


def _accuracy(comparisons: tuple[Comparison, ...]) -> list[AccuracyView]:
    views = []
    for behaviour in dict.fromkeys(c.behaviour for c in comparisons):
        own = {c.measure: c.after for c in comparisons if c.behaviour == behaviour}
        accuracy, length, loss = (own.get(name) for name in ("reward_accuracy", "length_accuracy", "validation_loss"))
        if accuracy is None or accuracy.value is None:
            continue
        views.append(
            AccuracyView(
                behaviour,
                accuracy.n,
                *(_with_interval(e, m) for e, m in ((accuracy, "reward_accuracy"), (length, "length_accuracy"), (loss, "validation_loss"))),
                statement=_honest(accuracy, length, loss),
            )
        )
    return views


def _with_interval(estimate: Estimate | None, measure: str) -> str:
    if estimate is None or estimate.value is None:
        return words.NOT_SHOWN
    return f"{value_words(estimate.value, measure)} {words.interval_words(estimate, measure)}".rstrip()


def _honest(accuracy: Estimate, length: Estimate | None, loss: Estimate | None) -> str:
    """What the numbers allow to say, and no more."""
    value, low, high = accuracy.value, accuracy.low, accuracy.high
    if value is None or low is None or high is None:
        chance = "no interval, so nothing can be said about chance"
    else:
        chance = "above chance" if low > 0.5 else "below chance" if high < 0.5 else "not above chance"
    parts = [chance]
    if length is not None and length.value is not None and value is not None:
        if length.value >= value:
            parts.append("length alone reaches as much")
        elif low is None or length.value >= low:
            parts.append("not clearly more than length alone reaches")
        else:
            parts.append("more than length alone reaches")
    if loss is not None and loss.low is not None and loss.high is not None:
        ln2 = math.log(2)
        where = "below" if loss.high < ln2 else "above" if loss.low > ln2 else "not clearly below"
        parts.append(f"loss {where} ln 2")
    return "; ".join(parts)


def _dropped(rows: list[DroppedRow] | None) -> tuple[list[DroppedView] | None, int]:
    """The reasons, most frequent first, and how many rows have a reason that is not listed."""
    if rows is None:
        return None, 0
    counts = sorted(Counter(row.reason for row in rows).items(), key=lambda item: (-item[1], item[0]))
    views = [
        DroppedView(reason, count, [row for row in rows if row.reason == reason][:EXAMPLES]) for reason, count in counts[:REASONS]
    ]
    return views, sum(count for _, count in counts[REASONS:])


def _settings(run: Run) -> list[tuple[str, Any]]:
    """The training settings in effect: what training.json says wins over the contract."""
    done = {key: value for key, value in (run.training or {}).items() if key != "log"}
    asked = {key: value for key, value in run.contract.training.model_dump(mode="json").items() if key not in done}
    rows: list[tuple[str, Any]] = []
    for key, value in [*asked.items(), *done.items()]:
        if isinstance(value, dict):
            rows += [(f"{key}.{name}", item) for name, item in value.items()]
        elif value is not None:
            rows.append((key, value))
    return rows


def _digests(workspace: Workspace, stages: dict[str, Any]) -> list[tuple[str, str]]:
    """The model, the inputs and what each stage wrote; the adapter's weights first."""
    inputs = stages.get("read", {}).get("inputs", {})
    rows = [(f"input {name}", sha) for name, sha in (inputs.get("files") or {}).items() if sha]
    if inputs.get("model"):
        rows.insert(0, ("base model (digest of its files)", inputs["model"]))
    if workspace.contract_file.exists():
        rows.append((workspace.contract_file.name, file_sha256(workspace.contract_file)))
    outputs = [item for name in STAGES if name not in ("report", "release") for item in stages.get(name, {}).get("outputs", {}).items()]
    weights = [item for item in outputs if item[0].endswith(".safetensors")]
    return [*weights, *rows, *(item for item in outputs if item not in weights)]


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _name(model: str) -> str:
    """A model's name without the folders of whoever ran it; a Hub id stays whole."""
    return Path(model).name if Path(model).is_absolute() else model


def _date(stamp: Any) -> str | None:
    return str(stamp).replace("T", " ").removesuffix("Z")[:16] + " UTC" if stamp else None
