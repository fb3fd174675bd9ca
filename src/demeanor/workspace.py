"""The run folder: the only file that knows file names; atomic writes, the manifest, and what may be skipped.

    contract.yaml manifest.json pairs/{train,heldout}.jsonl dropped.jsonl probes.jsonl prompts.jsonl
    checkpoints/ adapter/ training.json
    scores/{before,after}.jsonl replies/{before,after}.jsonl verdict.json regression.json report.html
    model/ release.json

A folder of runs that were compared holds compare.json and compare.html beside them, that of an audit findings.json,
findings.html and flagged.jsonl (each flagged pair once, with the checks that flagged it), that of curated pairs
train.jsonl, heldout.jsonl, dropped.jsonl, altered.jsonl and curate.json.

`manifest.json` makes a folder a run's; it records for each stage the digest of its inputs and the SHA-256 of each file
it wrote. A stage whose inputs are unchanged is not run again; when one of its files was altered meanwhile, the run is
refused with the name. Every file and folder is written aside, synced and renamed, so that a killed process leaves the
old one or the new one. While a process writes, `.lock` keeps others out.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from demeanor.contract import Contract, dump_contract, parse_contract
from demeanor.errors import RunFolderError, StageError, one_line
from demeanor.lock import Lock
from demeanor.records import content_id

FORMAT = 1  # of the run folder; a folder of another format is refused
_UNREADABLE = (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError)  # what damage may raise
_LOCK = ".lock"
STAGES = ("read", "before", "train", "after", "prove", "report", "release")


class Workspace:
    """One run folder. Nothing is created until something is written."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._lock: Lock | None = None  # while `locked`

    def __str__(self) -> str:
        return str(self.folder)

    # what lies where
    contract_file = property(lambda self: self.folder / "contract.yaml")
    manifest_file = property(lambda self: self.folder / "manifest.json")
    train_pairs = property(lambda self: self.folder / "pairs" / "train.jsonl")
    heldout_pairs = property(lambda self: self.folder / "pairs" / "heldout.jsonl")
    dropped = property(lambda self: self.folder / "dropped.jsonl")
    probes = property(lambda self: self.folder / "probes.jsonl")
    prompts = property(lambda self: self.folder / "prompts.jsonl")  # of the probes, as the model reads them
    checkpoints = property(lambda self: self.folder / "checkpoints")
    adapter = property(lambda self: self.folder / "adapter")
    training = property(lambda self: self.folder / "training.json")
    verdict = property(lambda self: self.folder / "verdict.json")
    regression = property(lambda self: self.folder / "regression.json")  # against a run that was accepted
    report = property(lambda self: self.folder / "report.html")
    model = property(lambda self: self.folder / "model")
    release = property(lambda self: self.folder / "release.json")
    compared = property(lambda self: self.folder / "compare.json")  # these two in a folder of runs, not in a run
    compared_page = property(lambda self: self.folder / "compare.html")
    findings = property(lambda self: self.folder / "findings.json")  # these three in a folder of an audit
    findings_page = property(lambda self: self.folder / "findings.html")
    flagged = property(lambda self: self.folder / "flagged.jsonl")
    curated_train = property(lambda self: self.folder / "train.jsonl")  # these four, and `dropped`, in a curated set
    curated_heldout = property(lambda self: self.folder / "heldout.jsonl")
    altered = property(lambda self: self.folder / "altered.jsonl")
    curated = property(lambda self: self.folder / "curate.json")

    def scores(self, side: str) -> Path:
        return self.folder / "scores" / f"{side}.jsonl"

    def replies(self, side: str) -> Path:
        return self.folder / "replies" / f"{side}.jsonl"

    def partial(self, side: str, inputs: str) -> Path:
        """Measured chunks of a stage that has not finished, for the inputs of that digest; others are removed."""
        mine = self.folder / "scores" / f"{side}.{inputs}.partial.jsonl"
        for stale in mine.parent.glob(f"{side}.*.partial.jsonl"):
            if stale != mine:
                stale.unlink()
        return mine

    # opening

    @classmethod
    def open(cls, folder: str | Path) -> Workspace:
        """A run folder that exists.

        Raises:
            RunFolderError: there is none, or it is of another format.
        """
        workspace = cls(folder)
        for file in (workspace.manifest_file, workspace.contract_file):
            if not file.is_file():
                raise RunFolderError(
                    f"not a run folder (no {file.name})", where=str(folder), remedy="`demeanor run` makes one"
                )
        workspace.manifest()
        return workspace

    def contract(self, overrides: tuple[str, ...] = ()) -> Contract:
        """The contract that the run was started with, and `overrides` that win over it; its paths are absolute."""
        try:
            text = self.contract_file.read_text("utf-8")
        except _UNREADABLE as error:
            raise self._unreadable(self.contract_file, error) from None
        return parse_contract(text, str(self.contract_file), overrides)

    @contextmanager
    def locked(self) -> Iterator[Workspace]:
        """Until the block ends no other process gets this lock; a folder that is no run's yet is locked by `start`.

        Raises:
            RunFolderError: another process holds it; also from `start`.
        """
        self._lock = Lock(self.folder / _LOCK)
        try:
            with contextlib.suppress(OSError):  # `start` says why it cannot be written
                if self.manifest_file.exists():
                    self._lock.take()
            yield self
        finally:
            self._lock.free()
            self._lock = None

    def start(self, contract: Contract) -> None:
        """Create the folder when needed and store the contract.

        Raises:
            RunFolderError: it cannot be written, or holds something that is no run.
        """
        folder = self.folder
        try:
            if folder.exists() and not folder.is_dir():
                raise RunFolderError("is a file, not a folder", where=str(folder), remedy="give another --out")
            mine = self.manifest_file.exists() or not folder.exists() or all(map(_is_leftover, folder.iterdir()))
            if not mine:
                raise RunFolderError(
                    "holds files that are not a run's", where=str(folder), remedy="give an empty or new --out"
                )
            manifest = self.manifest()
            folder.mkdir(parents=True, exist_ok=True)
            if self._lock is not None:
                self._lock.take()
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-"):
                pass
            for old in folder.glob(".*.old"):
                _put_back(old.with_name(old.name.removeprefix(".").removesuffix(".old")))
            if not self.manifest_file.exists():
                self.write_json(self.manifest_file, manifest)
            self.write_text(self.contract_file, dump_contract(contract))
        except OSError as error:
            raise RunFolderError(
                f"cannot be written: {error.strerror or one_line(error)}",
                where=str(folder),
                remedy="give another --out",
            ) from None

    def check_writable(self) -> None:
        """Refuse a folder that cannot be written, before long work whose result it is to hold; nothing is made.

        Raises:
            RunFolderError: it is a file, or lies in one, or in a folder that takes no files.
        """
        folder = self.folder.resolve()
        there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
        what = "Permission denied" if there.is_dir() else "is no folder" if there == folder else f"{there} is no folder"
        if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            raise RunFolderError(f"cannot be written: {what}", where=str(self), remedy="give another --out")

    def check_curated(self, sources: Sequence[str | Path] = ()) -> None:
        """Refuse a folder that cannot become one of curated pairs.

        Raises:
            RunFolderError: it is a file, or holds what no curated set holds, or one of its files is (of) a source.
        """
        self.check_writable()
        folder = self.folder.resolve()
        if not folder.name:
            raise RunFolderError("is no folder of curated pairs", where=str(self), remedy="give another --out")
        known = {self.curated_train, self.curated_heldout, self.dropped, self.altered, self.curated}
        strange = sorted(set(self.folder.iterdir()) - known) if folder.exists() else []
        if strange:
            raise RunFolderError(
                f"holds {strange[0].name}, which no curated set has",
                where=str(self),
                remedy="give an empty or new --out",
            )
        for source in sources:
            read = Path(source).expanduser().resolve()
            lost = [file.name for file in sorted(known) if file.exists() and (folder / file.name).is_relative_to(read)]
            if lost:
                raise RunFolderError(
                    f"is read from --out, where {', '.join(lost)} would be written over",
                    where=str(source),
                    remedy="give another --out",
                )

    @contextmanager
    def curating(self) -> Iterator[Workspace]:
        """A folder aside for curated pairs; it takes this one's place as a whole when the block ends well.

        Raises:
            RunFolderError: this one cannot be written, or another process is about it.
        """
        folder = self.folder.resolve()
        lock = Lock(folder.with_name(f".{folder.name}{_LOCK}"))
        try:
            self.check_curated()
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock.take()
            with self.writing(folder) as aside:
                aside.mkdir()
                yield Workspace(aside)
        except OSError as error:
            raise RunFolderError(
                f"cannot be written: {error.strerror or one_line(error)}", where=str(self), remedy="give another --out"
            ) from None
        finally:
            lock.free()

    # writing and reading

    @contextmanager
    def writing(self, path: Path) -> Iterator[Path]:
        """A path beside `path` to write to; it is synced and takes `path`'s name when the block ends well."""
        path.parent.mkdir(parents=True, exist_ok=True)
        _put_back(path)
        aside = path.with_name(f".{path.name}.aside")
        _remove(aside)
        try:
            yield aside
            for item in [*sorted(aside.rglob("*")), aside]:
                if item.is_file() or item.is_dir():
                    _sync(item)
            if aside.is_dir() and path.exists():  # a folder that is not empty cannot be replaced in one step
                old = _old(path)
                path.rename(old)
                aside.rename(path)
                with contextlib.suppress(OSError):  # the next writer tidies up
                    _remove(old)
            else:
                aside.replace(path)
        except BaseException:
            _remove(aside)
            _put_back(path)
            raise
        _sync(path.parent)

    def write_text(self, path: Path, text: str) -> None:
        with self.writing(path) as aside:
            aside.write_text(text, "utf-8")

    def write_json(self, path: Path, data: Any) -> None:
        self.write_text(path, _json(data, indent=1) + "\n")

    def write_records(self, path: Path, records: Iterable[Any]) -> None:
        """One JSON object a line."""
        self.write_lines(path, (record.to_json() for record in records))

    def write_lines(self, path: Path, items: Iterable[Any]) -> None:
        """The items as JSON lines."""
        with self.writing(path) as aside, aside.open("w", encoding="utf-8") as file:
            for item in items:
                file.write(_json(item) + "\n")

    def read_json(self, path: Path) -> Any:
        try:
            return json.loads(path.read_text("utf-8"))
        except _UNREADABLE as error:
            raise self._unreadable(path, error) from None

    def read_records(self, path: Path, record: Callable[[dict[str, Any]], Any]) -> list[Any]:
        records: list[Any] = []
        try:
            with path.open(encoding="utf-8") as file:
                for line in file:
                    records.append(record(json.loads(line)))
        except _UNREADABLE as error:
            raise self._unreadable(path, error, f", line {len(records) + 1}") from None
        return records

    def _unreadable(self, path: Path, error: Exception, line: str = "") -> RunFolderError:
        if isinstance(error, FileNotFoundError):
            name = path.relative_to(self.folder)
            return RunFolderError(f"has no {name} yet", where=str(self), remedy="run the stage before it")
        if isinstance(error, OSError):
            return RunFolderError(f"cannot be read: {error.strerror}", where=str(path))
        return RunFolderError(f"damaged: {one_line(error)}", where=f"{path}{line}", remedy="delete it and run again")

    # the manifest

    def manifest(self) -> dict[str, Any]:
        """`{"format", "stages": {name: {"inputs", "outputs", ...}}}`; empty when nothing was done yet."""
        try:
            if not self.manifest_file.exists():
                return {"format": FORMAT, "stages": {}}
        except OSError as error:  # a name that is too long, say
            raise self._unreadable(self.manifest_file, error) from None
        data = self.read_json(self.manifest_file)
        if not isinstance(data, dict) or "format" not in data:
            raise RunFolderError("is no run's manifest", where=str(self.manifest_file), remedy="give another --out")
        if data["format"] != FORMAT:
            raise RunFolderError(
                f"is of format {data.get('format')}, this version reads {FORMAT}",
                where=str(self),
                remedy="start a new run",
            )
        entries = data.get("stages")
        if not isinstance(entries, dict) or not all(_is_entry(entry) for entry in entries.values()):
            raise RunFolderError("damaged", where=str(self.manifest_file), remedy="delete it and start a new run")
        return data

    def stage(
        self, name: str, inputs: dict[str, Any], work: Callable[[], dict[str, Any] | None], *outputs: Path
    ) -> bool:
        """Do `work` unless it was done with the same `inputs`, then record it. True when it was done now.

        Args:
            name: one of STAGES.
            inputs: whatever changes the result, as JSON.
            work: writes `outputs`; what it returns is kept in the manifest beside them.

        Raises:
            RunFolderError: an output of an unchanged stage was altered by somebody.
            StageError: `work` did not write one of `outputs`.
        """
        if self.is_done(name, inputs):
            return False
        manifest = self.manifest()
        if name in manifest["stages"]:  # a kill may leave outputs of both
            manifest["stages"][name]["begun_again"] = True
            self.write_json(self.manifest_file, manifest)
        started = time.time()
        details = work() or {}
        for path in outputs:
            if not path.exists():
                raise StageError(f"the stage {name!r} did not write {path}")
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

    def adopt(self, name: str, inputs: dict[str, Any], other: Workspace) -> bool:
        """Take over what stage `name` wrote in another run folder from the same `inputs`. True when it was done now."""
        try:
            if self.is_done(name, inputs) or not other.is_done(name, inputs):
                return False
        except RunFolderError:  # altered: whoever asks for that run's evidence is told
            return False
        files = list(other.manifest()["stages"][name]["outputs"])

        def work() -> dict[str, Any]:
            for file in files:
                (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(other.folder / file, self.folder / file)
            return {"adopted_from": str(other.folder.resolve())}

        return self.stage(name, inputs, work, *(self.folder / file for file in files))

    def fix_limits(self, training: str, limits: list[dict[str, Any]]) -> None:
        """Store the limits before the training of the digest `training` starts; what was stored for it stays."""
        manifest = self.manifest()
        if manifest.get("fixed", {}).get("training") != training:
            when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            manifest["fixed"] = {"training": training, "when": when, "sha256": digest(limits), "limits": limits}
            self.write_json(self.manifest_file, manifest)

    def fixed_limits(self) -> list[dict[str, Any]] | None:
        """The limits that were fixed before the training; None in a folder of a version that did not store them.

        Raises:
            RunFolderError: they were altered.
        """
        fixed = self.manifest().get("fixed")
        if fixed is None:
            return None
        if not isinstance(fixed, dict) or digest(fixed.get("limits")) != fixed.get("sha256"):
            raise RunFolderError(
                "the limits that were fixed before the training were altered",
                where=str(self.manifest_file),
                remedy="start a new run",
            )
        return list(fixed["limits"])

    def is_done(self, name: str, inputs: dict[str, Any]) -> bool:
        """Was the stage done with these inputs, and is all it wrote still there, unaltered?"""
        inputs_sha256 = digest(inputs)  # refuses what is no JSON now, and not after the work
        entry = self.manifest()["stages"].get(name)
        if entry is None or entry.get("inputs_sha256") != inputs_sha256:
            return False
        faults = self._faults(entry)
        if "is missing" in faults.values() or (faults and entry.get("begun_again")):
            return False
        self.check_outputs(name)
        return True

    def check_outputs(self, name: str) -> None:
        """Refuse when a file that stage `name` wrote is missing or not as it left it."""
        entry = self.manifest()["stages"].get(name)
        if entry is None:
            raise RunFolderError(
                f"the stage {name!r} has not been run", where=str(self), remedy=f"demeanor run --resume {self}"
            )
        for file, fault in self._faults(entry).items():
            if fault == "is missing" or entry.get("begun_again"):
                remedy = f"demeanor run --resume {self}"
            else:
                fault, remedy = f"{fault} after the stage {name!r} wrote it", "delete it to have it made again"
            raise RunFolderError(fault, where=str(self.folder / file), remedy=remedy)

    def _faults(self, entry: dict[str, Any]) -> dict[str, str]:
        """What is wrong with each output of a stage that is not as the stage left it."""
        faults = {}
        for file, sha256 in entry["outputs"].items():
            path = self.folder / file
            if not path.exists():
                faults[file] = "is missing"
            elif not path.is_file() or file_sha256(path) != sha256:
                faults[file] = "was altered"
        return faults

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


def _json(data: Any, indent: int | None = None) -> str:
    """Raises ValueError on NaN. Half of a surrogate pair, which UTF-8 cannot hold, is written as an escape."""
    text = json.dumps(data, ensure_ascii=False, indent=indent, allow_nan=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        text = json.dumps(data, indent=indent, allow_nan=False)
    return text


def _files(paths: tuple[Path, ...]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(file for file in path.rglob("*") if file.is_file())
        elif path.exists():
            yield path


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("outputs"), dict)


def _is_leftover(path: Path) -> bool:
    """Left by a process that was killed in the middle of `start`, or is there right now."""
    name = path.name
    return name == _LOCK or name.startswith(".probe-") or (name.startswith(".") and name.endswith(".aside"))


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _put_back(path: Path) -> None:
    """Undo what a kill between the two renames of a folder left."""
    if path.exists():
        _remove(_old(path))
    elif _old(path).exists():
        _old(path).rename(path)


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
