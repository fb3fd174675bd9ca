"""The memory estimate: what it grows with, and when it asks for gradient checkpointing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from conftest import contract_of

from demeanor.model import find_model, load_model
from demeanor.train.memory import MemoryEstimate, estimate_memory


def estimate(folder: Path, **changes: int | bool) -> MemoryEstimate:
    model = load_model(find_model(str(folder)), contract_of())
    settings: dict[str, int | bool] = {"num_trainable": 1000, "longest": 128, "batch_pairs": 4, "copy": False}
    return estimate_memory(model, **{**settings, **changes})  # type: ignore[arg-type]


def test_activations_grow_with_the_tokens_of_a_step(llama: Path) -> None:
    one = estimate(llama)
    assert estimate(llama, longest=256).activations == 2 * one.activations
    assert estimate(llama, batch_pairs=8).activations == 2 * one.activations
    assert one.total(checkpointing=True) < one.total(checkpointing=False)


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
