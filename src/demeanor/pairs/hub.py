"""Data sets of the Hub, and folders that `datasets.save_to_disk` wrote. No code that comes with a data set is run."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from demeanor.errors import PairsError, one_line
from demeanor.pairs.splits import COMPRESSED_SUFFIXES, DATA_SUFFIXES, no_split

_HUB_ID = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(:(?P<subset>[\w.-]+))?(@(?P<revision>[\w./-]+))?")
_FILE_SUFFIXES = (
    DATA_SUFFIXES | COMPRESSED_SUFFIXES | {".txt", ".md", ".arrow", ".zip", ".zst", ".yaml", ".yml", ".pkl"}
)
_MEDIA = re.compile(r"\b(Image|Audio|Video|Pdf)\(")


def read_hub(text: str, split: str) -> Iterator[Any]:
    """The rows of `org/name`, optionally `org/name:subset` and `@revision`.

    Raises:
        PairsError: it cannot be had.
    """
    import datasets

    match = _HUB_ID.fullmatch(text)
    assert match is not None
    try:
        data = datasets.load_dataset(match["name"], match["subset"], split=split, revision=match["revision"])
    except Exception as error:  # whatever goes wrong between here and the Hub
        what = f"no such file or folder, and not to be had from the Hub: {type(error).__name__}: {one_line(error, 160)}"
        offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
        raise PairsError(
            what,
            where=text,
            remedy="HF_HUB_OFFLINE is set: unset it, or give a local copy"
            if offline
            else "check the id (org/name, org/name:subset, @revision), the split, the network and `hf auth login`",
        ) from None
    yield from _rows(data, text)


def read_saved_folder(folder: Path, split: str) -> Iterator[Any]:
    """The rows of a saved Dataset, or of one split of a saved DatasetDict."""
    import datasets

    where = str(folder)
    try:
        if (folder / "dataset_dict.json").is_file():
            known = json.loads((folder / "dataset_dict.json").read_text("utf-8"))["splits"]
            if split not in known:
                raise no_split(split, sorted(known), where)
            folder = folder / split
        data = datasets.load_from_disk(str(folder))
    except PairsError:
        raise
    except Exception as error:
        raise PairsError(
            f"damaged `datasets` folder: {one_line(error, 160)}", where=where, remedy="save it again"
        ) from None
    yield from _rows(data, where)


def is_hub_id(text: str) -> bool:
    """Could it be the id of a Hub data set? A name with the suffix of a data file is none."""
    return _HUB_ID.fullmatch(text) is not None and Path(text).suffix.lower() not in _FILE_SUFFIXES


def is_saved_folder(folder: Path) -> bool:
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def _rows(data: Any, where: str) -> Iterator[Any]:
    if _MEDIA.search(str(data.features)):
        raise PairsError("pairs with images, video or sound are not supported", where=where, remedy="give text pairs")
    num_rows = 0
    try:
        for row in data.with_format(None):
            num_rows += 1
            yield row
    except Exception as error:
        raise PairsError(
            f"damaged after {num_rows:,} rows: {one_line(error, 160)}", where=where, remedy="fetch it again"
        ) from None
