"""The arithmetic between the matrix products: norms, gates, rotary angles, the head's softmax.

Written as plain functions of tensors, which `compile_all` lets torch.compile turn into one pass over memory each. It
needs a C++ compiler at run time and some seconds at first, so whoever trains decides whether that pays. Inputs are
detached and have as few dimensions as possible, so that one compiled version serves every length.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import silu

from demeanor.train.native import find_compiler

Tensor = torch.Tensor

WORTH = 2e9  # tokens x layers x width from which on compiling pays twice

_plain: dict[str, Callable[..., Any]] = {}
_compiled: dict[str, Callable[..., Any]] = {}


def _fusable(function: Callable[..., Any]) -> Callable[..., Any]:
    name = function.__name__
    _plain[name] = function

    @functools.wraps(function)
    def call(*inputs: Any) -> Any:
        chosen = _compiled.get(name, function)
        return chosen(*(x.detach() if isinstance(x, Tensor) else x for x in inputs))

    return call


def compile_all() -> str | None:
    """Use compiled versions from here on, in this process.

    Returns:
        Why that cannot be, or None: each was compiled and gives what the plain one gives.
    """
    if _compiled:
        return None
    import torch._dynamo
    import torch._inductor.config as inductor

    inductor.compile_threads = 1  # in this process: no pool of workers beside the training
    ready = {name: torch.compile(function, dynamic=True) for name, function in _plain.items()}
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(6, 64, generator=generator)
    column = torch.rand(6, 1, generator=generator) + 0.5
    angles = torch.randn(5, 16, generator=generator)
    heads = torch.randn(1, 5, 3, 32, generator=generator).transpose(1, 2)
    tried = {
        "norm": (wide, wide[0], 1e-5, torch.float32),
        "norm_backward": (wide, wide.flip(0), column, wide[0], torch.float32),
        "gate": (wide, wide.flip(0)),
        "gate_backward": (wide, wide.flip(0), wide.flip(1)),
        "turn": (heads, angles[None, None], angles.flip(0)[None, None]),
        "softmax": (wide, torch.float32),
    }
    try:
        for name, inputs in tried.items():
            expected, found = _plain[name](*inputs), ready[name](*inputs)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    except Exception as error:  # no compiler, one that does not work, or one that computes something else
        return str(error).strip().splitlines()[0][:100] if str(error).strip() else type(error).__name__
    _compiled.update(ready)
    return None


def compile_none() -> None:
    """Use the plain versions again."""
    _compiled.clear()


def worth_compiling(num_layers: int, hidden_size: int, num_tokens: float, device: str) -> bool:
    """Whether a training over so many tokens, all passes together, gains more than compiling takes.

    Compiling took 8 s at first and 2 s from torch's cache, and saved about 8 ns a token, layer and unit of width.
    """
    return device == "cpu" and num_tokens * num_layers * hidden_size > WORTH and find_compiler() is not None


@_fusable
def norm(x: Tensor, gain: Tensor, eps: float, out: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """x [N, H] -> x / rms(x) * gain and x / rms(x), both in the precision `out`, and 1 / rms(x) [N, 1]."""
    x = x.float()
    scale = torch.rsqrt(torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_() / x.shape[-1] + eps)
    unit = x * scale
    return (unit * gain).to(out), unit.to(out), scale


@_fusable
def norm_backward(grad: Tensor, unit: Tensor, scale: Tensor, gain: Tensor, out: torch.dtype) -> Tensor:
    """Gradient with respect to `norm`'s x."""
    grad, unit = grad.float() * gain, unit.float()
    along = torch.linalg.vecdot(grad, unit)[..., None] / unit.shape[-1]
    return torch.addcmul(grad, unit, along, value=-1).mul_(scale).to(out)


@_fusable
def gate(x: Tensor, up: Tensor) -> Tensor:
    """silu(x) * up."""
    return silu(x).mul_(up)


@_fusable
def gate_backward(grad: Tensor, x: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients with respect to `gate`'s two inputs."""
    return torch.ops.aten.silu_backward(grad * up, x), silu(x).mul_(grad)


@_fusable
def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The halves of the last dimension turned by angles with these cosines and sines, of half its width."""
    out = torch.empty_like(x)
    one, two = x.chunk(2, dim=-1)
    first, second = out.chunk(2, dim=-1)
    first.copy_((one * cos).addcmul_(two, sin, value=-1))
    second.copy_((two * cos).addcmul_(one, sin))
    return out


@_fusable
def softmax(logits: Tensor, out: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logits [N, V] -> exp(logits - top) in the precision `out`, their sum, that of their squares, and top [N, 1]."""
    logits = logits.float()
    top = logits.amax(dim=1, keepdim=True)
    exps = (logits - top).exp_()
    return exps.to(out), exps.sum(dim=1, keepdim=True), exps.square().sum(dim=1, keepdim=True), top
