"""What a training will need, in bytes, before it starts; whether gradient checkpointing must save it; what it did need.

The estimate adds up the weights (twice with a frozen copy), the adapter with its gradient and Adam's two moments, and
the activations that the backward pass keeps. For one token a transformer layer keeps, on TRL's padded path, about 18
vectors of the hidden size and 6 of the feed-forward size in the weights' precision (under autocast the residual stream,
the norms and the adapters' inputs stay in 32 bits); in the tree engine about 8 and 4 in the precision of the products;
with checkpointing one vector a layer and one whole layer. The factors were fitted to the measured peak of a training.
The language-model head works in tiles, of which one is held.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HEAD_TILE = 1024  # positions whose logits are held at a time
MAY_USE = 0.8  # of the free memory


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """All in bytes."""

    weights: int
    reference: int
    adapter: int
    activations: int
    activations_checkpointed: int
    head: int
    available: int

    def total(self, *, checkpointing: bool) -> int:
        kept = self.activations_checkpointed if checkpointing else self.activations
        return self.weights + self.reference + self.adapter + kept + self.head

    @property
    def needs_checkpointing(self) -> bool:
        return self.total(checkpointing=False) > MAY_USE * self.available

    @property
    def fits(self) -> bool:
        return self.total(checkpointing=True) <= self.available

    def describe(self, *, checkpointing: bool) -> str:
        kept = self.activations_checkpointed if checkpointing else self.activations
        parts = f"weights {gib(self.weights + self.reference)}, activations {gib(kept)}, head {gib(self.head)}"
        how = "with" if checkpointing else "without"
        total = gib(self.total(checkpointing=checkpointing))
        return f"about {total} of {gib(self.available)} free, {how} gradient checkpointing ({parts})"

    def to_json(self) -> dict[str, int]:
        return asdict(self)


def estimate_memory(
    model: Any,
    *,
    num_trainable: int,
    tokens: int,
    copy: bool,
    trees: bool = False,
    bf16: bool = False,
    vocabulary: bool = True,
) -> MemoryEstimate:
    """The estimate for the largest batch, or row of trees.

    Args:
        model: the loaded model; its weights are counted as they are.
        num_trainable: parameters that are trained.
        tokens: that go forward and backward at a time.
        copy: a second frozen model is loaded as the reference.
        trees: the tokens go through the tree engine.
        bf16: products are computed in bfloat16.
        vocabulary: the head gives a value for each token of the vocabulary, else one alone.
    """
    config = model.config.get_text_config()
    hidden = config.hidden_size
    layers = config.num_hidden_layers
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    width = next(model.parameters()).element_size()
    weights = int(sum(p.numel() * p.element_size() for p in model.parameters()))
    a_layer = tokens * (18 * hidden + 6 * inner) * width
    if trees:
        a_layer = tokens * (8 * hidden + 4 * inner) * (2 if bf16 else width)
    head = min(tokens, HEAD_TILE) * config.vocab_size * 4 * 2 if vocabulary else 0
    return MemoryEstimate(
        weights=weights,
        reference=weights if copy else 0,
        adapter=num_trainable * 16,
        activations=layers * a_layer,
        activations_checkpointed=a_layer + layers * tokens * hidden * width,
        head=head,
        available=available_bytes(model),
    )


def available_bytes(model: Any) -> int:
    """Free memory of the model's device plus what the loaded weights already hold of it."""
    import torch

    device = next(model.parameters()).device
    held = int(sum(p.numel() * p.element_size() for p in model.parameters()))
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + held
    import psutil

    return int(psutil.virtual_memory().available) + held


class PeakMemory:
    """The highest memory since the object was made, above that of the moment when it was made.

    On CUDA what torch has allocated there; on a CPU under Linux the resident size of the process, whose high-water mark
    is set back where the system allows it. What earlier work freed is given back to the system first: a training would
    fill it unseen.
    """

    def __init__(self) -> None:
        import torch

        self.cuda = torch.cuda.is_available()
        self._start: int | None = None
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self._start = torch.cuda.memory_allocated()
        else:
            gc.collect()
            with contextlib.suppress(OSError, AttributeError, TypeError):  # no Linux, or no glibc
                ctypes.CDLL(None).malloc_trim(0)
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")
                self._start = _resident("VmRSS")

    def above_start(self) -> int | None:
        """Bytes; None where it cannot be measured."""
        import torch

        if self._start is None:
            return None
        peak = torch.cuda.max_memory_allocated() if self.cuda else _resident("VmHWM")
        return int(peak - self._start)


def _resident(name: str) -> int:
    """VmRSS or VmHWM (its high-water mark) of this process, bytes. Raises OSError where there is none."""
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {name} in /proc/self/status")


def device_in_use(model: Any, num_processes: int = 1) -> dict[str, Any]:
    """What `model` is trained on: {"kind": cpu, cuda, ..., "count": cores or accelerators, "name"}."""
    import torch

    kind = next(model.parameters()).device.type
    if kind == "cuda":
        spread = len(set(getattr(model, "hf_device_map", {}).values())) or 1
        return {"kind": kind, "count": spread * num_processes, "name": torch.cuda.get_device_name()}
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {"kind": kind, "count": (torch.get_num_threads() if kind == "cpu" else 1) * num_processes, "name": name}


def gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**29 else f"{num_bytes / 2**20:.0f} MiB"
