"""Attention for rows of prefix trees (`tree.py`), registered with transformers under the name "tree".

A forward pass that is given `tree=TreeAttention(row)` gets, by what the machine has,

- on a CPU: one call of the flash kernel for each segment with itself (causal), and one for each segment that branches
  with all that lies below it (no mask). The parts are put together by their log-sum-exp: with o_i, l_i the output and
  log-sum-exp of part i, l = log sum exp l_i and o = sum exp(l_i - l) o_i. The backward pass goes part by part too, with
  the whole's o and l, as in ring attention (Liu et al. 2023). No mask is built and no invisible key is looked at.
- on CUDA: FlexAttention with a block mask, compiled once for all lengths.
- else, or where a row has many tiny segments: the plain kernel with a dense mask.

Without `tree` it is transformers' "sdpa".
"""

from __future__ import annotations

from functools import cache, cached_property
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from demeanor.train.tree import Row, Segment

NAME = "tree"
SMALL_SEGMENT = 24  # tokens on average; below, the calls of a kernel for each segment cost more than a dense mask
BLOCK = 128  # queries whose scores are held at a time in the backward pass
DENSE_LIMIT = 2048  # tokens; no dense mask for a longer row


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
        self.calls = 0  # of layers that asked for it
        self.kind = kind or choose_kind(row, device)
        self._masks: dict[torch.dtype, torch.Tensor] = {}

    def mask(self, dtype: torch.dtype) -> torch.Tensor:
        if dtype not in self._masks:
            self._masks[dtype] = self.row.mask(dtype, self.device)
        return self._masks[dtype]

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
    bushy = len(row) < SMALL_SEGMENT * len(row.segments)
    return "dense" if kind == "segments" and bushy and len(row) <= DENSE_LIMIT else kind


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
    if tree.kind == "segments":
        scale = scaling if scaling is not None else query.shape[-1] ** -0.5
        apply: Any = SegmentAttention.apply
        return apply(query, key, value, tree.row.segments, scale), None
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
    """Exact attention of one row, segment by segment: [1, H, L, D] and [1, H_kv, L, D] -> [1, L, H, D]."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: tuple[Segment, ...], scale: float
    ) -> torch.Tensor:
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        _, heads, length, width = q.shape
        out = q.new_empty(1, length, heads, width).transpose(1, 2)
        lse = q.new_empty(1, length, heads, dtype=torch.float32).transpose(1, 2)
        for a, b in ((s.start, s.end) for s in segments):
            own, own_lse = flash(q[:, :, a:b], k[:, :, a:b], v[:, :, a:b], 0.0, True, scale=scale)
            out[:, :, a:b], lse[:, :, a:b] = own, own_lse
        for a, b, stop in ((s.start, s.end, s.stop) for s in segments if s.branches):
            part, part_lse = flash(q[:, :, b:stop], k[:, :, a:b], v[:, :, a:b], 0.0, False, scale=scale)
            old, old_lse = out[:, :, b:stop], lse[:, :, b:stop]
            new_lse = torch.logaddexp(old_lse, part_lse)
            share = (part_lse - new_lse).exp_()[..., None]
            out[:, :, b:stop] = torch.lerp(old.float(), part.float(), share)
            lse[:, :, b:stop] = new_lse
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.segments, ctx.scale = segments, scale
        return out.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        grad = grad.transpose(1, 2)
        delta = (grad.float() * out.float()).sum(dim=-1)
        parts = _ByKeyHead(q[0], k[0], v[0], grad[0], lse[0], delta[0], ctx.scale)
        for s in ctx.segments:
            for a in range(s.start, s.end, BLOCK):  # causal: a block of queries sees the segment up to its own end
                b = min(a + BLOCK, s.end)
                parts.add(a, b, s.start, b, causal=True)
        for s in ctx.segments:
            for a in range(s.end, s.stop, BLOCK):  # what lies below the segment sees all of it
                parts.add(a, min(a + BLOCK, s.stop), s.start, s.end, causal=False)
        return *(x[None] for x in parts.result(q.dtype)), None, None


class _ByKeyHead:
    """The backward pass of attention's parts, with the query heads of one key head side by side (grouped-query
    attention). With P = exp(scale q k^T - lse) and delta = sum(dO o): dV = P^T dO, dS = P (dO v^T - delta),
    dQ = scale dS k, dK = scale dS^T q (Dao 2023).

    All in float32: torch's bfloat16 kernel for it took a third of a training step on pairs of a hundred tokens, and
    bfloat16 products of ever new shapes are slow on a CPU, because a kernel is made (and kept) for each.
    """

    def __init__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        grad: torch.Tensor,
        lse: torch.Tensor,
        delta: torch.Tensor,
        scale: float,
    ) -> None:
        heads = len(k)
        self.q, self.grad = (x.float().reshape(heads, -1, *x.shape[1:]) for x in (q, grad))  # [H_kv, G, L, D]
        self.lse, self.delta = (x.reshape(heads, -1, x.shape[1], 1) for x in (lse, delta))  # [H_kv, G, L, 1]
        self.k, self.v, self.scale = k.float(), v.float(), scale  # [H_kv, L, D]
        self.q = self.q * scale  # not in place: in float32 it is the caller's
        self.dq = torch.zeros_like(self.q)
        self.dk, self.dv = torch.zeros_like(self.k), torch.zeros_like(self.v)

    def add(self, a: int, b: int, start: int, end: int, *, causal: bool) -> None:
        """Add what the queries a to b and the keys start to end give to the gradients."""
        heads, group, _, width = self.q.shape

        def rows(x: torch.Tensor) -> torch.Tensor:
            return x[:, :, a:b].reshape(heads, group * (b - a), -1)

        k, v, q, grad = self.k[:, start:end], self.v[:, start:end], rows(self.q), rows(self.grad)
        p = torch.bmm(q, k.transpose(1, 2)).sub_(rows(self.lse)).exp_()
        if causal:
            p.view(heads, group, b - a, -1).tril_(diagonal=end - start - (b - a))
        ds = torch.bmm(grad, v.transpose(1, 2)).sub_(rows(self.delta)).mul_(p)
        self.dv[:, start:end] += torch.bmm(p.transpose(1, 2), grad)
        self.dk[:, start:end] += torch.bmm(ds.transpose(1, 2), q)
        self.dq[:, :, a:b] += torch.bmm(ds, k).view(heads, group, b - a, width)

    def result(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """dQ [H, L, D], dK, dV [H_kv, L, D]."""
        return (self.dq.mul_(self.scale).flatten(0, 1).to(dtype), self.dk.to(dtype), self.dv.to(dtype))


def register() -> None:
    """Make the name known to transformers; doing it again is harmless."""
    AttentionInterface.register(NAME, tree_attention_forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
