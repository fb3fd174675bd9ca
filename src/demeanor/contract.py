"""What the user promises about the model: behaviours, data, training, measurement, limits (YAML <-> pydantic).

The contract is a file under version control. A wrong key or value is refused with the key's path, its line, and the
nearest right one. `training` also takes every option of TRL's configuration and of TrainingArguments under its own
name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from demeanor.attack_settings import Attacks
from demeanor.endpoint import check_endpoint
from demeanor.errors import ContractError, one_line
from demeanor.faults import describe, fault, nearest
from demeanor.judge_settings import read_card
from demeanor.objectives import OBJECTIVES
from demeanor.promises import (
    AFTER_ONLY,
    BEST_OF_SAMPLES,
    LOOK_ALIKES,
    MEASURES,
    OF_REWARD_MODELS,
    OF_REWARD_MODELS_ONLY,
    Behaviour,
    Limit,
    Promise,
    Waiver,
    best_of,
    is_sampled,
    of_family,
    prefill_of,
)
from demeanor.records import content_id
from demeanor.reward_settings import RewardSettings
from demeanor.sections import Section, Text
from demeanor.settings import Dumper, Source, apply_overrides, read_yaml
from demeanor.training_settings import Training, unknown_to
from demeanor.trl_options import check_trl_options

__all__ = [
    "MEASURES",
    "STARTER",
    "Adaptive",
    "Attacks",
    "Behaviour",
    "Contract",
    "Data",
    "Limit",
    "Measurement",
    "Promise",
    "Served",
    "Training",
    "Waiver",
    "build_contract",
    "dump_contract",
    "load_contract",
    "parse_contract",
    "resolve_paths",
    "unknown_to",
]

STARTER = "starter"  # in `model` and `data.pairs`: the embedded default


class Data(Section):
    """Where the pairs come from, and what is held out."""

    pairs: tuple[Text, ...] = Field(min_length=1, description="files, folders or Hub ids of preference pairs")
    heldout_fraction: float = Field(0.1, ge=0, lt=1, description="share of the prompts that is held out as probes")
    max_heldout: int = Field(200, ge=0, description="at most so many held-out pairs")
    max_pairs: int | None = Field(None, ge=1, description="read at most so many rows of each source")
    ranked: Literal["all", "best"] | None = Field(
        None,
        description="pairs of a ranked list: all, or the best reply against each other one; default all (the engine "
        "computes each reply once either way); kto: best",
    )
    ranked_weights: Literal["even", "gap"] = Field(
        "even",
        description="a ranked list counts as one pair, shared among its pairs: even, or by the gap between the two "
        "scores (ranks where there are no scores)",
    )
    split: str = Field("train", description="split of a data set that has several")
    seed: int = Field(0, ge=0, lt=2**32, description="of the split")

    @field_validator("pairs", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class Adaptive(Section):
    """The attacker that searches for each probe's worst prompt (`measure/adaptive.py`); one budget for both sides."""

    budget: int = Field(0, ge=0, description="prompts that the model is asked of a probe; 0: no attacker")
    suffix_tokens: int = Field(16, ge=1, description="longest suffix that it may put after the prompt")
    max_probes: int = Field(16, ge=1, description="at most so many probes of each behaviour are attacked")
    candidates: int = Field(16, ge=1, description="prompts asked at a time, all edits of the best one so far")


class Served(Section):
    """A model behind an OpenAI-compatible endpoint, which is asked for its replies in place of the run's own."""

    endpoint: Text = Field(description="address up to /v1 of an OpenAI-compatible server")
    model: Text = Field(description="the name of the served model")
    key_env: Text | None = Field(None, description="the environment variable that holds the key")
    timeout_s: float = Field(120.0, gt=0, description="seconds for a reply")
    retries: int = Field(2, ge=0, description="further attempts when it does not answer")
    concurrency: int = Field(8, ge=1, le=256, description="requests at once")

    @model_validator(mode="after")
    def _checked(self) -> Served:
        check_endpoint(self.endpoint, self.key_env)
        return self


class Measurement(Section):
    """How the probes are measured, before and after alike."""

    samples: int = Field(4, ge=0, description="sampled replies a probe")
    max_sampled_probes: int = Field(64, ge=0, description="at most so many probes of each behaviour are sampled")
    temperature: float = Field(1.0, gt=0, description="of the sampled replies")
    max_new_tokens: int = Field(48, ge=1, description="length of the sampled replies")
    sampled_by: Literal["transformers", "vllm"] = Field("transformers", description="what samples them")
    served: dict[Literal["before", "after"], Served] = Field(
        default_factory=dict,
        description="a side whose replies a server gives: its likelihoods are then not known, and a limit on one fails",
    )
    spellings: Literal["all", "canonical"] = Field(
        "all",
        description="an opening's probability: over all token sequences that spell it, or its own tokenization's alone",
    )
    prefill: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="the reply is forced to begin with so many tokens of the violating one, e.g. [1, 3, 5, 10]"
    )
    depth: bool = Field(True, description="KL(aligned || base) at each token of the violating replies, after training")
    adaptive: Adaptive = Field(
        default_factory=Adaptive, description="the attacker that searches; off unless it has a budget"
    )
    best_of: tuple[int, ...] = Field(
        (4, 16, 64), description="numbers of attempts: the probability that at least one of so many replies violates"
    )
    batch_size: int = Field(16, ge=1, description="probes scored at a time")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of every interval and limit")
    resamples: int = Field(10_000, ge=1000, description="of the bootstrap")
    seed: int = Field(0, ge=0, lt=2**32, description="of the sampling, the attacker and the bootstrap")

    @field_validator("prefill", mode="after")
    @classmethod
    def _rising(cls, numbers: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(numbers)))

    @field_validator("best_of")
    @classmethod
    def _attempts(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        for place, number in enumerate(value):
            if not 1 <= number < 1_000_000:
                raise fault(f"must be between 1 and 999,999, not {number}", place)
        return tuple(sorted(set(value)))

    def server(self, side: str) -> Served | None:
        """The one that gives the replies of a side, if any."""
        return next((served for name, served in self.served.items() if name == side), None)


class Contract(Section):
    """The whole promise."""

    name: str = Field("run", min_length=1, description="a name for the report")
    model: Text = Field(
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
    attacks: Attacks = Field(
        default_factory=lambda: Attacks(),
        description="wrappers that turn each plain probe into many, measured beside it",
    )
    data: Data
    training: Training = Field(default_factory=lambda: Training())
    measurement: Measurement = Field(default_factory=Measurement)
    waivers: tuple[Waiver, ...] = Field((), description="limits that somebody lets through although they do not hold")
    audit: dict[str, dict[str, float]] = Field(
        default_factory=dict, description="limits of the audit's checks, by check and limit; `demeanor audit --checks`"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Contract:
        for name in self.behaviours:
            if name in self.collateral:
                raise fault("stands in behaviours and in collateral", "collateral", name)
        known = [limit.id(name) for name, promise in self.promises.items() for limit in promise.limits]
        for place, waiver in enumerate(self.waivers):
            if waiver.limit not in known:
                raise fault(f"no limit has the id {waiver.limit!r}{nearest(waiver.limit, known)}", "waivers", place)
        training = self.training
        if training.gamma and training.objective != "simpo":
            raise fault(f"is a margin of objective simpo; {training.objective} has none", "training", "gamma")
        if not training.needs_reference and training.reference != "precomputed":
            raise fault(f"{training.objective} has no reference: leave this out", "training", "reference")
        if OBJECTIVES[training.objective].trains_reward_model:
            for name in ("beta", "sft_weight", "rewards"):
                if getattr(training, name):
                    raise fault("means nothing to a reward model: leave it out", "training", name)
        elif not training.beta and not OBJECTIVES[training.objective].online:
            raise fault("input should be greater than 0, not 0", "training", "beta")
        if OBJECTIVES[training.objective].online:
            if training.sft_weight:
                raise fault(f"belongs to objectives that take pairs; {training.objective} samples its own replies",
                            "training", "sft_weight")  # fmt: skip
            if training.reference == "copy":
                raise fault(f"of {training.objective} it is the model with its adapter off: leave this out",
                            "training", "reference")  # fmt: skip
            if not self.rewards:
                raise fault(f"{training.objective} needs rewards, or behaviours with openings, patterns or another "
                            "judge to judge by", "training", "rewards")  # fmt: skip
            judged = any(promise.is_judged for promise in self.promises.values())
            if not judged and any(reward.kind == "judge" for reward in self.rewards):
                raise fault("no behaviour has openings, patterns or another judge to judge by", "training", "rewards")
        if not OBJECTIVES[training.objective].takes_pairs and self.data.ranked_weights != "even":
            raise fault(
                f"belongs to objectives that take pairs; {training.objective} does not", "data", "ranked_weights"
            )
        for name in training.recovery:
            if "recovery" in unknown_to(training.objective):
                raise fault(f"takes policies that are trained on pairs; {training.objective} is none",
                            "training", "recovery")  # fmt: skip
            if name not in self.behaviours:
                raise fault(f"no behaviour is called {name!r}{nearest(name, self.behaviours)}", "training", "recovery")
        if training.objective == "kto":
            if self.data.ranked == "all":
                raise fault(
                    "kto would take a reply between two others as good and as bad: write best", "data", "ranked"
                )
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
        self._check_limits()
        for place, name in enumerate(self.attacks.behaviours):
            if name not in self.promises:
                raise fault(f"nothing measured is called {name!r}{nearest(name, self.promises)}", "attacks",
                            "behaviours", place)  # fmt: skip
        if self.attacks.all_families and not self.attacked:
            raise fault("there is no permanent behaviour to attack", "attacks", "families")
        for name, behaviour in self.behaviours.items():
            if behaviour.kind == "transient" and "{" + name + "}" not in (self.system_prompt or ""):
                raise fault(f"has no place in system_prompt: write {{{name}}} there", "behaviours", name)
        return self

    def _check_limits(self) -> None:
        """A limit that the trained model cannot answer is refused now, not failed after the training."""
        answers = OBJECTIVES[self.training.objective].trains_reward_model
        if answers and self.measurement.served:
            raise fault("a reward model replies to nobody: no server can stand in for it", "measurement", "served")
        for section in ("behaviours", "collateral"):
            for name, promise in getattr(self, section).items():
                for place, limit in enumerate(promise.limits):
                    attempts = best_of(limit.measure) if of_family(limit.measure) == BEST_OF_SAMPLES else None
                    if attempts is not None and attempts > self.measurement.samples:
                        raise fault(f"{limit.measure} needs measurement.samples of {attempts} or more, not "
                                    f"{self.measurement.samples}", section, name, "limits", place)  # fmt: skip
                    if answers and limit.measure not in OF_REWARD_MODELS:
                        raise fault(f"a reward model says nothing, so it cannot be held to {limit.measure}; only to "
                                    f"{', '.join(OF_REWARD_MODELS)}", section, name, "limits", place)  # fmt: skip
                    if not answers and limit.measure in OF_REWARD_MODELS_ONLY:
                        raise fault(f"{limit.measure} is a reward model's; {self.training.objective} trains none",
                                    section, name, "limits", place)  # fmt: skip
                    if reason := self._not_measured(limit.measure, section, promise):
                        raise fault(f"{limit.measure} is not measured: {reason}", section, name, "limits", place)

    def _not_measured(self, measure: str, section: str, promise: Promise) -> str:
        """What leaves the measure out, and the remedy; "" when nothing does."""
        settings, number = self.measurement, prefill_of(measure)
        if number is not None and number not in settings.prefill:
            return f"put {number} into measurement.prefill"
        for key in ("samples", "max_sampled_probes"):
            if is_sampled(measure) and not getattr(settings, key):
                return f"no reply is sampled, set measurement.{key} above 0"
        if measure in AFTER_ONLY and not settings.depth:
            return "measurement.depth is off"
        if measure == "violating_adaptive_mass":
            if section != "behaviours":
                return "the attacker attacks behaviours, not collateral"
            return "" if settings.adaptive.budget else "give measurement.adaptive.budget"
        return ""

    @property
    def promises(self) -> dict[str, Promise]:
        """Every behaviour or collateral that is measured, by id."""
        trained = {k: b for k, b in self.behaviours.items() if b.kind == "permanent"}
        return {**trained, **self.collateral}

    def section_of(self, name: str) -> str:
        """The key of a promise: behaviours.ID or collateral.ID."""
        return f"{'collateral' if name in self.collateral else 'behaviours'}.{name}"

    @property
    def attacked(self) -> tuple[str, ...]:
        """Ids of what is attacked where `attacks` states families."""
        trained = (name for name, behaviour in self.behaviours.items() if behaviour.kind == "permanent")
        return self.attacks.behaviours or tuple(trained)

    @property
    def ranked(self) -> Literal["all", "best"]:
        """Which pairs are made of a ranked list."""
        return self.data.ranked or ("best" if self.training.objective == "kto" else "all")

    @property
    def rewards(self) -> tuple[RewardSettings, ...]:
        """Those of the contract; of an online objective without any the judge, where a behaviour has one."""
        given = self.training.rewards
        if given or not OBJECTIVES[self.training.objective].online:
            return given
        return (RewardSettings(kind="judge"),) if any(p.is_judged for p in self.promises.values()) else ()

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
        if text is None or text in (STARTER, LOOK_ALIKES) or Path(text).expanduser().is_absolute():
            return text
        if not (root / text).exists() and _HUB_ID.fullmatch(text) and not text.endswith(_DATA_SUFFIXES):
            return text
        return str((root / text).resolve())

    template = contract.chat_template

    def fix_reward(reward: RewardSettings) -> RewardSettings:
        if reward.kind == "model":
            return reward.model_copy(update={"path": str((root / Path(reward.path or "").expanduser()).resolve())})
        place, _, name = (reward.path or "").rpartition(":")
        return reward.model_copy(update={"path": f"{fix(place)}:{name}"}) if place.endswith(".py") else reward

    rewards = tuple(map(fix_reward, contract.training.rewards))
    attacks = contract.attacks
    files = {
        "templates": {name: fix(file) for name, file in attacks.templates.items()},
        "translations": fix(attacks.translations),
    }

    def fix_promise(promise: Any) -> Any:
        judge = promise.judge
        if isinstance(judge.card, str):  # its numbers become part of the contract
            judge = judge.model_copy(update={"card": read_card(root / Path(judge.card).expanduser())})
        if judge.kind == "model":
            judge = judge.model_copy(update={"model": fix(judge.model)})
        tasks = promise.tasks
        if tasks is not None and tasks.folder is not None:
            tasks = tasks.model_copy(update={"folder": str((root / Path(tasks.folder).expanduser()).resolve())})
        return promise.model_copy(update={"probes": fix(promise.probes), "judge": judge, "tasks": tasks})

    return contract.model_copy(
        update={
            "model": fix(contract.model),
            "chat_template": fix(template) if template and template.endswith(".jinja") else template,
            "training": contract.training.model_copy(update={"rewards": rewards}),
            "attacks": attacks.model_copy(update=files),
            "data": contract.data.model_copy(update={"pairs": tuple(fix(p) for p in contract.data.pairs)}),
            "behaviours": {k: fix_promise(b) for k, b in contract.behaviours.items()},
            "collateral": {k: fix_promise(p) for k, p in contract.collateral.items()},
        }
    )


_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?(@[\w./-]+)?")
_DATA_SUFFIXES = (".py", ".jsonl", ".json", ".csv", ".tsv", ".parquet", ".gz", ".xz", ".yaml", ".jinja")
