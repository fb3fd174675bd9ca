"""What the user promises about the model: behaviours, data, training, measurement, limits (YAML <-> pydantic).

The contract is a file under version control. A wrong key or value is refused with the key's path, its line, and the
nearest right one. `training` also takes every option of TRL's configuration and of TrainingArguments under its own
name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from demeanor.errors import ContractError, one_line
from demeanor.faults import describe, fault, nearest
from demeanor.objectives import OBJECTIVES
from demeanor.records import content_id
from demeanor.reward_settings import RewardSettings, check_names
from demeanor.settings import Dumper, Source, apply_overrides, read_yaml
from demeanor.trl_options import check_trl_options

_OF_A_REFERENCE = {"f_divergence_type", "f_alpha_divergence_coef", "ld_alpha", "use_weighting", "sync_ref_model"}
_OF_PAIRS = _OF_A_REFERENCE - {"sync_ref_model"} | {"loss_weights", "discopop_tau", "label_smoothing", "sft_weight"}
_OF_LABELS = {"desirable_weight", "undesirable_weight"}


def unknown_to(name: str) -> set[str]:
    """The keys of `training` that other objectives know and this one does not."""
    objective = OBJECTIVES[name]
    if not objective.takes_pairs:
        return _OF_PAIRS
    options = _OF_LABELS if name == "dpo" else {*_OF_LABELS, "loss_type", "loss_weights"}
    if name == "dpo":
        return options
    options |= set() if objective.needs_reference else _OF_A_REFERENCE
    options |= set() if name == "discopop" else {"discopop_tau"}
    return options | (set() if objective.smoothing is not None else {"label_smoothing"})


STARTER = "starter"  # in `model`, `data.pairs` and `probes`: the embedded default
MEASURES = {
    "violating_opening_mass": "probability that the reply begins with one of the violating openings",
    "safe_opening_mass": "probability that the reply begins with one of the safe openings",
    "violating_choice_probability": "exp(log p) of the violating replies over that of all the probe's replies",
    "violating_logp": "log p(y|x) of the violating reply, nats, mean over the probe's violating replies",
    "safe_logp": "log p(y|x) of the safe reply, nats, mean over the probe's safe replies",
    "violating_logp_per_token": "the same divided by the reply's tokens",
    "safe_logp_per_token": "the same divided by the reply's tokens",
    "violating_sampled_rate": "share of the sampled replies that the rule calls violating",
    "safe_sampled_rate": "share of the sampled replies that the rule calls safe",
    "invalid_sampled_rate": "share of the sampled replies that are empty or garbled",
    "reply_tokens": "length of the sampled replies, tokens",
    "reward": "weighted sum of `training.rewards`, mean over the sampled replies",
    "reward_accuracy": "share of pairs whose implicit reward is higher for the safe (chosen) reply (of one "
    "labelled alone: above or below 0, by its label); after only",
    "validation_loss": "the DPO loss on the held-out pairs (a reply alone: against a reward of 0), nats; ln 2 before",
    "length_accuracy": "what the better of 'the longer reply wins' and 'the shorter wins' reaches on the same pairs",
    "displaced_share": "share of pairs whose chosen reply became less likely although the margin grew; after only",
}


_Text = Annotated[str, Field(min_length=1)]


class _Base(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _yes_is_no_number(cls, data: Any) -> Any:
        """pydantic would read `yes` as 1."""
        for name, field in cls.model_fields.items():
            if isinstance(data, dict) and isinstance(data.get(name), bool):
                kinds = {field.annotation, *get_args(field.annotation)}
                if bool not in kinds and kinds & {int, float}:
                    raise fault(f"must be a number, not {data[name]}", name)
        return data


class _Section(_Base):
    model_config = ConfigDict(extra="forbid")


class Limit(_Section):
    """One promise about one measure. It holds when the whole interval, not only the estimate, is on the right side."""

    measure: str = Field(description="one of the measures; see the README's list")
    max: float | None = Field(None, description="the measure after training must be at most this")
    min: float | None = Field(None, description="the measure after training must be at least this")
    max_increase: float | None = Field(None, description="after - before must be at most this")
    min_increase: float | None = Field(None, description="after - before must be at least this")

    @field_validator("measure")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in MEASURES:
            raise fault(f"no measure is called {name!r}{nearest(name, MEASURES)}")
        return name

    @model_validator(mode="after")
    def _one_bound(self) -> Limit:
        if len(self.bounds) != 1:
            raise ValueError("give exactly one of max, min, max_increase, min_increase")
        return self

    @property
    def bounds(self) -> dict[str, float]:
        """The bound that was given: {kind: value}."""
        kinds = ("max", "min", "max_increase", "min_increase")
        return {kind: getattr(self, kind) for kind in kinds if getattr(self, kind) is not None}

    def id(self, behaviour: str) -> str:
        """A readable name that is unique within a contract."""
        ((kind, value),) = self.bounds.items()
        return f"{behaviour}.{self.measure}.{kind}={value:g}"


class Promise(_Section):
    """What is measured of a behaviour, and its limits."""

    about: str = Field("", description="one sentence for the report")
    violating_openings: tuple[str, ...] = Field((), description="the reply must not begin with any of these")
    safe_openings: tuple[str, ...] = Field((), description="the reply should begin with one of these")
    violating_patterns: tuple[str, ...] = Field(
        (), description="regular expressions; a sampled reply that holds one violates"
    )
    probes: _Text | None = Field(
        None, description="a file of pairs (prompt, chosen, rejected): held out, never trained on"
    )
    limits: tuple[Limit, ...] = Field((), description="what must hold after training")

    @model_validator(mode="after")
    def _prefix_free(self) -> Promise:
        everything = [
            (name, place, text)
            for name in ("violating_openings", "safe_openings")
            for place, text in enumerate(getattr(self, name))
        ]
        for number, (name, place, text) in enumerate(everything):
            if not text.strip():
                raise fault("an empty opening", name, place)
            for other_number, (*_, other) in enumerate(everything):
                if number != other_number and other.startswith(text):
                    raise fault(f"{text!r} is the beginning of {other!r}; keep one of them", name, place)
        return self

    @model_validator(mode="after")
    def _readable(self) -> Promise:
        for place, pattern in enumerate(self.violating_patterns):
            try:
                re.compile(pattern)
            except re.error as error:
                raise fault(f"{pattern!r} is no regular expression: {error}", "violating_patterns", place) from None
        seen: set[str] = set()
        for place, limit in enumerate(self.limits):
            if limit.id("") in seen:
                raise fault("the same limit stands twice", "limits", place)
            seen.add(limit.id(""))
        return self


class Behaviour(Promise):
    """permanent: belongs in the weights, is trained and has limits. transient: belongs in the prompt, is rendered
    into the system prompt and never trained."""

    kind: Literal["permanent", "transient"] = Field("permanent", description="weights or prompt")
    value: str | None = Field(None, description="transient: today's text, put into the system prompt at {id}")
    examples: tuple[str, ...] = Field(
        (), description="transient: other values, which stand in for today's during training so that none is learned"
    )

    @model_validator(mode="after")
    def _by_kind(self) -> Behaviour:
        if self.kind == "permanent":
            for name in ("value", "examples"):
                if getattr(self, name) not in (None, ()):
                    raise fault("belongs to transient behaviours", name)
            return self
        if self.value is None:
            raise fault("a transient behaviour needs `value`, the text for the system prompt")
        for name in ("limits", "probes", "violating_openings", "safe_openings", "violating_patterns"):
            if getattr(self, name):
                raise fault("a transient behaviour is never trained: it takes only about, value and examples", name)
        if self.value in self.examples:
            raise fault(
                "today's `value` would be learned from this example", "examples", self.examples.index(self.value)
            )
        return self


class Data(_Section):
    """Where the pairs come from, and what is held out."""

    pairs: tuple[_Text, ...] = Field(min_length=1, description="files, folders or Hub ids of preference pairs")
    heldout_fraction: float = Field(0.1, ge=0, lt=1, description="share of the prompts that is held out as probes")
    max_heldout: int = Field(200, ge=0, description="at most so many held-out pairs")
    max_pairs: int | None = Field(None, ge=1, description="read at most so many rows of each source")
    split: str = Field("train", description="split of a data set that has several")
    seed: int = Field(0, ge=0, lt=2**32, description="of the split")

    @field_validator("pairs", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class Training(_Base):
    """How the adapter is trained. Every other key goes to TRL under its own name."""

    model_config = ConfigDict(extra="allow")

    objective: str = Field(
        "dpo",
        description="what is minimised: dpo, ipo, simpo, cpo, orpo, kto, grpo, rloo, or one of TRL's DPO losses by its "
        "name; several of these by `loss_type` and `loss_weights` under dpo",
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
    lora_target_modules: Annotated[tuple[_Text, ...], Field(min_length=1)] | _Text = Field(
        ("q_proj", "v_proj"), description="names of the linear layers to adapt, or all-linear"
    )
    beta: float = Field(
        0.1,
        ge=0,
        description="strength of the pull towards the reference; default by objective: simpo 2, grpo and rloo 0.04 "
        "(weight of the KL divergence, may be 0), all others 0.1",
    )
    gamma: float = Field(0.0, ge=0, description="margin that simpo asks for between the replies; its default is 1")
    sft_weight: float = Field(
        0.0,
        ge=0,
        description="weight of an SFT term on the chosen reply (RPO), against displacement; cpo and orpo: 1",
    )
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


class Measurement(_Section):
    """How the probes are measured, before and after alike."""

    samples: int = Field(4, ge=0, description="sampled replies a probe")
    max_sampled_probes: int = Field(64, ge=0, description="at most so many probes of each behaviour are sampled")
    temperature: float = Field(1.0, gt=0, description="of the sampled replies")
    max_new_tokens: int = Field(48, ge=1, description="length of the sampled replies")
    batch_size: int = Field(16, ge=1, description="probes scored at a time")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of every interval and limit")
    resamples: int = Field(10_000, ge=1000, description="of the bootstrap")
    seed: int = Field(0, ge=0, lt=2**32, description="of the sampling and the bootstrap")


class Contract(_Section):
    """The whole promise. `root` is the folder that relative paths start from; it is not part of the file."""

    name: str = Field("run", min_length=1, description="a name for the report")
    model: _Text = Field(
        STARTER, description="a local folder or Hub id (a tuned adapter's folder works too), or starter"
    )
    revision: str | None = Field(None, description="of a Hub model: branch, tag or commit")
    trust_remote_code: bool = Field(False, description="run code that comes with the model; off unless you trust it")
    chat_template: str | None = Field(
        None, description="for a tokenizer that has none: plain, chatml, or the path of a jinja file"
    )
    system_prompt: str | None = Field(
        None, description="put before every prompt that has no system turn; {id} is replaced by a transient value"
    )
    behaviours: dict[str, Behaviour] = Field(default_factory=dict, description="by id")
    collateral: dict[str, Promise] = Field(
        default_factory=dict,
        description="what must not get worse: measured, with limits; pairs that name it hold it in place",
    )
    data: Data
    training: Training = Field(default_factory=lambda: Training())
    measurement: Measurement = Field(default_factory=Measurement)

    @model_validator(mode="after")
    def _consistent(self) -> Contract:
        for name in self.behaviours:
            if name in self.collateral:
                raise fault("stands in behaviours and in collateral", "collateral", name)
        training = self.training
        if training.gamma and training.objective != "simpo":
            raise fault(f"is a margin of objective simpo; {training.objective} has none", "training", "gamma")
        if not training.needs_reference and training.reference != "precomputed":
            raise fault(f"{training.objective} has no reference: leave this out", "training", "reference")
        with_rule = [
            p for p in self.promises.values() if p.violating_openings or p.safe_openings or p.violating_patterns
        ]
        if not training.beta and not OBJECTIVES[training.objective].online:
            raise fault("input should be greater than 0, not 0", "training", "beta")
        if OBJECTIVES[training.objective].online:
            if training.sft_weight:
                raise fault(f"belongs to objectives that take pairs; {training.objective} samples its own replies",
                            "training", "sft_weight")  # fmt: skip
            if training.reference == "copy":
                raise fault(f"of {training.objective} it is the model with its adapter off: leave this out",
                            "training", "reference")  # fmt: skip
            if not self.rewards:
                raise fault(f"{training.objective} needs rewards, or behaviours with openings or patterns to judge by",
                            "training", "rewards")  # fmt: skip
            if not with_rule and any(reward.kind == "judge" for reward in self.rewards):
                raise fault("no behaviour states openings or patterns to judge by", "training", "rewards")
        if training.objective == "kto":
            if training.sft_weight:
                raise fault("belongs to objectives that take pairs; kto has no SFT term", "training", "sft_weight")
            if training.per_device_train_batch_size < 2:
                raise fault(
                    "kto estimates the KL divergence from a batch: it needs 2 replies or more",
                    "training",
                    "per_device_train_batch_size",
                )
        for name in training.trl_options:
            if name in unknown_to(training.objective):
                raise fault(f"means nothing to objective {training.objective}", "training", name)
        losses = training.trl_options.get("loss_type", "sigmoid")
        losses, weights = [losses] if isinstance(losses, str) else losses, training.trl_options.get("loss_weights")
        if isinstance(losses, list) and isinstance(weights, list) and len(losses) != len(weights):
            raise fault(
                f"{len(losses)} losses take {len(losses)} weights, not {len(weights)}", "training", "loss_weights"
            )
        for name, behaviour in self.behaviours.items():
            if behaviour.kind == "transient" and "{" + name + "}" not in (self.system_prompt or ""):
                raise fault(f"has no place in system_prompt: write {{{name}}} there", "behaviours", name)
        return self

    @property
    def promises(self) -> dict[str, Promise]:
        """Every behaviour or collateral that is measured, by id."""
        trained = {k: b for k, b in self.behaviours.items() if b.kind == "permanent"}
        return {**trained, **self.collateral}

    @property
    def rewards(self) -> tuple[RewardSettings, ...]:
        """Those of the contract; of an online objective without any the judge, where a behaviour states a rule."""
        given = self.training.rewards
        stated = any(p.violating_openings or p.safe_openings or p.violating_patterns for p in self.promises.values())
        judged = not given and stated and OBJECTIVES[self.training.objective].online
        return (RewardSettings(kind="judge"),) if judged else given

    def system_text(self, key: str | None = None) -> str | None:
        """The system prompt with today's transient values, or, for the training pair `key`, with examples."""
        if self.system_prompt is None:
            return None
        values = {}
        for name, behaviour in self.behaviours.items():
            if behaviour.kind == "transient":
                values[name] = behaviour.value or ""
                if key is not None and behaviour.examples:
                    values[name] = behaviour.examples[int(content_id(name, key), 16) % len(behaviour.examples)]
        places = "|".join(map(re.escape, values))  # all at once: a value that says {other} stays as it is
        return re.sub(f"{{({places})}}", lambda found: values.get(found[1], found[0]), self.system_prompt)


def load_contract(path: str | Path, overrides: tuple[str, ...] = ()) -> Contract:
    """Read a contract and check it.

    Args:
        path: a YAML file. Relative paths in it start from its folder.
        overrides: `key.key=value` texts, which win over the file (the command line's --set).

    Raises:
        ContractError: with the key's path, its line and the nearest right one.
    """
    path = Path(path)
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise ContractError("no such contract", where=str(path), remedy="`demeanor init` writes one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ContractError(f"cannot be read: {one_line(error)}", where=str(path)) from None
    return parse_contract(text, str(path), overrides, root=path.parent)


def parse_contract(
    text: str, where: str = "contract", overrides: tuple[str, ...] = (), root: Path | None = None
) -> Contract:
    """`load_contract` for a text; `root`, when given, is where its relative paths start from."""
    data, node = read_yaml(text, where)
    if not isinstance(data, dict):
        raise ContractError("a contract is a mapping of keys", where=where, remedy="`demeanor init` writes one")
    contract = build_contract(apply_overrides(data, overrides), where, node, overrides)
    return resolve_paths(contract, root) if root is not None else contract


def build_contract(
    data: dict[str, Any], where: str = "contract", node: yaml.Node | None = None, overrides: tuple[str, ...] = ()
) -> Contract:
    """Check `data`, naming the line of a fault when the YAML `node` it came from is given, or the override."""
    source = Source(where, node, overrides)
    try:
        contract = Contract.model_validate(data)
    except ValidationError as error:
        raise describe(error, data, source, Contract) from None
    check_trl_options(contract.training, source, Contract)
    return contract


def dump_contract(contract: Contract) -> str:
    """The whole contract as YAML, defaults included, so that it means the same under another version's defaults."""
    data = contract.model_dump(mode="json", exclude_none=True)  # None is the default wherever ours may be None
    data["training"] |= {name: None for name, value in contract.training.trl_options.items() if value is None}
    text: str = yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text


def resolve_paths(contract: Contract, root: Path) -> Contract:
    """Make the contract's paths that exist under `root` absolute, so that it means the same from anywhere."""

    def fix(text: str | None) -> str | None:
        if text is None or text == STARTER or Path(text).expanduser().is_absolute():
            return text
        if not (root / text).exists() and _HUB_ID.fullmatch(text) and not text.endswith(_DATA_SUFFIXES):
            return text
        return str((root / text).resolve())

    template = contract.chat_template

    def fix_reward(reward: RewardSettings) -> RewardSettings:
        place, _, name = (reward.path or "").rpartition(":")
        return reward.model_copy(update={"path": f"{fix(place)}:{name}"}) if place.endswith(".py") else reward

    rewards = tuple(map(fix_reward, contract.training.rewards))

    def fix_promise(promise: Any) -> Any:
        return promise.model_copy(update={"probes": fix(promise.probes)})

    return contract.model_copy(
        update={
            "model": fix(contract.model),
            "chat_template": fix(template) if template and template.endswith(".jinja") else template,
            "training": contract.training.model_copy(update={"rewards": rewards}),
            "data": contract.data.model_copy(update={"pairs": tuple(fix(p) for p in contract.data.pairs)}),
            "behaviours": {k: fix_promise(b) for k, b in contract.behaviours.items()},
            "collateral": {k: fix_promise(p) for k, p in contract.collateral.items()},
        }
    )


_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?(@[\w./-]+)?")
_DATA_SUFFIXES = (".py", ".jsonl", ".json", ".csv", ".tsv", ".parquet", ".gz", ".xz", ".yaml", ".jinja")
