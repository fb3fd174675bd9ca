"""Log-probabilities on disk, shared between runs: the reference's, and those of probes (`measure/kept.py`).

They depend on the weights, the tokenizer, the template, the token ids and the precision, and on nothing else: a sweep
over beta, the learning rate or the loss finds them all. A file holds those of one key (`reference_key`); a row of it
the per-token log-probabilities (nats, float32) of one pair's two replies, found by a digest of the pair's token ids.
The folder is `$DEMEANOR_CACHE`, else `$XDG_CACHE_HOME/demeanor`, else `~/.cache/demeanor`.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from demeanor.errors import StageError
from demeanor.tokens import TokenizedPair

PairLogps = tuple[np.ndarray, np.ndarray]  # of the chosen and the rejected reply, float32, one a token


class ReferenceCache:
    """Log-probabilities by pair. Usable by several processes at once.

    Args:
        key: digest of all that they depend on besides the token ids.
        folder: default as the module says.
        kind: beginning of the file's name.

    Raises:
        StageError: the folder cannot be written.
    """

    def __init__(self, key: str, folder: Path | None = None, kind: str = "reference") -> None:
        folder = folder or default_folder()
        self.kind, self.path = kind, folder / f"{kind}-{key}.sqlite"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._table = self._open()
        except (OSError, sqlite3.Error) as error:
            raise self._cannot(error) from None

    def _cannot(self, error: Exception) -> StageError:
        return StageError(
            f"{self.path}: the {self.kind} cannot be kept there ({error}); set DEMEANOR_CACHE to a folder with room"
        )

    def _open(self) -> sqlite3.Connection:
        table = sqlite3.connect(self.path, timeout=60)
        try:
            table.execute("create table if not exists logps (pair blob primary key, chosen blob, rejected blob)")
            if table.execute("pragma quick_check").fetchone() == ("ok",):
                return table
        except sqlite3.OperationalError:  # no room, or locked: the file itself may be good
            raise
        except sqlite3.DatabaseError:
            pass
        table.close()  # not a database, or a damaged one: nothing in it can be trusted
        self.path.unlink(missing_ok=True)
        return self._open()

    def find(self, pairs: Sequence[TokenizedPair]) -> list[PairLogps | None]:
        """What is known of each pair; an entry of the wrong size counts as unknown."""
        sizes = [(len(pair.chosen_ids), len(pair.rejected_ids)) for pair in pairs]
        return self.find_rows([_digest(pair) for pair in pairs], sizes)

    def keep(self, pairs: Iterable[TokenizedPair], logps: Iterable[PairLogps]) -> None:
        """Store what was computed, all or nothing."""
        self.keep_rows([_digest(pair) for pair in pairs], logps)

    def find_rows(self, digests: Sequence[bytes], sizes: Sequence[tuple[int, int]]) -> list[PairLogps | None]:
        """What is known by each digest, with so many numbers; an entry of another size counts as unknown."""
        result: list[PairLogps | None] = []
        for key, size in zip(digests, sizes, strict=True):
            try:
                row = self._table.execute("select chosen, rejected from logps where pair = ?", (key,)).fetchone()
            except sqlite3.DatabaseError:
                row = None
            fits = row is not None and all(len(blob) == 4 * one for blob, one in zip(row, size, strict=True))
            result.append((_floats(row[0]), _floats(row[1])) if fits else None)
        return result

    def keep_rows(self, digests: Iterable[bytes], logps: Iterable[PairLogps]) -> None:
        """Store numbers by their digests, all or nothing."""
        rows = [
            (key, np.float32(one).tobytes(), np.float32(two).tobytes())
            for key, (one, two) in zip(digests, logps, strict=True)
        ]
        try:
            with self._table:
                self._table.executemany("insert or replace into logps values (?, ?, ?)", rows)
        except sqlite3.Error as error:
            raise self._cannot(error) from None

    def forget(self) -> None:
        """Drop everything: the file does not tell the truth."""
        self._table.close()
        self.path.unlink(missing_ok=True)
        self._table = self._open()


def default_folder() -> Path:
    own = os.environ.get("DEMEANOR_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "demeanor"


def reference_key(model_fingerprint: str, template: Any, *, bf16: bool, device: str) -> str:
    """Digest of what the log-probabilities depend on besides the token ids.

    Args:
        model_fingerprint: of the weights, the configuration and the tokenizer's files.
        template: the chat template in use, or several by name.
    """
    parts = (model_fingerprint, json.dumps(template, sort_keys=True), "bf16" if bf16 else "float32", device)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def ids_digest(*parts: Sequence[int]) -> bytes:
    """Of lists of token ids."""
    return hashlib.sha256(b"|".join(np.asarray(part, dtype=np.int32).tobytes() for part in parts)).digest()


def _digest(pair: TokenizedPair) -> bytes:
    return ids_digest(pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)


def _floats(blob: bytes) -> np.ndarray:
    return np.frombuffer(blob, dtype=np.float32)
