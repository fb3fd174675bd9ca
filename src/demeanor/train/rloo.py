"""REINFORCE with a leave-one-out baseline under TRL's RLOOTrainer (Ahmadian et al. 2024, Back to Basics).

A reply's advantage is its reward, less beta times its KL divergence from the reference, minus the mean of that of the
prompt's other replies.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trl import RLOOConfig, RLOOTrainer

from demeanor.contract import Contract
from demeanor.tokens import TokenizedPair
from demeanor.train.on_trees import refused_by_trl
from demeanor.train.sampling import Sampling, make_sampling_trainer, sampling_options


class LeaveOneOutTrainer(Sampling, RLOOTrainer):
    """TRL's RLOOTrainer over prompts that are token ids already."""


def make_trainer(
    contract: Contract, arguments: RLOOConfig, tokenizer: Any, pairs: list[TokenizedPair], **given: Any
) -> LeaveOneOutTrainer:
    """A trainer over the pairs' prompts that is ready to train; see `make_sampling_trainer`."""
    trainer: LeaveOneOutTrainer = make_sampling_trainer(
        LeaveOneOutTrainer, contract, arguments, tokenizer, pairs, **given
    )
    return trainer


def make_arguments(contract: Contract, checkpoints: Path, **decided: Any) -> RLOOConfig:
    """TRL's options: the contract's, and what was `decided` for this machine.

    Raises:
        InputError: TRL refuses them.
    """
    with refused_by_trl():
        return RLOOConfig(**sampling_options(contract, checkpoints, **decided))
