"""The data files of a folder that belong to a split, by the conventions of the Hub.

A name such as `train_prefs-00000-of-00002.parquet` states its split. Else a word of the path does (`data/test.csv`,
`validation/part1.jsonl`). Where no file states one, all belong to every split; where some do, the others are left out.
"""

from __future__ import annotations

import re
from pathlib import Path

from demeanor.errors import PairsError

DATA_SUFFIXES = frozenset({".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet"})
COMPRESSED_SUFFIXES = frozenset({".gz", ".xz", ".bz2"})

_METADATA = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json"})
_WORDS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
}
_SHARD = re.compile(r"(?P<split>\w+(\.\w+)*)-\d{5}-of-\d{5}")


def data_files(folder: Path, split: str) -> list[Path]:
    """The data files under `folder` that belong to `split`, in the order of their paths.

    Raises:
        PairsError: there is none.
    """
    try:
        paths = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    except OSError as error:
        raise PairsError(f"cannot be read: {error.strerror}", where=str(folder)) from None
    paths = [path for path in paths if _is_data(path)]
    if not paths:
        kinds = ", ".join(sorted(suffix[1:] for suffix in DATA_SUFFIXES))
        raise PairsError(
            "the folder holds no data files", where=str(folder), remedy=f"they end in {kinds} (or .gz, .xz)"
        )
    splits = {path: split_of(path) for path in paths}
    known = sorted({name for name in splits.values() if name is not None})
    wanted = _WORDS.get(split, split)
    if known and wanted not in known:
        raise no_split(split, known, str(folder))
    return [folder / path for path in paths if not known or splits[path] == wanted]


def split_of(path: Path) -> str | None:
    """The split that a path states, if it does."""
    shard = _SHARD.match(path.name)
    if shard:
        return _WORDS.get(shard["split"], shard["split"])
    words = (word for part in reversed(path.parts) for word in re.split(r"[^a-z]+", part.lower()))
    return next((_WORDS[word] for word in words if word in _WORDS), None)


def no_split(split: str, known: list[str], where: str) -> PairsError:
    return PairsError(f"no split {split!r}", where=where, remedy=f"it has: {', '.join(known)}")


def _is_data(path: Path) -> bool:
    if any(part.startswith(".") for part in path.parts) or path.name in _METADATA:
        return False
    suffix = Path(path.stem).suffix if path.suffix.lower() in COMPRESSED_SUFFIXES else path.suffix
    return suffix.lower() in DATA_SUFFIXES
