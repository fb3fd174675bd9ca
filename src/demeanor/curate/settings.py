"""What a person may choose about a curation, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from demeanor.audit.private import KINDS
from demeanor.curate.decisions import Decision, read_decisions
from demeanor.curate.redact import REDACTED_KINDS
from demeanor.curate.traits import UNITS
from demeanor.errors import InputError
from demeanor.faults import nearest
from demeanor.model import ModelSource
from demeanor.workspace import file_sha256

CHOICES = {
    "private": ("redact", "drop", "keep"),
    "conflicts": ("resolve", "drop", "keep"),
    "balance": (*UNITS, "none"),
}


@dataclass(frozen=True)
class Settings:
    """
    Attributes:
        private: what becomes of pairs with private data of `kinds`. By default it is replaced by `[EMAIL]` and so on:
            the preference stays, nobody's address is taught, and no topic loses its pairs; each is in altered.jsonl.
        near: Jaccard index of the prompts, and of the replies, from which on two pairs are near-duplicates; 0 looks
            for exact ones only.
        conflicts: keep the better supported side (`resolve`), or none of a conflict (`drop`).
        balance: the unit in which lengths are balanced, or none. `model` is needed for tokens.
        heldout: share of the pairs to hold out.
        decisions: a file of `demeanor review`.
    """

    private: str = "redact"
    kinds: tuple[str, ...] = REDACTED_KINDS
    near: float = 0.8
    conflicts: str = "resolve"
    balance: str = "characters"
    heldout: float = 0.1
    seed: int = 0
    confidence: float = 0.95
    decisions: Path | None = None
    model: ModelSource | None = None

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise InputError(
                    f"cannot be {value!r}{nearest(value, choices)}", where=f"--{name}", remedy=f"give {_or(choices)}"
                )
        for kind in self.kinds:
            if kind not in KINDS:
                raise InputError(f"no kind is called {kind!r}{nearest(kind, KINDS)}", where="--kind")
        for name, most in (("near", 1.0), ("heldout", 0.9)):
            if not 0 <= getattr(self, name) <= most:
                raise InputError(f"must lie between 0 and {most:g}", where=f"--{name}")
        if not 0 <= self.seed < 2**32:
            raise InputError("must be a whole number from 0 to 4294967295", where="--seed")
        if self.balance == "tokens" and self.model is None:
            raise InputError("tokens of which model?", where="--balance", remedy="give --model")

    @property
    def unit(self) -> str:
        return "characters" if self.balance == "none" else self.balance

    def read_decisions(self) -> Mapping[str, Decision]:
        return read_decisions(self.decisions) if self.decisions else {}

    def to_json(self) -> dict[str, Any]:
        """Without what the machine calls the files."""
        own = {name: value for name, value in asdict(self).items() if name not in ("decisions", "model")}
        return {
            **own,
            "kinds": list(self.kinds),
            "model": self.model.fingerprint if self.model else None,
            "decisions_sha256": file_sha256(self.decisions) if self.decisions else None,
        }


def _or(choices: tuple[str, ...]) -> str:
    return f"{', '.join(choices[:-1])} or {choices[-1]}"
