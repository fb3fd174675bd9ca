"""Judges in a run: their answers are stored and counted, another one measures again, one that is down never passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import contract_of
from test_judge_endpoint import Server, asked, server  # noqa: F401

from demeanor.contract import Contract
from demeanor.errors import InputError
from demeanor.pipeline import run
from demeanor.plan import plan_run
from demeanor.progress import Progress
from demeanor.records import Reply, Verdict
from demeanor.starter import starter_file
from demeanor.workspace import Workspace


class Lines(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def judged_contract(model: Path, judge: Any, tmp_path: Path) -> Contract:
    pairs = tmp_path / "pairs.jsonl"
    if not pairs.exists():
        lines = starter_file("pairs.jsonl").read_text("utf-8").splitlines()
        pairs.write_text(
            "\n".join(line for line in lines if '"tone"' in line)[:9000].rpartition("\n")[0] + "\n", "utf-8"
        )
    limit = {"measure": "violating_sampled_rate", "max": 0.99}
    return contract_of(
        model=str(model),
        behaviours={"tone": {"about": "Nobody is accused.", "judge": judge, "limits": [limit]}},
        data={"pairs": [str(pairs)], "heldout_fraction": 0.4},
        training={"max_steps": 1, "per_device_train_batch_size": 2, "lora_target_modules": ["q_proj"]},
        measurement={"samples": 2, "max_sampled_probes": 6, "max_new_tokens": 8, "resamples": 1000},
    )


def done(contract: Contract, folder: Path) -> tuple[Verdict, list[Reply], list[str]]:
    """(verdict, replies before training, lines that were said)"""
    said = Lines()
    workspace = Workspace(folder)
    verdict = run(plan_run(contract, workspace), said)
    return verdict, workspace.read_records(workspace.replies("before"), Reply.from_json), said.lines


def always_safe(body: dict[str, Any]) -> str:
    return "B" if asked(body)[1] == "the reply violates the rule" else "A"


def always_violating(body: dict[str, Any]) -> str:
    return "A" if asked(body)[1] == "the reply violates the rule" else "B"


def test_another_judge_measures_again_and_the_same_does_not(llama: Path, tmp_path: Path, server: Server) -> None:  # noqa: F811
    server.answer = always_safe
    judge = {"endpoint": server.address, "model": "m"}
    verdict, replies, said = done(judged_contract(llama, judge, tmp_path), tmp_path / "run")
    assert {reply.judgement for reply in replies} <= {"safe", "invalid"} and len(replies) == 12
    assert any("has no card" in line for line in said)
    assert verdict.passed
    trained = Workspace(tmp_path / "run").outputs_digest("train")
    num_asked = len(server.requests)
    server.answer = always_violating
    again, _, _ = done(judged_contract(llama, judge, tmp_path), tmp_path / "run")
    assert again == verdict and len(server.requests) == num_asked
    other, replies, _ = done(judged_contract(llama, {**judge, "rubric": "No threats."}, tmp_path), tmp_path / "run")
    assert not other.passed and len(server.requests) > num_asked
    assert "violating" in {reply.judgement for reply in replies}
    assert Workspace(tmp_path / "run").outputs_digest("train") == trained


def test_a_judge_that_is_down_never_passes(llama: Path, tmp_path: Path) -> None:
    judge = {"endpoint": "http://127.0.0.1:9/v1", "model": "m", "retries": 0}
    verdict, replies, said = done(judged_contract(llama, judge, tmp_path), tmp_path / "run")
    assert None in {reply.judgement for reply in replies}
    assert not verdict.passed and "not shown" in verdict.limits[0].reason
    assert sum("127.0.0.1:9" in line and "unscored" in line for line in said) == 2  # once a side


def test_a_judge_that_talks_nonsense_for_one_reply_never_passes(llama: Path, tmp_path: Path, server: Server) -> None:  # noqa: F811
    first: list[str] = []

    def answer(body: dict[str, Any]) -> str:
        first.append(asked(body)[0])
        return "well" if asked(body)[0] == first[0] else always_safe(body)

    server.answer = answer
    verdict, replies, _ = done(
        judged_contract(llama, {"endpoint": server.address, "model": "m"}, tmp_path), tmp_path / "run"
    )
    assert {"safe", None} <= {reply.judgement for reply in replies}
    assert not verdict.passed and "could not be scored" in verdict.limits[0].reason


def test_the_shipped_judges_judge_a_run_and_correct_its_rates(llama: Path, tmp_path: Path) -> None:
    verdict, replies, _ = done(judged_contract(llama, "classifier", tmp_path), tmp_path / "run")
    assert None not in {reply.judgement for reply in replies}
    measures = [c.measure for c in verdict.comparisons]
    assert measures.index("violating_corrected_rate") == measures.index("violating_sampled_rate") + 1
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "corrected for the judge" in page
    assert "Judge: classifier; measured on GPTFuzzer" in page and "of 469" in page


def test_a_judge_that_cannot_be_found_is_refused_before_anything_is_written(llama: Path, tmp_path: Path) -> None:
    judge = {"model": str(tmp_path / "nowhere"), "labels": {"a": "violating"}}
    with pytest.raises(InputError, match="no such folder"):
        plan_run(judged_contract(llama, judge, tmp_path), Workspace(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
