"""Pairs under TRL's DPOTrainer: DPO, TRL's other losses of its family, and objectives without a reference.

The pairs arrive as token ids (`tokens.py`), so TRL neither applies a template nor truncates. The implicit reward of a
reply is beta (log p_policy - log p_reference), DPO's loss -log sigmoid(reward of chosen - reward of rejected) (Rafailov
et al. 2023); before the first step policy and reference are the same function, so every margin is 0, which is checked.

Pairs of ranked lists have weights (`curate/lists.py`). The loss of a batch of B pairs is then sum of w l / B, with w of
mean 1 over all pairs, and its SFT term sum of w times the negative log-probabilities of a pair's chosen tokens over the
batch's number of them. TRL's losses are means over pairs, so each is computed by TRL for the pairs of each weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from demeanor.contract import Contract
from demeanor.curate import loss_weights
from demeanor.errors import StageError
from demeanor.objectives import OBJECTIVES, Objective, Replies
from demeanor.tokens import TokenizedPair
from demeanor.train.lists import ListSampler
from demeanor.train.on_trees import OnTrees, common_options, refused_by_trl, shares
from demeanor.training_settings import SORTING_LOSSES

REFERENCE_COLUMNS = ("ref_chosen_token_logps", "ref_rejected_token_logps")
WEIGHT = "weight"  # the column; of a batch `weights`, [B]


class PairTrainer(OnTrees, DPOTrainer):
    """TRL's DPOTrainer over pairs that are token ids already (`prompt_ids`, `chosen_ids`, `rejected_ids`).

    Args:
        objective: a loss that TRL's trainer does not have takes the place of its own, beside an SFT term.
        gamma: of the objective.
        lists: for each pair the ranked list that it is of; a list's pairs come in one batch where they fit.
        options: those of `OnTrees` and of TRL's trainer.
    """

    reply_columns = ("chosen_ids", "rejected_ids")

    def __init__(
        self,
        *args: Any,
        objective: Objective = OBJECTIVES["dpo"],
        gamma: float = 0.0,
        lists: Sequence[object] | None = None,
        **options: Any,
    ) -> None:
        self.objective, self.gamma, self.lists = objective, gamma, lists
        self.share_of_pairs = 1.0  # of the batch that are in the part at hand
        self.loss_weights: list[float]  # of TRL, which declares no types
        self.ld_alpha: float | None
        super().__init__(*args, **options)

    # ------------------------------------------------------------ one step

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of one batch, row by row where the loss is a mean over pairs."""
        together = SORTING_LOSSES & set(self.loss_types) or (self.use_weighting and "sft" in self.loss_types)
        parts = [inputs] if together else self._rows(inputs)
        recompute = self.objective.needs_reference and self.precompute_ref_logps
        if self.engine is not None and recompute and self.state.global_step == 0:
            # in rows of other company a sum is rounded differently: here the same rows, so that the margin is exactly 0
            for part in parts:
                chosen, rejected = self.compute_ref_log_probs(self.ref_model or self.model, part)
                part.update(ref_chosen_logps=chosen, ref_rejected_logps=rejected)
        if len(parts) < 2:
            loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
            return loss

        def step(number: int) -> torch.Tensor:
            found: torch.Tensor = super(PairTrainer, self).training_step(model, parts[number], num_items_in_batch)
            return found

        return self._sum_of_parts(parts, step)

    def _sum_of_parts(
        self,
        parts: list[dict[str, Any]],
        step: Callable[[int], torch.Tensor],
        weights: Sequence[float] | None = None,
        mode: str = "train",
    ) -> torch.Tensor:
        """The loss of a batch from those of its parts, by `step`, each times its weight; what they logged becomes the
        batch's."""
        whole, whole_share = self.loss_weights, self.share_of_pairs
        num_tokens = np.array([_num_reply_tokens(part) for part in parts])  # [parts, chosen and rejected]
        pairs_by = shares([len(part["input_ids"]) // 2 for part in parts])
        chosen_by, rejected_by, tokens_by = (shares(numbers) for numbers in (*num_tokens.T, num_tokens.sum(axis=1)))
        by = {
            "entropy": tokens_by,
            "logits/chosen": chosen_by,
            "mean_token_accuracy": chosen_by,
            "logits/rejected": rejected_by,
            "aux_loss": np.eye(len(parts))[0],  # of the whole batch, in its first part
        }

        def weighted(number: int) -> torch.Tensor:
            factor = 1.0 if weights is None else weights[number]
            of_pairs, of_tokens = factor * pairs_by[number], factor * chosen_by[number]
            self.loss_weights = [  # the SFT loss is a mean over chosen tokens, all others over pairs
                weight * (of_tokens if kind == "sft" else of_pairs)
                for kind, weight in zip(self.loss_types, whole, strict=True)
            ]
            self.share_of_pairs = float(whole_share * of_pairs)
            return step(number)

        try:
            return self._average(parts, weighted, lambda name: by.get(name, pairs_by), mode)
        finally:
            self.loss_weights, self.share_of_pairs = whole, whole_share

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        """The mean over pairs, or, for the pairs of each weight, their part of the weighted mean, from one forward pass
        of all."""
        inputs = dict(inputs)
        weights = inputs.pop("weights", None)
        one_process = self.accelerator.num_processes == 1
        if weights is None or (one_process and bool((weights == 1).all())):
            return self._mean_loss(model, inputs, return_outputs)
        if return_outputs:
            raise NotImplementedError("pairs with weights give no logits for compute_metrics")
        half, has_reference = len(weights), self.precompute_ref_logps
        if not has_reference:
            chosen, rejected = self.compute_ref_log_probs(self.ref_model or self.model, inputs)
            inputs.update(ref_chosen_logps=chosen, ref_rejected_logps=rejected)
        kinds: Any = weights.unique()
        of_kind = [(weights == kind).nonzero()[:, 0] for kind in kinds]
        if not one_process:  # all must gather what they log equally often
            kinds, of_kind = weights, list(torch.arange(half, device=weights.device)[:, None])
        both = [torch.cat([index, index + half]) for index in of_kind]
        parts = [
            {name: value[own if len(value) > half else own[: len(own) // 2]] for name, value in inputs.items()}
            for own in both
        ]
        found: Any = None

        def forward(number: int) -> Callable[..., Any]:
            def call(**given: Any) -> Any:
                nonlocal found
                if found is None:
                    labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
                    all_of_it = {name: value for name, value in inputs.items() if name in given}
                    found = model(**{**given, **all_of_it, "labels": labels})
                values = {name: value[both[number]] for name, value in found.items() if value.ndim}
                aux = {} if found.aux_loss is None else {"aux_loss": found.aux_loss * float(number == 0)}
                return type(found)(**values, **aux)

            return call

        self.precompute_ref_logps = True
        mode = "train" if self.model.training else "eval"
        try:
            return self._sum_of_parts(
                parts, lambda number: self._mean_loss(forward(number), parts[number], False), kinds.tolist(), mode
            )
        finally:
            self.precompute_ref_logps = has_reference

    def _mean_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        """TRL's; where the objective has a loss of its own, TRL's is the SFT term and this is added."""
        own_loss = self.objective.loss
        if own_loss is None:
            return super()._compute_loss(model, inputs, return_outputs)
        outputs: list[Any] = []

        def call(**given: Any) -> Any:
            outputs.append(model(**given))
            return outputs[-1]

        loss = super()._compute_loss(call, inputs, return_outputs)
        loss, *rest = loss if return_outputs else (loss,)
        mask = inputs["completion_mask"][:, 1:]
        logps = outputs[0].log_probs[:, -mask.shape[1] :].sum(dim=1)
        replies = Replies(*logps.chunk(2), *mask.sum(dim=1).chunk(2))
        values = own_loss(replies, self.beta, self.gamma, self.label_smoothing)
        loss = loss + self.share_of_pairs * values.mean()
        metrics = self._metrics["train" if self.model.training else "eval"]
        chosen, rejected = replies.means() if self.objective.mean_rewards else (replies.chosen, replies.rejected)
        chosen, rejected = (self.accelerator.gather(self.beta * x.detach()) for x in (chosen, rejected))
        metrics["rewards/chosen"][-1] = chosen.mean().item()
        metrics["rewards/rejected"][-1] = rejected.mean().item()
        metrics["rewards/accuracies"][-1] = (chosen > rejected).float().mean().item()
        metrics["rewards/margins"][-1] = (chosen - rejected).mean().item()
        return (loss, *rest) if return_outputs else loss

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Any:
        if self.lists is None or self.args.train_sampling_strategy != "random":
            return super()._get_train_sampler(train_dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return ListSampler(self.lists, self.args.per_device_train_batch_size, seed)

    # ------------------------------------------------------------ the reference

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> Any:
        return super().compute_ref_log_probs(model, {n: value for n, value in inputs.items() if n != "weights"})

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """Per-token log-probabilities of the reference; zeros where the objective has none."""
        self._use_trees()
        if self.objective.needs_reference:
            known = [[values.tolist() for values in pair] for pair in self._find_reference(dataset)]
        else:
            known = [[[0.0] * len(row[replies]) for replies in self.reply_columns] for row in dataset]
        for column, values in zip(REFERENCE_COLUMNS, zip(*known, strict=True), strict=True):
            dataset = dataset.add_column(column, list(values))
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns += [
            name for name in (*REFERENCE_COLUMNS, WEIGHT) if name not in self._signature_columns
        ]

    def step0_margins(self) -> list[float]:
        ld_alpha, self.ld_alpha, self.data_collator.ld_alpha = self.ld_alpha, None, None  # plain sums on both sides
        try:
            return super().step0_margins()
        finally:
            self.ld_alpha = self.data_collator.ld_alpha = ld_alpha

    def _margins(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """[B], (chosen - rejected) of policy - reference."""
        chosen, rejected = self._token_logps(self.model, batch).sum(dim=1).chunk(2)
        ref_chosen, ref_rejected = self.compute_ref_log_probs(self.ref_model or self.model, batch)
        if "ref_chosen_logps" in batch:  # and what is stored is what is computed
            stored = batch["ref_chosen_logps"] - batch["ref_rejected_logps"]
            num_tokens = batch["completion_mask"].sum(dim=1).float().chunk(2)
            if not bool(((stored - (ref_chosen - ref_rejected)).abs() <= self._tolerance * sum(num_tokens)).all()):
                raise StageError("the stored reference is not the model's: nothing was done")
        margins: torch.Tensor = (chosen - rejected) - (ref_chosen - ref_rejected)
        return margins


class PairCollator(DataCollatorForPreference):
    """TRL's collator; the reference's per-token log-probabilities are summed as the policy's will be, so that equal
    terms give equal sums. With `ld_alpha` (LD-DPO) the tail beyond the shorter reply counts only so much."""

    def __init__(self, pad_token_id: int, ld_alpha: float | None, pad_to_multiple_of: int | None) -> None:
        super().__init__(pad_token_id=pad_token_id, pad_to_multiple_of=pad_to_multiple_of)
        self.ld_alpha = ld_alpha

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any] = super().torch_call(examples)
        if WEIGHT in examples[0]:
            output["weights"] = torch.tensor([example[WEIGHT] for example in examples])
        if REFERENCE_COLUMNS[0] not in examples[0]:
            return output
        values = torch.zeros(output["input_ids"].shape[0], output["input_ids"].shape[1] - 1)
        for side, column in enumerate(REFERENCE_COLUMNS):
            for number, example in enumerate(examples):
                start = len(example["prompt_ids"]) - 1
                logps = torch.tensor(example[column])
                if self.ld_alpha is not None:
                    shared = min(len(example[name]) for name in REFERENCE_COLUMNS)
                    logps[shared:] *= self.ld_alpha
                values[side * len(examples) + number, start : start + len(logps)] = logps
        output["ref_chosen_logps"], output["ref_rejected_logps"] = values.sum(dim=1).chunk(2)
        return output


def _num_reply_tokens(inputs: dict[str, Any]) -> tuple[int, int]:
    chosen, rejected = inputs["completion_mask"][:, 1:].sum(dim=1).chunk(2)
    return int(chosen.sum()), int(rejected.sum())


def make_trainer(
    contract: Contract, arguments: DPOConfig, tokenizer: Any, pairs: list[TokenizedPair], **given: Any
) -> PairTrainer:
    """A trainer over the pairs that is ready to train.

    Args:
        given: model, ref_model, peft_config and callbacks as TRL's trainer takes them, and what `OnTrees` takes.

    Raises:
        InputError: TRL refuses the options.
    """
    columns: list[dict[str, Any]] = [
        {"prompt_ids": p.prompt_ids, "chosen_ids": p.chosen_ids, "rejected_ids": p.rejected_ids} for p in pairs
    ]
    weights = loss_weights(pairs)
    if set(weights) != {1.0}:
        columns = [{**row, WEIGHT: weight} for row, weight in zip(columns, weights, strict=True)]
    lists = [pair.list_id or number for number, pair in enumerate(pairs)]
    given["lists"] = lists if len(set(lists)) < len(lists) else None
    if given["lists"]:
        sampler = ListSampler(lists, arguments.per_device_train_batch_size, arguments.seed)
        num_lists = len({pair.list_id for pair in pairs if pair.list_id})
        parted = len(sampler.lists) - sampler.num_whole()
        say: Callable[[str], None] = given.get("say", lambda line: None)
        size = f"per_device_train_batch_size {arguments.per_device_train_batch_size}"
        more = "; a multiple of the pairs of most lists holds more" if 10 * parted > num_lists else ""
        say(f"ranked lists: {num_lists - parted:,} of {num_lists:,} have all their pairs in one batch ({size}{more})")
    with refused_by_trl():
        return PairTrainer(
            args=arguments,
            train_dataset=Dataset.from_list(columns),
            processing_class=tokenizer,
            data_collator=PairCollator(tokenizer.pad_token_id, arguments.ld_alpha, arguments.pad_to_multiple_of),
            objective=OBJECTIVES[contract.training.objective],
            gamma=contract.training.gamma,
            **given,
        )


def make_arguments(contract: Contract, checkpoints: Path, **decided: Any) -> DPOConfig:
    """TRL's options: the contract's, and what was `decided` for this machine.

    Raises:
        InputError: TRL refuses them.
    """
    settings = contract.training
    options: dict[str, Any] = dict(settings.trl_options)
    objective = OBJECTIVES[settings.objective]
    if objective.smoothing:
        options.setdefault("label_smoothing", objective.smoothing)
    if objective.trl_loss is None:
        options["loss_type"], options["loss_weights"] = ["sft"], [settings.sft_weight]
    else:
        options.setdefault("loss_type", objective.trl_loss)
    if settings.sft_weight > 0 and objective.trl_loss is not None:
        losses = options["loss_type"]
        losses = [losses] if isinstance(losses, str) else list(losses)
        options["loss_type"] = [*losses, "sft"]
        options["loss_weights"] = [*(options.get("loss_weights") or [1.0] * len(losses)), settings.sft_weight]
    with refused_by_trl():
        return DPOConfig(
            precompute_ref_log_probs=settings.reference == "precomputed" or not objective.needs_reference,
            **{**common_options(settings, checkpoints), **options, **decided},
        )
