"""Pairs on disk are the pairs that were read, from any process, block by block."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from demeanor.errors import PairsError
from demeanor.pairs import PairStore, PairView, read_pairs


def write(path: Path, num: int, bad: int = 0) -> Path:
    rows = [{"prompt": f"Hi {n}\u2028\n", "chosen": f"é{n}", "rejected": "b", "behaviour": "tone"} for n in range(num)]
    rows += [{"prompt": "Hi", "chosen": "same", "rejected": "same"}] * bad
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def test_it_holds_what_was_read(tmp_path: Path) -> None:
    files = [write(tmp_path / "one.jsonl", 30, bad=7), write(tmp_path / "two.jsonl", 21)]
    store = PairStore.collect(files, tmp_path)
    expected = [pair for file in files for pair in read_pairs(file).pairs]
    assert list(store) == expected and len(store) == 51
    assert store.block(10, 40) == expected[10:40] == store[10:40]
    assert store[-1] == expected[-1] and store[40:10:-3] == expected[40:10:-3]
    with pytest.raises(IndexError):
        store[51]
    assert list(store.blocks(20)) == [(0, 20), (20, 40), (40, 51)]
    assert store.sources == {"one.jsonl": 37, "two.jsonl": 21}
    (reason,) = store.dropped
    assert store.dropped[reason] == 7 and len(store.examples[reason]) == 5 and len(list(store.all_dropped())) == 7
    again = pickle.loads(pickle.dumps(store))
    assert again.block(0, 51) == expected


def test_long_pairs_make_short_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("demeanor.pairs.store.BLOCK_BYTES", 3000)
    sizes = [100] * 9 + [5000, 100, 2000, 2000, 100]
    rows = [{"prompt": f"Hi {n}", "chosen": "a" * size, "rejected": "b"} for n, size in enumerate(sizes)]
    (tmp_path / "one.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = PairStore.collect([tmp_path / "one.jsonl"], tmp_path)
    assert list(store.blocks(500)) == [(0, 8), (8, 9), (9, 10), (10, 12), (12, 14)]
    assert list(store.blocks(6)) == [(0, 6), (6, 9), (9, 10), (10, 12), (12, 14)]
    view = PairView(store, np.array([0, 1, 8, 10, 11, 13]), {})  # what it skips is read too
    assert list(view.blocks(500)) == [(0, 2), (2, 3), (3, 5), (5, 6)]


def test_nothing_named(tmp_path: Path) -> None:
    with pytest.raises(PairsError, match="no pairs were named"):
        PairStore.collect([], tmp_path)


def test_files_of_one_name_are_two_sources(tmp_path: Path) -> None:
    """As all parts of hh-rlhf are: mixed up, their opposite biases would cancel out."""
    for name in ("harmless/v1", "helpful/v1", "helpful/v2"):
        (tmp_path / name).mkdir(parents=True)
    files = [write(tmp_path / name / "train.jsonl", 3) for name in ("harmless/v1", "helpful/v1", "helpful/v2")]
    other = write(tmp_path / "other.jsonl", 3, bad=1)
    store = PairStore.collect([*files, other, other], tmp_path)
    names = ["harmless/v1/train.jsonl", "helpful/v1/train.jsonl", "v2/train.jsonl", "other.jsonl"]
    assert store.sources == dict(zip(names, (3, 3, 3, 8), strict=True)) and list(store.shapes) == names
    assert [pair.source for pair in store[::3]] == [*names, "other.jsonl"]
    assert {row.source for row in store.all_dropped()} == {"other.jsonl"}


def test_an_empty_name_is_not_the_folder_one_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write(tmp_path / "one.jsonl", 3).parent)
    with pytest.raises(PairsError, match="the name is empty"):
        PairStore.collect([""], tmp_path)


def test_a_set_beyond_memory_is_refused_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("demeanor.pairs.store.MAX_PAIRS", 20)
    file = write(tmp_path / "one.jsonl", 1000)
    with pytest.raises(PairsError, match=r"one.jsonl: more than 20 pairs .* -- give --limit"):
        PairStore.collect([file], tmp_path)
    assert len((tmp_path / "pairs.jsonl").read_bytes().splitlines()) == 21
    assert len(PairStore.collect([file], tmp_path, limit=20)) == 20
