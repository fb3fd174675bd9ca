"""Labels that are probably the wrong way round, and how many.

A small model (`linear.py` on tf-idf of words, `words.py`) is fitted to the other folds, so that no pair speaks for
itself, and gives each pair a margin m. Labels that are flipped at a rate e, whatever the pair, make the probability
that a label agrees with its margin level off below 1 (Bootkrajang and Kaban 2012, Label-noise robust logistic
regression):

    P(label | m) = e + (1 - 2 e) sigma(s m)

e and s are fitted by maximum likelihood over a grid, with the profile likelihood's interval for e, the number of
prompts taken as the number of draws. A pair is suspect when its label is more probably flipped than not,

    P(flipped | m) = e (1 - sigma(s m)) / P(label | m)

Confident learning (Northcutt et al. 2021, arXiv:1911.00068) counts the pairs whose other order is as probable as the
mean pair's own: its rate is in the details. It takes what a weak model does not know for noise (on hh-rlhf a third of
the pairs); here a weak model widens the interval instead. Where the base model's margin can be asked for
(`Scope.margins`), a suspect must be contradicted by it as well, provided that it knows these labels better than chance.
One small model's e is still an estimate under its own form: read it with the ranked pairs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from demeanor.audit.by_prompt import folds_by_prompt, prompt_keys, share_by_prompt
from demeanor.audit.check import Check, Context, Found
from demeanor.audit.linear import hits, out_of_fold
from demeanor.audit.words import reply_words, weighted
from demeanor.records import Estimate

L2 = 0.1  # on rows of mean square 1
MIN_PROMPTS = 50  # below this nothing is said
NUM_BINS = 250  # of the margins, for the likelihood
MAX_ASKED = 100  # suspects, and as many other pairs, whose margin the base model is asked for
MOST_RANKED = 200  # in the details
MEASURE = "rate of flipped labels"
REMEDY = "look at the ranked pairs (`demeanor review`): swap what is the wrong way round, drop what is a toss-up"


@dataclass(frozen=True)
class Flips:
    """The fitted rate with its interval, and for each pair the probability that its label is flipped."""

    rate: Estimate
    suspicion: np.ndarray  # [pairs]


def estimate_flips(margins: np.ndarray, num_prompts: int, confidence: float) -> Flips:
    """Fit e and s (see above) to out-of-fold margins.

    The rate lies in [0, 0.5]; with a model that knows nothing every rate fits, and the interval says so.
    """
    from scipy.special import expit
    from scipy.stats import chi2

    n = margins.size
    bins = np.array_split(np.sort(margins), min(NUM_BINS, n))
    centres, weights = np.array([part.mean() for part in bins]), np.array([part.size for part in bins])
    rates = 0.5 * np.linspace(0, 1, 201) ** 2  # finer towards 0
    scales = np.geomspace(0.02, 50, 121) / (np.abs(margins).mean() or 1.0)
    likelihood = np.empty((rates.size, scales.size))
    for place, scale in enumerate(scales):
        agrees = np.clip(expit(scale * centres), 1e-12, 1)
        likelihood[:, place] = np.log(rates[:, None] + (1 - 2 * rates[:, None]) * agrees) @ weights
    profile = likelihood.max(axis=1)
    best = int(profile.argmax())
    within = 2 * (profile[best] - profile) * num_prompts / n <= chi2.ppf(confidence, 1)
    rate, scale = rates[best], scales[likelihood[best].argmax()]
    agrees = expit(scale * margins)
    suspicion = rate * (1 - agrees) / np.maximum(rate + (1 - 2 * rate) * agrees, 1e-300)
    low, high = float(rates[within].min()), float(rates[within].max())
    return Flips(Estimate(float(rate), low, high, n), suspicion)


def confident_learning_rate(margins: np.ndarray) -> float | None:
    """Off-diagonal share of the confident joint. The two orders of a pair are mirror images: there is one threshold."""
    from scipy.special import expit

    own = expit(margins)
    threshold = max(0.5, float(own.mean()))
    right, wrong = int((own >= threshold).sum()), int((1 - own >= threshold).sum())
    return wrong / (right + wrong) if right + wrong else None


def _find(context: Context) -> Iterable[Found]:
    prompts, confidence = context.column(prompt_keys), context.scope.confidence
    num_prompts = np.unique(prompts).size
    if num_prompts < MIN_PROMPTS:
        what = f"{num_prompts} different prompts are too few to learn from which labels are wrong"
        nothing = Estimate(None, None, None, len(context.store))
        yield Found("too_few", "informs", what, MEASURE, nothing, f"give pairs of at least {MIN_PROMPTS} prompts")
        return
    differences = weighted(context, reply_words)
    differences.data /= np.sqrt(np.square(differences.data, dtype=np.float64).sum() / differences.shape[0]) or 1
    margins = out_of_fold(differences, folds_by_prompt(prompts, context.scope.seed), L2)
    accuracy = share_by_prompt(hits(margins), prompts, confidence)
    flips = estimate_flips(margins, num_prompts, confidence)
    rate = flips.rate
    assert rate.value is not None and rate.low is not None and rate.high is not None and accuracy.low is not None
    suspects = np.argsort(margins, kind="stable")  # as by suspicion, which is 1 for many
    suspects = suspects[flips.suspicion[suspects] >= context.limits["min_suspicion"]]
    shown = rate.low > 0 and accuracy.low > 0.5
    base, told = _ask(context, suspects)
    if base:
        suspects = np.array([place for place in base if base[place] < 0], np.int64)
    elif not shown:
        suspects = suspects[:0]  # one weak witness accuses nobody
    severity = "informs"
    if shown and rate.value > context.limits["max_noise"]:
        severity = "blocks" if rate.low > context.limits["block_noise"] else "warns"
    notes = {
        int(place): f"label flipped with probability {flips.suspicion[place]:.2f}"
        + (f"; base model's margin {base[place]:+.2f} nats a token" if base else "")
        for place in suspects
    }
    counts, edges = np.histogram(margins, 41)
    yield Found(
        kind="flipped_labels",
        severity=severity,
        what=(
            f"{suspects.size:,} of {margins.size:,} labels are probably the wrong way round, by a small model that is "
            f"right in {accuracy.value:.0%} of the pairs{told}"
            + ("" if shown else "; whether any label is wrong it cannot tell" if rate.high > 0.05 else "")
        ),
        measure=MEASURE + " (label-flip logistic model, cross-validated)",
        estimate=rate,
        remedy=REMEDY if suspects.size else "none needed" if rate.high <= 0.05 else "let a person label a sample twice",
        pairs=suspects,
        notes=notes,
        details={
            "accuracy": accuracy.to_json(),
            "confident_learning_rate": confident_learning_rate(margins),
            "ranked": _ranked(context, suspects[:MOST_RANKED], flips.suspicion, base),
            "histogram": {"edges": edges.tolist(), "counts": counts.tolist(), "unit": "margin for chosen", "mark": 0},
        },
    )


def _ranked(
    context: Context, places: np.ndarray, suspicion: np.ndarray, base: dict[int, float]
) -> list[dict[str, Any]]:
    pairs = [(int(place), context.store[int(place)]) for place in places]
    return [
        {"id": pair.id, "source": pair.source, "row": pair.row, "suspicion": float(suspicion[place]),
         "base_margin": base.get(place)}
        for place, pair in pairs
    ]  # fmt: skip


def _ask(context: Context, suspects: np.ndarray) -> tuple[dict[int, float], str]:
    """The base model's margins of the most suspect pairs, and what it is worth; none where it is no witness."""
    margins = context.scope.margins
    if margins is None or not suspects.size:
        return {}, ""
    rng = np.random.default_rng(context.scope.seed)
    others = np.setdiff1d(np.arange(len(context.store)), suspects)
    others = np.sort(rng.choice(others, min(MAX_ASKED, others.size), replace=False))
    asked = suspects[:MAX_ASKED]
    given = margins([context.store[int(place)] for place in (*others, *asked)])
    known = np.array([value for value in given[: others.size] if value is not None])
    agreement = share_by_prompt(hits(known), np.arange(known.size), context.scope.confidence)
    if agreement.low is None or agreement.low <= 0.5:
        return {}, "; the base model is no second witness: it knows these labels no better than chance"
    answers = zip(asked.tolist(), given[others.size :], strict=True)
    more = f" (the {MAX_ASKED} most suspect of {suspects.size:,} were asked about)" if suspects.size > MAX_ASKED else ""
    found = {place: value for place, value in answers if value is not None}
    return found, f" and by the base model, which agrees with {agreement.value:.0%} of the other labels{more}"


CHECK = Check(
    name="noise",
    about="labels that are probably the wrong way round, ranked, and how many",
    kinds=("flipped_labels", "too_few"),
    find=_find,
    looks=(reply_words, prompt_keys),
    limits={
        "min_suspicion": (0.5, "probability that a label is flipped from which on its pair is shown"),
        "max_noise": (0.03, "rate of flipped labels above which it warns"),
        "block_noise": (0.2, "rate that the whole interval must be above to block"),
    },
)
