"""Two commands at once in one run folder: the second one is refused and changes nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from conftest import contract_of
from test_cli import Command, demeanor, snapshot  # noqa: F401 -- a fixture
from test_journey import few_pairs  # noqa: F401 -- a fixture
from test_resume import contract_file, start, wait_for  # noqa: F401 -- a fixture

from demeanor.errors import RunFolderError
from demeanor.lock import Lock
from demeanor.workspace import Workspace

fcntl = pytest.importorskip("fcntl")


def test_a_second_command_is_refused_until_the_first_one_ends(
    demeanor: Command,  # noqa: F811
    contract_file: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    first = start("run", contract_file, "--out", out)
    wait_for("train", first)
    first.send_signal(signal.SIGSTOP)  # so that the folder holds still; the lock is held on
    os.waitpid(first.pid, os.WUNTRACED)
    before = snapshot(out)
    writing = [(name, out) for name in ("train", "measure", "prove", "report", "release")]
    new = [("run", contract_file, "--out", out), ("measure", contract_file, "--out", out), ("demo", "--out", out)]
    for command in [*writing, *new, ("run", "--resume", out)]:
        code, _, err = demeanor(*command)
        assert (code, err) == (
            2, f"demeanor: {out}: another command is writing into it -- wait until it ends, or give another --out\n"
        ), command  # fmt: skip
        assert snapshot(out) == before, command
    first.kill()
    first.communicate(timeout=100)
    assert demeanor("run", "--resume", out)[0] in (0, 1)
    assert not (out / ".lock").exists()


def test_of_two_that_begin_a_folder_the_second_is_refused(tmp_path: Path) -> None:
    one, two = Workspace(tmp_path / "run"), Workspace(tmp_path / "run")
    with one.locked(), two.locked():  # neither finds a folder
        one.start(contract_of(name="one"))
        one.start(contract_of(name="one"))  # its own lock is no hindrance
        with pytest.raises(RunFolderError, match="another command"):
            two.start(contract_of(name="two"))
        assert two.contract().name == "one"
    with two.locked():
        two.start(contract_of(name="two"))
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"contract.yaml", "manifest.json"}


def test_a_lock_on_a_file_that_its_holder_removed_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, flock = tmp_path / ".lock", fcntl.flock

    def too_late(handle: int, how: int) -> None:
        monkeypatch.undo()
        file.unlink()
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", too_late)
    lock = Lock(file)
    lock.take()
    with pytest.raises(RunFolderError):
        Lock(file).take()
    lock.free()
    assert not file.exists()


def test_where_there_are_no_locks_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(handle: int, how: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", cannot)
    Lock(tmp_path / ".lock").take()
    Lock(tmp_path / ".lock").take()
