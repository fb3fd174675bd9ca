"""A file's rows: its first bytes tell how it is packed and written.

    1f 8b / fd 37 7a 58 5a 00 / "BZh"    gzip, xz, bzip2: unpacked on the way
    "PAR1"                               Parquet
    "{" or "["                           JSON lines, a JSON array, or one JSON object around it
    other text                           a table with a header row; comma, tab or semicolon

Text is UTF-8. JSON lines, JSON arrays and tables are read as a stream, so that a file may be larger than memory; a row
may not (`MAX_ROW`), nor a file that is one JSON object (`MAX_OBJECT`).
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from demeanor.errors import PairsError, one_line
from demeanor.pairs.splits import no_split

_PACKED: tuple[tuple[bytes, Any], ...] = (
    (b"\x1f\x8b", gzip.open),
    (b"\xfd7zXZ\x00", lzma.open),
    (b"BZh", bz2.open),
)
_NOT_DATA = (
    (b"version https://git-lfs", "is a pointer of Git LFS, not the file itself", "run `git lfs pull`"),
    (b"<!doctype html", "is a web page", "download the raw file"),
    (b"<html", "is a web page", "download the raw file"),
    (b"PK\x03\x04", "is a zip archive", "unpack it"),
    (b"\x28\xb5\x2f\xfd", "is packed with zstd", "unpack it"),
    (b"\xff\xfe", "is UTF-16 text", "save it as UTF-8"),
    (b"\xfe\xff", "is UTF-16 text", "save it as UTF-8"),
)
_BOM = "\ufeff"
_WRAPPERS = ("data", "rows", "examples", "pairs", "records")
_SPLITS = ("train", "test", "validation")
MAX_ROW = 1 << 26  # bytes of a line, characters of an item or a cell: 64 Mi
MAX_OBJECT = 1 << 29  # characters: 512 Mi
_CHUNK = 1 << 16
_MAX_BLANK = 10_000  # lines before the first that says something, or between it and the next
_ROWS_REMEDY = "give JSON lines, a JSON array, CSV with a header row, or Parquet"


def decode_file(path: Path, split: str = "train") -> Iterator[Any]:
    """The rows of a file; what is no row (a list, a ragged row of a table) comes as it is.

    Raises:
        PairsError: it cannot be read to its end.
    """
    where, num_rows = str(path), 0
    try:
        with path.open("rb") as raw:
            for row in _decode(_unpack(raw), where, split):
                num_rows += 1
                yield row
    except EOFError:
        raise PairsError(f"ends early; {num_rows:,} rows were readable", where=where, remedy="fetch it again") from None
    except (zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        what = f"is damaged after {num_rows:,} rows: {one_line(error)}"
        raise PairsError(what, where=where, remedy="fetch it again") from None
    except OSError as error:
        raise PairsError(f"cannot be read: {error.strerror or one_line(error)}", where=where) from None


def _unpack(raw: io.BufferedReader) -> Any:
    head = raw.peek(16)
    return next((opener(raw) for magic, opener in _PACKED if head.startswith(magic)), raw)


def _decode(stream: Any, where: str, split: str) -> Iterator[Any]:
    head: bytes = stream.peek(4096)
    if not head:
        raise PairsError("is empty", where=where, remedy=_ROWS_REMEDY)
    if head.startswith(b"PAR1"):
        return _read_parquet(stream, where)
    for magic, what, remedy in _NOT_DATA:
        if head[:64].lstrip().lower().startswith(magic.lower()):
            raise PairsError(what, where=where, remedy=remedy)
    if b"\0" in head:
        raise PairsError("is not text", where=where, remedy=_ROWS_REMEDY)
    return _read_text(_lines(stream, where), where, split)


def _read_parquet(stream: Any, where: str) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    seekable = isinstance(stream, io.BufferedReader) and stream.seekable()
    file = stream if seekable else io.BytesIO(stream.read())
    num_rows = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=256):
            for row in batch.to_pylist():
                num_rows += 1
                yield row
    except (pyarrow.ArrowException, OSError) as error:
        what = f"is damaged after {num_rows:,} rows, or no Parquet: {one_line(error, 120)}"
        raise PairsError(what, where=where, remedy="fetch it again") from None
    except (ValueError, OverflowError) as error:  # a text that is not UTF-8, a date beyond the calendar
        what = f"holds a value that cannot be read, after {num_rows:,} rows: {one_line(error, 120)}"
        raise PairsError(what, where=where, remedy="write the file again from its origin") from None


def _lines(stream: Any, where: str) -> Iterator[str]:
    """The lines of a text; one longer than MAX_ROW comes in parts of that size, of which only the last ends a line."""
    number, part_of_line = 1, False
    rest = b""
    while line := stream.readline(MAX_ROW):
        data = rest + line
        try:
            text = data.decode("utf-8")
            rest = b""
        except UnicodeDecodeError as error:
            cut = not line.endswith(b"\n") and error.reason == "unexpected end of data" and len(line) == MAX_ROW
            if not cut:
                what = f"is not UTF-8 text (byte 0x{data[error.start]:02x} in column {error.start + 1})"
                raise PairsError(what, where=f"{where}, line {number}", remedy="save the file as UTF-8") from None
            text, rest = data[: error.start].decode("utf-8"), data[error.start :]
        yield text.removeprefix(_BOM) if number == 1 and not part_of_line else text
        part_of_line = not line.endswith(b"\n")
        number += not part_of_line


def _read_text(lines: Iterator[str], where: str, split: str) -> Iterator[Any]:
    start = _to_next_full_line(lines, where)
    if not start or not start[-1].strip():
        raise PairsError("is empty", where=where, remedy=_ROWS_REMEDY)
    if start[-1].lstrip()[0] in "{[":
        return _read_json(start, lines, where, split)
    return _read_table(_full_lines(chain(start, lines), where), where)


def _read_json(start: list[str], lines: Iterator[str], where: str, split: str) -> Iterator[Any]:
    """JSON lines when the first line is a value and another follows, or when the second one alone is an object."""
    more = _to_next_full_line(lines, where, "holds")
    follows = bool(more) and bool(more[-1].strip())
    first_is_value = _is_json(start[-1])
    array_or_object = start[-1].lstrip()[0]
    if follows and (first_is_value or (array_or_object == "{" and more[-1].lstrip()[:1] == "{" and _is_json(more[-1]))):
        return _read_json_lines(chain(start, more, lines), where)
    if array_or_object == "[":
        return _read_json_array(chain(start, more, lines), where)
    value = _parse_json(_whole(chain(start, more, lines), where), where)
    return iter(_unwrap(value, where, split))


def _read_json_lines(lines: Iterable[str], where: str) -> Iterator[Any]:
    for number, line in enumerate(_full_lines(lines, where), start=1):
        if line.strip():
            yield _parse_json(line, where, number)


def _full_lines(lines: Iterable[str], where: str) -> Iterator[str]:
    """The lines, none of which is a part of one (see `_lines`)."""
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n") and len(line.encode()) > MAX_ROW - 4:  # up to 3 bytes wait for the next part
            raise _too_long(f"{where}, line {number}")
        yield line


def _read_json_array(lines: Iterator[str], where: str) -> Iterator[Any]:
    """The items of one JSON array, which may be larger than memory."""
    text = _Window(lines)
    decode = json.JSONDecoder().raw_decode

    def fault(problem: str, at: int) -> PairsError:
        line, column = text.position(at)
        remedy = "correct the line, or take it out"
        if not text.rest(at) or problem.startswith(_UNTERMINATED):
            remedy = "it ends early: was the file cut short?"
        return PairsError(f"is not JSON: {problem} in column {column}", where=f"{where}, line {line}", remedy=remedy)

    text.next_sign()
    text.place += 1  # behind the bracket
    sign, num_rows = text.next_sign(), 0
    while sign != "]":
        wanted = _CHUNK
        while True:
            try:
                value, end = decode(text.text, text.place)
                if end < len(text.text) or not text.fill(_CHUNK):  # a number may go on behind the window
                    break
            except json.JSONDecodeError as error:
                near_end = error.pos > len(text.text) - _LONGEST_WORD or error.msg.startswith(_UNTERMINATED)
                at = error.pos - text.place  # filling moves the window
                if not near_end or not text.fill(wanted):
                    raise fault(error.msg, text.place + at) from None
            except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets in brackets
                line, remedy = text.position(text.place)[0], "correct the line, or take it out"
                raise PairsError(
                    f"is not JSON that can be read: {one_line(error, 100)}",
                    where=f"{where}, line {line}",
                    remedy=remedy,
                ) from None
            if len(text.text) - text.place > MAX_ROW:
                raise _too_long(f"{where}, item {num_rows + 1}")
            wanted *= 2
        text.place, num_rows = end, num_rows + 1
        yield value
        sign = text.next_sign()
        if sign == ",":
            text.place += 1
            sign = text.next_sign()
            if sign == "]":
                raise fault("Expecting value", text.place)
        elif sign != "]":
            raise fault("Expecting ',' delimiter", text.place)
    text.place += 1
    if text.next_sign():
        raise fault("Extra data", text.place)


_UNTERMINATED = "Unterminated string"
_LONGEST_WORD = 16  # characters of a word or an escape that the end of the window may cut


class _Window:
    """A piece of a long text that moves along; `place` is where the reader stands in `text`."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._pieces = (line[start : start + _CHUNK] for line in lines for start in range(0, len(line), _CHUNK))
        self._line, self._column = 1, 1  # of the first character of `text`
        self.text, self.place = "", 0

    def fill(self, wanted: int) -> bool:
        """Drop what lies before `place`, add `wanted` characters or all that are left; False when there are none."""
        self._line, self._column = self.position(self.place)
        parts, size = [self.text[self.place :]], 0
        while size < wanted and (piece := next(self._pieces, "")):
            parts.append(piece)
            size += len(piece)
        self.text, self.place = "".join(parts), 0
        return size > 0

    def next_sign(self) -> str:
        """Move to the next character that is no white space, and tell it; "" at the end."""
        while True:
            while self.place < len(self.text) and self.text[self.place] in " \t\n\r":
                self.place += 1
            if self.place < len(self.text):
                return self.text[self.place]
            if not self.fill(_CHUNK):
                return ""

    def rest(self, at: int) -> bool:
        """Is there anything but white space from `at` on?"""
        return bool(self.text[at:].strip())

    def position(self, at: int) -> tuple[int, int]:
        """(line, column) of a character of `text`, both from 1."""
        breaks = self.text.count("\n", 0, at)
        column = at - self.text.rfind("\n", 0, at) if breaks else self._column + at
        return self._line + breaks, column


def _whole(lines: Iterable[str], where: str) -> str:
    parts, size = [], 0
    for line in lines:
        parts.append(line)
        size += len(line)
        if size > MAX_OBJECT:
            what = f"is one JSON object of more than {MAX_OBJECT >> 20} Mi characters"
            raise PairsError(what, where=where, remedy="give JSON lines: an object a line")
    return "".join(parts)


def _too_long(where: str) -> PairsError:
    what = f"is longer than {MAX_ROW >> 20} MiB"
    return PairsError(what, where=where, remedy="a row is one prompt and its replies: check the line, or take it out")


def _parse_json(text: str, where: str, line: int | None = None) -> Any:
    """`line`: the line of the file that `text` is; None when it is the whole file."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = line or error.lineno
        cut = not text[error.pos :].strip() or error.msg.startswith("Unterminated string")
        remedy = "it ends early: was the file cut short?" if cut else "correct the line, or take it out"
        what = f"is not JSON: {error.msg} in column {error.colno}"
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets in brackets
        what, remedy = f"is not JSON that can be read: {one_line(error, 100)}", "correct the line, or take it out"
    raise PairsError(what, where=f"{where}, line {line}" if line else where, remedy=remedy)


def _unwrap(value: Any, where: str, split: str) -> list[Any]:
    """The rows of a whole JSON file: a list, or an object that holds the list by a usual name, or one row."""
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        for key in (split, *_WRAPPERS):
            if isinstance(value.get(key), list):
                return list(value[key])
        known = [key for key in _SPLITS if isinstance(value.get(key), list)]
        if known:
            raise no_split(split, known, where)
    return [value]


def _read_table(lines: Iterable[str], where: str) -> Iterator[Any]:
    csv.field_size_limit(MAX_ROW)  # replies are longer than the 128 KiB of the default
    lines = iter(lines)
    start = _to_next_full_line(lines, where)
    delimiter = max(",\t;", key=start[-1].count)  # the first of equals
    reader = csv.reader(chain(start[-1:], lines), delimiter=delimiter, strict=True)
    row_start = len(start)  # the line of the file on which the row begins
    try:
        header = [name.strip() for name in next(reader)]
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            raise PairsError(
                f"the header names {one_line(', '.join(twice), 100)} twice", where=where, remedy="rename one"
            )
        row_start = len(start) + reader.line_num
        for cells in reader:
            row_start = len(start) + reader.line_num
            if cells:
                yield dict(zip(header, cells, strict=True)) if len(cells) == len(header) else cells
    except csv.Error as error:
        what = f"is neither JSON nor a table with a header row: {one_line(error, 100)}"
        raise PairsError(what, where=f"{where}, line {row_start}", remedy="check the quotes of that row") from None


def _to_next_full_line(lines: Iterator[str], where: str, how: str = "begins with") -> list[str]:
    """Draw lines up to and with the first that is not blank; of blanks no more than memory takes."""
    drawn: list[str] = []
    for line in lines:
        if not line.strip() and (len(drawn) >= _MAX_BLANK or len(line) >= _CHUNK):
            what = f"{how} more than {_MAX_BLANK:,} blank lines, or one of {_CHUNK >> 10} KiB"
            raise PairsError(what, where=where, remedy="check the file, or take them out")
        drawn.append(line)
        if line.strip():
            break
    return drawn


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
