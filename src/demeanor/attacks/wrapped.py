"""Each family around plain probes, or around a share of the training pairs: seeded draws, nothing cut, all counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Any, Generic, TypeVar

from demeanor.attack_settings import Attacks
from demeanor.attacks.family import Family, Prompt, Shot, question_of
from demeanor.records import PreferencePair, Probe, content_id

NOT_FITTING = "the wrapper does not apply"
SAME = "the same attack stands there already"


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Attacked(Generic[T]):
    """What was made, and how many attacks were not, by family and reason."""

    made: tuple[T, ...]
    unmade: Counter[tuple[str, str]]

    def unmade_in_words(self) -> str:
        """`past-tense 7 (the wrapper does not apply), many-shot 2 (...)`; "" when none is missing."""
        return ", ".join(f"{family} {count:,} ({reason})" for (family, reason), count in self.unmade.items())


def attack_probes(
    probes: Sequence[Probe],
    families: Sequence[Family],
    settings: Attacks,
    refused: Callable[[Probe], str | None] = lambda probe: None,
) -> Attacked[Probe]:
    """Each family around at most `max_probes` of the plain probes of each behaviour, `wrappers` times each.

    Args:
        probes: of the behaviours to attack; those that are attacks already are left alone.
        families: of `wanted`.
        refused: why the model cannot take an attacked probe (it is too long, say); such are counted, never cut.
    """
    made: list[Probe] = []
    unmade: Counter[tuple[str, str]] = Counter()
    plain = [probe for probe in probes if probe.attack is None]
    seen = {(probe.behaviour, _text(probe.prompt)) for probe in probes}
    shots = {
        name: [(p.cluster or p.id, Shot(question_of(p.prompt), p.violating[0])) for p in plain
               if p.behaviour == name and p.violating]
        for name in dict.fromkeys(probe.behaviour for probe in plain)
    }  # fmt: skip
    for behaviour, known in shots.items():
        own = [probe for probe in plain if probe.behaviour == behaviour]
        for family in families:
            for probe in _drawn(own, settings, behaviour, family.name):
                cluster = probe.cluster or probe.id
                others = [shot for other, shot in known if other != cluster]
                rng = _chance(settings.seed, family.name, probe.id)
                taken = partial(
                    _attack_of, probe=probe, family=family.name, cluster=cluster, seen=seen, refused=refused
                )
                attacks, reasons = _wrapped(probe.prompt, family, settings.wrappers, rng, others, taken)
                seen.update((attack.behaviour, _text(attack.prompt)) for attack in attacks)
                made += attacks
                unmade.update((family.name, reason) for reason in reasons)
    return Attacked(tuple(made), unmade)


def attack_pairs(
    pairs: Sequence[PreferencePair],
    families: Sequence[Family],
    settings: Attacks,
    refused: Callable[[PreferencePair], str | None] = lambda pair: None,
) -> Attacked[PreferencePair]:
    """A share `train_on` of the plain pairs once more, each under a wrapper of one of `families`, in turn.

    Args:
        pairs: of the behaviours to attack; attacks and pairs of ranked lists are left alone.
        families: those that may be trained on.
    """
    plain = [pair for pair in pairs if pair.attack is None and pair.list_id is None]
    rng = _chance(settings.seed, "train_on")
    chosen = sorted(rng.sample(range(len(plain)), round(settings.train_on * len(plain))))
    shots: dict[str | None, list[tuple[str, Shot]]] = {}
    for pair in plain:
        if pair.rejected:
            shots.setdefault(pair.behaviour, []).append((pair.id, Shot(question_of(pair.prompt), pair.rejected)))
    made: list[PreferencePair] = []
    unmade: Counter[tuple[str, str]] = Counter()
    for turn, place in enumerate(chosen):
        pair, family = plain[place], families[turn % len(families)]
        own = [shot for other, shot in shots.get(pair.behaviour, []) if other != pair.id]
        labels = {"attack": family.name, "cluster": pair.cluster or pair.id, "row": pair.row}
        labels |= {name: getattr(pair, name) for name in ("source", "behaviour", "confidence", "weight", "annotator")}

        def taken(prompt: Prompt, pair: PreferencePair = pair, labels: Any = labels) -> PreferencePair | str:
            attack = PreferencePair.make(prompt, pair.chosen, pair.rejected, **labels)
            return refused(attack) or attack

        rng = _chance(settings.seed, family.name, pair.id)
        attacks, reasons = _wrapped(pair.prompt, family, 1, rng, own, taken)
        made += attacks
        unmade.update((family.name, reason) for reason in reasons)
    return Attacked(tuple(made), unmade)


def _wrapped(
    prompt: Prompt,
    family: Family,
    wrappers: int,
    rng: Random,
    shots: Sequence[Shot],
    taken: Callable[[Prompt], T | str],
) -> tuple[list[T], list[str]]:
    """So many different variants around the prompt, drawn from those that can be taken; and of each that is missing the
    reason. `taken` makes the attack of a wrapped prompt, or says why not."""
    made: list[T] = []
    reasons: list[str] = []
    for name in rng.sample(list(family.variants), len(family.variants)):
        wrapped = family.variants[name](prompt, rng, shots)
        found = NOT_FITTING if wrapped is None else taken(wrapped)
        if isinstance(found, str):
            reasons.append(found)
        else:
            made.append(found)
        if len(made) == wrappers:
            break
    return made, reasons[: max(0, min(wrappers, len(family.variants)) - len(made))]


def _attack_of(
    prompt: Prompt,
    *,
    probe: Probe,
    family: str,
    cluster: str,
    seen: set[tuple[str, Any]],
    refused: Callable[[Probe], str | None],
) -> Probe | str:
    attack = _attacked(probe, prompt, family, cluster)
    return SAME if (attack.behaviour, _text(prompt)) in seen else refused(attack) or attack


def _attacked(probe: Probe, prompt: Prompt, family: str, cluster: str) -> Probe:
    own = content_id(_text(prompt), probe.violating, probe.safe, family)
    return replace(probe, id=own, prompt=prompt, attack=family, cluster=cluster, wraps=probe.id)


def _drawn(probes: Sequence[Probe], settings: Attacks, behaviour: str, family: str) -> list[Probe]:
    """At most `max_probes` of them, others for each family, in their order."""
    rng = _chance(settings.seed, behaviour, family)
    places = sorted(rng.sample(range(len(probes)), min(settings.max_probes, len(probes))))
    return [probes[place] for place in places]


def _chance(*parts: object) -> Random:
    return Random(int(content_id(*parts), 16))


def _text(prompt: Prompt) -> tuple[tuple[str, str], ...]:
    return tuple((turn.role, turn.content) for turn in prompt)
