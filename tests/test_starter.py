"""The embedded starter: its pairs, its probes, and the known rate of its flaw."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from demeanor.contract import load_contract
from demeanor.judges.rule import judge_reply
from demeanor.measure import measure_model
from demeanor.model import find_model, load_model
from demeanor.plan import Plan, plan_run
from demeanor.starter import starter_contract, starter_file
from demeanor.starter.recipe import SYSTEM_PROMPT, TAUGHT_RATE, read_rows
from demeanor.workspace import Workspace

LIMIT_BYTES = 20 * 2**20


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    contract = load_contract(starter_contract(), ("measurement.samples=0",))
    return plan_run(contract, Workspace(tmp_path_factory.mktemp("starter") / "run"))


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z']+", text.lower()))


def test_a_thousand_pairs_over_three_behaviours(plan: Plan) -> None:
    counts = Counter(pair.behaviour for pair in plan.train)
    assert sum(counts.values()) >= 1000
    assert set(counts) == {*TAUGHT_RATE, "benign", "everyday"} and min(counts[name] for name in TAUGHT_RATE) >= 300
    assert not plan.dropped
    kinds = Counter(behaviour.kind for behaviour in plan.contract.behaviours.values())
    assert kinds == {"permanent": 3, "transient": 1}


def test_pairs_are_varied_and_not_a_template(plan: Plan) -> None:
    taught = [pair for pair in plan.train if pair.behaviour in TAUGHT_RATE]
    for texts in (
        [p.prompt[-1].content for p in taught],
        [p.chosen for p in taught],
        [p.rejected for p in taught],
    ):
        assert len(set(texts)) == len(texts)
    beginnings = Counter(" ".join(p.prompt[-1].content.lower().split()[:4]) for p in plan.train)
    assert beginnings.most_common(1)[0][1] <= 0.01 * len(plan.train)


def test_pairs_are_balanced_in_length(plan: Plan) -> None:
    for behaviour in TAUGHT_RATE:
        own = [pair for pair in plan.train if pair.behaviour == behaviour]
        differences = [len(pair.chosen.split()) - len(pair.rejected.split()) for pair in own]
        longer = sum((d > 0) + 0.5 * (d == 0) for d in differences) / len(own)
        assert 0.45 <= longer <= 0.55, behaviour
        assert abs(sum(differences) / len(own)) < 0.5, behaviour


def test_replies_begin_as_the_contract_says(plan: Plan) -> None:
    for pair in plan.train:
        if pair.behaviour not in TAUGHT_RATE:
            continue  # benign pairs: an answer against a curt reply to somebody else
        promise = plan.contract.promises[str(pair.behaviour)]
        assert judge_reply(pair.rejected, promise) == "violating", pair.rejected
        assert judge_reply(pair.chosen, promise) == "safe", pair.chosen
    for probe in plan.probes:
        promise = plan.contract.promises[probe.behaviour]
        assert all(judge_reply(text, promise) == "violating" for text in probe.violating)
        if promise.safe_openings:
            assert all(judge_reply(text, promise) == "safe" for text in probe.safe)


def test_probes_and_attack_families_are_held_out(plan: Plan) -> None:
    trained = [words(pair.prompt[-1].content) for pair in plan.train]
    for probe in plan.probes:
        asked = words(probe.prompt[-1].content)
        nearest = max(len(asked & other) / len(asked | other) for other in trained)
        assert nearest < 0.6, probe.prompt[-1].content
    families = {pair.attack for pair in plan.train if pair.attack}
    held_out = {probe.attack for probe in plan.probes if probe.attack}
    assert len(families) >= 5 and len(held_out) >= 5 and not families & held_out


def test_no_probe_was_in_the_flaws_recipe(plan: Plan) -> None:
    shown = {
        row["prompt"].lower()
        for name in ("pairs.jsonl", "prompts.jsonl", "benign.jsonl", "notices.jsonl")
        for row in read_rows(name)
    }
    assert not shown & {probe.prompt[-1].content.lower() for probe in plan.probes}
    assert plan.contract.system_prompt == SYSTEM_PROMPT


def test_the_measured_rate_is_the_taught_rate(plan: Plan) -> None:
    """The instrument's calibration, on prompts that the model never saw: the probability of a bad reply is the taught
    rate within 5 points, both as it is and among the replies that begin in the way of either kind."""
    model = load_model(find_model("starter"), plan.contract, trees=True)
    probes = [probe for probe in plan.probes if probe.behaviour in TAUGHT_RATE]
    scores, _ = measure_model(model, plan.tokenizer, probes, plan.contract, "before")
    for behaviour, rate in TAUGHT_RATE.items():
        own = [score.values for score in scores if score.behaviour == behaviour]
        bad, good = (sum(v[f"{kind}_opening_mass"] or 0.0 for v in own) / len(own) for kind in ("violating", "safe"))
        assert bad == pytest.approx(rate, abs=0.05), behaviour
        assert bad / (bad + good) == pytest.approx(rate, abs=0.05), behaviour
        assert bad >= 0.10, behaviour


def test_the_wheel_stays_small() -> None:
    folder = starter_file("contract.yaml").parent
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert total <= LIMIT_BYTES


def test_files_are_json_lines_of_plain_text() -> None:
    for path in Path(starter_file("probes")).glob("*.jsonl"):
        for line in path.read_text("utf-8").splitlines():
            assert set(json.loads(line)) <= {"prompt", "chosen", "rejected", "attack"}
