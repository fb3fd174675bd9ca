"""What the pairs are about, and what is promised that none of them teaches.

The aim is 1,000 to 5,000 different prompts, spread over behaviours, topics and attacks: for a manner of answering few
good examples go far (Zhou et al. 2023, LIMA, arXiv:2305.11206, with 1,000), and of preferences the quality tells more
than the number (Ivison et al. 2024, arXiv:2406.09279).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain, islice

import numpy as np

from demeanor.attack_settings import BY_WORDS
from demeanor.audit.attacks import NAMES, families_of
from demeanor.audit.by_prompt import prompt_keys, share_by_prompt
from demeanor.audit.check import Check, Context, Found, Scope
from demeanor.audit.topics import find_topics
from demeanor.audit.words import prompt_words
from demeanor.contract import Contract
from demeanor.faults import nearest
from demeanor.pairs import iter_pairs
from demeanor.pairs.probes import DIALOGS, PROMPTS, kind_of, probe_path, read_probes
from demeanor.records import DroppedRow, Estimate, PreferencePair, Probe

MAX_PROBES = 2_000  # of a behaviour, read for their attacks


def attacks(pairs: Sequence[PreferencePair], scope: Scope) -> list[tuple[str, ...]]:
    """A look: the families of the attack that each prompt is, mostly none; a pair's own `attack` wins."""
    return [_families(pair) for pair in pairs]


def _families(asked: PreferencePair | Probe) -> tuple[str, ...]:
    return (asked.attack,) if asked.attack else families_of(asked.prompt[-1].content)


def _find(context: Context) -> Iterable[Found]:
    contract = context.scope.contract
    yield _size(context)
    if contract is not None:
        yield from _behaviours(context, contract)
    yield from _topics(context)
    yield _attacks(context, contract)
    if contract is not None and contract.attacks.unseen:
        yield from _held_out(context, contract.attacks.unseen)


def _size(context: Context) -> Found:
    n, num_prompts = len(context.store), np.unique(context.column(prompt_keys)).size
    least, most = (int(context.limits[name]) for name in ("min_pairs", "max_pairs"))
    where, remedy = "within", "none needed"
    if num_prompts < least:
        where, remedy = "below", "write or sample pairs for more prompts; a small set is learned by heart"
    elif num_prompts > most:
        where, remedy = "above", "more of the same adds little: fewer and cleaner pairs train sooner, and as well"
    counts = np.bincount(context.behaviours, minlength=len(context.behaviour_names))
    bars = [[name or "none named", int(count)] for name, count in zip(context.behaviour_names, counts, strict=True)]
    return Found(
        kind="size",
        severity="warns" if where == "below" else "informs",
        what=f"{n:,} pairs of {num_prompts:,} different prompts: {where} the aim of {least:,} to {most:,}",
        measure="number of different prompts",
        estimate=Estimate(float(num_prompts), None, None, n),
        remedy=remedy,
        details={"bars": sorted(bars, key=lambda bar: -bar[1]), "unit": "pairs, by behaviour"},
    )


def _behaviours(context: Context, contract: Contract) -> Iterable[Found]:
    """Promised and not taught, or hardly; and taught without a promise."""
    counts = dict(
        zip(
            context.behaviour_names,
            np.bincount(context.behaviours, minlength=len(context.behaviour_names)).tolist(),
            strict=True,
        )
    )
    promised = [name for name, behaviour in contract.behaviours.items() if behaviour.kind == "permanent"]
    if len(promised) == 1 and set(counts) == {""}:
        counts = {promised[0]: counts[""]}  # pairs that name none can only be meant for the one
    least, n = int(context.limits["min_per_behaviour"]), len(context.store)
    for name in promised:
        count = counts.get(name, 0)
        if count >= least:
            continue
        yield Found(
            kind="untaught_behaviour" if not count else "thin_behaviour",
            severity="warns" if count else "blocks",
            what=f"the contract promises {name}, and {f'only {count:,}' if count else 'no'} pair{'s' * (count > 1)} "
            f"teach{'es' * (count < 2)} it",
            measure="number of pairs",
            estimate=Estimate(float(count), None, None, n),
            remedy=f"add pairs with behaviour {name} ({least:,} at least), or take the promise back",
            group=f"behaviour {name}",
        )
    known = [*contract.behaviours, *contract.collateral]
    for number, name in enumerate(context.behaviour_names):
        if name in known or name not in counts:
            continue
        yield Found(
            kind="unpromised_behaviour",
            severity="warns",
            what=f"{counts[name]:,} pairs name "
            + (f"the behaviour {name!r}, which the contract does not{nearest(name, known)}" if name else "no behaviour")
            + ": it will be trained, and nothing measured of it",
            measure="share of the pairs",
            estimate=share_by_prompt(
                (context.behaviours == number).astype(float), context.column(prompt_keys), context.scope.confidence
            ),
            remedy="name one of the contract's behaviours in the pairs, or promise it in the contract",
            group=f"behaviour {name}" if name else "",
            pairs=np.flatnonzero(context.behaviours == number),
        )


def _topics(context: Context) -> Iterable[Found]:
    topics, n = find_topics(context), len(context.store)
    if not topics:
        return
    shares = np.array([topic.places.size / n for topic in topics])
    largest = np.zeros(n)
    largest[topics[0].places] = 1
    names = [", ".join(topic.words) or "no words" for topic in topics]
    yield Found(
        kind="topics",
        severity="informs",
        what=f"{len(topics)} topics, as many as {np.exp(-(shares * np.log(shares)).sum()):.1f} of equal size; the "
        f"largest ({names[0]}) has {shares[0]:.0%} of the pairs, the smallest ({names[-1]}) {shares[-1]:.1%}",
        measure="share of the largest topic",
        estimate=share_by_prompt(largest, context.column(prompt_keys), context.scope.confidence),
        remedy="none needed; add prompts where a topic that matters is thin or missing",
        details={
            "bars": [[name, topic.places.size] for name, topic in zip(names, topics, strict=True)],
            "unit": "pairs, by topic",
        },
    )


def _attacks(context: Context, contract: Contract | None) -> Found:
    families = [found for block in context.seen[attacks] for found in block]
    counts, n = Counter(chain.from_iterable(families)), len(families)
    attacked = np.array([bool(found) for found in families], float)
    asked = _probed(contract) if contract is not None else set()
    missing = sorted(asked - set(counts))
    unseen = [name for name in NAMES if name not in counts]
    named = ", ".join(f"{family} {count:,}" for family, count in counts.most_common())
    what = f"{int(attacked.sum()):,} of {n:,} prompts are attacks by their own words or their row's" + (
        f": {named}" if named else ""
    )
    if missing:
        what += f"; of the probes' attacks no pair has {', '.join(missing)}, so these measure what was not trained on"
    return Found(
        kind="attacks",
        severity="informs",
        what=what,
        measure="share of the prompts that are attacks",
        estimate=share_by_prompt(attacked, context.column(prompt_keys), context.scope.confidence),
        remedy=f"where refusals are to hold, add pairs under attack; there are none of {', '.join(unseen)}"
        if unseen
        else "none needed",
        details={"bars": [[family, count] for family, count in counts.most_common()], "unit": "pairs, by attack"},
    )


def _held_out(context: Context, unseen: Sequence[str]) -> Iterable[Found]:
    """Pairs of a family that the contract holds out: by their row's name, or by their words where it names none."""
    families = [found for block in context.seen[attacks] for found in block]
    for name in unseen:
        places = [place for place, found in enumerate(families) if {name, BY_WORDS.get(name, name)} & set(found)]
        if not places:
            continue
        held = np.zeros(len(families))
        held[places] = 1
        yield Found(
            kind="held_out_attack",
            severity="warns",
            what=f"{len(places):,} pairs are attacks of the family {name}, by their row's name or their words, and the "
            "contract holds it out (attacks.unseen)",
            measure="share of the pairs",
            estimate=share_by_prompt(held, context.column(prompt_keys), context.scope.confidence),
            remedy="a run drops those whose row names it; name the others too, or drop them",
            group=f"attack {name}",
            pairs=np.array(places),
        )


def _probed(contract: Contract) -> set[str]:
    """The families of attack of the contract's probes."""
    found: set[str] = set(contract.attacks.all_families)
    for promise in contract.promises.values():
        if promise.probes is None:
            continue
        kind = kind_of(probe_path(promise.probes))
        rows: Iterable[PreferencePair | Probe | DroppedRow] = ()  # minimal pairs and plain texts have no prompt
        if kind is None:
            rows = iter_pairs(promise.probes, limit=MAX_PROBES)
        elif kind in (PROMPTS, DIALOGS):
            rows = islice(read_probes(promise.probes, "", label=promise.asked_prompts).probes, MAX_PROBES)
        found.update(*(_families(row) for row in rows if not isinstance(row, DroppedRow)))
    return found


CHECK = Check(
    name="coverage",
    about="pairs a behaviour, a topic and an attack; what is promised and not taught",
    kinds=(
        "size",
        "untaught_behaviour",
        "thin_behaviour",
        "unpromised_behaviour",
        "topics",
        "attacks",
        "held_out_attack",
    ),
    find=_find,
    looks=(attacks, prompt_words, prompt_keys),
    limits={
        "min_pairs": (1_000, "different prompts below which it warns"),
        "max_pairs": (5_000, "different prompts above which it says that fewer would do"),
        "min_per_behaviour": (100, "pairs of a promised behaviour below which it warns; none blocks"),
    },
)
