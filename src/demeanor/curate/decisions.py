"""A person's decisions about pairs: one JSON object a line, in the order in which they were made.

    {"id": "0123456789abcdef", "decision": "edit", "changed": {"chosen": "Good morning."}}

`id` is the content's own (`PreferencePair.id`), so that a decision holds wherever the pair stands in whatever file, and
falls away when its text changes. The last line about a pair counts; `undo` takes the ones before it back. A line is
written in one piece and synced at once: a killed review loses nothing, and a line that a crash cut off is passed over.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from io import FileIO
from pathlib import Path
from typing import Any

from demeanor.errors import InputError, one_line
from demeanor.pairs.read import check_pair
from demeanor.pairs.reasons import Unusable
from demeanor.records import Message, PreferencePair, Record

KEEP, DROP, SWAP, EDIT, UNDO = "keep", "drop", "swap", "edit", "undo"
DECISIONS = (KEEP, DROP, SWAP, EDIT, UNDO)
EDITED = ("prompt", "chosen", "rejected")  # what an edit may change; of the prompt its last turn


@dataclass(frozen=True, slots=True)
class Decision(Record):
    """What a person decided about the pair `id`; `changed` are the new texts of an edit, by their names in EDITED.

    `findings` are those of the audit, check.kind, for which the person was asked; none named: whatever is found.
    """

    id: str
    decision: str  # one of DECISIONS
    changed: dict[str, str] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)

    def keeps(self, finding: str) -> bool:
        """Did the person see this finding, and keep the pair as it is?"""
        return self.decision == KEEP and (not self.findings or finding in self.findings)

    def apply(self, pair: PreferencePair) -> PreferencePair:
        """The pair as it was decided; not for DROP."""
        if self.decision == SWAP:
            return remade(pair, pair.prompt, pair.rejected, pair.chosen)
        if self.decision == EDIT:
            last = replace(pair.prompt[-1], content=self.changed.get("prompt", pair.prompt[-1].content))
            sides = (self.changed.get(name, getattr(pair, name)) for name in ("chosen", "rejected"))
            return remade(pair, (*pair.prompt[:-1], last), *sides)
        return pair


def remade(pair: PreferencePair, prompt: tuple[Message, ...], chosen: str, rejected: str) -> PreferencePair:
    """The pair with other texts, and so with another id."""
    new_id = PreferencePair.make(prompt, chosen, rejected).id
    return replace(pair, id=new_id, prompt=prompt, chosen=chosen, rejected=rejected)


def why_no_pair(pair: PreferencePair) -> str | None:
    """What is wrong with a changed pair, as the readers would say it."""
    try:
        check_pair(pair.prompt, pair.chosen, pair.rejected)
    except Unusable as error:
        return error.reason
    return None


def read_decisions(file: Path) -> dict[str, Decision]:
    """Pair's id -> the decision that counts.

    Raises:
        InputError: the file cannot be read, or a line of it is no decision.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}", where=str(file), remedy="`demeanor review` makes it"
        ) from None
    decisions: dict[str, Decision] = {}
    lines = data.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            decision = _decision_of(json.loads(line))
        except (ValueError, RecursionError) as error:
            if number == len(lines) and not isinstance(error, _NoDecision):  # cut off while it was written
                break
            what = "is no decision: " + (one_line(error, 100) if isinstance(error, _NoDecision) else "not JSON")
            raise InputError(what, where=f"{file}, line {number}", remedy="correct the line, or take it out") from None
        if decision.decision == UNDO:
            decisions.pop(decision.id, None)
        else:
            decisions[decision.id] = decision
    return decisions


def append_decision(file: Path, decision: Decision) -> None:
    """Write one line behind the others, whole and synced.

    Raises:
        InputError: the file cannot be written.
    """
    line = json.dumps(decision.to_json(), ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a+b", buffering=0) as out:
            line = _behind_the_last(out) + line
            out.write(line)
            os.fsync(out.fileno())
    except OSError as error:
        raise InputError(
            f"cannot be written: {error.strerror}", where=str(file), remedy="give another --decisions"
        ) from None


def kept_for(decisions: Mapping[str, Decision]) -> dict[str, list[str]]:
    """What an audit must know (`audit_pairs`): id of a kept pair -> the findings that it was kept for."""
    return {name: decision.findings for name, decision in decisions.items() if decision.decision == KEEP}


def decisions_in_words(decisions: Mapping[str, Decision], used: Mapping[str, int]) -> str:
    """One line: what the decisions did to the pairs, and how many are about none of them."""
    words = {KEEP: "kept", DROP: "dropped", SWAP: "swapped", EDIT: "edited"}
    parts = [f"{used[kind]:,} {word}" for kind, word in words.items() if used[kind]]
    absent = len(decisions) - used["decisions"]
    parts += [f"{absent:,} about no pair here"] if absent else []
    return f"decisions: {', '.join(parts) or 'none'}"


def _behind_the_last(file: FileIO) -> bytes:
    """What must stand before a new line: a line end that is missing. A line that was cut off is taken away."""
    file.seek(0)
    tail = file.read().rpartition(b"\n")[2]
    if not tail:
        return b""
    try:
        json.loads(tail)
    except (ValueError, RecursionError):
        file.truncate(file.seek(0, os.SEEK_END) - len(tail))
        return b""
    return b"\n"


class _NoDecision(ValueError):
    """It says in plain words what is wrong with a line."""


def _decision_of(said: Any) -> Decision:
    if not isinstance(said, dict):
        raise _NoDecision("not a JSON object")
    if strange := sorted(said.keys() - {item.name for item in fields(Decision)}):
        raise _NoDecision(f"no key is called {strange[0]!r}; there are id, decision, changed and findings")
    if not isinstance(said.get("id"), str):
        raise _NoDecision("`id` must be that of a pair")
    if said.get("decision") not in DECISIONS:
        raise _NoDecision(f"`decision` must be one of {', '.join(DECISIONS)}")
    changed = said.get("changed", {})
    if not isinstance(changed, dict) or not all(k in EDITED and isinstance(v, str) for k, v in changed.items()):
        raise _NoDecision(f"`changed` takes texts by the names {', '.join(EDITED)}")
    if said["decision"] == EDIT and not changed:
        raise _NoDecision("an edit needs `changed`")
    findings = said.get("findings", [])
    if not isinstance(findings, list) or not all(isinstance(name, str) for name in findings):
        raise _NoDecision("`findings` takes a list of names")
    return Decision.from_json(said)
