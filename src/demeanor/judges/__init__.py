"""Prompts and replies -> violating, safe, other, invalid, or None where a judge gave no answer.

    rule        the behaviour's openings and patterns (`rule.py`)
    refusal     rules for refusals: what does not refuse, violates (`refusals.py`)
    classifier  the small one that comes along (`classifier.py`)
    model       a Hugging Face sequence classifier, or a guard model that generates its verdict (`local.py`)
    endpoint    an LLM with a rubric, over an OpenAI-compatible endpoint (`endpoint.py`)

Every judge but the rule calls an empty reply invalid without looking further, and a garbled one (`rule.is_garbled`)
unless it finds that it violates: garble after a violation does not hide it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from demeanor.contract import Contract, Measurement, Promise
from demeanor.errors import ContractError, InputError
from demeanor.judge_settings import Card, JudgeSettings
from demeanor.judges.answer import Answer
from demeanor.judges.rule import answer_reply, is_garbled, plain_text
from demeanor.records import Message, content_id

__all__ = [
    "Answer",
    "Item",
    "Judge",
    "identity_digest",
    "judge_digests",
    "judge_identities",
    "make_judge",
    "make_judges",
]

Item = tuple[tuple[Message, ...], str]  # a prompt and a reply to it
Answers = Callable[[Sequence[Item]], list[Answer]]


@dataclass(frozen=True)
class Judge:
    """A judge that is ready. `identity` is all that its judgements depend on besides the behaviour's openings."""

    identity: dict[str, Any]
    card: Card | None
    answer: Answers

    def judge(self, items: Sequence[Item]) -> list[str | None]:
        """The judgement of each reply."""
        return [answer.judgement for answer in self.answer(items)]

    @property
    def digest(self) -> str:
        """Of what its answers depend on, for its card."""
        return identity_digest(self.identity)


def make_judge(
    settings: JudgeSettings,
    promise: Promise,
    *,
    max_new_tokens: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Judge:
    """The judge of a behaviour. Nothing is loaded or asked before the first reply is judged.

    Args:
        promise: openings and patterns for the rule; `about` is an endpoint's rubric unless the settings state one.
        max_new_tokens: length of the replies that it will see, by which a card that comes along is chosen.
        say: called with one line, once, when replies go without an answer.

    Raises:
        InputError: its model cannot be found or has other labels, its key is not set, it has no rubric.
    """
    identity = _identity(settings, promise)
    card = _card(settings, identity, max_new_tokens or Measurement().max_new_tokens)
    if settings.kind == "rule":
        return Judge(identity, card, lambda items: [answer_reply(text, promise) for _, text in items])
    return Judge(identity, card, _outside_invalid(_make(settings, promise, say)))


def make_judges(contract: Contract, *, say: Callable[[str], None] = lambda line: None) -> dict[str, Judge]:
    """The judge of each behaviour and collateral, by its id.

    Raises:
        InputError: as `make_judge`, with the behaviour's key.
    """
    judges = {}
    for name, promise in contract.promises.items():
        try:
            length = contract.measurement.max_new_tokens
            judges[name] = make_judge(promise.judge, promise, max_new_tokens=length, say=say)
        except InputError as error:
            where = f"{name}.judge" + (f": {error.where}" if error.where else "")
            raise ContractError(error.what, where=where, remedy=error.remedy) from None
    return judges


def judge_identities(contract: Contract, known: dict[str, Any]) -> dict[str, Any]:
    """What the judgements of each behaviour depend on; a model that is gone counts as the one that is `known`."""
    found: dict[str, Any] = {}
    for name, promise in contract.promises.items():
        try:
            found[name] = _identity(promise.judge, promise)
        except InputError:
            found[name] = known.get(name)
    return found


def judge_digests(contract: Contract, known: dict[str, Any]) -> dict[str, Any]:
    """The same in short, and without what only decides how long an answer is waited for. `known`: digests."""
    found = judge_identities(contract, {})
    return {name: known.get(name) if own is None else identity_digest(own) for name, own in found.items()}


def _identity(settings: JudgeSettings, promise: Promise) -> dict[str, Any]:
    own = settings.model_dump(mode="json", exclude={"card"}, exclude_defaults=True)
    own["kind"] = settings.kind
    if settings.kind == "refusal":
        from demeanor.judges.refusals import VERSION

        own["version"] = VERSION
    elif settings.kind == "rule":
        own["rule"] = [promise.violating_openings, promise.violating_patterns, promise.safe_openings]
    elif settings.kind == "classifier":
        from demeanor.judges.classifier import weights_digest

        own["weights"] = weights_digest()
    elif settings.kind == "model":
        from demeanor.judges.local import check_labels, find_classifier

        source = find_classifier(settings)
        check_labels(source, settings)
        own |= {"model": None, "revision": None, "weights": source.fingerprint}
    elif settings.kind == "endpoint":
        from demeanor.judges.endpoint import VERSION, rubric_of

        own |= {"version": VERSION, "rubric": rubric_of(settings, promise)}
    return own


def identity_digest(identity: dict[str, Any]) -> str:
    """Of a judge's identity, without what only decides how long an answer is waited for."""
    patience = ("timeout_s", "retries", "key_env")  # with more of it the same judge answers more often
    return content_id({name: value for name, value in identity.items() if name not in patience})


def _make(settings: JudgeSettings, promise: Promise, say: Callable[[str], None]) -> Answers:
    if settings.kind == "refusal":
        from demeanor.judges.refusals import refuses

        refused, answered = ("safe", "violating") if settings.refused == "safe" else ("violating", "safe")
        return lambda items: [
            Answer(refused if refuses(text) else answered, {"refuses": refuses(text)}) for _, text in items
        ]
    if settings.kind == "classifier":
        from demeanor.judges.classifier import answer_replies

        return lambda items: answer_replies([text for _, text in items])
    if settings.kind == "model":
        from demeanor.judges.local import LocalJudge

        return LocalJudge(settings)
    from demeanor.judges.endpoint import EndpointJudge

    return EndpointJudge(settings, promise, say)


def _outside_invalid(judge: Answers) -> Answers:
    def answer_all(items: Sequence[Item]) -> list[Answer]:
        shown = [item for item in items if any(letter.isalnum() for letter in plain_text(item[1]))]
        answers = iter(judge(shown) if shown else [])
        found: list[Answer] = []
        for item in items:
            if not any(letter.isalnum() for letter in plain_text(item[1])):
                found.append(Answer("invalid", {"invalid": "empty"}))
                continue
            answer = next(answers)
            garbled = answer.judgement not in ("violating", None) and is_garbled(plain_text(item[1]))
            found.append(Answer("invalid", {**answer.why, "invalid": "garbled"}) if garbled else answer)
        return found

    return answer_all


def _card(settings: JudgeSettings, identity: dict[str, Any], max_new_tokens: int) -> Card | None:
    """The judge's card, if there is one.

    Raises:
        InputError: the card is of another judge.
    """
    from demeanor.judges.cards import card_of

    card = card_of(settings, max_new_tokens)
    if card is not None and card.judge and card.judge != identity_digest(identity):
        raise InputError(
            f"the card is of another judge ({card.judge}); this one is {identity_digest(identity)}",
            remedy="demeanor judge-card measures this one",
        )
    return card
