"""Pairs on disk are the pairs that were read, from any process, block by block."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from demeanor.errors import PairsError
from demeanor.pairs import PairStore, read_pairs


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


def test_of_rows_that_were_read_already(tmp_path: Path) -> None:
    result = read_pairs(write(tmp_path / "one.jsonl", 25, bad=2))
    (tmp_path / "store").mkdir()
    store = PairStore.of([*result.pairs, *result.dropped], tmp_path / "store")
    assert list(store) == list(result.pairs) and store.sources == {"one.jsonl": 27} and store.dropped.total() == 2


def test_nothing_named(tmp_path: Path) -> None:
    with pytest.raises(PairsError, match="no pairs were named"):
        PairStore.collect([], tmp_path)
