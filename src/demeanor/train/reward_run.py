"""A finished run with objective reward as what scores a conversation: in measuring, and as a reward of sampled replies.

The reward model reads a conversation as its own run rendered it: by its own tokenizer, chat template, system prompt and
`max_length`, whatever the policy's are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from demeanor.contract import Contract
from demeanor.errors import InputError, RunFolderError, StageError
from demeanor.model import ModelSource, end_of_turn_ids, find_model, load_reward_model, load_tokenizer
from demeanor.objectives import OBJECTIVES
from demeanor.records import SIDES, Message, Verdict
from demeanor.tokens import Refused, Tokenizer, make_tokenizer
from demeanor.workspace import Workspace, digest

BATCH = 16  # conversations scored at a time, those of like length together

Conversation = tuple[tuple[Message, ...], str]  # a prompt and the reply


@dataclass(frozen=True)
class RewardRun:
    """A run folder that was found to hold a trained reward model."""

    workspace: Workspace
    contract: Contract
    source: ModelSource

    @property
    def seconds(self) -> float:
        """That its training took."""
        return float(self.workspace.read_json(self.workspace.training).get("seconds") or 0.0)

    def describe(self) -> str:
        """What its own verdict says of it."""
        verdict = Verdict.from_json(self.workspace.read_json(self.workspace.verdict))
        found = [c.after for c in verdict.comparisons if c.measure == "reward_accuracy" and c.after.value is not None]
        count = sum(estimate.n for estimate in found)
        right = sum((estimate.value or 0.0) * estimate.n for estimate in found)
        share = (
            f"prefers the winning reply of {right / count:.1%} of {count:,} held-out pairs" if count else "unmeasured"
        )
        return f"{share}; its own verdict {'passed' if verdict.passed else 'failed'}"


class RewardModel:
    """Scores conversations.

    Args:
        model: with a head of one output, in evaluation mode.
        tokenizer: the model's own.
        contract: of the run that trained it: its system prompt and `max_length`.
    """

    def __init__(self, model: Any, tokenizer: Tokenizer, contract: Contract) -> None:
        self.model, self.tokenizer, self.contract = model, tokenizer, contract

    def of(self, conversations: Sequence[Conversation]) -> list[float]:
        """The reward of each reply after its prompt.

        Raises:
            StageError: a reward is not finite.
        """
        import torch

        ids = [self._ids(*conversation) for conversation in conversations]
        order = sorted(range(len(ids)), key=lambda number: len(ids[number]))
        device, pad = next(self.model.parameters()).device, self.tokenizer.inner.pad_token_id
        rewards = [math.nan] * len(ids)
        for start in range(0, len(order), BATCH):
            numbers = order[start : start + BATCH]
            input_ids = torch.full((len(numbers), len(ids[numbers[-1]])), pad)
            mask = torch.zeros_like(input_ids)
            for row, number in enumerate(numbers):
                input_ids[row, : len(ids[number])] = torch.tensor(ids[number])
                mask[row, : len(ids[number])] = 1
            with torch.inference_mode():
                values = self.model(
                    input_ids=input_ids.to(device), attention_mask=mask.to(device), use_cache=False
                ).logits[:, 0]
            for number, value in zip(numbers, values.float().tolist(), strict=True):
                rewards[number] = value
        if not all(map(math.isfinite, rewards)):
            raise StageError("the reward model gives rewards that are not finite: its weights are damaged")
        return rewards

    def num_tokens(self, prompt: tuple[Message, ...], text: str) -> float:
        """Of the reply, with its end of turn."""
        return float(len(self.tokenizer.reply(prompt, text, self.contract.system_text())))

    def _ids(self, prompt: tuple[Message, ...], text: str) -> list[int]:
        """As the pairs were rendered for its training. What they would have been refused for, a sampled reply may do:
        spell a special token, which is left out; not fit, which costs it its oldest tokens."""
        tokenizer, system, longest = self.tokenizer, self.contract.system_text(), self.contract.training.max_length
        text = tokenizer.without_special(text)
        prompt = tuple(Message(turn.role, tokenizer.without_special(turn.content)) for turn in prompt)
        try:
            messages, _ = tokenizer.fit(prompt, (text,), system, longest)
            return tokenizer.prompt(messages, system) + tokenizer.reply(messages, text, system)
        except Refused:
            reply = list(tokenizer.inner(text, add_special_tokens=False)["input_ids"])
            return [*tokenizer.prompt(prompt, system), *reply, tokenizer.end_ids[0]][-longest:]


def find_reward_run(path: str) -> RewardRun:
    """The reward run in the folder `path`, checked without loading its weights.

    Raises:
        InputError: there is none, it is not finished, or was altered, or its base model is no longer what it was.
    """
    where = {"where": f"training.rewards: {path}"}
    try:
        workspace = Workspace.open(path)
        contract = workspace.contract()
        if not OBJECTIVES[contract.training.objective].trains_reward_model:
            raise InputError(
                f"is a run with objective {contract.training.objective}, not reward", **where,
                remedy="name the run folder of a reward model",
            )  # fmt: skip
        for name in ("read", "train", "after", "prove"):
            workspace.check_outputs(name)
        if not _is_whole(workspace, contract):
            raise RunFolderError("its stages do not belong together", remedy=f"demeanor run --resume {workspace}")
    except RunFolderError as error:
        raise InputError(f"is no finished run of a reward model: {error}", **where) from None
    source = find_model(contract.model, revision=contract.revision)
    if source.fingerprint != _identity(workspace)["model"]:
        raise InputError("the model that it was trained on has changed since", **where, remedy="train it again")
    return RewardRun(workspace, contract, source)


def _is_whole(workspace: Workspace, contract: Contract) -> bool:
    """Is the adapter that of the contract, and the verdict that of the adapter?"""
    inputs = {name: stage["inputs"] for name, stage in workspace.manifest()["stages"].items()}
    return bool(
        inputs["train"]["training"] == contract.training.model_dump(mode="json")
        and inputs["after"]["adapter"] == workspace.outputs_digest("train")
        and inputs["prove"]["scores"] == workspace.outputs_digest(*SIDES)
    )


def load_reward_run(run: RewardRun) -> RewardModel:
    """The reward model with its trained adapter and head, not merged."""
    from peft import PeftModel

    inner = load_tokenizer(run.source, run.contract)
    tokenizer = make_tokenizer(inner, end_of_turn_ids(run.source, inner))
    base = load_reward_model(run.source, run.contract, inner.pad_token_id)
    return RewardModel(PeftModel.from_pretrained(base, run.workspace.adapter).eval(), tokenizer, run.contract)


def reward_run_digest(path: str) -> str | None:
    """Changes with the trained weights and with what they were trained on; None where there is no such run."""
    try:
        workspace = Workspace.open(path)
        return digest([workspace.outputs_digest("train"), _identity(workspace)])
    except (RunFolderError, LookupError):
        return None


def _identity(workspace: Workspace) -> dict[str, str]:
    """Of the model that the run was read for."""
    identity: dict[str, str] = workspace.manifest()["stages"]["read"]["inputs"]["identity"]
    return identity
