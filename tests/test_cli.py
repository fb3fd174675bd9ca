"""The command line: one clear line and exit code 2 for wrong input, which leaves the run folder as it was."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import make_model
from test_journey import few_pairs, small_contract  # noqa: F401 -- a fixture

from demeanor.cli import app, main
from demeanor.contract import dump_contract

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def demeanor(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Call the command line in this process: (exit code, standard output, standard error)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["demeanor", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as error:
            code = int(error.code or 0)
        out, err = capfd.readouterr()
        return code, out, err

    return call


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, few_pairs: Path) -> tuple[Path, Path]:  # noqa: F811
    """(contract file, run folder) of a finished run."""
    from demeanor.pipeline import run
    from demeanor.plan import plan_run
    from demeanor.workspace import Workspace

    folder = tmp_path_factory.mktemp("cli")
    contract = small_contract(make_model("llama", folder / "model"), few_pairs)
    (folder / "contract.yaml").write_text(dump_contract(contract), "utf-8")
    run(plan_run(contract, Workspace(folder / "run")))
    return folder / "contract.yaml", folder / "run"


def bad_inputs(folder: Path) -> dict[str, tuple[list[str], str]]:
    """Name -> (options of --set, words that the one line must hold)."""
    good = json.dumps({"prompt": "Hello?", "chosen": "Good day to you.", "rejected": "What now?"})
    truncated = folder / "truncated.jsonl.gz"
    truncated.write_bytes(gzip.compress(("\n".join([good] * 5000)).encode())[:-40])
    no_pairs = folder / "no-pairs.jsonl"
    no_pairs.write_text(json.dumps({"name": "Anna", "age": 7}) + "\n", "utf-8")
    same = folder / "same.jsonl"
    same.write_text(json.dumps({"prompt": "Hello?", "chosen": "Good day.", "rejected": "Good day."}) + "\n", "utf-8")
    bare = make_model("gpt2", folder / "bare")
    return {
        "missing file": ([f"data.pairs={folder}/nowhere.jsonl"], "nowhere.jsonl"),
        "truncated gz": ([f"data.pairs={truncated}"], "ends early"),
        "no pairs": ([f"data.pairs={no_pairs}"], "name"),
        "identical replies": ([f"data.pairs={same}"], "identical"),
        "wrong key": (["training.lora_rank=4"], "did you mean lora_r"),
        "wrong value": (["training.beta=-1"], "training.beta"),
        "wrong loss": (["training.loss_type=sigmod"], "did you mean sigmoid"),
        "openings with the same tokens": (['behaviours.tone.safe_openings=["Yes", " Yes"]'], "same tokens"),
        "unknown model": (["model=/no/such/model"], "/no/such/model"),
        "model without weights": ([f"model={folder}"], "config.json"),
        "empty held-out set": (["data.heldout_fraction=0"], "held-out set is empty"),
        "no chat template": ([f"model={bare}"], "chat template"),
    }


@pytest.mark.parametrize(
    "name",
    [
        "missing file", "truncated gz", "no pairs", "identical replies", "wrong key", "wrong value", "wrong loss",
        "openings with the same tokens", "unknown model",
        "model without weights", "empty held-out set", "no chat template",
    ],
)  # fmt: skip
def test_wrong_input_is_one_line_and_changes_nothing(
    name: str, demeanor: Command, finished: tuple[Path, Path], tmp_path: Path
) -> None:
    contract, run_folder = finished
    options, words = bad_inputs(tmp_path)[name]
    before = snapshot(run_folder)
    for out in (run_folder, tmp_path / "new"):
        code, _, err = demeanor("run", contract, "--out", out, *[part for item in options for part in ("--set", item)])
        assert code == 2, err
        assert err.count("\n") == 1 and err.startswith("demeanor: ") and words in err, err
    assert snapshot(run_folder) == before
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written(demeanor: Command, finished: tuple[Path, Path], tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("x", "utf-8")
    code, _, err = demeanor("run", finished[0], "--out", blocked / "run")
    assert code == 2 and str(blocked) in err and "--out" in err and "Traceback" not in err
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine", "utf-8")
    code, _, err = demeanor("run", finished[0], "--out", foreign)
    assert code == 2 and "holds files that are not a run's" in err
    assert snapshot(foreign) == {"thesis.txt": b"mine"}


def test_an_altered_file_is_refused_with_its_name(demeanor: Command, finished: tuple[Path, Path]) -> None:
    _, folder = finished
    file = folder / "scores" / "after.jsonl"
    kept = file.read_bytes()
    file.write_bytes(kept.replace(b"0.", b"1.", 1))
    for command in (("prove", folder), ("run", "--resume", folder)):
        code, _, err = demeanor(*command)
        assert code == 2 and "after.jsonl" in err and "altered" in err, err
    file.write_bytes(kept)
    assert demeanor("prove", folder)[0] in (0, 1)


@pytest.mark.parametrize(
    "setting",
    [
        'behaviours.tone.violating_openings=["zzz"]',
        "training.beta=5",
        "measurement.temperature=0.5",
        "system_prompt=Be kind.",
    ],
)
def test_evidence_that_was_made_under_other_settings_is_refused(
    setting: str, demeanor: Command, finished: tuple[Path, Path]
) -> None:
    _, folder = finished
    before = snapshot(folder)
    for command in (("prove", folder), ("report", folder), ("release", folder, "--unproven")):
        code, _, err = demeanor(*command, "--set", setting)
        assert code == 2 and "other settings" in err, (command, err)
    assert snapshot(folder) == before


def test_a_model_without_the_layers_is_refused_before_anything_is_done(
    demeanor: Command, finished: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "new"
    code, _, err = demeanor("run", finished[0], "--out", out, "--set", "training.lora_target_modules=[q_proj, v_porj]")
    assert code == 2 and "no layers called v_porj" in err and "v_proj" in err and not out.exists()


def test_pairs_with_labels_run_without_a_contract(
    demeanor: Command, finished: tuple[Path, Path], tmp_path: Path
) -> None:
    contract, _ = finished
    rows = [
        {"prompt": f"Is {n} free?", "chosen": f"Yes, {n} is.", "rejected": "No.", "category": "x"} for n in range(40)
    ]
    pairs = tmp_path / "labelled.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    more = ("--set", "data.heldout_fraction=0.3", "--set", "measurement.samples=0", "--json")
    model = contract.parent / "model"
    code, out, err = demeanor("run", "--pairs", pairs, "--model", model, "--out", tmp_path / "run", *more)
    assert code in (0, 1), err
    assert {limit["behaviour"] for limit in json.loads(out)["limits"]} == {"preference"}


def test_run_says_what_to_give(demeanor: Command) -> None:
    code, _, err = demeanor("run")
    assert code == 2 and "CONTRACT" in err
    code, _, err = demeanor("run", "a.yaml", "--pairs", "b.jsonl")
    assert code == 2 and "exclude each other" in err
    code, _, err = demeanor("prove", "nowhere")
    assert code == 2 and "not a run folder" in err


def test_json_of_each_command(demeanor: Command, finished: tuple[Path, Path], tmp_path: Path) -> None:
    contract, folder = finished
    code, out, _ = demeanor("run", contract, "--out", folder, "--json")
    verdict = json.loads(out)
    assert code == (0 if verdict["passed"] else 1)
    assert {"id", "behaviour", "measure", "before", "after", "difference", "low", "high", "n", "passed"} <= set(
        verdict["limits"][0]
    )
    assert json.loads(demeanor("prove", folder, "--json")[1]) == verdict
    assert set(json.loads(demeanor("measure", folder, "--json")[1])) == {"before", "after"}
    assert Path(json.loads(demeanor("report", folder, "--json")[1])["report"]).is_file()
    assert json.loads(demeanor("train", folder, "--json")[1])["steps"] > 0
    answer = json.loads(
        demeanor("ask", folder, "Hello?", "--violating", "Go away.", "--safe", "Good day.", "--json")[1]
    )
    assert {row["what"] for row in answer["probabilities"]} >= {
        "log p of the violating reply",
        "log p of the safe reply",
    }
    released = json.loads(demeanor("release", folder, "--unproven", "--json")[1])
    assert Path(released["model"], "model.safetensors").is_file()
    written = json.loads(demeanor("init", tmp_path / "new", "--json")[1])
    assert Path(written["contract"]).is_file()


def test_a_failed_verdict_is_not_released(demeanor: Command, finished: tuple[Path, Path], tmp_path: Path) -> None:
    _, folder = finished
    assert demeanor("prove", folder, "--set", "behaviours.tone.limits=[{measure: safe_opening_mass, min: 0.9}]")[0] == 1
    code, _, err = demeanor("release", folder)
    assert code == 2 and "verdict" in err and "--unproven" in err


def test_every_command_has_help_with_an_example() -> None:
    for command in app.registered_commands:
        assert command.callback is not None and "Example" in (command.callback.__doc__ or ""), command.name
        takes = set(command.callback.__annotations__)
        assert "as_json" in takes or command.name == "review", command.name  # which is a dialogue in a terminal
        assert "settings" in takes or command.name == "curate", command.name  # which knows no contract


def test_init_sets_keys_and_keeps_its_comments(demeanor: Command, tmp_path: Path) -> None:
    from demeanor.contract import load_contract

    folder = tmp_path / "new"
    assert demeanor("init", folder, "--set", "training.beta=0.3", "--set", "model=org/name")[0] == 0
    contract = load_contract(folder / "contract.yaml")
    assert (contract.training.beta, contract.model) == (0.3, "org/name")
    assert "# files, folders or Hub ids" in (folder / "contract.yaml").read_text("utf-8")
    code, _, err = demeanor("init", tmp_path / "other", "--set", "training.bet=0.3")
    assert code == 2 and "did you mean beta" in err and not (tmp_path / "other").exists()


def test_keys_are_those_of_every_section(demeanor: Command) -> None:
    lines = demeanor("init", "--keys")[1].splitlines()
    for start in (
        "measurement.served.SIDE.timeout_s [120.0]: seconds for a reply",
        "objective orpo: SFT - beta log s(log odds(w) - log odds(l))",
        "measure text_logp_per_token: ",
    ):
        assert [line for line in lines if line.startswith(start)], start
    (beta,) = (line for line in lines if line.startswith("training.beta "))
    assert "default by objective: simpo 2, orpo 0.5, grpo 0.04, rloo 0.04, all others 0.1" in beta


def test_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "demeanor", "--help"], capture_output=True, text=True, check=True)
    assert "demo" in done.stdout


def test_an_audit_is_refused_before_its_work(demeanor: Command, tmp_path: Path) -> None:
    """Whatever is wrong beside the pairs is said before they are read: here they are not even there."""
    (tmp_path / "file").touch()
    limit = ["--contract", "starter", "--set"]
    for options, words in (
        (["--out", tmp_path / "file"], "cannot be written: is no folder -- give another --out"),
        (["--out", tmp_path / "file" / "below"], "cannot be written: "),
        (["--only", "lenght"], "--only: no check is called 'lenght'; did you mean length?"),
        (["--decisions", tmp_path / "absent"], "cannot be read"),
        (["--benchmark", tmp_path / "exam.csv"], "exam.csv: no such file or folder"),
        (["--heldout", tmp_path / "held.csv"], "held.csv: no such file or folder"),
        ([*limit, "audit.lenght.max_longer_wins=1"], "audit: no check is called 'lenght'; did you mean length?"),
        ([*limit, "audit.length.longest=1"], "audit.length: no limit 'longest' -- it has max_longer_wins"),
        *(
            ([*limit, f"audit.{name}={value}"], f"audit.{name}: cannot be {value} -- give a number above 0 and up to 1")
            for name in ("leakage.near", "duplicates.near", "duplicates.near_prompts")
            for value in (0, 7, -1)
        ),
        ([*limit, "audit.budget.tflops=0"], "audit.budget.tflops: cannot be 0 -- give a number above 0"),
    ):
        code, _, err = demeanor("audit", tmp_path / "absent.jsonl", *options)
        assert code == 2 and err.count("\n") == 1 and words in err


def test_an_audit_that_blocks_exits_with_1_until_a_person_kept_the_pair(demeanor: Command, tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}?", "chosen": f"Day {n}.", "rejected": f"No {n}."} for n in range(4)]
    file, out = tmp_path / "p.jsonl", tmp_path / "audit"
    options = ["--only", "private", "--out", out, "--json"]

    def audit(*more: object) -> tuple[int, list[tuple[str, int]], str]:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        code, told, _ = demeanor("audit", file, *options, *more)
        findings = json.loads(told)["findings"]
        return (
            code,
            [(item["severity"], item["num_pairs"]) for item in findings],
            findings[0]["what"] if findings else "",
        )

    assert audit() == (0, [], "")
    rows[1]["rejected"] = rows[2]["chosen"] = "Take AKIAIOSFODNN7EXAMPLE."
    code, found, _ = audit()
    assert (code, found) == (1, [("blocks", 2)])
    decisions = tmp_path / "d.jsonl"
    ids = [json.loads(line)["id"] for line in (out / "flagged.jsonl").read_text().splitlines()]
    keep = {"id": ids[1], "decision": "keep"}
    for findings, expected in (
        (["private.email"], (1, [("blocks", 2)])),  # kept for something else
        (["private.key"], (0, [("warns", 1)])),  # in the rejected reply it only warns
        ([], (0, [("warns", 1)])),
    ):
        decisions.write_text(json.dumps({**keep, "findings": findings}) + "\n")
        code, found, what = audit("--decisions", decisions)
        assert (code, found) == expected and what.endswith("; 1 kept by decision") == (code == 0)
    decisions.write_text("".join(json.dumps({**keep, "id": name}) + "\n" for name in ids))
    assert audit("--decisions", decisions)[:2] == (0, [("informs", 0)])
    assert (out / "flagged.jsonl").read_text() == ""
    rows[2]["chosen"] += " Now."  # another text: nobody decided about it
    assert audit("--decisions", decisions)[:2] == (1, [("blocks", 1)])


def test_an_audit_shows_the_lengths_of_each_source(demeanor: Command, tmp_path: Path) -> None:
    for name, replies in (("a", ("Good day to you.", "What?")), ("b", ("No.", "What is it now?"))):
        row = json.dumps({"prompt": f"Hello {name}?", "chosen": replies[0], "rejected": replies[1]})
        (tmp_path / f"{name}.jsonl").write_text(row + "\n")
    files = [tmp_path / f"{name}.jsonl" for name in "ab"]
    code, out, _ = demeanor("audit", *files, "--only", "length", "--out", tmp_path / "audit")
    (first, second) = (line.split() for line in out.splitlines() if line.strip().startswith("source "))
    assert code == 0 and first[:5] == ["source", "a.jsonl", "1", "1", "0"] and first[-1] == "+11.0"
    assert second[:5] == ["source", "b.jsonl", "1", "0", "1"] and second[-1] == "-12.0"
    assert "area under the curve" in " ".join(out.split())


def test_an_audit_in_a_pipe_has_no_empty_lines_and_counts_in_words(demeanor: Command, tmp_path: Path) -> None:
    row = json.dumps({"prompt": "Hello?", "chosen": "Good day.", "rejected": "What now?"})
    (tmp_path / "p.jsonl").write_text(row + "\n")
    code, out, err = demeanor("audit", tmp_path / "p.jsonl", "--only", "coverage", "--out", tmp_path / "audit")
    assert code == 0 and out.splitlines()[-1] == "1 pair of 1 row: 0 findings that block, 1 warning, 1 to know"
    assert "to know" in out and "add pairs under attack; there are none of" in out  # with its remedy
    assert out.index("attacks") < out.index("to look at") < out.index("below the aim")  # the gravest at the end
    assert all(line.strip() for line in err.splitlines())
    assert err.splitlines()[0].strip().startswith("reading p.jsonl: ") and err.splitlines()[0].endswith("pairs 1")
