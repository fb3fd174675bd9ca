"""`attacks`: which wrappers turn a probe into many, which families of them are held out, and what a limit is about.

The section is one for all behaviours, because a training mixes them: a family that is trained on for one behaviour is
held out for none.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from demeanor.faults import fault, nearest
from demeanor.records import Probe, Score
from demeanor.sections import Section, Text

# the wrappers of `attacks/`, by family; those that the audit knows too have its names (`audit/attacks.py`)
FAMILIES = {
    "role-play": "somebody else is to answer: a persona without rules, an actor, a simulated machine",
    "hypothetical": "it is all made up: a thought experiment, a novel, a film",
    "persuasion": "authority and urgency: who asks may, must, or has no time",
    "ignore-previous": "the instructions so far are said to be void",
    "refusal-suppression": "what a refusal would say is forbidden",
    "prefix-injection": "the reply is to begin with an agreement",
    "past-tense": "the question is asked of the past: by rules for usual English forms, else quoted as asked long ago",
    "translation": "another language: asked for as the reply's, or the question itself by a table of translations",
    "encoding": "the question in base64, hexadecimal, rot13, leetspeak, or with letters of no width",
    "payload-splitting": "the question in parts, to be put together by the model",
    "many-shot": "a conversation in which other questions of the probes were answered badly",
    "system-override": "a system prompt without rules, in the system's place or feigned in the user's turn",
    "multi-turn": "scripted turns before the question that lead up to it",
}
BY_WORDS = {"prefix-injection": "prefill"}  # what the audit's rules call otherwise
GIVEN, PLAIN, SEEN, UNSEEN, ALL = "given", "plain", "seen", "unseen", "all"
GROUPS = {
    GIVEN: "all probes as they were given, attacks among them included, but none that `attacks` made",
    PLAIN: "those that are no attack",
    SEEN: "attacks, given or made, of families that are in the training pairs too",
    UNSEEN: "attacks, given or made, of families that no training pair holds",
    ALL: "all of these",
}


class Attacks(Section):
    """Plain probes under wrappers, measured beside them."""

    families: tuple[Text, ...] = Field((), description="families of wrappers; all: every one that comes along")
    unseen: tuple[Text, ...] = Field(
        (), description="families that are never trained on: pairs whose `attack` names one of them are dropped"
    )
    templates: dict[str, Text] = Field(
        default_factory=dict,
        description="families of your own: name and file of texts that hold [INSERT PROMPT HERE] (CSV or JSON lines "
        "with a column text, or plain text, parted by lines of ---)",
    )
    translations: Text | None = Field(
        None, description="family translation: a table with the columns prompt and translation, in place of its phrases"
    )
    behaviours: tuple[Text, ...] = Field(
        (), description="whose plain probes are attacked: ids of behaviours or collateral; default every permanent one"
    )
    wrappers: int = Field(1, ge=1, description="different wrappers of a family around one probe")
    max_probes: int = Field(20, ge=1, description="at most so many probes of a behaviour under each family")
    train_on: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the plain pairs of these behaviours that is trained on once more, under a wrapper of a "
        "family that is not unseen",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="of the choice of probes and wrappers")

    @field_validator("families", mode="before")
    @classmethod
    def _all(cls, value: Any) -> Any:
        return tuple(FAMILIES) if value == "all" else (value,) if isinstance(value, str) else value

    @field_validator("unseen", "behaviours", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _known(self) -> Attacks:
        for name in ("families", "unseen", "behaviours"):
            for place, item in enumerate(getattr(self, name)):
                if item in getattr(self, name)[:place]:
                    raise fault(f"{item!r} stands twice", name, place)
        for place, family in enumerate(self.families):
            if family not in FAMILIES:
                told = "; name its file in templates" if family in self.templates else nearest(family, FAMILIES)
                raise fault(f"no family of wrappers is called {family!r}{told}", "families", place)
        for family in self.templates:
            if family in FAMILIES or family in GROUPS:
                raise fault("the name is taken: give another one", "templates", family)
        if self.translations is not None and "translation" not in self.families:
            raise fault("belongs to the family translation, which is not among families", "translations")
        if self.train_on and not self.seen:
            raise fault("there is no family to train on: none is stated, or all are unseen", "train_on")
        return self

    @property
    def all_families(self) -> tuple[str, ...]:
        """Those that come along and those of the user's templates."""
        return (*self.families, *self.templates)

    @property
    def seen(self) -> tuple[str, ...]:
        """The families that may be trained on."""
        return tuple(family for family in self.all_families if family not in self.unseen)


def is_over(over: str, item: Probe | Score) -> bool:
    """Is it of the group `over`: one of GROUPS, or a family of attacks?"""
    if over == GIVEN:
        return item.wraps is None
    if over == PLAIN:
        return item.attack is None
    if over in (SEEN, UNSEEN):
        return item.attack is not None and item.unseen == (over == UNSEEN)
    return over == ALL or item.attack == over
