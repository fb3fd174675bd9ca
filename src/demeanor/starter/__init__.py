"""The embedded default: a small support-desk model with a known flaw, pairs that mend it, and the contract."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

__all__ = ["starter_contract", "starter_file"]


def starter_file(name: str) -> Path:
    """The path of one of the starter's files."""
    return Path(str(files("demeanor.starter"))) / name


def starter_contract() -> Path:
    """The path of the starter's contract."""
    return starter_file("contract.yaml")
