"""Everything that can be wrong with a run's input, found before the run folder is touched.

A contract becomes a plan: the model and its tokenizer are found, the pairs are read, tokenized once and split, the
probes are made. What cannot be used is dropped with a reason; what makes the run pointless is refused.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from demeanor import __version__
from demeanor.attacks import add_attacks, hold_out
from demeanor.contract import STARTER, Contract, build_contract
from demeanor.curate import loss_weights, one_of_each_list, split_pairs
from demeanor.errors import InputError, PairsError
from demeanor.judges import make_judges
from demeanor.measure import check_samplers
from demeanor.measure.tasks import check_tasks
from demeanor.model import ModelSource, end_of_turn_ids, find_model, load_tokenizer, positions_of
from demeanor.objectives import OBJECTIVES
from demeanor.pairs import read_pairs
from demeanor.pairs.probes import read_probes
from demeanor.probing import check_answerable, distinct_probes, without_asked
from demeanor.promises import prefill_of
from demeanor.prove.power import power_notes
from demeanor.records import DroppedRow, PreferencePair, Probe
from demeanor.settings import apply_overrides
from demeanor.starter import starter_file
from demeanor.tokens import Refused, Tokenizer, make_tokenizer, tokenize_pairs
from demeanor.training_settings import cannot_weigh
from demeanor.workspace import Workspace, digest, file_sha256

DEFAULT_BEHAVIOUR = "preference"  # of pairs and probes that name none


@dataclass(frozen=True)
class Plan:
    """A checked run: everything was found, read and tokenized once; nothing has been written."""

    workspace: Workspace
    contract: Contract
    source: ModelSource
    tokenizer: Tokenizer
    train: list[PreferencePair]
    heldout: list[PreferencePair]
    probes: list[Probe]
    dropped: list[DroppedRow]
    notes: list[str]  # lines for the user: what was read, dropped, cut

    @property
    def power(self) -> list[str]:
        """Lines for the user: the limits that these probes cannot show."""
        return power_notes(self.contract, self.probes) + _too_short(self.contract, self.tokenizer, self.probes)

    @property
    def identity(self) -> dict[str, str]:
        """What the numbers depend on besides the contract: the model's files, and how it renders a conversation."""
        return _identity(self.source, self.tokenizer)


def _too_short(contract: Contract, tokenizer: Tokenizer, probes: list[Probe]) -> list[str]:
    """One line a limit under prefill for which violating replies are too short: it fails, as evidence is missing."""
    notes = []
    for name, promise in contract.promises.items():
        own = [probe for probe in probes if probe.behaviour == name]
        numbers = {limit.measure: prefill_of(limit.measure) for limit in promise.limits}
        lengths = [_longest(tokenizer, probe) for probe in own] if any(numbers.values()) else []
        for measure, number in numbers.items():
            short = sum(length <= number for length in lengths) if number else 0
            if short:
                notes.append(
                    f"{name}: {measure} has no value for {short:,} of {len(own):,} probes, whose violating replies are "
                    f"not longer than {number} tokens: its limit cannot hold"
                )
    return notes


def _longest(tokenizer: Tokenizer, probe: Probe) -> int:
    """Tokens of the probe's longest violating reply, without its end of turn."""
    return max((len(tokenizer.reply(probe.prompt, text)) - 1 for text in probe.violating), default=0)


def _identity(source: ModelSource, tokenizer: Tokenizer) -> dict[str, str]:
    return {
        "model": source.fingerprint,
        "template": digest([tokenizer.inner.chat_template, tokenizer.end_ids]),
        "demeanor": __version__,
    }


def default_contract(pairs: str, model: str, name: str, overrides: tuple[str, ...] = ()) -> Contract:
    """The contract of `run --pairs --model`: held-out pairs as probes, better than chance and ln 2."""
    limits = [
        {"measure": "reward_accuracy", "min": 0.5},
        {"measure": "validation_loss", "max": round(math.log(2), 4)},
    ]
    about = "the held-out pairs' chosen reply over the rejected one"
    data = {
        "name": name,
        "model": model,
        "behaviours": {DEFAULT_BEHAVIOUR: {"about": about, "limits": limits}},
        "data": {"pairs": [pairs]},
    }
    return build_contract(apply_overrides(data, overrides), "the default contract", overrides=overrides)


def plan_run(contract: Contract, workspace: Workspace) -> Plan:
    """Find, read and check all inputs of a run without writing anything.

    Raises:
        InputError: whatever is wrong with them, in one line.
    """
    source = find_model(contract.model, revision=contract.revision)
    if source.commit is not None:  # a run stays with the commit that it began with
        contract = contract.model_copy(update={"revision": source.commit})
    contract, note = _within_context(contract, source)
    inner = load_tokenizer(source, contract)
    tokenizer = make_tokenizer(inner, end_of_turn_ids(source, inner))
    _check_openings(contract, tokenizer)
    make_judges(contract)  # refuses what cannot judge
    check_tasks(contract)
    check_samplers(contract)
    inputs = read_inputs(workspace, contract, _identity(source, tokenizer))
    if workspace.contract_file.exists() and workspace.is_done("read", inputs):
        stored = workspace.manifest()["stages"]["read"]
        return Plan(
            workspace,
            contract,
            source,
            tokenizer,
            workspace.read_records(workspace.train_pairs, PreferencePair.from_json),
            workspace.read_records(workspace.heldout_pairs, PreferencePair.from_json),
            workspace.read_records(workspace.probes, Probe.from_json),
            workspace.read_records(workspace.dropped, lambda data: DroppedRow(**data)),
            list(stored["notes"]),
        )
    pairs, dropped, notes = read_all_pairs(contract, tokenizer)
    notes += note
    # behaviours with probes of their own need no held-out pairs
    own = {name for name, promise in contract.promises.items() if promise.probes}
    train, heldout = split_pairs([pair for pair in pairs if pair.behaviour not in own], contract.data)
    held = {id(pair) for pair in heldout}
    train = [pair for pair in pairs if id(pair) not in held]
    heldout, others = one_of_each_list(heldout, contract.data.seed)
    if others:
        dropped += [_drop(pair, "another pair of its held-out list is a probe") for pair in others]
        notes.append(f"of each held-out ranked list one pair is a probe; {len(others):,} others are left out")
    unknown = Counter(pair.behaviour for pair in pairs if pair.behaviour not in contract.promises)
    if contract.promises and unknown:
        named = ", ".join(f"{count} of {name}" for name, count in unknown.items())
        notes.append(f"pairs of behaviours that the contract does not name, trained on but without limits: {named}")
    probes = _read_probes(contract, tokenizer, heldout, dropped, notes)
    probes, told = add_attacks(contract, tokenizer, probes, positions_of(source))
    notes += told
    train, leaked, told = without_asked(train, probes)
    dropped += [_drop(pair, reason) for pair, reason in leaked]
    notes += told
    train, unseen, probes, told = hold_out(contract, tokenizer, train, probes)
    dropped += [_drop(pair, "its attack family is held out") for pair in unseen]
    notes += told
    if not train:
        raise PairsError("no pair is left to train on", remedy="lower data.heldout_fraction, or bring more pairs")
    notes.append(f"{len(train):,} pairs to train on, {len(probes):,} probes")
    notes += _note_on_lists(contract, train)
    return Plan(workspace, contract, source, tokenizer, train, heldout, probes, dropped, notes)


def _note_on_lists(contract: Contract, train: list[PreferencePair]) -> list[str]:
    """How much the pairs of ranked lists count.

    Raises:
        InputError: they cannot count differently under this loss.
    """
    lists = len({pair.list_id for pair in train if pair.list_id is not None})
    if not lists or not OBJECTIVES[contract.training.objective].takes_pairs:
        return []
    weights = loss_weights(train)
    reason = cannot_weigh(contract.training) if set(weights) != {1.0} else None
    if reason:
        raise InputError(
            f"the pairs of ranked lists cannot be weighted: {reason}",
            where="training.objective",
            remedy="take another loss, or give pairs instead of lists",
        )
    spread = f"between {min(weights):.2g} and {max(weights):.2g}" if set(weights) != {1.0} else "1"
    by = {"even": "evenly", "gap": "by the gap between their replies"}[contract.data.ranked_weights]
    return [f"{lists:,} ranked lists count as one pair each, shared {by} among their pairs (weights {spread}, mean 1)"]


def _within_context(contract: Contract, source: ModelSource) -> tuple[Contract, list[str]]:
    """The contract with a max_length that the model's positions allow, and a note when it was lowered to them."""
    context, training = positions_of(source), contract.training
    if context is None or training.max_length <= context:
        return contract, []
    shorter = training.model_copy(update={"max_length": context})
    return contract.model_copy(update={"training": shorter}), [
        f"max_length is {context}: the model has no more positions"
    ]


def _check_openings(contract: Contract, tokenizer: Tokenizer) -> None:
    """The openings must be prefix-free as tokens, else one reply would be counted twice.

    Raises:
        InputError: two openings begin with the same tokens, or the template changes one.
    """
    for name, promise in contract.promises.items():
        known: list[tuple[str, list[int]]] = []
        for text in promise.violating_openings + promise.safe_openings:
            try:
                tokens = tokenizer.opening(text)
            except Refused as reason:
                raise InputError(f"the opening {text!r} cannot be used: {reason}", where=name) from None
            for other, seen in known:
                shared = min(len(tokens), len(seen))
                if tokens[:shared] == seen[:shared]:
                    raise InputError(f"the openings {other!r} and {text!r} begin with the same tokens", where=name)
            known.append((text, tokens))


def read_inputs(workspace: Workspace, contract: Contract, identity: dict[str, str]) -> dict[str, Any]:
    """All that the pairs and probes of a run depend on. A file that is gone counts as unchanged."""
    files = [*contract.data.pairs, *(p.probes for p in contract.promises.values() if p.probes)]
    attacks = contract.attacks
    files += [*attacks.templates.values(), *([attacks.translations] if attacks.translations else [])]
    known = workspace.manifest()["stages"].get("read", {}).get("inputs", {}).get("files", {})
    return {
        "data": {**contract.data.model_dump(mode="json"), "ranked": contract.ranked},
        "probes": {name: [promise.probes, promise.asked_prompts] for name, promise in contract.promises.items()},
        "files": {name: _file_digest(name) or known.get(name) for name in files},
        "behaviours": {name: behaviour.kind for name, behaviour in contract.behaviours.items()},
        "model": [contract.model, contract.revision],
        "identity": identity,
        "prompt": prompt_inputs(contract),
        "max_length": contract.training.max_length,
        "attacks": attacks.model_dump(mode="json"),
        "room_for_a_reply": contract.measurement.samples and contract.measurement.max_new_tokens
        if attacks.all_families
        else None,
    }


def _file_digest(name: str) -> str | None:
    """The digest of a local file or folder; None for a Hub id, whose data are read once and then kept in the run."""
    path = _starter_path(name)
    if path.is_file():
        return file_sha256(path)
    if path.is_dir():
        return digest([(str(f.relative_to(path)), file_sha256(f)) for f in sorted(path.rglob("*")) if f.is_file()])
    return None


def prompt_inputs(contract: Contract) -> list[Any]:
    transient = {k: [b.value, b.examples] for k, b in contract.behaviours.items() if b.kind == "transient"}
    return [contract.system_prompt, transient]


def recorded_identity(workspace: Workspace) -> dict[str, str]:
    """The identity of the model that the run was read for, so that a verdict can be judged again without the model.

    Raises:
        RunFolderError: the run has not even read its pairs.
    """
    workspace.check_outputs("read")
    identity: dict[str, str] = workspace.manifest()["stages"]["read"]["inputs"]["identity"]
    return identity


def _starter_path(name: str) -> Path:
    return starter_file("pairs.jsonl") if name == STARTER else Path(name).expanduser()


def read_all_pairs(
    contract: Contract, tokenizer: Tokenizer
) -> tuple[list[PreferencePair], list[DroppedRow], list[str]]:
    """The pairs of `data.pairs` that this model can be trained on, what was dropped, and notes.

    Raises:
        PairsError: a source cannot be read, or no pair is usable.
    """
    data = contract.data
    pairs: list[PreferencePair] = []
    dropped: list[DroppedRow] = []
    notes: list[str] = []
    permanent = [name for name, behaviour in contract.behaviours.items() if behaviour.kind == "permanent"]
    default = permanent[0] if len(permanent) == 1 else DEFAULT_BEHAVIOUR
    for name in data.pairs:
        result = read_pairs(
            _starter_path(name) if name == STARTER else name,
            behaviour=default,
            split=data.split,
            limit=data.max_pairs,
            labelled=not OBJECTIVES[contract.training.objective].takes_pairs,
            ranked=contract.ranked,
            ranked_weights=data.ranked_weights,
        )
        pairs += result.pairs
        dropped += result.dropped
        notes.append(f"{Path(name).name}: {result.summary()}")
    if list(contract.promises) == [DEFAULT_BEHAVIOUR]:  # without a contract of its own, one behaviour takes every pair
        pairs = [replace(pair, behaviour=DEFAULT_BEHAVIOUR) for pair in pairs]
    transient = {name for name, behaviour in contract.behaviours.items() if behaviour.kind == "transient"}
    for pair in pairs:
        if pair.behaviour in transient:
            dropped.append(
                _drop(pair, f"teaches the transient behaviour {pair.behaviour}, which belongs in the prompt")
            )
    pairs = [pair for pair in pairs if pair.behaviour not in transient]
    tokens, refused = tokenize_pairs(
        pairs, tokenizer, system=contract.system_text, max_length=contract.training.max_length
    )
    for pair, reason in refused:
        dropped.append(_drop(pair, reason))
    if refused:
        reasons = Counter(reason for _, reason in refused)
        notes.append(
            "not usable with this model: " + ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        )
    cut = sum(1 for item in tokens if item.turns_cut)
    if cut:
        notes.append(f"{cut} prompts lost their oldest turns to fit max_length={contract.training.max_length}")
    refused_ids = {id(pair) for pair, _ in refused}
    pairs = [pair for pair in pairs if id(pair) not in refused_ids]
    if not pairs:
        raise PairsError("no pair is usable", where=", ".join(data.pairs), remedy="; ".join(notes))
    return pairs, dropped, notes


def _read_probes(
    contract: Contract, tokenizer: Tokenizer, heldout: list[PreferencePair], dropped: list[DroppedRow], notes: list[str]
) -> list[Probe]:
    """The probes of each behaviour: its own file's, or else the held-out pairs that name it."""
    probes: list[Probe] = []
    own = {name for name, promise in contract.promises.items() if promise.probes}
    for name, promise in contract.promises.items():
        if promise.probes:
            result = read_probes(promise.probes, name, label=promise.asked_prompts)
            own_pairs, others = one_of_each_list(result.pairs.pairs if result.pairs else [], contract.data.seed)
            probes += [*result.probes, *(Probe.from_pair(pair, name) for pair in own_pairs)]
            dropped += result.dropped
            if others:
                notes.append(f"probes of {name}: one pair of each ranked list; {len(others):,} others are left out")
            if result.note:
                notes.append(result.note)
    probes += [Probe.from_pair(p, p.behaviour or DEFAULT_BEHAVIOUR) for p in heldout if p.behaviour not in own]
    probes, told = distinct_probes(probes)
    notes += told
    system, longest, cut, shortened = contract.system_text(), contract.training.max_length, 0, 0
    read, probes = probes, []
    refused: Counter[tuple[str, str]] = Counter()
    for probe in read:
        try:
            messages, turns = probe.prompt, 0
            if probe.prompt:
                messages, turns = tokenizer.fit(probe.prompt, probe.violating + probe.safe, system, longest)
            elif max(len(tokenizer.text(text)) for text in probe.safe + probe.violating) > longest:
                if probe.violating:
                    raise Refused(f"longer than max_length={longest}")
                shortened += 1
        except Refused as reason:
            if probe.violating or not probe.safe:
                raise InputError(f"a probe of {probe.behaviour} cannot be used: {reason}") from None
            # a neutral text or dialog is one of many
            refused[probe.behaviour, str(reason)] += 1
            dropped.append(DroppedRow(probe.behaviour, 0, str(reason), probe.safe[0][:200]))
            continue
        probes.append(replace(probe, prompt=messages))
        cut += bool(turns)
    notes += [f"probes of {name}: {count:,} left out: {why}" for (name, why), count in refused.items()]
    if cut:
        notes.append(f"{cut} probes lost their oldest turns to fit max_length={contract.training.max_length}")
    if shortened:
        notes.append(f"{shortened} plain texts are read up to max_length={contract.training.max_length} only")
    if not probes:
        raise InputError(
            "the held-out set is empty: nothing could be proven",
            where="data.heldout_fraction",
            remedy="raise it, bring more pairs, or name files of probes",
        )
    for name, promise in contract.promises.items():
        if promise.limits and promise.tasks is None and not any(probe.behaviour == name for probe in probes):
            raise InputError(
                f"{name} has limits but no probe",
                where=contract.section_of(name),
                remedy="name a file of probes, or pairs whose behaviour is this",
            )
    notes += check_answerable(contract, probes)
    return probes


def _drop(pair: PreferencePair, reason: str) -> DroppedRow:
    return DroppedRow(pair.source, pair.row or 0, reason, pair.prompt[-1].content[:200])
