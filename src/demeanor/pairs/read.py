"""Rows to pairs: find the shape, read each row, and count what cannot be used under its reason.

A row is one pair, or a ranked list that several are made of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from demeanor.errors import PairsError, one_line
from demeanor.pairs import labelled as labelled_replies
from demeanor.pairs import ranked as ranked_lists
from demeanor.pairs.columns import Watched, canonical, read_confidence, read_label
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
from demeanor.pairs.shapes import NUM_ROWS_LOOKED_AT, PairReader, Reader, excerpt, find_reader, has_shape, holds_media
from demeanor.pairs.turns import Turns
from demeanor.records import DroppedRow, PreferencePair, content_id

MAX_EXCERPT = 200  # characters of a dropped row
MAX_NAME = 100  # characters of a row's own source, and of a column that is told
MAX_UNREAD = 100  # columns that are told by their name
MAX_PAIRS = 1_000_000  # rows and pairs that are held at a time; of tiny ones these are 0.9 GB


@dataclass(frozen=True, slots=True)
class ReadResult:
    """What was read of one source, in its order; every row is in `pairs` or in `dropped`; a ranked list may be in both.

    `num_lists` are the ranked lists that pairs were made of, `num_ties` the pairs that were not made, because they tie.
    """

    pairs: tuple[PreferencePair, ...]
    dropped: tuple[DroppedRow, ...]
    shape: str
    num_rows: int
    source: str
    num_lists: int = 0
    num_ties: int = 0

    def summary(self) -> str:
        """One line: how many rows are usable, as which shape, and why the others are not."""
        line = f"{self.num_lists or len(self.pairs):,} of {self.num_rows:,} rows usable ({self.shape})"
        if self.num_lists:
            line += f", {len(self.pairs):,} pairs made of them"
        if self.num_ties:
            line += f", {self.num_ties:,} ties left out"
        dropped = Counter(row.reason for row in self.dropped)
        return f"{line}; dropped: {reasons_in_words(dropped)}" if dropped else line


def read_pairs(
    source: str | Path,
    *,
    behaviour: str | None = None,
    split: str = "train",
    limit: int | None = None,
    labelled: bool = False,
    ranked: Literal["all", "best"] = "all",
    ranked_weights: Literal["even", "gap"] = "even",
) -> ReadResult:
    """Read preference pairs of any known shape. Pairs that stand there twice are kept: the audit looks at them.

    Args:
        source: a file, a folder, or the id of a Hub data set (`org/name`, `org/name:subset`, `org/name@revision`).
        behaviour: of the rows that name none.
        split: of a data set that has several.
        limit: read at most so many rows.
        labelled: take single replies with a label too; else they are refused.
        ranked: the pairs that are made of a ranked list: all, or the best reply against each other one.
        ranked_weights: of the pairs of a list beside each other: even, or by the gap between the two replies' scores.

    Raises:
        PairsError: the source cannot be read, has no known shape, holds no usable row, or more than MAX_PAIRS.
    """
    rows = iter_pairs(
        source,
        behaviour=behaviour,
        split=split,
        limit=limit,
        labelled=labelled,
        ranked=ranked,
        ranked_weights=ranked_weights,
    )
    pairs: list[PreferencePair] = []
    dropped: list[DroppedRow] = []
    for row in rows:
        if isinstance(row, DroppedRow):
            dropped.append(row)
        else:
            pairs.append(row)
        if len(pairs) + len(dropped) > MAX_PAIRS:
            what = f"more than {MAX_PAIRS:,} rows are more than memory may take"
            raise PairsError(what, where=rows.where, remedy="read at most so many (data.max_pairs), or bring a part")
    return ReadResult(tuple(pairs), tuple(dropped), rows.shape, rows.num_rows, rows.name, rows.num_lists, rows.num_ties)


class iter_pairs:  # noqa: N801 - a verb: it is called like a function
    """`read_pairs` as a stream: every row as a pair, several of them, or a dropped row, in the order of the source.

    The pairs' `source` is `name`, by default `files.source_name`'s.
    `name` and `shape` are known before the first row is drawn; `num_rows`, `num_lists` and `num_ties` count those that
    were; `unread` has the columns that no pair keeps, with the number of usable rows that hold something there. When
    all rows are drawn and none was a pair, it raises.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        behaviour: str | None = None,
        split: str = "train",
        limit: int | None = None,
        labelled: bool = False,
        ranked: Literal["all", "best"] = "all",
        ranked_weights: Literal["even", "gap"] = "even",
        name: str | None = None,
    ) -> None:
        self._ranked = ranked, ranked_weights
        self.num_rows = self.num_lists = self.num_ties = 0
        self.unread: Counter[str] = Counter()
        self.where, self.name, self._behaviour = str(source), name or source_name(source), behaviour
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
        num_pairs = 0
        for number, row in self._rows:
            self.num_rows += 1
            try:
                made = _read_row(row, self._reader, self.name, number, self._behaviour, *self._ranked)
            except Unusable as error:
                made = _Made([], [error.reason])
            num_pairs += len(made.pairs)
            self.num_lists += bool(made.pairs) and self.shape == ranked_lists.NAME
            self.num_ties += made.num_ties
            counts.update(made.reasons)
            for column in made.unread if made.pairs else ():
                name = one_line(column, MAX_NAME)
                self.unread[name if name in self.unread or len(self.unread) < MAX_UNREAD else "other columns"] += 1
            yield from made.pairs
            yield from (DroppedRow(self.name, number, reason, excerpt(row, MAX_EXCERPT)) for reason in made.reasons)
        if not num_pairs:
            raise PairsError(
                f"none of the {self.num_rows:,} rows is usable, read as {self.shape}: {reasons_in_words(counts)}",
                where=self.where,
                remedy=f"look at row 1: {excerpt(self._first, 100)}",
            )


@dataclass(frozen=True, slots=True)
class _Made:
    """Of one row: its pairs, and the reasons why others were not made of it."""

    pairs: list[PreferencePair]
    reasons: list[str]
    num_ties: int = 0
    unread: Sequence[str] = ()


def _read_row(
    row: Any, reader: Reader, name: str, number: int, behaviour: str | None, ranked: str, ranked_weights: str
) -> _Made:
    if not has_shape(row, reader):
        raise Unusable(NO_IMAGES if holds_media(row) else NOT_THE_SHAPE)
    row = Watched(canonical(row))
    if row.get("tools") not in (None, "", "[]", []):
        raise Unusable(NO_TOOLS)
    labels: dict[str, Any] = {
        "source": name,
        "row": number,
        "behaviour": read_label(row, "behaviour") or behaviour,
        "attack": read_label(row, "attack"),
        "annotator": read_label(row, "annotator"),
        "cluster": read_label(row, "cluster"),
        "origin": _origin(row),
    }
    if isinstance(reader, PairReader):
        prompt, chosen, rejected = reader.to_pair(row)
        check_pair(prompt, chosen, rejected, single=reader.NAME == labelled_replies.NAME)
        pair = PreferencePair.make(prompt, chosen, rejected, **labels, confidence=read_confidence(row))
        return _Made([pair], [], unread=row.unread())
    found = ranked_lists.to_list(row)
    labels |= {"confidence": read_confidence(row), "list_id": _list_id(found, name, number)}
    candidates, num_ties = found.pairs(ranked, ranked_weights)
    pairs: list[PreferencePair] = []
    reasons: list[str] = []
    for chosen, rejected, weight in candidates:
        try:
            check_pair(found.prompt, chosen, rejected)
        except Unusable as error:
            reasons.append(error.reason)
        else:
            pairs.append(PreferencePair.make(found.prompt, chosen, rejected, **labels, weight=weight))
    return _Made(pairs, list(dict.fromkeys(reasons)), num_ties, row.unread())


def _origin(row: dict[str, Any]) -> str | None:
    """What the row calls its source; a text is no name."""
    name = read_label(row, "origin") or read_label(row, "source")
    return name if name is not None and len(name) <= MAX_NAME else None


def _list_id(found: ranked_lists.RankedList, name: str, number: int) -> str:
    """Two rows with the same texts are two lists."""
    return content_id([[turn.role, turn.content] for turn in found.prompt], found.replies, name, number)


def check_pair(prompt: Turns, chosen: str, rejected: str, *, single: bool = False) -> None:
    """What every shape has in common: a question of the user's, and two replies that differ (or a single one).

    Raises:
        Unusable: with what is missing.
    """
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
