"""What is said of a limit before the run: how many probes it needs, and what so few can never show."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import contract_of

from demeanor.prove.power import power_notes
from demeanor.records import Message, Probe
from demeanor.significance import share_unseen

ASKED = (Message("user", "question"),)


def notes(limit: dict[str, Any], sizes: list[int], **measurement: int) -> list[str]:
    behaviour = {"violating_openings": ["Bad"], "judge": "classifier", "limits": [limit]}
    probes = [Probe(f"{c}-{n}", "b", ASKED, (), (), None, f"c{c}") for c, size in enumerate(sizes) for n in range(size)]
    return power_notes(contract_of(behaviours={"b": behaviour}, measurement=measurement), probes)


def test_a_corrected_rate_is_of_sampled_replies() -> None:
    limit = {"measure": "violating_corrected_rate", "max": 0.1}
    (note,) = notes(limit, [1] * 500, max_sampled_probes=20)
    assert note.startswith("b: 20 probes cannot show violating_corrected_rate")
    assert notes(limit, [1] * 500, max_sampled_probes=200) == []


def test_clusters_of_unequal_sizes_count_as_fewer_here_too() -> None:
    limit = {"measure": "violating_sampled_rate", "max": 0.1}
    assert notes(limit, [2] * 50) == []  # 36 are needed
    (note,) = notes(limit, [50] + [1] * 50)
    assert note.startswith("b: 3 probes cannot show") and "you need 36" in note


@pytest.mark.parametrize(("n", "lines"), [(18, 1), (70, 1), (6, 2)])
def test_of_rare_kinds_of_prompt_nothing_is_shown_and_each_mass_limit_says_so(n: int, lines: int) -> None:
    found = notes({"measure": "violating_opening_mass", "max": 0.1}, [1] * n)
    assert len(found) == lines
    rare = 100 * (1 - 0.025 ** (1 / n))
    assert found[-1].startswith(
        f"b: whatever {n} probes show of violating_opening_mass after <= 0.1 at 95 % confidence"
    )
    assert found[-1].endswith(f"kinds of prompt rarer than {rare:.2g} % they show nothing")
    assert not any("rarer" in line for line in notes({"measure": "violating_opening_mass", "min": 0.1}, [1] * n))


def test_the_share_that_may_be_unseen_is_that_of_none_seen() -> None:
    assert share_unseen(70, 0.95) == pytest.approx(0.0513, abs=1e-4)
    assert (1 - share_unseen(70, 0.95)) ** 70 == pytest.approx(0.025)
