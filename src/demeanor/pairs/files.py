"""A source's rows, whatever it is: a file, a folder, or a data set of the Hub. Names decide nothing, content does.

A folder is what `datasets.save_to_disk` wrote, or holds data files (a local copy of a Hub data set, say); its rows are
numbered through, files in the order of their paths. What exists on the disk is never looked for on the Hub.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from demeanor.errors import PairsError, one_line
from demeanor.pairs.decode import decode_file
from demeanor.pairs.hub import is_hub_id, is_saved_folder, read_hub, read_saved_folder
from demeanor.pairs.splits import DATA_SUFFIXES, data_files


def read_rows(source: str | Path, *, split: str = "train") -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of `source` with their numbers, counted from 1.

    Raises:
        PairsError: the source cannot be read, or a row has no named columns. It comes when the rows are drawn.
    """
    for number, row in read_values(source, split=split):
        if not isinstance(row, dict):
            raise PairsError(
                f"row {number} has no named columns: {one_line(row, 100)}",
                where=str(source),
                remedy="give JSON objects, or a table with a header row and as many cells in each row",
            )
        yield number, row


def read_values(source: str | Path, *, split: str = "train") -> Iterator[tuple[int, Any]]:
    """`read_rows`, with what is not a row (a list, a number, a ragged row of a table) as it is."""
    return enumerate(_values(source, split), start=1)


def source_name(source: str | Path) -> str:
    """What records call the source: the name of the file or folder, without the machine's path, or the Hub id."""
    path = Path(source).expanduser()
    return path.resolve().name if _exists(path, str(source)) else str(source)


def source_names(sources: Sequence[str | Path]) -> list[str]:
    """The name of each, in order: `source_name`, and where files of several folders share it, as much of their paths
    as tells them apart (harmless/train.jsonl, helpful/train.jsonl)."""
    plain = [(source_name(source), Path(source).expanduser().resolve()) for source in sources]
    names = []
    for name, path in plain:
        others, size = [other for own, other in plain if own == name and other != path], 1
        while any(other.parts[-size:] == path.parts[-size:] for other in others):
            size += 1
        names.append(name if size == 1 else Path(*path.parts[-size:]).as_posix())
    return names


def _values(source: str | Path, split: str) -> Iterator[Any]:
    where, path = str(source), Path(source).expanduser()
    if not where.strip():
        raise PairsError("no pairs were named: the name is empty", remedy="name a file, a folder or a Hub id")
    if not _exists(path, where):
        if not is_hub_id(where):
            raise PairsError("no such file or folder", where=where, remedy=_nearest(path))
        yield from read_hub(where, split)
    elif not path.is_dir():
        yield from decode_file(path, split)
    elif is_saved_folder(path):
        yield from read_saved_folder(path, split)
    else:
        for file in data_files(path, split):
            yield from decode_file(file, split)


def _exists(path: Path, where: str) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise PairsError(f"cannot be read: {error.strerror}", where=one_line(where, 100)) from None


def _nearest(path: Path) -> str:
    try:
        names = [other.name for other in path.parent.iterdir() if other.is_dir() or set(other.suffixes) & DATA_SUFFIXES]
    except OSError:
        return f"check the path; there is no folder {path.parent} either"
    close = difflib.get_close_matches(path.name, sorted(names), n=1)
    return f"did you mean {path.parent / close[0]}?" if close else "check the path"
