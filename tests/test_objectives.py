"""Each objective: its loss and gradients against TRL's own or against the formula, on both engines; closed forms."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_engine import ALL, Maker, PlainTrainer, batch_of, make, mixed, same_gradients, short, step, tiny
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.orpo.orpo_trainer import ORPOTrainer

from demeanor.contract import build_contract
from demeanor.errors import ContractError
from demeanor.objectives import OBJECTIVES, Replies, cpo, orpo, simpo
from demeanor.train.dpo import PairTrainer, make_arguments

__all__ = ["make"]  # the fixture
FREE = [name for name, objective in OBJECTIVES.items() if objective.loss is not None]


def some_replies(num: int = 6) -> Replies:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 40, (2, num), generator=generator)
    logps = -torch.rand(2, num, generator=generator, dtype=torch.float64) * 3 * lengths
    return Replies(*(x.requires_grad_() for x in logps), *lengths)


def gradient(loss: torch.Tensor, replies: Replies) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, (replies.chosen, replies.rejected)))


def trl_loss(name: str, replies: Replies, beta: float, gamma: float, smoothing: float = 0.0) -> torch.Tensor:
    """Per pair, by TRL's experimental trainers' own functions."""
    device = SimpleNamespace(device="cpu")
    own = SimpleNamespace(
        beta=beta, simpo_gamma=gamma, alpha=0.0, label_smoothing=smoothing, accelerator=device,
        loss_type="simpo" if name == "simpo" else "sigmoid",
    )  # fmt: skip
    if name == "cpo":
        return CPOTrainer.cpo_loss(own, replies.chosen, replies.rejected)[0]
    if name == "simpo":
        return CPOTrainer.cpo_loss(own, *replies.means())[0]
    return -ORPOTrainer.odds_ratio_loss(own, *replies.means())[0]  # TRL adds its negative to the SFT loss


@pytest.mark.parametrize("name", FREE)
@pytest.mark.parametrize(("beta", "gamma"), [(0.1, 0.0), (2.0, 1.0), (0.7, 0.3)])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_trls(name: str, beta: float, gamma: float, smoothing: float) -> None:
    replies = some_replies()
    loss = OBJECTIVES[name].loss
    assert loss is not None
    ours, theirs = loss(replies, beta, gamma, smoothing), trl_loss(name, replies, beta, gamma, smoothing)
    torch.testing.assert_close(ours, theirs.double(), rtol=1e-5, atol=1e-7)
    for one, two in zip(gradient(ours.sum(), replies), gradient(theirs.sum(), replies), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)


def test_simpo_and_cpo_by_hand() -> None:
    replies = Replies(*(torch.tensor([x]) for x in (-6.0, -20.0, 3.0, 5.0)))
    margin = 2.0 * (-2.0 - -4.0) - 1.0
    assert simpo(replies, 2.0, 1.0).item() == pytest.approx(math.log1p(math.exp(-margin)))
    assert cpo(replies, 0.1, 0.0).item() == pytest.approx(math.log1p(math.exp(-1.4)))


@pytest.mark.parametrize("logp", [-1e-9, -1e-6, -1e-3, -0.5, -0.7, -5.0, -80.0, 0.0])
def test_orpo_stays_finite_where_a_reply_is_almost_certain_or_impossible(logp: float) -> None:
    for one, two in ((logp, -1.0), (-1.0, logp), (logp, logp)):
        chosen, rejected = (torch.tensor([x], requires_grad=True) for x in (one, two))
        loss = orpo(Replies(chosen, rejected, torch.ones(1), torch.ones(1)), 0.1, 0.0)
        loss.backward()
        for value in (loss, chosen.grad, rejected.grad):
            assert value is not None and torch.isfinite(value).all()
    p, q = 0.9, 0.2
    chosen, rejected = torch.tensor([math.log(p)]), torch.tensor([math.log(q)])
    odds = math.log(p / (1 - p)) - math.log(q / (1 - q))
    found = orpo(Replies(chosen, rejected, torch.ones(1), torch.ones(1)), 0.5, 0.0)
    assert found.item() == pytest.approx(0.5 * math.log1p(math.exp(-odds)), rel=1e-5)


@pytest.mark.parametrize("logp", [-2e-7, -1e-6, -1e-4, -1e-2, -0.3, -0.69, -0.7, -3.0, -60.0])
def test_orpo_keeps_its_digits_near_certainty(logp: float) -> None:
    """In float32 against the closed form in float64: odds p / (1 - p), and d log odds / d log p = 1 / (1 - p)."""
    chosen, rejected = torch.tensor([logp], requires_grad=True), torch.tensor([-1.0])
    loss = orpo(Replies(chosen, rejected, torch.ones(1), torch.ones(1)), 1.0, 0.0)
    loss.backward()
    exact, other = chosen.item(), 1.0 / math.expm1(1.0)  # odds of the rejected reply, exp(-1) / (1 - exp(-1))
    odds = exact - math.log(-math.expm1(exact)) - math.log(other)
    slope = -1.0 / (1.0 + math.exp(odds)) / -math.expm1(exact)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-odds)), rel=1e-5)
    assert chosen.grad is not None and chosen.grad.item() == pytest.approx(slope, rel=1e-5)


def test_at_lambda_0_orpo_is_the_sft_loss(make: Maker) -> None:
    free = {"loss_type": ["sft"], "precompute_ref_log_probs": True, "beta": 0.0}
    orpo_step = step(make(PairTrainer, mixed(), ours={"objective": OBJECTIVES["orpo"]}, **free))
    sft_step = step(make(PlainTrainer, mixed(), loss_type=["sft"]))
    assert orpo_step.loss == pytest.approx(sft_step.loss, rel=1e-5)
    same_gradients(orpo_step.gradients, sft_step.gradients)


@pytest.mark.parametrize("name", FREE)
@pytest.mark.parametrize("rows_of", [mixed, short])
@pytest.mark.parametrize("budget", [None, 150])
def test_a_step_is_the_formula_on_trls_log_probabilities(
    make: Maker, name: str, rows_of: Any, budget: int | None
) -> None:
    objective = OBJECTIVES[name]
    options = {"beta": objective.beta, "loss_type": ["sft"], "loss_weights": [objective.sft_weight]}
    given = {"objective": objective, "gamma": objective.gamma}
    trainer = make(PairTrainer, rows_of(), ours=given, budget=budget, precompute_ref_log_probs=True, **options)
    assert trainer.engine is not None and not trainer.objective.needs_reference
    ours = step(trainer)

    plain = make(PlainTrainer, rows_of(), tiny("llama"), targets=ALL, precompute_ref_log_probs=False)
    batch = batch_of(plain)
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    plain.model.train()
    logps = plain.model(**inputs, labels=labels, fused_lm_head=True, use_cache=False).log_probs
    mask = batch["completion_mask"][:, 1:]
    sums, lengths = (logps * mask).sum(dim=1), mask.sum(dim=1)
    replies = Replies(*sums.chunk(2), *lengths.chunk(2))
    expected = trl_loss(name, replies, objective.beta, objective.gamma).mean()
    chosen_mask = mask.chunk(2)[0].bool()
    expected = expected - objective.sft_weight * logps.chunk(2)[0][chosen_mask].mean()
    expected.backward()
    assert ours.loss == pytest.approx(expected.item(), rel=1e-5)
    same_gradients(ours.gradients, {n: p.grad for n, p in plain.model.named_parameters() if p.grad is not None})
    means = replies.means() if objective.mean_rewards else (replies.chosen, replies.rejected)
    margin = (objective.beta * (means[0] - means[1])).mean().item()
    assert ours.logs["rewards/margins"] == pytest.approx(margin, rel=1e-4, abs=1e-5)


def test_before_the_first_step_dpo_is_ln_2_and_ipo_a_quarter_of_beta_squared(make: Maker) -> None:
    for name, expected in (("dpo", math.log(2)), ("ipo", 1 / (4 * 0.1**2))):
        loss_type = OBJECTIVES[name].trl_loss
        trainer = make(PairTrainer, mixed(), random_adapter=False, loss_type=[loss_type], beta=0.1)
        assert step(trainer).loss == pytest.approx(expected, rel=1e-6)


# --- in the contract


def contract(**training: Any) -> Any:
    return build_contract({"data": {"pairs": "starter"}, "training": training})


def test_each_name_has_its_defaults_and_a_given_value_wins() -> None:
    for name, objective in OBJECTIVES.items():
        more = {"rewards": [{"kind": "logp"}]} if objective.online else {}
        found = contract(objective=name, **more).training
        assert (found.beta, found.gamma, found.sft_weight) == (objective.beta, objective.gamma, objective.sft_weight)
        if not objective.trains_reward_model:
            assert contract(objective=name, beta=0.3, **more).training.beta == 0.3
    assert contract().training.objective == "dpo"
    assert contract(objective="simpo").training.reward_beta == 0.1


@pytest.mark.parametrize("name", [name for name, objective in OBJECTIVES.items() if objective.trainer == "dpo"])
def test_trl_gets_the_loss(name: str, tmp_path: Any) -> None:
    arguments = make_arguments(contract(objective=name), tmp_path, use_cpu=True)
    losses = [arguments.loss_type] if isinstance(arguments.loss_type, str) else list(arguments.loss_type)
    assert losses == (["sft"] if name in FREE else ["sigmoid" if name == "dpo" else name])
    assert arguments.precompute_ref_log_probs


@pytest.mark.parametrize(
    ("training", "told"),
    [
        ({"objective": "dpo", "gamma": 1.0}, "training.gamma: is a margin of objective simpo; dpo has none"),
        ({"objective": "simpo", "reference": "copy"}, "training.reference: simpo has no reference"),
        ({"objective": "orpo", "loss_type": "hinge"}, "training.loss_type: means nothing to objective orpo"),
        ({"objective": "ipo", "loss_type": "hinge"}, "training.loss_type: means nothing to objective ipo"),
        ({"objective": "cpo", "ld_alpha": 0.5}, "training.ld_alpha: means nothing to objective cpo"),
        ({"objective": "orpo", "label_smoothing": 0.1}, "training.label_smoothing: means nothing to objective orpo"),
        ({"loss_type": ["sigmoid", "hinge"], "loss_weights": [1.0]}, "training.loss_weights: 2 losses take 2 weights"),
        ({"loss_weights": [1.0, 2.0]}, "training.loss_weights: 1 losses take 1 weights, not 2"),
        ({"objective": "reward", "beta": 0.1}, "training.beta: means nothing to a reward model"),
        ({"objective": "reward", "sft_weight": 0.1}, "training.sft_weight: means nothing to a reward model"),
        ({"objective": "reward", "rewards": [{"kind": "logp"}]}, "training.rewards: means nothing to a reward model"),
        ({"objective": "reward", "reference": "copy"}, "training.reference: reward has no reference"),
        ({"objective": "reward", "loss_type": "hinge"}, "training.loss_type: means nothing to objective reward"),
        ({"objective": "simop"}, "no objective is called 'simop'; did you mean simpo?"),
    ],
)
def test_what_does_not_go_together_is_refused(training: dict[str, Any], told: str) -> None:
    with pytest.raises(ContractError) as caught:
        contract(**training)
    assert told in str(caught.value)


def test_several_losses_with_weights_and_an_sft_term(tmp_path: Any) -> None:
    several = {"loss_type": ["sigmoid", "bco_pair"], "loss_weights": [0.8, 0.2], "sft_weight": 0.5}
    arguments = make_arguments(contract(**several), tmp_path, use_cpu=True)
    assert (arguments.loss_type, arguments.loss_weights) == (["sigmoid", "bco_pair", "sft"], [0.8, 0.2, 0.5])
    assert make_arguments(contract(objective="exo_pair"), tmp_path, use_cpu=True).label_smoothing == 1e-3
