"""Are the probes fit to prove anything? Each is asked once, none is taught, and they can answer each limit."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from demeanor.audit.near import clusters, near_duplicates
from demeanor.audit.shingles import shingle
from demeanor.audit.texts import prompt_text
from demeanor.contract import Contract, Promise
from demeanor.errors import InputError
from demeanor.objectives import OBJECTIVES
from demeanor.promises import JOINT
from demeanor.records import PreferencePair, Probe, content_id, flat_text

NEAR = 0.8  # Jaccard of word 3-grams from which two prompts are taken for the same question
_OF_SENTENCES, _OF_TEXTS = ("minimal_pair_accuracy",), ("text_logp_per_token", "neutral_kl")
_OF_PLAIN = _OF_SENTENCES + _OF_TEXTS


def distinct_probes(probes: Sequence[Probe]) -> tuple[list[Probe], list[str]]:
    """Each probe once, those that ask (nearly) the same in one cluster, and a note on either.

    Probes of one behaviour that ask the same thing are one draw: those that name no cluster get one. Attacks are
    compared word for word only: what they wrap the questions in may be most of their words.
    """
    kept = list({(probe.behaviour, probe.id): probe for probe in probes}.values())
    notes = []
    if len(kept) < len(probes):
        repeated = Counter(probe.behaviour for probe in probes) - Counter(probe.behaviour for probe in kept)
        named = ", ".join(f"{count:,} of {name}" for name, count in repeated.items())
        notes.append(f"probes that stand in their file twice, asked once: {named}")
    keys = [
        (p.behaviour, *((turn.role, flat_text(turn.content)) for turn in p.prompt)) if p.prompt else None for p in kept
    ]
    groups: dict[int, str] = {}
    near = 0
    for name in dict.fromkeys(probe.behaviour for probe in kept):
        own = [place for place, p in enumerate(kept) if p.behaviour == name and p.prompt and p.cluster is None]
        first: dict[object, int] = {}
        same = [(first.setdefault(keys[place], number), number) for number, place in enumerate(own)]
        plain = [number for number, place in enumerate(own) if kept[place].attack is None]
        links, _ = near_duplicates(shingle([prompt_text(kept[own[number]].prompt) for number in plain]), NEAR)
        like = np.array(plain, np.int64)[links] if len(links) else np.empty((0, 2), np.int64)
        exact = clusters(len(own), np.array(same, np.int64).reshape(-1, 2))
        both = clusters(len(own), np.concatenate([np.array(same, np.int64).reshape(-1, 2), like]))
        near += len(np.unique(exact)) - len(np.unique(both))
        members: dict[int, list[int]] = defaultdict(list)
        for number, group in enumerate(both.tolist()):
            members[group].append(own[number])
        for places in members.values():
            if len(places) > 1:
                groups |= dict.fromkeys(places, content_id(keys[places[0]]))
    if near:
        notes.append(
            f"{near:,} probes ask nearly the same as another (Jaccard {NEAR:g} of word 3-grams): one draw each"
        )
    return [replace(p, cluster=groups[n]) if n in groups else p for n, p in enumerate(kept)], notes


def without_asked(
    train: Sequence[PreferencePair], probes: Sequence[Probe]
) -> tuple[list[PreferencePair], list[tuple[PreferencePair, str]], list[str]]:
    """The pairs whose prompt is no probe; the others with the reason, and notes.

    The last turn decides word for word; nearly the same are whole prompts, attacks among them left out.
    """
    asked = {flat_text(probe.prompt[-1].content) for probe in probes if probe.prompt}
    exact = [flat_text(pair.prompt[-1].content) in asked for pair in train]
    texts = [prompt_text(probe.prompt) for probe in probes if probe.prompt and probe.attack is None]
    rest = [place for place, pair in enumerate(train) if not exact[place] and pair.attack is None]
    links, _ = near_duplicates(shingle([prompt_text(train[p].prompt) for p in rest]), NEAR, other=shingle(texts))
    near = {rest[number] for number in links[:, 0].tolist()}
    kept, leaked = [], []
    for place, pair in enumerate(train):
        if exact[place]:
            leaked.append((pair, "its prompt is a probe"))
        elif place in near:
            leaked.append((pair, "its prompt is nearly a probe"))
        else:
            kept.append(pair)
    notes = [f"{sum(exact)} pairs were not trained on: their prompt is a probe"] if any(exact) else []
    if near:
        notes.append(
            f"{len(near)} pairs were not trained on: their prompt is nearly a probe (Jaccard {NEAR:g} of word 3-grams)"
        )
    return kept, leaked, notes


def check_answerable(contract: Contract, probes: Sequence[Probe]) -> list[str]:
    """Notes on what is measured of nothing.

    Raises:
        InputError: no probe of a behaviour can answer one of its limits, or nothing at all can be measured with them.
    """
    notes = []
    for name, promise in contract.promises.items():
        own = [probe for probe in probes if probe.behaviour == name]
        replied = all(probe.prompt and (probe.safe or probe.violating) for probe in own)
        if OBJECTIVES[contract.training.objective].trains_reward_model and (promise.tasks or not replied):
            raise InputError(
                "a reward model rewards replies, and has nothing else to say",
                where=contract.section_of(name),
                remedy="give probes that are pairs",
            )
        if promise.tasks is not None:
            continue
        if not own:
            notes.append(f"{name} has no probe and no limit: nothing is measured of it")
            continue
        if not any(_answers(probe, promise, contract) for probe in own):
            raise InputError(
                f"the probes of {name} are prompts without replies, and nothing can be measured with them",
                where=contract.section_of(name),
                remedy="state openings or a judge (and measurement.samples above 0)",
            )
        for place, limit in enumerate(promise.limits):
            if limit.measure == "violating_corrected_rate" and not promise.judge.has_card:
                raise InputError(
                    f"{limit.measure} is not measured: the judge {promise.judge.title} has no card",
                    where=f"{contract.section_of(name)}.limits.{place}",
                    remedy="let `demeanor judge-card` write one, and name it in judge.card",
                )
            if not any(_can_answer(probe, promise, limit.measure) for probe in own):
                raise InputError(
                    f"its probes cannot answer {limit.measure}: {_needs(limit.measure, own[0])}",
                    where=f"{contract.section_of(name)}.limits.{place}",
                    remedy="give another file of probes, or another measure",
                )
    return notes


def _answers(probe: Probe, promise: Promise, contract: Contract) -> bool:
    """Is there anything to measure with it?"""
    openings = promise.violating_openings or promise.safe_openings
    judged = promise.judge.kind != "rule" or bool(openings or promise.violating_patterns)
    return bool(probe.safe or probe.violating or openings or (judged and contract.measurement.samples))


def _can_answer(probe: Probe, promise: Promise, measure: str) -> bool:
    if not probe.prompt:
        return measure in (_OF_SENTENCES if probe.violating else _OF_TEXTS)
    if measure in _OF_PLAIN:
        return measure == "neutral_kl" and bool(promise.probes and probe.safe) and not probe.violating
    if promise.probes and probe.safe and not probe.violating and measure in JOINT:
        return False  # a neutral dialog's reply was labelled by nobody
    if not (probe.safe or probe.violating):
        kinds = ("_sampled_rate", "_corrected_rate", "_opening_mass", "_adaptive_mass", "reply_tokens", "reward")
        return measure.endswith(kinds) or "_best_of_" in measure
    return True


def _needs(measure: str, probe: Probe) -> str:
    if measure in _OF_SENTENCES:
        return "it is about minimal pairs (sentence_good, sentence_bad)"
    if measure in _OF_TEXTS:
        return "it is about plain texts" + (" or dialogs" if measure == "neutral_kl" else "")
    if not probe.prompt:
        return "it is about conversations, and they are plain texts"
    return "it needs two replies" if probe.safe else "it needs replies, and they are prompts alone"
