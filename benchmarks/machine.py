"""What a figure needs beside it: the machine, the versions, and whether the machine was quiet."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

from demeanor.train.memory import PeakMemory

__all__ = ["HH", "PeakMemory", "describe", "matrix_rate", "spelt", "write"]

HH = Path(__file__).resolve().parents[2] / "shared/data/hh-rlhf/harmless-base.jsonl.gz"
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "demeanor")


def describe() -> dict[str, Any]:
    """Processor, cores, memory, operating system, versions."""
    import torch

    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next((line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")), "")
    flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in info.split()]
    found: dict[str, Any] = {
        "processor": model or platform.processor(),
        "instructions": flags,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def write(path: Path, found: dict[str, Any], *, with_machine: bool = True) -> None:
    """The figures as JSON, and under `machine` what `describe` says, unless each part of them states its own."""
    if with_machine:
        found = {**found, "machine": {**describe(), **found.get("machine", {})}}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def spelt(estimate: dict[str, Any]) -> str:
    """An estimate's value with its interval, if it has one."""
    low, high = estimate["low"], estimate["high"]
    return f"{estimate['value']:.3f}" + ("" if low is None else f" [{low:.3f}, {high:.3f}]")


def matrix_rate(dtype: Any, size: int = 2048, seconds: float = 0.6) -> float:
    """GFLOP/s of a square product: the median over products for about so many seconds."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times: list[float] = []
    torch.mm(a, b)
    while sum(times) < seconds:
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        torch.mm(a, b)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return float(2 * size**3 / statistics.median(times) / 1e9)
