"""Which shape a file has: the reader that knows most of its first rows.

The shapes do not overlap but for one case: two transcripts are also two texts. The order below decides: the clear
shape wins. Two kinds of rows are recognised only to be refused with a better message: labelled replies that belong to
no prompt, and rows with images.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from demeanor.errors import PairsError, one_line
from demeanor.pairs import alpaca, hh, ranked, sharegpt, trl, v1
from demeanor.pairs import labelled as labelled_replies
from demeanor.pairs.columns import ambiguity, canonical
from demeanor.pairs.turns import Turns, is_media

NUM_ROWS_LOOKED_AT = 20


class Reader(Protocol):
    """A module that reads one shape, by `to_pair`, or (`ranked`) by `to_list`."""

    NAME: str
    EXAMPLE: str

    def matches(self, row: dict[str, Any]) -> bool:
        """Does the canonical row have the shape?"""


@runtime_checkable
class PairReader(Reader, Protocol):
    """A reader whose rows are one pair each."""

    def to_pair(self, row: dict[str, Any]) -> tuple[Turns, str, str]:
        """Prompt, chosen and rejected; raises Unusable."""


READERS: tuple[Reader, ...] = (labelled_replies, hh, v1, sharegpt, alpaca, trl, ranked)
SHAPES = {reader.NAME: reader.EXAMPLE for reader in READERS}  # for help texts

_LABELLED = "labelled texts"
_IMAGES = "rows with images"
_MEDIA_COLUMNS = ("image", "images", "video", "videos", "audio", "audios")


def find_reader(rows: Sequence[Any], where: str, *, labelled: bool = False) -> Reader:
    """The reader that matches most of the rows; of two that match equally many, the one that stands first above.

    Args:
        labelled: take single replies with a label.

    Raises:
        PairsError: none matches; the message shows the first row and lists the shapes.
    """
    votes = Counter(kind for kind in map(_kind, rows) if kind is not None)
    if not votes:
        raise _no_shape(rows, where)
    winner = max((*SHAPES, _LABELLED, _IMAGES), key=lambda kind: votes[kind])  # max takes the first of equals
    if winner == _LABELLED or (winner == labelled_replies.NAME and not labelled):
        readable = winner == labelled_replies.NAME
        raise PairsError(
            "these are single replies with a thumbs-up or -down label, not pairs",
            where=where,
            remedy="a pair needs a chosen and a rejected reply to one prompt"
            + ("; single replies are what `training.objective: kto` takes" if readable else ""),
        )
    if winner == _IMAGES:
        raise PairsError("pairs with images, video or sound are not supported", where=where, remedy="give text pairs")
    return next(reader for reader in READERS if winner == reader.NAME)


def has_shape(row: Any, reader: Reader) -> bool:
    """Is it `reader` that should read this row?"""
    return _kind(row) == reader.NAME


def holds_media(row: Any) -> bool:
    """Does the row come with an image, a video or a sound?"""
    if not isinstance(row, dict):
        return False
    if any(row.get(name) for name in _MEDIA_COLUMNS):
        return True
    turns = [turn for value in row.values() if isinstance(value, list) for turn in value if isinstance(turn, dict)]
    turns += [value for value in row.values() if isinstance(value, dict)]
    parts = (turn["content"] for turn in turns if isinstance(turn.get("content"), list))
    return any(is_media(part) for content in parts for part in content)


def excerpt(row: Any, limit: int) -> str:
    """The beginning of a row, on one line."""
    text = one_line(json.dumps(row, ensure_ascii=False, default=str), limit)
    return text.encode("utf-8", "replace").decode("utf-8")  # a row may hold half a character


def _kind(row: Any) -> str | None:
    if not isinstance(row, dict):
        return None
    row = canonical(row)
    if holds_media(row):
        return _IMAGES
    name = next((reader.NAME for reader in READERS if reader.matches(row)), None)
    return name or (_LABELLED if labelled_replies.has_label(row) else None)


def _no_shape(rows: Sequence[Any], where: str) -> PairsError:
    doubt = next((text for text in map(ambiguity, (row for row in rows if isinstance(row, dict))) if text), None)
    if doubt:
        return PairsError(f"no recognisable shape: {doubt}", where=where, remedy="rename the right one")
    first = rows[0]
    keys = one_line(f"columns {', '.join(map(str, first))}", 100) if isinstance(first, dict) else "no columns"
    remedy = f"known shapes: {'; '.join(SHAPES)}; the plainest row is {trl.EXAMPLE}"
    return PairsError(f"no recognisable shape; row 1 has {keys}: {excerpt(first, 150)}", where=where, remedy=remedy)
