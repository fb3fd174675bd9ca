"""Log-probabilities of given tokens from hidden states, without keeping any logits for the backward pass.

With z = W h + b the gradient of log p(y) with respect to h is W^T (onehot(y) - softmax(z)). The head is frozen, so this
vector is all that the backward pass needs: it is computed in the forward pass, chunk by chunk, while the chunk's logits
are still in the processor's cache, and takes as much room as the hidden states. (TRL's head computes the logits again.)
The figures that are only shown come almost for nothing: sum_v p_v z_v = h . W^T p + b . p, and the mean logit is
h . mean(W) + mean(b).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

CHUNK_ELEMENTS = 1 << 20  # logits held at a time


@dataclass(frozen=True, slots=True)
class TokenScores:
    """All of shape [N], float32 (is_top1 bool). Only `log_probs` has a gradient."""

    log_probs: torch.Tensor
    entropy: torch.Tensor
    mean_logits: torch.Tensor
    is_top1: torch.Tensor
    log_sum_sq_probs: torch.Tensor


def score_tokens(hidden: torch.Tensor, head: torch.nn.Module, targets: torch.Tensor) -> TokenScores:
    """Log-probability of each target and what TRL logs beside it.

    Args:
        hidden: [N, H], the last hidden states at the places before the targets.
        head: the frozen language-model head, a linear layer of H to V.
        targets: [N], token ids.
    """
    apply: Any = _ScoreTokens.apply
    return TokenScores(*apply(hidden, head.weight, getattr(head, "bias", None), targets))


class _ScoreTokens(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        num, wants_grad = len(targets), ctx.needs_input_grad[0]
        weight = weight.to(dtype)
        offset = None if bias is None else bias.to(dtype)
        mean_weight = weight.mean(dim=0, dtype=torch.float32)
        mean_bias = 0.0 if bias is None else bias.float().mean()
        values = hidden.new_empty(4, num, dtype=torch.float32)
        is_top1 = torch.empty(num, dtype=torch.bool, device=hidden.device)
        grads = hidden.new_empty(hidden.shape, dtype=dtype) if wants_grad else None
        chunk = max(32, CHUNK_ELEMENTS // len(weight))
        for start in range(0, num, chunk):
            own = slice(start, start + chunk)
            h, y = hidden[own].to(dtype), targets[own, None]
            logits = torch.nn.functional.linear(h, weight, offset).float()
            target = logits.gather(1, y)
            top = logits.amax(dim=1, keepdim=True)
            exps = logits.sub_(top).exp_()  # of the logits only this is needed from here on
            total = exps.sum(dim=1, keepdim=True)
            log_total = total.log() + top
            expected = (exps.to(dtype) @ weight).float() / total  # sum_v p_v W_v, [chunk, H]
            mean_energy = (h.float() * expected).sum(dim=1)
            if bias is not None:
                mean_energy += (exps @ bias.float()) / total[:, 0]
            values[0, own] = (target - log_total)[:, 0]
            values[1, own] = log_total[:, 0] - mean_energy
            values[2, own] = h.float() @ mean_weight + mean_bias
            values[3, own] = exps.square_().sum(dim=1).log() - 2 * total[:, 0].log()
            is_top1[own] = (target >= top)[:, 0]
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
