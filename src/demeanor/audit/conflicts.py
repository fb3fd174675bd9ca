"""Pairs that contradict each other: A over B here and B over A there, longer cycles, annotators who disagree.

The replies to one prompt are the nodes of a graph with an edge from the chosen to the rejected reply of each pair. An
edge lies on a cycle exactly when both its ends are in one strongly connected component (Tarjan 1972): no ranking of
the replies agrees with all pairs of a cycle, and a training is pulled both ways.

Where the annotators are named, and at least two judged the same two replies, their agreement is Fleiss' kappa (Fleiss
1971). With n_i judgements of item i, of which n_i1 and n_i2 prefer the one and the other reply,

    P_i = (n_i1 (n_i1 - 1) + n_i2 (n_i2 - 1)) / (n_i (n_i - 1)),   kappa = (mean P_i - P_e) / (1 - P_e)

Which reply is called the first means nothing, so each item counts in both orders; then the marginals are equal,
P_e = 1/2 and kappa = 2 mean P_i - 1: 1 when all agree, 0 by chance. The interval is a bootstrap over prompts, of the
mean of a prompt's items.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from demeanor.audit.check import Check, Context, Found
from demeanor.audit.shingles import mixed
from demeanor.audit.texts import digests
from demeanor.statistics import estimate_mean, estimate_share

RESAMPLES = 2_000


def _find(context: Context) -> Iterable[Found]:
    prompt, chosen, rejected, annotator = (
        context.column(digests, name) for name in ("prompt", "chosen", "rejected", "annotator")
    )
    if not len(prompt):
        return
    _, prompts, counts = np.unique(prompt, return_inverse=True, return_counts=True)
    several = np.flatnonzero(counts[prompts] > 1)  # only these can contradict another
    winners, losers = mixed(prompt[several]) ^ chosen[several], mixed(prompt[several]) ^ rejected[several]
    opposed, cyclic = contradictions(winners, losers)
    yield from _contradictions(context, several[opposed], several[cyclic & ~opposed])
    named = annotator[several] != 0
    if named.any():
        judged = several[named]
        yield from _agreement(context, judged, prompts[judged], winners[named], losers[named], annotator[judged])


def contradictions(winners: np.ndarray, losers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each edge, from winners[k] to losers[k] [m] uint64: is there the opposite edge; does it lie on a cycle?"""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    nodes, places = np.unique(np.concatenate([winners, losers]), return_inverse=True)
    start, end = places[: len(winners)].astype(np.int64), places[len(winners) :].astype(np.int64)
    opposed = np.isin(start * len(nodes) + end, end * len(nodes) + start)
    graph = coo_array((np.ones(len(start), np.int8), (start, end)), shape=(len(nodes), len(nodes)))
    labels = connected_components(graph, directed=True, connection="strong")[1] if len(nodes) else start
    return opposed, labels[start] == labels[end]


def _contradictions(context: Context, opposed: np.ndarray, cyclic: np.ndarray) -> Iterable[Found]:
    num, limits = len(context.store), context.limits
    for kind, places, what, measure in (
        (
            "opposed",
            opposed,
            "pairs prefer A to B where another prefers B to A for the same prompt",
            "share of pairs that another one states the other way round",
        ),
        (
            "cycles",
            cyclic,
            "more pairs lie on a cycle: A over B, B over C, C over A for the same prompt",
            "share of pairs on a longer cycle of preferences",
        ),
    ):
        if len(places):
            yield Found(
                kind=kind,
                severity="blocks" if len(places) / num > limits["max_contradicted"] else "warns",
                what=f"{len(places):,} {what}",
                measure=measure,
                estimate=estimate_share(len(places), num, context.scope.confidence),
                remedy="keep what most annotators say, or none (`demeanor curate`); give the share as the confidence",
                pairs=places,
            )


def _agreement(
    context: Context,
    places: np.ndarray,
    prompts: np.ndarray,
    winners: np.ndarray,
    losers: np.ndarray,
    annotators: np.ndarray,
) -> Iterable[Found]:
    of_prompts, kappas, disputed = fleiss_kappa(prompts, winners, losers, annotators)
    if not len(of_prompts):
        return
    confidence, least = context.scope.confidence, context.limits["min_kappa"]
    estimate = estimate_mean(
        kappas.tolist(), confidence=confidence, resamples=RESAMPLES, seed=context.scope.seed, ends=(-1.0, 1.0)
    )
    yield Found(
        kind="annotators_disagree",
        severity="warns" if (estimate.value or 0.0) < least else "informs",
        what=f"annotators judged the same replies to {len(of_prompts):,} prompts; "
        f"they do not all agree in {int(disputed.sum()):,} of the pairs",
        measure="Fleiss' kappa of the annotators, mean over prompts",
        estimate=estimate,
        remedy="give one row for each two replies, with the share of the votes as its confidence; leave out ties; "
        "sharpen the guideline where kappa is low",
        pairs=places[disputed],
    )


def fleiss_kappa(
    prompts: np.ndarray, winners: np.ndarray, losers: np.ndarray, annotators: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Agreement about the items that several annotators judged; a judgement that one gives twice counts once.

    Args:
        prompts: [m] of each judgement; an item is two replies to one of them.
        winners, losers: [m] uint64 the reply preferred, and the other.
        annotators: [m] uint64.

    Returns:
        prompts [p] with such an item, the mean of 2 P_i - 1 over the items of each [p] float64, and for each judgement
        [m] whether another annotator says the opposite.
    """
    first = winners < losers
    item = mixed(np.where(first, winners, losers)) ^ np.where(first, losers, winners)
    judgements = np.stack([item, first.astype(np.uint64), annotators], axis=1)
    _, kept = np.unique(judgements, axis=0, return_index=True)
    _, begins, items = np.unique(item, return_index=True, return_inverse=True)
    votes = np.stack([np.bincount(items[kept], first[kept] == side, len(begins)) for side in (True, False)])
    num_annotators = np.bincount(
        items[np.unique(judgements[:, ::2], axis=0, return_index=True)[1]], minlength=len(begins)
    )
    total = votes.sum(axis=0)
    shared = num_annotators > 1
    agreement = (votes * (votes - 1)).sum(axis=0)[shared] / (total * (total - 1))[shared]
    disputed = (shared & (votes.min(axis=0) > 0))[items]
    of_prompts, which = np.unique(prompts[begins[shared]], return_inverse=True)
    means = np.bincount(which, 2 * agreement - 1) / np.bincount(which) if len(which) else np.empty(0)
    return of_prompts, means, disputed


CHECK = Check(
    name="conflicts",
    about="pairs that contradict each other, and annotators who do",
    kinds=("opposed", "cycles", "annotators_disagree"),
    find=_find,
    looks=(digests,),
    limits={
        "max_contradicted": (0.05, "share of pairs that may contradict others"),
        "min_kappa": (0.4, "Fleiss' kappa of the annotators, below which their labels are noise in good part"),
    },
)
