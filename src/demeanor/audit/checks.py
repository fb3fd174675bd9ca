"""The checks, in the order in which they are run and shown."""

from __future__ import annotations

from demeanor.audit import coverage, length, noise, shape, surface
from demeanor.audit.check import Check

CHECKS: tuple[Check, ...] = (shape.CHECK, length.CHECK, surface.CHECK, noise.CHECK, coverage.CHECK)
