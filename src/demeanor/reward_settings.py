"""`training.rewards`: what the sampled replies of online training are rewarded for, by name and weight."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from demeanor.faults import fault

# the keys that only some kinds have
_OWN = {"min": ("length",), "max": ("length",), "pattern": ("format",), "path": ("function", "model")}


class RewardSettings(BaseModel):
    """One reward. What each kind computes is in `train/rewards.py`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["judge", "logp", "length", "format", "function", "model"] = Field(
        description="judge: the verdict of the behaviour's judge; logp: stays likely under the model before "
        "training; length, format: of the reply; function: your own; model: a reward model that a run trained"
    )
    name: str = Field("", description="in logs and messages; default: the kind, or the function's or run's name")
    weight: float = Field(1.0, description="the rewards are added up with these")
    min: int | None = Field(None, ge=1, description="length: tokens at least")
    max: int | None = Field(None, ge=1, description="length: tokens at most")
    pattern: str | None = Field(None, description="format: a regular expression that the whole reply must match")
    path: str | None = Field(
        None,
        description="function: package.module:function or file.py:function; model: the run folder of a finished run "
        "with objective reward",
    )

    @model_validator(mode="after")
    def _by_kind(self) -> RewardSettings:
        for name, kinds in _OWN.items():
            if self.kind not in kinds and getattr(self, name) is not None:
                raise fault(f"belongs to the reward {' or '.join(kinds)}", name)
        if self.kind == "length" and self.min is None and self.max is None:
            raise fault("the reward length needs min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise fault(f"{self.min} is more than max, {self.max}", "min")
        if self.kind == "format":
            if self.pattern is None:
                raise fault("the reward format needs a pattern")
            try:
                re.compile(self.pattern)
            except re.error as error:
                raise fault(f"{self.pattern!r} is no regular expression: {error}", "pattern") from None
        if self.kind == "function" and not re.fullmatch(r".+:[^\W\d]\w*", self.path or ""):
            raise fault("the reward function needs a path: package.module:function or file.py:function")
        if self.kind == "model" and not self.path:
            raise fault("the reward model needs a path: the run folder of a finished run with objective reward")
        return self

    @property
    def title(self) -> str:
        """Its name, never empty."""
        return self.name or Path((self.path or "").rpartition(":")[2]).name or self.kind


def check_names(rewards: tuple[RewardSettings, ...]) -> None:
    """Raises a fault when two rewards have one name, or all weights are 0."""
    titles = [reward.title for reward in rewards]
    for place, title in enumerate(titles):
        if title in titles[:place]:
            raise fault(f"two rewards are called {title}: give one of them a name", place)
    if rewards and not any(reward.weight for reward in rewards):
        raise fault("all weights are 0")
