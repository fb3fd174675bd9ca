"""The section `training`: how the adapter is trained, and which keys an objective does not know."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from demeanor.faults import fault, nearest
from demeanor.objectives import OBJECTIVES
from demeanor.reward_settings import RewardSettings, check_names
from demeanor.sections import Lenient, Text

_OF_A_REFERENCE = {"f_divergence_type", "f_alpha_divergence_coef", "ld_alpha", "use_weighting", "sync_ref_model"}
_OF_PAIRS = _OF_A_REFERENCE - {"sync_ref_model"} | {"loss_weights", "discopop_tau", "label_smoothing", "sft_weight"}
SORTING_LOSSES = {"aot", "aot_unpaired"}  # they compare pairs of a batch with each other
_OF_POLICIES = {"beta", "gamma", "reference", "rewards", "loss_type"}
_OF_LABELS = {"desirable_weight", "undesirable_weight"}
RECOVERY = {"recovery", "recovery_tokens", "recovery_reply_tokens"}  # of policies that are trained on pairs
_BETA = OBJECTIVES["dpo"].beta
_OTHER_BETAS = ", ".join(f"{name} {o.beta:g}" for name, o in OBJECTIVES.items() if o.beta not in (_BETA, 0.0))


def unknown_to(name: str) -> set[str]:
    """The keys of `training` that other objectives know and this one does not."""
    objective = OBJECTIVES[name]
    if objective.trains_reward_model:
        return {*_OF_PAIRS, *_OF_LABELS, *_OF_POLICIES, *RECOVERY}
    if not objective.takes_pairs:
        return _OF_PAIRS | RECOVERY
    options = _OF_LABELS if name == "dpo" else {*_OF_LABELS, "loss_type", "loss_weights"}
    if name == "dpo":
        return options
    options |= set() if objective.needs_reference else _OF_A_REFERENCE
    options |= set() if name == "discopop" else {"discopop_tau"}
    return options | (set() if objective.smoothing is not None else {"label_smoothing"})


def cannot_weigh(training: Training) -> str | None:
    """Why the loss cannot be weighted pair by pair: it is no mean over pairs."""
    losses = training.trl_options.get("loss_type") or training.objective
    losses = {losses} if isinstance(losses, str) else set(losses)
    for name in sorted(SORTING_LOSSES & losses):
        return f"{name} sorts the pairs of a batch against each other"
    if training.trl_options.get("use_weighting") and (training.sft_weight or "sft" in losses):
        return "use_weighting multiplies the SFT term of the whole batch"
    return None


class Training(Lenient):
    """How the adapter is trained. Every other key goes to TRL under its own name."""

    model_config = ConfigDict(extra="allow")

    objective: str = Field(
        "dpo",
        description="what is minimised: dpo, ipo, simpo, cpo, orpo, kto, grpo, rloo, reward (a reward model), or one "
        "of TRL's DPO losses by its name; several of these by `loss_type` and `loss_weights` under dpo",
    )
    engine: Literal["tree", "padded"] = Field(
        "tree", description="tree: what pairs share is computed once; padded: TRL's own batches"
    )
    reference: Literal["adapter-off", "copy", "precomputed"] = Field(
        "precomputed",
        description="precomputed: log-probabilities of the policy without its adapter, once and kept for later runs; "
        "adapter-off: the same at every step; copy: those of a second frozen model",
    )
    lora_r: int = Field(16, ge=1, description="rank of the adapter")
    lora_alpha: int = Field(32, ge=1, description="the adapter is scaled by lora_alpha / lora_r")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="dropout in the adapter; TRL switches it off by default")
    lora_target_modules: Annotated[tuple[Text, ...], Field(min_length=1)] | Text = Field(
        ("q_proj", "v_proj"), description="names of the linear layers to adapt, or all-linear"
    )
    beta: float = Field(
        0.1,
        ge=0,
        description="strength of the pull towards the reference (of grpo and rloo the weight of the KL divergence, may "
        f"be 0); default by objective: {_OTHER_BETAS}, all others {_BETA:g}",
    )
    gamma: float = Field(0.0, ge=0, description="margin that simpo asks for between the replies; its default is 1")
    sft_weight: float = Field(
        0.0,
        ge=0,
        description="weight of an SFT term on the chosen reply (RPO), against displacement; cpo and orpo: 1",
    )
    recovery: dict[str, Annotated[float, Field(gt=0, le=4)]] = Field(
        default_factory=dict,
        description="behaviour: recovery pairs for each of its pairs (0.5: for every other one), in which the losing "
        "reply has begun, so that turning back is learned from there too",
    )
    recovery_tokens: int = Field(20, ge=1, description="at most so many tokens of it; their number is drawn evenly")
    recovery_reply_tokens: int = Field(5, ge=1, description="of either reply that a recovery pair keeps after that")
    rewards: tuple[RewardSettings, ...] = Field(
        (),
        description="grpo, rloo: what sampled replies are rewarded for, default the judge; other objectives only "
        "measure it",
    )
    max_length: int = Field(
        1024, ge=2, description="tokens of prompt and reply; longer prompts lose their oldest turns"
    )
    learning_rate: float | None = Field(None, gt=0, description="default: scaled with the model's width")
    per_device_train_batch_size: int = Field(
        8,
        ge=1,
        description="pairs (kto: replies; grpo, rloo: prompts, each with num_generations replies) a step and device",
    )
    gradient_accumulation_steps: int = Field(1, ge=1, description="steps added up for one update")
    num_train_epochs: float = Field(1.0, gt=0, description="passes over the pairs")
    warmup_steps: float = Field(0.1, ge=0, description="share (under 1) or number of steps with a rising learning rate")
    lr_scheduler_type: str = Field("cosine", description="as in TrainingArguments")
    max_grad_norm: float = Field(1.0, ge=0, description="as in TrainingArguments")
    save_steps: float = Field(0.1, gt=0, description="a checkpoint every so many steps (under 1: share of all steps)")
    bf16: bool | None = Field(
        None, description="default: where the machine has it and the model is large enough to gain"
    )
    gradient_checkpointing: bool | None = Field(None, description="default: only when the memory estimate asks for it")
    compile: bool | None = Field(
        None, description="let torch.compile fuse the engine's arithmetic; default: in a long training on a CPU"
    )
    attn_implementation: str | None = Field(None, description="default: flash_attention_2 when installed, else sdpa")
    seed: int = Field(0, ge=0, lt=2**32, description="of the data order and the adapter's start")

    @field_validator("objective", mode="after")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in OBJECTIVES:
            raise fault(f"no objective is called {name!r}{nearest(name, OBJECTIVES)}")
        return name

    @field_validator("rewards", mode="after")
    @classmethod
    def _named_apart(cls, rewards: tuple[RewardSettings, ...]) -> tuple[RewardSettings, ...]:
        check_names(rewards)
        return rewards

    @field_validator("lora_target_modules", mode="after")
    @classmethod
    def _name_or_all(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) and value != "all-linear" else value

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_objective(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("objective") not in OBJECTIVES:
            return data
        objective = OBJECTIVES[data["objective"]]
        own = {"beta": objective.beta, "gamma": objective.gamma, "sft_weight": objective.sft_weight}
        return data | {name: value for name, value in own.items() if data.get(name) is None}

    @property
    def needs_reference(self) -> bool:
        return OBJECTIVES[self.objective].needs_reference

    @property
    def reward_beta(self) -> float:
        """Beta of the implicit reward by which held-out pairs are judged: DPO's, whatever was minimised."""
        return self.beta if self.objective == "dpo" else OBJECTIVES["dpo"].beta

    @property
    def trl_options(self) -> dict[str, Any]:
        """The keys that are not ours and go to TRL's configuration unchanged."""
        return dict(self.model_extra or {})
