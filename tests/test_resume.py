"""Killed at a random moment in each stage and resumed, a run ends as an uninterrupted one does."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import make_model
from test_journey import few_pairs, small_contract  # noqa: F401 -- a fixture

from demeanor.contract import dump_contract

STAGES = {
    "read": "reading the pairs",
    "before": "measuring the base model",
    "train": "training the adapter",
    "after": "measuring the trained model",
    "prove": "proving",
    "report": "writing the report",
    "release": "merging, and comparing",
}
LONGEST_S = {"train": 1.0, "before": 0.05, "after": 0.05}  # the other stages take no longer than a moment
PASSES = 12  # long enough that a kill falls into the training


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "demeanor", *map(str, arguments), "--json"]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "300"}
    )


def finish(*arguments: object) -> str:
    process = start(*arguments)
    _, errors = process.communicate(timeout=200)
    assert process.returncode in (0, 1), errors
    return errors


def wait_for(stage: str, process: subprocess.Popen[str]) -> None:
    """Until the stage's line, or the end."""
    assert process.stderr is not None
    for line in process.stderr:
        if STAGES[stage] in line and "done before" not in line:
            break


def kill_in(stage: str, delay: float, *arguments: object) -> int:
    """Start, wait for the stage's line, wait `delay` seconds more, and kill -9."""
    process = start(*arguments)
    wait_for(stage, process)
    time.sleep(delay)
    process.kill()
    process.communicate(timeout=100)
    return process.returncode


def files_of(folder: Path) -> dict[str, str]:
    """Name -> SHA-256; empty when there is no such folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*")}


def fingerprint(out: Path) -> tuple[str, dict[str, object]]:
    adapter = hashlib.sha256((out / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()
    return adapter, json.loads((out / "verdict.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def contract_file(tmp_path_factory: pytest.TempPathFactory, few_pairs: Path) -> Path:  # noqa: F811
    folder = tmp_path_factory.mktemp("resume")
    model = make_model("llama", folder / "model")
    contract = small_contract(model, few_pairs, num_train_epochs=PASSES)
    path = folder / "contract.yaml"
    path.write_text(dump_contract(contract), "utf-8")
    return path


@pytest.fixture(scope="module")
def whole(contract_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    finish("run", contract_file, "--out", out)
    return out


@pytest.fixture(scope="module")
def uninterrupted(whole: Path) -> tuple[str, dict[str, object]]:
    return fingerprint(whole)


def test_killed_in_each_stage(
    contract_file: Path, uninterrupted: tuple[str, dict[str, object]], tmp_path: Path
) -> None:
    rng = random.Random()
    out = tmp_path / "run"
    delays = {stage: rng.uniform(0, LONGEST_S.get(stage, 0.02)) for stage in STAGES if stage != "release"}
    for stage, delay in delays.items():
        assert kill_in(stage, delay, "run", contract_file, "--out", out) == -signal.SIGKILL, (stage, delay)
    finish("run", contract_file, "--out", out)
    assert fingerprint(out) == uninterrupted, delays


def test_killed_while_releasing_a_run_has_the_same_model_or_none(whole: Path, tmp_path: Path) -> None:
    calm, out = (shutil.copytree(whole, tmp_path / name) for name in ("calm", "killed"))
    process = start("release", calm, "--unproven")
    wait_for("release", process)
    began = time.time()
    process.communicate(timeout=100)
    usual, model = time.time() - began, files_of(calm / "model")
    assert process.returncode == 0 and "model.safetensors" in model
    delay = random.Random().uniform(0, usual)
    assert kill_in("release", delay, "release", out, "--unproven") in (0, -signal.SIGKILL)
    assert files_of(out / "model") in ({}, model), delay
    for _ in range(2):  # while it is written
        for left in out.glob("*model*"):
            shutil.rmtree(left)
        process = start("release", out, "--unproven")
        while process.poll() is None and not any(out.glob("*model*/*")):
            time.sleep(0.001)
        time.sleep(random.Random().uniform(0, 0.03))
        process.kill()
        process.communicate(timeout=100)
        assert process.returncode == -signal.SIGKILL
        assert files_of(out / "model") in ({}, model), delay
    finish("release", out, "--unproven")
    assert files_of(out / "model") == model, delay
    assert (out / "release.json").read_bytes() == (calm / "release.json").read_bytes()
    assert {path.name for path in out.iterdir()} == {path.name for path in calm.iterdir()}, delay


def test_interrupted_training_says_how_to_go_on_and_resumes_from_its_checkpoint(
    contract_file: Path, uninterrupted: tuple[str, dict[str, object]], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = start("run", contract_file, "--out", out)
    checkpoint = out / "checkpoints" / "checkpoint-4"
    deadline = time.time() + 100
    while not checkpoint.exists() and time.time() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 130, errors
    assert "demeanor run --resume" in errors and "Traceback" not in errors
    assert "resumed from checkpoint-" in finish("run", contract_file, "--out", out)
    assert fingerprint(out) == uninterrupted


@pytest.mark.slow
def test_killed_many_times(contract_file: Path, uninterrupted: tuple[str, dict[str, object]], tmp_path: Path) -> None:
    rng = random.Random()
    for attempt in range(8):
        out = tmp_path / f"run{attempt}"
        stage, delay = rng.choice(["before", "train", "after"]), rng.uniform(0, 4)
        kill_in(stage, delay, "run", contract_file, "--out", out)
        finish("run", contract_file, "--out", out)
        assert fingerprint(out) == uninterrupted, (stage, delay)


def test_a_resumed_training_counts_the_seconds_before_its_checkpoint(whole: Path, tmp_path: Path) -> None:
    from demeanor.pipeline import train_stage
    from demeanor.plan import plan_run
    from demeanor.progress import Progress
    from demeanor.workspace import Workspace

    workspace = Workspace(shutil.copytree(whole, tmp_path / "run"))
    marks = sorted(workspace.checkpoints.glob("checkpoint-*/complete.json"), key=lambda file: file.stat().st_mtime)
    told = [json.loads(file.read_text("utf-8")) for file in marks]
    assert [one["seconds"] for one in told] == sorted(one["seconds"] for one in told) and told[0]["seconds"] > 0
    assert workspace.read_json(workspace.training)["seconds"] >= told[-1]["seconds"]
    for file in marks[1:]:
        shutil.rmtree(file.parent)
    marks[0].write_text(json.dumps({**told[0], "seconds": 1000.0}), "utf-8")
    shutil.rmtree(workspace.adapter)
    train_stage(plan_run(workspace.contract(), workspace), Progress())
    assert workspace.read_json(workspace.training)["seconds"] > 1000
