"""The checks, in the order in which they are run and shown."""

from __future__ import annotations

from demeanor.audit import budget, knowledge, private, safety, shape
from demeanor.audit.check import Check

CHECKS: tuple[Check, ...] = (shape.CHECK, safety.CHECK, knowledge.CHECK, private.CHECK, budget.CHECK)
