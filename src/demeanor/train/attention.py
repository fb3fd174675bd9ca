"""Attention for rows of prefix trees (`tree.py`), registered with transformers under the name "tree".

A forward pass that is given `tree=TreeAttention(row)` gets, by what the machine has,

- in bfloat16 on a CPU with matrix tiles: a kernel of our own for the whole row (`native.py`).
- on another CPU: one call of torch's flash kernel with a small mask for each tree of up to 256 tokens. A longer tree
  takes one call for each segment with itself (causal), and one for each segment that branches with all that lies below
  it (no mask), so that no invisible key is looked at. These parts are put together by their log-sum-exp: with o_i, l_i
  the output and log-sum-exp of part i, l = log sum exp l_i and o = sum exp(l_i - l) o_i. The backward pass goes part by
  part too, with the whole's o and l, as in ring attention (Liu et al. 2023).
- on CUDA: FlexAttention with a block mask, compiled once for all lengths.
- else, or where a row has many tiny segments: the plain kernel with a dense mask.

Without `tree` it is transformers' "sdpa".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from demeanor.train import native
from demeanor.train.tree import Row, Segment, additive_mask

NAME = "tree"
MASKED = 256  # tokens; to look at invisible keys in a tree up to this size costs less than more calls of a kernel
SMALL_SEGMENT = 24  # tokens on average; below, the calls of a kernel for each segment cost more than a dense mask
DENSE_LIMIT = 2048  # tokens; no dense mask for a longer row


@dataclass(frozen=True, slots=True)
class Part:
    """What one call of the CPU's kernel computes: attention of the places `queries` to the places `keys`."""

    queries: slice
    keys: slice
    first: bool  # nothing has been computed for these queries yet
    causal: bool
    mask: torch.Tensor | None = None  # additive, float32


class TreeAttention:
    """What the layers share about one row. Made once a forward pass.

    Args:
        kind: `segments`, `flex` or `dense`; default by the device and the row.
        keep: [K], the places whose last hidden states are read; the last layer may leave out the others.
    """

    def __init__(
        self, row: Row, device: torch.device, kind: str | None = None, keep: torch.Tensor | None = None
    ) -> None:
        self.row = row
        self.device = device
        self.keep = keep
        self.pruned = False  # the last layer has done so
        self.calls = 0  # of layers that asked for it
        self.kind = kind or choose_kind(row, device)
        self.kind_is_free = kind is None
        self._masks: dict[torch.dtype, torch.Tensor] = {}

    def mask(self, dtype: torch.dtype) -> torch.Tensor:
        if dtype not in self._masks:
            self._masks[dtype] = self.row.mask(dtype, self.device)
        return self._masks[dtype]

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        return plan_parts(self.row)

    @cached_property
    def extents(self) -> tuple[np.ndarray, np.ndarray]:
        """[L] int32, one past the last place that sees each; [n, 2] int64, where each tree starts and ends."""
        trees = [(tree[0].start, tree[0].stop) for tree in self.row.trees()]
        return np.ascontiguousarray(self.row.stops(), dtype=np.int32), np.array(trees, dtype=np.int64)

    @cached_property
    def block_mask(self) -> Any:
        return block_mask(self.row, self.device)

    @property
    def no_mask(self) -> torch.Tensor:
        """What is handed to the model as its attention mask: four dimensions, so that it builds none itself."""
        return torch.empty(1, 1, 0, 0, device=self.device)


def choose_kind(row: Row, device: torch.device) -> str:
    """`segments`, `flex` or `dense`, by the device and the row's shape."""
    kind = main_kind(device)
    large = [tree for tree in row.trees() if _size(tree) > MASKED]
    bushy = sum(map(_size, large)) < SMALL_SEGMENT * sum(map(len, large))
    return "dense" if kind == "segments" and bushy and len(row) <= DENSE_LIMIT else kind


def plan_parts(row: Row) -> tuple[Part, ...]:
    """The calls that compute the attention of a row, those that come first for their queries before the others."""
    parts: list[Part] = []
    stops = row.stops()
    for tree in row.trees():
        whole = slice(tree[0].start, tree[0].stop)
        if len(tree) == 1:
            parts.append(Part(whole, whole, first=True, causal=True))
        elif _size(tree) <= MASKED:
            mask = additive_mask(stops[whole] - whole.start, torch.float32)
            parts.append(Part(whole, whole, first=True, causal=False, mask=mask))
        else:
            own = [slice(s.start, s.end) for s in tree]
            parts += [Part(place, place, first=True, causal=True) for place in own]
            below = [(slice(s.end, s.stop), place) for s, place in zip(tree, own, strict=True) if s.branches]
            parts += [Part(queries, keys, first=False, causal=False) for queries, keys in below]
    return tuple(parts)


def _size(tree: Sequence[Segment]) -> int:
    return tree[0].stop - tree[0].start


def main_kind(device: torch.device) -> str:
    """What long rows get on this device."""
    if device.type == "cuda":
        return "flex"
    return "segments" if device.type == "cpu" and has_cpu_kernel() else "dense"


@cache
def has_cpu_kernel() -> bool:
    """Whether this version of torch has the flash kernel for CPUs, which tells its log-sum-exp."""
    return hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")


def block_mask(row: Row, device: torch.device | str) -> Any:
    """FlexAttention's mask of the row: query q sees key k when k <= q < stop[k]."""
    from torch.nn.attention.flex_attention import create_block_mask

    stops = torch.as_tensor(row.stops(), device=device)

    def sees(batch: Any, head: Any, q: Any, k: Any) -> Any:
        return (k <= q) & (q < stops[k])

    return create_block_mask(sees, None, None, len(row), len(row), device=str(device))


def tree_attention_forward(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    tree: TreeAttention | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: query [B, H, L, D], key and value [B, H_kv, L, D] -> [B, L, H, D]."""
    if tree is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    tree.calls += 1
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None or dropout:
        raise NotImplementedError("tree attention has no soft cap, no sinks and no dropout")
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if (tree.kind == "segments" or tree.kind_is_free) and native.takes(query):
        native_attention: Any = native.NativeAttention.apply
        return native_attention(query, key, value, *tree.extents, scale), None
    if tree.kind == "segments":
        segment_attention: Any = SegmentAttention.apply
        return segment_attention(query, key, value, tree.parts, scale), None
    grouped = query.shape[1] != key.shape[1]
    if tree.kind == "flex":
        attend = _compiled_flex() if query.is_cuda else _flex()
        out = attend(query, key, value, block_mask=tree.block_mask, scale=scaling, enable_gqa=grouped)
    else:
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=tree.mask(query.dtype), scale=scaling, enable_gqa=grouped
        )
    result: torch.Tensor = out.transpose(1, 2)
    return result, None


def _flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention


@cache
def _compiled_flex() -> Any:
    return torch.compile(_flex(), dynamic=True)


class SegmentAttention(torch.autograd.Function):
    """Exact attention of one row, part by part: [1, H, L, D] and [1, H_kv, L, D] -> [1, L, H, D].

    The backward pass is in float32: with bfloat16 the kernel takes longer on trees of some hundred tokens.
    """

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, parts: tuple[Part, ...], scale: float
    ) -> torch.Tensor:
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        _, heads, length, width = q.shape
        out = q.new_empty(1, length, heads, width).transpose(1, 2)
        lse = q.new_empty(1, length, heads, dtype=torch.float32).transpose(1, 2)
        for part in parts:
            one, two = part.queries, part.keys
            new, new_lse = flash(
                q[:, :, one], k[:, :, two], v[:, :, two], 0.0, part.causal, attn_mask=part.mask, scale=scale
            )
            if not part.first:
                old, old_lse, own_lse = out[:, :, one], lse[:, :, one], new_lse
                new_lse = torch.logaddexp(old_lse, own_lse)
                new = torch.lerp(old.float(), new.float(), (own_lse - new_lse).exp_()[..., None])
            out[:, :, one], lse[:, :, one] = new, new_lse
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.parts, ctx.scale = parts, scale
        return out.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        *saved, lse = ctx.saved_tensors
        dtype = saved[0].dtype
        q, k, v, out, grad = (x.float() for x in (*saved, grad.transpose(1, 2)))
        dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
        for part in ctx.parts:
            one, two = part.queries, part.keys
            given = grad[:, :, one], q[:, :, one], k[:, :, two], v[:, :, two], out[:, :, one], lse[:, :, one]
            found = flash(*given, 0.0, part.causal, attn_mask=part.mask, scale=ctx.scale)
            for whole, own, places in zip((dq, dk, dv), found, (one, two, two), strict=True):
                if part.first:  # of its keys too: they are the queries' own places
                    whole[:, :, places] = own
                else:
                    whole[:, :, places] += own
        return dq.to(dtype), dk.to(dtype), dv.to(dtype), None, None


def register() -> None:
    """Make the name known to transformers; doing it again is harmless."""
    AttentionInterface.register(NAME, tree_attention_forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
