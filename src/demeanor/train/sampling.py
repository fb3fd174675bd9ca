"""Replies that are sampled in training and rewarded: what TRL's GRPOTrainer and RLOOTrainer have in common.

For each prompt of the training pairs `num_generations` replies are sampled from the policy; a group whose replies are
all rewarded alike teaches nothing. The prompts are token ids already (`tokens.py`); the engine computes a group's
shared prompt once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl.import_utils import is_vllm_available
from trl.trainer.utils import RepeatSampler, use_adapter

from demeanor.contract import Contract
from demeanor.errors import InputError
from demeanor.records import PreferencePair
from demeanor.tokens import TokenizedPair, Tokenizer
from demeanor.train.on_trees import OnTrees, common_options, refused_by_trl
from demeanor.train.rewards import Rewards, Sample, reply_of, reward_runs

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Source:
    """What an online objective needs to know of the pairs beside their tokens, in the same order."""

    tokenizer: Tokenizer
    pairs: list[PreferencePair]


class EpochSampler(RepeatSampler):
    """TRL's, but an epoch's order depends on the seed and the epoch alone: a resumed training sees the prompts that an
    uninterrupted one sees."""

    def set_epoch(self, epoch: int) -> None:
        if self.shuffle:
            self.generator.manual_seed(self.seed + epoch)


class Sampling(OnTrees):
    """Put before TRL's trainer: its prompts are token ids already. A row of its data set: `prompt` (the rendered text),
    `prompt_ids`, `reply_ids` (of a pair, only to try the engine on), `number` (of `samples_of`).

    Args:
        source: the tokenizer, whose rules say where a reply ends.
        origins: for each row's `number` the pair that its prompt is of.
    """

    reply_columns = ("reply_ids",)
    paired = False
    # what TRL's trainers have, which declare no types
    use_vllm: bool
    generation_kwargs: dict[str, Any]
    generation_config: Any
    num_generations: int
    num_iterations: int
    shuffle_dataset: bool
    mask_truncated_completions: bool
    max_completion_length: int
    _tokenizer: Any

    def __init__(self, *args: Any, source: Source, origins: list[PreferencePair], **options: Any) -> None:
        self.source, self.origins = source, origins
        super().__init__(*args, **options)
        self.prompt_ids = {row["prompt"]: row["prompt_ids"] for row in self.train_dataset}
        self.eos_token_ids = list(source.tokenizer.end_ids)
        if not self.use_vllm:
            self.generation_kwargs["eos_token_id"] = self.generation_config.eos_token_id = self.eos_token_ids

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [self.prompt_ids[prompt] for prompt in prompts], None, {}

    def _get_train_sampler(self, dataset: Dataset | None = None) -> RepeatSampler:
        return EpochSampler(
            data_source=self.train_dataset if dataset is None else dataset,
            mini_repeat_count=self.num_generations,
            batch_size=self.args.generation_batch_size // self.num_generations,
            repeat_count=self.num_iterations * self.args.steps_per_generation,
            shuffle=self.shuffle_dataset,
            seed=self.args.seed,
        )

    def samples_of(self, numbers: Sequence[int], replies: Sequence[list[int]]) -> list[Sample]:
        """The sampled replies as the rewards take them."""
        found = []
        for number, ids in zip(numbers, replies, strict=True):
            pair, row = self.origins[number], self.train_dataset[int(number)]
            reply, text = reply_of(ids, self.source.tokenizer.inner, self.source.tokenizer.end_ids)
            where = f"row {pair.row} of {pair.source}"
            found.append(Sample(where, pair.prompt, pair.behaviour, row["prompt_ids"], reply, text))
        return found

    def mean_logps(self, samples: Sequence[Sample]) -> list[float]:
        """Of each reply under the model before training, nats a token."""
        batch = self._collate([{"prompt_ids": s.prompt_ids, "reply_ids": s.reply_ids} for s in samples])
        model = self.accelerator.unwrap_model(self.model)
        with use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None):
            logps = self._token_logps(self.model, batch)
        # the logits were divided by the sampling temperature, as in training
        mask = batch["completion_mask"][:, 1:]
        return ((logps * mask).sum(dim=1) / mask.sum(dim=1)).tolist()

    def _cannot(self, base: Any) -> str | None:
        if getattr(self, "_entropy_bonus_enabled", False):
            return "the entropy bonus needs a gradient that the engine does not give"
        if self.mask_truncated_completions:
            return "a row of truncated replies only would have nothing to score"
        if self.temperature != 1.0 and getattr(base.get_output_embeddings(), "bias", None) is not None:
            return "the language-model head has a bias and the temperature is not 1"
        window = getattr(base.config.get_text_config(), "sliding_window", None)
        longest = max(len(ids) for ids in self.train_dataset["prompt_ids"]) + self.max_completion_length
        if window is not None and longest > window:
            return f"its attention sees {window} tokens and the longest reply may end at {longest}"
        return super()._cannot(base)

    def _collate(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        """As TRL lays out a batch of replies: prompts end, and replies begin, at the same place."""
        prompts, replies = (max(len(row[name]) for row in rows) for name in ("prompt_ids", "reply_ids"))
        input_ids = torch.full((len(rows), prompts + replies), self._tokenizer.pad_token_id)
        attention_mask, completion_mask = torch.zeros_like(input_ids), torch.zeros_like(input_ids)
        for number, row in enumerate(rows):
            start, end = prompts - len(row["prompt_ids"]), prompts + len(row["reply_ids"])
            input_ids[number, start:end] = torch.tensor(row["prompt_ids"] + row["reply_ids"])
            attention_mask[number, start:end] = 1
            completion_mask[number, prompts:end] = 1
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "completion_mask": completion_mask}
        return {name: value.to(self.accelerator.device) for name, value in batch.items()}

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **options: Any,
    ) -> Any:
        lean = self.engine.only_log_probs() if self.engine and not options.get("compute_entropy") else nullcontext()
        if self.engine is not None:
            batch_size = None  # the engine fills its own rows
        with lean:
            return super()._get_per_token_logps_and_entropies(  # type: ignore[misc]
                model, input_ids, attention_mask, logits_to_keep, batch_size, **options
            )


def prompts_of(
    pairs: Sequence[TokenizedPair], source: Source, room: int, judged: set[str] | None
) -> tuple[list[Row], list[PreferencePair], dict[str, int]]:
    """The distinct prompts of the pairs, as rows and the pairs they come from; and how many were left out, by reason.

    Args:
        room: tokens that a prompt may have.
        judged: behaviours that the rewards can tell apart; None: all.
    """
    rows: list[Row] = []
    origins: list[PreferencePair] = []
    seen: set[Any] = set()
    left_out: dict[str, int] = {}
    for tokens, pair in zip(pairs, source.pairs, strict=True):
        key = pair.prompt, pair.behaviour
        if key in seen:
            continue
        seen.add(key)
        if len(tokens.prompt_ids) > room:
            reason = f"a reply of max_completion_length does not fit after their {room:,} tokens"
        elif judged is not None and pair.behaviour not in judged:
            reason = "their behaviour has nothing to judge by"
        else:
            text = source.tokenizer.inner.decode(tokens.prompt_ids)
            reply = tokens.chosen_ids or tokens.rejected_ids
            rows.append({"prompt": text, "prompt_ids": tokens.prompt_ids, "reply_ids": reply, "number": len(rows)})
            origins.append(pair)
            continue
        left_out[reason] = left_out.get(reason, 0) + 1
    return rows, origins, left_out


def make_sampling_trainer(
    kind: type[Sampling],
    contract: Contract,
    arguments: Any,
    tokenizer: Any,
    pairs: list[TokenizedPair],
    *,
    source: Source,
    ref_model: Any = None,
    **given: Any,
) -> Any:
    """A trainer of this kind over the pairs' prompts that is ready to train.

    Args:
        given: model, peft_config and callbacks as TRL's trainer takes them, and what `OnTrees` takes.

    Raises:
        InputError: TRL refuses the options, no prompt is left, or a reward cannot be computed.
    """
    config = given["model"].config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None) or 1 << 30
    only_judge = all(reward.kind == "judge" for reward in contract.rewards)
    judged = {name for name, promise in contract.promises.items() if promise.is_judged}
    rows, origins, left_out = prompts_of(
        pairs, source, positions - arguments.max_completion_length, judged if only_judge else None
    )
    say: Callable[[str], None] = given.get("say", lambda line: None)
    for reason, count in left_out.items():
        say(f"{contract.training.objective}: {count:,} prompts left out: {reason}")
    groups = arguments.generation_batch_size // arguments.num_generations
    if len(rows) < groups:
        raise InputError(
            f"{len(rows)} prompts are fewer than one step takes ({groups})",
            where="training.per_device_train_batch_size",
            remedy="lower it, or bring more prompts",
        )
    names = ", ".join(f"{reward.weight:g} {reward.title}" for reward in contract.rewards)
    sampler = "vLLM" if arguments.use_vllm else "transformers"
    size = f"{len(rows):,} prompts, {arguments.num_generations} replies each, sampled by {sampler}"
    say(f"{contract.training.objective}: {size}; reward: {names}")
    for path, run in reward_runs(contract).items():
        say(f"reward model {path}: {run.describe()}")
    if arguments.use_vllm:  # which reads the end of turn from the model's own files
        ends = {"stop_token_ids": list(source.tokenizer.end_ids)}
        arguments.generation_kwargs = {**ends, **(arguments.generation_kwargs or {})}
    made: list[Sampling] = []
    rewards = Rewards(contract, lambda samples: made[0].mean_logps(samples))

    def by_trl(place: int, name: str) -> Callable[..., list[float]]:
        def reward(completion_ids: list[list[int]], number: list[int], **_: Any) -> list[float]:
            return rewards.functions[place](made[0].samples_of(number, completion_ids))

        reward.__name__ = name
        return reward

    with refused_by_trl():
        made.append(
            kind(
                args=arguments,
                reward_funcs=[by_trl(place, item.title) for place, item in enumerate(rewards.settings)],
                train_dataset=Dataset.from_list(rows),
                processing_class=tokenizer,
                source=source,
                origins=origins,
                **given,
            )
        )
    return made[0]


def sampling_options(contract: Contract, checkpoints: Path, **decided: Any) -> dict[str, Any]:
    """TRL's options: the contract's, and what was `decided` for this machine. vLLM samples where it is installed and
    there is a GPU, else transformers.

    Raises:
        InputError: the contract asks for vLLM, which is not installed.
    """
    settings = contract.training
    options = {**common_options(settings, checkpoints), "logging_steps": 1, **settings.trl_options, **decided}
    del options["max_length"]
    num_generations = options.setdefault("num_generations", 8)
    options["per_device_train_batch_size"] *= num_generations  # of TRL it is the number of replies
    options.setdefault("max_completion_length", contract.measurement.max_new_tokens)
    options.setdefault("use_vllm", torch.cuda.is_available() and is_vllm_available())
    if options["use_vllm"] and not is_vllm_available():
        raise InputError(
            "vLLM is not installed",
            where="training.use_vllm",
            remedy="pip install 'trl[vllm]', or leave the key out: transformers samples then",
        )
    return {"reward_weights": [reward.weight for reward in contract.rewards], **options}


def zero_variance(log: Sequence[dict[str, Any]], groups_a_step: float) -> tuple[int, int]:
    """(groups whose replies were all rewarded alike, all groups) of a training's log.

    Args:
        groups_a_step: new ones; less than a step's prompts where samples serve several steps.
    """
    alike, last = 0.0, 0
    for entry in log:
        if "frac_reward_zero_std" in entry:
            alike += float(entry["frac_reward_zero_std"] or 0.0) * (entry["step"] - last) * groups_a_step
            last = entry["step"]
    return round(alike), round(last * groups_a_step)
