"""The rest of the evidence: held-out accuracy, displacement, what was dropped, settings and digests."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demeanor.contract import Contract
from demeanor.records import Comparison, DroppedRow, Estimate
from demeanor.report.words import NOT_SHOWN, interval_words, percent, plural, value_words
from demeanor.workspace import STAGES, Workspace, file_sha256

EXAMPLES = 3  # dropped rows shown a reason
REASONS = 20  # reasons shown


@dataclass(frozen=True)
class AccuracyView:
    """Held-out accuracy of a behaviour beside what length alone reaches."""

    behaviour: str
    n: int
    accuracy: tuple[str, str]  # value and interval, and so the others
    length: tuple[str, str]
    loss: tuple[str, str]
    statement: str


@dataclass(frozen=True)
class DroppedView:
    """A reason with its count and first examples."""

    reason: str
    count: int
    examples: list[DroppedRow]


def accuracy_views(comparisons: Sequence[Comparison]) -> list[AccuracyView]:
    """One a behaviour whose probes have a good and a bad reply."""
    views = []
    for behaviour in dict.fromkeys(c.behaviour for c in comparisons):
        own = {c.measure: c.after for c in comparisons if c.behaviour == behaviour}
        accuracy, length, loss = (own.get(name) for name in ("reward_accuracy", "length_accuracy", "validation_loss"))
        if accuracy is None or accuracy.value is None:
            continue
        views.append(
            AccuracyView(
                behaviour=behaviour,
                n=accuracy.n,
                accuracy=_with_interval(accuracy, "reward_accuracy"),
                length=_with_interval(length, "length_accuracy"),
                loss=_with_interval(loss, "validation_loss"),
                statement=_honest(accuracy, length, loss),
            )
        )
    return views


def _with_interval(estimate: Estimate | None, measure: str) -> tuple[str, str]:
    if estimate is None:
        return NOT_SHOWN, ""
    return value_words(estimate.value, measure), interval_words(estimate, measure)


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


def displacement_words(comparisons: Sequence[Comparison], collateral: Collection[str]) -> str:
    """Did the good (chosen) replies of the trained behaviours become less likely?"""
    if any(c.measure == "safe_reward" for c in comparisons):
        return "Not asked: a reward model replies to nobody."
    trained = [c for c in comparisons if c.behaviour not in collateral]
    gains = [c for c in trained if c.measure == "safe_logp" and c.difference.value is not None]
    mean = _pooled([c.difference for c in gains])
    if mean is None:
        return (
            "Whether the good replies became less likely is not shown: their likelihood was not measured on both sides."
        )
    fell = [c for c in gains if c.difference.high is not None and c.difference.high < 0]
    rose = [c for c in gains if c.difference.low is not None and c.difference.low > 0]
    if fell:
        named = ", ".join(f"{c.behaviour} ({value_words(c.difference.value, c.measure, change=True)})" for c in fell)
        answer = f"Yes, the good replies became less likely, beyond chance, in {named}"
    elif len(rose) == len(gains):
        answer = "No, the good replies became more likely" + (" in every behaviour" if len(gains) > 1 else "")
    else:
        answer = "Not measurably: no behaviour's good replies became less likely beyond chance"
    probes = plural(sum(c.difference.n for c in gains), "held-out probe")
    change = value_words(mean, "safe_logp", change=True)
    text = f"{answer}. On {probes} their log-probability changed by {change} a reply on average"
    share = _pooled([c.after for c in trained if c.measure == "displaced_share"])
    if share is not None:
        text += (
            f"; on {percent(share)} of the probes it fell although the margin over the bad reply grew (displacement)"
        )
    return text + "."


def _pooled(estimates: Sequence[Estimate]) -> float | None:
    """The mean over all probes of the estimates."""
    known = [(estimate.value, estimate.n) for estimate in estimates if estimate.value is not None]
    return sum(value * n for value, n in known) / sum(n for _, n in known) if known else None


def dropped_views(rows: list[DroppedRow] | None) -> tuple[list[DroppedView] | None, int]:
    """The reasons, most frequent first, and how many rows have a reason that is not listed."""
    if rows is None:
        return None, 0
    counts = sorted(Counter(row.reason for row in rows).items(), key=lambda item: (-item[1], item[0]))
    views = [
        DroppedView(reason, count, [row for row in rows if row.reason == reason][:EXAMPLES])
        for reason, count in counts[:REASONS]
    ]
    return views, sum(count for _, count in counts[REASONS:])


def settings_rows(contract: Contract, training: dict[str, Any] | None) -> list[tuple[str, Any]]:
    """The training settings in effect: what training.json says wins over the contract."""
    done = {key: value for key, value in (training or {}).items() if key != "log"}
    asked = {key: value for key, value in contract.training.model_dump(mode="json").items() if key not in done}
    rows: list[tuple[str, Any]] = []
    for key, value in [*asked.items(), *done.items()]:
        if isinstance(value, dict):
            rows += [(f"{key}.{name}", item) for name, item in value.items() if item is not None]
        elif value is not None:
            rows.append((key, value))
    return rows


def stage_rows(stages: dict[str, Any], *, released: bool) -> list[tuple[str, float | None, str]]:
    """(stage, seconds, when it ended); without the report itself, which must not depend on when it was written."""
    names = [name for name in STAGES if name in stages and name != "report" and (name != "release" or released)]
    return [
        (name, stages[name].get("seconds"), date_words(stages[name].get("finished")) or NOT_SHOWN) for name in names
    ]


def input_digests(workspace: Workspace, stages: dict[str, Any]) -> list[tuple[str, str]]:
    """The adapter's weights, the base model, the contract and the files that the pairs and probes were read from."""
    inputs = stages.get("read", {}).get("inputs", {})
    weights = [(file, sha) for file, sha in _written(stages) if file.endswith(".safetensors")]
    model = [("base model", inputs["model"])] if inputs.get("model") else []
    contract = [(workspace.contract_file.name, file_sha256(workspace.contract_file))]
    files = [(short_name(name), sha) for name, sha in (inputs.get("files") or {}).items() if sha]
    return [*weights, *model, *contract, *files]


def output_digests(stages: dict[str, Any]) -> list[tuple[str, str]]:
    """What the stages wrote."""
    return [(file, sha) for file, sha in _written(stages) if not file.endswith(".safetensors")]


def _written(stages: dict[str, Any]) -> list[tuple[str, str]]:
    names = [name for name in STAGES if name not in ("report", "release")]
    return [item for name in names for item in stages.get(name, {}).get("outputs", {}).items()]


def short_name(model: str) -> str:
    """A model's name without the folders of whoever ran it; a Hub id stays whole."""
    return Path(model).name if Path(model).is_absolute() else model


def date_words(stamp: str | None) -> str | None:
    """The manifest's time stamp to the minute."""
    return stamp.replace("T", " ").removesuffix("Z")[:16] + " UTC" if stamp else None
