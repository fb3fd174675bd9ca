"""Tree attention: each path by which it is computed gives the numbers of a dense mask."""

from __future__ import annotations

import random

import pytest
import torch

from demeanor.train import attention
from demeanor.train.attention import TreeAttention, block_mask, choose_kind, plan_parts, tree_attention_forward
from demeanor.train.tree import Row, plan_rows

CPU = torch.device("cpu")


def make_row(seed: int) -> Row:
    rng = random.Random(seed)
    system = [1] * 40
    groups = []
    for _ in range(5):
        prompt = system[: rng.choice([0, 40])] + [rng.randrange(2, 50) for _ in range(rng.choice([1, 30, 80]))]
        for _ in range(rng.choice([1, 2])):
            groups.append([prompt + [rng.randrange(2, 50) for _ in range(rng.choice([1, 20, 60]))] for _ in range(2)])
    (row,) = plan_rows(groups, 10_000)
    return row


@pytest.mark.parametrize("heads", [(4, 4), (8, 2), (3, 1)])
@pytest.mark.parametrize("masked", [0, 10_000])
@pytest.mark.parametrize("seed", range(3))
def test_segments_equal_the_dense_mask_forward_and_backward(
    seed: int, masked: int, heads: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(seed)
    monkeypatch.setattr(attention, "MASKED", masked)
    row = make_row(seed)
    assert any(segment.branches for segment in row.segments)
    parts = plan_parts(row)
    assert any(part.mask is not None for part in parts) == (masked > 0)
    assert any(not part.first for part in parts) == (masked < 10_000)
    q, k, v = (torch.randn(1, h, len(row), 32, requires_grad=True) for h in (heads[0], heads[1], heads[1]))
    weight = torch.randn(1, len(row), heads[0], 32)
    results = []
    for kind in ("dense", "segments"):
        out, _ = tree_attention_forward(None, q, k, v, None, scaling=0.2, tree=TreeAttention(row, CPU, kind))
        results.append((out, *torch.autograd.grad((out * weight).sum(), (q, k, v))))
    for dense, segments in zip(*results, strict=True):
        torch.testing.assert_close(segments, dense, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_the_block_mask_for_cuda_is_the_dense_mask(seed: int) -> None:
    from torch.nn.attention.flex_attention import create_mask

    row = make_row(seed)
    blocks = block_mask(row, "cpu")
    mask = create_mask(blocks.mask_mod, 1, 1, len(row), len(row), device="cpu")
    assert torch.equal(mask[0, 0], row.mask(torch.float32)[0, 0] == 0)
    size = blocks.BLOCK_SIZE[0]
    kept = blocks.to_dense()[0, 0].bool()  # blocks that are looked at: all that hold something visible
    for i in range(kept.shape[0]):
        for j in range(kept.shape[1]):
            assert kept[i, j] == mask[0, 0, i * size : (i + 1) * size, j * size : (j + 1) * size].any()


def test_flex_attention_gives_the_dense_numbers_on_a_cpu() -> None:
    row = make_row(0)
    q, k, v = (torch.randn(1, h, len(row), 32) for h in (4, 2, 2))
    dense, flex = (
        tree_attention_forward(None, q, k, v, None, tree=TreeAttention(row, CPU, kind))[0] for kind in ("dense", "flex")
    )
    torch.testing.assert_close(flex, dense, rtol=1e-5, atol=1e-5)


def test_the_kind_follows_the_device_and_the_shape() -> None:
    long = plan_rows([[[1] * 100 + [2] * 50, [1] * 100 + [3] * 50]], 1000)[0]
    small = plan_rows([[[1] * 20 + [n] * 3 for n in range(2, 30)]], 1000)[0]
    bushy = plan_rows([[[1] * 20 + [n] * 3 for n in range(2, 200)]], 1000)[0]
    assert choose_kind(long, CPU) == choose_kind(small, CPU) == "segments"
    assert choose_kind(bushy, CPU) == "dense"
    assert choose_kind(long, torch.device("cuda")) == "flex"
    assert choose_kind(long, torch.device("mps")) == "dense"


@pytest.mark.parametrize("refused", [{"softcap": 50.0}, {"s_aux": torch.zeros(2)}, {"dropout": 0.1}])
def test_what_it_cannot_do_is_refused(refused: dict[str, object]) -> None:
    row = make_row(0)
    x = torch.randn(1, 2, len(row), 16)
    with pytest.raises(NotImplementedError):
        tree_attention_forward(None, x, x, x, None, tree=TreeAttention(row, CPU), **refused)  # type: ignore[arg-type]
