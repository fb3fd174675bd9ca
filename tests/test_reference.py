"""The reference's cache: exact, shared between processes, never believed when damaged or false."""

from __future__ import annotations

import os
import random
import resource
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import contract_of, make_model

from demeanor.errors import StageError
from demeanor.model import find_model, load_tokenizer
from demeanor.tokens import TokenizedPair
from demeanor.train import reference as reference_module
from demeanor.train import train_adapter
from demeanor.train.reference import PairLogps, ReferenceCache, default_folder, reference_key


def make_pairs(number: int, *, seed: int = 0) -> list[TokenizedPair]:
    rng = random.Random(seed)

    def ids(low: int, high: int) -> list[int]:
        return [rng.randrange(10, 8000) for _ in range(rng.randint(low, high))]

    return [TokenizedPair(str(n), ids(20, 30), ids(1, 40), ids(1, 40)) for n in range(number)]


def make_logps(pairs: list[TokenizedPair], *, seed: int = 0) -> list[PairLogps]:
    rng = np.random.default_rng(seed)

    def logps(ids: list[int]) -> np.ndarray:
        return (-10 * rng.random(len(ids))).astype(np.float32)

    return [(logps(pair.chosen_ids), logps(pair.rejected_ids)) for pair in pairs]


def is_same(found: PairLogps | None, expected: PairLogps) -> bool:
    return found is not None and all(
        one.dtype == np.float32 and one.tobytes() == two.tobytes() for one, two in zip(found, expected, strict=True)
    )


def num_found(cache: ReferenceCache, pairs: list[TokenizedPair], logps: list[PairLogps]) -> int:
    """How many are known; those that are must be right."""
    found = cache.find(pairs)
    known = [number for number, values in enumerate(found) if values is not None]
    assert all(is_same(found[number], logps[number]) for number in known)
    return len(known)


# ---------------------------------------------------------------- find and keep


def test_what_is_kept_is_found_exactly(tmp_path: Path) -> None:
    pairs = make_pairs(7)
    logps = make_logps(pairs)
    logps[0][0][0], logps[1][1][0] = -np.inf, -1e-42  # a denormal
    cache = ReferenceCache("key", tmp_path / "not" / "there")
    assert cache.find(pairs) == [None] * 7
    cache.keep(pairs, logps)
    for one in (cache, ReferenceCache("key", tmp_path / "not" / "there")):
        found = one.find([*reversed(pairs), pairs[0]])
        assert all(map(is_same, found, [*reversed(logps), logps[0]]))
    newer = make_logps(pairs[:2], seed=1)
    cache.keep(pairs[:2], newer)
    assert all(map(is_same, cache.find(pairs), newer + logps[2:]))


def test_another_pair_is_unknown(tmp_path: Path) -> None:
    pair = TokenizedPair("1", [5, 6], [7, 8], [9, 10])
    cache = ReferenceCache("key", tmp_path)
    cache.keep([pair], make_logps([pair]))
    others = [
        TokenizedPair("1", [5, 6], [9, 10], [7, 8]),
        TokenizedPair("1", [5], [6, 7, 8], [9, 10]),
        TokenizedPair("1", [5, 6, 7], [8], [9, 10]),
        TokenizedPair("1", [5, 6], [7, 8, 9], [10]),
        TokenizedPair("1", [4, 6], [7, 8], [9, 10]),
    ]
    assert cache.find(others) == [None] * 5
    (found,) = cache.find([TokenizedPair("another id", [5, 6], [7, 8], [9, 10], turns_cut=1)])
    assert is_same(found, make_logps([pair])[0])


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("change", [-1, 1])
def test_an_entry_of_the_wrong_size_is_unknown(side: int, change: int, tmp_path: Path) -> None:
    pairs = make_pairs(3)
    logps = make_logps(pairs)
    wrong = list(logps[1])
    wrong[side] = np.zeros(len(wrong[side]) + change, np.float32)
    cache = ReferenceCache("key", tmp_path)
    cache.keep(pairs, [logps[0], (wrong[0], wrong[1]), logps[2]])
    found = cache.find(pairs)
    assert found[1] is None
    assert is_same(found[0], logps[0])
    assert is_same(found[2], logps[2])


def test_two_keys_do_not_see_each_other(tmp_path: Path) -> None:
    pairs = make_pairs(2)
    one, two = ReferenceCache("one", tmp_path), ReferenceCache("two", tmp_path)
    one.keep(pairs, make_logps(pairs))
    assert two.find(pairs) == [None, None]
    two.keep(pairs, make_logps(pairs, seed=1))
    assert num_found(one, pairs, make_logps(pairs)) == 2
    two.forget()
    assert two.find(pairs) == [None, None]
    assert num_found(one, pairs, make_logps(pairs)) == 2
    two.keep(pairs, make_logps(pairs, seed=2))
    assert num_found(ReferenceCache("two", tmp_path), pairs, make_logps(pairs, seed=2)) == 2


def test_keep_stores_all_or_nothing(tmp_path: Path) -> None:
    pairs = make_pairs(3)
    cache = ReferenceCache("key", tmp_path)
    with pytest.raises(ValueError, match="shorter"):
        cache.keep(pairs, make_logps(pairs)[:2])
    assert cache.find(pairs) == [None] * 3


WRITER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_reference import make_logps, make_pairs
from demeanor.train.reference import ReferenceCache
number = int(sys.argv[3])
pairs = make_pairs(60)
logps = make_logps(pairs)
own = range(number * 20, number * 20 + 40)  # the middle third is written by both
print("ready", flush=True)
start = float(sys.stdin.readline())
while time.time() < start:
    pass
began = time.time()
cache = ReferenceCache("key", Path(sys.argv[2]))
for n in own:
    cache.keep([pairs[n]], [logps[n]])
    assert cache.find([pairs[n]]) != [None]
    time.sleep(0.002)  # else one of them writes it all while the other waits
print(began, time.time())
"""


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(Path(__file__).parent), str(tmp_path)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    writers = [subprocess.Popen([*command, str(number)], **pipes) for number in range(2)]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    start = time.time() + 0.1
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write(f"{start}\n")
        writer.stdin.flush()
    spans = [tuple(map(float, writer.communicate(timeout=60)[0].split())) for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0]
    assert max(began for began, _ in spans) < min(ended for _, ended in spans)  # they did meet
    pairs = make_pairs(60)
    assert num_found(ReferenceCache("key", tmp_path), pairs, make_logps(pairs)) == 60


# ---------------------------------------------------------------- damage, and no room


def truncated(share: float) -> Any:
    return lambda data: data[: int(share * len(data))]


DAMAGES = {
    "garbage": lambda data: b"no database " * 1000,
    "a few bytes": lambda data: b"no",
    "empty": truncated(0.0),
    "cut in the first page": truncated(0.01),
    "cut to a third": truncated(0.3),
    "cut by a tenth": truncated(0.9),
    "cut at the end of a page": lambda data: data[: 4096 * 10],
    "header alone": lambda data: data[:100] + b"\xff" * (len(data) - 100),
    "hole": lambda data: data[:40_000] + b"\xff" * 20_000 + data[60_000:],
    "cut by a hundredth": truncated(0.99),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_replaced(damage: str, tmp_path: Path) -> None:
    pairs = make_pairs(400)
    logps = make_logps(pairs)
    cache = ReferenceCache("key", tmp_path)
    cache.keep(pairs, logps)
    whole = cache.path.read_bytes()
    assert len(whole) > 100_000
    cache.path.write_bytes(DAMAGES[damage](whole))
    again = ReferenceCache("key", tmp_path)
    assert num_found(again, pairs, logps) < 400
    again.keep(pairs, logps)
    assert num_found(again, pairs, logps) == 400
    assert num_found(ReferenceCache("key", tmp_path), pairs, logps) == 400


def test_a_damaged_page_does_not_stop_the_search(tmp_path: Path) -> None:
    pairs = make_pairs(400)
    cache = ReferenceCache("key", tmp_path)
    cache.keep(pairs, make_logps(pairs))
    cache.path.write_bytes(DAMAGES["hole"](cache.path.read_bytes()))
    assert num_found(ReferenceCache("key", tmp_path), pairs, make_logps(pairs)) < 400


def test_a_file_that_another_process_writes_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = make_pairs(3)
    cache = ReferenceCache("key", tmp_path)
    cache.keep(pairs, make_logps(pairs))
    other = sqlite3.connect(cache.path)
    other.execute("begin exclusive")
    connect = sqlite3.connect
    monkeypatch.setattr(reference_module.sqlite3, "connect", lambda path, **_: connect(path, timeout=0.05))
    try:
        late = ReferenceCache("key", tmp_path)
    except StageError:
        late = None
    other.rollback()
    late = late or ReferenceCache("key", tmp_path)
    assert num_found(late, pairs, make_logps(pairs)) == 3


def test_forget_empties_the_file(tmp_path: Path) -> None:
    pairs = make_pairs(3)
    cache = ReferenceCache("key", tmp_path)
    cache.keep(pairs, make_logps(pairs))
    cache.forget()
    assert cache.find(pairs) == [None] * 3
    assert ReferenceCache("key", tmp_path).find(pairs) == [None] * 3
    cache.keep(pairs[:1], make_logps(pairs)[:1])
    assert num_found(ReferenceCache("key", tmp_path), pairs, make_logps(pairs)) == 1


@pytest.mark.parametrize("obstacle", ["a file", "a file above", "a folder of the file's name", "no permission"])
def test_a_folder_that_cannot_be_used_is_told(obstacle: str, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    if obstacle == "a folder of the file's name":
        (folder / "reference-key.sqlite").mkdir(parents=True)
    elif obstacle == "no permission":
        if os.geteuid() == 0:
            pytest.skip("root may write everywhere")
        folder.mkdir(mode=0o500)
    else:
        folder.write_text("not a folder")
    with pytest.raises(StageError, match="set DEMEANOR_CACHE to a folder") as caught:
        ReferenceCache("key", folder / "below" if obstacle == "a file above" else folder)
    assert str(folder) in str(caught.value)


@contextmanager
def no_room() -> Iterator[None]:
    """No file can grow, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_room_for_a_new_file(tmp_path: Path) -> None:
    with no_room(), pytest.raises(StageError, match="DEMEANOR_CACHE"):
        ReferenceCache("key", tmp_path)


def test_no_room_for_more(tmp_path: Path) -> None:
    pairs = make_pairs(40)
    logps = make_logps(pairs)
    cache = ReferenceCache("key", tmp_path)
    cache.keep(pairs[:20], logps[:20])
    with no_room(), pytest.raises(StageError, match="DEMEANOR_CACHE"):
        cache.keep(pairs[20:], logps[20:])
    assert num_found(ReferenceCache("key", tmp_path), pairs, logps) == 20


# ---------------------------------------------------------------- where, and under which key


def test_the_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("DEMEANOR_CACHE", str(tmp_path / "own"))
    assert default_folder() == tmp_path / "own"
    assert ReferenceCache("key").path == tmp_path / "own" / "reference-key.sqlite"
    monkeypatch.setenv("DEMEANOR_CACHE", "~/own")
    assert default_folder() == tmp_path / "home" / "own"
    for unset in (lambda: monkeypatch.setenv("DEMEANOR_CACHE", ""), lambda: monkeypatch.delenv("DEMEANOR_CACHE")):
        unset()
        assert default_folder() == tmp_path / "xdg" / "demeanor"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == tmp_path / "home" / ".cache" / "demeanor"


def test_the_key_changes_with_each_part() -> None:
    parts: dict[str, Any] = {"model_fingerprint": "ab", "template": "cd", "bf16": False, "device": "cpu"}
    changes: list[dict[str, Any]] = [
        {},
        {"model_fingerprint": "ac"},
        {"template": "ce"},
        {"bf16": True},
        {"device": "cuda"},
        {"model_fingerprint": "abc", "template": "d"},  # the same letters, another border
    ]
    keys = [reference_key(**{**parts, **change}) for change in changes]
    assert len(set(keys)) == len(keys)
    assert reference_key(**parts) == keys[0]


# ---------------------------------------------------------------- in training


class Bench:
    """Trainings of one step that share a cache."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model, self.folder, self.runs = model, folder, 0
        self.pairs = make_pairs(6)

    def train(self, pairs: list[TokenizedPair] | None = None, **changes: Any) -> tuple[list[str], dict[str, Any]]:
        """The lines about the reference, and the summary."""
        self.runs += 1
        template = changes.pop("chat_template", None)
        model = changes.pop("model", self.model)
        training = {"max_steps": 1, "per_device_train_batch_size": 4, "bf16": False, "logging_steps": 1, **changes}
        contract = contract_of(model=str(model), training=training, chat_template=template)
        source = find_model(str(model))
        lines: list[str] = []
        self.told: list[tuple[int, int]] = []
        summary = train_adapter(
            source,
            load_tokenizer(source, contract),
            self.pairs if pairs is None else pairs,
            contract,
            checkpoints=self.folder / f"checkpoints-{self.runs}",
            out=self.folder / f"adapter-{self.runs}",
            key="key",
            referred=lambda done, total: self.told.append((done, total)),
            say=lines.append,
        )
        return [line for line in lines if line.startswith("reference")], summary

    def tables(self) -> list[Path]:
        return sorted((self.folder / "cache").glob("*.sqlite"))


def counted(known: int, computed: int) -> str:
    return f"reference: {known} of {known + computed} pairs from the cache, {computed} computed"


@pytest.fixture(scope="module")
def first(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The cache after a first training, and that training's summary."""
    bench = Bench(llama, tmp_path_factory.mktemp("first"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("DEMEANOR_CACHE", str(bench.folder / "cache"))
        lines, summary = bench.train()
    assert lines == [counted(0, 6)]
    assert bench.told == [(6, 6)]
    assert len(bench.tables()) == 1
    return bench.folder / "cache", summary


@pytest.fixture
def bench(llama: Path, first: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """After the first training."""
    shutil.copytree(first[0], tmp_path / "cache")
    monkeypatch.setenv("DEMEANOR_CACHE", str(tmp_path / "cache"))
    return Bench(llama, tmp_path)


def assert_same_training(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["step0_margin_nats"] == expected["step0_margin_nats"]
    for name in ("loss", "logps/chosen", "rewards/margins", "grad_norm"):
        assert found["log"][0][name] == expected["log"][0][name], name


def test_a_second_training_finds_the_reference(bench: Bench, first: tuple[Path, dict[str, Any]]) -> None:
    lines, other = bench.train(beta=0.5, learning_rate=1e-3, loss_type="ipo")
    assert lines == [counted(6, 0)]
    assert other["log"][0]["loss"] != pytest.approx(first[1]["log"][0]["loss"], rel=0.1)
    lines, again = bench.train()
    assert lines == [counted(6, 0)]
    assert_same_training(again, first[1])
    assert len(bench.tables()) == 1
    assert bench.train(bench.pairs + make_pairs(3, seed=1))[0] == [counted(6, 3)]
    assert bench.train(reference="adapter-off")[0] == []


def test_what_changes_the_reference_computes_it_anew(bench: Bench, tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {"model": make_model("llama", tmp_path / "other", seed=1)},
        {"chat_template": "plain"},
        {"engine": "padded"},
        {"bf16": True},
    ]
    for number, change in enumerate(changes, start=2):
        assert bench.train(**change)[0] == [counted(0, 6)], change
        assert len(bench.tables()) == number
    assert bench.train()[0] == [counted(6, 0)]


def tamper(table: Path, change: Any, rows: slice = slice(None)) -> None:
    connection = sqlite3.connect(table)
    found = connection.execute("select pair, chosen, rejected from logps order by rowid").fetchall()
    assert found
    with connection:
        for pair, *blobs in found[rows]:
            new = [change(np.frombuffer(blob, np.float32)).astype(np.float32).tobytes() for blob in blobs]
            connection.execute("update logps set chosen = ?, rejected = ? where pair = ?", (*new, pair))
    connection.close()


@pytest.mark.parametrize(
    ("change", "rows"),
    [
        pytest.param(lambda values: values - 1, slice(None), id="shifted by a nat"),
        pytest.param(lambda values: values * np.nan, slice(None), id="not a number"),
        pytest.param(lambda values: values[::-1] - 0.01, slice(3), id="half of them, a little"),
        pytest.param(lambda values: values * np.nan, slice(1, 2), id="one not a number"),
    ],
)
def test_a_false_reference_is_found_out(
    change: Any, rows: slice, bench: Bench, first: tuple[Path, dict[str, Any]]
) -> None:
    (table,) = bench.tables()
    tamper(table, change, rows)
    lines, found = bench.train()
    assert len(lines) == 2
    assert f"{table} disagrees with the model by" in lines[0]
    assert lines[1] == counted(0, 6)
    assert_same_training(found, first[1])
    assert bench.train()[0] == [counted(6, 0)]  # the file is good again


def test_a_false_file_is_forgotten_as_a_whole(bench: Bench) -> None:
    (table,) = bench.tables()
    tamper(table, lambda values: values - 1)
    lines, _ = bench.train(bench.pairs[:4])
    assert "disagrees" in lines[0]
    assert bench.train()[0] == [counted(4, 2)]


def test_rounding_is_no_disagreement(bench: Bench) -> None:
    (table,) = bench.tables()
    tamper(table, lambda values: values + np.float32(1e-5))
    assert bench.train()[0] == [counted(6, 0)]


def test_a_damaged_file_does_not_stop_a_training(bench: Bench) -> None:
    (table,) = bench.tables()
    table.write_bytes(b"no database " * 1000)
    assert bench.train()[0] == [counted(0, 6)]
    assert bench.train()[0] == [counted(6, 0)]


def test_a_folder_that_cannot_be_written_costs_the_cache_and_not_the_run(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    monkeypatch.setenv("DEMEANOR_CACHE", str(in_the_way / "below"))
    source, contract = find_model(str(llama)), contract_of()
    said: list[str] = []
    train_adapter(
        source, load_tokenizer(source, contract), make_pairs(4), contract,
        checkpoints=tmp_path / "checkpoints", out=tmp_path / "adapter", key="k", say=said.append,
    )  # fmt: skip
    assert any(line.startswith("reference: not kept for later runs") and "DEMEANOR_CACHE" in line for line in said)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
