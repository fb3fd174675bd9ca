"""Pairs -> adapter, through TRL, resumable, with a check that training starts where the reference stands."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demeanor.contract import Contract
from demeanor.errors import InputError, Interrupted, ModelError, StageError, one_line
from demeanor.model import ModelSource, load_model, load_reward_model
from demeanor.objectives import OBJECTIVES
from demeanor.tokens import TokenizedPair

if TYPE_CHECKING:
    from demeanor.train.sampling import Source

__all__ = ["check_training", "train_adapter"]


def train_adapter(
    source: ModelSource,
    tokenizer: Any,
    pairs: list[TokenizedPair],
    contract: Contract,
    *,
    checkpoints: Path,
    out: Path,
    key: str,
    source_pairs: Source | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
    referred: Callable[[int, int], None] = lambda done, total: None,
    report: Callable[[dict[str, float]], None] = lambda logs: None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train the adapter, from the last checkpoint when there is one, and save it to the folder `out`.

    Args:
        source: the model, perhaps with a starting adapter.
        tokenizer: the Hugging Face tokenizer, saved beside the adapter.
        pairs: token ids.
        checkpoints: folder of the checkpoints.
        source_pairs: for an objective that samples its own replies, the pairs' texts in the same order.
        key: digest of everything that changes the result; a checkpoint with another key is not used.
        advance: called with the steps done and all steps.
        referred: called with the pairs whose reference is known and all pairs, while it is computed.
        report: called with each log of TRL (loss, rewards/chosen, logps/chosen, ...).
        say: called with a line for the user.

    Returns:
        A JSON summary: settings in effect, memory estimated and measured (`peak_bytes`: highest above that before the
        model was loaded), seconds of the steps (those before a checkpoint that was resumed from included), and TRL's
        log history.

    Raises:
        InputError: there is no pair, or an option is wrong.
        Interrupted: Ctrl-C; the steps so far are in a checkpoint.
        StageError: the step-0 margin is not 0, memory does not suffice, or the weights became not finite.
    """
    if not pairs:
        raise InputError("there is no pair to train on")
    from transformers.trainer_callback import PrinterCallback
    from transformers.utils.logging import disable_progress_bar

    from demeanor.train import adapter, callbacks, elementwise
    from demeanor.train.memory import PeakMemory, device_in_use, estimate_memory
    from demeanor.train.on_trees import check_step0
    from demeanor.train.reference import ReferenceCache, reference_key

    disable_progress_bar()
    settings = contract.training
    family, objective = _family(contract), OBJECTIVES[settings.objective]
    peak = PeakMemory()  # after the imports, which a measurement before may have made already
    if objective.trains_reward_model:
        base: Any = load_reward_model(source, contract, tokenizer.pad_token_id)
    else:
        base = load_model(source, contract, tuned=False)
    policy, config = base, None
    if source.adapter is None:
        config = adapter.lora_config(source, base, contract)
    else:
        from peft import PeftModel

        policy = PeftModel.from_pretrained(base, source.adapter, is_trainable=True)
        say(f"training goes on with the adapter in {source.name}; its own rank and layers are used, not lora_r")
    bf16 = settings.bf16 if settings.bf16 is not None else not settings.trl_options.get("fp16") and wants_bf16(base)
    if objective.online:
        at_a_time = sampled_at_a_time(pairs, family.make_arguments(contract, checkpoints, bf16=bf16, use_cpu=True))
    else:
        at_a_time = tokens_at_a_time(pairs, settings.per_device_train_batch_size, trees=settings.engine == "tree")
    memory = estimate_memory(
        base,
        num_trainable=adapter.num_trainable(policy, config),
        tokens=at_a_time,
        copy=settings.reference == "copy",
        trees=settings.engine == "tree",
        bf16=bf16,
        vocabulary=not objective.trains_reward_model,
    )
    checkpointing = settings.gradient_checkpointing
    if checkpointing is None:
        checkpointing = memory.needs_checkpointing
    say(f"memory: {memory.describe(checkpointing=checkpointing)}")
    if not memory.fits:
        say("memory: the estimate exceeds what is free; a smaller per_device_train_batch_size or max_length needs less")
    learning_rate = settings.learning_rate or default_learning_rate(base) * objective.learning_rate
    reference = load_model(source, contract) if settings.reference == "copy" else None

    def cache(layout: str) -> ReferenceCache | None:
        device = f"{base.device.type} {base.dtype} {layout}"
        try:
            return ReferenceCache(reference_key(source.fingerprint, tokenizer.chat_template, bf16=bf16, device=device))
        except StageError as error:
            say(f"reference: not kept for later runs; {error}")
            return None

    compiled = settings.compile
    if compiled is None and objective.online:
        compiled = False  # every step has rows of other shapes
    elif compiled is None:
        shape = base.config.get_text_config()
        num_tokens = sum(p.num_tokens for p in pairs) * (settings.num_train_epochs + 1)  # once more for the reference
        compiled = elementwise.worth_compiling(shape.num_hidden_layers, shape.hidden_size, num_tokens, base.device.type)
    stopper, mark = _Stopper(), callbacks.MarkComplete(key)
    arguments = family.make_arguments(
        contract,
        checkpoints,
        learning_rate=learning_rate,
        bf16=bf16,
        gradient_checkpointing=checkpointing,
        use_cpu=base.device.type == "cpu",
    )
    trainer = family.make_trainer(
        contract,
        arguments,
        tokenizer,
        pairs,
        model=policy,  # with a starting adapter TRL keeps a frozen copy of it as the reference; else the adapter off
        ref_model=reference,
        peft_config=config,
        trees=settings.engine == "tree",
        compiled=compiled,
        callbacks=[
            # without a reference no reward tells how far a reply has moved, and single replies have no margin
            callbacks.Watch(
                settings.beta if objective.needs_reference and objective.takes_pairs else math.inf,
                settings.sft_weight,
                advance,
                report,
                say,
                stopper.asked,
            ),
            *([callbacks.WholeWindows(steps_a_window(arguments))] if objective.online else []),
            mark,
        ],
        **({"source": source_pairs} if objective.online else {}),
        cache=cache,
        referred=referred,
        say=say,
    )
    trainer.remove_callback(PrinterCallback)
    step0 = check_step0(trainer, bf16=bf16) if objective.needs_reference and not objective.online else None
    checkpoint = callbacks.last_checkpoint(checkpoints, key)
    if checkpoint is not None:
        say(f"resumed from {checkpoint.name}")
        mark.seconds_before = callbacks.seconds_until(checkpoint)
    try:
        with stopper.listening():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        elementwise.compile_none()  # what is measured from here on is computed as it was before
    state = trainer.state
    if stopper.asked() and state.global_step < state.max_steps:
        raise Interrupted(f"stopped after step {state.global_step} of {state.max_steps}; the checkpoint is kept")
    policy = trainer.accelerator.unwrap_model(trainer.model)
    if not all(bool(p.isfinite().all()) for p in policy.parameters() if p.requires_grad):
        raise StageError("the adapter's weights are no longer finite; a smaller learning_rate helps")
    more = {} if not objective.online else _of_groups(state.log_history, settings.objective, trainer, say)
    more |= {"reward_model_seconds": round(spent, 2)} if (spent := _on_reward_models(contract)) else {}
    policy.save_pretrained(out, selected_adapters=["default"])
    tokenizer.save_pretrained(out)
    return {
        "learning_rate": learning_rate,
        "bf16": bf16,
        "gradient_checkpointing": checkpointing,
        "memory_bytes": memory.to_json(),
        "peak_bytes": peak.above_start(),
        "device": device_in_use(base, trainer.accelerator.num_processes),
        "engine": "tree" if trainer.engine else "padded",
        "objective": settings.objective,
        "reference": _reference(contract),
        "reference_seconds": round(trainer.reference_seconds, 2),
        "step0_margin_nats": step0,
        "num_pairs": len(pairs),
        "num_trainable": sum(p.numel() for p in policy.parameters() if p.requires_grad),
        "steps": state.global_step,
        **more,
        "seconds": round(mark.seconds(), 2),
        "log": [{name: _finite(value) for name, value in entry.items()} for entry in state.log_history],
    }


def _on_reward_models(contract: Contract) -> float:
    """Seconds that the training of the reward models took that this training needs."""
    if not OBJECTIVES[contract.training.objective].online:
        return 0.0
    from demeanor.train.rewards import reward_runs

    return sum(run.seconds for run in reward_runs(contract).values())


def _family(contract: Contract) -> Any:
    """The module that has the contract's objective: `make_arguments` and `make_trainer`."""
    return import_module(f"demeanor.train.{OBJECTIVES[contract.training.objective].trainer}")


def _reference(contract: Contract) -> str:
    settings, objective = contract.training, OBJECTIVES[contract.training.objective]
    if objective.online:
        return "adapter-off" if settings.beta else "none"
    return settings.reference if objective.needs_reference else "none"


def steps_a_window(arguments: Any) -> int:
    """Optimiser steps after which a window of shared samples and a step end together."""
    window = arguments.steps_per_generation * arguments.num_iterations
    return math.lcm(window, arguments.gradient_accumulation_steps) // int(arguments.gradient_accumulation_steps)


def _of_groups(log: list[dict[str, Any]], objective: str, trainer: Any, say: Callable[[str], None]) -> dict[str, Any]:
    """For the summary: how many groups of replies were all rewarded alike, and so taught nothing."""
    from demeanor.train.sampling import zero_variance

    args = trainer.args
    a_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    alike, groups = zero_variance(log, a_step / args.num_generations / args.num_iterations)
    line = f"{objective}: {alike:,} of {groups:,} groups had replies that were all rewarded alike and taught nothing"
    if 2 * alike > groups:
        line += "; a higher temperature, more num_generations or a finer reward helps"
    say(line)
    return {"num_prompts": len(trainer.train_dataset), "groups": groups, "groups_without_variance": alike}


def sampled_at_a_time(pairs: list[TokenizedPair], arguments: Any) -> int:
    """Tokens of a step's replies with their prompts, at most."""
    longest = max(len(p.prompt_ids) for p in pairs) + arguments.max_completion_length
    return int(arguments.per_device_train_batch_size * longest)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_training(source: ModelSource, contract: Contract) -> None:
    """Find out before anything is done whether the model has the layers to adapt and TRL takes the options.

    Raises:
        InputError: what is wrong, in one line.
    """
    import tempfile

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    from demeanor.train import adapter
    from demeanor.train.rewards import Rewards

    Rewards(contract)
    scored = OBJECTIVES[contract.training.objective].trains_reward_model
    if scored and source.adapter is not None:
        raise InputError(
            "a reward model cannot be trained on a model that has an adapter already",
            where=source.name,
            remedy="release its run first, and train on the merged model",
        )
    if source.adapter is not None and any(reward.kind == "logp" for reward in contract.rewards):
        raise InputError(
            "the reward logp needs the model before training, and this one has an adapter already",
            where="training.rewards",
            remedy="release its run first, and train the merged model",
        )
    with tempfile.TemporaryDirectory() as folder:
        _family(contract).make_arguments(contract, Path(folder), bf16=contract.training.bf16 or False, use_cpu=True)
    if source.adapter is None:
        try:
            config = AutoConfig.from_pretrained(source.base, trust_remote_code=contract.trust_remote_code)
            kind = AutoModelForSequenceClassification if scored else AutoModelForCausalLM
            with torch.device("meta"):
                skeleton = kind.from_config(config, trust_remote_code=contract.trust_remote_code)
        except Exception as error:
            what = "cannot be built" + (" with a reward head" if scored else "")
            raise ModelError(f"{what}: {one_line(error, 200)}", where=str(source.base)) from None
        if scored and not isinstance(getattr(skeleton, "score", None), torch.nn.Linear):
            raise ModelError("its head in transformers is no linear layer `score`", where=str(source.base))
        adapter.lora_config(source, skeleton, contract)


def tokens_at_a_time(pairs: list[TokenizedPair], batch: int, *, trees: bool) -> int:
    """Tokens that go forward and backward together at most: a row of trees, or a padded batch of the longest pairs."""
    if not trees:
        return 2 * batch * max(len(p.prompt_ids) + max(len(p.chosen_ids), len(p.rejected_ids)) for p in pairs)
    from demeanor.train.engine import ROW_BUDGET

    longest = max(p.num_tokens for p in pairs)
    lists: dict[str, dict[tuple[int, ...], int]] = {}  # a list's pairs stay together: its prompt, and each reply once
    for pair in pairs:
        if pair.list_id is not None:
            sizes = lists.setdefault(pair.list_id, {(): len(pair.prompt_ids)})
            sizes |= {tuple(ids): len(ids) for ids in (pair.chosen_ids, pair.rejected_ids)}
    whole = max((sum(sizes.values()) for sizes in lists.values()), default=0)
    return min(batch * longest, max(ROW_BUDGET, longest, whole))


def default_learning_rate(model: Any) -> float:
    """A LoRA learning rate for DPO by the model's width: 5e-5 at hidden size 2000, growing as (2000 / width)^0.775.

    The exponent is the one that Schulman et al. (2025, "LoRA Without Regret") fitted for Llama models; the level is a
    tenth of theirs for supervised training, the usual distance of DPO.
    """
    width = model.config.get_text_config().hidden_size
    return float(f"{5e-5 * (2000 / width) ** 0.775:.2g}")


def wants_bf16(model: Any) -> bool:
    """True on an accelerator that has bfloat16, and on a CPU with AMX tiles when the model is wide enough to gain."""
    import torch

    device = next(model.parameters()).device
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    has_tiles = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return device.type == "cpu" and has_tiles() and int(model.config.get_text_config().hidden_size) >= 256


class _Stopper:
    """Remembers a first Ctrl-C (or SIGTERM) so that training ends after the step with a checkpoint; a second one is
    raised at once."""

    def __init__(self) -> None:
        self._asked = False

    def asked(self) -> bool:
        return self._asked

    @contextmanager
    def listening(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def on_signal(number: int, frame: Any) -> None:
            if self._asked:
                raise KeyboardInterrupt
            self._asked = True

        old = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
