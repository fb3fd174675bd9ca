"""The arithmetic between the products: compiled and plain give the same numbers, and compiling is asked for wisely."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from demeanor.train import elementwise

needs_compiler = pytest.mark.skipif(elementwise.find_compiler() is None, reason="no C++ compiler")


@pytest.fixture
def plain_again() -> Iterator[None]:
    elementwise.compile_none()
    yield
    elementwise.compile_none()


def inputs(dtype: torch.dtype) -> dict[str, tuple[Any, ...]]:
    torch.manual_seed(0)
    rows, width = 37, 48
    x, grad, up = (torch.randn(rows, width).to(dtype) for _ in range(3))
    gain = torch.rand(width) + 0.5
    _, unit, scale = elementwise.norm(x, gain, 1e-6, dtype)
    heads = torch.randn(1, rows, 4, 16).to(dtype).transpose(1, 2)
    cos, sin = torch.randn(2, 1, 1, rows, 8)
    return {
        "norm": (x.float(), gain, 1e-6, dtype),
        "norm_backward": (grad, unit, scale, gain, torch.float32),
        "gate": (x, up),
        "gate_backward": (grad, x, up),
        "turn": (heads, cos, sin),
        "softmax": (3 * x, dtype),
    }


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("plain_again")
def test_compiled_is_plain(dtype: torch.dtype) -> None:
    given = inputs(dtype)
    assert set(given) == set(elementwise._plain)
    expected = {name: getattr(elementwise, name)(*values) for name, values in given.items()}
    assert elementwise.compile_all() is None
    assert set(elementwise._compiled) == set(given)
    limit = 1e-5 if dtype == torch.float32 else 2e-2
    for name, values in given.items():
        torch.testing.assert_close(getattr(elementwise, name)(*values), expected[name], rtol=limit, atol=limit)


@pytest.mark.usefixtures("plain_again")
def test_without_a_compiler_it_stays_plain_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: Any, **options: Any) -> Any:
        def call(*given: Any) -> Any:
            raise RuntimeError("no compiler is there\nand a long trace")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    assert elementwise.compile_all() == "no compiler is there"
    assert not elementwise._compiled


@pytest.mark.usefixtures("plain_again")
def test_what_compiles_to_other_numbers_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(function: Any, **options: Any) -> Any:
        return (lambda *given: function(*given) * 1.01) if function.__name__ == "gate" else function

    monkeypatch.setattr(torch, "compile", wrong)
    assert elementwise.compile_all()
    assert not elementwise._compiled


def test_it_is_worth_it_for_long_trainings_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elementwise, "find_compiler", lambda: "c++")
    assert elementwise.worth_compiling(8, 512, 1_000_000, "cpu")
    assert not elementwise.worth_compiling(8, 512, 100_000, "cpu")
    assert not elementwise.worth_compiling(8, 512, 1_000_000, "cuda")
    monkeypatch.setattr(elementwise, "find_compiler", lambda: None)
    assert not elementwise.worth_compiling(8, 512, 1_000_000, "cpu")
