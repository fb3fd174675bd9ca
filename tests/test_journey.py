"""The journey on small models of each family: run, released, loaded again with plain PEFT and plain transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import contract_of, make_model

from demeanor.contract import Contract
from demeanor.measure.likelihood import Scorer
from demeanor.pipeline import ask, release_stage, run
from demeanor.plan import Plan, plan_run
from demeanor.progress import Progress
from demeanor.records import DroppedRow, Score
from demeanor.starter import starter_file
from demeanor.workspace import Workspace


def small_contract(model: Path, pairs: Path, **training: object) -> Contract:
    return contract_of(
        model=str(model),
        chat_template="plain" if "gpt2" in str(model) else None,
        behaviours={
            "tone": {
                "violating_openings": ["You violated", "Read the"],
                "safe_openings": ["I'm sorry", "Thanks for"],
                "limits": [{"measure": "violating_opening_mass", "max": 0.5}],
            }
        },
        data={"pairs": [str(pairs)], "heldout_fraction": 0.3},
        training={
            "learning_rate": 1e-2,
            "per_device_train_batch_size": 4,
            "save_steps": 2,
            "lora_target_modules": ["c_attn"] if "gpt2" in str(model) else ["q_proj", "v_proj"],
            **training,
        },
        measurement={"samples": 1, "max_sampled_probes": 3, "max_new_tokens": 4, "resamples": 1000},
    )


@pytest.fixture(scope="session")
def few_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "few.jsonl"
    rows = [json.loads(line) for line in starter_file("pairs.jsonl").read_text("utf-8").splitlines()]
    rows = [row for row in rows if row["behaviour"] == "tone"][:30]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def planned(contract: Contract, folder: Path) -> Plan:
    return plan_run(contract, Workspace(folder))


def test_every_family_end_to_end(family_model: tuple[str, Path], few_pairs: Path, tmp_path: Path) -> None:
    family, model = family_model
    plan = planned(small_contract(model, few_pairs), tmp_path / "run")
    verdict = run(plan)
    workspace = plan.workspace
    summary = workspace.read_json(workspace.training)
    assert summary["step0_margin_nats"] == 0.0 and summary["steps"] > 2
    masses = [c for c in verdict.comparisons if c.measure == "violating_opening_mass"]
    assert masses[0].after.n == len(plan.probes)
    before, after = (workspace.read_records(workspace.scores(side), Score.from_json) for side in ("before", "after"))
    assert any(a.values["safe_logp"] != b.values["safe_logp"] for a, b in zip(before, after, strict=True)), family

    parity = release_stage(plan, Progress())
    assert parity["proven"] is verdict.passed
    assert parity["dtype"] == "float32" and parity["mean_difference_nats"] <= 1e-4

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with_adapter = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), workspace.adapter).eval()
    merged = AutoModelForCausalLM.from_pretrained(workspace.model).eval()
    probe = plan.probes[0]
    ids = plan.tokenizer.prompt(probe.prompt) + plan.tokenizer.reply(probe.prompt, probe.safe[0])
    start = len(plan.tokenizer.prompt(probe.prompt))
    for loaded in (with_adapter, merged):
        with torch.no_grad():
            logps = torch.log_softmax(loaded(torch.tensor([ids])).logits[0].float(), -1)
        total = sum(logps[place - 1, ids[place]].item() for place in range(start, len(ids)))
        assert total == pytest.approx(after[0].values["safe_logp"], abs=2e-3)


@pytest.mark.parametrize("reference", ["copy", "precomputed"])
def test_the_other_references_train_alike(llama: Path, few_pairs: Path, tmp_path: Path, reference: str) -> None:
    from safetensors.torch import load_file

    adapters = {}
    for name in ("adapter-off", reference):
        plan = planned(small_contract(llama, few_pairs, reference=name), tmp_path / name)
        run(plan)
        summary = plan.workspace.read_json(plan.workspace.training)
        assert summary["step0_margin_nats"] < 1e-3
        adapters[name] = load_file(plan.workspace.adapter / "adapter_model.safetensors")
    for key, value in adapters["adapter-off"].items():
        # the first Adam steps divide by the gradient's own size, which enlarges rounding
        assert torch.allclose(value, adapters[reference][key], atol=2e-3), key


def test_a_tuned_model_is_the_reference_of_its_next_training(llama: Path, few_pairs: Path, tmp_path: Path) -> None:
    first = planned(small_contract(llama, few_pairs), tmp_path / "first")
    run(first)
    second = planned(small_contract(first.workspace.adapter, few_pairs), tmp_path / "second")
    run(second)
    summary = second.workspace.read_json(second.workspace.training)
    assert summary["step0_margin_nats"] == 0.0
    after_first, before_second = (
        {s.probe_id: s for s in w.read_records(w.scores(side), Score.from_json)}
        for w, side in ((first.workspace, "after"), (second.workspace, "before"))
    )
    for probe_id, score in before_second.items():
        assert score.values["safe_logp"] == pytest.approx(after_first[probe_id].values["safe_logp"], abs=2e-3)


def test_a_reference_that_is_not_the_model_is_refused(
    llama: Path, few_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import demeanor.train as train
    from demeanor.errors import StageError

    other = make_model("llama", tmp_path / "other", seed=1)
    plan = planned(small_contract(llama, few_pairs, reference="copy"), tmp_path / "run")
    real = train.load_model

    def wrong(source, contract, **options):  # type: ignore[no-untyped-def]
        from demeanor.model import find_model

        return real(source if "tuned" in options else find_model(str(other)), contract, **options)

    monkeypatch.setattr(train, "load_model", wrong)
    with pytest.raises(StageError, match="margin before the first step"):
        run(plan)
    assert not plan.workspace.adapter.exists()


def test_done_stages_are_skipped_and_changed_ones_run_again(llama: Path, few_pairs: Path, tmp_path: Path) -> None:
    class Recorder(Progress):
        def __init__(self) -> None:
            self.ran: list[str] = []

        def stage(self, name: str, *, done: bool) -> None:
            if not done:
                self.ran.append(name)

    folder = tmp_path / "run"
    run(planned(small_contract(llama, few_pairs), folder), first := Recorder())
    assert first.ran == ["read", "before", "train", "after", "prove", "report"]
    run(planned(small_contract(llama, few_pairs), folder), second := Recorder())
    assert second.ran == []
    run(planned(small_contract(llama, few_pairs, beta=0.2), folder), third := Recorder())
    assert third.ran == ["train", "after", "prove", "report"]


def test_what_is_not_used_is_listed_with_its_reason(llama: Path, few_pairs: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in few_pairs.read_text("utf-8").splitlines()]
    rows[0]["rejected"] = rows[0]["chosen"]
    rows[1]["chosen"] += "<|end|>"
    rows[2]["behaviour"] = "notice"
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    contract = small_contract(llama, path)
    data = contract.model_dump(mode="json", exclude_none=True)
    data["system_prompt"] = "Notice: {notice}"
    data["behaviours"]["notice"] = {"kind": "transient", "value": "Closed on Monday."}
    from demeanor.contract import build_contract

    plan = planned(build_contract(data), tmp_path / "run")
    run(plan)
    dropped = plan.workspace.read_records(plan.workspace.dropped, lambda data: DroppedRow(**data))
    reasons = {item.row: item.reason for item in dropped}
    assert reasons[1] == "chosen and rejected are identical"
    assert "special token" in reasons[2]
    assert "transient behaviour notice" in reasons[3]


def test_no_probe_prompt_is_trained_on(llama: Path, few_pairs: Path, tmp_path: Path) -> None:
    contract = small_contract(llama, few_pairs)
    probes = tmp_path / "probes.jsonl"
    rows = [json.loads(line) for line in few_pairs.read_text("utf-8").splitlines()[:5]]
    loud = [{**row, "prompt": row["prompt"].upper().replace(" ", "  ")} for row in rows]
    probes.write_text("".join(json.dumps(row) + "\n" for row in loud), "utf-8")
    data = contract.model_dump(mode="json", exclude_none=True)
    data["behaviours"]["tone"]["probes"] = str(probes)
    data["data"]["heldout_fraction"] = 0
    from demeanor.contract import build_contract

    plan = planned(build_contract(data), tmp_path / "run")
    asked = {row["prompt"] for row in rows}
    assert len(plan.probes) == len(asked) == 5
    assert not asked & {pair.prompt[-1].content for pair in plan.train}
    assert sum(item.reason == "its prompt is a probe" for item in plan.dropped) == 5


def test_measuring_again_gives_the_same_numbers(llama: Path, few_pairs: Path, tmp_path: Path) -> None:
    plans = [planned(small_contract(llama, few_pairs), tmp_path / name) for name in ("one", "two")]
    for plan in plans:
        run(plan)
    one, two = (plan.workspace for plan in plans)
    for file in ("scores/before.jsonl", "scores/after.jsonl", "replies/after.jsonl", "verdict.json", "report.html"):
        assert (one.folder / file).exists()
    for file in (
        "scores/before.jsonl",
        "scores/after.jsonl",
        "replies/before.jsonl",
        "replies/after.jsonl",
        "verdict.json",
    ):
        assert (one.folder / file).read_bytes() == (two.folder / file).read_bytes(), file
    assert (one.adapter / "adapter_model.safetensors").read_bytes() == (
        two.adapter / "adapter_model.safetensors"
    ).read_bytes()


def test_ask_gives_the_numbers_of_the_scores(llama: Path, few_pairs: Path, tmp_path: Path) -> None:
    plan = planned(small_contract(llama, few_pairs), tmp_path / "run")
    run(plan)
    probe = plan.probes[2]
    answer = ask(plan, probe.prompt[-1].content, (), (), None, 0)
    shown = {row["what"]: row for row in answer["probabilities"]}
    scores = {s.probe_id: s for s in plan.workspace.read_records(plan.workspace.scores("after"), Score.from_json)}
    own = scores[probe.id].values
    assert shown["log p of the safe reply"]["after"] == pytest.approx(own["safe_logp"], abs=1e-4)
    assert shown["tone: begins with a bad opening"]["after"] == pytest.approx(own["violating_opening_mass"], rel=1e-4)
    assert set(answer["replies"]) == {"before", "after"}


def test_scorer_of_peft_model_uses_the_adapter(llama: Path, few_pairs: Path, tmp_path: Path) -> None:
    plan = planned(small_contract(llama, few_pairs), tmp_path / "run")
    run(plan)
    from demeanor.pipeline import load_aligned

    aligned = load_aligned(plan)
    prompt, reply = [5, 6, 7], [8, 9]
    (on,) = Scorer(aligned).logps([prompt], [[reply]])
    with aligned.disable_adapter():
        (off,) = Scorer(aligned).logps([prompt], [[reply]])
    assert on != off
