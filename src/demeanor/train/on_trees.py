"""The prefix-tree engine under one of TRL's trainers, and the reference that is kept for later runs.

TRL 1.16 scores log-probabilities through one seam, a forward pass with `fused_lm_head=True`; `OnTrees` answers there
with the engine, so that TRL's losses, options, logging and Accelerate stay as they are. A batch that fills several rows
goes backward row by row, so that memory is a row's and not the batch's; the gradient is the same sum.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import FusedCausalLMOutput, use_adapter

from demeanor.contract import Training
from demeanor.errors import InputError, StageError, one_line
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


class OnTrees:
    """Put before a trainer of TRL whose rows are token ids: `prompt_ids`, and two replies in `reply_columns`.

    A model whose attention does not take trees is trained on TRL's padded batches, and one line says so.

    Args:
        trees: use the engine.
        compiled: let torch.compile fuse the engine's arithmetic (`elementwise.py`), in the whole process.
        cache: where the reference's log-probabilities are kept, when they are precomputed.
        referred: called with the number of rows whose reference is known, then of all.
        say: called with a line for the user.
    """

    reply_columns: tuple[str, ...]  # of the data set
    temperature = 1.0  # that the logits are divided by
    unit = "nats a token"  # of what the engine is compared in
    paired = True  # sequences i and i + B of a batch [2B, L] belong together
    lists: Sequence[object] | None = None  # for each row the ranked list that it is of
    # what TRL's trainers have, which declare no types
    accelerator: Any
    args: Any
    model: Any
    ref_model: Any
    train_dataset: Any
    eval_dataset: Any
    data_collator: Any
    aux_loss_enabled: bool
    is_fsdp_enabled: bool
    is_deepspeed_enabled: bool
    precompute_ref_logps: bool
    _metrics: dict[str, Any]

    def __init__(
        self,
        *args: Any,
        trees: bool = True,
        compiled: bool = False,
        cache: Callable[[str], ReferenceCache | None] | None = None,
        referred: Callable[[int, int], None] = lambda done, total: None,
        say: Callable[[str], None] = lambda line: None,
        **options: Any,
    ) -> None:
        self.trees, self.compiled, self.cache, self.referred, self.say = trees, compiled, cache, referred, say
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
        head = base.get_output_embeddings()
        if head is not None and any(parameter.requires_grad for parameter in head.parameters()):
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
                len(row["prompt_ids"]) + max(len(row[name]) for name in self.reply_columns)
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
        columns = "prompt_ids", *self.reply_columns
        batch = self._collate([min(self.train_dataset, key=lambda row: sum(len(row[name]) for name in columns))])
        expected = self._tried(batch)
        models = [base] if self.ref_model is None else [base, self.accelerator.unwrap_model(self.ref_model)]
        before = [(model, model.forward, model.config._attn_implementation) for model in models]

        def compare() -> None:
            found = self._tried(batch)
            difference = (found - expected).abs().sum().item() / max(1, int((expected != 0).sum()))
            if not difference <= self._tolerance:
                raise ValueError(f"difference {difference:.2g} {self.unit}")

        try:
            engines = [self._install(model) for model in models]
            for engine in engines:
                engine.temperature = self.temperature
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

    def _rows(self, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        """The batch cut into the engine's rows, or the whole batch when it is one row or must stay together."""
        if self.engine is None or self.accelerator.num_processes > 1:
            return [inputs]
        batch = self.engine.plan(inputs["input_ids"], inputs["attention_mask"])
        if len(batch.rows) < 2:
            return [inputs]
        length = len(inputs["input_ids"])
        half = length // 2 if self.paired else length
        parts = []
        for groups in batch.groups:
            numbers = [*groups, *(group + half for group in groups)] if self.paired else groups
            index = torch.tensor(numbers, device=inputs["input_ids"].device)
            longest = int(inputs["attention_mask"][index].sum(dim=1).max())
            part = {}
            for name, value in inputs.items():
                if len(value) == half and self.paired:
                    part[name] = value[index[: len(groups)]]
                else:
                    part[name] = value[index] if value.ndim == 1 else value[index, :longest]
            parts.append(part)
        return parts

    def _average(
        self,
        parts: Sequence[Any],
        step: Callable[[int], torch.Tensor],
        weights: Callable[[str], Any],
        mode: str = "train",
    ) -> torch.Tensor:
        """`step(i)` for each part; what the parts logged becomes one value of the batch: their mean by `weights(name)`,
        of those parts that logged it. Returns the sum of the losses."""
        metrics = self._metrics[mode]
        logged: dict[str, list[tuple[int, float]]] = {}
        total = torch.zeros((), device=self.accelerator.device)
        for number in range(len(parts)):
            marks = {name: len(values) for name, values in metrics.items()}
            total += step(number)
            for name, values in metrics.items():
                mark = marks.get(name, 0)
                if len(values) == mark + 1 and name != "num_tokens":  # which is a running total
                    logged.setdefault(name, []).append((number, values.pop()))
        for name, found in logged.items():
            numbers, values = zip(*found, strict=True)
            own = np.asarray(weights(name), dtype=float)[list(numbers)]
            metrics[name].append(float(np.dot(own, values) / own.sum()) if own.sum() else float(np.mean(values)))
        return total

    # ------------------------------------------------------------ the reference

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _find_reference(self, dataset: Dataset) -> list[PairLogps]:
        """Per-token log-probabilities of both replies of each row, from the cache as far as it knows them."""
        started = time.perf_counter()
        pairs = [
            TokenizedPair(str(number), row["prompt_ids"], *(row[name] for name in self.reply_columns))
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
        missing = self._by_length(sorted(set(range(len(pairs))) - set(held)), pairs)
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
        self.reference_seconds += time.perf_counter() - started
        return [values for values in known if values is not None]

    def _by_length(self, numbers: list[int], pairs: Sequence[TokenizedPair]) -> list[int]:
        """The pairs' numbers, short ones first; those of a ranked list together, because they are one tree."""
        of_list = self.lists if self.lists and len(self.lists) == len(pairs) else range(len(pairs))
        first: dict[object, int] = {}
        longest: dict[object, int] = {}
        for number in numbers:
            first.setdefault(of_list[number], number)
            longest[of_list[number]] = max(longest.get(of_list[number], 0), pairs[number].num_tokens)
        return sorted(numbers, key=lambda number: (longest[of_list[number]], first[of_list[number]]))

    def _reference_logps(self, pairs: Sequence[TokenizedPair]) -> list[PairLogps]:
        rows = [{"prompt_ids": p.prompt_ids, "chosen_ids": p.chosen_ids, "rejected_ids": p.rejected_ids} for p in pairs]
        collate = DataCollatorForPreference(pad_token_id=self.data_collator.pad_token_id)
        batch = {name: value.to(self.accelerator.device) for name, value in collate(rows).items()}
        model = self.accelerator.unwrap_model(self.ref_model or self.model)
        if self.ref_model is None and hasattr(model, "peft_config"):
            with use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None):
                values = self._token_logps(model, batch)
        else:
            values = self._token_logps(model, batch)
        found = values.cpu().numpy()
        result = []
        for number, pair in enumerate(pairs):
            start = len(pair.prompt_ids) - 1
            one, two = found[number, start:], found[number + len(pairs), start:]
            result.append((one[: len(pair.chosen_ids)].copy(), two[: len(pair.rejected_ids)].copy()))
        return result

    def _collate(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {name: value.to(self.accelerator.device) for name, value in self.data_collator(rows).items()}

    def _tried(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """What the engine must give as TRL's own forward pass does, 0 where there is nothing to compare."""
        return self._token_logps(self.model, batch)

    def _token_logps(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """[2B, L - 1], nats, as TRL would compute them; no gradient."""
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
        lean = self.engine.only_log_probs() if self.engine else nullcontext()
        with self._evaluating(model), lean:
            inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
            values: torch.Tensor = model(**inputs, use_cache=False, labels=labels, fused_lm_head=True).log_probs
        return values

    @contextmanager
    def _evaluating(self, model: Any) -> Iterator[None]:
        """In evaluation mode, without gradients, in the precision of the training."""
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad(), self.accelerator.autocast():
                yield
        finally:
            model.train(was_training)

    def _install(self, model: Any) -> TreeEngine:
        """Answer TRL's `fused_lm_head=True` calls with the engine; all else goes where it went."""
        engine = TreeEngine(model, paired=self.paired)
        plain = model.forward

        @functools.wraps(type(model).forward)  # `generate` reads the signature
        def forward(
            *args: Any, fused_lm_head: bool = False, labels: Any = None, shift_labels: Any = None, **kwargs: Any
        ) -> Any:
            if not fused_lm_head:
                given = {"labels": labels, "shift_labels": shift_labels}
                return plain(*args, **kwargs, **{name: value for name, value in given.items() if value is not None})
            if args or shift_labels is not None:
                raise NotImplementedError(
                    "context parallelism is not supported by the engine: set training.engine: padded"
                )
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

    def step0_margins(self) -> list[float]:
        """Of the first rows before any step, nats: how far the policy is from the reference in what the loss compares.
        The reference is computed here and now; a cached one has been compared with the model already."""
        num_rows = min(self.args.per_device_train_batch_size, len(self.train_dataset))
        batch = self._collate([self.train_dataset[index] for index in range(num_rows)])
        return self._margins(batch).float().tolist()

    def _margins(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        raise NotImplementedError


def _drops(name: str, module: Any) -> bool:
    """Whether a module of the model itself drops values in training: as a layer, or by a rate that it keeps."""
    if isinstance(module, torch.nn.Dropout):
        return bool(module.p) and "lora_dropout" not in name
    return any("dropout" in key and isinstance(value, float) and value > 0 for key, value in vars(module).items())


def shares(numbers: Any) -> np.ndarray:
    values: np.ndarray = np.asarray(numbers, dtype=float) / max(1, sum(numbers))
    return values


def _mean_difference(known: PairLogps | None, computed: PairLogps) -> float:
    assert known is not None
    differences = [np.abs(one - two) for one, two in zip(known, computed, strict=True)]
    return float(np.concatenate(differences).mean())


def common_options(settings: Training, checkpoints: Path) -> dict[str, Any]:
    """What every trainer of TRL is told, by TRL's names."""
    return {
        "output_dir": str(checkpoints),
        "report_to": "none",
        "logging_steps": 5,
        "save_total_limit": 2,
        "beta": settings.beta,
        "max_length": None,  # the rows are cut already, by the rules of tokens.py
        "per_device_train_batch_size": settings.per_device_train_batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        "num_train_epochs": settings.num_train_epochs,
        "warmup_steps": settings.warmup_steps,
        "lr_scheduler_type": settings.lr_scheduler_type,
        "max_grad_norm": settings.max_grad_norm,
        "save_strategy": "steps",
        "save_steps": settings.save_steps if settings.save_steps < 1 else int(settings.save_steps),
        "seed": settings.seed,
        "disable_tqdm": True,
    }


@contextmanager
def refused_by_trl() -> Iterator[None]:
    """What TRL raises about its options is the user's to mend.

    Raises:
        InputError: TRL's words in one line. A fault of our own stays what it is.
    """
    try:
        yield
    except (TypeError, ValueError, NotImplementedError) as error:
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        if frame is not None and str(frame.tb_frame.f_globals.get("__name__", "")).startswith("demeanor."):
            raise
        raise InputError(f"TRL refuses these options: {one_line(error)}", where="training") from None


def check_step0(trainer: OnTrees, *, bf16: bool) -> float:
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
