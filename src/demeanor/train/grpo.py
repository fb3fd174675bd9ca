"""Group-relative policy optimization under TRL's GRPOTrainer (Shao et al. 2024, DeepSeekMath).

A reply's advantage is its reward minus the mean of its group, divided by the group's standard deviation: the advantages
of a group sum to 0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trl import GRPOConfig, GRPOTrainer

from demeanor.contract import Contract
from demeanor.tokens import TokenizedPair
from demeanor.train.on_trees import refused_by_trl
from demeanor.train.sampling import Sampling, make_sampling_trainer, sampling_options


class GroupTrainer(Sampling, GRPOTrainer):
    """TRL's GRPOTrainer over prompts that are token ids already."""


def make_trainer(
    contract: Contract, arguments: GRPOConfig, tokenizer: Any, pairs: list[TokenizedPair], **given: Any
) -> GroupTrainer:
    """A trainer over the pairs' prompts that is ready to train; see `make_sampling_trainer`."""
    trainer: GroupTrainer = make_sampling_trainer(GroupTrainer, contract, arguments, tokenizer, pairs, **given)
    return trainer


def make_arguments(contract: Contract, checkpoints: Path, **decided: Any) -> GRPOConfig:
    """TRL's options: the contract's, and what was `decided` for this machine.

    Raises:
        InputError: TRL refuses them.
    """
    with refused_by_trl():
        return GRPOConfig(**sampling_options(contract, checkpoints, **decided))
