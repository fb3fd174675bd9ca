"""The files: how rows are packed and written is found by content, and every fault gets one line."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from demeanor.errors import PairsError
from demeanor.pairs import decode, read_pairs, read_rows
from demeanor.pairs.decode import decode_file
from demeanor.pairs.splits import split_of

SRC = Path(__file__).resolve().parents[1] / "src"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
ROWS = [
    {"prompt": f"Hi {n}", "chosen": "Hello, né \u2028 日本\nthere" * (n % 3 + 1), "rejected": '"What", you;\tsay?'}
    for n in range(30)
]


def jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(rows: list[dict[str, str]], delimiter: str = ",") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


WRITTEN: dict[str, Callable[[], bytes]] = {
    "json lines": lambda: jsonl(ROWS),
    "json lines, no newline at the end": lambda: jsonl(ROWS).rstrip(),
    "json lines, CRLF": lambda: jsonl(ROWS).replace(b"\n", b"\r\n"),
    "json lines, blank lines": lambda: b"\n \n" + jsonl(ROWS).replace(b"\n", b"\n\n"),
    "json lines, BOM": lambda: b"\xef\xbb\xbf" + jsonl(ROWS),
    "json lines, escaped": lambda: "\n".join(json.dumps(row) for row in ROWS).encode(),
    "json array": lambda: json.dumps(ROWS).encode(),
    "json array, pretty": lambda: json.dumps(ROWS, indent=2).encode(),
    "json array, a row a line": lambda: b"[\n" + b",\n".join(json.dumps(row).encode() for row in ROWS) + b"\n]\n",
    "json object by split": lambda: json.dumps({"test": [], "train": ROWS}, indent=1).encode(),
    "json object with data": lambda: json.dumps({"version": 1, "data": ROWS}).encode(),
    "csv": lambda: table(ROWS),
    "csv, BOM, blank lines": lambda: b"\xef\xbb\xbf\n" + table(ROWS) + b"\n\n",
    "tsv": lambda: table(ROWS, "\t"),
    "csv with semicolons": lambda: table(ROWS, ";"),
    "parquet": lambda: parquet(ROWS),
}
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
}


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    def write(content: bytes, name: str = "rows.any") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    yield write


def fault(source: str | Path, **options: Any) -> str:
    """The one line that a user sees."""
    with pytest.raises(PairsError) as caught:
        read_pairs(source, **options)
    message = str(caught.value)
    assert "\n" not in message and caught.value.exit_code == 2
    assert message.startswith(str(source)), message
    return message.removeprefix(str(source))


# ---- content, not names


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("written", WRITTEN)
def test_every_way_to_write_rows(write: Callable[..., Path], written: str, packed: str) -> None:
    rows = list(read_rows(write(PACKED[packed](WRITTEN[written]()))))
    assert rows == list(enumerate(ROWS, start=1))


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet", "rows.json", "rows.gz", "rows", "README.md"])
def test_names_decide_nothing(write: Callable[..., Path], name: str) -> None:
    results = [read_pairs(write(content, name)) for content in (gzip.compress(jsonl(ROWS)), table(ROWS), parquet(ROWS))]
    assert results[0] == results[1] == results[2]
    assert (len(results[0].pairs), results[0].source, results[0].pairs[3].row) == (30, name, 4)


def test_one_row_is_a_file(write: Callable[..., Path]) -> None:
    row = {"chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "a"}]}
    row["rejected"] = [row["chosen"][0], {"role": "assistant", "content": "b"}]
    for text in (json.dumps(row), json.dumps(row) + "\n", json.dumps(row, indent=2), json.dumps([row], indent=2)):
        assert len(read_pairs(write(text.encode())).pairs) == 1


def test_message_lists_in_parquet(write: Callable[..., Path]) -> None:
    user, good, bad = ({"role": r, "content": c} for r, c in (("user", "Hi"), ("assistant", "a"), ("assistant", "b")))
    result = read_pairs(write(parquet([{"prompt": [user], "chosen": [good], "rejected": [bad], "score": 0.5}])))
    assert (result.pairs[0].prompt[0].content, result.pairs[0].chosen, result.pairs[0].rejected) == ("Hi", "a", "b")


def test_long_cells_and_ragged_rows_of_a_table(write: Callable[..., Path]) -> None:
    content = table([{"question": "Hi", "chosen": "a" * 300_000, "rejected": "b"}])
    result = read_pairs(write(content + b"only,two\r\none,too,many,cells\r\nHi,a,\r\n"))
    assert len(result.pairs[0].chosen) == 300_000
    assert [(row.row, row.reason) for row in result.dropped] == [
        (2, "not the shape of the file"),
        (3, "not the shape of the file"),
        (4, "empty reply"),
    ]


def test_json_lines_are_streamed(write: Callable[..., Path]) -> None:
    path = write(jsonl(ROWS) + b"{broken\n")
    assert len(read_pairs(path, limit=30).pairs) == 30  # what is not asked for is not looked at
    rows = read_rows(path)
    assert [number for number, _ in (next(rows) for _ in range(30))] == list(range(1, 31))
    with pytest.raises(PairsError, match="line 31"):
        next(rows)


def test_random_tables_come_back(write: Callable[..., Path]) -> None:
    rng = random.Random(0)
    for delimiter in ",\t;" * 10:
        cells = ("".join(rng.choice("ab ,;\t\"\n'é日") for _ in range(rng.randrange(1, 30))) for _ in iter(int, 1))
        rows = [{key: next(cells) for key in ("prompt", "chosen", "rejected")} for _ in range(20)]
        assert [row for _, row in read_rows(write(table(rows, delimiter)))] == rows


def test_a_pipe_can_be_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen([sys.executable, "-c", f"open({str(pipe)!r}, 'wb').write({parquet(ROWS[:2])!r})"]):
        assert len(read_pairs(pipe).pairs) == 2


# ---- folders


def test_a_folder_of_data_files(write: Callable[..., Path], tmp_path: Path) -> None:
    write(jsonl(ROWS[:10]), "set/b.jsonl")
    write(gzip.compress(table(ROWS[10:20])), "set/c/d.csv.gz")
    write(parquet(ROWS[20:]), "set/e.parquet")
    write(b"# About", "set/README.md")
    write(b"{}", "set/dataset_infos.json")
    write(jsonl(ROWS), "set/.cache/f.jsonl")
    result = read_pairs(tmp_path / "set")
    assert [pair.prompt[0].content for pair in result.pairs] == [row["prompt"] for row in ROWS]
    assert [pair.row for pair in result.pairs] == list(range(1, 31))
    assert {pair.source for pair in result.pairs} == {"set"} == {result.source}


def test_a_folder_with_splits(write: Callable[..., Path], tmp_path: Path) -> None:
    write(jsonl(ROWS[:20]), "set/helpful/train.jsonl")
    write(jsonl(ROWS[20:25]), "set/helpful/test.jsonl.gz")
    write(parquet(ROWS[25:]), "set/data/train_prefs-00000-of-00001.parquet")
    assert [len(read_pairs(tmp_path / "set", split=s).pairs) for s in ("train", "test", "train_prefs")] == [20, 5, 5]
    assert fault(tmp_path / "set", split="dev") == ": no split 'dev' -- it has: test, train, train_prefs"


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train.jsonl", "train"),
        ("data/train-00000-of-00002.parquet", "train"),
        ("data/my.set-00000-of-00002.parquet", "my.set"),
        ("val/part_1.json", "validation"),
        ("pairs_dev.csv", "validation"),
        ("EVAL.csv", "test"),
        ("train/test.csv", "test"),
        ("latest.csv", None),
        ("contest/detrained.csv", None),
        ("test1.csv", "test"),
    ],
)
def test_split_of_a_path(path: str, split: str | None) -> None:
    assert split_of(Path(path)) == split


def test_a_folder_without_data(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    assert "holds no data files" in fault(tmp_path)


def test_the_shared_folder_is_a_source() -> None:
    if not (SHARED / "hh-rlhf").exists():
        pytest.skip(f"{SHARED} is absent")
    assert len(read_pairs(SHARED / "hh-rlhf").pairs) == 1992


def test_a_datasets_folder(tmp_path: Path) -> None:
    import datasets

    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": data.select(range(5)), "test": data.select([7, 6])}).save_to_disk(
        str(tmp_path / "two")
    )
    expected = read_pairs_of(ROWS, tmp_path)
    assert [pair.id for pair in read_pairs(tmp_path / "one").pairs] == expected
    assert [pair.id for pair in read_pairs(tmp_path / "two").pairs] == expected[:5]
    result = read_pairs(tmp_path / "two", split="test")
    assert [pair.id for pair in result.pairs] == [expected[7], expected[6]]
    assert (result.source, result.pairs[1].row) == ("two", 2)
    assert fault(tmp_path / "two", split="dev") == ": no split 'dev' -- it has: test, train"
    next((tmp_path / "one").glob("*.arrow")).write_bytes(b"damaged")
    assert "damaged `datasets` folder" in fault(tmp_path / "one")


def read_pairs_of(rows: list[Any], tmp_path: Path) -> list[str]:
    path = tmp_path / "expected.jsonl"
    path.write_bytes(jsonl(rows))
    return [pair.id for pair in read_pairs(path).pairs]


# ---- the Hub


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("Anthropic/hh-rlhf", ("Anthropic/hh-rlhf", None, "train", None)),
        ("org/na.me-1:sub_set", ("org/na.me-1", "sub_set", "train", None)),
        ("org/name@refs/pr/1", ("org/name", None, "train", "refs/pr/1")),
        ("org/name:sub@v1.0", ("org/name", "sub", "train", "v1.0")),
    ],
)
def test_a_hub_id(monkeypatch: pytest.MonkeyPatch, text: str, asked: tuple[Any, ...]) -> None:
    import datasets

    calls = []

    def load_dataset(name: str, subset: str | None, *, split: str, revision: str | None) -> Any:
        calls.append((name, subset, split, revision))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    result = read_pairs(text)
    assert calls == [asked] and len(result.pairs) == 30
    assert result.source == result.pairs[0].source == text


def test_a_hub_set_with_images(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    features = datasets.Features({key: datasets.Value("string") for key in ROWS[0]} | {"image": datasets.Image()})
    data = datasets.Dataset.from_dict({key: [] for key in features}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: data)
    assert fault("org/name") == ": pairs with images, video or sound are not supported -- give text pairs"


def test_a_hub_id_offline(tmp_path: Path) -> None:
    code = (
        "from demeanor.pairs import read_pairs\nfrom demeanor.errors import PairsError\n"
        "try: read_pairs('demeanor-tests/no-such-set')\nexcept PairsError as error: print(error)"
    )
    env = {**os.environ, "PYTHONPATH": str(SRC), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("demeanor-tests/no-such-set: no such file or folder, and not to be had from the Hub")
    assert done.stdout.rstrip().endswith("HF_HUB_OFFLINE is set: unset it, or give a local copy")
    assert done.stdout.count("\n") == 1


# ---- faults


@pytest.mark.parametrize(
    "name", ["missing.jsonl", "a/b/missing", "org/rows.csv", "org/rows.jsonl.gz", "missing", "./a/b"]
)
def test_missing_files_are_not_looked_for_on_the_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)  # importing it would fail
    assert fault(name).startswith(": no such file or folder -- check the path")
    assert fault(tmp_path / name).startswith(": no such file or folder -- check the path")


def test_a_misspelt_file_is_guessed(write: Callable[..., Path]) -> None:
    path = write(jsonl(ROWS), "pairs.jsonl.gz")
    assert fault(path.with_name("pair.jsonl.gz")).endswith(f"did you mean {path}?")


def test_truncated_packed_files(write: Callable[..., Path]) -> None:
    rng = random.Random(2)
    rows = [
        {"prompt": f"{rng.random()}", "chosen": f"{rng.random()}", "rejected": f"{rng.random()}"} for _ in range(5000)
    ]
    for name in ("gzip", "xz", "bzip2"):
        packed = PACKED[name](jsonl(rows))
        found = []
        for share in (0.01, 0.5, 0.999):
            message = fault(write(packed[: int(len(packed) * share)]))
            assert message.startswith(": ends early; ") and message.endswith(" rows were readable -- fetch it again")
            found.append(int(message.split()[3].replace(",", "")))
        assert 0 <= found[0] <= found[1] <= found[2] < 5000
        if name == "gzip":
            assert found[0] < 100 < 2000 < found[1] < 3000 < 4900 < found[2]


def test_damaged_packed_files(write: Callable[..., Path]) -> None:
    for name in ("gzip", "xz", "bzip2"):
        packed = bytearray(PACKED[name](jsonl(ROWS * 100)))
        packed[-6] ^= 0xFF  # in gzip: the checksum
        message = fault(write(bytes(packed)))
        assert "damaged" in message or "cannot be read" in message or "ends early" in message, message


@pytest.mark.parametrize("size", [4, 100, -20, -4])
def test_truncated_parquet(write: Callable[..., Path], size: int) -> None:
    assert "damaged after 0 rows, or no Parquet" in fault(write(parquet(ROWS)[:size]))


@pytest.mark.parametrize("name", ["text", "date"])
def test_parquet_that_holds_no_text_or_no_date(write: Callable[..., Path], name: str) -> None:
    """Whole for Arrow, and yet no values of Python: a text that is not UTF-8, a day of the year 5,881,580."""
    import pyarrow
    import pyarrow.parquet

    columns: dict[str, Any] = {key: [row[key] for row in ROWS] * 20 for key in ROWS[0]}
    if name == "text":
        sound = pyarrow.array([text.encode() for text in columns["chosen"][:-1]] + [b"half \xff"])
        columns["chosen"] = pyarrow.StringArray.from_buffers(len(sound), *sound.buffers()[1:])
    else:
        columns["day"] = pyarrow.array([0] * 599 + [2**31 - 1], pyarrow.int32()).cast(pyarrow.date32())
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    assert ": holds a value that cannot be read, after 512 rows: " in fault(write(file.getvalue()))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ": is empty"),
        (b" \n\n", ": is empty"),
        (b"\xef\xbb\xbf", ": is empty"),
        (gzip.compress(b"", mtime=0), ": is empty"),
        (b"[]", ": holds no rows"),
        (b"prompt,chosen,rejected\n", ": holds no rows"),
        (b'{"a": 1}\n{"a": \n{"a": 3}\n', ", line 2: is not JSON: "),
        (b'{"a": \n{"a": 2}\n', ", line 1: is not JSON: "),
        (b'\n\n{"a": 1}\n\n{"a" 2}\n', ", line 5: is not JSON: "),
        (
            b'{"a": 1}\n{"a": "cut sho',
            ", line 2: is not JSON: Unterminated string starting at in column 7 -- it ends early",
        ),
        (b'[{"a": 1},\n {"a": 2},\n', ", line 3: is not JSON: "),
        (b'[{"a": 1},\n {"a" 2}]', ", line 2: is not JSON: Expecting ':' delimiter in column 7"),
        (b'{\n"a": 1,\n"b" 2\n}', ", line 3: is not JSON: "),
        (b"[" * 100_000, ", line 1: is not JSON that can be read: "),
        (b'{"a": ' + b"1" * 10_000 + b"}", "is not JSON that can be read: "),
        (b'{"test": [{"a": 1}], "validation": []}', ": no split 'train' -- it has: test, validation"),
        (b'["text", "more"]', ': no recognisable shape; row 1 has no columns: "text"'),
        (b'{"a": "\xff"}\n', ", line 1: is not UTF-8 text (byte 0xff in column 8) -- save the file as UTF-8"),
        (jsonl(ROWS[:3]) + "é".encode("latin-1"), ", line 4: is not UTF-8 text (byte 0xe9 in column 1)"),
        (b"prompt,chosen,rejected\na,b,\xfc\n", ", line 2: is not UTF-8 text"),
        (jsonl(ROWS[:3]).decode().encode("utf-16"), ": is UTF-16 text -- save it as UTF-8"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR", ": is not text -- give JSON lines"),
        (b"PK\x03\x04...", ": is a zip archive -- unpack it"),
        (b"\n <!DOCTYPE html><html>", ": is a web page -- download the raw file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", ": is a pointer of Git LFS"),
        (b"PAR1 and then nothing", ": is damaged after 0 rows, or no Parquet"),
        (b'a,b\n1,2\n3,"x\ny\n', ", line 3: is neither JSON nor a table with a header row: unexpected end of data"),
        (b'a,b\n3,"x\ny\n', ", line 2: is neither JSON nor a table with a header row: unexpected end of data"),
        (b'"a,b\n1,2\n', ", line 1: is neither JSON nor a table with a header row"),
        (b'\na,b\n"x\ny",2\n3,"x"y\n', ", line 5: is neither JSON nor a table with a header row"),
        (b"\n" * 10_001 + b'{"a": 1}\n', ": begins with more than 10,000 blank lines"),
        (b'{"a": 1}\n' + b"\n" * 10_001 + b'{"a": 1}\n', ": holds more than 10,000 blank lines"),
        (b" " * 100_000 + b'\n{"a": 1}\n', ": begins with"),
        (b"prompt,chosen,prompt\na,b,c\n", ": the header names prompt twice -- rename one"),
        (b"Once upon a time, there was.\nThe end.\n", ": no recognisable shape; row 1 has no columns"),
    ],
)
def test_each_fault_has_one_line(write: Callable[..., Path], content: bytes, words: str) -> None:
    message = fault(write(content))
    assert words in message
    if words.startswith((":", ",")):
        assert message.startswith(words)


def test_other_faults(tmp_path: Path) -> None:
    with pytest.raises(PairsError, match="cannot be read"):
        read_pairs("x" * 5000)
    (tmp_path / "rows").write_text('{"a": 1}\n5\n')
    with pytest.raises(PairsError, match="row 2 has no named columns: 5"):
        list(read_rows(tmp_path / "rows"))


def test_a_file_without_permission(monkeypatch: pytest.MonkeyPatch, write: Callable[..., Path]) -> None:
    path = write(jsonl(ROWS))

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)  # chmod does not stop root
    assert fault(path) == ": cannot be read: Permission denied"


def test_nothing_heavy_is_imported_for_text(write: Callable[..., Path]) -> None:
    code = (
        "import sys; from demeanor.pairs import read_pairs; read_pairs(sys.argv[1]);"
        "print([name for name in ('torch', 'datasets', 'pyarrow', 'numpy', 'transformers') if name in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": str(SRC)}
    command = [sys.executable, "-c", code, str(write(jsonl(ROWS)))]
    assert subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout == "[]\n"


# --- larger than memory, or made to hurt


@pytest.mark.parametrize("chunk", [16, 17, 64, 1 << 16])
def test_an_array_is_read_as_a_stream(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(decode, "_CHUNK", chunk)
    values: list[Any] = [
        {"a": "x" * 300, "b": [1, 2.5e10, None, "\u00e9\n\u2028\\"]},
        12345678901234567890,
        "",
        [],
        True,
    ]
    values += [{"n": n, "text": "word " * n} for n in range(40)]
    for text in (json.dumps(values), json.dumps(values, indent=2), json.dumps(values, ensure_ascii=False) + "\n\n"):
        assert list(decode_file(write(text.encode()))) == values
    for bad in (text[:-5], text.replace("12345678901234567890,", "12345678901234567890", 1), text + "x"):
        with pytest.raises(PairsError, match="is not JSON"):
            list(decode_file(write(bad.encode())))


def test_a_row_has_a_greatest_length(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAX_ROW", 1000)
    monkeypatch.setattr(decode, "MAX_OBJECT", 3000)
    monkeypatch.setattr(decode, "_CHUNK", 64)
    row = {"prompt": "Hi", "chosen": "\u00e9" * 400, "rejected": "b"}
    line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
    assert list(decode_file(write(line * 20))) == [row] * 20
    long = json.dumps({**row, "chosen": "\u00e9" * 5000}, ensure_ascii=False).encode()
    assert "line 2: is longer than" in fault(write(line + long + b"\n" + line))
    assert "item 2: is longer than" in fault(write(b"[" + line + b"," + long + b"]"))
    assert "is one JSON object of more than" in fault(write(long))
    assert "line 2: is longer than" in fault(write(b"prompt,chosen,rejected\na,b," + b"c" * 5000 + b"\n"))
    assert "field larger than field limit" in fault(write(b'prompt,chosen,rejected\na,b,"' + b"c\n" * 3000 + b'"\n'))
    array = json.dumps([row] * 50, ensure_ascii=False).encode()  # one line, longer than a row may be
    assert list(decode_file(write(array))) == [row] * 50


def test_hostile_rows_are_dropped_with_a_reason(write: Callable[..., Path]) -> None:
    good = b'{"prompt": "Hi", "chosen": "a", "rejected": "b"}\n'
    rows = [
        b'{"prompt": "Hi", "chosen": NaN, "rejected": "b"}',
        b'{"prompt": "Hi", "chosen": "a", "rejected": "b", "confidence": Infinity}',
        b'{"prompt": ' + b"[" * 400 + b"]" * 400 + b', "chosen": "a", "rejected": "b"}',
        b'{"prompt": {"role": ' + b'{"a":' * 400 + b"1" + b"}" * 400 + b'}, "chosen": "a", "rejected": "b"}',
        b'{"instruction": "other", "output": ["a", "b"]}',
        b"null",
        b"[1, 2]",
        b"{}",
    ]
    result = read_pairs(write(good * 30 + b"\n".join(rows) + b"\n"))
    assert len(result.pairs) == 30
    assert len(result.dropped) == len(rows)
