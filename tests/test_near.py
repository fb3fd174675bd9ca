"""Shingles and near-duplicates, against sets of words and the exact answer of all pairs."""

from __future__ import annotations

import csv
import random
import re
from itertools import combinations

import numpy as np
import pytest

from demeanor.audit.near import Shingles, bands_for, clusters, near_duplicates, shingle
from demeanor.errors import InputError
from tests.conftest import shared


def sets(texts: list[str], n: int = 3) -> list[set[tuple[str, ...]]]:
    """The same definition, word by word."""
    found = []
    for text in texts:
        words = re.findall(r"\w+", text.casefold())
        found.append({tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))} if words else set())
    return found


def exact(left: list[str], right: list[str] | None = None) -> dict[tuple[int, int], float]:
    """Jaccard index of all pairs that share anything."""
    one = sets(left)
    other = one if right is None else sets(right)
    if right is None:
        places = combinations(range(len(left)), 2)
    else:
        places = ((i, j) for i in range(len(left)) for j in range(len(right)))
    found = {(i, j): len(one[i] & other[j]) / max(1, len(one[i] | other[j])) for i, j in places}
    return {pair: value for pair, value in found.items() if value}


def texts_with_copies(seed: int, num: int = 150) -> list[str]:
    """Random texts, and of each an altered copy: from the same but for its case to hardly alike."""
    rng = random.Random(seed)
    words = [f"word{k}" for k in range(200)]
    texts = []
    for _ in range(num):
        text = rng.choices(words, k=rng.randint(1, 60))
        changed = [rng.choice(words) if rng.random() < 0.15 * rng.random() else word for word in text]
        texts += [" ".join(text), ", ".join(changed).title()]
    return texts


def test_shingles_are_the_sets_of_word_ngrams() -> None:
    texts = [
        "",
        "!!! ...",
        "One",
        "one two",
        "a b c a b c a",
        "It's ONE two-three, é1!",
        "Straße",
        "a\nb\tc  d",
        "x" * 5000,
    ]
    found = shingle(texts)
    assert found.sizes.tolist() == [len(of) for of in sets(texts)]
    assert found.offsets.dtype == np.int64 and found.hashes.dtype == np.uint32
    for text in range(len(texts)):
        hashes = found.hashes[found.offsets[text] : found.offsets[text + 1]].astype(np.int64)
        assert (np.diff(hashes) > 0).all()
    again = shingle(["STRASSE", "c. A? b (c) a, b c a b", "one  two!", "two one", "x" * 4999 + "y"])
    assert again.hashes[0] == found.hashes[found.offsets[6]]
    assert shingle(["a b c d"]).hashes.tolist() == shingle(["A-B-c; d."]).hashes.tolist()
    assert shingle(["one two"]).hashes != shingle(["two one"]).hashes
    assert not np.isin(again.hashes[again.offsets[4]], found.hashes)
    assert len(shingle([])) == 0


def test_scripts_without_blanks_are_cut_at_characters_and_marks_stay_in_their_words() -> None:
    assert shingle(["今天天气很好"]).sizes.tolist() == [4]
    assert shingle(["हिन्दी में लिखा"]).sizes.tolist() == [1]  # three words; the vowel signs are marks
    assert shingle(["\ud800 half a character"]).sizes.tolist() == [1]


def test_texts_of_several_blocks_are_as_if_shingled_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = texts_with_copies(1)
    whole = shingle(texts)
    monkeypatch.setattr("demeanor.audit.shingles._CHARACTERS", 500)
    parts = shingle(texts)
    assert np.array_equal(parts.offsets, whole.offsets) and np.array_equal(parts.hashes, whole.hashes)
    joined = Shingles.join([shingle(texts[:7]), shingle([]), shingle(texts[7:])])
    assert np.array_equal(joined.hashes, whole.hashes)
    rows = np.array([5, 0, 5, 17])
    assert np.array_equal(whole.take(rows).hashes, shingle([texts[row] for row in rows]).hashes)


def test_a_long_text_is_cut_into_words_a_piece_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from demeanor.audit import shingles

    texts = ["short", " ".join(texts_with_copies(2)), "", "d'é_un, e\u0301t\u00a0日本語。" * 300, "!" * 3000, "x"]
    whole, ngrams = shingle(texts), shingles.ngrams(texts, (2, 5))
    pieces, words_of = [], shingles._words_of
    monkeypatch.setattr(shingles, "_CHARACTERS", 100)
    monkeypatch.setattr(shingles, "_words_of", lambda cut: pieces.append(sum(map(len, cut))) or words_of(cut))
    parts = shingle(texts)
    assert np.array_equal(parts.offsets, whole.offsets) and np.array_equal(parts.hashes, whole.hashes)
    for size, columns in shingles.ngrams(texts, (2, 5)).items():
        assert all(np.array_equal(own, other) for own, other in zip(columns, ngrams[size], strict=True))
    assert len(pieces) > 50 and max(pieces) < 220  # of texts of up to 4,000 characters


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.9, 1.0])
def test_finds_what_all_pairs_give(threshold: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("demeanor.audit.near._CANDIDATES", 50)  # many rounds
    hits = total = 0
    for seed in range(3):
        texts = texts_with_copies(seed)
        values = exact(texts)
        near = {pair: value for pair, value in values.items() if value >= threshold}
        pairs, jaccard = near_duplicates(shingle(texts), threshold, seed=seed)
        found = {(i, j): value for (i, j), value in zip(pairs.tolist(), jaccard.tolist(), strict=True)}
        assert list(found) == sorted(found)
        for pair, value in found.items():
            assert near[pair] == pytest.approx(value)
        hits, total = hits + len(found), total + len(near)
    assert total > 60
    assert hits >= (1.0 if threshold == 1 else 0.95) * total


@pytest.mark.parametrize("threshold", [0.4, 0.8])
def test_finds_what_all_pairs_give_across_two_sets(threshold: float) -> None:
    texts = texts_with_copies(4)
    left, right = [*texts[::2], texts[0], ""], [*texts[1::2], texts[1], texts[1], ""]
    near = {pair: value for pair, value in exact(left, right).items() if value >= threshold}
    pairs, jaccard = near_duplicates(shingle(left), threshold, other=shingle(right))
    found = {(i, j): value for (i, j), value in zip(pairs.tolist(), jaccard.tolist(), strict=True)}
    for pair, value in found.items():
        assert near[pair] == pytest.approx(value)
    assert len({i for i, _ in found}) >= 0.95 * len({i for i, _ in near})
    assert len({j for _, j in found}) >= 0.95 * len({j for _, j in near})


def test_equal_texts_are_paired_across_two_sets_with_the_closest() -> None:
    left = shingle(["a b c d e f g h", "other words here", "a b c d e f g h", "a b c d e f g h"])
    right = shingle(["a b c d e f g i", "a b c d e f g h", "", "A b c d e f g i!"])
    pairs, jaccard = near_duplicates(left, 0.5, other=right)
    assert pairs.tolist() == [[0, 0], [0, 1], [0, 3], [2, 1], [3, 1]]
    assert jaccard.tolist() == pytest.approx([5 / 7, 1, 5 / 7, 1, 1])


def test_the_same_seed_gives_the_same_pairs() -> None:
    shingles = shingle(texts_with_copies(2))
    one, two = (near_duplicates(shingles, 0.4, seed=7) for _ in range(2))
    assert np.array_equal(one[0], two[0]) and np.array_equal(one[1], two[1])


@pytest.mark.parametrize("threshold", np.arange(0.05, 1, 0.05).tolist())
def test_bands_reach_the_stated_recall(threshold: float) -> None:
    orders, bands = bands_for(threshold)
    assert 1 - (1 - threshold**orders) ** bands >= 0.95
    assert 1 - (1 - threshold ** (orders + 1)) ** (192 // (orders + 1)) < 0.95  # no longer band would do


def test_a_hundred_thousand_equal_texts_are_each_linked_to_the_first() -> None:
    num = 100_000
    pairs, jaccard = near_duplicates(
        shingle(["the same text", "again and again", "once"] + ["the same text"] * num), 0.5
    )
    assert len(pairs) == num and (jaccard == 1).all()
    assert (pairs[:, 0] == 0).all() and np.array_equal(pairs[:, 1], np.arange(3, num + 3))


def test_a_large_cluster_is_found_without_all_its_pairs() -> None:
    texts = [f"every one of these letters was sent to {k} different people on the same day" for k in range(3_000)]
    pairs, jaccard = near_duplicates(shingle(texts), 0.6)
    assert len(np.unique(clusters(len(texts), pairs))) == 1
    assert len(pairs) < 50 * len(texts) and (jaccard >= 0.6).all()
    across, _ = near_duplicates(shingle(texts[:1000]), 0.6, other=shingle(texts[1000:]))
    assert len(np.unique(across[:, 0])) == 1000 and len(np.unique(across[:, 1])) == 2000


@pytest.mark.parametrize("threshold", [0.0, -0.5, 1.1, float("nan")])
def test_a_threshold_that_is_no_jaccard_index_is_refused(threshold: float) -> None:
    with pytest.raises(InputError, match="Jaccard"):
        near_duplicates(shingle(["a b c"]), threshold)


def test_clusters_are_connected_components() -> None:
    assert clusters(6, np.array([[0, 3], [3, 5], [1, 2]])).tolist() == [0, 1, 1, 0, 2, 0]
    assert clusters(3, np.empty((0, 2), np.int64)).tolist() == [0, 1, 2]


def test_nothing_is_near_where_no_text_has_words() -> None:
    for texts in ([], ["", "...", ""]):
        pairs, jaccard = near_duplicates(shingle(texts), 0.5)
        assert pairs.shape == (0, 2) and jaccard.shape == (0,)
        pairs, _ = near_duplicates(shingle(texts), 0.5, other=shingle(["a b c"]))
        assert pairs.shape == (0, 2)


def test_advbench_repeats_itself() -> None:
    """66 of its 520 goals have a later near-duplicate, a Jaccard index of .5 or more of their word 3-grams."""
    with shared("data/advbench/advbench.csv").open(encoding="utf-8", newline="") as file:
        goals = [row["goal"] for row in csv.DictReader(file)]
    near = {pair for pair, value in exact(goals).items() if value >= 0.5}
    assert len(goals) == 520 and len(near) == 96 and len({first for first, _ in near}) == 66
    pairs, _ = near_duplicates(shingle(goals), 0.5)
    assert {tuple(pair) for pair in pairs.tolist()} == near
    assert len(np.unique(pairs[:, 0])) == 66
