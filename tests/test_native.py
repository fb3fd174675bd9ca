"""The kernel for tree attention: the numbers of a dense mask, and torch's kernels where it cannot be had."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from demeanor.train import native
from demeanor.train.attention import TreeAttention, tree_attention_forward
from demeanor.train.tree import Row, pad_row, plan_rows
from tests.test_attention import make_row

CPU = torch.device("cpu")
needs_kernel = pytest.mark.skipif(native.library() is None, reason="needs a CPU with matrix tiles and a C++ compiler")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder of its own, and nothing built in it yet."""
    monkeypatch.setenv("DEMEANOR_CACHE", str(tmp_path / "cache"))
    native.library.cache_clear()
    yield tmp_path
    monkeypatch.undo()
    native.library.cache_clear()


def attend(
    row: Row, inputs: tuple[torch.Tensor, ...], grad: torch.Tensor, kind: str | None
) -> tuple[torch.Tensor, ...]:
    """The output [1, L, H, D] and the gradients of q, k, v [1, H, L, D]."""
    q, k, v = (x.detach().requires_grad_() for x in inputs)
    out, _ = tree_attention_forward(None, q, k, v, None, scaling=0.2, tree=TreeAttention(row, CPU, kind))
    return out, *torch.autograd.grad(out, (q, k, v), grad)


def random_inputs(length: int, heads: tuple[int, int], width: int, spread: float = 1.0) -> tuple[torch.Tensor, ...]:
    # as a model hands them over: heads lie beside each other for each token
    q, k, v = (spread * torch.randn(1, length, h, width).transpose(1, 2) for h in (heads[0], heads[1], heads[1]))
    return tuple(x.bfloat16() for x in (q, k, v))


ROWS = {
    "mixed": lambda: make_row(0),
    "one long tree": lambda: plan_rows([[[1] * 700 + [2] * 300, [1] * 700 + [3] * 111]], 2000)[0],
    "one token each": lambda: plan_rows([[[1], [2]], [[3], [4]]], 100)[0],
    "bushy": lambda: plan_rows([[[1] * 40 + [n] * (n % 7 + 1) for n in range(2, 150)]], 2000)[0],
    "padded": lambda: pad_row(make_row(1), -(-len(make_row(1)) // 128) * 128),
}


@needs_kernel
@pytest.mark.parametrize(("heads", "width"), [((4, 4), 64), ((9, 3), 64), ((4, 1), 128), ((2, 2), 32), ((2, 1), 256)])
@pytest.mark.parametrize("name", ROWS)
def test_it_gives_the_numbers_of_a_dense_mask(name: str, heads: tuple[int, int], width: int) -> None:
    torch.manual_seed(0)
    row = ROWS[name]()
    inputs = random_inputs(len(row), heads, width)
    grad = torch.randn(1, len(row), heads[0], width).bfloat16()
    found = attend(row, inputs, grad, None)
    expected = attend(row, tuple(x.float() for x in inputs), grad.float(), "dense")
    for one, two in zip(found, expected, strict=True):
        assert one.dtype == torch.bfloat16
        assert torch.dist(one.float(), two) < 0.005 * two.norm() + 1e-4  # bfloat16 rounds by up to 0.4 %
    # nor is one place alone wrong
    torch.testing.assert_close(found[0].float(), expected[0], rtol=0.02, atol=0.02)


@needs_kernel
def test_large_scores_neither_overflow_nor_vanish() -> None:
    torch.manual_seed(0)
    row = make_row(2)
    inputs = random_inputs(len(row), (2, 2), 32, spread=30.0)
    grad = torch.randn(1, len(row), 2, 32).bfloat16()
    found = attend(row, inputs, grad, None)
    expected = attend(row, tuple(x.float() for x in inputs), grad.float(), "dense")
    for one, two in zip(found, expected, strict=True):
        assert one.isfinite().all()
        assert torch.dist(one.float(), two) < 0.02 * two.norm()


@needs_kernel
def test_it_is_what_runs_and_leaves_the_tiles_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    row = make_row(0)
    one, two = torch.randn(300, 200).bfloat16(), torch.randn(200, 500).bfloat16()
    product = one @ two  # by the same tiles
    calls = []
    real = native._call
    monkeypatch.setattr(native, "_call", lambda *args: (calls.append(1), real(*args)))
    inputs, grad = random_inputs(len(row), (4, 2), 64), torch.randn(1, len(row), 4, 64).bfloat16()
    first = attend(row, inputs, grad, None)
    assert len(calls) == 2  # forward and backward
    assert torch.equal(one @ two, product)
    for a, b in zip(first, attend(row, inputs, grad, None), strict=True):
        assert torch.equal(a, b)
    for kind in ("dense", "segments"):
        before = len(calls)
        attend(row, inputs, grad, kind)
        assert (len(calls) > before) == (kind == "segments")
    assert not native.takes(inputs[0].float())
    assert not native.takes(torch.randn(1, 2, 5, 40).bfloat16())
    assert not native.takes(torch.randn(2, 2, 5, 32).bfloat16())


def _compiler(folder: Path, text: str) -> str:
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("broken", ["none", "fails", "no kernel", "no folder", "wrong numbers"])
def test_without_it_torch_does_the_work(broken: str, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if broken == "none":
        monkeypatch.setenv("PATH", str(elsewhere))
        monkeypatch.delenv("CXX", raising=False)
    elif broken == "fails":
        monkeypatch.setenv("CXX", _compiler(elsewhere, '[ "$1" = --version ] || exit 1'))
    elif broken == "no kernel":
        monkeypatch.setenv("CXX", _compiler(elsewhere, 'for last; do out=$prev; prev=$last; done; echo x > "$out"'))
    elif broken == "no folder":
        (elsewhere / "cache").write_text("a file")
    else:
        changed = elsewhere / "tree_attention.cpp"
        text = native.SOURCE.read_text()
        assert text.count("6.9314718e-1f") == 1
        changed.write_text(text.replace("6.9314718e-1f", "5.9314718e-1f"))
        monkeypatch.setattr(native, "SOURCE", changed)
    assert native.library() is None
    torch.manual_seed(0)
    row = make_row(0)
    inputs, grad = random_inputs(len(row), (4, 2), 64), torch.randn(1, len(row), 4, 64).bfloat16()
    found = attend(row, inputs, grad, None)
    expected = attend(row, tuple(x.float() for x in inputs), grad.float(), "dense")
    for one, two in zip(found, expected, strict=True):
        assert torch.dist(one.float(), two) < 0.01 * two.norm()


@needs_kernel
def test_it_is_built_once_and_anew_for_another_source(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert native.library() is not None
    (made,) = (elsewhere / "cache").iterdir()
    stamp = made.stat().st_mtime_ns
    native.library.cache_clear()
    monkeypatch.setenv(
        "CXX", _compiler(elsewhere, f'[ "$1" = --version ] && exec {_real_compiler()} --version; exit 1')
    )
    assert native.library() is not None
    assert [path.stat().st_mtime_ns for path in (elsewhere / "cache").iterdir()] == [stamp]
    changed = elsewhere / "tree_attention.cpp"
    changed.write_text(native.SOURCE.read_text() + "// another\n")
    monkeypatch.setattr(native, "SOURCE", changed)
    monkeypatch.delenv("CXX")
    native.library.cache_clear()
    assert native.library() is not None
    assert len(list((elsewhere / "cache").iterdir())) == 2


def _real_compiler() -> str:
    return os.environ.get("CXX") or "g++"


@needs_kernel
def test_no_room_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    row = make_row(0)
    inputs = list(random_inputs(len(row), (2, 2), 32))
    stops, trees = np.int32(row.stops()), np.array([[0, len(row)]])
    with pytest.raises(MemoryError, match="attention of a row"):
        native._call(lambda *args: 0, (*inputs, inputs[0]), torch.empty(2, len(row)), (), stops, trees, 0.2)
