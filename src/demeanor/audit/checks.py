"""The checks, in the order in which they are run and shown."""

from __future__ import annotations

from demeanor.audit import (
    budget,
    conflicts,
    coverage,
    duplicates,
    knowledge,
    leakage,
    length,
    noise,
    private,
    safety,
    shape,
    surface,
)
from demeanor.audit.check import Check

CHECKS: tuple[Check, ...] = (
    shape.CHECK,
    length.CHECK,
    surface.CHECK,
    duplicates.CHECK,
    conflicts.CHECK,
    leakage.CHECK,
    noise.CHECK,
    safety.CHECK,
    knowledge.CHECK,
    private.CHECK,
    budget.CHECK,
    coverage.CHECK,
)
