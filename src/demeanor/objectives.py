"""The objectives of preference training, one by one: formula, source, what it needs, its defaults.

Notation: w and l are the winning and the losing reply of a pair, log p(y) the sum of the log-probabilities (nats) of a
reply's tokens under the policy, |y| their number, r(y) = log p(y) - log p_ref(y) with the reference of the model before
training, d = r(w) - r(l), s the logistic function, e `label_smoothing`, the share of labels that are wrong. A loss is a
mean over pairs, weighted where they come from ranked lists (`curate/lists.py`). The SFT term is -log p(w) / |w| over
all winning tokens.
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

    `trl_loss` is TRL's name of the loss; without one `loss` computes it from (replies, beta, gamma, e), [B], nats, and
    the logged rewards are beta times the replies' log-probabilities, or times their means per token (`mean_rewards`).
    """

    formula: str
    source: str
    beta: float = 0.1
    gamma: float = 0.0
    sft_weight: float = 0.0
    learning_rate: float = 1.0  # times the default of DPO
    trl_loss: str | None = None
    loss: Callable[[Replies, float, float, float], torch.Tensor] | None = None
    mean_rewards: bool = False
    smoothing: float | None = None  # default of e; None: it has none
    trainer: str = "dpo"  # the file of `train/` that has it

    @property
    def needs_reference(self) -> bool:
        return self.loss is None and not self.trains_reward_model

    @property
    def takes_pairs(self) -> bool:
        """Else single replies, each labelled good or bad; a pair is two of them."""
        return self.trainer in ("dpo", "reward_model")

    @property
    def trains_reward_model(self) -> bool:
        """The result scores replies and says none: it is no policy."""
        return self.trainer == "reward_model"

    @property
    def online(self) -> bool:
        """Takes only the prompts of its data and samples the replies itself."""
        return self.trainer in ("grpo", "rloo")


def simpo(replies: Replies, beta: float, gamma: float, smoothing: float = 0.0) -> torch.Tensor:
    """-log s(beta (log p(w) / |w| - log p(l) / |l|) - gamma), [B]."""
    chosen, rejected = replies.means()
    return _smoothed(beta * (chosen - rejected) - gamma, smoothing)


def cpo(replies: Replies, beta: float, gamma: float, smoothing: float = 0.0) -> torch.Tensor:
    """-log s(beta (log p(w) - log p(l))), [B]."""
    return _smoothed(beta * (replies.chosen - replies.rejected), smoothing)


def _smoothed(margin: torch.Tensor, smoothing: float) -> torch.Tensor:
    """-(1 - e) log s(margin) - e log s(-margin)."""
    from torch.nn.functional import logsigmoid

    return -(1 - smoothing) * logsigmoid(margin) - smoothing * logsigmoid(-margin)


def orpo(replies: Replies, beta: float, gamma: float, smoothing: float = 0.0) -> torch.Tensor:
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
    "dpo": Objective("-log s(beta d)", "Rafailov et al. 2023, Direct Preference Optimization", trl_loss="sigmoid"),
    "ipo": Objective(
        "(r(w) / |w| - r(l) / |l| - 1 / (2 beta))^2",
        "Azar et al. 2023, A General Theoretical Paradigm to Understand Learning from Human Preferences",
        trl_loss="ipo",
    ),
    "simpo": Objective(
        "-log s(beta (log p(w) / |w| - log p(l) / |l|) - gamma)",
        "Meng et al. 2024, SimPO",
        beta=2.0,
        gamma=1.0,
        loss=simpo,
        mean_rewards=True,
        smoothing=0.0,
    ),
    "cpo": Objective(
        "-log s(beta (log p(w) - log p(l))) + SFT",
        "Xu et al. 2024, Contrastive Preference Optimization",
        sft_weight=1.0,
        loss=cpo,
        smoothing=0.0,
    ),
    "orpo": Objective(
        "SFT - beta log s(log odds(w) - log odds(l)), odds of the geometric mean of a reply's token probabilities",
        "Hong et al. 2024, ORPO (lambda is beta here, as in TRL; the paper tries 0.1 to 1)",
        beta=0.5,
        sft_weight=1.0,
        learning_rate=10.0,
        loss=orpo,
        mean_rewards=True,
    ),
    "kto": Objective(
        "1 - s(beta (r(y) - z)) of a good reply, 1 - s(beta (z - r(y))) of a bad one, z = KL of policy and reference",
        "Ethayarajh et al. 2024, KTO",
        learning_rate=10.0,
        trainer="kto",
    ),
    "grpo": Objective(
        "-(1 / T) sum of A(y) p(t) / p_sampling(t) + beta KL(p, p_ref) over the T tokens of all replies y; A(y) = "
        "(reward - mean) / std of the rewards of one prompt's replies (ratio clipped, TRL's default loss_type)",
        "Shao et al. 2024, DeepSeekMath; Yu et al. 2025, DAPO, for the mean over tokens",
        beta=0.04,
        learning_rate=4.0,
        trainer="grpo",
    ),
    "rloo": Objective(
        "-mean of A(y) p(y) / p_sampling(y) over the replies y; A(y) = reward - beta KL(p, p_ref) of y, minus the mean "
        "of that of the prompt's other replies (ratio clipped)",
        "Ahmadian et al. 2024, Back to Basics: REINFORCE leave-one-out",
        beta=0.04,
        learning_rate=4.0,
        trainer="rloo",
    ),
    "reward": Objective(
        "-log s(R(x, w) - R(x, l)), R a linear head on the hidden state of the reply's last token",
        "Bradley and Terry 1952; Ouyang et al. 2022, InstructGPT, eq. 1",
        beta=0.0,
        learning_rate=10.0,
        trainer="reward_model",
    ),
    "hinge": Objective("max(0, 1 - beta d)", "Zhao et al. 2023, SLiC-HF; Liu et al. 2023, RSO", trl_loss="hinge"),
    "robust": Objective(
        "(-(1 - e) log s(beta d) + e log s(-beta d)) / (1 - 2 e)",
        "Chowdhury et al. 2024, Provably Robust DPO",
        trl_loss="robust",
        smoothing=0.0,
    ),
    "exo_pair": Objective(
        "KL of (s(beta d), s(-beta d)) and (1 - e, e)",
        "Ji et al. 2024, EXO, eq. 16",
        trl_loss="exo_pair",
        smoothing=1e-3,
    ),
    "nca_pair": Objective(
        "-log s(beta r(w)) - log s(-beta r(w)) / 2 - log s(-beta r(l)) / 2",
        "Chen et al. 2024, Noise Contrastive Alignment",
        trl_loss="nca_pair",
    ),
    "bco_pair": Objective(
        "-log s(beta r(w)) - log s(-beta r(l))", "Jung et al. 2024, Binary Classifier Optimization", trl_loss="bco_pair"
    ),
    "sppo_hard": Objective(
        "(r(w) - 1 / (2 beta))^2 + (r(l) + 1 / (2 beta))^2", "Wu et al. 2024, SPPO", trl_loss="sppo_hard"
    ),
    "aot": Objective(
        "-(1 - e) log s(beta d) - e log s(-beta d), d of the batch's log-ratios sorted, policy against reference",
        "Melnyk et al. 2024, Alignment via Optimal Transport",
        trl_loss="aot",
        smoothing=0.0,
    ),
    "aot_unpaired": Objective(
        "the same, d of the batch's r(w) sorted against its r(l) sorted",
        "Melnyk et al. 2024, Alignment via Optimal Transport",
        trl_loss="aot_unpaired",
        smoothing=0.0,
    ),
    "apo_zero": Objective(
        "1 - s(beta r(w)) + s(beta r(l))", "D'Oosterlinck et al. 2024, APO, eq. 7", trl_loss="apo_zero"
    ),
    "apo_down": Objective("s(beta r(w)) + 1 - s(beta d)", "D'Oosterlinck et al. 2024, APO, eq. 8", trl_loss="apo_down"),
    "discopop": Objective(
        "(1 - m) log(1 + exp(-beta d)) + m exp(-beta d), m = s(beta d / discopop_tau)",
        "Lu et al. 2024, DiscoPOP, eq. 5",
        trl_loss="discopop",
    ),
    "sigmoid_norm": Objective(
        "-log s(beta (r(w) / |w| - r(l) / |l|))", "Lambert et al. 2024, Tulu 3", trl_loss="sigmoid_norm"
    ),
}
