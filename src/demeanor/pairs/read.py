"""Rows to pairs: find the shape, read each row, and count what cannot be used under its reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from demeanor.errors import PairsError
from demeanor.pairs import labelled as labelled_replies
from demeanor.pairs.columns import canonical, read_confidence, read_label
from demeanor.pairs.files import read_values, source_name
from demeanor.pairs.reasons import (
    EMPTY_PROMPT,
    EMPTY_REPLY,
    IDENTICAL,
    NO_IMAGES,
    NO_TOOLS,
    NOT_THE_SHAPE,
    NOT_UNICODE,
    NOT_USERS_TURN,
    REASONS,
    Unusable,
)
from demeanor.pairs.shapes import NUM_ROWS_LOOKED_AT, Reader, excerpt, find_reader, has_shape, holds_media
from demeanor.pairs.turns import Turns
from demeanor.records import DroppedRow, PreferencePair

MAX_EXCERPT = 200  # characters of a dropped row


@dataclass(frozen=True, slots=True)
class ReadResult:
    """What was read of one source, in its order; every row is in `pairs` or in `dropped`."""

    pairs: tuple[PreferencePair, ...]
    dropped: tuple[DroppedRow, ...]
    shape: str
    num_rows: int
    source: str

    def summary(self) -> str:
        """One line: how many rows are usable, as which shape, and why the others are not."""
        line = f"{len(self.pairs):,} of {self.num_rows:,} rows usable ({self.shape})"
        return f"{line}; dropped: {_counts(self.dropped)}" if self.dropped else line


def read_pairs(
    source: str | Path,
    *,
    behaviour: str | None = None,
    split: str = "train",
    limit: int | None = None,
    labelled: bool = False,
) -> ReadResult:
    """Read preference pairs of any known shape. Pairs that stand there twice are kept: the audit looks at them.

    Args:
        source: a file, a folder, or the id of a Hub data set (`org/name`, `org/name:subset`, `org/name@revision`).
        behaviour: of the rows that name none.
        split: of a data set that has several.
        limit: read at most so many rows.
        labelled: take single replies with a label too; else they are refused.

    Raises:
        PairsError: the source cannot be read, has no known shape, or holds no usable row.
    """
    where, name = str(source), source_name(source)
    if limit is not None and limit < 1:
        raise PairsError(f"cannot read at most {limit} rows", where=where, remedy="give a limit of 1 or more")
    rows = islice(read_values(source, split=split), limit)
    head = list(islice(rows, NUM_ROWS_LOOKED_AT))
    if not head:
        raise PairsError("holds no rows", where=where, remedy="give a file with at least one pair")
    reader = find_reader([row for _, row in head], where, labelled=labelled)

    pairs: list[PreferencePair] = []
    dropped: list[DroppedRow] = []
    for number, row in chain(head, rows):
        try:
            pairs.append(_read_row(row, reader, name, number, behaviour))
        except Unusable as error:
            dropped.append(DroppedRow(name, number, error.reason, excerpt(row, MAX_EXCERPT)))
    result = ReadResult(tuple(pairs), tuple(dropped), reader.NAME, len(pairs) + len(dropped), name)
    if not pairs:
        raise PairsError(
            f"none of the {result.num_rows:,} rows is usable, read as {reader.NAME}: {_counts(dropped)}",
            where=where,
            remedy=f"look at row {dropped[0].row}: {excerpt(head[0][1], 100)}",
        )
    return result


def _read_row(row: Any, reader: Reader, name: str, number: int, behaviour: str | None) -> PreferencePair:
    if not has_shape(row, reader):
        raise Unusable(NO_IMAGES if holds_media(row) else NOT_THE_SHAPE)
    row = canonical(row)
    if row.get("tools") not in (None, "", "[]", []):
        raise Unusable(NO_TOOLS)
    prompt, chosen, rejected = reader.to_pair(row)
    _check(prompt, chosen, rejected, single=reader.NAME == labelled_replies.NAME)
    return PreferencePair.make(
        prompt,
        chosen,
        rejected,
        source=name,
        row=number,
        behaviour=read_label(row, "behaviour") or behaviour,
        attack=read_label(row, "attack"),
        confidence=read_confidence(row),
    )


def _check(prompt: Turns, chosen: str, rejected: str, *, single: bool) -> None:
    """What every shape has in common: a question of the user's, and two replies that differ (or a single one)."""
    if not any(turn.role != "system" for turn in prompt):
        raise Unusable(EMPTY_PROMPT)
    if prompt[-1].role != "user":
        raise Unusable(NOT_USERS_TURN)
    if not prompt[-1].content.strip():
        raise Unusable(EMPTY_PROMPT)
    if [bool(text.strip()) for text in (chosen, rejected)].count(True) < (1 if single else 2):
        raise Unusable(EMPTY_REPLY)
    if chosen.strip() == rejected.strip():
        raise Unusable(IDENTICAL)
    try:
        "".join((*(turn.content for turn in prompt), chosen, rejected)).encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair: no tokenizer takes it
        raise Unusable(NOT_UNICODE) from None


def _counts(dropped: list[DroppedRow] | tuple[DroppedRow, ...]) -> str:
    """Each reason with its count, the most frequent first."""
    counts = Counter(row.reason for row in dropped)
    ordered = sorted(counts, key=lambda reason: (-counts[reason], REASONS.index(reason)))
    return ", ".join(f"{counts[reason]:,} {reason}" for reason in ordered)
