"""The checks, in the order in which they are run and shown."""

from __future__ import annotations

from demeanor.audit import conflicts, duplicates, leakage, shape
from demeanor.audit.check import Check

CHECKS: tuple[Check, ...] = (shape.CHECK, duplicates.CHECK, conflicts.CHECK, leakage.CHECK)
