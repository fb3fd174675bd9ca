"""Does length alone tell chosen from rejected? Then that is what a training learns first.

Singhal et al. 2023, A Long Way to Go (arXiv:2310.03716): much of what reward models and RLHF gain is length. Park et
al. 2024, Disentangling Length from Quality in DPO (arXiv:2403.19159): DPO exaggerates even a small bias of its pairs.
The rule "the longer reply wins" is right in a pair whose chosen reply is longer; replies of one length count half, as a
coin would. A mixture may look balanced while its parts pull apart, so each source and behaviour is looked at alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from demeanor.audit.by_prompt import area_by_prompt, mean_by_prompt, prompt_keys, share_by_prompt
from demeanor.audit.check import Check, Context, Found, Scope
from demeanor.audit.linear import hits
from demeanor.records import Estimate, PreferencePair

if TYPE_CHECKING:
    from demeanor.model import ModelSource

UNITS = ("characters", "words", "tokens")
NUM_BINS = 40  # of a histogram, about
MAX_GROUPS = 50  # in the details
REMEDY = (
    "`demeanor curate` balances the lengths within each source and behaviour; or train with a length-normalised "
    "objective (simpo, ipo), which bends the bias but does not take it away"
)


def lengths(pairs: Sequence[PreferencePair], scope: Scope) -> np.ndarray:
    """A look. [pairs, 2, units] int32: length of chosen and rejected in `UNITS`; tokens only with a model."""
    texts = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
    columns = [[len(text) for text in texts], [len(text.split()) for text in texts]]
    if scope.model is not None:
        encoded = _tokenizer(scope.model, scope)(texts, add_special_tokens=False)["input_ids"]
        columns.append([len(ids) for ids in encoded])
    return np.array(columns, np.int32).T.reshape(-1, 2, len(columns)).copy()


_TOKENIZERS: dict[ModelSource, Any] = {}  # of this process


def _tokenizer(model: ModelSource, scope: Scope) -> Any:
    from demeanor.contract import build_contract
    from demeanor.model import load_tokenizer

    if model not in _TOKENIZERS:
        # replies are counted without their template, so a tokenizer that has none is as good
        plain = build_contract({"data": {"pairs": ["pairs"]}, "chat_template": "plain"})
        _TOKENIZERS[model] = load_tokenizer(model, scope.contract or plain)
    return _TOKENIZERS[model]


def _find(context: Context) -> Iterable[Found]:
    if not len(context.store):
        return
    seen, prompts = context.column(lengths), context.column(prompt_keys)
    units = UNITS[: seen.shape[2]]
    unit = units[-1] if len(units) == len(UNITS) else units[0]  # the model's own measure where it is known
    confidence, limits = context.scope.confidence, context.limits
    sizes = seen[:, :, units.index(unit)]
    differences = sizes[:, 0] - sizes[:, 1]
    groups = [(name, mask) for name, mask in context.groups() if mask.any()]
    shared = 1 - (1 - confidence) / max(len(groups) - 1, 1)  # the groups are asked at once: Bonferroni
    estimates = {
        name: share_by_prompt(hits(differences[mask]), prompts[mask], shared if name else confidence)
        for name, mask in groups
    }
    for name, mask in groups:
        severity = _severity(estimates[name], limits)
        if name and severity == "informs":
            continue  # one line for the whole; a group only where it is biased
        details: dict[str, Any] = {"histogram": _histogram(differences[mask], unit)}
        if not name:
            details["units"] = {word: _unit(seen[:, :, place], prompts, confidence) for place, word in enumerate(units)}
            largest = sorted(groups[1:], key=lambda group: -int(group[1].sum()))[:MAX_GROUPS]
            details["groups"] = [
                {"group": other, **estimates[other].to_json(), **_group(sizes[of], prompts[of], shared)}
                for other, of in largest
            ]
            if largest:
                details["table"] = _table(details["groups"], unit)
        yield Found(
            kind="longer_wins" if (estimates[name].value or 0) >= 0.5 else "shorter_wins",
            severity=severity,
            what=_sentence(differences[mask], unit, name),
            measure=f"accuracy of 'the longer reply wins', by {unit}",
            estimate=estimates[name],
            remedy=REMEDY if severity != "informs" else "none needed; a small bias still grows in training: watch it",
            group=name,
            details=details,
        )
    yield from _opposed(estimates, limits["max_opposed"])


def _severity(estimate: Estimate, limits: Any) -> str:
    """By the side of the bias: beyond the block limit with the interval beyond the warning's; or beyond the latter."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "informs"
    for value, near, warn, block in (
        (estimate.value, estimate.low, limits["max_longer_wins"], limits["block_longer_wins"]),
        (1 - estimate.value, 1 - estimate.high, 1 - limits["min_longer_wins"], 1 - limits["block_shorter_wins"]),
    ):
        if value > block and near > warn:
            return "blocks"
        if value > warn and near > 0.5:
            return "warns"
    return "informs"


def _sentence(differences: np.ndarray, unit: str, name: str) -> str:
    n, longer, same = differences.size, int((differences > 0).sum()), int((differences == 0).sum())
    mean, median = float(differences.mean()), float(np.median(differences))
    return (
        f"{'in ' + name + ' ' if name else ''}chosen is longer in {longer:,} of {n:,} pairs, shorter in "
        f"{n - longer - same:,}, as long in {same:,}; by {mean:+.1f} {unit} in the mean, {median:+.0f} in the median"
    )


def _unit(sizes: np.ndarray, prompts: np.ndarray, confidence: float) -> dict[str, Any]:
    """Of one unit: both accuracies, chosen - rejected in the mean, and the mean lengths."""
    wins = share_by_prompt(hits(sizes[:, 0] - sizes[:, 1]), prompts, confidence)
    area = area_by_prompt(sizes[:, 0], sizes[:, 1], prompts, confidence)
    difference = mean_by_prompt(sizes[:, 0] - sizes[:, 1], prompts, confidence)
    means = {"chosen": float(sizes[:, 0].mean()), "rejected": float(sizes[:, 1].mean())}
    found = {"longer_wins": wins.to_json(), "area_under_curve": area.to_json(), "difference": difference.to_json()}
    return {**found, "mean_length": means}


def _group(sizes: np.ndarray, prompts: np.ndarray, confidence: float) -> dict[str, Any]:
    """Of a source or behaviour, beside its accuracy: how often, by how much, and the area under the curve."""
    differences = sizes[:, 0] - sizes[:, 1]
    return {
        "longer": int((differences > 0).sum()),
        "shorter": int((differences < 0).sum()),
        "median_difference": float(np.median(differences)),
        "difference": mean_by_prompt(differences, prompts, confidence).to_json(),
        "area_under_curve": area_by_prompt(sizes[:, 0], sizes[:, 1], prompts, confidence).to_json(),
    }


def _table(groups: Sequence[dict[str, Any]], unit: str) -> dict[str, Any]:
    """The groups' figures in words, a row each."""
    columns = ["", "pairs", "chosen longer", "shorter", "longer wins", "area under the curve", f"longer by, {unit}"]
    rows = [
        [group["group"], *(f"{group[name]:,}" for name in ("n", "longer", "shorter")), _spelt(group, ".2f"),
         _spelt(group["area_under_curve"], ".2f"), _spelt(group["difference"], "+.1f")]
        for group in groups
    ]  # fmt: skip
    return {"columns": columns, "rows": rows}


def _spelt(estimate: dict[str, Any], form: str) -> str:
    value, ends = format(estimate["value"], form), [estimate["low"], estimate["high"]]
    return value if None in ends else f"{value} [{', '.join(format(end, form) for end in ends)}]"


def _histogram(differences: np.ndarray, unit: str) -> dict[str, Any]:
    """Of the differences: bins about 0, of as many integers each; the outer ones hold what lies beyond as well."""
    end = float(np.quantile(np.abs(differences), 0.99))
    width = 2 * int(end / NUM_BINS) + 1
    count = 2 * int(np.ceil(max(end - width / 2, 0) / width)) + 1
    reach = count * width / 2
    counts, edges = np.histogram(np.clip(differences, -reach, reach), count, (-reach, reach))
    return {"edges": edges.tolist(), "counts": counts.tolist(), "unit": f"chosen - rejected, {unit}", "mark": 0}


def _opposed(estimates: dict[str, Estimate], reach: float) -> Iterable[Found]:
    """Groups of one kind that pull in different directions, each beyond chance."""
    for kind in ("source", "behaviour"):
        own = {name: estimate for name, estimate in estimates.items() if name.startswith(f"{kind} ")}
        up = [name for name, e in own.items() if _end(e.low, 0) > 0.5 and _end(e.value, 0) > 0.5 + reach]
        down = [name for name, e in own.items() if _end(e.high, 1) < 0.5 and _end(e.value, 1) < 0.5 - reach]
        if not (up and down):
            continue
        most, least = max(up, key=lambda name: own[name].value or 0), min(down, key=lambda name: own[name].value or 0)
        yield Found(
            kind=f"opposed_{kind}s",
            severity="warns",
            what=(
                f"{kind}s pull in opposite directions, which the whole ({estimates[''].value:.2f}) hides: the longer "
                f"reply wins in {', '.join(_said(name, own) for name in up[:3])}, the shorter in "
                f"{', '.join(_said(name, own) for name in down[:3])}"
            ),
            measure=f"accuracy of 'the longer reply wins' in {most} minus that in {least}",
            estimate=_difference(own[most], own[least]),
            remedy="balance each source and behaviour alone (`demeanor curate` does): a model tells them apart",
            details={
                "bars": [[name.split(" ", 1)[1], _end(own[name].value, 0.5) - 0.5] for name in (*up, *down)],
                "unit": "accuracy of 'the longer reply wins' less one half",
            },
        )


def _end(value: float | None, unknown: float) -> float:
    return unknown if value is None else value


def _said(name: str, estimates: dict[str, Estimate]) -> str:
    return f"{name.split(' ', 1)[1] or 'none named'} ({estimates[name].value:.2f})"


def _difference(one: Estimate, other: Estimate) -> Estimate:
    """Of two independent shares, with Newcombe's (1998) hybrid interval, from their own intervals."""
    p, low, high = _end(one.value, 0), _end(one.low, 0), _end(one.high, 1)
    q, other_low, other_high = _end(other.value, 0), _end(other.low, 0), _end(other.high, 1)
    below, above = float(np.hypot(p - low, other_high - q)), float(np.hypot(high - p, q - other_low))
    return Estimate(p - q, p - q - below, p - q + above, one.n + other.n)


CHECK = Check(
    name="length",
    about="whether the longer, or the shorter, reply wins",
    kinds=("longer_wins", "shorter_wins", "opposed_sources", "opposed_behaviours"),
    find=_find,
    looks=(lengths, prompt_keys),
    limits={
        "max_longer_wins": (0.6, "accuracy of 'the longer reply wins' above which it warns"),
        "min_longer_wins": (0.4, "the same below which it warns"),
        "block_longer_wins": (0.75, "accuracy above which it blocks"),
        "block_shorter_wins": (0.25, "accuracy below which it blocks"),
        "max_opposed": (0.05, "distance from one half at which groups of opposite directions are named"),
    },
)
