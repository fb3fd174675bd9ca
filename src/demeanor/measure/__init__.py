"""Model and probes -> scores and sampled replies. The same probes, seeds and decoding before and after."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demeanor.contract import Contract, Promise
from demeanor.judges import Judge, make_judges
from demeanor.measure.repetition import is_repetitive
from demeanor.objectives import OBJECTIVES
from demeanor.progress import Advance
from demeanor.records import Probe, Reply, Score, content_id
from demeanor.tokens import Tokenizer
from demeanor.train.reward_run import RewardModel
from demeanor.train.rewards import Rewards, Sample

if TYPE_CHECKING:
    from demeanor.measure.likelihood import Scorer

__all__ = ["measure_model"]

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
) -> tuple[list[Score], list[Reply]]:
    """Measure all probes, in chunks that are kept in `partial`, so that a killed run goes on after its last chunk.

    Args:
        model: a causal language model (a PEFT model with its adapter on, for `after`), or under objective reward one
            with a head of one output, which is asked for its rewards of the probes' replies and for nothing else.
        probes: in a fixed order; each chunk has its own seed, so that a chunk's numbers depend on it alone.
        side: before or after.
        partial: a JSON-lines file of finished chunks; only a chunk of the same probes and settings is taken from it.
        advance: called with the number of probes done, and with figures to show.
        say: called with one line when something was done otherwise than asked.
    """
    settings = contract.measurement
    done = _read_partial(partial)
    if OBJECTIVES[contract.training.objective].trains_reward_model:
        measure = _by_reward_model(RewardModel(model, tokenizer, contract), side)
    else:
        measure = _of_policy(model, tokenizer, probes, contract, side, say, advance)
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
            _append_partial(partial, key, new_scores, new_replies)
        advance(len(chunk))
    return scores, replies


def _of_policy(
    model: Any,
    tokenizer: Tokenizer,
    probes: list[Probe],
    contract: Contract,
    side: str,
    say: Callable[[str], None],
    advance: Advance,
) -> Measure:
    """Likelihoods and sampled replies."""
    from demeanor.measure.deeper import Deeper
    from demeanor.measure.likelihood import Scorer
    from demeanor.measure.neutral import add_neutral

    settings, scorer = contract.measurement, Scorer(model)
    rewards = _rewards(model, scorer, contract)
    judges = make_judges(contract, say=say)
    if side == "before" and settings.samples:
        _say_uncorrected(contract, judges, say)
    spoken = [probe for probe in probes if probe.prompt]
    sampled = _sampled_probes(spoken, settings.max_sampled_probes) if settings.samples else set()
    own = [probe for probe in spoken if settings.adaptive.budget and probe.behaviour not in contract.collateral]
    attacked = _sampled_probes(own, settings.adaptive.max_probes)
    deeper = Deeper(model, scorer, tokenizer, contract, side, judges, sampled=sampled, attacked=attacked)
    told: list[bool] = []

    def measure(chunk: list[Probe], start: int) -> tuple[list[Score], list[Reply]]:
        replies = _sample(model, tokenizer, chunk, sampled, contract, side, start, rewards, judges)
        own = [probe for probe in chunk if probe.prompt]
        scores = _score(scorer, tokenizer, own, contract, side, replies)
        scores, more = deeper.measure(own, start, scores, lambda figure: advance(0, attacker=figure))
        scores = add_neutral(scores, model, scorer, tokenizer, chunk, contract, side)
        if scorer.uses_trees is False and not told:
            told.append(True)
            say(f"probes are scored one sequence at a time: {scorer.padded_because}")
        return scores, replies + more

    return measure


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
    scorer: Scorer, tokenizer: Tokenizer, chunk: list[Probe], contract: Contract, side: str, replies: list[Reply]
) -> list[Score]:
    system = contract.system_text()
    openings = {name: _openings(tokenizer, promise) for name, promise in contract.promises.items()}
    prompts, options = [], []
    for probe in chunk:
        prompts.append(tokenizer.prompt(probe.prompt, system))
        texts = [tokenizer.reply(probe.prompt, text, system) for text in probe.violating + probe.safe]
        bad, good = openings.get(probe.behaviour, ([], []))
        options.append(texts + bad + good)
    results = []
    asked = [place for place, texts in enumerate(options) if texts]  # a prompt alone has nothing to score
    found = dict(zip(asked, scorer.logps([prompts[p] for p in asked], [options[p] for p in asked]), strict=True))
    for place, probe in enumerate(chunk):
        logps = found.get(place, [])
        own = [reply for reply in replies if (reply.behaviour, reply.probe_id) == (probe.behaviour, probe.id)]
        bad, good = openings.get(probe.behaviour, ([], []))
        values = finite({**_likelihoods(probe, logps, len(bad), len(good)), **_rates(own)})
        results.append(Score.of(probe, side, values))
    return results


def _likelihoods(probe: Probe, logps: list[list[float]], num_bad: int, num_good: int) -> dict[str, float | None]:
    from demeanor.measure.likelihood import choice_probability

    num_violating, num_replies = len(probe.violating), len(probe.violating) + len(probe.safe)
    violating, safe = logps[:num_violating], logps[num_violating:num_replies]
    bad = [math.exp(sum(path)) for path in logps[num_replies : num_replies + num_bad]]
    good = [math.exp(sum(path)) for path in logps[num_replies + num_bad :]]

    totals_violating, totals_safe = [sum(path) for path in violating], [sum(path) for path in safe]
    both = bool(violating and safe)
    return {
        "violating_logp": _mean(totals_violating),
        "safe_logp": _mean(totals_safe),
        "violating_logp_per_token": _mean([sum(path) / len(path) for path in violating]),
        "safe_logp_per_token": _mean([sum(path) / len(path) for path in safe]),
        "violating_choice_probability": choice_probability(totals_violating, totals_safe) if both else None,
        "violating_opening_mass": sum(bad) if num_bad else None,
        "safe_opening_mass": sum(good) if num_good else None,
        "violating_tokens": _mean([float(len(path)) for path in violating]),
        "safe_tokens": _mean([float(len(path)) for path in safe]),
    }


def finite(values: dict[str, float | None]) -> dict[str, float | None]:
    """What is no finite number could not be computed."""
    return {name: value if value is not None and math.isfinite(value) else None for name, value in values.items()}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _rates(replies: list[Reply]) -> dict[str, float | None]:
    def rate(judgement: str) -> float | None:
        judged = [reply.judgement for reply in replies]
        return judged.count(judgement) / len(judged) if judged and None not in judged else None

    return {
        "violating_sampled_rate": rate("violating"),
        "safe_sampled_rate": rate("safe"),
        "invalid_sampled_rate": rate("invalid"),
        "repetitive_sampled_rate": _mean([float(is_repetitive(reply.text)) for reply in replies]),
        "reward": _mean([reply.reward for reply in replies if reply.reward is not None]),
        "reply_tokens": sum(reply.num_tokens for reply in replies) / len(replies) if replies else None,
    }


def _sample(
    model: Any,
    tokenizer: Tokenizer,
    chunk: list[Probe],
    sampled: set[tuple[str, str]],
    contract: Contract,
    side: str,
    start: int,
    rewards: Rewards | None,
    judges: dict[str, Judge],
) -> list[Reply]:
    from demeanor.measure.sample import sample_replies

    settings, system = contract.measurement, contract.system_text()
    prompts: dict[int, list[int]] = {}
    chosen = [probe for probe in chunk if (probe.behaviour, probe.id) in sampled]
    texts = sample_replies(
        model,
        tokenizer,
        [prompts.setdefault(id(probe), tokenizer.prompt(probe.prompt, system)) for probe in chosen],
        samples=settings.samples,
        temperature=settings.temperature,
        max_new_tokens=settings.max_new_tokens,
        seed=int(content_id(settings.seed, start), 16) % 2**31,
    )
    drawn = [
        (probe, index, text, ids)
        for probe, own in zip(chosen, texts, strict=True)
        for index, (text, ids) in enumerate(own)
    ]
    rewarded: list[float | None] = [None] * len(drawn)
    if rewards is not None:
        samples = [
            Sample(f"probe {p.id} of {p.behaviour}", p.prompt, p.behaviour, prompts[id(p)], ids, text)
            for p, _, text, ids in drawn
        ]
        rewarded = list(rewards.of(samples))
    judged: list[str | None] = [None] * len(drawn)
    for behaviour, judge in judges.items():
        places = [place for place, (probe, *_) in enumerate(drawn) if probe.behaviour == behaviour]
        for place, answer in zip(places, judge.judge([(drawn[p][0].prompt, drawn[p][2]) for p in places]), strict=True):
            judged[place] = answer
    return [
        Reply(
            probe.id,
            probe.behaviour,
            side,
            index,
            text,
            len(ids),
            judgement,
            reward,
        )
        for (probe, index, text, ids), judgement, reward in zip(drawn, judged, rewarded, strict=True)
    ]


def _rewards(model: Any, scorer: Scorer, contract: Contract) -> Rewards | None:
    """The contract's rewards; those by the model before training switch a PEFT model's adapter off."""
    if not contract.rewards:
        return None

    def mean_logps(samples: Sequence[Sample]) -> list[float]:
        with model.disable_adapter() if hasattr(model, "disable_adapter") else contextlib.nullcontext():
            found = scorer.logps([s.prompt_ids for s in samples], [[s.reply_ids] for s in samples])
        return [sum(path) / len(path) for (path,) in found]

    return Rewards(contract, mean_logps)


def _openings(tokenizer: Tokenizer, promise: Promise) -> tuple[list[list[int]], list[list[int]]]:
    return (
        [tokenizer.opening(text) for text in promise.violating_openings],
        [tokenizer.opening(text) for text in promise.safe_openings],
    )


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


def _read_partial(partial: Path | None) -> dict[str, Any]:
    """Finished chunks by key; a line that a kill cut short is left out."""
    done: dict[str, Any] = {}
    if partial is None or not partial.exists():
        return done
    for line in partial.read_bytes().split(b"\n"):
        with contextlib.suppress(ValueError):
            item = json.loads(line)
            done[item["key"]] = item
    return done


def _append_partial(partial: Path | None, key: str, scores: list[Score], replies: list[Reply]) -> None:
    if partial is None:
        return
    partial.parent.mkdir(parents=True, exist_ok=True)
    item = {"key": key, "scores": [s.to_json() for s in scores], "replies": [r.to_json() for r in replies]}
    with partial.open(
        "a", encoding="ascii"
    ) as file:  # JSON in ASCII holds no line break; the first one ends a torn line
        file.write("\n" + json.dumps(item) + "\n")
