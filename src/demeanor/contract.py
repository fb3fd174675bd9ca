"""What the user promises about the model: behaviours, data, training, measurement, limits (YAML <-> pydantic).

The contract is a file under version control. A wrong key or value is refused with the key's path, its line, and the
nearest right one. `training` also takes every option of TRL's DPOConfig and of TrainingArguments under its own name.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from demeanor.errors import ContractError, one_line
from demeanor.records import content_id

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
    "reward_accuracy": "share of pairs whose implicit reward is higher for the safe (chosen) reply; after only",
    "validation_loss": "the DPO loss on the held-out pairs, nats; ln 2 before training",
    "length_accuracy": "what the better of 'the longer reply wins' and 'the shorter wins' reaches on the same pairs",
    "displaced_share": "share of pairs whose safe (chosen) reply became less likely although the margin grew; after only",
}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=False)


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
            raise ValueError(f"no such measure{_nearest(name, MEASURES)}")
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
    violating_patterns: tuple[str, ...] = Field((), description="regular expressions; a sampled reply that holds one violates")
    probes: str | None = Field(None, description="a file of pairs (prompt, chosen, rejected): held out, never trained on")
    limits: tuple[Limit, ...] = Field((), description="what must hold after training")

    @model_validator(mode="after")
    def _prefix_free(self) -> Promise:
        for name in ("violating_openings", "safe_openings"):
            openings = getattr(self, name)
            if any(not opening.strip() for opening in openings):
                raise ValueError(f"{name} holds an empty opening")
        everything = self.violating_openings + self.safe_openings
        for one in everything:
            for other in everything:
                if one is not other and other.startswith(one):
                    raise ValueError(f"the opening {one!r} is the beginning of {other!r}; keep one of them")
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
        if self.kind == "transient":
            if self.value is None:
                raise ValueError("a transient behaviour needs `value`, the text for the system prompt")
            if self.limits or self.probes or self.violating_openings or self.safe_openings:
                raise ValueError("a transient behaviour is never trained: it takes only about, value and examples")
        elif self.value is not None or self.examples:
            raise ValueError("`value` and `examples` belong to transient behaviours")
        return self


class Data(_Section):
    """Where the pairs come from, and what is held out."""

    pairs: tuple[str, ...] = Field(description="files, folders or Hub ids of preference pairs")
    heldout_fraction: float = Field(0.1, ge=0, lt=1, description="share of the prompts that is held out as probes")
    max_heldout: int = Field(200, ge=0, description="at most so many held-out pairs")
    max_pairs: int | None = Field(None, ge=1, description="read at most so many rows of each source")
    split: str = Field("train", description="split of a data set that has several")
    seed: int = Field(0, description="of the split")

    @field_validator("pairs", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class Training(BaseModel):
    """How the adapter is trained. Every other key goes to TRL's DPOConfig under its own name."""

    model_config = ConfigDict(extra="allow", frozen=True)

    objective: Literal["dpo"] = Field("dpo", description="dpo; TRL's other losses of the family by `loss_type`")
    reference: Literal["adapter-off", "copy", "precomputed"] = Field(
        "adapter-off", description="adapter-off: the policy without its adapter; copy: a second frozen model; "
        "precomputed: its log-probabilities once, before training"
    )
    lora_r: int = Field(16, ge=1, description="rank of the adapter")
    lora_alpha: int = Field(32, ge=1, description="the adapter is scaled by lora_alpha / lora_r")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="dropout in the adapter; TRL switches it off by default")
    lora_target_modules: tuple[str, ...] | str = Field(
        ("q_proj", "v_proj"), description="names of the linear layers to adapt, or all-linear"
    )
    beta: float = Field(0.1, gt=0, description="strength of the pull towards the reference")
    sft_weight: float = Field(0.0, ge=0, description="weight of an SFT term on the chosen reply (RPO), against displacement")
    max_length: int = Field(1024, ge=2, description="tokens of prompt and reply; longer prompts lose their oldest turns")
    learning_rate: float | None = Field(None, gt=0, description="default: scaled with the model's width")
    per_device_train_batch_size: int = Field(8, ge=1, description="pairs a step and device")
    gradient_accumulation_steps: int = Field(1, ge=1, description="steps added up for one update")
    num_train_epochs: float = Field(1.0, gt=0, description="passes over the pairs")
    warmup_steps: float = Field(0.1, ge=0, description="share (under 1) or number of steps with a rising learning rate")
    lr_scheduler_type: str = Field("cosine", description="as in TrainingArguments")
    max_grad_norm: float = Field(1.0, ge=0, description="as in TrainingArguments")
    save_steps: float = Field(0.1, gt=0, description="a checkpoint every so many steps (under 1: share of all steps)")
    bf16: bool | None = Field(None, description="default: where the machine has it and the model is large enough to gain")
    gradient_checkpointing: bool | None = Field(None, description="default: only when the memory estimate asks for it")
    attn_implementation: str | None = Field(None, description="default: flash_attention_2 when installed, else sdpa")
    seed: int = Field(0, description="of the data order and the adapter's start")

    @property
    def trl_options(self) -> dict[str, Any]:
        """The keys that are not ours and go to TRL's DPOConfig unchanged."""
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
    seed: int = Field(0, description="of the sampling and the bootstrap")


class Contract(_Section):
    """The whole promise. `root` is the folder that relative paths start from; it is not part of the file."""

    name: str = Field("run", min_length=1, description="a name for the report")
    model: str = Field(STARTER, description="a local folder or Hub id (a tuned adapter's folder works too), or starter")
    revision: str | None = Field(None, description="of a Hub model: branch, tag or commit")
    trust_remote_code: bool = Field(False, description="run code that comes with the model; off unless you trust it")
    chat_template: str | None = Field(
        None, description="for a tokenizer that has none: plain, chatml, or the path of a jinja file"
    )
    system_prompt: str | None = Field(
        None, description="put before every prompt that has no system turn; {id} is replaced by a transient value"
    )
    behaviours: dict[str, Behaviour] = Field(default_factory=dict, description="by id")
    collateral: dict[str, Promise] = Field(default_factory=dict, description="what must not change; measured, never trained")
    data: Data
    training: Training = Field(default_factory=lambda: Training())
    measurement: Measurement = Field(default_factory=Measurement)

    @model_validator(mode="after")
    def _consistent(self) -> Contract:
        for name in self.behaviours:
            if name in self.collateral:
                raise ValueError(f"{name} stands in behaviours and in collateral")
        for name, behaviour in self.behaviours.items():
            if behaviour.kind == "transient" and "{" + name + "}" not in (self.system_prompt or ""):
                raise ValueError(f"the transient behaviour {name} has no place in system_prompt: write {{{name}}} there")
        return self

    @property
    def promises(self) -> dict[str, Promise]:
        """Every behaviour or collateral that is measured, by id."""
        trained = {k: b for k, b in self.behaviours.items() if b.kind == "permanent"}
        return {**trained, **self.collateral}

    def system_text(self, key: str | None = None) -> str | None:
        """The system prompt with today's transient values, or, for the training pair `key`, with one of the examples."""
        text = self.system_prompt
        if text is None:
            return None
        for name, behaviour in self.behaviours.items():
            if behaviour.kind != "transient":
                continue
            value = behaviour.value or ""
            if key is not None and behaviour.examples:
                value = behaviour.examples[int(content_id(name, key), 16) % len(behaviour.examples)]
            text = text.replace("{" + name + "}", value)
        return text


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


def parse_contract(text: str, where: str = "contract", overrides: tuple[str, ...] = (), root: Path | None = None) -> Contract:
    """`load_contract` for a text; `root`, when given, is where its relative paths start from."""
    try:
        data = yaml.safe_load(text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise ContractError(f"not YAML: {getattr(error, 'problem', None) or one_line(error)}", where=where + line) from None
    if not isinstance(data, dict):
        raise ContractError("a contract is a mapping of keys", where=where, remedy="`demeanor init` writes one")
    _refuse_repeated_keys(node, where)
    contract = build_contract(apply_overrides(data, overrides), where, node)
    return resolve_paths(contract, root) if root is not None else contract


def build_contract(data: dict[str, Any], where: str = "contract", node: yaml.Node | None = None) -> Contract:
    """Check `data`, naming the line of a fault when the YAML `node` it came from is given."""
    try:
        contract = Contract.model_validate(data)
    except ValidationError as error:
        raise ContractError(_describe(error, node, where)) from None
    _check_trl_options(contract, node, where)
    return contract


def dump_contract(contract: Contract) -> str:
    """The whole contract as YAML, defaults included, so that it means the same under another version's defaults."""
    data = contract.model_dump(mode="json", exclude_none=True)
    text: str = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120)
    return text


def apply_overrides(data: dict[str, Any], overrides: tuple[str, ...]) -> dict[str, Any]:
    """A copy of `data` with each `a.b.c=value` set; values are read as YAML."""
    data = yaml.safe_load(yaml.safe_dump(data))
    for item in overrides:
        key, equals, raw = item.partition("=")
        if not equals or not key.strip():
            raise ContractError(f"cannot read {item!r}", where="--set", remedy="write it as key.key=value")
        target = data
        *parents, last = key.strip().split(".")
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise ContractError(f"{parent} is not a section", where=f"--set {item}")
        try:
            value = yaml.safe_load(raw)
        except yaml.YAMLError:
            value = raw
        if isinstance(value, str):  # YAML reads 1e-4 as text; people mean the number
            try:
                value = float(value)
            except ValueError:
                pass
        target[last] = value
    return data


def resolve_paths(contract: Contract, root: Path) -> Contract:
    """Make the contract's paths that exist under `root` absolute, so that it means the same from anywhere."""

    def fix(text: str | None) -> str | None:
        if text is None or text == STARTER or Path(text).is_absolute():
            return text
        return str((root / text).resolve()) if (root / text).exists() else text

    def fix_promise(promise: Any) -> Any:
        return promise.model_copy(update={"probes": fix(promise.probes)})

    return contract.model_copy(
        update={
            "model": fix(contract.model),
            "chat_template": fix(contract.chat_template),
            "data": contract.data.model_copy(update={"pairs": tuple(fix(p) for p in contract.data.pairs)}),
            "behaviours": {k: fix_promise(b) for k, b in contract.behaviours.items()},
            "collateral": {k: fix_promise(p) for k, p in contract.collateral.items()},
        }
    )


def _nearest(word: str, known: Any) -> str:
    best = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.5)
    return f"; did you mean {best[0]}?" if best else ""


def _check_trl_options(contract: Contract, node: yaml.Node | None, where: str) -> None:
    """Refuse a training key that neither we nor TRL's DPOConfig know. TRL is imported only when there is one."""
    extra = contract.training.trl_options
    if not extra:
        return
    from dataclasses import fields

    from trl import DPOConfig

    trl_names = {f.name for f in fields(DPOConfig) if f.init}
    for name in extra:
        if name in OURS_NOT_TRL:
            raise ContractError(
                f"training.{name} is set by Demeanor", where=_at(node, ("training", name), where), remedy=OURS_NOT_TRL[name]
            )
        if name not in trl_names:
            hint = _nearest(name, [*Training.model_fields, *trl_names])
            raise ContractError(f"unknown key training.{name}{hint}", where=_at(node, ("training", name), where))


OURS_NOT_TRL = {
    "output_dir": "the run folder decides; use --out",
    "resume_from_checkpoint": "a run resumes by itself",
    "precompute_ref_log_probs": "write `reference: precomputed`",
    "truncation_mode": "replies are never cut; a prompt that is too long loses its oldest turns",
    "remove_unused_columns": "it would remove the pairs' tokens",
    "loss_weights": "use `sft_weight` for the SFT term",
}


def _at(node: yaml.Node | None, path: tuple[Any, ...], where: str) -> str:
    """`where, line N` of the deepest node of `path` that exists."""
    line = None
    for key in path:
        found = None
        if isinstance(node, yaml.MappingNode):
            for key_node, value_node in node.value:
                if key_node.value == str(key):
                    found, line = value_node, key_node.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            found = node.value[key]
            line = found.start_mark.line + 1
        if found is None:
            break
        node = found
    return f"{where}, line {line}" if line else where


def _describe(error: ValidationError, node: yaml.Node | None, where: str) -> str:
    """The first fault of `error` in one line."""
    first = error.errors()[0]
    path = tuple(first["loc"])
    name = ".".join(str(part) for part in path) or "the contract"
    if first["type"] == "extra_forbidden":
        message = f"unknown key {name}{_nearest(str(path[-1]), _keys_at(path[:-1]))}"
    elif first["type"] == "missing":
        message = f"{name} is missing"
    else:
        value = one_line(repr(first.get("input")), 60)
        text = first["msg"].removeprefix("Value error, ")
        text = text[0].lower() + text[1:]
        shown = "" if isinstance(first.get("input"), (dict, list)) else f", not {value}"
        message = f"{name}: {text}{shown}"
        if first["type"] == "literal_error":
            expected = str(first.get("ctx", {}).get("expected", "")).replace("'", "").replace(" or ", ", ").split(", ")
            message += _nearest(str(first.get("input")), expected)
    more = len(error.errors()) - 1
    also = f" (and {more} more)" if more else ""
    return f"{_at(node, path, where)}: {message}{also}"


def _keys_at(path: tuple[Any, ...]) -> list[str]:
    """The keys that are allowed at `path`, for the nearest right one."""
    if not path:
        return list(Contract.model_fields)
    sections: dict[str, Any] = {"data": Data, "training": Training, "measurement": Measurement}
    if "limits" in path:
        return list(Limit.model_fields)
    if path[0] in ("behaviours", "collateral"):
        return list((Behaviour if path[0] == "behaviours" else Promise).model_fields)
    return list(sections[path[0]].model_fields) if path[0] in sections else []


def _refuse_repeated_keys(node: yaml.Node | None, where: str) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            if key.value in seen:
                raise ContractError(
                    f"the key {key.value} stands twice", where=f"{where}, line {key.start_mark.line + 1}",
                    remedy=f"the first is in line {seen[key.value]}",
                )
            seen[key.value] = key.start_mark.line + 1
            _refuse_repeated_keys(value, where)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_repeated_keys(item, where)
