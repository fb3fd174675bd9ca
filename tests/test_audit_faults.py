"""Seeded faults: every check finds at least 95 % of its own kinds, with at most 1 % false alarms on clean rows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.audit_faults import audited, clean_rows, measure, planted
from benchmarks.faults import NOT_PLANTED, ROW_FAULTS
from benchmarks.set_faults import SET_FAULTS
from demeanor import audit
from demeanor.audit import CHECKS

NAMES = [check.name for check in CHECKS]


@pytest.mark.parametrize("check", NAMES)
def test_the_check_finds_its_own_kinds(check: str) -> None:
    lines = measure(seeds=1, rate=0.02, only=[check], sets=3)
    if not lines:
        pytest.skip("needs ../shared/data/polite-rude")
    for line in lines:
        assert line["false_alarms"] <= 0.01, line
        if not line["claimed"]:
            assert 0.5 < line["found"] < 0.95 and line["named_rightly"] > 0.6, line  # else the claim can be made
            continue
        assert line["found"] >= (1.0 if line["unit"] == "sets" else 0.95), line


def test_every_kind_of_finding_has_a_fault() -> None:
    """`kinds` is all that a check may yield: `audit_pairs` takes no other."""
    kinds = {(check.name, kind) for check in CHECKS for kind in check.kinds}
    found = {(fault.check, fault.counted[0]) for fault in (*ROW_FAULTS, *SET_FAULTS)}
    assert found <= kinds
    assert kinds - found == set(NOT_PLANTED)


def test_a_check_yields_only_the_kinds_that_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    check = next(check for check in CHECKS if check.name == "duplicates")
    short = replace(check, kinds=check.kinds[1:])
    monkeypatch.setattr(audit, "CHECKS", (short,))
    row = {"prompt": "Why?", "chosen": "So.", "rejected": "No."}
    with pytest.raises(AssertionError, match="duplicates does not name its kind pairs_repeated"):
        audited([row, row], "duplicates")


def test_planting_is_seeded_and_changes_only_its_places() -> None:
    rows = clean_rows("starter")
    faults = [fault for fault in ROW_FAULTS if (fault.check, fault.clean) == ("shape", "starter")]
    found, places = planted(rows, faults, 0.02, 5)
    assert (found, places) == planted(rows, faults, 0.02, 5)
    assert places != planted(rows, faults, 0.02, 6)[1]
    changed = {place for place, (row, new) in enumerate(zip(rows, found, strict=True)) if row != new}
    assert changed == set().union(*places.values())
    assert len(changed) == len(faults) * round(0.02 * len(rows))
    with pytest.raises(ValueError, match="do not fit"):
        planted(rows, faults, 0.2, 5)
