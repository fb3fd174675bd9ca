"""A sweep: what is combined, which defaults hold, what is refused before anything is written, and what is run again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import make_model
from test_cli import Command, demeanor, snapshot  # noqa: F401 -- a fixture
from test_journey import few_pairs, small_contract  # noqa: F401 -- a fixture

import demeanor.sweep as sweeping
from demeanor.errors import InputError, Interrupted
from demeanor.pipeline import run
from demeanor.plan import plan_run
from demeanor.sweep import Base, combine, parse_axes, read_base, run_in_its_own_process
from demeanor.workspace import Workspace


def run_here(folder: Path, measured: Sequence[Path] = ()) -> int:
    """What a run's own process does, in this one."""
    workspace = Workspace.open(folder)
    return 0 if run(plan_run(workspace.contract(), workspace), measured=measured).passed else 1


@pytest.fixture(scope="module")
def contract_file(tmp_path_factory: pytest.TempPathFactory, few_pairs: Path) -> Path:  # noqa: F811
    """A contract whose file sets what only dpo may use."""
    folder = tmp_path_factory.mktemp("sweep")
    contract = small_contract(make_model("llama", folder / "model"), few_pairs)
    data = contract.model_dump(mode="json", exclude_unset=True)
    data["training"] |= {"beta": 0.3, "sft_weight": 0.5, "loss_type": "hinge"}
    data["measurement"] |= {"samples": 0}
    (folder / "contract.yaml").write_text(yaml.safe_dump(data), "utf-8")
    return folder / "contract.yaml"


def base_of(**training: Any) -> Base:
    return Base({"data": {"pairs": ["pairs.jsonl"]}, "training": training}, None, "contract.yaml", Path.cwd())


def contracts(base: Base, axes: list[str], settings: tuple[str, ...] = ()) -> dict[str, Any]:
    """Name of a combination -> the training section of its contract."""
    return {
        one.name: base.contract(one.overrides, one.without).training
        for one in combine(base, parse_axes(axes), settings)[0]
    }


# what is combined


def test_axes_are_read_as_yaml() -> None:
    beta, layers = parse_axes(["beta=0.05, 1e-1", "training.lora_target_modules=[q_proj, v_proj],all-linear"])
    assert (beta.key, beta.values) == ("training.beta", ("0.05", "1e-1"))
    assert layers.values == ("[q_proj, v_proj]", "all-linear") and layers.short == "lora_target_modules"
    assert parse_axes(["measurement.seed=1"])[0].key == "measurement.seed"


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["beta"], "key=value,value"),
        (["beta="], "key=value,value"),
        (["=1,2"], "key=value,value"),
        (["beta=[1,2"], "key=value,value"),
        (["beta=1,2,1"], "stands twice"),
        (["beta=1", "training.beta=2"], "swept twice"),
    ],
)
def test_what_is_no_axis_is_refused(texts: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_axes(texts)


def test_the_product_with_telling_names() -> None:
    found = contracts(base_of(), ["objective=dpo,ipo", "beta=0.05,0.1"])
    assert list(found) == [
        "objective-dpo_beta-0.05",
        "objective-dpo_beta-0.1",
        "objective-ipo_beta-0.05",
        "objective-ipo_beta-0.1",
    ]
    assert [(t.objective, t.beta) for t in found.values()] == [
        ("dpo", 0.05), ("dpo", 0.1), ("ipo", 0.05), ("ipo", 0.1),
    ]  # fmt: skip
    assert list(contracts(base_of(), ["lora_target_modules=[q_proj, k_proj],all-linear"])) == [
        "lora_target_modules-q_proj-k_proj",
        "lora_target_modules-all-linear",
    ]


def test_what_the_file_tunes_holds_for_its_own_objective_alone() -> None:
    base = base_of(objective="simpo", beta=3.0, gamma=1.5, sft_weight=0.2, learning_rate=1e-3, num_train_epochs=2)
    found = contracts(base, ["objective=simpo,dpo,orpo"])
    tuned = {name: (t.beta, t.gamma, t.sft_weight, t.learning_rate) for name, t in found.items()}
    assert tuned == {
        "objective-simpo": (3.0, 1.5, 0.2, 1e-3),
        "objective-dpo": (0.1, 0.0, 0.0, None),
        "objective-orpo": (0.5, 0.0, 1.0, None),
    }
    assert all(t.num_train_epochs == 2 for t in found.values())
    notes = combine(base, parse_axes(["objective=simpo,dpo,orpo"]))[1]
    assert len(notes) == 1 and "beta, gamma, learning_rate, sft_weight" in notes[0]
    assert "hold for simpo; dpo, orpo take their own defaults" in notes[0]
    # without an objective on an axis nothing is taken away
    assert contracts(base, ["beta=1,2"])["beta-1"].gamma == 1.5


def test_what_is_swept_or_set_holds_for_all() -> None:
    base = base_of(beta=0.3, learning_rate=1e-3)
    found = contracts(base, ["objective=dpo,cpo", "beta=0.7,0.8"], ("training.learning_rate=0.02",))
    assert [(t.beta, t.learning_rate) for t in found.values()] == [(0.7, 0.02), (0.8, 0.02)] * 2


def test_a_key_that_an_objective_does_not_take_is_left_out_for_it() -> None:
    base = base_of(reference="copy", loss_type="hinge")
    axes = ["objective=dpo,simpo", "gamma=0.5,1.5"]
    found = contracts(base, axes, ("training.ld_alpha=0.5",))
    assert list(found) == ["objective-dpo", "objective-simpo_gamma-0.5", "objective-simpo_gamma-1.5"]
    dpo, simpo, _ = found.values()
    assert dpo.reference == "copy" and dpo.trl_options == {"loss_type": "hinge", "ld_alpha": 0.5}
    assert simpo.reference == "precomputed" and simpo.trl_options == {} and simpo.gamma == 0.5
    notes = combine(base, parse_axes(axes), ("training.ld_alpha=0.5",))[1]
    assert any(note.startswith("gamma is left out for dpo") for note in notes)
    assert any(note.startswith("ld_alpha is left out for simpo") for note in notes)
    with pytest.raises(InputError, match="margin of objective simpo"):  # none of the swept takes it
        contracts(base_of(), ["objective=dpo,ipo", "gamma=0.5,1.5"])


def test_swept_and_set_is_refused() -> None:
    with pytest.raises(InputError, match="swept and set"):
        combine(base_of(), parse_axes(["beta=1,2"]), ("training.beta=3",))


# what is refused before anything is written


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        (["objective=dpo,simp"], "the combination objective-simp is refused: --set training.objective=simp"),
        (["beta=0.1,-1"], "the combination beta--1 is refused"),
        (["lora_target_modules=[q_proj],[nowhere]"], "no layers called nowhere"),
        (["bet=0.1,0.2"], "did you mean beta"),
        (["measurement.seed=0,1"], "measurement.seed-1: cannot be compared with measurement.seed-0"),
        (["data.max_pairs=20,30"], "it differs in the training pairs"),
    ],
)
def test_a_bad_combination_names_itself_and_nothing_is_written(
    axes: list[str],
    words: str,
    demeanor: Command,  # noqa: F811
    contract_file: Path,
    tmp_path: Path,
) -> None:
    code, out, err = demeanor("run", contract_file, "--sweep", *axes, "--out", tmp_path / "runs")
    assert code == 2 and err.count("\n") == 1 and words in err, err
    assert out == "" and not (tmp_path / "runs").exists()


def test_where_a_sweep_cannot_go(demeanor: Command, contract_file: Path, tmp_path: Path) -> None:  # noqa: F811
    axes = ("--sweep", "beta=0.1,0.2")
    Workspace(tmp_path / "run").start(read_base(contract_file).contract((), frozenset()))
    before = snapshot(tmp_path)
    code, _, err = demeanor("run", contract_file, *axes, "--out", tmp_path / "run")
    assert code == 2 and "is a run folder" in err
    code, _, err = demeanor("run", tmp_path / "run", *axes)
    assert code == 2 and "a sweep needs a contract" in err
    code, _, err = demeanor("run", "--resume", tmp_path / "run", *axes)
    assert code == 2 and "--sweep needs no --resume" in err
    code, _, err = demeanor("run", "nowhere.yaml", *axes)
    assert code == 2 and "no such contract" in err
    code, _, err = demeanor("run", contract_file, "beta=0.1,0.2")
    assert code == 2 and "one CONTRACT at a time" in err
    assert snapshot(tmp_path) == before


# what is run


def test_runs_are_made_compared_and_not_made_again(
    demeanor: Command,  # noqa: F811
    contract_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[str] = []

    def start(folder: Path, measured: Sequence[Path]) -> int:
        started.append(folder.name)
        if folder.name == broken:
            raise InputError("the disk is full")
        return run_here(folder, measured)

    monkeypatch.setattr(sweeping, "run_in_its_own_process", start)
    out = tmp_path / "runs"
    broken = "objective-simpo_seed-0_beta-0.6"
    command = ("run", contract_file, "--sweep", "objective=dpo,simpo", "beta=0.6", "--sweep", "seed=0", "--out", out)
    code, _, err = demeanor(*command, "--json")
    assert code == 3 and started == ["objective-dpo_seed-0_beta-0.6", broken]
    assert f"{broken}: the disk is full" in err and "1 of 2 runs did not finish" in err
    assert "loss_type, sft_weight in the contract hold for dpo; simpo take" in err
    assert len(json.loads((out / "compare.json").read_text())["runs"]) == 1

    broken, started[:] = "", []
    code, printed, _ = demeanor(*command, "--json")
    assert started == ["objective-simpo_seed-0_beta-0.6"]
    compared = json.loads(printed)
    passed = [Workspace(folder).read_json(folder / "verdict.json")["passed"] for folder in sorted(out.glob("obj*"))]
    assert code == (0 if any(passed) else 1)
    dpo, simpo = compared["runs"]
    assert dpo["settings"] | {"learning_rate": 0} == {
        "objective": "dpo", "gamma": 0.0, "sft_weight": 0.5, "loss_type": "hinge", "learning_rate": 0,
    }  # fmt: skip
    assert simpo["settings"]["sft_weight"] == 0.0 and simpo["settings"]["gamma"] == 1.0
    assert (dpo["usage"]["charged_seconds"] > 0) and simpo["usage"]["charged_seconds"] == 0
    assert (out / "compare.html").is_file()

    started.clear()
    code, printed, err = demeanor(*command)
    assert started == [] and err.count("done before") == 2
    assert "simpo" in printed and "Rule: " in printed


def test_the_model_before_training_is_measured_once(contract_file: Path, tmp_path: Path) -> None:
    def finished(name: str, *settings: str, measured: Sequence[Path] = ()) -> Workspace:
        base = read_base(contract_file)
        workspace = Workspace(tmp_path / name)
        workspace.start(base.contract(("measurement.samples=1", "training.max_steps=1", *settings), frozenset()))
        run_here(workspace.folder, measured)
        return workspace

    def adopted(workspace: Workspace) -> str | None:
        return workspace.manifest()["stages"]["before"].get("adopted_from")

    first = finished("first")
    measured = (first.folder,)
    alone = finished("alone", "training.beta=0.7")
    second = finished("second", "training.beta=0.7", measured=measured)
    assert adopted(first) is adopted(alone) is None and adopted(second) == str(first.folder.resolve())
    for file in (first.scores("before"), first.replies("before"), first.verdict):
        name = file.relative_to(first.folder)
        assert (second.folder / name).read_bytes() == (alone.folder / name).read_bytes()
    assert adopted(finished("another", "measurement.seed=5", measured=measured)) is None  # other replies are sampled
    first.scores("before").write_text("{}\n")
    assert adopted(finished("third", "training.beta=0.8", measured=measured)) is None


def test_an_interrupted_sweep_goes_on_where_it_was(
    demeanor: Command,  # noqa: F811
    contract_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[str] = []

    def stopped(folder: Path, measured: Sequence[Path]) -> int:
        started.append(folder.name)
        if len(started) == 2:
            raise Interrupted("the sweep was interrupted; the same command goes on with it")
        return 0

    monkeypatch.setattr(sweeping, "run_in_its_own_process", stopped)
    command = ("run", contract_file, "--sweep", "beta=1,2,3", "--out", tmp_path)
    code, _, err = demeanor(*command)
    assert code == 130 and started == ["beta-1", "beta-2"] and "the same command goes on" in err
    assert not (tmp_path / "compare.json").exists()


def test_the_starter_is_swept_when_no_contract_is_named(
    demeanor: Command,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in `demeanor run --sweep objective=dpo,orpo beta=0.05`, and by name."""
    trained: dict[str, Any] = {}

    def start(folder: Path, measured: Sequence[Path]) -> int:
        trained[folder.name] = Workspace.open(folder).contract()
        return -9

    monkeypatch.setattr(sweeping, "run_in_its_own_process", start)
    code, _, err = demeanor("run", "--sweep", "objective=dpo,orpo", "beta=0.05", "--out", tmp_path / "a")
    assert code == 3 and "no CONTRACT is given" in err and "killed by signal 9" in err
    dpo, orpo = trained["objective-dpo_beta-0.05"], trained["objective-orpo_beta-0.05"]
    assert dpo.name == "larkhold: objective-dpo_beta-0.05" and dpo.model == "starter"
    assert (dpo.training.sft_weight, dpo.training.learning_rate, dpo.training.beta) == (1.0, 0.001, 0.05)
    assert (orpo.training.learning_rate, orpo.training.beta, orpo.training.lora_r) == (None, 0.05, 16)
    assert (tmp_path / "a" / "objective-orpo_beta-0.05" / "contract.yaml").is_file()


def test_pairs_without_a_contract_are_swept_too(
    demeanor: Command,  # noqa: F811
    contract_file: Path,
    few_pairs: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sweeping, "run_in_its_own_process", run_here)
    model = contract_file.parent / "model"
    more = ("--set", "data.heldout_fraction=0.3", "--set", "measurement.samples=0", "--out", tmp_path)
    code, out, err = demeanor("run", "--pairs", few_pairs, "--model", model, "--sweep", "lora_r=2,4", *more, "--json")
    assert code in (0, 1), err
    compared = json.loads(out)
    assert [one["settings"] for one in compared["runs"]] == [{"lora_r": 2}, {"lora_r": 4}]
    assert compared["runs"][0]["proofs"][0]["bad"]["measure"] == "violating_choice_probability"
    assert compared["runs"][0]["damages"] == [] and "none promised" in (tmp_path / "compare.html").read_text()


def test_a_run_of_its_own_process_says_how_it_ended(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_in_its_own_process(tmp_path / "nowhere") == 2
    out, err = capfd.readouterr()
    assert out == "" and "nowhere" in err


@pytest.mark.slow
def test_a_sweep_stopped_by_ctrl_c_keeps_the_steps_and_ends_well(contract_file: Path, tmp_path: Path) -> None:
    """With real processes: the signal reaches the training, which writes a checkpoint; the same command resumes it."""
    command = [
        sys.executable, "-m", "demeanor", "run", str(contract_file), "--sweep", "beta=0.1,0.2", "--out", str(tmp_path),
        "--set", "training.num_train_epochs=12",
    ]  # fmt: skip
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    checkpoints = tmp_path / "beta-0.1" / "checkpoints"
    until = time.monotonic() + 300
    while not list(checkpoints.glob("checkpoint-*/complete.json")):
        assert time.monotonic() < until and first.poll() is None
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGINT)
    err = first.communicate(timeout=120)[1]
    assert first.returncode == 130 and "the same command goes on with it" in err, err
    assert not (tmp_path / "beta-0.1" / "adapter").exists() and list(checkpoints.glob("checkpoint-*/complete.json"))
    second = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert second.returncode in (0, 1), second.stderr
    assert "resumed from checkpoint-" in second.stderr and "compare.html" in second.stderr
    runs = json.loads((tmp_path / "compare.json").read_text())["runs"]
    steps = [json.loads((Path(one["folder"]) / "training.json").read_text())["steps"] for one in runs]
    assert len(set(steps)) == 1 and len(runs) == 2
    before = Workspace(tmp_path / "beta-0.2").manifest()["stages"]["before"]
    assert before["adopted_from"] == str((tmp_path / "beta-0.1").resolve())
    third = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert third.stderr.count("done before") == 2
