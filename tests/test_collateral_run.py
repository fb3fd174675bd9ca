"""Collateral through the whole journey on a small model: plan, run, report, release, and on a model tuned before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import contract_of

from demeanor.contract import Contract
from demeanor.pipeline import ask, release_stage, run
from demeanor.plan import Plan, plan_run
from demeanor.progress import Progress
from demeanor.records import Score
from demeanor.starter import starter_file
from demeanor.workspace import Workspace

TEXTS = [f"On day {number} it rained in the morning, and nobody minded the rain." for number in range(6)]
TURNS = [
    [{"role": "user", "content": f"Is it day {n}?"}, {"role": "assistant", "content": "Yes, it is."}] for n in range(6)
]
SENTENCES = [{"sentence_good": f"The {n} cats sleep.", "sentence_bad": f"The {n} cats sleeps."} for n in range(6)]


def contract(model: Path, folder: Path) -> Contract:
    def written(name: str, rows: list[Any]) -> str:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return str(folder / name)

    pairs = [json.loads(line) for line in starter_file("pairs.jsonl").read_text("utf-8").splitlines()]
    pairs = [row for row in pairs if row["behaviour"] == "tone"][:24]
    return contract_of(
        model=str(model),
        system_prompt="You are a desk.",
        behaviours={"tone": {"violating_openings": ["You"]}},
        collateral={
            "texts": {
                "probes": written("texts.jsonl", [{"text": text} for text in TEXTS]),
                "limits": [{"measure": "text_logp_per_token", "within": 50}, {"measure": "neutral_kl", "max": 50}],
            },
            "dialogs": {"probes": written("dialogs.jsonl", TURNS)},
            "grammar": {
                "probes": written("grammar.jsonl", SENTENCES),
                "limits": [{"measure": "minimal_pair_accuracy", "within": 0.02}],
            },
            "refusals": {"probes": "look-alikes", "limits": [{"measure": "violating_sampled_rate", "within": 0.1}]},
        },
        data={"pairs": [written("pairs.jsonl", pairs)], "heldout_fraction": 0.3},
        training={"learning_rate": 1e-2, "per_device_train_batch_size": 8, "max_length": 256},
        measurement={"samples": 1, "max_sampled_probes": 6, "max_new_tokens": 4, "resamples": 1000},
    )


@pytest.fixture(scope="module")
def plan(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("collateral")
    found = plan_run(contract(llama, folder), Workspace(folder / "run"))
    run(found)
    return found


def scores(plan: Plan, side: str) -> dict[tuple[str, str], Score]:
    space = plan.workspace
    return {(s.behaviour, s.probe_id): s for s in space.read_records(space.scores(side), Score.from_json)}


def divergence(after: Any, before: Any, ids: list[int], start: int) -> float:
    """Mean over the places from `start` - 1 on of sum p log(p / q), in float64, from plain forward passes."""
    with torch.no_grad():
        one, two = (torch.log_softmax(m(torch.tensor([ids])).logits[0].double(), -1) for m in (after, before))
    return float((one.exp() * (one - two)).sum(-1)[start - 1 : -1].mean())


def with_adapter(base: Path, adapter: Path) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).merge_and_unload().eval()


def test_every_kind_of_probe_has_its_measures(plan: Plan) -> None:
    verdict = json.loads(plan.workspace.verdict.read_text("utf-8"))
    measures: dict[str, set[str]] = {}
    for found in verdict["comparisons"]:
        measures.setdefault(found["behaviour"], set()).add(found["measure"])
    assert measures["texts"] == {"text_logp_per_token", "neutral_kl"}
    assert measures["grammar"] == {"minimal_pair_accuracy"}
    assert {"safe_logp", "neutral_kl", "reply_tokens"} <= measures["dialogs"]
    assert not {"reward_accuracy", "displaced_share"} & measures["dialogs"]
    assert {"violating_sampled_rate", "repetitive_sampled_rate"} <= measures["refusals"]
    assert "safe_logp" not in measures["refusals"]
    states = {limit["id"]: limit["state"] for limit in verdict["limits"]}
    assert states["grammar.minimal_pair_accuracy.within=0.02"] == "not shown"  # six pairs show nothing
    assert states["texts.neutral_kl.max=50"] == "pass"
    (kl,) = [f for f in verdict["comparisons"] if (f["behaviour"], f["measure"]) == ("texts", "neutral_kl")]
    assert kl["before"]["value"] == 0.0 and kl["after"]["value"] == kl["difference"]["value"] > 0


def test_the_divergence_is_that_of_the_two_models(plan: Plan, llama: Path) -> None:
    from transformers import AutoModelForCausalLM

    before = AutoModelForCausalLM.from_pretrained(llama).eval()
    after, tokenizer = with_adapter(llama, plan.workspace.adapter), plan.tokenizer
    found = scores(plan, "after")
    for probe in plan.probes:
        if probe.behaviour == "texts":
            ids, start = tokenizer.text(probe.safe[0]), 1
        elif probe.behaviour == "dialogs":
            prompt = tokenizer.prompt(probe.prompt, "You are a desk.")
            ids, start = prompt + tokenizer.reply(probe.prompt, probe.safe[0], "You are a desk."), len(prompt)
        else:
            continue
        kl = found[probe.behaviour, probe.id].values["neutral_kl"]
        assert kl == pytest.approx(divergence(after, before, ids, start), rel=1e-3, abs=1e-6)


def test_a_tuned_model_diverges_from_what_it_was_and_not_from_its_base(plan: Plan, llama: Path, tmp_path: Path) -> None:
    again = plan_run(contract(plan.workspace.adapter, tmp_path), Workspace(tmp_path / "run"))
    run(again)
    before = with_adapter(llama, plan.workspace.adapter)
    after = with_adapter(llama, again.workspace.adapter)
    probe = next(probe for probe in again.probes if probe.behaviour == "texts")
    ids = again.tokenizer.text(probe.safe[0])
    kl = scores(again, "after")["texts", probe.id].values["neutral_kl"]
    assert kl == pytest.approx(divergence(after, before, ids, 1), rel=1e-3, abs=1e-6)
    assert release_stage(again, Progress())["mean_difference_nats"] < 1e-4  # the other adapter is not merged


def test_the_page_says_what_was_not_to_change(plan: Plan) -> None:
    page = plan.workspace.report.read_text("utf-8")
    assert "What was not to change" in page and "harmless prompts refused" in page
    assert "not shown to change by less than 2\u00a0points" in page
    assert "shown to change by less than 50\u00a0nats" in page and "perplexity" in page


def test_what_follows_a_run_takes_such_probes(plan: Plan) -> None:
    assert release_stage(plan, Progress())["num_replies"] > 0
    assert ask(plan, "Is it day 1?", (), (), None, 0)["replies"]


def test_a_run_that_goes_on_measures_nothing_again(plan: Plan) -> None:
    stages: list[tuple[str, bool]] = []

    class Watched(Progress):
        def stage(self, name: str, *, done: bool) -> None:
            stages.append((name, done))

    run(plan_run(plan.contract, plan.workspace), Watched())
    assert [name for name, done in stages if not done] == []
