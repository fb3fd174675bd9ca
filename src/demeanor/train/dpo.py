"""Everything that touches TRL: our pairs under TRL's DPOTrainer, a PEFT adapter, the reference, checkpoints.

The pairs arrive as token ids (`tokens.py`), so TRL neither applies a template nor truncates. TRL's losses, options,
logging and Accelerate stay as they are. The implicit reward of a reply is beta (log p_policy - log p_reference), the
loss -log sigmoid(reward of chosen - reward of rejected) (Rafailov et al. 2023); before the first step policy and
reference are the same function, so every margin is 0, which is checked.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import DPOConfig, DPOTrainer

from demeanor.contract import Contract
from demeanor.errors import InputError, ModelError, StageError, one_line
from demeanor.model import ModelSource
from demeanor.tokens import TokenizedPair

COMPLETE = "complete.json"  # written into a checkpoint last; one without it was cut short and is not resumed from


class PairTrainer(DPOTrainer):
    """TRL's DPOTrainer over pairs that are token ids already (`prompt_ids`, `chosen_ids`, `rejected_ids`)."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset


def lora_config(source: ModelSource, base: Any, contract: Contract) -> LoraConfig:
    """The new adapter's configuration.

    Raises:
        ModelError: the model has no layer of the names in `lora_target_modules`.
    """
    settings = contract.training
    targets = settings.lora_target_modules
    layers = _linear_layers(base)
    names = sorted({name.rsplit(".", 1)[-1] for name in layers})
    missing = [] if isinstance(targets, str) else [target for target in targets if target not in names]
    if missing:
        raise ModelError(
            f"has no layers called {', '.join(missing)}",
            where=source.name,
            remedy=f"set training.lora_target_modules to some of {', '.join(names)}, or to all-linear",
        )
    return LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
        revision=source.commit,
        fan_in_fan_out=any(type(layer).__name__ == "Conv1D" for layer in layers.values()),
    )


def num_trainable(policy: Any, config: LoraConfig | None) -> int:
    """Parameters that will be trained: those of the starting adapter, or r (in + out) for each layer of a new one."""
    if config is None:
        return sum(p.numel() for p in policy.parameters() if p.requires_grad)
    targets = config.target_modules
    chosen = [
        layer
        for name, layer in _linear_layers(policy).items()
        if isinstance(targets, str) or name.rsplit(".", 1)[-1] in targets
    ]
    return sum(config.r * sum(layer.weight.shape) for layer in chosen)


def _linear_layers(model: Any) -> dict[str, Any]:
    return {name: layer for name, layer in model.named_modules() if type(layer).__name__ in ("Linear", "Conv1D")}


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
    if settings.sft_weight > 0:
        losses = options.get("loss_type", "sigmoid")
        losses = [losses] if isinstance(losses, str) else list(losses)
        options["loss_type"] = [*losses, "sft"]
        options["loss_weights"] = [1.0] * len(losses) + [settings.sft_weight]
    try:
        return DPOConfig(
            output_dir=str(checkpoints),
            beta=settings.beta,
            max_length=None,  # the pairs are cut already, by the rules of tokens.py
            precompute_ref_log_probs=settings.reference == "precomputed",
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


def step0_margins(trainer: PairTrainer) -> list[float]:
    """Margins (nats, without beta) of the first pairs before any step: (chosen - rejected) of policy - reference."""
    num_pairs = min(trainer.args.per_device_train_batch_size, len(trainer.train_dataset))
    rows = [trainer.train_dataset[index] for index in range(num_pairs)]
    batch = {key: value.to(trainer.accelerator.device) for key, value in trainer.data_collator(rows).items()}
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    model = trainer.model.eval()
    ld_alpha, trainer.ld_alpha = trainer.ld_alpha, None  # plain sums on both sides
    with torch.no_grad(), trainer.accelerator.autocast():
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
        chosen, rejected = model(**inputs, labels=labels, fused_lm_head=True).log_probs.sum(dim=1).chunk(2)
        if "ref_chosen_logps" in batch:
            ref_chosen, ref_rejected = batch["ref_chosen_logps"], batch["ref_rejected_logps"]
        else:
            ref_chosen, ref_rejected = trainer.compute_ref_log_probs(trainer.ref_model or model, batch)
    trainer.ld_alpha = ld_alpha
    margins: list[float] = ((chosen - rejected) - (ref_chosen - ref_rejected)).float().tolist()
    return margins


def check_step0(trainer: PairTrainer, *, bf16: bool) -> float:
    """Refuse to train when policy and reference differ before the first step. Returns the largest margin, nats.

    The tolerance covers only that a precomputed or merged reference is added up in another order.

    Raises:
        StageError: a margin is not 0.
    """
    worst = max(map(abs, step0_margins(trainer)))
    exact = trainer.ref_model is None and not trainer.precompute_ref_logps
    tolerance = 0.0 if exact else 1.0 if bf16 else 5e-3
    if not worst <= tolerance:
        raise StageError(
            f"the margin before the first step is {worst:.3g} nats, not 0: the reference is not the model that is "
            "trained; nothing was done"
        )
    return worst


def last_checkpoint(checkpoints: Path, key: str) -> Path | None:
    """The newest complete checkpoint of a training with the inputs `key`; all others are removed."""
    good: dict[int, Path] = {}
    for folder in checkpoints.glob("checkpoint-*"):
        try:
            marker = json.loads((folder / COMPLETE).read_text("utf-8"))
        except (OSError, ValueError):
            marker = {}
        if marker.get("key") == key:
            good[int(marker["step"])] = folder
        else:
            shutil.rmtree(folder)
    return good[max(good)] if good else None


class MarkComplete(TrainerCallback):
    """Writes the marker into each checkpoint once all else of it is on disk."""

    def __init__(self, key: str) -> None:
        self.key = key

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        aside = folder / f".{COMPLETE}"
        aside.write_text(json.dumps({"key": self.key, "step": state.global_step}), "utf-8")
        aside.replace(folder / COMPLETE)


class Watch(TrainerCallback):
    """Reports each step and each log, warns once of likelihood displacement, and stops after a step when asked.

    Args:
        beta: rewards are divided by it to give changes of log p in nats.
        advance: called with the number of steps done, then of all.
        report: called with each log's figures.
        say: called with a warning.
        stop: asked after each step; True saves a checkpoint and ends the training.
    """

    PATIENCE = 5  # logs in a row before the warning

    def __init__(
        self,
        beta: float,
        advance: Callable[[int, int], None],
        report: Callable[[dict[str, float]], None],
        say: Callable[[str], None],
        stop: Callable[[], bool],
    ) -> None:
        self.beta, self.advance, self.report, self.say, self.stop = beta, advance, report, say, stop
        self.falling = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.advance(state.global_step, state.max_steps)
        if self.stop() and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if not logs or "rewards/chosen" not in logs:
            return
        self.report(logs)
        change = float(logs["rewards/chosen"]) / self.beta
        self.falling = self.falling + 1 if change < -1.0 and float(logs["rewards/margins"]) > 0 else 0
        if self.falling == self.PATIENCE:
            self.say(
                f"the chosen replies become less likely (now {change:+.1f} nats) while the margin grows: likelihood "
                "displacement; training.sft_weight (0.1 to 1) holds them up"
            )
