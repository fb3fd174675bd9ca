"""Pairs that come from ranked lists: how much each counts, and which of a held-out list is a probe.

A list of n replies gives up to n (n - 1) / 2 pairs, which know no more than its order does. So a list counts as much as
one pair of its own, as in InstructGPT, whose reward model takes all comparisons of a prompt as one element of the batch
and divides by their number (Ouyang et al. 2022, arXiv 2203.02155, section 3.5).
"""

from __future__ import annotations

from collections.abc import Sequence

from demeanor.records import PreferencePair, content_id
from demeanor.tokens import TokenizedPair


def loss_weights(pairs: Sequence[PreferencePair | TokenizedPair]) -> list[float]:
    """What each pair's loss is multiplied by: 1 for a pair of its own, for one of a list its share of 1 among those of
    the list that are here; then all are scaled so that their mean is 1.

    It is the mean over all pairs, not over a batch's: in a batch that one list fills, division by the sum of the
    batch's weights would undo them. Where all weigh the same, each is exactly 1.
    """
    of_list: dict[str, float] = {}
    for pair in pairs:
        if pair.list_id is not None:
            of_list[pair.list_id] = of_list.get(pair.list_id, 0.0) + pair.weight
    shares = [1.0 if pair.list_id is None else pair.weight / of_list[pair.list_id] for pair in pairs]
    if not shares or max(shares) - min(shares) <= 1e-9 * max(shares):
        return [1.0] * len(shares)
    mean = sum(shares) / len(shares)
    return [share / mean for share in shares]


def one_of_each_list(pairs: Sequence[PreferencePair], seed: int) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """The pairs, of each list only one that a seeded hash picks; and the others. Pairs of one prompt are no independent
    probes: an interval over them would be too narrow."""
    picked: dict[str, PreferencePair] = {}
    for pair in pairs:
        if pair.list_id is not None:
            known = picked.setdefault(pair.list_id, pair)
            picked[pair.list_id] = min(known, pair, key=lambda one: content_id(seed, one.id))
    chosen = {id(pair) for pair in picked.values()}
    kept = [pair for pair in pairs if pair.list_id is None or id(pair) in chosen]
    return kept, [pair for pair in pairs if pair.list_id is not None and id(pair) not in chosen]
