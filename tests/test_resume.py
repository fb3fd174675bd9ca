"""Killed at a random moment in each stage and resumed, a run ends as an uninterrupted one does."""

from __future__ import annotations

import hashlib
import json
import os
import random
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
}
LONGEST_S = {"train": 2.0, "before": 0.5, "after": 0.5}  # the other stages take no longer than a moment
PASSES = 12  # long enough that a kill falls into the training


def start(contract: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "demeanor", "run", str(contract), "--out", str(out), "--json"]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "300"}
    )


def finish(contract: Path, out: Path) -> str:
    process = start(contract, out)
    _, errors = process.communicate(timeout=200)
    assert process.returncode in (0, 1), errors
    return errors


def stop_in(stage: str, delay: float, contract: Path, out: Path, number: signal.Signals) -> int:
    """Start, wait for the stage's line, wait `delay` seconds more, and send the signal."""
    process = start(contract, out)
    assert process.stderr is not None
    for line in process.stderr:
        if STAGES[stage] in line and "done before" not in line:
            break
    time.sleep(delay)
    process.send_signal(number)
    process.communicate(timeout=100)
    return process.returncode


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
def uninterrupted(contract_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, object]]:
    out = tmp_path_factory.mktemp("whole") / "run"
    finish(contract_file, out)
    return fingerprint(out)


def test_killed_in_each_stage(
    contract_file: Path, uninterrupted: tuple[str, dict[str, object]], tmp_path: Path
) -> None:
    rng = random.Random()
    out = tmp_path / "run"
    delays = {stage: rng.uniform(0, LONGEST_S.get(stage, 0.02)) for stage in STAGES}
    for stage, delay in delays.items():
        assert stop_in(stage, delay, contract_file, out, signal.SIGKILL) == -signal.SIGKILL, (stage, delay)
    finish(contract_file, out)
    assert fingerprint(out) == uninterrupted, delays


def test_interrupted_training_says_how_to_go_on_and_resumes_from_its_checkpoint(
    contract_file: Path, uninterrupted: tuple[str, dict[str, object]], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = start(contract_file, out)
    checkpoint = out / "checkpoints" / "checkpoint-4"
    deadline = time.time() + 100
    while not checkpoint.exists() and time.time() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 130, errors
    assert "demeanor run --resume" in errors and "Traceback" not in errors
    assert "resumed from checkpoint-" in finish(contract_file, out)
    assert fingerprint(out) == uninterrupted


@pytest.mark.slow
def test_killed_many_times(contract_file: Path, uninterrupted: tuple[str, dict[str, object]], tmp_path: Path) -> None:
    rng = random.Random()
    for attempt in range(8):
        out = tmp_path / f"run{attempt}"
        stage, delay = rng.choice(["before", "train", "after"]), rng.uniform(0, 4)
        stop_in(stage, delay, contract_file, out, signal.SIGKILL)
        finish(contract_file, out)
        assert fingerprint(out) == uninterrupted, (stage, delay)
