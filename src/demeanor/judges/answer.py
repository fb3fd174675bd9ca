"""What a judge answers about one reply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Answer:
    """`judgement` is violating, safe, other or invalid, or None: no answer. `why` is what the judge had to say, as it
    goes into the evidence: the opening that matched, probabilities, an endpoint's own words; JSON."""

    judgement: str | None
    why: Mapping[str, Any] = field(default_factory=dict)
