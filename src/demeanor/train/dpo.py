"""Everything that touches TRL: our pairs and the prefix-tree engine under TRL's DPOTrainer, and the reference.

The pairs arrive as token ids (`tokens.py`), so TRL neither applies a template nor truncates. TRL's losses, options,
logging and Accelerate stay as they are. The implicit reward of a reply is beta (log p_policy - log p_reference), the
loss -log sigmoid(reward of chosen - reward of rejected) (Rafailov et al. 2023); before the first step policy and
reference are the same function, so every margin is 0, which is checked.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import FusedCausalLMOutput, use_adapter

from demeanor.contract import Contract
from demeanor.errors import InputError, StageError, one_line
from demeanor.objectives import OBJECTIVES, Objective, Replies
from demeanor.tokens import TokenizedPair
from demeanor.train import elementwise
from demeanor.train.attention import main_kind
from demeanor.train.engine import TreeEngine
from demeanor.train.kernels import fuse, unfuse
from demeanor.train.reference import PairLogps, ReferenceCache

PROVEN_ON = ("1.16.0",)  # versions of TRL whose seams were tested
REFERENCE_BATCH = 16  # pairs scored at a time, those of like length together
SPOT_CHECKED = 4  # pairs of a cached reference that are computed again
TOLERANCE_NATS = {False: 1e-3, True: 0.1}  # mean difference of a token's log-probability, in float32 and in bfloat16
LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")
SORTING_LOSSES = {"aot", "aot_unpaired"}  # they compare pairs of a batch with each other
REFERENCE_COLUMNS = ("ref_chosen_token_logps", "ref_rejected_token_logps")


class PairTrainer(DPOTrainer):
    """TRL's DPOTrainer over pairs that are token ids already (`prompt_ids`, `chosen_ids`, `rejected_ids`).

    With `trees` the log-probabilities come from the prefix-tree engine, through the seam that TRL has for them: the
    model's forward pass with `fused_lm_head=True`. A batch that fills several rows goes backward row by row, so that
    memory is a row's and not the batch's; the gradient is the same sum.

    Args:
        trees: use the engine; a model whose attention does not take trees is trained on TRL's padded batches.
        objective: a loss that TRL's trainer does not have takes the place of its own, beside an SFT term.
        gamma: of the objective.
        compiled: let torch.compile fuse the engine's arithmetic (`elementwise.py`), in the whole process.
        cache: where the reference's log-probabilities are kept, when they are precomputed.
        referred: called with the number of pairs whose reference is known, then of all.
        say: called with a line for the user.
    """

    def __init__(
        self,
        *args: Any,
        trees: bool = True,
        objective: Objective = OBJECTIVES["dpo"],
        gamma: float = 0.0,
        compiled: bool = False,
        cache: Callable[[str], ReferenceCache | None] | None = None,
        referred: Callable[[int, int], None] = lambda done, total: None,
        say: Callable[[str], None] = lambda line: None,
        **options: Any,
    ) -> None:
        self.trees, self.compiled, self.cache, self.referred, self.say = trees, compiled, cache, referred, say
        self.objective, self.gamma = objective, gamma
        self.share_of_pairs = 1.0  # of the batch that are in the part at hand
        self.loss_weights: list[float]  # of TRL, which declares no types
        self.ld_alpha: float | None
        self.engine: TreeEngine | None = None
        self.reference_seconds = 0.0  # that precomputing the reference took
        self.fused: dict[str, int] = {}
        super().__init__(*args, **options)
        self._use_trees()

    # ------------------------------------------------------------ the engine

    def _use_trees(self) -> None:
        """Put the engine under the policy and a reference model, if they take it. TRL's set-up may have done so."""
        if not self.trees or self.engine is not None:
            return
        model = self.accelerator.unwrap_model(self.model)
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        reason = self._cannot(base) or self._differs(base)
        if reason:
            self.trees = False
            self.say(f"engine: padded batches, because {reason}")

    def _cannot(self, base: Any) -> str | None:
        """Why the engine is not even tried."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return "weights are sharded"
        if len(set(getattr(base, "hf_device_map", {}).values())) > 1:
            return "the model is spread over several devices"
        if self.aux_loss_enabled:
            return "a mixture of experts has a loss of its own for each padded token"
        if any(parameter.requires_grad for parameter in base.get_output_embeddings().parameters()):
            return "the language-model head is trained"
        if any(_drops(name, module) for name, module in base.named_modules()):
            return "the model has dropout"
        if any(config.is_prompt_learning for config in getattr(self.model, "peft_config", {}).values()):
            return "the adapter adds tokens"
        config = base.config.get_text_config()
        if any(getattr(config, name, None) not in (None, 1, 1.0) for name in LOGIT_CHANGES):
            return "its logits are scaled or capped"
        kinds = getattr(config, "layer_types", None)
        window = getattr(config, "sliding_window", None)
        if window is not None and (kinds is None or "sliding_attention" in kinds):
            held_out = self.eval_dataset or []
            parts = held_out.values() if isinstance(held_out, dict) else [held_out]
            longest = max(
                len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
                for part in (self.train_dataset, *parts)
                for row in part
            )
            if longest > window:
                return f"its attention sees {window} tokens and the longest pair has {longest}"
        return None

    def _differs(self, base: Any) -> str | None:
        """Install the engine and compare it with TRL's own numbers on the shortest pair; undo it if they differ."""
        if self.compiled:
            started = time.perf_counter()
            reason = elementwise.compile_all()
            took = f"compiled in {time.perf_counter() - started:.1f} s"
            self.say(f"engine: {f'not compiled, because {reason}' if reason else took}")
        batch = self._collate([min(self.train_dataset, key=lambda row: sum(map(len, row.values())))])
        expected = self._token_logps(self.model, batch)
        models = [base] if self.ref_model is None else [base, self.accelerator.unwrap_model(self.ref_model)]
        before = [(model, model.forward, model.config._attn_implementation) for model in models]

        def compare() -> None:
            found = self._token_logps(self.model, batch)
            difference = (found - expected).abs().sum().item() / max(1, int((expected != 0).sum()))
            if not difference <= self._tolerance:
                raise ValueError(f"difference {difference:.2g} nats a token")

        try:
            engines = [_install(model) for model in models]
            for kind in ("dense", None) if base.device.type == "cpu" else (None,):
                engines[0].kind = kind or main_kind(base.device)
                compare()
                if engines[0].last_calls != base.config.get_text_config().num_hidden_layers:
                    raise ValueError("not all its layers ask for it")
            engines[0].kind = None
            for model in models:
                self.fused = fuse(model, torch.bfloat16 if self.args.bf16 else model.dtype)
            compare()
        except torch.OutOfMemoryError:
            raise
        except (TypeError, ValueError, RuntimeError, LookupError, NotImplementedError, AttributeError) as error:
            for model, forward, implementation in before:
                unfuse(model)
                model.forward = forward
                model.set_attn_implementation(implementation)
            self.fused = {}
            return f"its attention does not take a tree ({one_line(error, 100)})"
        self.engine = engines[0]
        return None

    @property
    def _tolerance(self) -> float:
        return TOLERANCE_NATS[bool(self.args.bf16) or self.model.dtype != torch.float32]

    # ------------------------------------------------------------ one step

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of one batch, row by row where the loss is a mean over pairs."""
        parts = self._parts(inputs)
        recompute = self.objective.needs_reference and self.precompute_ref_logps
        if self.engine is not None and recompute and self.state.global_step == 0:
            # in rows of other company a sum is rounded differently: here the same rows, so that the margin is exactly 0
            for part in parts:
                chosen, rejected = self.compute_ref_log_probs(self.ref_model or self.model, part)
                part.update(ref_chosen_logps=chosen, ref_rejected_logps=rejected)
        if len(parts) < 2:
            loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
            return loss
        metrics, weights = self._metrics["train"], self.loss_weights
        marks = {name: len(values) for name, values in metrics.items()}
        num_tokens = np.array([_num_reply_tokens(part) for part in parts])  # [parts, chosen and rejected]
        pairs_by = _shares([len(part["input_ids"]) // 2 for part in parts])
        chosen_by, rejected_by, tokens_by = (_shares(numbers) for numbers in (*num_tokens.T, num_tokens.sum(axis=1)))
        weighted_by = {
            "entropy": tokens_by,
            "logits/chosen": chosen_by,
            "mean_token_accuracy": chosen_by,
            "logits/rejected": rejected_by,
        }
        total = torch.zeros((), device=self.accelerator.device)
        try:
            for part, of_pairs, of_tokens in zip(parts, pairs_by, chosen_by, strict=True):
                self.loss_weights = [  # the SFT loss is a mean over chosen tokens, all others over pairs
                    weight * (of_tokens if kind == "sft" else of_pairs)
                    for kind, weight in zip(self.loss_types, weights, strict=True)
                ]
                self.share_of_pairs = float(of_pairs)
                total += super().training_step(model, part, num_items_in_batch)
        finally:
            self.loss_weights, self.share_of_pairs = weights, 1.0
        for name, values in metrics.items():
            own = values[marks.get(name, 0) :]
            if len(own) == len(parts):  # each part logged its mean: the batch's is theirs, weighted
                values[marks.get(name, 0) :] = [float(np.dot(own, weighted_by.get(name, pairs_by)))]
        return total

    def _parts(self, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        """The batch cut into its rows, or the whole batch when it is one row or its loss cannot be cut."""
        whole = [inputs]
        if self.engine is None or self.accelerator.num_processes > 1 or SORTING_LOSSES & set(self.loss_types):
            return whole
        if self.use_weighting and "sft" in self.loss_types:
            return whole
        batch = self.engine.plan(inputs["input_ids"], inputs["attention_mask"])
        if len(batch.rows) < 2:
            return whole
        half = len(inputs["input_ids"]) // 2
        parts = []
        for pairs in batch.pairs:
            index = torch.tensor([*pairs, *(pair + half for pair in pairs)], device=inputs["input_ids"].device)
            longest = int(inputs["attention_mask"][index].sum(dim=1).max())
            part = {}
            for name, value in inputs.items():
                if len(value) == half:
                    part[name] = value[index[: len(pairs)]]
                else:
                    part[name] = value[index] if value.ndim == 1 else value[index, :longest]
            parts.append(part)
        return parts

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
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
        loss = loss + self.share_of_pairs * own_loss(replies, self.beta, self.gamma).mean()
        metrics = self._metrics["train" if self.model.training else "eval"]
        chosen, rejected = replies.means() if self.objective.mean_rewards else (replies.chosen, replies.rejected)
        chosen, rejected = (self.accelerator.gather(self.beta * x.detach()) for x in (chosen, rejected))
        metrics["rewards/chosen"][-1] = chosen.mean().item()
        metrics["rewards/rejected"][-1] = rejected.mean().item()
        metrics["rewards/accuracies"][-1] = (chosen > rejected).float().mean().item()
        metrics["rewards/margins"][-1] = (chosen - rejected).mean().item()
        return (loss, *rest) if return_outputs else loss

    # ------------------------------------------------------------ the reference

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """Per-token log-probabilities of the reference, from the cache as far as it knows them."""
        self._use_trees()
        if not self.objective.needs_reference:
            for column, replies in zip(REFERENCE_COLUMNS, ("chosen_ids", "rejected_ids"), strict=True):
                dataset = dataset.add_column(column, [[0.0] * len(row[replies]) for row in dataset])
            return dataset
        started = time.perf_counter()
        pairs = [
            TokenizedPair(str(number), row["prompt_ids"], row["chosen_ids"], row["rejected_ids"])
            for number, row in enumerate(dataset)
        ]
        cache = self.cache("trees" if self.engine else "padded") if self.cache else None
        known: list[PairLogps | None] = cache.find(pairs) if cache else [None] * len(pairs)
        held = [number for number, logps in enumerate(known) if logps is not None]
        if cache and held:
            chosen = held[:: max(1, len(held) // SPOT_CHECKED)][:SPOT_CHECKED]
            again = self._reference_logps([pairs[number] for number in chosen])
            worst = max(
                (_mean_difference(known[number], logps) for number, logps in zip(chosen, again, strict=True)),
                key=lambda difference: math.inf if math.isnan(difference) else difference,
            )
            if not worst <= self._tolerance:
                self.say(f"reference: {cache.path} disagrees with the model by {worst:.2g} nats a token: computed anew")
                cache.forget()
                known, held = [None] * len(pairs), []
        missing = sorted(set(range(len(pairs))) - set(held), key=lambda number: pairs[number].num_tokens)
        for start in range(0, len(missing), REFERENCE_BATCH):
            numbers = missing[start : start + REFERENCE_BATCH]
            logps = self._reference_logps([pairs[number] for number in numbers])
            for number, values in zip(numbers, logps, strict=True):
                known[number] = values
            if cache:
                cache.keep([pairs[number] for number in numbers], logps)
            self.referred(len(held) + start + len(numbers), len(pairs))
        if cache:
            self.say(f"reference: {len(held)} of {len(pairs)} pairs from the cache, {len(missing)} computed")
        for column, item in zip(REFERENCE_COLUMNS, (0, 1), strict=True):
            dataset = dataset.add_column(column, [values[item].tolist() for values in known if values is not None])
        self.reference_seconds += time.perf_counter() - started
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns += [name for name in REFERENCE_COLUMNS if name not in self._signature_columns]

    def _reference_logps(self, pairs: Sequence[TokenizedPair]) -> list[PairLogps]:
        rows = [{"prompt_ids": p.prompt_ids, "chosen_ids": p.chosen_ids, "rejected_ids": p.rejected_ids} for p in pairs]
        model = self.accelerator.unwrap_model(self.ref_model or self.model)
        if self.ref_model is None and hasattr(model, "peft_config"):
            with use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None):
                values = self._token_logps(model, self._collate(rows))
        else:
            values = self._token_logps(model, self._collate(rows))
        found = values.cpu().numpy()
        result = []
        for number, pair in enumerate(pairs):
            start = len(pair.prompt_ids) - 1
            one, two = found[number, start:], found[number + len(pairs), start:]
            result.append((one[: len(pair.chosen_ids)].copy(), two[: len(pair.rejected_ids)].copy()))
        return result

    def _collate(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {name: value.to(self.accelerator.device) for name, value in self.data_collator(rows).items()}

    def _token_logps(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """[2B, L - 1], nats, as TRL would compute them; no gradient."""
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
        was_training = model.training
        model.eval()
        try:
            lean = self.engine.only_log_probs() if self.engine else nullcontext()
            with torch.no_grad(), self.accelerator.autocast(), lean:
                inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
                values: torch.Tensor = model(**inputs, use_cache=False, labels=labels, fused_lm_head=True).log_probs
        finally:
            model.train(was_training)
        return values

    def step0_margins(self) -> list[float]:
        """Margins (nats, without beta) of the first pairs before any step: (chosen - rejected) of policy - reference.
        The reference is computed here and now; a cached one has been compared with the model already."""
        num_pairs = min(self.args.per_device_train_batch_size, len(self.train_dataset))
        rows = [self.train_dataset[index] for index in range(num_pairs)]
        ld_alpha, self.ld_alpha, self.data_collator.ld_alpha = self.ld_alpha, None, None  # plain sums on both sides
        try:
            batch = self._collate(rows)
            chosen, rejected = self._token_logps(self.model, batch).sum(dim=1).chunk(2)
            ref_chosen, ref_rejected = self.compute_ref_log_probs(self.ref_model or self.model, batch)
            if "ref_chosen_logps" in batch:  # and what is stored is what is computed
                stored = batch["ref_chosen_logps"] - batch["ref_rejected_logps"]
                num_tokens = batch["completion_mask"].sum(dim=1).float().chunk(2)
                if not bool(((stored - (ref_chosen - ref_rejected)).abs() <= self._tolerance * sum(num_tokens)).all()):
                    raise StageError("the stored reference is not the model's: nothing was done")
        finally:
            self.ld_alpha = self.data_collator.ld_alpha = ld_alpha
        margins: list[float] = ((chosen - rejected) - (ref_chosen - ref_rejected)).float().tolist()
        return margins


class PairCollator(DataCollatorForPreference):
    """TRL's collator; the reference's per-token log-probabilities are summed as the policy's will be, so that equal
    terms give equal sums. With `ld_alpha` (LD-DPO) the tail beyond the shorter reply counts only so much."""

    def __init__(self, pad_token_id: int, ld_alpha: float | None, pad_to_multiple_of: int | None) -> None:
        super().__init__(pad_token_id=pad_token_id, pad_to_multiple_of=pad_to_multiple_of)
        self.ld_alpha = ld_alpha

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any] = super().torch_call(examples)
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


def _install(model: Any) -> TreeEngine:
    """Answer TRL's `fused_lm_head=True` calls with the engine; all else goes where it went."""
    engine = TreeEngine(model)
    plain = model.forward

    @functools.wraps(type(model).forward)  # `generate` reads the signature
    def forward(
        *args: Any, fused_lm_head: bool = False, labels: Any = None, shift_labels: Any = None, **kwargs: Any
    ) -> Any:
        if not fused_lm_head:
            given = {"labels": labels, "shift_labels": shift_labels}
            return plain(*args, **kwargs, **{name: value for name, value in given.items() if value is not None})
        if args or shift_labels is not None:
            raise NotImplementedError("context parallelism is not supported by the engine: set training.engine: padded")
        scores = engine.score(kwargs["input_ids"], kwargs["attention_mask"], labels)
        return FusedCausalLMOutput(
            log_probs=scores.log_probs,
            entropy=scores.entropy,
            log_sum_sq_probs=scores.log_sum_sq_probs,
            mean_logits=scores.mean_logits,
            is_top1=scores.is_top1,
            label_mask=labels[:, 1:] != -100,
        )

    model.forward = forward
    return engine


def _drops(name: str, module: Any) -> bool:
    """Whether a module of the model itself drops values in training: as a layer, or by a rate that it keeps."""
    if isinstance(module, torch.nn.Dropout):
        return bool(module.p) and "lora_dropout" not in name
    return any("dropout" in key and isinstance(value, float) and value > 0 for key, value in vars(module).items())


def _num_reply_tokens(inputs: dict[str, Any]) -> tuple[int, int]:
    chosen, rejected = inputs["completion_mask"][:, 1:].sum(dim=1).chunk(2)
    return int(chosen.sum()), int(rejected.sum())


def _shares(numbers: Any) -> np.ndarray:
    values: np.ndarray = np.asarray(numbers, dtype=float) / max(1, sum(numbers))
    return values


def _mean_difference(known: PairLogps | None, computed: PairLogps) -> float:
    assert known is not None
    differences = [np.abs(one - two) for one, two in zip(known, computed, strict=True)]
    return float(np.concatenate(differences).mean())


def make_trainer(
    policy: Any,
    config: LoraConfig | None,
    reference: Any,
    tokenizer: Any,
    pairs: list[TokenizedPair],
    contract: Contract,
    checkpoints: Path,
    *,
    learning_rate: float,
    bf16: bool,
    gradient_checkpointing: bool,
    callbacks: list[TrainerCallback],
    compiled: bool = False,
    cache: Callable[[str], ReferenceCache | None] | None = None,
    referred: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> PairTrainer:
    """A trainer that is ready to train.

    Args:
        policy: the model; a PEFT model when it comes with a starting adapter, and then `config` is None. TRL keeps a
            frozen copy of a starting adapter as the reference; with a new adapter the reference is the adapter off.

    Raises:
        InputError: TRL refuses the options.
    """
    arguments = make_arguments(
        contract,
        checkpoints,
        learning_rate=learning_rate,
        bf16=bf16,
        gradient_checkpointing=gradient_checkpointing,
        use_cpu=next(policy.parameters()).device.type == "cpu",
    )
    columns = [{"prompt_ids": p.prompt_ids, "chosen_ids": p.chosen_ids, "rejected_ids": p.rejected_ids} for p in pairs]
    try:
        trainer = PairTrainer(
            model=policy,
            ref_model=reference,
            peft_config=config,
            args=arguments,
            train_dataset=Dataset.from_list(columns),
            processing_class=tokenizer,
            callbacks=callbacks,
            data_collator=PairCollator(tokenizer.pad_token_id, arguments.ld_alpha, arguments.pad_to_multiple_of),
            trees=contract.training.engine == "tree",
            objective=OBJECTIVES[contract.training.objective],
            gamma=contract.training.gamma,
            compiled=compiled,
            cache=cache,
            referred=referred,
            say=say,
        )
    except (TypeError, ValueError, NotImplementedError) as error:
        raise InputError(f"TRL refuses these options: {one_line(error)}", where="training") from None
    trainer.remove_callback(PrinterCallback)
    return trainer


def make_arguments(contract: Contract, checkpoints: Path, **decided: Any) -> DPOConfig:
    """TRL's options: the contract's, and what was `decided` for this machine.

    Raises:
        InputError: TRL refuses them.
    """
    settings = contract.training
    options: dict[str, Any] = {"report_to": "none", "logging_steps": 5, "save_total_limit": 2, **settings.trl_options}
    objective = OBJECTIVES[settings.objective]
    if objective.trl_loss is None:
        options["loss_type"], options["loss_weights"] = ["sft"], [settings.sft_weight]
    else:
        options.setdefault("loss_type", objective.trl_loss)
    if settings.sft_weight > 0 and objective.trl_loss is not None:
        losses = options["loss_type"]
        losses = [losses] if isinstance(losses, str) else list(losses)
        options["loss_type"] = [*losses, "sft"]
        options["loss_weights"] = [1.0] * len(losses) + [settings.sft_weight]
    try:
        return DPOConfig(
            output_dir=str(checkpoints),
            beta=settings.beta,
            max_length=None,  # the pairs are cut already, by the rules of tokens.py
            precompute_ref_log_probs=settings.reference == "precomputed" or not objective.needs_reference,
            per_device_train_batch_size=settings.per_device_train_batch_size,
            gradient_accumulation_steps=settings.gradient_accumulation_steps,
            num_train_epochs=settings.num_train_epochs,
            warmup_steps=settings.warmup_steps,
            lr_scheduler_type=settings.lr_scheduler_type,
            max_grad_norm=settings.max_grad_norm,
            save_strategy="steps",
            save_steps=settings.save_steps if settings.save_steps < 1 else int(settings.save_steps),
            seed=settings.seed,
            disable_tqdm=True,
            **decided,
            **options,
        )
    except (TypeError, ValueError, NotImplementedError) as error:
        raise InputError(f"TRL refuses these options: {one_line(error)}", where="training") from None


def check_step0(trainer: PairTrainer, *, bf16: bool) -> float:
    """Refuse to train when policy and reference differ before the first step. Returns the largest margin, nats.

    Both sides go through the same rows here, so the margin is exactly 0; the tolerance covers only a second model into
    which a starting adapter was merged, which adds up in another order. A stored reference must agree too.

    Raises:
        StageError: a margin is not 0.
    """
    worst = float(np.max(np.abs(trainer.step0_margins())))  # NaN when one is
    tolerance = 0.0 if trainer.ref_model is None else 1.0 if bf16 else 5e-3
    if not worst <= tolerance:
        raise StageError(
            f"the margin before the first step is {worst:.3g} nats, not 0: the reference is not the model that is "
            "trained; nothing was done"
        )
    return worst
