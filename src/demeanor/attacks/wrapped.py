"""Each family around plain probes, or around a share of the training pairs: seeded draws, nothing cut, all counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Generic, TypeVar

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
        families: of `families_of`.
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
                for prompt in _wrapped(probe.prompt, family, settings.wrappers, rng, others):
                    attack = None if prompt is None else _attacked(probe, prompt, family.name, cluster)
                    reason = NOT_FITTING
                    if attack is not None:
                        key = (behaviour, _text(attack.prompt))
                        reason = SAME if key in seen else refused(attack) or ""
                        seen.add(key)
                    if attack is None or reason:
                        unmade[family.name, reason] += 1
                    else:
                        made.append(attack)
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
        (prompt,) = _wrapped(pair.prompt, family, 1, _chance(settings.seed, family.name, pair.id), own)
        attack = None
        if prompt is not None:
            labels = {"attack": family.name, "cluster": pair.cluster or pair.id, "row": pair.row}
            labels |= {
                name: getattr(pair, name) for name in ("source", "behaviour", "confidence", "weight", "annotator")
            }
            attack = PreferencePair.make(prompt, pair.chosen, pair.rejected, **labels)
        reason = NOT_FITTING if attack is None else refused(attack)
        if attack is None or reason is not None:
            unmade[family.name, reason or NOT_FITTING] += 1
        else:
            made.append(attack)
    return Attacked(tuple(made), unmade)


def _wrapped(prompt: Prompt, family: Family, wrappers: int, rng: Random, shots: Sequence[Shot]) -> list[Prompt | None]:
    """The prompt under as many different variants, drawn; None where one does not apply."""
    names = list(family.variants)
    return [family.variants[name](prompt, rng, shots) for name in rng.sample(names, min(wrappers, len(names)))]


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
