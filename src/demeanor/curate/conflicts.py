"""Conflicts: one prompt, A preferred over B here and B over A there, or A over B over C over A.

The replies to a prompt are the nodes of a graph, and each preference is an edge from the better to the worse reply,
whose support is the sum of its pairs' confidences (1 where a pair states none), so that two annotators outweigh one. Of
two opposite edges the weaker is dropped, and of equal ones both; what is left of the stronger counts as its support.
Then, as long as there is a cycle, the least supported edges of each strongly connected component are dropped: all of
them, where none is weaker than another. Neither rule depends on the order of the pairs.
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
    while cyclic := _components(left):
        for component in cyclic:
            least = min(left[edge] for edge in component)
            for edge in component:
                if left[edge] == least:
                    del left[edge]
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
    return [edge for component in _components(edges) for edge in component]


def _components(edges: dict[Edge, float]) -> list[list[Edge]]:
    """The edges within each strongly connected component of more than one reply."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    numbers = {reply: number for number, reply in enumerate(dict.fromkeys(reply for edge in edges for reply in edge))}
    if not numbers:
        return []
    ends = np.array([[numbers[better], numbers[worse]] for better, worse in edges])
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(len(numbers), len(numbers))).tocsr()
    _, labels = connected_components(graph, connection="strong")
    found: dict[int, list[Edge]] = defaultdict(list)
    for edge, (better, worse) in zip(edges, ends, strict=True):
        if labels[better] == labels[worse]:
            found[int(labels[better])].append(edge)
    return list(found.values())
