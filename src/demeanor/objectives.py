"""The objectives of preference training, one by one: formula, source, what it needs, its defaults.

Notation: w and l are the winning and the losing reply of a pair, log p(y) the sum of the log-probabilities (nats) of a
reply's tokens under the policy, |y| their number, r(y) = log p(y) - log p_ref(y) with the reference of the model before
training, s the logistic function. A loss is a mean over pairs. The SFT term is -log p(w) / |w| over all winning tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Replies:
    """The replies of a batch of pairs."""

    chosen: torch.Tensor  # [B], log p(w), nats
    rejected: torch.Tensor  # [B], log p(l)
    chosen_tokens: torch.Tensor  # [B]
    rejected_tokens: torch.Tensor  # [B]

    def means(self) -> tuple[torch.Tensor, torch.Tensor]:
        """log p(w) / |w| and log p(l) / |l|."""
        return self.chosen / self.chosen_tokens, self.rejected / self.rejected_tokens


@dataclass(frozen=True, slots=True)
class Objective:
    """What a name in the contract stands for.

    `trl_loss` is TRL's name of the loss; without one `loss` computes it from (replies, beta, gamma), [B], nats, and
    `rewards` says what the logged rewards are: beta times the replies' log-probabilities, or times their means.
    """

    formula: str
    source: str
    beta: float
    gamma: float = 0.0
    sft_weight: float = 0.0
    learning_rate: float = 1.0  # times the default of DPO
    trl_loss: str | None = None
    loss: Callable[[Replies, float, float], torch.Tensor] | None = None
    mean_rewards: bool = False

    @property
    def needs_reference(self) -> bool:
        return self.loss is None


def simpo(replies: Replies, beta: float, gamma: float) -> torch.Tensor:
    """-log s(beta (log p(w) / |w| - log p(l) / |l|) - gamma), [B]."""
    from torch.nn.functional import logsigmoid

    chosen, rejected = replies.means()
    return -logsigmoid(beta * (chosen - rejected) - gamma)


def cpo(replies: Replies, beta: float, gamma: float) -> torch.Tensor:
    """-log s(beta (log p(w) - log p(l))), [B]."""
    from torch.nn.functional import logsigmoid

    return -logsigmoid(beta * (replies.chosen - replies.rejected))


def orpo(replies: Replies, beta: float, gamma: float) -> torch.Tensor:
    """-beta log s(log odds(w) - log odds(l)), [B], with odds(y) = P / (1 - P) and P the geometric mean of the tokens'
    probabilities."""
    from torch.nn.functional import logsigmoid

    chosen, rejected = replies.means()
    return -beta * logsigmoid((chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected)))


def _log1mexp(x: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(x)) for x <= 0, by the two ways of Maechler (2012), each where it is exact; the gradient stays finite
    because x is kept a rounding error away from 0."""
    import torch

    x = x.clamp(max=-1e-7)
    near = x > -0.6931472  # where exp(x) is near 1
    one = torch.log(-torch.expm1(torch.where(near, x, -1.0)))
    two = torch.log1p(-torch.exp(torch.where(near, -1.0, x)))
    return torch.where(near, one, two)


OBJECTIVES = {
    "dpo": Objective(
        "-log s(beta (r(w) - r(l)))",
        "Rafailov et al. 2023, Direct Preference Optimization",
        beta=0.1,
        trl_loss="sigmoid",
    ),
    "ipo": Objective(
        "(r(w) / |w| - r(l) / |l| - 1 / (2 beta))^2",
        "Azar et al. 2023, A General Theoretical Paradigm to Understand Learning from Human Preferences",
        beta=0.1,
        trl_loss="ipo",
    ),
    "simpo": Objective(
        "-log s(beta (log p(w) / |w| - log p(l) / |l|) - gamma)",
        "Meng et al. 2024, SimPO",
        beta=2.0,
        gamma=1.0,
        loss=simpo,
        mean_rewards=True,
    ),
    "cpo": Objective(
        "-log s(beta (log p(w) - log p(l))) + SFT",
        "Xu et al. 2024, Contrastive Preference Optimization",
        beta=0.1,
        sft_weight=1.0,
        loss=cpo,
    ),
    "orpo": Objective(
        "SFT - beta log s(log odds(w) - log odds(l)), odds of the geometric mean of a reply's token probabilities",
        "Hong et al. 2024, ORPO (lambda is beta here, as in TRL)",
        beta=0.1,
        sft_weight=1.0,
        loss=orpo,
        mean_rewards=True,
    ),
}
