"""The memory estimate: what it grows with, and when it asks for gradient checkpointing; and the measured peak."""

from __future__ import annotations

import mmap
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import contract_of

from demeanor.model import find_model, load_model
from demeanor.tokens import TokenizedPair
from demeanor.train import tokens_at_a_time
from demeanor.train.engine import ROW_BUDGET
from demeanor.train.memory import MemoryEstimate, PeakMemory, device_in_use, estimate_memory


def estimate(folder: Path, **changes: int | bool) -> MemoryEstimate:
    model = load_model(find_model(str(folder)), contract_of())
    settings: dict[str, int | bool] = {"num_trainable": 1000, "tokens": 1024, "copy": False}
    return estimate_memory(model, **{**settings, **changes})  # type: ignore[arg-type]


def test_activations_grow_with_the_tokens_of_a_step(llama: Path) -> None:
    one = estimate(llama)
    assert estimate(llama, tokens=2048).activations == 2 * one.activations
    assert estimate(llama, trees=True).activations < one.activations
    assert estimate(llama, trees=True, bf16=True).activations == estimate(llama, trees=True).activations // 2
    assert one.total(checkpointing=True) < one.total(checkpointing=False)


def test_a_row_of_trees_bounds_the_tokens_that_are_held() -> None:
    pairs = [TokenizedPair("a", [1] * 100, [2] * 50, [3] * 20), TokenizedPair("b", [1] * 10, [2] * 5, [3] * 5)]
    assert tokens_at_a_time(pairs, 4, trees=False) == 2 * 4 * 150
    assert tokens_at_a_time(pairs, 4, trees=True) == 4 * 170
    assert tokens_at_a_time(pairs, 64, trees=True) == ROW_BUDGET
    assert tokens_at_a_time([TokenizedPair("c", [1] * 4000, [2], [3])], 64, trees=True) == 4002


def test_a_copy_counts_its_weights_and_an_adapter_its_optimizer(llama: Path) -> None:
    one = estimate(llama)
    assert estimate(llama, copy=True).reference == one.weights > 0 == one.reference
    assert one.adapter == 16 * 1000  # weight, gradient and two moments, four bytes each


def test_checkpointing_is_asked_for_when_memory_is_short(llama: Path) -> None:
    one = estimate(llama)
    assert not one.needs_checkpointing and one.fits
    short = replace(one, available=int(one.total(checkpointing=False) * 1.1))
    assert short.needs_checkpointing and short.fits
    assert not replace(one, available=one.total(checkpointing=True) - 1).fits


def test_the_peak_counts_what_was_freed_again_and_nothing_from_before() -> None:
    def touch(num_bytes: int) -> None:
        """Pages of its own, whatever the allocator was told elsewhere, given back at the end."""
        with mmap.mmap(-1, num_bytes) as pages:
            for start in range(0, num_bytes, mmap.PAGESIZE):
                pages[start] = 1

    touch(300 * 2**20)
    peak = PeakMemory()
    if peak.above_start() is None:
        pytest.skip("the system does not let the high-water mark be set back")
    assert 0 <= (peak.above_start() or 0) < 50 * 2**20
    touch(200 * 2**20)
    assert 190 * 2**20 <= (peak.above_start() or 0) < 280 * 2**20


def test_the_peak_does_not_hide_in_memory_that_was_freed_before() -> None:
    size, num = 16 << 10, 6_000  # from the heap, and no mapping of its own
    earlier = [bytearray(size) for _ in range(num)]
    del earlier[:-1]  # the last one keeps the heap from shrinking by itself
    peak = PeakMemory()
    later = [bytearray(size) for _ in range(num)]
    above = peak.above_start()
    assert above is not None and above > 0.8 * num * size and len(later) == num


def test_a_peak_that_cannot_be_measured_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, *_: str) -> None:
        raise PermissionError

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(Path, "write_text", refused)
    assert PeakMemory().above_start() is None


def test_the_device_is_counted_in_cores(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(find_model(str(llama)), contract_of())
    if next(model.parameters()).device.type != "cpu":
        pytest.skip("the machine has an accelerator")
    monkeypatch.setattr("torch.get_num_threads", lambda: 7)
    assert device_in_use(model, 2) == {"kind": "cpu", "count": 14, "name": device_in_use(model)["name"]}
