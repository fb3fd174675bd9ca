"""A reward model under TRL's RewardTrainer: a linear head on the model, trained with its adapter on the pairs.

The reward R(x, y) of a reply is the head's output at the reply's last token; the loss of a pair is
-log s(R(x, w) - R(x, l)) (Bradley and Terry 1952; Ouyang et al. 2022, eq. 1). TRL's trainer calls the model once for a
padded batch and reads one number a sequence; the engine answers that call: a pair's prompt is computed once.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers.modeling_outputs import SequenceClassifierOutputWithPast
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from demeanor.contract import Contract
from demeanor.tokens import TokenizedPair
from demeanor.train.engine import TreeEngine
from demeanor.train.on_trees import OnTrees, common_options, refused_by_trl, shares


class PairRewardTrainer(OnTrees, RewardTrainer):
    """TRL's RewardTrainer over pairs that are token ids already (`prompt_ids`, `chosen_ids`, `rejected_ids`)."""

    reply_columns = ("chosen_ids", "rejected_ids")
    unit = "of the hidden state's size"
    # what TRL's other trainers have
    ref_model = None
    aux_loss_enabled = False
    precompute_ref_logps = False

    def __init__(self, *args: Any, **options: Any) -> None:
        self.share_of_pairs = 1.0  # of the batch that are in the part at hand
        self._signature_columns: list[str] | None  # of TRL, which declares no types
        super().__init__(*args, **options)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of one batch, row by row: the loss is a mean over pairs."""
        parts = self._rows(inputs)
        if len(parts) < 2:
            loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
            return loss
        by = shares([len(part["input_ids"]) // 2 for part in parts])
        metrics = self._metrics["train"]
        lowest, highest = [], []

        def step(number: int) -> torch.Tensor:
            self.share_of_pairs = float(by[number])
            found: torch.Tensor = super(PairRewardTrainer, self).training_step(model, parts[number], num_items_in_batch)
            lowest.append(metrics["min_reward"][-1])
            highest.append(metrics["max_reward"][-1])
            return found

        try:
            total = self._average(parts, step, lambda name: by)
        finally:
            self.share_of_pairs = 1.0
        metrics["min_reward"][-1], metrics["max_reward"][-1] = min(lowest), max(highest)
        return total

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **options: Any) -> Any:
        loss = super().compute_loss(model, inputs, *args, **options)
        if isinstance(loss, tuple):
            return (self.share_of_pairs * loss[0], *loss[1:])
        return self.share_of_pairs * loss

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = list({*(self._signature_columns or ()), "prompt_ids"})

    def _install(self, model: Any) -> TreeEngine:
        """Answer the trainer's calls with the engine; nobody else calls this model."""
        engine = TreeEngine(model, paired=self.paired)

        @functools.wraps(type(model).forward)
        def forward(input_ids: Any = None, attention_mask: Any = None, **_: Any) -> SequenceClassifierOutputWithPast:
            return SequenceClassifierOutputWithPast(logits=engine.rewards(input_ids, attention_mask))

        model.forward = forward
        return engine

    def _tried(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """[2B, H], what the head reads, as shares of its root mean square: all of it, because one output of a head that
        knows nothing yet would hide a difference."""
        base = self.accelerator.unwrap_model(self.model).get_base_model()
        head, base.score = base.score, torch.nn.Identity()
        try:
            with self._evaluating(self.model):
                hidden = self.model(**batch, use_cache=False).logits.float()
        finally:
            base.score = head
        values: torch.Tensor = hidden / hidden.square().mean(dim=1, keepdim=True).sqrt()
        return values


class PairCollator(DataCollatorForPreference):
    """TRL's collator, which takes whole sequences, for a prompt with its two replies."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        sides = ("chosen_ids", "rejected_ids")
        whole = [{side: example["prompt_ids"] + example[side] for side in sides} for example in examples]
        found: dict[str, Any] = super().torch_call(whole)
        return found


def make_trainer(
    contract: Contract, arguments: RewardConfig, tokenizer: Any, pairs: list[TokenizedPair], **given: Any
) -> PairRewardTrainer:
    """A trainer over the pairs that is ready to train.

    Args:
        given: model, peft_config and callbacks as TRL's trainer takes them, and what `OnTrees` takes.

    Raises:
        InputError: TRL refuses the options.
    """
    columns = [{"prompt_ids": p.prompt_ids, "chosen_ids": p.chosen_ids, "rejected_ids": p.rejected_ids} for p in pairs]
    given.pop("ref_model", None)
    with refused_by_trl():
        return PairRewardTrainer(
            args=arguments,
            train_dataset=Dataset.from_list(columns),
            processing_class=tokenizer,
            data_collator=PairCollator(tokenizer.pad_token_id, arguments.pad_to_multiple_of),
            **given,
        )


def make_arguments(contract: Contract, checkpoints: Path, **decided: Any) -> RewardConfig:
    """TRL's options: the contract's, and what was `decided` for this machine.

    Raises:
        InputError: TRL refuses them.
    """
    settings = contract.training
    options = {**common_options(settings, checkpoints), **settings.trl_options, **decided}
    del options["beta"]
    with refused_by_trl():
        return RewardConfig(**options)
