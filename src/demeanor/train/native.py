"""Attention for rows of prefix trees by a kernel of our own (`tree_attention.cpp`), on CPUs with matrix tiles.

It is built by the machine's C++ compiler when it is first wanted (some seconds), and kept beside the reference cache
under a name that tells its source and how it was built. Where it cannot be had, torch's kernels do the work.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from demeanor.train.reference import default_folder

SOURCE = Path(__file__).with_name("tree_attention.cpp")
FLAGS = (
    *("-O3", "-shared", "-fPIC", "-std=c++17", "-fopenmp", "-fno-strict-aliasing", "-w"),
    *(f"-m{name}" for name in ("fma", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512bf16")),
    *("-mamx-tile", "-mamx-bf16"),
)
MAX_WIDTH = 256  # of a head


def takes(query: torch.Tensor) -> bool:
    """Whether the kernel computes attention of such queries [1, H, L, D], here."""
    width = query.shape[-1]
    fits = query.dtype == torch.bfloat16 and query.device.type == "cpu" and len(query) == 1
    return fits and width % 32 == 0 and width <= MAX_WIDTH and library() is not None


@cache
def library() -> Any | None:
    """The kernel, built if need be and tried; None where the machine, or its compiler, cannot."""
    has_tiles = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    if platform.system() != "Linux" or platform.machine() != "x86_64" or not has_tiles():
        return None
    try:
        found = _load(_build())
    except (OSError, subprocess.SubprocessError, AttributeError):
        return None
    return found if found.tree_attention_allowed() and _agrees(found) else None


def find_compiler() -> str | None:
    """The path of the machine's C++ compiler: CXX, else g++ or clang++."""
    names = os.environ.get("CXX"), "g++", "clang++"
    return next((path for name in names if name and (path := shutil.which(name))), None)


def _build() -> Path:
    """The file of the library.

    Raises:
        OSError: no compiler, or no room. SubprocessError: the compiler fails.
    """
    compiler = find_compiler()
    if compiler is None:
        raise OSError("no C++ compiler")
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=60).stdout
    key = hashlib.sha256(b"\0".join([SOURCE.read_bytes(), " ".join(FLAGS).encode(), version])).hexdigest()[:16]
    folder = default_folder()
    ready = folder / f"tree-attention-{key}.so"
    if not ready.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / ready.name
            subprocess.run([compiler, *FLAGS, "-o", made, SOURCE], capture_output=True, check=True, timeout=300)
            made.replace(ready)
    return ready


def _load(path: Path) -> Any:
    found = ctypes.CDLL(str(path))
    for name in ("tree_attention_forward", "tree_attention_backward"):
        function = getattr(found, name)
        function.argtypes = [ctypes.c_void_p] * 5 + [ctypes.c_float]
        function.restype = ctypes.c_int
    return found


def _agrees(kernel: Any) -> bool:
    """Whether it gives, in both directions, what a plain softmax gives for a row of two trees."""
    generator = torch.Generator().manual_seed(0)
    stops = np.array([70] * 20 + [45] * 25 + [70] * 25 + [80] * 10, dtype=np.int32)
    trees = np.array([[0, 70], [70, 80]])
    inputs = [torch.randn(1, heads, 80, 32, generator=generator).bfloat16() for heads in (4, 2, 2)]
    grad = torch.randn(1, 80, 4, 32, generator=generator).bfloat16()

    place, last = torch.arange(80), torch.as_tensor(stops)
    hidden = (place[None] > place[:, None]) | (place[:, None] >= last)
    with torch.enable_grad():
        q, k, v = (x.float().requires_grad_() for x in inputs)
        scores = (q @ k.repeat_interleave(2, dim=1).mT * 0.2).masked_fill(hidden, -torch.inf)
        expected = (scores.softmax(dim=-1) @ v.repeat_interleave(2, dim=1)).transpose(1, 2)
        wanted = expected, *torch.autograd.grad(expected, (q, k, v), grad.float())
    out, lse = _forward(kernel, inputs, stops, trees, 0.2)
    found = out.transpose(1, 2), *_backward(kernel, (*inputs, out, lse), grad.transpose(1, 2), stops, trees, 0.2)
    return all(torch.dist(one, two) <= 0.01 * two.norm() for one, two in zip(found, wanted, strict=True))


class NativeAttention(torch.autograd.Function):
    """Exact attention of one row: [1, H, L, D] and [1, H_kv, L, D] -> [1, L, H, D], all bfloat16.

    Args:
        stops: [L], int32, one past the last place that sees each.
        trees: [n, 2], int64, where each tree starts and ends; together they are the row.

    Raises:
        MemoryError: no room for what the kernel works on.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        stops: np.ndarray,
        trees: np.ndarray,
        scale: float,
    ) -> torch.Tensor:
        inputs = [x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v)]
        out, lse = _forward(library(), inputs, stops, trees, scale)
        ctx.save_for_backward(*inputs, out, lse)
        ctx.row = stops, trees, scale
        return out.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad = grad.transpose(1, 2)
        grad = grad if grad.stride(-1) == 1 else grad.contiguous()
        return *_backward(library(), ctx.saved_tensors, grad, *ctx.row), None, None, None


def _forward(
    kernel: Any, inputs: Sequence[torch.Tensor], stops: np.ndarray, trees: np.ndarray, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The attention's output [1, H, L, D] and log-sum-exp [H, L]."""
    _, heads, length, width = inputs[0].shape
    out = inputs[0].new_empty(1, length, heads, width).transpose(1, 2)
    lse = inputs[0].new_empty(heads, length, dtype=torch.float32)
    _call(kernel.tree_attention_forward, (*inputs, out), lse, (), stops, trees, scale)
    return out, lse


def _backward(
    kernel: Any, saved: Sequence[torch.Tensor], grad: torch.Tensor, stops: np.ndarray, trees: np.ndarray, scale: float
) -> tuple[torch.Tensor, ...]:
    *tensors, lse = saved
    grads = tuple(torch.empty_like(x) for x in tensors[:3])
    _call(kernel.tree_attention_backward, tensors, lse, (grad, *grads), stops, trees, scale)
    return grads


def _call(
    function: Any,
    tensors: Sequence[torch.Tensor],
    lse: torch.Tensor,
    grads: Sequence[torch.Tensor],
    stops: np.ndarray,
    trees: np.ndarray,
    scale: float,
) -> None:
    q, k = tensors[:2]
    _, heads, length, width = q.shape
    data = np.array([x.data_ptr() for x in (*tensors, lse, *grads)], dtype=np.uintp)
    strides = np.array([x.stride()[1:3] for x in (*tensors, *grads)], dtype=np.int64)
    sizes = np.array([len(trees), heads, k.shape[1], width, length, torch.get_num_threads()], dtype=np.int64)
    if not function(*(array.ctypes.data for array in (data, strides, stops, trees, sizes)), scale):
        raise MemoryError("no room for the attention of a row")
