"""Rows to a file, and a file to its audit, for the tests of the checks."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from demeanor.audit import Audit, Scope, audit_pairs
from demeanor.pairs import PairStore


def write_pairs(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Rows as a file of JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def audited(files: Path | Iterable[Path], folder: Path, check: str, scope: Scope | None = None) -> Audit:
    """What one check finds in the files; they are read into `folder`/store."""
    (folder / "store").mkdir(exist_ok=True)
    store = PairStore.collect([files] if isinstance(files, Path) else files, folder / "store")
    return audit_pairs(store, scope, only=[check], workers=1)
