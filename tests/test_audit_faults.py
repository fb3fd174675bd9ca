"""Seeded faults: every check finds at least 95 % of its own kinds, with at most 1 % false alarms on clean rows."""

from __future__ import annotations

import pytest

from benchmarks.audit_faults import clean_rows, measure, planted
from benchmarks.faults import ROW_FAULTS, SET_FAULTS
from demeanor.audit import CHECKS

NAMES = [check.name for check in CHECKS]


@pytest.mark.parametrize("check", NAMES)
def test_the_check_finds_its_own_kinds(check: str) -> None:
    lines = measure(seeds=1, rate=0.02, only=[check])
    if not lines:
        pytest.skip("needs ../shared/data/polite-rude")
    for line in lines:
        assert line["found"] >= (1.0 if line["unit"] == "sets" else 0.95), line
        assert line["false_alarms"] <= 0.01, line


def test_every_check_has_a_fault() -> None:
    assert set(NAMES) <= {fault.check for fault in (*ROW_FAULTS, *SET_FAULTS)}


def test_planting_is_seeded_and_changes_only_its_places() -> None:
    rows = clean_rows("starter")
    faults = [fault for fault in ROW_FAULTS if fault.check == "shape"]
    found, places = planted(rows, faults, 0.02, 5)
    assert (found, places) == planted(rows, faults, 0.02, 5)
    assert places != planted(rows, faults, 0.02, 6)[1]
    changed = {place for place, (row, new) in enumerate(zip(rows, found, strict=True)) if row != new}
    assert changed == set().union(*places.values())
    assert len(changed) == len(faults) * round(0.02 * len(rows))
    with pytest.raises(ValueError, match="do not fit"):
        planted(rows, faults, 0.2, 5)
