"""The run folder: old or new and never half, done once, altered is refused, foreign is left alone."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import contract_of

from demeanor.contract import Contract
from demeanor.errors import RunFolderError, StageError
from demeanor.records import (
    Comparison,
    DroppedRow,
    Estimate,
    LimitResult,
    Message,
    PreferencePair,
    Probe,
    Record,
    Reply,
    Score,
    Verdict,
    content_id,
)
from demeanor.workspace import FORMAT, Workspace, digest


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # slow, and only a loss of power would show it
    workspace = Workspace(tmp_path / "run")
    workspace.start(contract_of())
    return workspace


def snapshot(path: Path) -> Any:
    """What lies at `path`, files and folders alike; None when nothing does."""
    if path.is_dir():
        return {str(item.relative_to(path)): snapshot(item) if item.is_file() else "/" for item in path.rglob("*")}
    return path.read_bytes() if path.exists() else None


# atomic writes


def write_file(run: Workspace, text: str) -> None:
    run.write_text(run.verdict, text * 100_000)


def write_folder(run: Workspace, text: str) -> None:
    with run.writing(run.adapter) as aside:
        (aside / "deep").mkdir(parents=True)
        for name in ("config", "weights", f"only-{text}", "deep/er"):
            (aside / name).write_text(text, "utf-8")


def survives(work: Callable[[], None], step: int) -> bool:
    """Do `work` in a child that is killed (SIGKILL) before its `step`-th change of the file system.

    True when it came to its end before that.
    """
    child = os.fork()
    if child == 0:
        left = step

        def on_event(event: str, arguments: Any) -> None:
            nonlocal left
            if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"):
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1

        sys.addaudithook(on_event)
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return not os.WIFSIGNALED(status)


def steps_until_done(work: Callable[[], None]) -> Iterator[int]:
    """Kill `work` at every one of its steps, one after the other."""
    step = 0
    while not survives(work, step):
        yield step
        step += 1
    assert step > 3


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@needs_fork
@pytest.mark.parametrize("write", [write_file, write_folder])
def test_killed_at_any_step_leaves_the_old_or_the_new(write: Callable[[Workspace, str], None], run: Workspace) -> None:
    path = run.verdict if write is write_file else run.adapter
    states = []
    for text in ("old", "new"):
        write(run, text)
        states.append(snapshot(path))
    old, new = states
    seen = []
    for _ in steps_until_done(lambda: write(run, "new")):
        run.start(contract_of())  # as the next run does
        seen.append(snapshot(path))
        assert seen[-1] in (old, new)
        write(run, "old")
        assert snapshot(path) == old
        assert not list(run.folder.glob(f".{path.name}*"))  # nothing is left beside it
    assert old in seen


@needs_fork
@pytest.mark.parametrize("write", [write_file, write_folder])
def test_killed_at_any_step_of_the_first_write_leaves_nothing_or_all(
    write: Callable[[Workspace, str], None], run: Workspace
) -> None:
    path = run.verdict if write is write_file else run.adapter
    write(run, "new")
    new = snapshot(path)

    def clear() -> None:
        for item in sorted(path.rglob("*"), reverse=True):
            item.rmdir() if item.is_dir() else item.unlink()
        path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)

    clear()
    for _ in steps_until_done(lambda: write(run, "new")):
        run.start(contract_of())
        assert snapshot(path) in (None, new)
        clear()


@needs_fork
def test_the_next_write_repairs_too(run: Workspace) -> None:
    """A command that does not start a run, such as release, writes as well."""
    write_folder(run, "old")
    old = snapshot(run.adapter)

    def interrupted() -> None:
        with pytest.raises(ZeroDivisionError), run.writing(run.adapter) as aside:
            aside.mkdir()
            raise ZeroDivisionError

    for _ in steps_until_done(lambda: write_folder(run, "new")):
        interrupted()
        assert set(snapshot(run.adapter)) in (set(old), {name.replace("old", "new") for name in old})
        write_folder(run, "old")


@needs_fork
def test_killed_while_starting_the_folder_is_still_a_runs(tmp_path: Path) -> None:
    def start() -> None:
        with Workspace(tmp_path / "run").locked() as workspace:
            workspace.start(contract_of())

    for step in steps_until_done(start):
        start()
        assert Workspace.open(tmp_path / "run").contract() == contract_of()
        (tmp_path / "run").rename(tmp_path / f"run-{step}")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("write", [write_file, write_folder])
def test_a_writer_that_raises_leaves_the_old(
    write: Callable[[Workspace, str], None], error: type[BaseException], run: Workspace
) -> None:
    path = run.verdict if write is write_file else run.adapter
    write(run, "old")
    before = snapshot(run.folder)
    with pytest.raises(error), run.writing(path) as aside:
        if write is write_folder:
            aside.mkdir()
            aside = aside / "weights"
        aside.write_text("half", "utf-8")
        raise error
    assert snapshot(run.folder) == before


@pytest.mark.parametrize("write", [write_file, write_folder])
def test_all_is_on_disk_before_it_takes_its_name(
    write: Callable[[Workspace, str], None], run: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[int] = set()
    named = []

    def checked(move: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
        def check(source: Path, target: Path) -> None:
            if str(source).endswith(".aside"):
                assert {item.stat().st_ino for item in (Path(source), *Path(source).rglob("*"))} <= synced
                named.append(str(target))
            move(source, target)

        return check

    monkeypatch.setattr(os, "fsync", lambda handle: synced.add(os.fstat(handle).st_ino))
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, checked(getattr(os, name)))
    path = run.verdict if write is write_file else run.adapter
    write(run, "old")
    write(run, "new")
    assert named == [str(path), str(path)]
    assert run.folder.stat().st_ino in synced  # the name, too


def test_a_failing_rename_puts_the_old_folder_back(run: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(run, "old")
    before = snapshot(run.folder)
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if self.name.endswith(".aside"):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError):
        write_folder(run, "new")
    monkeypatch.undo()
    assert snapshot(run.folder) == before


def test_records_that_fail_midway_leave_the_old(run: Workspace) -> None:
    run.write_records(run.dropped, [DroppedRow("a", 1, "old")])
    before = snapshot(run.folder)

    def rows() -> Iterator[DroppedRow]:
        yield from (DroppedRow("a", row, "x" * 1000) for row in range(1000))
        raise RuntimeError

    with pytest.raises(RuntimeError):
        run.write_records(run.dropped, rows())
    assert snapshot(run.folder) == before


# what is written is read again


ESTIMATE = Estimate(0.5, 0.25, 0.75, 10, 1)
COMPARISON = Comparison("tone", "safe_logp", ESTIMATE, Estimate(None, None, None, 0), ESTIMATE)
LIMIT = LimitResult("i", "tone", "m", "max", 0.5, None, None, None, None, None, None, 0, 3, False, "no evidence")
PROMPT = (Message("system", "Be kind."), Message("user", "Zeile\r\n\u2028\x85\x00 \ud800 日本 😀"))
RECORDS: list[Any] = [
    PROMPT[1],
    PreferencePair.make(PROMPT, "Good.", "Bad.", source="s", row=3, attack="poem", confidence=0.75),
    DroppedRow("s", 3, "empty reply", "\ud800"),
    Probe("i", "tone", PROMPT, ("Bad.", "Worse."), ("Good.",), None),
    Reply("i", "tone", "after", 0, "\n\n", 2, None),
    Score("i", "tone", "after", None, {"safe_logp": -1e-300, "safe_opening_mass": None}),
    ESTIMATE,
    COMPARISON,
    LIMIT,
    Verdict(False, (LIMIT,), (COMPARISON, COMPARISON), 0.95, 7),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_every_record_is_read_as_it_was_written(record: Record, run: Workspace) -> None:
    run.write_records(run.probes, [record, record])
    assert run.read_records(run.probes, type(record).from_json) == [record, record]
    run.write_json(run.verdict, record.to_json())
    assert type(record).from_json(run.read_json(run.verdict)) == record


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_never_written(number: float, run: Workspace) -> None:
    run.write_json(run.verdict, {"old": 1})
    before = snapshot(run.folder)
    with pytest.raises(ValueError):
        run.write_json(run.verdict, {"deep": [number]})
    with pytest.raises(ValueError):
        run.write_records(run.dropped, [Score("i", "tone", "after", None, {"safe_logp": number})])
    done: list[int] = []
    with pytest.raises(ValueError):  # before an hour's work, and not after it
        run.stage("read", {"beta": number}, lambda: done.append(1))
    assert snapshot(run.folder) == before and not done


def refusal(work: Callable[[], Any]) -> str:
    with pytest.raises(RunFolderError) as caught:
        work()
    message = str(caught.value)
    assert "\n" not in message and caught.value.exit_code == 2
    return message


@pytest.mark.parametrize("text", ["", "{", '{"a": 1', "[" * 100_000, b"\xff\xfe"])
def test_damaged_json_is_one_line_with_the_file(text: str | bytes, run: Workspace) -> None:
    run.verdict.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert refusal(lambda: run.read_json(run.verdict)).startswith(f"{run.verdict}: damaged: ")


@pytest.mark.parametrize("line", ['{"role": "us', "", "5", "null", '"x"', "[]", "{}", '{"role": "user", "text": "x"}'])
def test_a_damaged_record_is_named_with_its_line(line: str, run: Workspace) -> None:
    good = json.dumps(Message("user", "x").to_json())
    run.probes.write_text(f"{good}\n{good}\n{line}\n{good}\n", "utf-8")
    assert refusal(lambda: run.read_records(run.probes, Message.from_json)).startswith(f"{run.probes}, line 3: damaged")


def test_what_is_not_there_yet_is_named(run: Workspace) -> None:
    for work in (lambda: run.read_json(run.scores("after")), lambda: run.read_records(run.scores("after"), dict)):
        assert refusal(work) == f"{run}: has no scores/after.jsonl yet -- run the stage before it"
    run.verdict.mkdir()
    assert refusal(lambda: run.read_json(run.verdict)) == f"{run.verdict}: cannot be read: Is a directory"


# the folder


def test_a_run_starts_in_a_new_or_empty_folder_and_goes_on_in_its_own(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "a" / "b", tmp_path / "empty", tmp_path / "empty"):
        Workspace(folder).start(contract_of(name="desk"))
        assert {path.name for path in folder.iterdir()} == {"contract.yaml", "manifest.json"}
        assert Workspace.open(folder).contract() == contract_of(name="desk")


def test_nothing_is_created_by_looking(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "run")
    assert workspace.manifest() == {"format": FORMAT, "stages": {}} and not workspace.is_done("read", {})
    refusal(lambda: Workspace.open(tmp_path / "run"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "files",
    [
        {"thesis.txt": "mine"},
        {"contract.yaml": "name: mine\ndata: {pairs: [pairs.jsonl]}\n", "pairs.jsonl": "{}\n"},  # of `demeanor init`
        {"manifest.json": '{"name": "My web page"}'},
        {"manifest.json": "[]"},
        {"manifest.json": "5"},
        {"manifest.json": "not JSON"},
        {".hidden": ""},
        {"sub/x": ""},
    ],
    ids=lambda files: next(iter(files)),
)
def test_a_foreign_folder_is_refused_and_left_as_it_was(files: dict[str, str], tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    before = snapshot(tmp_path)
    assert str(tmp_path) in refusal(lambda: Workspace(tmp_path).start(contract_of()))
    assert str(tmp_path) in refusal(lambda: Workspace.open(tmp_path))
    assert snapshot(tmp_path) == before


def test_a_folder_that_cannot_be_written_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", "utf-8")
    words = {
        "file": "is a file, not a folder",
        "file/run": "cannot be written: Not a directory",
        "x" * 300: "cannot be written: File name too long",
    }
    for name, text in words.items():
        message = refusal(lambda name=name: Workspace(tmp_path / name).start(contract_of()))
        assert message == f"{tmp_path / name}: {text} -- give another --out"
    assert snapshot(tmp_path) == {"file": b"mine"}


def test_a_read_only_folder_is_refused_and_can_still_be_read(run: Workspace) -> None:
    before = snapshot(run.folder)
    run.folder.chmod(0o555)
    if os.access(run.folder, os.W_OK):
        pytest.skip("root may write anywhere")
    with run.locked():
        assert "cannot be written: Permission denied" in refusal(lambda: run.start(contract_of(name="other")))
    assert Workspace.open(run.folder).contract() == contract_of() and snapshot(run.folder) == before


@pytest.mark.parametrize("file", ["contract.yaml", "manifest.json"])
def test_a_folder_without_its_files_is_no_run(file: str, run: Workspace) -> None:
    (run.folder / file).unlink()
    assert f"not a run folder (no {file})" in refusal(lambda: Workspace.open(run.folder))


@pytest.mark.parametrize("number", [0, 2, "1", None])
def test_another_format_is_refused(number: Any, run: Workspace) -> None:
    run.write_json(run.manifest_file, {"format": number, "stages": {}})
    before = snapshot(run.folder)
    for work in (lambda: Workspace.open(run.folder), lambda: run.start(contract_of())):
        assert f"is of format {number}, this version reads {FORMAT}" in refusal(work)
    assert snapshot(run.folder) == before


@pytest.mark.parametrize("stages", ['"x"', "[]", "null", '{"read": 5}', '{"read": {}}', '{"read": {"outputs": []}}'])
def test_a_damaged_manifest_is_one_line(stages: str, run: Workspace) -> None:
    run.manifest_file.write_text(f'{{"format": {FORMAT}, "stages": {stages}}}', "utf-8")
    for work in (lambda: Workspace.open(run.folder), lambda: run.stage("read", {}, dict)):
        assert refusal(work).startswith(f"{run.manifest_file}: damaged")


def test_the_stored_contract_can_be_damaged(run: Workspace) -> None:
    run.contract_file.write_bytes(b"\xff")
    assert str(run.contract_file) in refusal(run.contract)
    run.contract_file.unlink()
    assert "has no contract.yaml" in refusal(run.contract)


# stages


@dataclass
class Stage:
    """A stage `read` with two outputs, one of them in a folder, that counts how often it was done."""

    run: Workspace
    times: int = 0
    text: str = "x"

    def __call__(self, **inputs: Any) -> bool:
        return self.run.stage("read", inputs, self.work, self.run.probes, self.run.adapter)

    def work(self) -> dict[str, Any]:
        self.times += 1
        self.run.write_text(self.run.probes, self.text)
        write_folder(self.run, self.text)
        return {"notes": [self.times]}


@pytest.fixture
def stage(run: Workspace) -> Stage:
    return Stage(run)


def test_a_stage_is_done_once_for_the_same_inputs(stage: Stage) -> None:
    assert stage(pairs="a", seeds=[1, 2]) and not stage(seeds=(1, 2), pairs="a")
    assert stage.times == 1
    assert stage(pairs="b", seeds=[1, 2]) and stage(pairs="a", seeds=[1, 2])
    assert stage.times == 3
    assert not Workspace(stage.run.folder).stage("read", {"pairs": "a", "seeds": [1, 2]}, stage.work)


def test_the_manifest_tells_what_was_done(stage: Stage) -> None:
    stage(pairs="a")
    entry = stage.run.manifest()["stages"]["read"]
    assert entry["inputs"] == {"pairs": "a"} and entry["inputs_sha256"] == digest({"pairs": "a"})
    names = {"probes.jsonl", "adapter/config", "adapter/weights", "adapter/only-x", "adapter/deep/er"}
    assert set(entry["outputs"]) == names and all(len(sha256) == 64 for sha256 in entry["outputs"].values())
    assert entry["notes"] == [1] and entry["seconds"] >= 0 and entry["finished"].endswith("Z")


def test_other_stages_are_kept(stage: Stage) -> None:
    stage.run.stage("before", {}, lambda: None)
    stage()
    stage(new="inputs")
    assert list(stage.run.manifest()["stages"]) == ["before", "read"]


@pytest.mark.parametrize("file", ["probes.jsonl", "adapter/weights"])
def test_an_altered_output_is_refused_with_its_name(file: str, stage: Stage) -> None:
    stage()
    (stage.run.folder / file).write_text("y", "utf-8")  # of the same length
    for work in (stage, lambda: stage.run.check_outputs("read"), lambda: stage.run.is_done("read", {})):
        message = refusal(work)
        assert message.startswith(f"{stage.run.folder / file}: was altered") and "delete it" in message
    assert stage.times == 1
    (stage.run.folder / file).unlink()  # as the message says
    assert stage() and stage.times == 2
    stage.run.check_outputs("read")


def test_a_folder_in_the_place_of_an_output_is_an_alteration(stage: Stage) -> None:
    stage()
    stage.run.probes.unlink()
    stage.run.probes.mkdir()
    assert f"{stage.run.probes}: was altered" in refusal(stage)


def test_an_altered_output_of_other_inputs_is_made_again(stage: Stage) -> None:
    stage(pairs="a")
    stage.run.probes.write_text("y", "utf-8")
    assert stage(pairs="b")
    stage.run.check_outputs("read")


def test_a_missing_output_is_made_again(stage: Stage) -> None:
    stage()
    (stage.run.adapter / "weights").unlink()
    message = refusal(lambda: stage.run.check_outputs("read"))
    assert message == f"{stage.run.adapter / 'weights'}: is missing -- demeanor run --resume {stage.run}"
    assert not stage.run.is_done("read", {})
    assert stage() and snapshot(stage.run.adapter / "weights") == b"x"


def test_a_stage_that_was_not_run_is_named(run: Workspace) -> None:
    assert "the stage 'train' has not been run" in refusal(lambda: run.check_outputs("train"))


def test_a_stage_that_leaves_an_output_away_has_failed(run: Workspace) -> None:
    with pytest.raises(StageError, match=r"did not write .*probes\.jsonl"):
        run.stage("read", {}, lambda: None, run.probes)
    assert not run.is_done("read", {})


def test_a_stage_that_fails_before_it_writes_leaves_what_was_done(stage: Stage) -> None:
    stage(beta=1)

    def fails() -> None:
        raise StageError("out of memory")

    with pytest.raises(StageError):
        stage.run.stage("read", {"beta": 2}, fails, stage.run.probes)
    assert not stage(beta=1) and stage.times == 1  # going back costs nothing
    stage.run.check_outputs("read")


@needs_fork
@pytest.mark.parametrize(
    ("missing", "killed", "resumed"), [(True, 1, 1), (False, 2, 2), (False, 2, 1)], ids=["same", "new", "back"]
)
def test_killed_at_any_step_a_stage_is_done_again_or_was_done(
    missing: bool, killed: int, resumed: int, stage: Stage
) -> None:
    """Also when its outputs differ from one time to the next, as a file that holds a duration does."""
    stage(beta=1)

    def again() -> None:
        if missing:
            stage.run.probes.unlink()
        stage.text = "z"
        stage(beta=killed)

    for _ in steps_until_done(again):
        stage(beta=resumed)  # not refused
        stage.run.check_outputs("read")
        assert snapshot(stage.run.probes) in (b"x", b"z")
        stage(beta=1)


@needs_fork
def test_what_a_kill_left_half_is_not_called_altered(stage: Stage) -> None:
    stage(beta=1)

    def dies() -> None:
        stage.run.write_text(stage.run.probes, "z")
        os.kill(os.getpid(), signal.SIGKILL)

    assert not survives(lambda: stage.run.stage("read", {"beta": 2}, dies) and None, 10_000)
    message = refusal(lambda: stage.run.check_outputs("read"))
    assert message == f"{stage.run.probes}: was altered -- demeanor run --resume {stage.run}"


def test_the_digest_of_outputs_changes_with_them(stage: Stage) -> None:
    assert stage.run.outputs_digest("read") == stage.run.outputs_digest("train") == digest({})
    stage(beta=1)
    first = stage.run.outputs_digest("read", "train")
    stage(beta=2)
    assert stage.run.outputs_digest("read", "train") == first  # the same bytes
    stage.text = "z"
    stage(beta=3)
    assert stage.run.outputs_digest("read") != first


def test_an_id_depends_on_the_content_alone() -> None:
    assert content_id({"a": 1, "b": [2]}) == content_id({"b": (2,), "a": 1}) != content_id({"a": 1, "b": [3]})
    assert content_id("a", "b") != content_id("ab") and content_id("\ud800") != content_id("\udfff")
    one, two = (PreferencePair.make(PROMPT, "Good.", "Bad.", source="a", row=row) for row in (1, 2))
    assert one.id == two.id != PreferencePair.make(PROMPT, "Bad.", "Good.").id


def test_the_contract_of_a_run_may_change(run: Workspace) -> None:
    other: Contract = contract_of(name="other")
    run.start(other)
    assert run.contract() == other and run.manifest()["stages"] == {}
