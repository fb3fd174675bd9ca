"""The chunks of a measurement that are finished, in a JSON-lines file, so that a killed run goes on after the last."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from demeanor.records import Reply, Score


def read_partial(partial: Path | None) -> dict[str, Any]:
    """Finished chunks by key; a line that a kill cut short is left out."""
    done: dict[str, Any] = {}
    if partial is None or not partial.exists():
        return done
    for line in partial.read_bytes().split(b"\n"):
        with contextlib.suppress(ValueError):
            item = json.loads(line)
            done[item["key"]] = item
    return done


def append_partial(partial: Path | None, key: str, scores: list[Score], replies: list[Reply]) -> None:
    if partial is None:
        return
    partial.parent.mkdir(parents=True, exist_ok=True)
    item = {"key": key, "scores": [s.to_json() for s in scores], "replies": [r.to_json() for r in replies]}
    with partial.open(
        "a", encoding="ascii"
    ) as file:  # JSON in ASCII holds no line break; the first one ends a torn line
        file.write("\n" + json.dumps(item) + "\n")
