"""Conflicts: one prompt, A preferred over B here and B over A there, or A over B over C over A.

The replies to a prompt are the nodes of a graph, and each preference is an edge from the better to the worse reply,
whose support is the sum of its pairs' confidences (1 where a pair states none), so that two annotators outweigh one. Of
two opposite edges the weaker is dropped, and of equal ones both; what is left of the stronger counts as its support.
Then, as long as there is a cycle, the least supported edges of each strongly connected component are dropped: all of
them, where none is weaker than another. Neither rule depends on the order of the pairs.

An edge of support w is dropped so exactly when it lies on a cycle of edges of w or more: none of these goes before it
does, and while it is the least of a component, all others there have w or more. So edges are sought whose ends are
strongly connected by the edges of at least their own support, and for all edges at once by bisection over the supports.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from demeanor.curate.traits import Traits

Edge = tuple[int, int]  # better, worse reply


def conflicting(traits: Traits, *, resolve: bool = True) -> dict[int, str]:
    """Pairs to drop: place -> why, in a few words.

    Args:
        resolve: keep the better supported side; else all pairs of a conflict are dropped.
    """
    found: dict[int, str] = {}
    for places in _prompts_with_conflicts(traits):
        edges: dict[Edge, float] = defaultdict(float)
        for place in places:
            edges[_edge(traits, place)] += float(traits.weight[place])
        dropped = weakest(edges) if resolve else dict.fromkeys(_on_cycles(edges), "contradicted")
        for place in places:
            if why := dropped.get(_edge(traits, place)):
                found[place] = why
    return found


def weakest(edges: dict[Edge, float]) -> dict[Edge, str]:
    """The edges to drop so that no cycle is left: edge -> why."""
    dropped: dict[Edge, str] = {}
    left = dict(edges)
    for (better, worse), support in edges.items():
        against = edges.get((worse, better))
        if against is not None and support <= against:
            left.pop((better, worse), None)
            dropped[better, worse] = f"support {support:g} against {against:g}"
        elif against is not None:
            left[better, worse] = support - against
    for edge in _least_of_cycles(left):
        dropped[edge] = f"the least support of a cycle of preferences, {edges[edge]:g}"
    return dropped


def _edge(traits: Traits, place: int) -> Edge:
    return int(traits.chosen[place]), int(traits.rejected[place])


def _prompts_with_conflicts(traits: Traits) -> Iterator[list[int]]:
    """The places of the pairs of each prompt of which a reply is chosen in one pair and rejected in another."""
    order = np.argsort(traits.prompt, kind="stable")
    prompts = traits.prompt[order]
    starts = np.flatnonzero(np.r_[True, prompts[1:] != prompts[:-1]]) if len(order) else np.empty(0, np.int64)
    for start, stop in zip(starts, np.r_[starts[1:], len(order)], strict=True):
        if stop - start > 1:
            places = order[start:stop]
            differ = places[traits.chosen[places] != traits.rejected[places]]
            if np.isin(traits.chosen[differ], traits.rejected[differ]).any():
                yield differ.tolist()


def _on_cycles(edges: dict[Edge, float]) -> list[Edge]:
    """The edges whose two ends are strongly connected."""
    labels = _connected(_ends(edges))
    return [edge for edge, (better, worse) in zip(edges, labels, strict=True) if better == worse]


def _least_of_cycles(edges: dict[Edge, float]) -> list[Edge]:
    """The edges that lie on a cycle of edges of at least their own support.

    With edges added from the best supported on, the ends of each are connected from some rank on, which lies in
    [low, high]; each round halves all these intervals at once. Edges of one interval are a graph of its own, in which
    what was connected before `low` is one node; so a round looks at each edge once, and there are log2(ranks) rounds.
    """
    ends, size = _ends(edges), 2 * len(edges)
    supports, rank = np.unique(-np.array(list(edges.values())), return_inverse=True)
    low, high = np.zeros(len(ends), np.int64), np.full(len(ends), len(supports))  # the last stands for never
    while len(open_ := np.flatnonzero(low < high)):
        middle = (low + high)[open_] // 2
        labels = _connected(low[open_, None] * size + ends[open_], rank[open_] <= middle)
        same = labels[:, 0] == labels[:, 1]
        high[open_[same]] = middle[same]
        low[open_[~same]], ends[open_[~same]] = middle[~same] + 1, labels[~same]
        beyond = same & (rank[open_] > middle)  # connected before it is added itself: no part of how others are
        low[open_[beyond]] = high[open_[beyond]]
    return [edge for edge, found in zip(edges, high <= rank, strict=True) if found]


def _ends(edges: dict[Edge, float]) -> np.ndarray:
    """[edges, 2] int64: numbers of the replies."""
    return np.unique(np.array(list(edges), np.uint64), return_inverse=True)[1].reshape(-1, 2)


def _connected(ends: np.ndarray, used: np.ndarray | None = None) -> np.ndarray:
    """[edges, 2]: the strongly connected component of both ends of each edge, in the graph of the edges `used`."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    names, numbers = np.unique(ends, return_inverse=True)
    numbers = numbers.reshape(-1, 2)
    better, worse = (numbers if used is None else numbers[used]).T
    graph = coo_array((np.ones(len(better)), (better, worse)), shape=(len(names), len(names)))
    return np.asarray(connected_components(graph.tocsr(), connection="strong")[1][numbers])
