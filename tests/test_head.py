"""The language-model head: numbers and gradient of the direct formula; nothing as large as the logits is kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from demeanor.train import head as head_module
from demeanor.train.head import TokenScores, score_tokens

NUM, WIDTH, VOCAB = 101, 16, 300  # all different, and unlike any product of each other
SHOWN = ("entropy", "mean_logits", "log_sum_sq_probs")
Case = tuple[torch.Tensor, torch.nn.Linear, torch.Tensor]


def make_case(*, bias: bool, scale: float = 1.0, seed: int = 0) -> Case:
    generator = torch.Generator().manual_seed(seed)
    head = torch.nn.Linear(WIDTH, VOCAB, bias=bias)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) + 0.3)  # the mean logit is not near 0
    hidden = scale * torch.randn(NUM, WIDTH, generator=generator)
    targets = torch.randint(VOCAB, (NUM,), generator=generator)
    logits = head(hidden)
    targets[::3] = logits[::3].argmax(dim=1)
    return hidden.requires_grad_(), head.requires_grad_(False), targets


def direct(case: Case) -> TokenScores:
    """The formulas as they are written down, in float64."""
    hidden, head, targets = case
    bias = None if head.bias is None else head.bias.double()
    logits = torch.nn.functional.linear(hidden.double(), head.weight.double(), bias)
    logps = logits.log_softmax(dim=1)
    return TokenScores(
        log_probs=logps.gather(1, targets[:, None])[:, 0],
        entropy=-(logps.exp() * logps).sum(dim=1),
        mean_logits=logits.mean(dim=1),
        is_top1=logits.argmax(dim=1) == targets,
        log_sum_sq_probs=(2 * logps).logsumexp(dim=1),
    )


def gradient(scores: Callable[[Case], TokenScores], case: Case) -> torch.Tensor:
    weight = torch.randn(NUM, generator=torch.Generator().manual_seed(5))
    (result,) = torch.autograd.grad((scores(case).log_probs * weight).sum(), case[0])
    return result


def ours(case: Case) -> TokenScores:
    return score_tokens(*case)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("rows", [None, 32])
@pytest.mark.parametrize("bias", [False, True])
def test_numbers_are_those_of_log_softmax(bias: bool, rows: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if rows is not None:  # four chunks, the last one not full
        monkeypatch.setattr(head_module, "CHUNK_ELEMENTS", rows * VOCAB)
    case = make_case(bias=bias)
    found, expected = ours(case), direct(case)
    for name in ("log_probs", *SHOWN):
        values = getattr(found, name)
        assert values.shape == (NUM,)
        assert values.dtype == torch.float32
        torch.testing.assert_close(values.double(), getattr(expected, name), rtol=1e-5, atol=2e-5, msg=name)
    assert found.is_top1.dtype == torch.bool
    assert torch.equal(found.is_top1, expected.is_top1)
    assert 0.3 < found.is_top1.float().mean() < 0.5


@pytest.mark.parametrize("rows", [None, 32])
@pytest.mark.parametrize("bias", [False, True])
def test_gradient_is_that_of_log_softmax(bias: bool, rows: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if rows is not None:
        monkeypatch.setattr(head_module, "CHUNK_ELEMENTS", rows * VOCAB)
    case = make_case(bias=bias)
    found = gradient(ours, case)
    assert found.dtype == torch.float32
    assert relative(found, gradient(direct, case)) < 1e-5


@pytest.mark.parametrize("bias", [False, True])
def test_probabilities_near_1_and_near_0(bias: bool) -> None:
    case = make_case(bias=bias, scale=200.0)
    found, expected = ours(case), direct(case)
    assert expected.log_probs.min() < -1000
    assert expected.log_probs.max() > -1e-9
    for name in ("log_probs", *SHOWN):
        values = getattr(found, name)
        assert bool(values.isfinite().all()), name
        torch.testing.assert_close(values.double(), getattr(expected, name), rtol=1e-5, atol=5e-3, msg=name)
    assert torch.equal(found.is_top1, expected.is_top1)
    grad = gradient(ours, case)
    assert bool(grad.isfinite().all())
    assert relative(grad, gradient(direct, case)) < 1e-4  # logits of 2000 nats carry an error of 1e-4 nats themselves


@pytest.mark.parametrize("bias", [False, True])
def test_bfloat16_autocast_is_close(bias: bool) -> None:
    """bfloat16 has 8 bits: logits of about 10 nats are known to 0.04, sums over the vocabulary to 1 part in 256."""
    case = make_case(bias=bias)
    expected = direct(case)
    with torch.autocast("cpu", torch.bfloat16):
        found = ours(case)
    for name in ("log_probs", *SHOWN):
        values = getattr(found, name)
        assert values.dtype == torch.float32, name
        difference = (values.double() - getattr(expected, name)).abs()
        assert difference.mean() < 0.03, name
        assert difference.max() < 0.15, name
        assert difference.max() > 1e-5, name  # else autocast was not on
    grad = gradient_under_autocast(case)
    assert grad.dtype == torch.float32
    assert relative(grad, gradient(direct, case)) < 0.02


def gradient_under_autocast(case: Case) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return gradient(ours, case)


def test_only_log_probs_has_a_gradient_and_the_head_has_none() -> None:
    hidden, head, targets = make_case(bias=True)
    head.requires_grad_(True)  # the engine refuses a trained head; a gradient must not appear here by accident
    scores = score_tokens(hidden, head, targets)
    assert scores.log_probs.requires_grad
    assert not any(getattr(scores, name).requires_grad for name in (*SHOWN, "is_top1"))
    scores.log_probs.sum().backward()
    assert hidden.grad is not None
    assert head.weight.grad is None
    assert head.bias.grad is None


@pytest.mark.parametrize("bias", [False, True])
def test_the_backward_pass_keeps_nothing_as_large_as_the_vocabulary(bias: bool) -> None:
    def kept(scores: Callable[[Case], TokenScores]) -> list[tuple[int, ...]]:
        shapes = []

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            shapes.append(tuple(tensor.shape))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            scores(case)
        return shapes

    case = make_case(bias=bias)
    assert kept(ours) == [(NUM, WIDTH)]
    assert any(VOCAB in shape for shape in kept(direct))  # the hooks would have seen it
    case[0].requires_grad_(False)
    assert kept(ours) == []


def test_no_tokens() -> None:
    hidden, head, targets = make_case(bias=True)
    none = hidden[:0]
    scores = score_tokens(none, head, targets[:0])
    assert scores.log_probs.shape == scores.is_top1.shape == (0,)
    (grad,) = torch.autograd.grad(scores.log_probs.sum(), none)
    assert grad.shape == (0, WIDTH)
