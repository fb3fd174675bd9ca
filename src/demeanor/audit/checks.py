"""The checks, in the order in which they are run and shown."""

from __future__ import annotations

from demeanor.audit import private, shape
from demeanor.audit.check import Check

CHECKS: tuple[Check, ...] = (shape.CHECK, private.CHECK)
