"""The reward model: TRL's own numbers, the whole run, a resumed one, refusals, and rloo against it."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from conftest import contract_of, make_model
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from test_engine import DATA, Ids, gradients_of, randomise, same_figures, same_gradients, tiny, tokenizer
from test_journey import planned
from trl import RewardConfig, RewardTrainer

from demeanor.cli.console import print_verdict
from demeanor.compare import compare_runs
from demeanor.compare.page import page_of
from demeanor.contract import Contract, Limit, load_contract
from demeanor.errors import ContractError, InputError, Interrupted
from demeanor.pipeline import ask, read_stage, release_stage, run, stage_inputs
from demeanor.plan import Plan, default_contract
from demeanor.progress import Progress
from demeanor.promises import OF_REWARD_MODELS
from demeanor.records import Comparison, Reply, Score, Verdict
from demeanor.train.reward_model import PairCollator, PairRewardTrainer
from demeanor.train.reward_run import find_reward_run, load_reward_run
from demeanor.train.rewards import ModelReward, Rewards, Sample, length_reward
from demeanor.workspace import Workspace

QV, ALL = ["q_proj", "v_proj"], "all-linear"


# --- a step is TRL's


def scorer(family: str = "llama", pad: int = 0) -> Any:
    """`tiny` with a random head of one output in place of its own."""
    causal = tiny(family)
    config = causal.config
    config.num_labels, config.pad_token_id = 1, pad
    model = hf.AutoModelForSequenceClassification.from_config(config)
    model.base_model.load_state_dict(causal.base_model.state_dict())
    torch.manual_seed(5)
    torch.nn.init.normal_(model.score.weight, std=0.3)
    return model.eval()


def trainer_of(
    cls: type[RewardTrainer],
    rows: list[Ids],
    folder: Path,
    *,
    model: Any = None,
    targets: Any = ALL,
    budget: int | None = None,
    trees: bool = True,
    **options: Any,
) -> Any:
    config = RewardConfig(
        output_dir=str(folder), max_length=None, report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True,
        **{"per_device_train_batch_size": 8, "gradient_checkpointing": False, "bf16": False, "logging_steps": 1,
           "learning_rate": 1e-2, "seed": 3, **options},
    )  # fmt: skip
    more: dict[str, Any] = {}
    if cls is PairRewardTrainer:
        more = {"data_collator": PairCollator(0), "trees": trees}
    else:
        whole = [{side: row["prompt_ids"] + row[side] for side in ("chosen_ids", "rejected_ids")} for row in rows]
        rows = whole
    trainer = cls(
        model=model if model is not None else scorer(),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
        peft_config=LoraConfig(r=4, target_modules=targets, task_type="SEQ_CLS"),
        **more,
    )
    if cls is PairRewardTrainer and budget is not None:
        trainer.engine.row_budget = budget
    randomise(trainer.model)
    return trainer


def step(trainer: Any) -> tuple[float, dict[str, torch.Tensor], dict[str, float], int]:
    trainer.current_gradient_accumulation_steps = 1
    passes = []
    compute = trainer.compute_loss
    trainer.compute_loss = lambda *args, **more: (passes.append(1), compute(*args, **more))[1]
    trainer.model.train()
    loss = trainer.training_step(trainer.model, trainer.data_collator(list(trainer.train_dataset))).item()
    trainer.log({})
    return loss, gradients_of(trainer.model), trainer.state.log_history[-1], len(passes)


@pytest.mark.parametrize("budget", [None, 150])
@pytest.mark.parametrize("data", DATA)
def test_a_step_is_trls(data: str, budget: int | None, tmp_path: Path) -> None:
    options: dict[str, Any] = {"center_rewards_coefficient": 0.01} if data == "mixed" else {}
    options |= {"gradient_checkpointing": True} if data == "turns" else {}
    ours = trainer_of(PairRewardTrainer, DATA[data](), tmp_path, budget=budget, **options)
    assert ours.engine is not None and ours.fused["last layers"]
    found, expected = step(ours), step(trainer_of(RewardTrainer, DATA[data](), tmp_path, **options))
    assert (found[3] > 1) == (budget is not None)
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    same_gradients(found[1], expected[1])
    assert any("score" in name for name in found[1])
    same_figures(found[2], expected[2])


@pytest.mark.parametrize("family", ["qwen3", "gemma", "mistral", "gpt2", "gpt_neox", "phi"])
def test_other_families_too(family: str, tmp_path: Path) -> None:
    ours = trainer_of(PairRewardTrainer, DATA["mixed"](), tmp_path, model=scorer(family), budget=150)
    assert ours.engine is not None
    found = step(ours)
    expected = step(trainer_of(RewardTrainer, DATA["mixed"](), tmp_path, model=scorer(family)))
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    same_gradients(found[1], expected[1])


def test_a_step_is_the_formula(tmp_path: Path) -> None:
    """Without TRL: each sequence alone, by plain PyTorch."""
    rows = DATA["mixed"]()
    ours = trainer_of(PairRewardTrainer, rows, tmp_path, targets=QV, budget=150)
    loss, gradients, logs, _ = step(ours)
    plain = get_peft_model(scorer(), LoraConfig(r=4, target_modules=QV, task_type="SEQ_CLS"))
    plain.load_state_dict(ours.model.state_dict())
    plain.train()
    base = plain.get_base_model()

    def reward(ids: list[int]) -> torch.Tensor:
        return base.score(base.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1])[0]

    margins = [reward(r["prompt_ids"] + r["chosen_ids"]) - reward(r["prompt_ids"] + r["rejected_ids"]) for r in rows]
    expected = torch.log1p(torch.exp(-torch.stack(margins))).mean()
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    same_gradients(gradients, gradients_of(plain))
    assert logs["accuracy"] == pytest.approx(sum(margin > 0 for margin in margins).item() / len(margins))


def test_a_training_is_that_of_a_plain_loop(tmp_path: Path) -> None:
    """Without TRL: the same batches from the same start give the same losses and the same rewards at the end."""
    rows = [row for data in ("separate", "system", "turns", "short") for row in DATA[data]()]
    options = {"per_device_train_batch_size": 4, "num_train_epochs": 2, "lr_scheduler_type": "cosine",
               "warmup_steps": 4, "max_grad_norm": 1.0, "learning_rate": 3e-3}  # fmt: skip
    ours = trainer_of(PairRewardTrainer, rows, tmp_path, targets=QV, budget=250, **options)
    plain = get_peft_model(scorer(), LoraConfig(r=4, target_modules=QV, task_type="SEQ_CLS"))
    plain.load_state_dict(ours.model.state_dict())
    batches: list[list[Ids]] = []
    collate = ours.data_collator
    ours.data_collator = lambda rows: (batches.append(rows), collate(rows))[1]
    ours.train()
    assert len(batches) == 2 * len(rows) // 4

    def margins(model: Any, batch: list[Ids]) -> torch.Tensor:
        rewards = [
            model(input_ids=torch.tensor([row["prompt_ids"] + row[side]])).logits[0, 0]
            for row in batch
            for side in ("chosen_ids", "rejected_ids")
        ]
        return torch.stack(rewards).view(-1, 2).diff(dim=1)[:, 0].neg()

    weights = [parameter for parameter in plain.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=3e-3, weight_decay=0.0)
    schedule = hf.get_cosine_schedule_with_warmup(optimizer, 4, len(batches))
    losses = []
    for batch in batches:
        loss = torch.nn.functional.softplus(-margins(plain, batch)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    logged = [entry["loss"] for entry in ours.state.log_history if "loss" in entry]
    assert logged == pytest.approx(losses, rel=1e-3, abs=1e-4) and losses[-1] < losses[0]
    untrained = trainer_of(PairRewardTrainer, rows, tmp_path, targets=QV, trees=False)
    untrained.model.load_state_dict(ours.model.state_dict())
    with torch.no_grad():
        expected, found = (margins(model, rows) for model in (plain, untrained.model))
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


def test_the_end_of_turn_may_be_the_padding(tmp_path: Path) -> None:
    """Where a tokenizer has no token for padding: transformers then reads the token before the end."""
    rows = [{**row, **{side: [*row[side], 2] for side in ("chosen_ids", "rejected_ids")}} for row in DATA["mixed"]()]
    both = []
    for cls in (PairRewardTrainer, RewardTrainer):
        trainer = trainer_of(cls, rows, tmp_path, model=scorer(pad=2))
        trainer.model.config.pad_token_id = trainer.data_collator.pad_token_id = 2
        both.append(step(trainer))
    assert both[0][0] == pytest.approx(both[1][0], rel=1e-5)
    same_gradients(both[0][1], both[1][1])


def test_a_model_whose_attention_takes_no_trees_is_trained_on_padded_batches(tmp_path: Path) -> None:
    lines: list[str] = []
    model = scorer("gemma2")
    trainer = PairRewardTrainer(
        model=model,
        args=RewardConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False),
        train_dataset=Dataset.from_list(DATA["mixed"]()),
        processing_class=tokenizer(),
        data_collator=PairCollator(0),
        peft_config=LoraConfig(r=4, target_modules=QV, task_type="SEQ_CLS"),
        say=lines.append,
    )
    assert trainer.engine is None and "padded batches, because" in lines[0]
    trainer.current_gradient_accumulation_steps = 1
    assert trainer.training_step(trainer.model, trainer._collate(list(trainer.train_dataset))).isfinite()


# --- the whole run


class Lines(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def wordy_pairs(path: Path, num: int = 80) -> Path:
    """Pairs whose winning reply says "glad" and whose losing one says "sad": what a reward model can learn at once."""
    rng = random.Random(0)
    topics = ["lamp", "door", "train", "garden", "radio", "letter", "window", "river", "bread", "clock"]
    rows = []
    for number in range(num):
        about = f"{rng.choice(topics)} and the {rng.choice(topics)} number {number}"
        other = rng.choice(topics)
        rows.append({
            "prompt": f"Tell me of the {about}.",
            "chosen": f"I am glad of the {other}.",
            "rejected": f"I am sad of the {other}.",
            "behaviour": "tone",
        })  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def a_contract(model: Path, pairs: Path, **training: Any) -> Contract:
    """Of a reward model, unless `training` says otherwise."""
    limits = [{"measure": "reward_accuracy", "min": 0.5}]
    return contract_of(
        model=str(model),
        behaviours={"tone": {"limits": limits, "safe_openings": ["I am glad"]}},
        data={"pairs": [str(pairs)], "heldout_fraction": 0.3},
        training={
            "objective": "reward",
            "learning_rate": 2e-2,
            "per_device_train_batch_size": 4,
            "lora_target_modules": "all-linear",
            "save_steps": 4,
            **training,
        },
        measurement={"samples": 2, "max_sampled_probes": 12, "max_new_tokens": 6, "resamples": 1000},
    )


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wordy_pairs(tmp_path_factory.mktemp("wordy") / "pairs.jsonl")


@pytest.fixture(scope="module")
def reward_run(llama: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    plan = planned(a_contract(llama, pairs), tmp_path_factory.mktemp("runs") / "rm")
    run(plan)
    return plan


def found(verdict: Verdict, measure: str) -> Comparison:
    (own,) = (c for c in verdict.comparisons if c.measure == measure)
    return own


def verdict_of(workspace: Workspace) -> Verdict:
    return Verdict.from_json(workspace.read_json(workspace.verdict))


def test_the_run_is_judged_by_its_accuracy_on_held_out_pairs(
    reward_run: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = reward_run.workspace
    verdict, summary = verdict_of(workspace), workspace.read_json(workspace.training)
    accuracy, loss = found(verdict, "reward_accuracy"), found(verdict, "validation_loss")
    assert verdict.passed and accuracy.after.n == len(reward_run.probes) >= 20
    assert accuracy.after.value is not None and accuracy.after.value > 0.9
    assert accuracy.before.value is not None and accuracy.before.value < 0.9  # a head that has learned nothing
    assert loss.after.value is not None and loss.before.value is not None and loss.after.value < loss.before.value
    assert found(verdict, "length_accuracy").after.n == len(reward_run.probes)
    assert {c.measure for c in verdict.comparisons} == set(OF_REWARD_MODELS)
    assert summary["engine"] == "tree" and summary["reference"] == "none" and summary["step0_margin_nats"] is None
    assert summary["peak_bytes"] > 0 and summary["memory_bytes"]["head"] == 0
    assert not workspace.read_records(workspace.replies("after"), Reply.from_json)
    print_verdict(verdict, ())
    told = capsys.readouterr().out
    assert f"tone: reward accuracy {accuracy.before.value:.3f} → {accuracy.after.value:.3f} [" in told
    assert f"validation loss {loss.before.value:.3f} → " in told and "ln 2" not in told and "bad reply" not in told
    page = workspace.report.read_text("utf-8")
    assert "winning reply preferred, of the pair" in page
    assert "The reward model prefers the winning reply of" in page and "replies to nobody" in page
    assert "Mean reward of the training replies" in page and "after only" in page  # of length alone


def test_the_scores_are_those_of_plain_peft(reward_run: Plan, llama: Path) -> None:
    workspace, tokenizer = reward_run.workspace, reward_run.tokenizer
    base = hf.AutoModelForSequenceClassification.from_pretrained(llama, num_labels=1, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, workspace.adapter).eval()
    scores = {s.probe_id: s.values for s in workspace.read_records(workspace.scores("after"), Score.from_json)}
    for probe in reward_run.probes[:5]:
        for text, name in ((probe.safe[0], "safe_reward"), (probe.violating[0], "violating_reward")):
            ids = tokenizer.prompt(probe.prompt) + tokenizer.reply(probe.prompt, text)
            with torch.no_grad():
                assert scores[probe.id][name] == pytest.approx(model(torch.tensor([ids])).logits.item(), abs=1e-4)


def test_padded_batches_train_the_same_model(reward_run: Plan, llama: Path, pairs: Path, tmp_path: Path) -> None:
    plan = planned(a_contract(llama, pairs, engine="padded"), tmp_path / "run")
    run(plan)
    summary = plan.workspace.read_json(plan.workspace.training)
    assert summary["engine"] == "padded"
    ours = reward_run.workspace.read_json(reward_run.workspace.training)
    logged = [[row["loss"] for row in one["log"] if "loss" in row] for one in (summary, ours)]
    assert len(logged[0]) > 1 and logged[0] == pytest.approx(logged[1], abs=2e-3)


def test_a_resumed_training_ends_with_the_same_weights(
    reward_run: Plan, llama: Path, pairs: Path, tmp_path: Path
) -> None:
    plan = planned(a_contract(llama, pairs), tmp_path / "run")
    workspace = plan.workspace
    seen: list[int] = []

    class Stopped(Lines):
        @contextmanager
        def bar(self, label: str, total: int) -> Iterator[Any]:
            def advance(done: int = 1, **figures: Any) -> None:
                seen.append(done)
                if label == "train" and (workspace.checkpoints / "checkpoint-8" / "complete.json").exists():
                    raise KeyboardInterrupt

            yield advance

    with pytest.raises(Interrupted, match="demeanor run --resume"):
        run(plan, Stopped())
    assert not workspace.adapter.exists()
    lines = Lines()
    run(plan, lines)
    assert "resumed from checkpoint-8" in lines.lines
    files = [w.adapter / "adapter_model.safetensors" for w in (workspace, reward_run.workspace)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert workspace.verdict.read_bytes() == reward_run.workspace.verdict.read_bytes()


def test_a_done_run_is_not_done_again_and_another_seed_is_another_head(reward_run: Plan) -> None:
    ran: list[str] = []

    class Recorder(Progress):
        def stage(self, name: str, *, done: bool) -> None:
            ran.extend([] if done else [name])

    run(reward_run, Recorder())
    assert ran == []
    other = reward_run.contract.model_copy(update={"training": reward_run.contract.training.model_copy(
        update={"seed": 1})})  # fmt: skip
    inputs = [stage_inputs("before", reward_run.workspace, c, {}) for c in (reward_run.contract, other)]
    assert inputs[0] != inputs[1]


def test_a_reward_model_is_no_policy(reward_run: Plan, llama: Path, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a reward model is not released"):
        release_stage(reward_run, Progress())
    with pytest.raises(InputError, match="a reward model replies to nobody"):
        ask(reward_run, "Tell me.", (), (), None, 0)
    again = Workspace(shutil.copytree(reward_run.workspace.folder, tmp_path / "again"))
    folders = [reward_run.workspace.folder, again.folder]
    compared = compare_runs(folders)
    assert [result.passed for result in compared.runs] == [True, True]
    assert page_of(compared) and not compared.runs[0].proofs[0].bad
    good = compared.runs[0].proofs[0].good
    assert good is not None and good.measure == "reward_accuracy"
    assert compared.choice.run is None and "highest held-out accuracy is that of rm, 100" in compared.choice.reason
    policy = planned(a_contract(llama, pairs, objective="dpo", max_steps=1), tmp_path / "dpo")
    run(policy)
    with pytest.raises(InputError, match=r"differs in what is trained \(a policy, not a reward model\)"):
        compare_runs([folders[0], policy.workspace.folder])


@pytest.mark.parametrize("section", ["behaviours", "collateral"])
def test_a_limit_that_a_reward_model_cannot_answer_is_refused(section: str, tmp_path: Path) -> None:
    for objective, measure, told in (
        ("reward", "violating_opening_mass", "cannot be held to violating_opening_mass; only to reward_accuracy"),
        ("reward", "reward", "cannot be held to reward;"),
        ("dpo", "safe_reward", "safe_reward is a reward model's; dpo trains none"),
    ):
        limits = [{"measure": "reward_accuracy", "min": 0.5}, {"measure": measure, "max": 0.01}]
        with pytest.raises(ContractError, match=told) as caught:
            contract_of(training={"objective": objective}, **{section: {"tone": {"limits": limits}}})
        assert f"{section}.tone.limits.1" in str(caught.value)


def test_a_run_without_contract_asks_for_better_than_chance(llama: Path, pairs: Path, tmp_path: Path) -> None:
    settings = ("training.objective=reward", "training.learning_rate=0.02", "training.num_train_epochs=4",
                "data.heldout_fraction=0.3",
                "training.lora_target_modules=all-linear", "measurement.resamples=1000")  # fmt: skip
    verdict = run(planned(default_contract(str(pairs), str(llama), "rm", settings), tmp_path / "rm"))
    assert [limit.measure for limit in verdict.limits] == ["reward_accuracy", "validation_loss"]
    assert verdict.passed


def test_a_tuned_model_and_a_model_without_a_head_are_refused(reward_run: Plan, pairs: Path, tmp_path: Path) -> None:
    tuned = a_contract(reward_run.workspace.adapter, pairs)
    with pytest.raises(InputError, match="cannot be trained on a model that has an adapter already"):
        run(planned(tuned, tmp_path / "run"))
    headless = tmp_path / "headless"
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    hf.GraniteForCausalLM(hf.GraniteConfig(vocab_size=8192, pad_token_id=0, **sizes)).save_pretrained(headless)
    tokenizer().save_pretrained(headless)
    with pytest.raises(InputError, match="cannot be built with a reward head"):
        run(planned(a_contract(headless, pairs), tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_the_head_keeps_its_digits_on_a_model_in_bfloat16(reward_run: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("demeanor.model._how_to_load", lambda *_: {"dtype": torch.bfloat16})
    model = load_reward_run(find_reward_run(str(reward_run.workspace.folder)))
    assert model.model.dtype == torch.bfloat16
    (reward,) = model.of([(reward_run.probes[0].prompt, "I am glad.")])
    assert torch.tensor(reward).bfloat16().float().item() != reward


def test_the_head_keeps_its_digits_in_training_under_bfloat16(tmp_path: Path) -> None:
    """TRL's own loss under bfloat16 is made of rewards that were rounded to two or three digits."""
    trainer = trainer_of(PairRewardTrainer, DATA["mixed"](), tmp_path)
    batch = trainer.data_collator(list(trainer.train_dataset))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        rewards = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert rewards.dtype == torch.float32 and not torch.equal(rewards, rewards.bfloat16().float())


# --- as a reward


def rewarded(llama: Path, pairs: Path, path: object, objective: str = "rloo", **training: Any) -> Contract:
    more = {"rewards": [{"kind": "model", "path": str(path)}, {"kind": "length", "max": 5, "weight": 0.25}]}
    options = {"num_generations": 4, "max_completion_length": 6, "max_steps": 6, "beta": 0.0, **more, **training}
    contract = a_contract(llama, pairs, objective=objective, **options)
    promise = contract.behaviours["tone"]
    limits = (Limit(measure="reward", min_increase=0),)
    return contract.model_copy(update={"behaviours": {"tone": promise.model_copy(update={"limits": limits})}})


def a_sample(plan: Plan, text: str, num_tokens: int = 3) -> Sample:
    return Sample("row 1", plan.probes[0].prompt, "tone", [5], [9] * num_tokens, text)


def test_it_is_weighed_among_other_rewards(reward_run: Plan, llama: Path, pairs: Path) -> None:
    rewards = Rewards(rewarded(llama, pairs, reward_run.workspace.folder))
    texts = ["I am glad of the lamp.", "I am sad of the lamp.", "", "<|end|> I am glad", "word " * 600]
    samples = [a_sample(reward_run, text, num_tokens=10) for text in texts]
    assert isinstance(rewards.functions[0], ModelReward)
    own = rewards.functions[0](samples)
    assert own[0] > own[1] and all(map(math.isfinite, own))
    assert own[:1] == pytest.approx(rewards.functions[0](samples[:1]), abs=1e-5)  # whatever its company
    assert rewards.of(samples) == pytest.approx([value + 0.25 * 0 for value in own])
    short = a_sample(reward_run, texts[0], num_tokens=5)
    assert rewards.of([short])[0] == pytest.approx(own[0] + 0.25, abs=1e-5)


@pytest.mark.parametrize("objective", ["rloo", "grpo"])
def test_online_training_against_it(reward_run: Plan, llama: Path, pairs: Path, tmp_path: Path, objective: str) -> None:
    plan, lines = planned(rewarded(llama, pairs, reward_run.workspace.folder, objective), tmp_path / "run"), Lines()
    verdict = run(plan, lines)
    workspace = plan.workspace
    reward = found(verdict, "reward")
    assert reward.difference.n == 12 and reward.after.value != reward.before.value
    replies = workspace.read_records(workspace.replies("after"), Reply.from_json)
    probes = {probe.id: probe for probe in plan.probes}
    rewards = Rewards(plan.contract)
    for reply in replies[:4]:
        sample = Sample("", probes[reply.probe_id].prompt, "tone", [], [1] * reply.num_tokens, reply.text)
        assert reply.reward == pytest.approx(rewards.of([sample])[0], abs=1e-4)
    assert any(line.startswith("reward model ") and "its own verdict passed" in line for line in lines.lines)
    summary = workspace.read_json(workspace.training)
    assert summary["reward_model_seconds"] == reward_run.workspace.read_json(reward_run.workspace.training)["seconds"]
    usage = compare_runs([workspace.folder]).runs[0].usage
    assert usage.charged_seconds == summary["reward_model_seconds"]


def test_what_a_run_depends_on_names_the_reward_model(
    reward_run: Plan, llama: Path, pairs: Path, tmp_path: Path
) -> None:
    model = Workspace(shutil.copytree(reward_run.workspace.folder, tmp_path / "rm"))
    contract = rewarded(llama, pairs, model.folder)
    plan = planned(contract, tmp_path / "run")

    def inputs(name: str) -> dict[str, Any]:
        return stage_inputs(name, plan.workspace, contract, plan.identity)

    read_stage(plan, Progress())
    before = {name: inputs(name) for name in ("train", "before")}
    manifest = model.manifest()
    manifest["stages"]["train"]["outputs"]["training.json"] = "another"
    model.write_json(model.manifest_file, manifest)
    for name, known in before.items():
        assert list(known["reward_models"]) == [str(model.folder)]
        assert inputs(name) != known
    no_model = stage_inputs("train", plan.workspace, a_contract(llama, pairs), plan.identity)
    assert "reward_models" not in no_model
    for name, known in before.items():
        plan.workspace.stage(name, known, lambda: None)
    shutil.rmtree(model.folder)  # the finished run stays what it is
    assert all(plan.workspace.is_done(name, inputs(name)) for name in before)


def test_a_folder_that_is_no_finished_reward_run_is_refused_before_anything_is_written(
    reward_run: Plan, llama: Path, pairs: Path, tmp_path: Path
) -> None:
    def refused(path: Path) -> str:
        plan = planned(rewarded(llama, pairs, path), tmp_path / "run")
        with pytest.raises(InputError) as caught:
            run(plan)
        assert not plan.workspace.folder.exists() and caught.value.exit_code == 2
        return str(caught.value)

    assert "is no finished run of a reward model: " in refused(tmp_path / "none")
    copies = [Workspace(shutil.copytree(reward_run.workspace.folder, tmp_path / f"copy{n}")) for n in range(4)]
    (copies[0].adapter / "adapter_model.safetensors").write_bytes(b"other")
    assert "was altered" in refused(copies[0].folder)
    manifest = copies[1].manifest()
    del manifest["stages"]["prove"]
    copies[1].write_json(copies[1].manifest_file, manifest)
    assert "'prove' has not been run" in refused(copies[1].folder)
    contract = copies[2].contract(("training.lora_r=4",))
    copies[2].start(contract)
    assert "do not belong together" in refused(copies[2].folder)
    copies[3].start(copies[3].contract(("training.objective=dpo", "training.beta=0.1")))
    assert "is a run with objective dpo, not reward" in refused(copies[3].folder)


def test_a_model_reward_needs_its_path(tmp_path: Path) -> None:
    for item, told in (
        ({"kind": "model"}, "needs a path"),
        ({"kind": "judge", "path": "x"}, "belongs to the reward function or model"),
    ):
        with pytest.raises(ContractError, match=told):
            contract_of(training={"rewards": [item]})
    file = tmp_path / "contract.yaml"
    file.write_text("data: {pairs: [starter]}\ntraining: {rewards: [{kind: model, path: runs/rm}]}\n", "utf-8")
    (reward,) = load_contract(file).training.rewards
    assert reward.path == str(tmp_path / "runs" / "rm") and reward.title == "rm"


def test_it_reads_by_its_own_tokenizer(reward_run: Plan, pairs: Path, tmp_path: Path) -> None:
    """A policy of another family, with another chat template, under the same reward model: the same rewards."""
    other = make_model("gpt2", tmp_path / "gpt2")
    contract = rewarded(other, pairs, reward_run.workspace.folder, lora_target_modules=["c_attn"], max_steps=2)
    contract = contract.model_copy(update={"chat_template": "plain"})
    plan = planned(contract, tmp_path / "run")
    run(plan)
    replies = plan.workspace.read_records(plan.workspace.replies("before"), Reply.from_json)
    model = load_reward_run(find_reward_run(str(reward_run.workspace.folder)))
    probes = {probe.id: probe for probe in plan.probes}
    for reply in replies[:3]:
        (own,) = model.of([(probes[reply.probe_id].prompt, reply.text)])
        length = 0.25 * length_reward(reply.num_tokens, None, 5)
        assert reply.reward == pytest.approx(own + length, abs=1e-4)
