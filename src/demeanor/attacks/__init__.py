"""Plain probes -> the same probes under attack, and which families of attacks are held out from the training.

One small file a group of families, listed in `built_in`. An attacked probe keeps its replies and its behaviour, counts
as one draw with the probe that it was made of (`cluster`), and has an id of its own. The same probes, settings and seed
give the same attacks, in the same order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from demeanor.attack_settings import BY_WORDS, GIVEN, Attacks, is_over
from demeanor.attacks import conversations, encodings, frames, rewording, templates
from demeanor.attacks.family import Family
from demeanor.attacks.wrapped import attack_pairs, attack_probes
from demeanor.audit.attacks import families_of as families_by_words
from demeanor.contract import Contract
from demeanor.errors import InputError
from demeanor.faults import nearest
from demeanor.objectives import OBJECTIVES
from demeanor.records import PreferencePair, Probe
from demeanor.tokens import Refused, Tokenizer, TooLong

__all__ = ["add_attacks", "attack_pairs", "attack_probes", "built_in", "hold_out", "wanted"]


def add_attacks(
    contract: Contract, tokenizer: Tokenizer, probes: list[Probe], positions: int | None
) -> tuple[list[Probe], list[str]]:
    """The probes, then those that `attacks` asks for; and lines on what was made and what was not.

    Args:
        positions: that the model has, None where it names no number. An attack that does not fit is left out.

    Raises:
        InputError: a file of templates cannot be used, or nothing could be attacked.
    """
    settings = contract.attacks
    if not settings.all_families:
        return probes, []
    families, notes = wanted(settings)
    plain = [
        probe for probe in probes if probe.behaviour in contract.attacked and probe.attack is None and probe.prompt
    ]
    if not plain:
        raise InputError(
            f"no plain probe of {', '.join(contract.attacked)}: nothing could be attacked", where="attacks.behaviours"
        )
    system, sampled = contract.system_text(), contract.measurement.max_new_tokens if contract.measurement.samples else 0
    room, longest = positions, contract.training.max_length
    too_long = f"longer than the model's {room:,} positions" if room else ""
    if OBJECTIVES[contract.training.objective].trains_reward_model and (room is None or longest < room):
        room, too_long = longest, f"longer than max_length={longest}"  # it reads no more than it was trained on

    def refused(probe: Probe) -> str | None:
        try:
            cut = tokenizer.fit(probe.prompt, probe.violating + probe.safe, system, room)[1]
            length = len(tokenizer.prompt(probe.prompt, system)) + sampled
        except TooLong:
            return too_long
        except Refused as reason:
            return str(reason)
        return too_long if room is not None and (cut or length > room) else None

    found = attack_probes(plain, families, settings, refused)
    counts = Counter(probe.attack for probe in found.made)
    told = ", ".join(f"{family.name} {counts[family.name]:,}" for family in families)
    notes.append(f"attacks: {len(found.made):,} probes made of {len(plain):,} plain ones: {told}")
    if found.unmade:
        notes.append(f"attacks not made: {found.unmade_in_words()}")
    if not any(limit.over != GIVEN for promise in contract.promises.values() for limit in promise.limits):
        notes.append("attacks: they are measured and shown, but no limit is over them (limits: over: seen, unseen ...)")
    return [*probes, *found.made], notes


def hold_out(
    contract: Contract, tokenizer: Tokenizer, train: list[PreferencePair], probes: list[Probe]
) -> tuple[list[PreferencePair], list[PreferencePair], list[Probe], list[str]]:
    """(pairs to train on, pairs of held-out families, probes that know whether theirs is unseen, lines for the user).

    A family is unseen when no training pair names it as its `attack` and none reads like it by the audit's rules, as
    far as these know the family; what `attacks.unseen` names is unseen because its pairs are taken away here, and pairs
    that only read like it are counted. With `train_on`, wrapped pairs of the other families are added.

    Raises:
        InputError: `attacks.unseen` or a limit is about attacks of which there is no probe.
    """
    settings, notes = contract.attacks, []
    families = dict.fromkeys([*settings.all_families, *(probe.attack for probe in probes if probe.attack)])
    for name in settings.unseen:
        if name not in families:
            raise InputError(
                f"no probe is an attack of the family {name!r}{nearest(name, families)}", where="attacks.unseen"
            )
    removed = [pair for pair in train if pair.attack in settings.unseen]
    train = [pair for pair in train if pair.attack not in settings.unseen]
    if removed:
        counts = Counter(pair.attack for pair in removed)
        told = ", ".join(f"{count:,} of {name}" for name, count in counts.items())
        notes.append(f"{len(removed):,} pairs were not trained on: attacks.unseen holds their family out ({told})")
    if families:
        train, more = _with_attacks(contract, tokenizer, train)
        notes += more
        by_words = Counter(name for pair in train for name in families_by_words(pair.prompt[-1].content))
        for name in settings.unseen:
            if count := by_words[BY_WORDS.get(name, name)]:
                notes.append(f"{name} is held out by name, but {count:,} training pairs read like it: look at them")
        taught = {pair.attack for pair in train}
        taught |= {name for name in families if by_words[BY_WORDS.get(name, name)]}
        unseen = {name for name in families if name in settings.unseen or name not in taught}
        probes = [replace(probe, unseen=True) if probe.attack in unseen else probe for probe in probes]
        notes.append(
            f"attack families of the probes, seen in training pairs too: "
            f"{', '.join(n for n in families if n not in unseen) or 'none'}; unseen: "
            f"{', '.join(n for n in families if n in unseen) or 'none'}"
        )
    _check_limits(contract, probes)
    return train, removed, probes, notes


def _with_attacks(
    contract: Contract, tokenizer: Tokenizer, train: list[PreferencePair]
) -> tuple[list[PreferencePair], list[str]]:
    """The pairs, and `train_on` of them under attack."""
    settings, max_length = contract.attacks, contract.training.max_length
    if not settings.train_on:
        return train, []
    families = [family for family in wanted(settings)[0] if family.name in settings.seen]

    def refused(pair: PreferencePair) -> str | None:
        try:
            tokens = tokenizer.pair(pair, contract.system_text(pair.id), max_length)
        except Refused as reason:
            return str(reason)
        return f"longer than max_length={max_length}" if tokens.turns_cut else None

    found = attack_pairs([pair for pair in train if pair.behaviour in contract.attacked], families, settings, refused)
    counts = Counter(pair.attack for pair in found.made)
    told = ", ".join(f"{family.name} {counts[family.name]:,}" for family in families)
    notes = [f"{len(found.made):,} pairs are trained on once more under attack: {told}"]
    if found.unmade:
        notes.append(f"pairs under attack not made: {found.unmade_in_words()}")
    return [*train, *found.made], notes


def _check_limits(contract: Contract, probes: Sequence[Probe]) -> None:
    for name, promise in contract.promises.items():
        own = [probe for probe in probes if probe.behaviour == name]
        for place, limit in enumerate(promise.limits):
            if own and not any(is_over(limit.over, probe) for probe in own):
                attacks = ", ".join(dict.fromkeys(probe.attack for probe in own if probe.attack)) or "none"
                raise InputError(
                    f"{name} has no probe that is {limit.over}",
                    where=f"{contract.section_of(name)}.limits.{place}.over",
                    remedy=f"ask for attacks, or name another group; its families of attacks: {attacks}",
                )


def built_in(translations: str | None = None) -> tuple[Family, ...]:
    """Every family that comes along."""
    return (
        *frames.SINGLE,
        rewording.PAST_TENSE,
        templates.translation(translations),
        encodings.ENCODING,
        rewording.PAYLOAD_SPLITTING,
        conversations.MANY_SHOT,
        conversations.SYSTEM_OVERRIDE,
        conversations.MULTI_TURN,
    )


def wanted(settings: Attacks) -> tuple[tuple[Family, ...], list[str]]:
    """The families that the contract asks for, the user's own included, and a line on each file's unusable texts.

    Raises:
        InputError: a file of templates or translations cannot be used.
    """
    known = {family.name: family for family in built_in(settings.translations)} if settings.families else {}
    families, notes = [known[name] for name in settings.families], []
    for name, file in settings.templates.items():
        family, left_out = templates.read_templates(name, file)
        families.append(family)
        if left_out:
            notes.append(f"attacks of {name}: {left_out:,} texts without a slot are left out")
    return tuple(families), notes
