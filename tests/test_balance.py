"""Length balance keeps as many pairs as any balanced subset can, and what it keeps is symmetric."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from demeanor.curate.balance import SHARE, SLACK, balanced
from demeanor.pairs import read_pairs
from demeanor.statistics import estimate_share
from tests.conftest import shared


def most_matched(differences: np.ndarray, slack: float) -> int:
    """Pairs in the largest balanced subset, by an independent algorithm (Hopcroft and Karp)."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    longer, shorter = differences[differences > 0], -differences[differences < 0]
    larger = np.maximum.outer(longer, shorter)
    table = (np.abs(np.subtract.outer(longer, shorter)) <= np.maximum(slack, SHARE * larger)).astype(np.int8)
    matched = (maximum_bipartite_matching(csr_array(table), perm_type="column") >= 0).sum() if table.size else 0
    return int(2 * matched + (differences == 0).sum())


def is_balanced(differences: np.ndarray, slack: float) -> bool:
    return most_matched(differences, slack) == len(differences)


@pytest.mark.parametrize("seed", range(8))
def test_no_balanced_subset_is_larger(seed: int) -> None:
    """All subsets of small sets are tried."""
    rng = np.random.default_rng(seed)
    differences = rng.integers(-60, 90, 9)
    best = max(
        size
        for size in range(10)
        for subset in combinations(range(9), size)
        if is_balanced(differences[list(subset)], 10)
    )
    assert balanced(differences, 10, seed).sum() == best


@pytest.mark.parametrize("share_longer", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(10))
def test_it_keeps_the_exact_optimum_and_is_balanced(seed: int, share_longer: float) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.gamma(1.5, 80, 300).astype(int)
    differences = np.where(rng.random(300) < share_longer, sizes, -sizes)
    for slack in (0, 2, 10):
        keep = balanced(differences, slack, seed)
        assert keep.sum() == most_matched(differences, slack)
        assert is_balanced(differences[keep], slack)


def test_what_is_kept_of_a_surplus_is_as_long_as_its_partners() -> None:
    """Chosen is longer in 90 %: sorted matching alone takes the smallest that fit, and is short by half the slack."""
    rng = np.random.default_rng(0)
    sizes = rng.gamma(2, 100, 20_000)
    differences = np.where(rng.random(20_000) < 0.9, sizes, -sizes).astype(int)
    keep = balanced(differences, 10, 0)
    assert 0.19 < keep.mean() <= 2 * (differences < 0).mean() + (differences == 0).mean()
    assert abs(differences[keep].mean()) < 0.5


def test_all_of_one_sign_leaves_those_that_do_not_differ() -> None:
    differences = np.array([5, 0, 9, 0, 30])
    assert balanced(differences, 10, 0).tolist() == [False, True, False, True, False]
    assert balanced(-differences, 10, 0).tolist() == [False, True, False, True, False]
    assert not balanced(np.empty(0, np.int64), 10, 0).size


def test_the_seed_decides_which_of_equals_stay() -> None:
    differences = np.array([7] * 50 + [-7] * 10)
    kept = [balanced(differences, 0, seed) for seed in (1, 1, 2)]
    assert (kept[0] == kept[1]).all()
    assert (kept[0] != kept[2]).any()
    assert all(keep.sum() == 20 for keep in kept)


def test_hh_rlhf_keeps_nearly_all_that_any_set_of_half_longer_winners_can() -> None:
    pairs = read_pairs(shared("data/hh-rlhf/harmless-base.jsonl.gz")).pairs
    differences = np.array([len(pair.chosen) - len(pair.rejected) for pair in pairs])
    longer, shorter, same = ((differences > 0).sum(), (differences < 0).sum(), (differences == 0).sum())
    before = estimate_share(int(longer), int(longer + shorter), 0.95)
    assert (longer, shorter, same) == (887, 1094, 11)
    assert before.value == pytest.approx(0.4478, abs=1e-4)
    assert before.high is not None and before.high < 0.5
    keep = balanced(differences, SLACK["characters"], 0)
    assert keep.sum() == 1783 and 2 * longer + same == 1785  # no set with as many longer as shorter has more
    assert (differences[keep] > 0).sum() == (differences[keep] < 0).sum() == 886
    assert abs(differences[keep].mean()) < 5 < 40 < abs(differences.mean())
