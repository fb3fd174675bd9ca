"""Files of probes -> probes. Besides pairs of any shape four kinds of rows are known, found by their columns:

    minimal pairs   {"sentence_good": "The cats sleep.", "sentence_bad": "The cats sleeps."}       BLiMP's format
    prompts         prompt,label with the label safe or unsafe (or no label), and no reply          XSTest's format
    dialogs         [{"role": "user", ...}, {"role": "assistant", ...}] or {"messages": [...]}; the last reply counts
    plain texts     {"text": "..."}

Minimal pairs and plain texts are no conversations: their probes have no prompt, and no chat template is put around
them. BLiMP: Warstadt et al. 2020. XSTest: Röttger et al. 2024. `look-alikes` is a set of our own in XSTest's format
that comes along: harmless questions in words that sound harmful.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

from demeanor.errors import PairsError
from demeanor.pairs.columns import PROMPT_COLUMNS, canonical, read_label
from demeanor.pairs.files import read_values, source_name
from demeanor.pairs.read import MAX_EXCERPT, ReadResult, read_pairs, reasons_in_words
from demeanor.pairs.reasons import (
    EMPTY_PROMPT,
    EMPTY_REPLY,
    IDENTICAL,
    NOT_THE_SHAPE,
    NOT_UNICODE,
    NOT_USERS_TURN,
    Unusable,
)
from demeanor.pairs.shapes import NUM_ROWS_LOOKED_AT, excerpt
from demeanor.pairs.turns import is_messages, read_turns
from demeanor.promises import LOOK_ALIKES
from demeanor.records import DroppedRow, Message, Probe, content_id

SENTENCES, PROMPTS, DIALOGS, TEXTS = "minimal pairs", "prompts", "dialogs", "plain texts"
_REPLIES = ("chosen", "rejected", "completion", "response", "output", "replies", "candidates", "scores", "ranks")
LABELS = ("safe", "unsafe")


@dataclass(frozen=True)
class ProbeFile:
    """What a file of probes held. Of prompts with labels only those of the asked label are probes.

    `pairs`: the file held pairs, which are not probes yet (of a ranked list one must be drawn).
    """

    probes: tuple[Probe, ...]
    dropped: tuple[DroppedRow, ...]
    note: str  # one line for the user; "" when all rows were used
    pairs: ReadResult | None = None


def read_probes(source: str | Path, behaviour: str, *, label: str | None = None) -> ProbeFile:
    """Read a file of probes of one behaviour.

    Args:
        source: a file, a folder, a Hub id, or `look-alikes`.
        label: safe or unsafe: which prompts of a labelled file are asked.

    Raises:
        PairsError: it cannot be read, has no known shape, holds no usable row; its prompts have labels, and none was
            asked for, or no row has the one that was.
    """
    path = probe_path(source)
    kind = kind_of(path)
    if kind is None:
        found = read_pairs(path, behaviour=behaviour)
        note = f"probes of {behaviour}: {found.summary()}" if found.dropped else ""
        return ProbeFile((), found.dropped, note, found)
    name, where = source_name(path), str(source)
    probes: list[Probe] = []
    dropped: list[DroppedRow] = []
    counts: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for number, row in read_values(path):
        try:
            if _kind(row) != kind:
                raise Unusable(NOT_THE_SHAPE)
            given = _label(row) if kind == PROMPTS else None
            if given is not None and given != label:
                others[given] += 1
                continue
            probes.append(_checked(_MAKERS[kind](row), row, behaviour))
        except Unusable as error:
            counts[error.reason] += 1
            dropped.append(DroppedRow(name, number, error.reason, excerpt(row, MAX_EXCERPT)))
    if others and label is None:
        raise PairsError(
            "its prompts are labelled safe and unsafe: which are asked?",
            where=where,
            remedy="write `prompts: safe` (or unsafe) beside `probes`",
        )
    if not probes:
        why = reasons_in_words(counts) or f"none is labelled {label}"
        raise PairsError(f"no row is usable, read as {kind}: {why}", where=where)
    parts = [f"{len(probes):,} {kind}"]
    parts += [f"{count:,} labelled {given} are not asked" for given, count in others.items()]
    parts += [f"dropped: {reasons_in_words(counts)}"] if counts else []
    note = f"probes of {behaviour}: {name}: {', '.join(parts)}" if others or counts else ""
    return ProbeFile(tuple(probes), tuple(dropped), note)


def probe_path(source: str | Path) -> str | Path:
    """`look-alikes` as the file that comes along; anything else as it is."""
    return Path(str(files("demeanor.pairs") / "look_alikes.csv")) if source == LOOK_ALIKES else source


def kind_of(source: str | Path) -> str | None:
    """minimal pairs, prompts, dialogs or plain texts, when most of the first rows are; None for pairs of any shape.

    Raises:
        PairsError: the file cannot be read.
    """
    head = [_kind(row) for _, row in islice(read_values(source), NUM_ROWS_LOOKED_AT)]
    votes = Counter(kind for kind in head if kind is not None)
    kind, count = votes.most_common(1)[0] if votes else (None, 0)
    return kind if 2 * count > len(head) else None


def _kind(row: Any) -> str | None:
    if is_messages(row):
        return DIALOGS
    if not isinstance(row, dict):
        return None
    plain = {str(key).strip().lower(): value for key, value in row.items()}
    if "sentence_good" in plain and "sentence_bad" in plain:
        return SENTENCES
    row = canonical(row)
    if any(row.get(name) is not None for name in _REPLIES) or (
        plain.keys() & {"label", "kto_tag"} and _label(row) is None
    ):
        return None
    if is_messages(row.get("messages")):
        return DIALOGS
    if isinstance(row.get("prompt"), str) or is_messages(row.get("prompt")):
        return PROMPTS
    return TEXTS if isinstance(row.get("text"), str) and not any(row.get(name) for name in PROMPT_COLUMNS) else None


def _label(row: dict[str, Any]) -> str | None:
    label = str(canonical(row).get("label", "")).strip().lower()
    return label if label in LABELS else None


def _sentences(row: Any) -> Probe:
    plain = {str(key).strip().lower(): value for key, value in row.items()}
    good, bad = plain["sentence_good"], plain["sentence_bad"]
    if not isinstance(good, str) or not isinstance(bad, str):
        raise Unusable(NOT_THE_SHAPE)
    if good.strip() == bad.strip():
        raise Unusable(IDENTICAL)
    return Probe("", "", (), (bad,), (good,))


def _prompt(row: Any) -> Probe:
    prompt = canonical(row)["prompt"]
    turns = (Message("user", prompt),) if isinstance(prompt, str) else read_turns(prompt)
    if turns[-1].role != "user":
        raise Unusable(NOT_USERS_TURN)
    return Probe("", "", turns, (), ())


def _dialog(row: Any) -> Probe:
    turns = read_turns(row if isinstance(row, list) else canonical(row)["messages"])
    while turns and turns[-1].role != "assistant":
        turns = turns[:-1]
    if len(turns) < 2 or turns[-2].role != "user":
        raise Unusable(EMPTY_PROMPT if turns else EMPTY_REPLY)
    return Probe("", "", turns[:-1], (), (turns[-1].content,))


def _text(row: Any) -> Probe:
    return Probe("", "", (), (), (canonical(row)["text"],))


_MAKERS: dict[str, Callable[[Any], Probe]] = {
    SENTENCES: _sentences,
    PROMPTS: _prompt,
    DIALOGS: _dialog,
    TEXTS: _text,
}


def _checked(probe: Probe, row: Any, behaviour: str) -> Probe:
    """With its name, by its texts alone, and the row's labels."""
    prompts, replies = [turn.content for turn in probe.prompt], [*probe.safe, *probe.violating]
    if probe.prompt and not prompts[-1].strip():
        raise Unusable(EMPTY_PROMPT)
    if not all(text.strip() for text in replies):
        raise Unusable(EMPTY_REPLY)
    try:
        "".join((*prompts, *replies)).encode("utf-8")
    except UnicodeEncodeError:
        raise Unusable(NOT_UNICODE) from None
    turns = [[turn.role, turn.content] for turn in probe.prompt]
    row = canonical(row) if isinstance(row, dict) else {}
    return replace(
        probe,
        id=content_id(turns, probe.safe, probe.violating),
        behaviour=behaviour,
        attack=read_label(row, "attack"),
        cluster=read_label(row, "cluster"),
    )
