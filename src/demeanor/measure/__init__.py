"""Model and probes -> scores and sampled replies. The same probes, seeds and decoding before and after."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demeanor.contract import Contract, Promise
from demeanor.errors import StageError
from demeanor.judges import Answer, Judge, make_judges
from demeanor.measure.kept import KeptLikelihoods
from demeanor.measure.openings import Opening, Spellings, make_spellings
from demeanor.measure.partial import append_partial, read_partial
from demeanor.measure.repetition import is_repetitive
from demeanor.measure.samplers import Sampler, check_samplers, make_sampler
from demeanor.objectives import OBJECTIVES
from demeanor.progress import Advance
from demeanor.records import Probe, Reply, Score, content_id
from demeanor.records import mean as _mean
from demeanor.tokens import Tokenizer
from demeanor.train.reward_run import RewardModel
from demeanor.train.rewards import Rewards, Sample

if TYPE_CHECKING:
    from demeanor.measure.likelihood import Likelihoods, Scorer
    from demeanor.model import ModelSource

__all__ = ["Weights", "check_samplers", "measure_model"]

Measure = Callable[[list[Probe], int], tuple[list[Score], list[Reply]]]  # of a chunk, and where it starts


def measure_model(
    model: Any,
    tokenizer: Tokenizer,
    probes: list[Probe],
    contract: Contract,
    side: str,
    *,
    partial: Path | None = None,
    advance: Advance = lambda done_now=1, **figures: None,
    say: Callable[[str], None] = lambda line: None,
    weights: Weights | None = None,
) -> tuple[list[Score], list[Reply]]:
    """Measure all probes, in chunks that are kept in `partial`, so that a killed run goes on after its last chunk.

    Args:
        model: a causal language model (a PEFT model with its adapter on, for `after`), or under objective reward one
            with a head of one output, which is asked for its rewards of the probes' replies and for nothing else. None
            where a server gives the replies of this side (`measurement.served`): likelihoods and rewards are then None.
        probes: in a fixed order; each chunk has its own seed, so that a chunk's numbers depend on it alone.
        side: before or after.
        partial: a JSON-lines file of finished chunks; only a chunk of the same probes and settings is taken from it.
        advance: called with the number of probes done, and with figures to show.
        say: called with one line when something was done otherwise than asked.
        weights: which ones `model` has, so that its likelihoods are kept for later runs, and vLLM can load it.
    """
    settings = contract.measurement
    done = read_partial(partial)
    if OBJECTIVES[contract.training.objective].trains_reward_model:
        measure = _by_reward_model(RewardModel(model, tokenizer, contract), side)
    else:
        measure = _of_policy(model, tokenizer, probes, contract, side, say, advance, weights)
    scores: list[Score] = []
    replies: list[Reply] = []
    for start in range(0, len(probes), settings.batch_size):
        chunk = probes[start : start + settings.batch_size]
        key = content_id(side, [(probe.behaviour, probe.id) for probe in chunk], start)
        if key in done:
            scores += [Score.from_json(item) for item in done[key]["scores"]]
            replies += [Reply.from_json(item) for item in done[key]["replies"]]
        else:
            new_scores, new_replies = measure(chunk, start)
            scores, replies = scores + new_scores, replies + new_replies
            if all(reply.fault is None for reply in new_replies):  # else they are asked again
                append_partial(partial, key, new_scores, new_replies)
        advance(len(chunk))
    return scores, replies


@dataclass(frozen=True)
class Weights:
    """Which weights a model has: the files of its base, and the folder of the adapter on it, if any. `digest` changes
    with either."""

    source: ModelSource
    adapter: Path | None
    digest: str


def _of_policy(
    model: Any,
    tokenizer: Tokenizer,
    probes: list[Probe],
    contract: Contract,
    side: str,
    say: Callable[[str], None],
    advance: Advance,
    weights: Weights | None,
) -> Measure:
    """Likelihoods and sampled replies."""
    from demeanor.measure.deeper import Deeper
    from demeanor.measure.neutral import add_neutral

    settings, served = contract.measurement, contract.measurement.server(side)
    spoken = [probe for probe in probes if probe.prompt]
    scorer = None if served is not None else _scorer(model, tokenizer, spoken, contract, weights, say)
    rewards = None if served is not None else _rewards(model, contract)
    judges = make_judges(contract, say=say)
    if side == "before" and settings.samples:
        _say_uncorrected(contract, judges, say)
    if served is not None:
        say(f"{side}: {served.model} at {served.endpoint} gives the replies; a served "
            "model's likelihoods, and rewards, are not known: they are None, and a limit on one fails")  # fmt: skip
    source, adapter = (weights.source, weights.adapter) if weights is not None else (None, None)
    sampler = make_sampler(model, source, adapter, tokenizer, contract, side, say)
    sampled = _sampled_probes(spoken, settings.max_sampled_probes) if settings.samples else set()
    if served is None:
        from demeanor.measure.sample import say_cut

        say_cut(model, tokenizer, [p for p in spoken if (p.behaviour, p.id) in sampled], contract, say)
    own = [probe for probe in spoken if settings.adaptive.budget and probe.behaviour not in contract.collateral]
    attacked = _sampled_probes(own, settings.adaptive.max_probes)
    deeper = None
    if scorer is not None:
        deeper = Deeper(model, scorer, tokenizer, contract, side, judges, sampled=sampled, attacked=attacked)
    told: list[bool] = []

    def measure(chunk: list[Probe], start: int) -> tuple[list[Score], list[Reply]]:
        replies = _sample(sampler, tokenizer, chunk, sampled, contract, side, start, rewards, judges)
        own = [probe for probe in chunk if probe.prompt]
        scores = _score(scorer, tokenizer, own, contract, side, replies)
        if scorer is None or deeper is None:  # a server speaks, and plain texts are not for it
            return [*scores, *(Score.of(probe, side, {}) for probe in chunk if not probe.prompt)], replies
        scores, more = deeper.measure(own, start, scores, lambda figure: advance(0, attacker=figure))
        scores = add_neutral(scores, model, scorer, tokenizer, chunk, contract, side)
        if scorer.uses_trees is False and not told:
            told.append(True)
            say(f"probes are scored one sequence at a time: {scorer.padded_because}")
        if scorer.kept is not None and start + len(chunk) >= len(probes):
            say(f"likelihoods: {scorer.kept.num_found} found that earlier runs kept")
        return scores, replies + more

    return measure


def _scorer(
    model: Any,
    tokenizer: Tokenizer,
    probes: list[Probe],
    contract: Contract,
    weights: Weights | None,
    say: Callable[[str], None],
) -> Scorer:
    """With the spellings that the contract asks for, and what earlier runs kept, if that is still true."""
    from demeanor.measure.likelihood import Scorer

    scorer = Scorer(model, spellings=_spellings(model, tokenizer, contract, say), say=say)
    if weights is None:
        return scorer
    try:
        scorer.kept = KeptLikelihoods(weights.digest, dtype=str(scorer.dtype), device=scorer.device.type)
    except StageError as error:
        say(f"likelihoods: not kept for later runs; {error}")
        return scorer
    scorer.check_kept(*_asked(tokenizer, probes, contract, scorer.spellings))
    return scorer


def _spellings(model: Any, tokenizer: Tokenizer, contract: Contract, say: Callable[[str], None]) -> Spellings | None:
    if contract.measurement.spellings == "canonical":
        return None
    found = make_spellings(tokenizer.inner, model.config.get_text_config().vocab_size)
    if found is None:
        say("openings: by their own tokenization alone, a lower bound: this tokenizer's tokens have no bytes")
    return found


def _asked(
    tokenizer: Tokenizer, probes: list[Probe], contract: Contract, spellings: Spellings | None
) -> tuple[list[list[int]], list[list[list[int]]], list[list[Opening]]]:
    """Of each probe its prompt, its replies, and the openings of its behaviour, the violating ones first."""
    system = contract.system_text()
    openings = {name: _openings(tokenizer, promise, spellings) for name, promise in contract.promises.items()}
    return (
        [tokenizer.prompt(probe.prompt, system) for probe in probes],
        [[tokenizer.reply(p.prompt, text, system) for text in p.violating + p.safe] for p in probes],
        [openings.get(probe.behaviour, []) for probe in probes],
    )


def _by_reward_model(rewarder: RewardModel, side: str) -> Measure:
    """The rewards of the probes' replies, and how often, and by how much, the safe one's is higher."""

    def measure(chunk: list[Probe], start: int) -> tuple[list[Score], list[Reply]]:
        rewards = iter(rewarder.of([(p.prompt, text) for p in chunk for text in p.violating + p.safe]))
        scores = []
        for probe in chunk:
            violating, safe = ([next(rewards) for _ in texts] for texts in (probe.violating, probe.safe))
            margins = [good - bad for good in safe for bad in violating]
            values = {
                "violating_reward": _mean(violating),
                "safe_reward": _mean(safe),
                "reward_accuracy": _mean([0.5 if margin == 0 else float(margin > 0) for margin in margins]),
                "validation_loss": _mean([math.log1p(math.exp(-abs(m))) + max(-m, 0.0) for m in margins]),
                "violating_tokens": _mean([rewarder.num_tokens(probe.prompt, text) for text in probe.violating]),
                "safe_tokens": _mean([rewarder.num_tokens(probe.prompt, text) for text in probe.safe]),
            }
            scores.append(Score.of(probe, side, values))
        return scores, []

    return measure


def _say_uncorrected(contract: Contract, judges: dict[str, Judge], say: Callable[[str], None]) -> None:
    for name, judge in judges.items():
        chosen = contract.promises[name].judge
        if judge.card is None and chosen.kind != "rule":
            say(f"{name}: the judge {chosen.title} has no card, so its rates are not corrected (demeanor judge-card)")


def _score(
    scorer: Scorer | None,
    tokenizer: Tokenizer,
    chunk: list[Probe],
    contract: Contract,
    side: str,
    replies: list[Reply],
) -> list[Score]:
    found: Sequence[Likelihoods | None] = [None] * len(chunk)
    if scorer is not None:
        found = scorer.measure(*_asked(tokenizer, chunk, contract, scorer.spellings))
    results = []
    for probe, likelihoods in zip(chunk, found, strict=True):
        own = [reply for reply in replies if (reply.behaviour, reply.probe_id) == (probe.behaviour, probe.id)]
        promise = contract.promises.get(probe.behaviour)
        num_bad = len(promise.violating_openings) if promise else 0
        results.append(Score.of(probe, side, finite({**_likelihoods(probe, likelihoods, num_bad), **_rates(own)})))
    return results


def _likelihoods(probe: Probe, found: Likelihoods | None, num_bad: int) -> dict[str, float | None]:
    """All None where the model's likelihoods are not known."""
    from demeanor.measure.likelihood import choice_probability

    logps, masses = found if found is not None else ([], [])
    violating, safe = logps[: len(probe.violating)], logps[len(probe.violating) :]
    totals_violating, totals_safe = [sum(path) for path in violating], [sum(path) for path in safe]
    both = bool(violating and safe)
    left_out = [mass.left_out for mass in masses if mass.left_out is not None]
    return {
        "violating_logp": _mean(totals_violating),
        "safe_logp": _mean(totals_safe),
        "violating_logp_per_token": _mean([sum(path) / len(path) for path in violating]),
        "safe_logp_per_token": _mean([sum(path) / len(path) for path in safe]),
        "violating_choice_probability": choice_probability(totals_violating, totals_safe) if both else None,
        "violating_opening_mass": _sum([mass.found for mass in masses[:num_bad]]),
        "safe_opening_mass": _sum([mass.found for mass in masses[num_bad:]]),
        "opening_left_out": _sum(left_out) if len(left_out) == len(masses) else None,
        "violating_tokens": _mean([float(len(path)) for path in violating]),
        "safe_tokens": _mean([float(len(path)) for path in safe]),
    }


def finite(values: dict[str, float | None]) -> dict[str, float | None]:
    """What is no finite number could not be computed."""
    return {name: value if value is not None and math.isfinite(value) else None for name, value in values.items()}


def _sum(values: Sequence[float]) -> float | None:
    return sum(values) if values else None


def _rates(replies: list[Reply]) -> dict[str, float | None]:
    """Of a probe that was sampled; nothing of one that was not. All None where one of its replies is missing: whether
    a prompt is answered may depend on the reply."""
    if not replies:
        return {}
    judged, rewards = [reply.judgement for reply in replies], [r.reward for r in replies if r.reward is not None]

    def rate(judgement: str) -> float | None:
        return judged.count(judgement) / len(judged) if None not in judged else None

    rates = {
        "violating_sampled_rate": rate("violating"),
        "safe_sampled_rate": rate("safe"),
        "invalid_sampled_rate": rate("invalid"),
        "repetitive_sampled_rate": _mean([float(is_repetitive(reply.text)) for reply in replies]),
        "reward": _mean(rewards) if len(rewards) == len(replies) else None,
        "reply_tokens": _mean([float(reply.num_tokens) for reply in replies]),
    }
    return rates if all(reply.fault is None for reply in replies) else dict.fromkeys(rates)


def _sample(
    sampler: Sampler,
    tokenizer: Tokenizer,
    chunk: list[Probe],
    sampled: set[tuple[str, str]],
    contract: Contract,
    side: str,
    start: int,
    rewards: Rewards | None,
    judges: dict[str, Judge],
) -> list[Reply]:
    settings, system = contract.measurement, contract.system_text()
    chosen = [probe for probe in chunk if (probe.behaviour, probe.id) in sampled]
    prompts = [tokenizer.prompt(probe.prompt, system) for probe in chosen]
    texts = sampler(chosen, prompts, int(content_id(settings.seed, start), 16) % 2**31)
    drawn = [
        (probe, prompt, index, one)
        for probe, prompt, own in zip(chosen, prompts, texts, strict=True)
        for index, one in enumerate(own)
    ]
    judged: list[Answer] = [Answer(None)] * len(drawn)
    for behaviour, judge in judges.items():
        places = [n for n, (probe, *_, one) in enumerate(drawn) if probe.behaviour == behaviour and one.fault is None]
        answers = judge.answer([(drawn[place][0].prompt, drawn[place][3].text) for place in places])
        for place, answer in zip(places, answers, strict=True):
            judged[place] = answer
    rewarded: list[float | None] = [None] * len(drawn)
    if rewards is not None:
        places = [place for place, (*_, one) in enumerate(drawn) if one.fault is None]
        samples = [
            Sample(f"probe {p.id} of {p.behaviour}", p.prompt, p.behaviour, prompt, one.ids or [], one.text)
            for p, prompt, _, one in (drawn[place] for place in places)
        ]
        values = rewards.measured(samples, [judged[place].judgement for place in places])
        for place, value in zip(places, values, strict=True):
            rewarded[place] = value
    return [
        Reply(
            probe.id,
            probe.behaviour,
            side,
            index,
            one.text,
            one.num_tokens,
            answer.judgement,
            reward,
            why=dict(answer.why) or None,
            fault=one.fault,
        )
        for (probe, _, index, one), answer, reward in zip(drawn, judged, rewarded, strict=True)
    ]


def _rewards(model: Any, contract: Contract) -> Rewards | None:
    """The contract's rewards; those by the model before training switch a PEFT model's adapter off."""
    from demeanor.measure.likelihood import Scorer

    if not contract.rewards:
        return None
    scorer = Scorer(model)  # one that keeps nothing: with the adapter off it is another model

    def mean_logps(samples: Sequence[Sample]) -> list[float]:
        with model.disable_adapter() if hasattr(model, "disable_adapter") else contextlib.nullcontext():
            found = scorer.logps([s.prompt_ids for s in samples], [[s.reply_ids] for s in samples])
        return [sum(path) / len(path) for (path,) in found]

    return Rewards(contract, mean_logps)


def _openings(tokenizer: Tokenizer, promise: Promise, spellings: Spellings | None) -> list[Opening]:
    """The violating ones, then the safe ones."""
    tokens = [tokenizer.opening(text) for text in promise.violating_openings + promise.safe_openings]
    return [spellings.opening(own) if spellings is not None else Opening(tuple(own)) for own in tokens]


def _sampled_probes(probes: list[Probe], limit: int) -> set[tuple[str, str]]:
    """(behaviour, id) of at most `limit` probes a behaviour, spread evenly over the list; of those that were made as
    attacks at most as many a family, so that the others are drawn as if there were none."""
    groups: dict[tuple[str, str | None], list[tuple[str, str]]] = {}
    for probe in probes:
        family = None if probe.wraps is None else probe.attack
        groups.setdefault((probe.behaviour, family), []).append((probe.behaviour, probe.id))
    chosen: set[tuple[str, str]] = set()
    for own in groups.values():
        count = min(limit, len(own))
        chosen |= {own[index * len(own) // count] for index in range(count)}
    return chosen
