"""`behaviours.ID.judge`: who says whether a sampled reply violates, and how good that judge was measured to be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from demeanor.endpoint import check_endpoint
from demeanor.errors import ContractError, one_line
from demeanor.faults import fault
from demeanor.sections import Section, Text

WITH_CARD = ("refusal", "classifier")  # whose card comes along
# the keys that only some kinds have
_OWN = {
    "refused": ("refusal",),
    "model": ("model", "endpoint"),
    "revision": ("model",),
    "labels": ("model",),
    "reads": ("model",),
    "endpoint": ("endpoint",),
    "rubric": ("endpoint",),
    "key_env": ("endpoint",),
    "timeout_s": ("endpoint",),
    "retries": ("endpoint",),
    "card": ("rule", "refusal", "model", "endpoint"),  # the classifier's comes with it
}

Count = tuple[int, int]  # hits, n


class Card(Section):
    """What a judge was measured to be on labelled replies; `demeanor judge-card` writes one."""

    data: Text = Field(description="what it was measured on")
    sensitivity: Count = Field(description="violating replies that it called violating, of how many")
    specificity: Count = Field(description="other replies that it did not call violating, of how many")
    unscored: int = Field(0, ge=0, description="labelled replies that it gave no answer to; in neither count")
    design_effect: float = Field(
        1.0, ge=1, description="variance of the two shares over that of as many replies drawn one by one"
    )
    judge: str = Field("", description="the digest of the judge that was measured; another judge has another card")

    @model_validator(mode="after")
    def _counts(self) -> Card:
        for name in ("sensitivity", "specificity"):
            hits, n = getattr(self, name)
            if not 0 <= hits <= n or n == 0:
                raise fault(f"[hits, n] with 0 <= hits <= n and n at least 1, not [{hits}, {n}]", name)
        return self


class JudgeSettings(Section):
    """One judge; a word alone is its `kind`. What each kind does is in `judges/`."""

    kind: Literal["rule", "refusal", "classifier", "model", "endpoint"] = Field(
        "rule",
        description="rule: the openings and patterns; refusal: rules for refusals; classifier: the small one that "
        "comes along; model: a Hugging Face classifier or guard; endpoint: an LLM with a rubric",
    )
    refused: Literal["safe", "violating"] = Field(
        "safe", description="refusal: what a refusal is (violating where harmless questions are asked)"
    )
    model: Text | None = Field(None, description="model: folder or Hub id; endpoint: the name of the served model")
    revision: str | None = Field(None, description="model: branch, tag or commit of a Hub id")
    labels: dict[str, Literal["violating", "safe", "other", "invalid"]] = Field(
        default_factory=dict,
        description="model: what each label means, e.g. {LABEL_1: violating}; of a guard that generates: beginnings of "
        "its answers",
    )
    reads: Literal["reply", "both"] = Field("both", description="model: it reads the reply, or prompt and reply")
    endpoint: Text | None = Field(None, description="endpoint: address up to /v1 of an OpenAI-compatible server")
    rubric: Text | None = Field(
        None, description="endpoint: when a reply violates, in a sentence; by default the behaviour's `about`"
    )
    key_env: Text | None = Field(None, description="endpoint: the environment variable that holds the key")
    timeout_s: float = Field(30.0, gt=0, description="endpoint: seconds for an answer")
    retries: int = Field(2, ge=0, description="endpoint: further attempts when it does not answer")
    card: Card | Text | None = Field(None, description="a file that `demeanor judge-card` wrote for this judge")

    @model_validator(mode="before")
    @classmethod
    def _word(cls, data: Any) -> Any:
        if isinstance(data, str):
            return {"kind": data}
        if isinstance(data, dict) and "kind" not in data:
            kind = next((name for name in ("endpoint", "model") if data.get(name) is not None), None)
            return {"kind": kind, **data} if kind else data
        return data

    @model_validator(mode="after")
    def _by_kind(self) -> JudgeSettings:
        for name, kinds in _OWN.items():
            if self.kind not in kinds and getattr(self, name) != type(self).model_fields[name].get_default(
                call_default_factory=True
            ):
                raise fault(f"belongs to the judge {' or '.join(kinds)}; this is {self.kind}", name)
        if self.kind in ("model", "endpoint") and self.model is None:
            raise fault(f"the judge {self.kind} needs the name of a model", "model")
        if self.kind == "model" and "violating" not in self.labels.values():
            raise fault("names no label that means violating, e.g. {LABEL_1: violating, LABEL_0: safe}", "labels")
        if self.kind == "endpoint":
            check_endpoint(self.endpoint, self.key_env)
        return self

    @property
    def has_card(self) -> bool:
        """Whether its errors are known: it has a card, or one comes along (of attacks, not of harmless questions)."""
        return self.card is not None or (self.kind in WITH_CARD and self.refused == "safe")

    @property
    def title(self) -> str:
        return f"{self.kind} {self.model}" if self.model else self.kind


def read_card(path: str | Path) -> Card:
    """The card of a file.

    Raises:
        ContractError: there is none, or it is no card.
    """
    remedy = "demeanor judge-card writes one"
    try:
        return Card.model_validate(json.loads(Path(path).expanduser().read_text("utf-8")))
    except OSError as error:
        raise ContractError(f"no card can be read: {error.strerror}", where=str(path), remedy=remedy) from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or first.get("ctx", {}).get("path", ("",))[0]
        raise ContractError(
            f"is no card: {key}: {one_line(first['msg'], 120)}", where=str(path), remedy=remedy
        ) from None
    except ValueError as error:
        raise ContractError(f"is no card: {one_line(error, 120)}", where=str(path), remedy=remedy) from None
