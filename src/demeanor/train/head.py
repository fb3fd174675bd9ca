"""Log-probabilities of given tokens from hidden states, without keeping any logits for the backward pass.

With z = W h + b the gradient of log p(y) with respect to h is W^T (onehot(y) - softmax(z)). The head is frozen, so this
vector is all that the backward pass needs: it is computed in the forward pass, chunk by chunk, while the chunk's logits
are still in the processor's cache, and takes as much room as the hidden states. (TRL's head computes the logits again.)
The figures that are only shown come almost for nothing: sum_v p_v z_v = h . W^T p + b . p, and the mean logit is
h . mean(W) + mean(b).
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch

from demeanor.train import elementwise

CHUNK_ELEMENTS = 1 << 22  # logits held at a time


@dataclass(frozen=True, slots=True)
class TokenScores:
    """All of shape [N], float32 (is_top1 bool). Only `log_probs` has a gradient."""

    log_probs: torch.Tensor
    entropy: torch.Tensor
    mean_logits: torch.Tensor
    is_top1: torch.Tensor
    log_sum_sq_probs: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Head:
    """A frozen head's matrix in the precision of the products, and means of what it is made of."""

    weight: torch.Tensor  # [V, H]
    bias: torch.Tensor | None  # [V]
    mean_weight: torch.Tensor  # [H], float32
    mean_bias: torch.Tensor | float


_prepared: weakref.WeakKeyDictionary[torch.nn.Module, tuple[Any, _Head]] = weakref.WeakKeyDictionary()


def _prepare(head: Any, dtype: torch.dtype) -> _Head:
    """Made once, and again only when the head's numbers were changed."""
    weight, bias = head.weight, getattr(head, "bias", None)
    key = [(x.data_ptr(), x._version, dtype) for x in (weight, bias) if x is not None]
    held, ready = _prepared.get(head, (None, None))
    if ready is None or held != key:
        mean_bias = 0.0 if bias is None else bias.detach().float().mean()
        own = weight.detach().to(dtype)
        ready = _Head(own, None if bias is None else bias.detach().to(dtype), own.float().mean(dim=0), mean_bias)
        _prepared[head] = key, ready
    return ready


def score_tokens(hidden: torch.Tensor, head: Any, targets: torch.Tensor, *, figures: bool = True) -> TokenScores:
    """Log-probability of each target and what TRL logs beside it.

    Args:
        hidden: [N, H], the last hidden states at the places before the targets.
        head: the frozen language-model head, a linear layer of H to V.
        targets: [N], token ids.
        figures: also compute the entropy, which takes a product of its own where no gradient does; else it is NaN.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head.weight.dtype
    apply: Any = _ScoreTokens.apply
    return TokenScores(*apply(hidden, _prepare(head, dtype), targets, figures))


class _ScoreTokens(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, head: _Head, targets: torch.Tensor, figures: bool
    ) -> tuple[torch.Tensor, ...]:
        weight, bias, num, dtype = head.weight, head.bias, len(targets), head.weight.dtype
        values = hidden.new_empty(4, num, dtype=torch.float32)
        is_top1 = torch.empty(num, dtype=torch.bool, device=hidden.device)
        grads = hidden.new_empty(hidden.shape, dtype=dtype) if ctx.needs_input_grad[0] else None
        chunk = max(32, CHUNK_ELEMENTS // len(weight))
        for start in range(0, num, chunk):
            own = slice(start, start + chunk)
            h, y = hidden[own].to(dtype), targets[own, None]
            logits = torch.nn.functional.linear(h, weight, bias)
            target = logits.gather(1, y).float()
            exps, total, squares, top = elementwise.softmax(logits, dtype)
            log_total = total.log() + top
            values[0, own] = (target - log_total)[:, 0]
            values[2, own] = h.float() @ head.mean_weight + head.mean_bias
            values[3, own] = (squares.log() - 2 * total.log())[:, 0]
            is_top1[own] = (target >= top)[:, 0]
            if grads is None and not figures:
                values[1, own] = torch.nan
                continue
            expected = (exps @ weight).float() / total  # sum_v p_v W_v, [chunk, H]
            mean_energy = (h.float() * expected).sum(dim=1)
            if bias is not None:
                mean_energy += (exps.float() @ bias.float()) / total[:, 0]
            values[1, own] = log_total[:, 0] - mean_energy
            if grads is not None:
                grads[own] = weight[y[:, 0]].float().sub_(expected).to(dtype)
        if grads is not None:
            ctx.save_for_backward(grads)
        log_probs, entropy, mean_logits, log_sum_sq = values.unbind()
        ctx.mark_non_differentiable(entropy, mean_logits, is_top1, log_sum_sq)
        return log_probs.clone(), entropy, mean_logits, is_top1, log_sum_sq

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        (grads,) = ctx.saved_tensors
        return grads * grad[:, None].to(grads.dtype), None, None, None
