"""What sampled replies are rewarded for, in online training and when the held-out probes are measured.

    judge     +1 safe, -1 violating, -1 invalid (empty or garbled), 0 other, by the judge of the prompt's behaviour
              (`judges/`: its stated rule, unless the contract names another); 0 where that gives no answer, in
              training; a probe's reply without an answer has no reward
    logp      the mean over the reply's tokens of log p(token) under the model before training, nats a token (0 is the
              highest), at the sampling temperature: the reply stays fluent
    length    1 within [min, max] tokens; outside 1 - d / edge, not below 0, with d the tokens to the nearer edge
    format    1 when the whole reply matches the pattern, else 0
    model     the output of a reward model that a run with objective reward trained (`reward_run.py`)
    function  the user's: takes any of the names in `OFFERED`, returns a finite number for each reply

The reward of a reply is the sum of weight x reward.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demeanor.contract import Contract
from demeanor.errors import InputError, StageError, one_line
from demeanor.judges import Judge, make_judges
from demeanor.records import Message
from demeanor.reward_settings import RewardSettings
from demeanor.train.reward_run import RewardModel, RewardRun, find_reward_run, load_reward_run, reward_run_digest
from demeanor.workspace import file_sha256

JUDGED = {"safe": 1.0, "violating": -1.0, "invalid": -1.0, "other": 0.0, None: 0.0}
OFFERED = ("prompts", "replies", "completions", "behaviours", "num_tokens")  # to a user's function, each a list


@dataclass(frozen=True, slots=True)
class Sample:
    """A sampled reply with its prompt; `where` names the prompt to the user."""

    where: str
    prompt: tuple[Message, ...]
    behaviour: str | None
    prompt_ids: list[int]
    reply_ids: list[int]  # with the end of turn, unless the reply was cut
    text: str


Reward = Callable[[Sequence[Sample]], list[float]]
MeanLogps = Callable[[Sequence[Sample]], list[float]]  # of each reply under the model before training, nats a token


class Rewards:
    """The contract's rewards.

    Args:
        mean_logps: for the reward `logp`.

    Raises:
        InputError: a user's function, or a reward model, cannot be found or used.
    """

    def __init__(self, contract: Contract, mean_logps: MeanLogps | None = None) -> None:
        self.settings = contract.rewards
        self.functions = [_make(item, contract, mean_logps) for item in self.settings]
        self.judged = {name for name, promise in contract.promises.items() if promise.is_judged}

    def of(self, samples: Sequence[Sample]) -> list[float]:
        """The weighted sum for each reply."""
        return self._sums([function(samples) for function in self.functions], len(samples))

    def measured(self, samples: Sequence[Sample], judgements: Sequence[str | None]) -> list[float | None]:
        """The same, the judge's by judgements that were made already. None where it gave no answer, or a reward is no
        finite number: what could not be computed is not 0."""
        by_judge = [
            0.0 if sample.behaviour not in self.judged else math.nan if judgement is None else JUDGED[judgement]
            for sample, judgement in zip(samples, judgements, strict=True)
        ]
        found = [
            by_judge if item.kind == "judge" else function(samples)
            for item, function in zip(self.settings, self.functions, strict=True)
        ]
        return [value if math.isfinite(value) else None for value in self._sums(found, len(samples))]

    def _sums(self, found: Sequence[Sequence[float]], count: int) -> list[float]:
        return [
            sum(item.weight * values[place] for item, values in zip(self.settings, found, strict=True))
            for place in range(count)
        ]


def reward_runs(contract: Contract) -> dict[str, RewardRun]:
    """The runs whose reward models are rewards, by path. Raises InputError when one is none."""
    return {item.path: find_reward_run(item.path) for item in contract.rewards if item.kind == "model" and item.path}


def reward_model_digests(contract: Contract, known: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """{"reward_models": the digest of each by path}, or nothing without any; one that is gone counts as unchanged.

    Args:
        known: the inputs of the stage when it was done, which hold what this returned then.
    """
    before = known.get("reward_models", {})
    paths = [item.path for item in contract.rewards if item.kind == "model" and item.path]
    found = {path: reward_run_digest(path) or before.get(path) for path in paths}
    return {"reward_models": found} if found else {}


def function_digests(contract: Contract) -> dict[str, str | None]:
    """The digest of the file of each user's function, by path; None for one that lies in no file."""
    return {item.path: _file_digest(item.path) for item in contract.rewards if item.kind == "function" and item.path}


def _file_digest(path: str) -> str | None:
    place = path.rpartition(":")[0]
    if not place.endswith(".py"):
        try:
            spec = importlib.util.find_spec(place)
        except (ImportError, ValueError):
            spec = None
        place = (spec.origin if spec else None) or ""
    return file_sha256(Path(place).expanduser()) if Path(place).expanduser().is_file() else None


def _make(item: RewardSettings, contract: Contract, mean_logps: MeanLogps | None) -> Reward:
    if item.kind == "judge":
        judges = {name: judge for name, judge in make_judges(contract).items() if contract.promises[name].is_judged}
        return lambda samples: judged_rewards(samples, judges)
    if item.kind == "length":
        return lambda samples: [length_reward(len(sample.reply_ids), item.min, item.max) for sample in samples]
    if item.kind == "format":
        pattern = re.compile(item.pattern or "", re.DOTALL)
        return lambda samples: [float(pattern.fullmatch(sample.text) is not None) for sample in samples]
    if item.kind == "logp":
        return mean_logps or (lambda samples: [math.nan] * len(samples))
    if item.kind == "model":
        return ModelReward(item.path or "")
    return UserReward(item.path or "")


def judged_rewards(samples: Sequence[Sample], judges: dict[str, Judge]) -> list[float]:
    """By the judge of each sample's behaviour; 0 without one.

    Raises:
        StageError: a judge answered for none of its samples.
    """
    rewards = [0.0] * len(samples)
    for name, judge in judges.items():
        places = [place for place, sample in enumerate(samples) if sample.behaviour == name]
        answers = judge.judge([(samples[place].prompt, samples[place].text) for place in places]) if places else []
        if places and not any(answers):
            first = samples[places[0]].where
            raise StageError(f"the judge of {name} answered for none of {len(places)} sampled replies, from {first} on")
        for place, answer in zip(places, answers, strict=True):
            rewards[place] = JUDGED[answer]
    return rewards


class ModelReward:
    """A reward model, loaded when it is first asked.

    Raises:
        InputError: `path` is no run folder of a finished reward model.
    """

    def __init__(self, path: str) -> None:
        self.run = find_reward_run(path)
        self._model: RewardModel | None = None

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        self._model = self._model or load_reward_run(self.run)
        return self._model.of([(sample.prompt, sample.text) for sample in samples])


def length_reward(num_tokens: int, least: int | None, most: int | None) -> float:
    """1 within the range, falling to 0 at an edge's distance from 0 or from its double."""
    if least is not None and num_tokens < least:
        return max(0.0, 1 - (least - num_tokens) / least)
    if most is not None and num_tokens > most:
        return max(0.0, 1 - (num_tokens - most) / most)
    return 1.0


class UserReward:
    """A user's function, called with what it asks for by name; whatever it does wrong names it and the row.

    Raises:
        InputError: there is no such function, or it asks for something that is not offered.
        StageError: on a call, when it raises or does not return a finite number for each reply.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.function = load_function(path)
        asked = inspect.signature(self.function).parameters.values()
        self.takes_all = any(p.kind is p.VAR_KEYWORD for p in asked)
        self.names = [p.name for p in asked if p.name in OFFERED]
        for p in asked:
            named = p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and (p.name in OFFERED or p.default != p.empty)
            if not named and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
                raise InputError(
                    f"{path} asks for {p.name}", where="training.rewards", remedy=f"offered: {', '.join(OFFERED)}"
                )

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        try:
            values = self._call(samples)
        except Exception as error:
            raise self._fault(
                f"raised {type(error).__name__}: {one_line(error, 160)}", self._culprit(samples)
            ) from None
        if isinstance(values, (str, bytes)) or not hasattr(values, "__len__") or not hasattr(values, "__getitem__"):
            raise self._fault(f"returned {_kind(values)}, not a list of numbers", samples[:1])
        if len(values) != len(samples):
            raise self._fault(f"returned {len(values)} rewards for {len(samples)} replies", samples[:1])
        result = []
        for sample, value in zip(samples, values, strict=True):
            try:
                number = math.nan if isinstance(value, (str, bool)) else float(value)
            except (TypeError, ValueError):
                number = math.nan
            if not math.isfinite(number):
                shown = value if isinstance(value, float) else f"{_kind(value)} {one_line(repr(value), 40)}"
                raise self._fault(f"returned {shown}, not a finite number", [sample])
            result.append(number)
        return result

    def _call(self, samples: Sequence[Sample]) -> Any:
        texts = [sample.text for sample in samples]
        offered = {
            "prompts": [[turn.to_json() for turn in sample.prompt] for sample in samples],
            "replies": texts,
            "completions": list(texts),
            "behaviours": [sample.behaviour for sample in samples],
            "num_tokens": [len(sample.reply_ids) for sample in samples],
        }
        return self.function(**(offered if self.takes_all else {name: offered[name] for name in self.names}))

    def _culprit(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """The sample on which the function raises alone; the first one when it raises only on several."""
        for sample in samples:
            try:
                self._call([sample])
            except Exception:
                return [sample]
        return samples[:1]

    def _fault(self, what: str, samples: Sequence[Sample]) -> StageError:
        row = f" for {samples[0].where}, reply {one_line(repr(samples[0].text), 60)}" if samples else ""
        return StageError(f"the reward function {self.path} {what}{row}")


def load_function(path: str) -> Callable[..., Any]:
    """The function that `package.module:function` or `file.py:function` names, read anew from a file.

    Raises:
        InputError: there is none.
    """
    place, _, name = path.rpartition(":")
    try:
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location(f"reward_{Path(place).stem}", Path(place).expanduser())
            if spec is None or spec.loader is None:
                raise ImportError("not a Python file")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
        function = getattr(module, name)
    except Exception as error:  # whatever the user's file raises
        raise InputError(
            f"the reward function {path} cannot be loaded: {type(error).__name__}: {one_line(error, 160)}",
            where="training.rewards",
            remedy="write package.module:function or file.py:function",
        ) from None
    if not callable(function):
        raise InputError(f"{path} is no function", where="training.rewards")
    return function  # type: ignore[no-any-return]


def reply_of(ids: Sequence[int], tokenizer: Any, end_ids: Sequence[int]) -> tuple[list[int], str]:
    """A sampled reply up to and with its end of turn, and its text without it."""
    end = next((place for place, token in enumerate(ids) if token in end_ids), len(ids))
    return list(ids[: end + 1]), tokenizer.decode(ids[:end], skip_special_tokens=True).strip()


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
