"""What a family of attacks is: variants of one idea, each a pure function from a prompt to the prompt under attack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from demeanor.records import Message

Prompt = tuple[Message, ...]
SLOT = "[INSERT PROMPT HERE]"  # where a template takes the question


@dataclass(frozen=True, slots=True)
class Shot:
    """A question with a reply that violates, for attacks that show the model examples."""

    question: str
    reply: str


# prompt, a source of chance, shots of other questions -> the attack; None where the wrapper does not apply
Wrap = Callable[[Prompt, Random, Sequence[Shot]], Prompt | None]


@dataclass(frozen=True, slots=True)
class Family:
    """`name` stands in `attack_settings.FAMILIES`, with a line on what it does, unless it is of the user's templates;
    `source` is the paper that describes it, or the file. `variants` are its wrappers by name."""

    name: str
    source: str
    variants: dict[str, Wrap]


def question_of(prompt: Prompt) -> str:
    """The text of the last turn, which is the user's."""
    return prompt[-1].content


def asked(prompt: Prompt, text: str, *before: Message) -> Prompt:
    """The prompt with `text` for its last turn, and the turns `before` it."""
    return (*prompt[:-1], *before, replace(prompt[-1], content=text))


def framed(template: str) -> Wrap:
    """A wrapper that puts the question into every SLOT of `template`."""

    def wrap(prompt: Prompt, rng: Random, shots: Sequence[Shot]) -> Prompt | None:
        return asked(prompt, template.replace(SLOT, question_of(prompt)))

    return wrap


def spoken(change: Callable[[str], str | None]) -> Wrap:
    """A wrapper that says the question otherwise; `change` returns None for what it cannot change."""

    def wrap(prompt: Prompt, rng: Random, shots: Sequence[Shot]) -> Prompt | None:
        text = change(question_of(prompt))
        return None if text is None else asked(prompt, text)

    return wrap
