"""What stands there more than once: it weighs more than it should, and it leaks from a training into what is held out.

Equal are texts that differ in white space only (prompts also in capitals), near those whose word 3-grams have at least
the Jaccard index of the limit: .8 for pairs, of which one is as good as both (Lee et al. 2022, Deduplicating Training
Data Makes Language Models Better, take it for documents), .5 for prompts, which are to be held out together. A pair is
near another when their prompts are, and so are their replies taken together. Of every group of such pairs the first is
not counted.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from demeanor.audit.check import Check, Context, Found
from demeanor.audit.near import clusters, exact_jaccard, near_duplicates
from demeanor.audit.shingles import Shingles, mixed
from demeanor.audit.texts import digests, pair_shingles, prompt_shingles
from demeanor.records import Estimate
from demeanor.statistics import estimate_share


def _find(context: Context) -> Iterable[Found]:
    prompt, chosen, rejected = (context.column(digests, name) for name in ("prompt", "chosen", "rejected"))
    num, threshold, seed = len(context.store), context.limits["near"], context.scope.seed
    if not num:
        return
    again = _later(mixed(mixed(prompt) ^ chosen) ^ rejected)
    if again.any():
        yield Found(
            kind="pairs_repeated",
            severity=_severity(again, context, "max_repeated"),
            what=f"{_count(again)} pairs repeat an earlier one",
            measure="share of pairs that an earlier one equals",
            estimate=_share(again, context),
            remedy="keep one of each (`demeanor curate`); state how sure a label is as its confidence",
            pairs=np.flatnonzero(again),
        )
    prompts = Shingles.join(context.seen[prompt_shingles])
    near = _near_pairs(Shingles.join(context.seen[pair_shingles]), prompts, threshold, seed)
    near[again] = False
    if near.any():
        yield Found(
            kind="pairs_nearly_repeated",
            severity=_severity(near, context, "max_repeated"),
            what=f"{_count(near)} more pairs repeat an earlier one in nearly the same words",
            measure=f"share of pairs whose texts are near an earlier pair's (3-gram Jaccard >= {threshold:g})",
            estimate=_share(near, context),
            remedy="keep one of each (`demeanor curate`), and split so that both sides never meet",
            pairs=np.flatnonzero(near),
        )
    yield from _prompts(context, prompt, prompts)
    yield from _both_ways(context, prompt, chosen, rejected)


def _prompts(context: Context, prompt: np.ndarray, shingles: Shingles) -> Iterable[Found]:
    repeated = _later(prompt)
    if repeated.any():
        _, counts = np.unique(prompt, return_counts=True)
        yield Found(
            kind="prompts_repeated",
            severity="informs",
            what=f"{_count(repeated)} pairs have the prompt of an earlier one: {_count(counts > 1)} prompts come more "
            f"than once, at most {counts.max():,} times",
            measure="share of pairs whose prompt an earlier pair has",
            estimate=_share(repeated, context),
            remedy="keep pairs of one prompt on one side of the split; intervals should resample prompts, not pairs",
            pairs=np.flatnonzero(repeated),
        )
    threshold = context.limits["near_prompts"]
    pairs, _ = near_duplicates(shingles, threshold, seed=context.scope.seed)
    near = _later(clusters(len(prompt), pairs)) & ~repeated
    if near.any():
        yield Found(
            kind="prompts_nearly_repeated",
            severity="informs",
            what=f"{_count(near)} more pairs have a prompt that is nearly an earlier one's",
            measure=f"share of pairs in a cluster of prompts with an earlier one (3-gram Jaccard >= {threshold:g})",
            estimate=_share(near, context),
            remedy="split by clusters of prompts (`demeanor curate`), or what is held out has been seen",
            pairs=np.flatnonzero(near),
        )


def _both_ways(context: Context, prompt: np.ndarray, chosen: np.ndarray, rejected: np.ndarray) -> Iterable[Found]:
    """Replies that win in one pair and lose in another; under one prompt that is a ranking, else a contradiction."""
    _, once = np.unique(mixed(prompt) ^ rejected, return_index=True)
    lost, prompts_lost = np.unique(rejected[once], return_counts=True)
    place = np.minimum(np.searchsorted(lost, chosen), len(lost) - 1)
    times = np.where(lost[place] == chosen, prompts_lost[place], 0)  # prompts under which this chosen reply lost
    ranked = np.isin(mixed(prompt) ^ chosen, mixed(prompt) ^ rejected)
    elsewhere = times > ranked
    both = elsewhere | ranked
    if both.any():
        yield Found(
            kind="chosen_rejected_elsewhere",
            severity=_severity(elsewhere, context, "max_both_ways"),
            what=f"in {_count(both)} pairs the chosen reply is another pair's rejected one, {_count(elsewhere)} of "
            "them under another prompt",
            measure="share of pairs whose chosen reply is another pair's rejected one",
            estimate=_share(both, context),
            remedy="a reply that fits any prompt teaches little by winning here and losing there: take such pairs out, "
            "or see that the prompt decides",
            pairs=np.flatnonzero(both),
        )


def _near_pairs(whole: Shingles, prompts: Shingles, threshold: float, seed: int) -> np.ndarray:
    """[pairs] bool: there is an earlier pair near it.

    If prompts, and replies, each have a Jaccard index of t or more, so have both together. Of those that have, the
    replies' index follows from the sizes, |A and B| = J (|A| + |B|) / (1 + J).
    """
    pairs, jaccard = near_duplicates(whole, threshold, seed=seed)
    i, j = pairs[:, 0], pairs[:, 1]
    prompt_jaccard = exact_jaccard(prompts, i, prompts, j)
    all_sizes, prompt_sizes = whole.sizes[i] + whole.sizes[j], prompts.sizes[i] + prompts.sizes[j]
    common = np.rint(jaccard * all_sizes / (1 + jaccard))
    common_prompt = np.rint(prompt_jaccard * prompt_sizes / (1 + prompt_jaccard))
    different = (all_sizes - common) - (prompt_sizes - common_prompt)
    near = (prompt_jaccard >= threshold) & (common - common_prompt >= threshold * different)
    return _later(clusters(len(whole), pairs[near]))


def _later(groups: np.ndarray) -> np.ndarray:
    """[pairs] bool: an earlier one is in the same group."""
    found = np.ones(len(groups), bool)
    found[np.unique(groups, return_index=True)[1]] = False
    return found


def _count(mask: np.ndarray) -> str:
    return f"{int(mask.sum()):,}"


def _share(mask: np.ndarray, context: Context) -> Estimate:
    return estimate_share(int(mask.sum()), len(mask), context.scope.confidence)


def _severity(mask: np.ndarray, context: Context, limit: str) -> str:
    return "warns" if mask.mean() > context.limits[limit] else "informs"


CHECK = Check(
    name="duplicates",
    about="pairs, prompts and replies that come more than once",
    kinds=(
        "pairs_repeated",
        "pairs_nearly_repeated",
        "prompts_repeated",
        "prompts_nearly_repeated",
        "chosen_rejected_elsewhere",
    ),
    find=_find,
    looks=(digests, prompt_shingles, pair_shingles),
    limits={
        "near": (0.8, "Jaccard index of word 3-grams from which pairs are near-duplicates"),
        "near_prompts": (0.5, "the same of prompts"),
        "max_repeated": (0.01, "share of pairs that may repeat an earlier one"),
        "max_both_ways": (0.05, "share of pairs whose chosen reply may lose under another prompt"),
    },
    bounds={"near": (0, 1), "near_prompts": (0, 1)},
)
