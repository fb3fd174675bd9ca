"""Rows to pairs: find the shape, read each row, and count what cannot be used under its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
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
        dropped = Counter(row.reason for row in self.dropped)
        return f"{line}; dropped: {reasons_in_words(dropped)}" if dropped else line


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
    rows = iter_pairs(source, behaviour=behaviour, split=split, limit=limit, labelled=labelled)
    pairs: list[PreferencePair] = []
    dropped: list[DroppedRow] = []
    for row in rows:
        if isinstance(row, DroppedRow):
            dropped.append(row)
        else:
            pairs.append(row)
    return ReadResult(tuple(pairs), tuple(dropped), rows.shape, len(pairs) + len(dropped), rows.name)


class iter_pairs:  # noqa: N801 - a verb: it is called like a function
    """`read_pairs` as a stream: every row as a pair or as a dropped row, in the order of the source.

    `name` and `shape` are known before the first row is drawn. When all rows are drawn and none was a pair, it raises.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        behaviour: str | None = None,
        split: str = "train",
        limit: int | None = None,
        labelled: bool = False,
    ) -> None:
        self.where, self.name, self._behaviour = str(source), source_name(source), behaviour
        if limit is not None and limit < 1:
            raise PairsError(f"cannot read at most {limit} rows", where=self.where, remedy="give a limit of 1 or more")
        rows = islice(read_values(source, split=split), limit)
        head = list(islice(rows, NUM_ROWS_LOOKED_AT))
        if not head:
            raise PairsError("holds no rows", where=self.where, remedy="give a file with at least one pair")
        self._reader = find_reader([row for _, row in head], self.where, labelled=labelled)
        self._rows, self._first = chain(head, rows), head[0][1]

    @property
    def shape(self) -> str:
        return self._reader.NAME

    def __iter__(self) -> Iterator[PreferencePair | DroppedRow]:
        counts: Counter[str] = Counter()
        num_rows = 0
        for number, row in self._rows:
            num_rows += 1
            try:
                yield _read_row(row, self._reader, self.name, number, self._behaviour)
            except Unusable as error:
                counts[error.reason] += 1
                yield DroppedRow(self.name, number, error.reason, excerpt(row, MAX_EXCERPT))
        if counts.total() == num_rows:
            raise PairsError(
                f"none of the {num_rows:,} rows is usable, read as {self.shape}: {reasons_in_words(counts)}",
                where=self.where,
                remedy=f"look at row 1: {excerpt(self._first, 100)}",
            )


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
        cluster=read_label(row, "cluster"),
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


def reasons_in_words(counts: Counter[str]) -> str:
    """Each reason with its count, the most frequent first."""
    ordered = sorted(counts, key=lambda reason: (-counts[reason], REASONS.index(reason)))
    return ", ".join(f"{counts[reason]:,} {reason}" for reason in ordered)
