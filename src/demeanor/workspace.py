"""The run folder: the only file that knows file names; atomic writes, the manifest, and what may be skipped.

    contract.yaml manifest.json pairs/{train,heldout}.jsonl dropped.jsonl probes.jsonl checkpoints/ adapter/ training.json
    scores/{before,after}.jsonl replies/{before,after}.jsonl verdict.json report.html model/ release.json

`manifest.json` records for each stage the digest of its inputs and the SHA-256 of each file it wrote. A stage whose
inputs are unchanged is not run again; when one of its files was altered meanwhile, the run is refused with the name.
Every file is written aside, synced and renamed, so that a killed process leaves the old one or the new one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from demeanor.contract import Contract, dump_contract, parse_contract
from demeanor.errors import RunFolderError, one_line
from demeanor.records import content_id

FORMAT = 1  # of the run folder; a folder of another format is refused
STAGES = ("read", "before", "train", "after", "prove", "report", "release")


class Workspace:
    """One run folder. Nothing is created until something is written."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def __str__(self) -> str:
        return str(self.folder)

    # what lies where
    contract_file = property(lambda self: self.folder / "contract.yaml")
    manifest_file = property(lambda self: self.folder / "manifest.json")
    train_pairs = property(lambda self: self.folder / "pairs" / "train.jsonl")
    heldout_pairs = property(lambda self: self.folder / "pairs" / "heldout.jsonl")
    dropped = property(lambda self: self.folder / "dropped.jsonl")
    probes = property(lambda self: self.folder / "probes.jsonl")
    checkpoints = property(lambda self: self.folder / "checkpoints")
    adapter = property(lambda self: self.folder / "adapter")
    training = property(lambda self: self.folder / "training.json")
    verdict = property(lambda self: self.folder / "verdict.json")
    report = property(lambda self: self.folder / "report.html")
    model = property(lambda self: self.folder / "model")
    release = property(lambda self: self.folder / "release.json")

    def scores(self, side: str) -> Path:
        return self.folder / "scores" / f"{side}.jsonl"

    def replies(self, side: str) -> Path:
        return self.folder / "replies" / f"{side}.jsonl"

    def partial(self, side: str) -> Path:
        """Measured chunks of a stage that has not finished."""
        return self.folder / "scores" / f"{side}.partial.jsonl"

    # opening

    @classmethod
    def open(cls, folder: str | Path) -> Workspace:
        """A run folder that exists.

        Raises:
            RunFolderError: there is none, or it is of another format.
        """
        workspace = cls(folder)
        if not workspace.contract_file.is_file():
            raise RunFolderError("not a run folder (no contract.yaml)", where=str(folder), remedy="`demeanor run` makes one")
        workspace.manifest()
        return workspace

    def contract(self) -> Contract:
        """The contract that the run was started with; its paths are absolute."""
        return parse_contract(self.contract_file.read_text("utf-8"), str(self.contract_file))

    def start(self, contract: Contract) -> None:
        """Create the folder when needed and store the contract.

        Raises:
            RunFolderError: it cannot be written, or holds something that is no run.
        """
        folder = self.folder
        if folder.exists() and not folder.is_dir():
            raise RunFolderError("is a file, not a folder", where=str(folder), remedy="give another --out")
        foreign = folder.is_dir() and any(folder.iterdir()) and not self.contract_file.exists()
        if foreign:
            raise RunFolderError("holds files that are not a run's", where=str(folder), remedy="give an empty or new --out")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-"):
                pass
            self.write_text(self.contract_file, dump_contract(contract))
        except OSError as error:
            raise RunFolderError(
                f"cannot be written: {error.strerror or one_line(error)}", where=str(folder), remedy="give another --out"
            ) from None

    # writing and reading

    @contextmanager
    def writing(self, path: Path) -> Iterator[Path]:
        """A path beside `path` to write to; it is synced and takes `path`'s name when the block ends well."""
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.aside")
        _remove(aside)
        yield aside
        if aside.is_dir():
            for file in sorted(aside.rglob("*")):
                if file.is_file():
                    _sync(file)
            old = path.with_name(f".{path.name}.old")
            _remove(old)
            if path.exists():
                path.rename(old)
            aside.rename(path)
            _remove(old)
        else:
            _sync(aside)
            os.replace(aside, path)
        _sync(path.parent)

    def write_text(self, path: Path, text: str) -> None:
        with self.writing(path) as aside:
            aside.write_text(text, "utf-8")

    def write_json(self, path: Path, data: Any) -> None:
        self.write_text(path, json.dumps(data, ensure_ascii=False, indent=1, allow_nan=False) + "\n")

    def write_records(self, path: Path, records: Iterable[Any]) -> None:
        """One JSON object a line."""
        with self.writing(path) as aside, aside.open("w", encoding="utf-8") as file:
            for record in records:
                file.write(json.dumps(record.to_json(), ensure_ascii=False, allow_nan=False) + "\n")

    def read_json(self, path: Path) -> Any:
        try:
            return json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            raise self._missing(path) from None
        except ValueError as error:
            raise RunFolderError(f"damaged: {one_line(error)}", where=str(path), remedy="delete it and run again") from None

    def read_records(self, path: Path, record: Callable[[dict[str, Any]], Any]) -> list[Any]:
        try:
            with path.open(encoding="utf-8") as file:
                return [record(json.loads(line)) for line in file]
        except FileNotFoundError:
            raise self._missing(path) from None
        except (ValueError, TypeError, KeyError) as error:
            raise RunFolderError(f"damaged: {one_line(error)}", where=str(path), remedy="delete it and run again") from None

    def _missing(self, path: Path) -> RunFolderError:
        return RunFolderError(f"has no {path.relative_to(self.folder)} yet", where=str(self), remedy="run the stage before it")

    # the manifest

    def manifest(self) -> dict[str, Any]:
        """`{"format", "stages": {name: {"inputs", "outputs", ...}}}`; empty when nothing was done yet."""
        if not self.manifest_file.exists():
            return {"format": FORMAT, "stages": {}}
        data = self.read_json(self.manifest_file)
        if data.get("format") != FORMAT:
            raise RunFolderError(
                f"is of format {data.get('format')}, this version reads {FORMAT}", where=str(self), remedy="start a new run"
            )
        return data  # type: ignore[no-any-return]

    def stage(self, name: str, inputs: dict[str, Any], work: Callable[[], dict[str, Any] | None], *outputs: Path) -> bool:
        """Do `work` unless it was done with the same `inputs`, then record it. True when it was done now.

        Args:
            name: one of STAGES.
            inputs: whatever changes the result, as JSON.
            work: writes `outputs`; what it returns is kept in the manifest beside them.

        Raises:
            RunFolderError: an output of an unchanged stage was altered by somebody.
        """
        if self.is_done(name, inputs):
            return False
        started = time.time()
        details = work() or {}
        manifest = self.manifest()
        manifest["stages"][name] = {
            "inputs": inputs,
            "inputs_sha256": digest(inputs),
            "outputs": {str(file.relative_to(self.folder)): file_sha256(file) for file in _files(outputs)},
            "seconds": round(time.time() - started, 2),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **details,
        }
        self.write_json(self.manifest_file, manifest)
        return True

    def is_done(self, name: str, inputs: dict[str, Any]) -> bool:
        """Was the stage done with these inputs, and is all it wrote still there, unaltered?"""
        entry = self.manifest()["stages"].get(name)
        if entry is None or entry["inputs_sha256"] != digest(inputs):
            return False
        if not all((self.folder / file).exists() for file in entry["outputs"]):
            return False
        self.check_outputs(name)
        return True

    def check_outputs(self, name: str) -> None:
        """Refuse when a file that stage `name` wrote is missing or not as it left it."""
        entry = self.manifest()["stages"].get(name)
        if entry is None:
            raise RunFolderError(f"the stage {name!r} has not been run", where=str(self), remedy=f"demeanor run --resume {self}")
        for file, sha256 in entry["outputs"].items():
            if not (self.folder / file).exists():
                raise RunFolderError("is missing", where=str(self.folder / file), remedy=f"demeanor run --resume {self}")
            if file_sha256(self.folder / file) != sha256:
                raise RunFolderError(
                    f"was altered after the stage {name!r} wrote it", where=str(self.folder / file),
                    remedy="delete it to have it made again",
                )

    def outputs_digest(self, *names: str) -> str:
        """One digest of all that the named stages wrote: an input of the stages after them."""
        stages = self.manifest()["stages"]
        return digest({name: stages[name]["outputs"] for name in names if name in stages})


def digest(data: Any) -> str:
    """16 hexadecimal digits of the SHA-256 of `data` as canonical JSON."""
    return content_id(data)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(paths: tuple[Path, ...]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(file for file in path.rglob("*") if file.is_file())
        elif path.exists():
            yield path


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
