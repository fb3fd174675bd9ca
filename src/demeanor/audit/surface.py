"""Do surface features tell chosen from rejected? What is easy to see is learned before what is meant.

A cross-validated linear model (`linear.py`) on the differences of marks, forms, word classes and openings
(`features.py`), length taken out. A shortcut may be the behaviour itself: politeness words are what a tone is made of.
So it warns and asks, and blocks only by a limit of the contract's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from demeanor.audit import features
from demeanor.audit.by_prompt import folds_by_prompt, prompt_keys, share_by_prompt
from demeanor.audit.check import Check, Context, Found
from demeanor.audit.linear import fit, hits, out_of_fold
from demeanor.records import Estimate

L2 = 10.0  # on columns of mean square 1
MIN_PROMPTS = 20  # below this nothing is said
NUM_FEATURES = 10
MIN_OWN_PROMPTS = 100  # of a source or behaviour, for a model of its own
MAX_GROUPS = 50
REMEDY = (
    "if these features are the behaviour itself, all is well: add pairs in which they go the other way only where they "
    "are not; if not, rewrite replies so that chosen and rejected share them"
)
MEASURE = "accuracy of the surface model on prompts it was not fitted to"


def _find(context: Context) -> Iterable[Found]:
    prompts, confidence = context.column(prompt_keys), context.scope.confidence
    num_prompts = np.unique(prompts).size
    if num_prompts < MIN_PROMPTS:
        what = f"{num_prompts} different prompts are too few to tell whether surface features give the label away"
        nothing = Estimate(None, None, None, len(context.store))
        yield Found("too_few", "informs", what, MEASURE, nothing, f"give pairs of at least {MIN_PROMPTS} prompts")
        return
    columns, differences = features.design(context)
    folds = folds_by_prompt(prompts, context.scope.seed)
    length = share_by_prompt(hits(out_of_fold(_sizes(context), folds, L2)), prompts, confidence)
    accuracy = share_by_prompt(hits(out_of_fold(differences, folds, L2)), prompts, confidence)
    carriers = _carriers(context, columns, differences)
    groups = _groups(context, prompts)
    shared = 1 - (1 - confidence) / max(len(groups), 1)  # the groups are asked at once: Bonferroni
    own = {
        name: share_by_prompt(hits(out_of_fold(differences[mask], folds[mask], L2)), prompts[mask], shared)
        for name, mask in groups
    }
    severity = _severity(accuracy, context)
    details = {"length_alone": length.to_json(), "groups": {name: share.to_json() for name, share in own.items()}}
    told = f" (length alone in {length.value:.0%})"
    yield _found("shortcut", "", severity, accuracy, told, carriers, details)
    if severity != "informs":
        return
    for name, mask in groups:  # shortcuts that point in opposite directions cancel out in the whole
        if (severity := _severity(own[name], context)) != "informs":
            told = f", in {name} alone; in the whole it does not show ({accuracy.value:.0%})"
            found = _carriers(context, columns, differences[mask])
            yield _found("hidden_shortcut", name, severity, own[name], told, found, {})


def _groups(context: Context, prompts: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """The largest sources and behaviours that are large enough for a model of their own."""
    known = [group for group in context.groups()[1:] if np.unique(prompts[group[1]]).size >= MIN_OWN_PROMPTS]
    return sorted(known, key=lambda group: -int(group[1].sum()))[:MAX_GROUPS]


def _severity(accuracy: Estimate, context: Context) -> str:
    if (accuracy.value or 0) <= context.limits["max_accuracy"] or (accuracy.low or 0) <= 0.5:
        return "informs"
    return "blocks" if (accuracy.low or 0) > context.limits["block_accuracy"] else "warns"


def _found(
    kind: str, group: str, severity: str, accuracy: Estimate, told: str, carriers: list[dict[str, Any]],
    details: dict[str, Any],
) -> Found:  # fmt: skip
    sides = {side: [i["feature"] for i in carriers if i["chosen_has"] == side] for side in ("more", "less")}
    named = [f"chosen has {side} of: {', '.join(found)}" for side, found in sides.items() if found]
    what = f"surface features alone tell chosen from rejected in {accuracy.value:.0%} of the pairs{told}"
    bars = {
        "bars": [[item["feature"], item["weight"]] for item in carriers],
        "unit": "weight; above 0: chosen has more",
    }
    return Found(
        kind=kind,
        severity=severity,
        what="; ".join([what, *named]),
        measure=MEASURE,
        estimate=accuracy,
        remedy="none needed" if severity == "informs" else REMEDY,
        group=group,
        details={**details, "features": carriers, **bars},
    )


def _sizes(context: Context) -> Any:
    """[pairs, sizes] CSR: the differences in length alone, each of mean square 1."""
    from scipy.sparse import csr_matrix

    seen = context.column(features.surface)[:, len(features.NAMES) :]
    root = np.sqrt(np.square(seen, dtype=np.float64).mean(axis=0))
    return csr_matrix((seen / np.where(root > 0, root, 1)).astype(np.float32))


def _carriers(context: Context, columns: list[int | str], differences: Any) -> list[dict[str, Any]]:
    """The features that carry most of the mean margin over all pairs, which is the sum of w_j mean(d_j)."""
    weights = fit(differences, L2)
    carried = weights * np.asarray(differences.mean(axis=0)).ravel()
    total = float(carried.sum())
    best = np.argsort(-carried, kind="stable")[:NUM_FEATURES]
    return [
        {
            "feature": features.name_of(context, columns[place]),
            "weight": float(weights[place]),
            "share_of_margin": float(carried[place]) / total,
            "chosen_has": "more" if weights[place] > 0 else "less",
        }
        for place in best
        if carried[place] > 0
    ]


CHECK = Check(
    name="surface",
    about="marks, openings and kinds of words that give the label away, length left out",
    kinds=("shortcut", "hidden_shortcut", "too_few"),
    find=_find,
    looks=(features.surface, features.openings, prompt_keys),
    limits={
        "max_accuracy": (0.65, "accuracy of the surface model above which it warns"),
        "block_accuracy": (1.0, "accuracy that the whole interval must be above to block; 1 never blocks"),
    },
)
