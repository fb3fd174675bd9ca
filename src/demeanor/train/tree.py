"""Prefix trees: sequences that share a beginning are laid out once.

The tokens of a tree lie in depth-first order. Position ids follow the path from the root, and token q sees token k
exactly when k lies on q's path, which in depth-first order is `k <= q < end[k]` with `end[k]` one past k's subtree.
Several trees fill one row; a token never sees another tree, because its path holds none of it. The rows need no
padding and give every sequence the log-probabilities that it has alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class TokenTree:
    """One tree. All lists have one entry a token, in depth-first order.

    `paths[i]` holds the places of the i-th continuation's tokens; the place before its first is `trunk - 1`.
    """

    tokens: list[int]
    parents: list[int]  # place of the token before it on its path; -1 at the root
    positions: list[int]  # distance from the root
    ends: list[int]  # one past the last place of its subtree
    paths: list[list[int]]
    trunk: int  # length of the prefix that all continuations share

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def depth(self) -> int:
        """Length of the longest path, tokens."""
        return max(self.positions) + 1


def build_tree(prefix: Sequence[int], continuations: Sequence[Sequence[int]]) -> TokenTree:
    """The tree of `prefix` followed by each continuation; shared beginnings of continuations are merged too.

    Args:
        prefix: token ids, at least one.
        continuations: token ids, each at least one.

    Raises:
        ValueError: the prefix or a continuation is empty.
    """
    if not prefix or not all(continuations):
        raise ValueError("a tree needs a prefix and continuations of at least one token")
    children: list[dict[int, int]] = [{} for _ in prefix]
    tokens = list(prefix)
    parents = list(range(-1, len(prefix) - 1))
    raw_paths: list[list[int]] = []
    for continuation in continuations:
        node, path = len(prefix) - 1, []
        for token in continuation:
            if token not in children[node]:
                children[node][token] = len(tokens)
                tokens.append(token)
                parents.append(node)
                children.append({})
            node = children[node][token]
            path.append(node)
        raw_paths.append(path)

    order: list[int] = list(range(len(prefix)))  # node ids in depth-first order
    stack = list(reversed(children[len(prefix) - 1].values()))
    while stack:
        node = stack.pop()
        order.append(node)
        stack.extend(reversed(children[node].values()))
    place = {node: index for index, node in enumerate(order)}

    laid_parents = [-1 if parents[node] < 0 else place[parents[node]] for node in order]
    positions = [0] * len(order)
    for index, parent in enumerate(laid_parents):
        positions[index] = positions[parent] + 1 if parent >= 0 else 0
    ends = list(range(1, len(order) + 1))
    for index in range(len(order) - 1, 0, -1):
        ends[laid_parents[index]] = max(ends[laid_parents[index]], ends[index])
    paths = [[place[node] for node in path] for path in raw_paths]
    return TokenTree([tokens[node] for node in order], laid_parents, positions, ends, paths, len(prefix))


@dataclass(frozen=True, slots=True)
class Row:
    """Trees side by side in one row of the model; `offsets[i]` is where the i-th begins."""

    trees: list[TokenTree]
    offsets: list[int]

    def __len__(self) -> int:
        return self.offsets[-1] + len(self.trees[-1])

    def tensors(self, device: torch.device | str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
        """`input_ids` and `position_ids`, both of shape [1, L]."""
        import torch

        tokens = [token for tree in self.trees for token in tree.tokens]
        positions = [position for tree in self.trees for position in tree.positions]
        return torch.tensor([tokens], device=device), torch.tensor([positions], device=device)

    def mask(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> torch.Tensor:
        """Additive attention mask [1, 1, L, L]: 0 where row q may see column k, else the dtype's lowest value."""
        import torch

        ends = [offset + end for tree, offset in zip(self.trees, self.offsets, strict=True) for end in tree.ends]
        place = torch.arange(len(self), device=device)
        sees = (place[None, :] <= place[:, None]) & (place[:, None] < torch.tensor(ends, device=device)[None, :])
        mask = torch.full((len(self), len(self)), torch.finfo(dtype).min, dtype=dtype, device=device)
        return mask.masked_fill_(sees, 0.0)[None, None]


def pack_rows(trees: Iterable[TokenTree], budget: int) -> list[Row]:
    """Put the trees, in order, into rows of at most `budget` tokens; a longer tree gets a row of its own."""
    rows: list[Row] = []
    current: list[TokenTree] = []
    used = 0
    for tree in trees:
        if current and used + len(tree) > budget:
            rows.append(_row(current))
            current, used = [], 0
        current.append(tree)
        used += len(tree)
    if current:
        rows.append(_row(current))
    return rows


def _row(trees: list[TokenTree]) -> Row:
    offsets, place = [], 0
    for tree in trees:
        offsets.append(place)
        place += len(tree)
    return Row(trees, offsets)
