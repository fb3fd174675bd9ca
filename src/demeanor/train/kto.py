"""Single replies, each labelled good or bad, under TRL's KTOTrainer (Ethayarajh et al. 2024, KTO).

With r = log p(y) - log p_ref(y), a good reply's loss is 1 - s(beta (r - z)) and a bad one's 1 - s(beta (z - r)), times
the weight of its label. z estimates the KL divergence of policy and reference: the mean of r over the batch's
prompts with each other's replies, not below 0 and without a gradient. So a batch's company matters: batches are made
here, once, and stay in their order.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from trl import KTOConfig, KTOTrainer
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from demeanor.contract import Contract
from demeanor.errors import InputError, StageError
from demeanor.tokens import TokenizedPair
from demeanor.train.on_trees import OnTrees, common_options, refused_by_trl, shares

Row = dict[str, Any]


class ReplyTrainer(OnTrees, KTOTrainer):
    """TRL's KTOTrainer over replies that are token ids already (`prompt_ids`, `completion_ids`, `KL_completion_ids`,
    `label`). A batch that goes backward row by row has one z, that of the whole batch."""

    reply_columns = ("completion_ids", "KL_completion_ids")
    paired = False

    def __init__(self, *args: Any, **options: Any) -> None:
        self.desirable_weight: float  # of TRL, which declares no types
        self.undesirable_weight: float
        self.calculate_KL: bool
        self._kl_logps: torch.Tensor | None = None  # of the batch whose part is at hand
        super().__init__(*args, **options)

    def training_step(self, model: Any, inputs: Row, num_items_in_batch: Any = None) -> torch.Tensor:
        parts = self._rows(_without_mismatched(inputs)) if self.precompute_ref_logps and self.calculate_KL else [inputs]
        first = self.engine is not None and self.precompute_ref_logps and self.state.global_step == 0
        if len(parts) < 2:
            if first:  # in rows of other company a sum is rounded differently: here the same, so that r is exactly 0
                inputs["ref_logps"], inputs["ref_KL_logps"] = self._reference_of(inputs)
            loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
            return loss
        with self.compute_loss_context_manager():
            kl_logps = super()._compute_kl_logps(model, inputs)
        ref_kl_logps = self._reference_of(inputs)[1] if first else inputs["ref_KL_logps"]
        for part in parts:
            if first:
                part["ref_logps"] = self._reference_of(part)[0]
            part["ref_KL_logps"] = ref_kl_logps
        weights = self.desirable_weight, self.undesirable_weight
        good = np.array([int(part["label"].sum()) for part in parts])
        size = np.array([len(part["label"]) for part in parts])
        tokens = np.array([_num_tokens(part) for part in parts])  # [parts, good and bad]
        by = {"chosen": good, "rejected": size - good, "entropy": tokens.sum(axis=1)}
        by |= {"logits/chosen": tokens[:, 0], "logits/rejected": tokens[:, 1]}

        def step(number: int) -> torch.Tensor:
            share = shares(size)[number]
            self.desirable_weight, self.undesirable_weight = (float(weight * share) for weight in weights)
            found: torch.Tensor = super(ReplyTrainer, self).training_step(model, parts[number], num_items_in_batch)
            return found

        self._kl_logps = kl_logps
        margins = self._metrics["train"]["rewards/margins"]
        num_margins = len(margins)
        try:
            total = self._average(parts, step, lambda name: by.get(name, by.get(name.split("/")[-1], size)))
        finally:
            self._kl_logps = None
            self.desirable_weight, self.undesirable_weight = weights
        del margins[num_margins:]  # TRL logs one where a batch has both labels
        if 0 < good.sum() < size.sum():
            metrics = self._metrics["train"]
            margins.append(metrics["rewards/chosen"][-1] - metrics["rewards/rejected"][-1])
        return total

    def _compute_kl_logps(self, model: Any, batch: Row) -> torch.Tensor | None:
        if self._kl_logps is not None:
            return self._kl_logps
        found: torch.Tensor | None = super()._compute_kl_logps(model, batch)
        return found

    def _reference_of(self, inputs: Row) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities [N] of the replies and of the mismatched ones, which a part of a batch lacks."""
        has_kl, self.calculate_KL = self.calculate_KL, self.calculate_KL and "KL_input_ids" in inputs
        try:
            found: tuple[torch.Tensor, torch.Tensor] = self.compute_ref_log_probs(self.ref_model or self.model, inputs)
        finally:
            self.calculate_KL = has_kl
        return found

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        self._use_trees()
        known = self._find_reference(dataset)
        for place, column in enumerate(("ref_logps", "ref_KL_logps")):
            dataset = dataset.add_column(column, [float(values[place].sum()) for values in known])
        return dataset

    def _margins(self, batch: Row) -> torch.Tensor:
        """[N], r of each reply."""
        found = self._token_logps(self.model, batch).sum(dim=1)
        expected = self._reference_of(batch)[0]
        if "ref_logps" in batch:  # and what is stored is what is computed
            allowed = self._tolerance * batch["completion_mask"].sum(dim=1)
            if not bool(((batch["ref_logps"] - expected).abs() <= allowed).all()):
                raise StageError("the stored reference is not the model's: nothing was done")
        return found - expected


def _without_mismatched(inputs: Row) -> Row:
    return {name: value for name, value in inputs.items() if not name.startswith("KL_") and name != "ref_KL_logps"}


def _num_tokens(inputs: Row) -> tuple[int, int]:
    numbers, good = inputs["completion_mask"][:, 1:].sum(dim=1), inputs["label"].bool()
    return int(numbers[good].sum()), int(numbers[~good].sum())


def labelled_rows(pairs: Sequence[TokenizedPair], batch_size: int, seed: int) -> list[Row]:
    """The replies in the order in which they are trained on, each with the one that the KL estimate puts in its place.

    Prompts are shuffled. In a batch the replies to one prompt are kept together but not beside each other, so that the
    prefix-tree engine computes their prompt once and the reply before, which takes a reply's place (as in TRL), answers
    another prompt. A reply of a ranked list counts once, in however many pairs it stands.
    """
    replies: dict[tuple[int, ...], list[Row]] = {}
    seen: set[Any] = set()
    for pair in pairs:
        for ids, label in ((pair.chosen_ids, True), (pair.rejected_ids, False)):
            known = pair.list_id is not None and (pair.list_id, tuple(ids), label) in seen
            seen.add((pair.list_id, tuple(ids), label))
            if ids and not known:
                row = {"prompt_ids": pair.prompt_ids, "completion_ids": ids, "label": label}
                replies.setdefault(tuple(pair.prompt_ids), []).append(row)
    prompts = list(replies.values())
    random.Random(seed).shuffle(prompts)
    flat = [(place, row) for prompt in prompts for place, row in enumerate(prompt)]
    result: list[Row] = []
    for start in range(0, len(flat), batch_size):
        batch = sorted(flat[start : start + batch_size], key=lambda item: item[0])  # stable: all firsts, all seconds
        rows = [row for _, row in batch]
        before = rows[-1] if len(rows) > 1 or not result else result[-1]
        for row, other in zip(rows, [before, *rows[:-1]], strict=True):
            result.append({**row, "KL_completion_ids": other["completion_ids"]})
    return result


def label_weights(num_good: int, num_bad: int) -> tuple[float, float]:
    """Weights (good, bad) that give both labels the same total, the rarer one more than 1: the lower end of the range
    that the paper advises (eq. 8: weight x number of the good over that of the bad, between 1 and 4/3)."""
    if not num_good or not num_bad:
        return 1.0, 1.0
    return max(1.0, num_bad / num_good), max(1.0, num_good / num_bad)


def make_trainer(
    contract: Contract, arguments: KTOConfig, tokenizer: Any, pairs: list[TokenizedPair], **given: Any
) -> ReplyTrainer:
    """A trainer over the pairs' replies that is ready to train. A reply labelled on its own is a pair with one side.

    Args:
        given: model, ref_model, peft_config and callbacks as TRL's trainer takes them, and what `OnTrees` takes.

    Raises:
        InputError: TRL refuses the options, or there is one reply only.
    """
    rows = labelled_rows(pairs, arguments.per_device_train_batch_size, arguments.seed)
    if len(rows) < 2:
        raise InputError("kto needs two replies at least", where="data.pairs")
    say: Callable[[str], None] = given.get("say", lambda line: None)
    num_good = sum(row["label"] for row in rows)
    num_both = sum(1 for pair in pairs if pair.chosen_ids and pair.rejected_ids and pair.list_id is None)
    num_lists = len({pair.list_id for pair in pairs if pair.list_id is not None})
    split = f", {num_both:,} pairs split into two each" if num_both else ""
    split += f", {num_lists:,} ranked lists split into the best reply and the others" if num_lists else ""
    say(f"kto: {num_good:,} good and {len(rows) - num_good:,} bad replies{split}")
    own = contract.training.trl_options
    if not {"desirable_weight", "undesirable_weight"} & own.keys():
        weights = label_weights(num_good, len(rows) - num_good)
        arguments.desirable_weight, arguments.undesirable_weight = weights
        if weights != (1.0, 1.0):
            say(f"kto: good replies weigh {weights[0]:.3g} and bad ones {weights[1]:.3g}, so that both count the same")
    with refused_by_trl():
        return ReplyTrainer(
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            data_collator=DataCollatorForUnpairedPreference(
                pad_token_id=tokenizer.pad_token_id, pad_to_multiple_of=arguments.pad_to_multiple_of
            ),
            **given,
        )


def make_arguments(contract: Contract, checkpoints: Path, **decided: Any) -> KTOConfig:
    """TRL's options: the contract's, and what was `decided` for this machine.

    Raises:
        InputError: TRL refuses them.
    """
    settings = contract.training
    options = {**common_options(settings, checkpoints), **settings.trl_options, **decided}
    with refused_by_trl():
        return KTOConfig(precompute_ref_log_probs=settings.reference == "precomputed", **options)
