"""GRPO: TRL's own loss and gradients on the engine, advantages by hand, a reward that rises, a resumed training."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from conftest import contract_of
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from test_engine import same_gradients
from test_journey import few_pairs, planned
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerControl, TrainerState
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from demeanor.contract import Contract
from demeanor.errors import InputError, StageError
from demeanor.measure import measure_model
from demeanor.pipeline import run
from demeanor.progress import Progress
from demeanor.records import PreferencePair, Probe, Reply
from demeanor.report import write_report
from demeanor.tokens import Tokenizer, make_tokenizer, tokenize_pairs
from demeanor.train import check_training, grpo, rloo, sampling, steps_a_window
from demeanor.train.callbacks import WholeWindows
from demeanor.train.rewards import Rewards, Sample
from demeanor.train.rloo import LeaveOneOutTrainer
from demeanor.train.sampling import Sampling, Source, prompts_of, zero_variance

__all__ = ["few_pairs"]  # the fixture
TONE = {"tone": {"violating_openings": ["You should"], "safe_openings": ["I'm sorry"]}}
E_SHARE = "def share(replies):\n    return [r.count('e') / max(1, len(r)) for r in replies]\n"


def read(path: Path) -> list[PreferencePair]:
    from demeanor.pairs import read_pairs

    return list(read_pairs(path, behaviour="tone").pairs)


def make(llama: Path, pairs: Path, tmp_path: Path, *, trees: bool = True, **training: Any) -> Sampling:
    settings = {"objective": "grpo", "per_device_train_batch_size": 2, "num_generations": 4, **training}
    contract = contract_of(model=str(llama), behaviours=TONE, training=settings, measurement={"max_new_tokens": 12})
    inner = AutoTokenizer.from_pretrained(llama)
    tokenizer = make_tokenizer(inner, [inner.eos_token_id])
    records = read(pairs)
    tokens, _ = tokenize_pairs(records, tokenizer)
    family = {"grpo": grpo, "rloo": rloo}[contract.training.objective]
    arguments = family.make_arguments(
        contract, tmp_path, learning_rate=1e-3, bf16=False, use_cpu=True, gradient_checkpointing=False
    )
    trainer: Sampling = family.make_trainer(
        contract,
        arguments,
        inner,
        tokens,
        source=Source(tokenizer, records),
        model=AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32),
        peft_config=LoraConfig(target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM"),
        trees=trees,
        callbacks=[],
    )
    give_random_adapter(trainer.model)
    return trainer


def plain(llama: Path, trainer: Sampling) -> Any:
    """TRL's own, with the same weights and options."""
    names = ["beta", "num_generations", "max_completion_length", "temperature", "num_iterations"]
    ours, kind, config = trainer.args, GRPOTrainer, GRPOConfig
    if isinstance(trainer, LeaveOneOutTrainer):
        kind, config = RLOOTrainer, RLOOConfig
    else:
        names.append("loss_type")
    args = config(
        output_dir=trainer.args.output_dir, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
        per_device_train_batch_size=8, **{name: getattr(ours, name) for name in names},
    )  # fmt: skip
    theirs = kind(
        model=AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=args,
        train_dataset=Dataset.from_list([{"prompt": "Hello."}] * 4),
        processing_class=AutoTokenizer.from_pretrained(llama),
        peft_config=LoraConfig(target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM"),
    )
    give_random_adapter(theirs.model)
    return theirs


def give_random_adapter(model: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    for _, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1


def a_batch(trainer: Sampling, seed: int = 5) -> dict[str, torch.Tensor]:
    """Two prompts with four replies of unlike lengths each, as TRL lays them out; advantages and an older policy."""
    generator = torch.Generator().manual_seed(seed)
    rows = [row for row in trainer.train_dataset.select([0, 1]) for _ in range(4)]
    lengths = [12, 3, 1, 7, 2, 12, 5, 9]
    made = [
        {"prompt_ids": row["prompt_ids"], "reply_ids": torch.randint(3, 8000, (n,), generator=generator).tolist()}
        for row, n in zip(rows, lengths, strict=True)
    ]
    batch = trainer._collate(made)
    start = max(len(row["prompt_ids"]) for row in made)
    assert len({len(row["prompt_ids"]) for row in made}) == 2  # padded on the left
    logps = {
        name: -torch.rand(8, 12, generator=generator) * 2 - 8 for name in ("old_per_token_logps", "ref_per_token_logps")
    }
    return {
        "prompt_ids": batch["input_ids"][:, :start],
        "prompt_mask": batch["attention_mask"][:, :start],
        "completion_ids": batch["input_ids"][:, start:],
        "completion_mask": batch["attention_mask"][:, start:],
        "advantages": torch.randn(8, generator=generator),
        "old_logps": -torch.rand(8, generator=generator) - torch.tensor(lengths) * 9.0,
        "num_items_in_batch": torch.tensor(float(sum(lengths))),
        **logps,
    }


def loss_and_gradients(trainer: Any, batch: dict[str, torch.Tensor]) -> tuple[float, dict[str, torch.Tensor]]:
    trainer.model.train()
    trainer.model.zero_grad()
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer.compute_loss(trainer.model, copy.copy(batch))
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "training",
    [{}, {"beta": 0.5, "temperature": 0.7}, {"loss_type": "grpo", "beta": 0.0},
     {"loss_type": "dr_grpo", "num_iterations": 2}, {"objective": "rloo"}, {"objective": "rloo", "temperature": 1.3}],
)  # fmt: skip
def test_loss_and_gradients_are_trls(llama: Path, few_pairs: Path, tmp_path: Path, training: dict[str, Any]) -> None:
    ours = make(llama, few_pairs, tmp_path, **training)
    assert ours.engine is not None and ours.fused
    theirs, batch = plain(llama, ours), a_batch(ours)
    loss, gradients = loss_and_gradients(ours, batch)
    expected, wanted = loss_and_gradients(theirs, batch)
    assert loss == pytest.approx(expected, rel=1e-5)
    same_gradients(gradients, wanted)
    assert ours._metrics["train"]["entropy"] == pytest.approx(theirs._metrics["train"]["entropy"], rel=1e-4)


def test_a_groups_prompt_goes_through_the_model_once(llama: Path, few_pairs: Path, tmp_path: Path) -> None:
    trainer = make(llama, few_pairs, tmp_path)
    batch = a_batch(trainer)
    input_ids, mask = (torch.cat([batch[f"prompt_{x}"], batch[f"completion_{x}"]], dim=1) for x in ("ids", "mask"))
    assert trainer.engine is not None
    rows = trainer.engine.plan(input_ids, mask).rows
    prompts = sum(len(trainer.train_dataset[number]["prompt_ids"]) for number in (0, 1))
    tokens = prompts + int(batch["completion_mask"].sum())
    assert sum(map(len, rows)) <= tokens

    def through(trainer: Any) -> list[int]:
        """Tokens that go through the model at each of its calls while the loss is computed."""
        counts: list[int] = []
        base = trainer.accelerator.unwrap_model(trainer.model).get_input_embeddings()
        hook = base.register_forward_hook(lambda module, given, out: counts.append(given[0].numel()))
        loss_and_gradients(trainer, batch)
        hook.remove()
        return counts

    (ours,), (theirs,) = through(trainer), through(plain(llama, trainer))
    assert ours == -(-tokens // 64) * 64 and theirs == input_ids.numel() > 2 * ours  # rows are filled up to 64


class ColocatedLLM:
    """As much of vLLM as TRL asks for in one process: takes weights by their names and samples from them."""

    made: ClassVar[list[ColocatedLLM]] = []

    def __init__(self, model: str, **options: Any) -> None:
        self.options, self.asked, self.synced = options, [], 0
        self.policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        runner = SimpleNamespace(model=self)
        worker = SimpleNamespace(driver_worker=SimpleNamespace(model_runner=runner))
        self.llm_engine = SimpleNamespace(model_executor=worker)
        self.generator = torch.Generator().manual_seed(1)
        self.made.append(self)

    def load_weights(self, named: list[tuple[str, torch.Tensor]]) -> None:
        own = self.policy.state_dict()
        for name, value in named:
            own[name].copy_(value)

    def reset_prefix_cache(self) -> None:
        self.synced += 1

    @torch.no_grad()
    def generate(self, prompts: list[dict[str, list[int]]], sampling_params: Any, use_tqdm: bool) -> list[Any]:
        self.asked.append(([row["prompt_token_ids"] for row in prompts], sampling_params))
        outputs = []
        for row in prompts:
            ids: list[int] = []
            logprobs: list[Any] = []
            while len(ids) < sampling_params.max_tokens and not (ids and ids[-1] in sampling_params.stop_token_ids):
                logits = self.policy(torch.tensor([row["prompt_token_ids"] + ids])).logits[0, -1]
                logps = (logits / sampling_params.temperature).log_softmax(-1)
                token = int(torch.multinomial(logps.exp(), 1, generator=self.generator))
                ids.append(token)
                logprobs.append({token: SimpleNamespace(rank=1, logprob=logps[token].item())})
            own = SimpleNamespace(token_ids=ids, logprobs=logprobs)
            outputs.append(SimpleNamespace(prompt_token_ids=row["prompt_token_ids"], outputs=[own]))
        return outputs


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> list[ColocatedLLM]:
    """The list of the engines that were made."""
    from trl.generation import vllm_generation

    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):  # TRL sets them
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(vllm_generation, "is_vllm_available", lambda: True)
    monkeypatch.setattr(sampling, "is_vllm_available", lambda: True)
    monkeypatch.setattr(vllm_generation, "LLM", ColocatedLLM, raising=False)
    monkeypatch.setattr(vllm_generation, "SamplingParams", SimpleNamespace, raising=False)
    monkeypatch.setattr(ColocatedLLM, "made", [])
    return ColocatedLLM.made


@pytest.mark.parametrize("objective", ["grpo", "rloo"])
def test_vllm_samples_from_the_policy_of_the_step(
    decided: Path, few_pairs: Path, tmp_path: Path, vllm: list[ColocatedLLM], objective: str
) -> None:
    options = {"use_vllm": True, "temperature": 0.8, "top_k": 7, "max_steps": 2}
    trainer = make(decided, few_pairs, tmp_path, objective=objective, **options)
    scored: list[list[Sample]] = []
    samples_of = trainer.samples_of
    trainer.samples_of = lambda *given: (scored.append(samples_of(*given)), scored[-1])[1]  # type: ignore[method-assign]
    trainer.train()
    (engine,) = vllm
    assert engine.options["max_num_seqs"] == 8 and engine.synced == len(engine.asked) == 2
    by_ids = {tuple(row["prompt_ids"]) for row in trainer.train_dataset}
    for (prompts, given), samples in zip(engine.asked, scored, strict=True):
        assert len(prompts) == 8 and set(map(tuple, prompts)) <= by_ids
        assert prompts == [sample.prompt_ids for sample in samples]
        assert given.stop_token_ids == list(trainer.source.tokenizer.end_ids)
        assert (given.max_tokens, given.temperature, given.top_k) == (12, 0.8, 7)
    if objective == "grpo":  # both sides' probabilities of what was sampled, which RLOO does not use
        ratios = [row["sampling/importance_sampling_ratio/mean"] for row in trainer.state.log_history[:2]]
        assert ratios == pytest.approx([1, 1], abs=1e-3)
    # the second step's replies are of the weights after the first: the adapter merged into the base
    before = AutoModelForCausalLM.from_pretrained(decided, dtype=torch.float32).state_dict()
    moved = [name for name, value in engine.policy.state_dict().items() if not torch.equal(value, before[name])]
    assert any("q_proj" in name for name in moved) and all("_proj" in name for name in moved)


def test_vllm_that_is_not_installed_is_refused_before_anything(llama: Path, few_pairs: Path, tmp_path: Path) -> None:
    training = {"objective": "grpo", "use_vllm": True}
    contract = contract_of(model=str(llama), behaviours=TONE, data={"pairs": [str(few_pairs)]}, training=training)
    plan = planned(contract, tmp_path / "run")
    with pytest.raises(InputError, match=r"training\.use_vllm: vLLM is not installed -- pip install"):
        check_training(plan.source, plan.contract)


def test_advantages_of_a_group_are_by_hand_and_sum_to_zero(llama: Path, few_pairs: Path, tmp_path: Path) -> None:
    trainer = make(
        llama, few_pairs, tmp_path, rewards=[{"kind": "length", "min": 40}, {"kind": "judge", "weight": 0.5}]
    )
    values = iter([[0.1, 0.4, 0.4, 0.9, 0.3, 0.3, 0.3, 0.3], [0.0, 1.0, 0.0, -1.0, 1.0, 1.0, 1.0, 1.0]])
    trainer.reward_funcs = [lambda **_: next(values), lambda **_: next(values)]
    trainer.model.train()
    output = trainer._generate_and_score_completions([trainer.train_dataset[n] for n in (0, 1) for _ in range(4)])
    advantages = output["advantages"].view(2, 4)
    summed = torch.tensor([0.1, 0.9, 0.4, 0.4])
    torch.testing.assert_close(advantages[0], (summed - summed.mean()) / (summed.std() + 1e-4), rtol=1e-5, atol=1e-6)
    assert advantages.sum(dim=1).abs().max() < 1e-5
    assert not advantages[1].any()
    assert trainer._metrics["train"]["frac_reward_zero_std"] == [0.5]


def test_the_baseline_of_rloo_leaves_one_out(llama: Path, few_pairs: Path, tmp_path: Path) -> None:
    trainer = make(llama, few_pairs, tmp_path, objective="rloo", beta=0.0)
    trainer.reward_funcs = [lambda **_: [0.1, 0.4, 0.4, 0.9, 0.3, 0.3, 0.3, 0.3]]
    trainer.model.train()
    output = trainer._generate_and_score_completions([trainer.train_dataset[n] for n in (0, 1) for _ in range(4)])
    expected = [0.1 - 1.7 / 3, 0.4 - 1.4 / 3, 0.4 - 1.4 / 3, 0.9 - 0.9 / 3, 0, 0, 0, 0]
    torch.testing.assert_close(output["advantages"], torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_the_rewards_see_the_replies_and_the_pairs_behaviour(llama: Path, few_pairs: Path, tmp_path: Path) -> None:
    trainer = make(llama, few_pairs, tmp_path, rewards=[{"kind": "judge"}, {"kind": "logp"}])
    tokenizer = trainer.source.tokenizer
    prompt = trainer.origins[1].prompt
    replies = [tokenizer.reply(prompt, text) for text in ("I'm sorry.", "You should go.", "Well.")]
    assert trainer.reward_funcs[0](completion_ids=replies, number=[1, 1, 1]) == [1, -1, 0]
    found = trainer.reward_funcs[1](completion_ids=replies, number=[1, 1, 1])
    base = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)  # before training: without the adapter
    ids = tokenizer.prompt(prompt)
    for value, reply in zip(found, replies, strict=True):
        with torch.no_grad():
            logps = base(torch.tensor([ids + reply])).logits[0].log_softmax(-1)
        places = range(len(ids) - 1, len(ids) + len(reply) - 1)
        expected = [logps[place, token].item() for place, token in zip(places, reply, strict=True)]
        assert value == pytest.approx(sum(expected) / len(expected), rel=1e-4)


def test_prompts_are_distinct_and_what_is_left_out_is_counted(llama: Path, few_pairs: Path) -> None:
    inner = AutoTokenizer.from_pretrained(llama)
    tokenizer: Tokenizer = make_tokenizer(inner, [inner.eos_token_id])
    records = read(few_pairs)
    records = [*records[:5], records[2], PreferencePair.make(records[4].prompt, "A.", "B.", behaviour="other")]
    tokens, _ = tokenize_pairs(records, tokenizer)
    rows, origins, left_out = prompts_of(tokens, Source(tokenizer, records), 1000, {"tone"})
    assert [row["prompt_ids"] for row in rows] == [pair.prompt_ids for pair in tokens[:5]]
    assert origins == records[:5] and [row["number"] for row in rows] == list(range(5))
    assert list(left_out.values()) == [1]
    longest = max(len(pair.prompt_ids) for pair in tokens)
    rows, _, left_out = prompts_of(tokens, Source(tokenizer, records), longest - 1, None)
    assert all(len(row["prompt_ids"]) < longest for row in rows) and sum(left_out.values()) >= 1


def test_groups_without_variance_are_counted_from_the_log() -> None:
    log = [{"step": 5, "frac_reward_zero_std": 0.5}, {"step": 7, "frac_reward_zero_std": 1.0}, {"step": 7, "loss": 1.0}]
    assert zero_variance(log, 4) == (18, 28)
    assert zero_variance(log, 0.5) == (2, 4)
    assert zero_variance([], 4) == (0, 0)


def test_a_checkpoint_waits_for_the_end_of_a_window_of_shared_samples(tmp_path: Path) -> None:
    state, windows = TrainerState(max_steps=8), WholeWindows(3)
    saved = []
    for step in range(1, 9):
        state.global_step = step
        control = TrainerControl(should_save=step in (2, 7), should_training_stop=step == 4)
        windows.on_step_end(None, state, control)
        assert not control.should_training_stop
        saved += [step] if control.should_save else []
    assert saved == [3, 8]
    for options, steps in (
        ({}, 1),
        ({"num_iterations": 3}, 3),
        ({"steps_per_generation": 4}, 4),
        ({"gradient_accumulation_steps": 2}, 1),
    ):
        contract = contract_of(behaviours=TONE, training={"objective": "grpo", **options})
        assert steps_a_window(grpo.make_arguments(contract, tmp_path, use_cpu=True)) == steps


def test_trl_is_told_the_rest_by_its_names(tmp_path: Path) -> None:
    contract = contract_of(behaviours=TONE, training={"objective": "grpo", "epsilon": 0.3, "top_k": 5})
    arguments = grpo.make_arguments(contract, tmp_path, use_cpu=True)
    assert (arguments.epsilon, arguments.top_k, arguments.beta, arguments.num_generations) == (0.3, 5, 0.04, 8)
    assert arguments.per_device_train_batch_size == 8 * 8 and not arguments.use_vllm
    assert arguments.max_completion_length == contract.measurement.max_new_tokens


def test_the_measured_logp_is_that_of_the_model_before_training(
    llama: Path, few_pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Sample, float | None]] = []
    rewarded = Rewards.measured

    def measured(self: Rewards, samples: list[Sample], judgements: list[str | None]) -> list[float | None]:
        values = rewarded(self, samples, judgements)
        seen.extend(zip(samples, values, strict=True))
        return values

    monkeypatch.setattr(Rewards, "measured", measured)
    inner = AutoTokenizer.from_pretrained(llama)
    tokenizer = make_tokenizer(inner, [inner.eos_token_id])
    training = {"objective": "grpo", "rewards": [{"kind": "logp", "weight": 2}]}
    contract = contract_of(behaviours=TONE, training=training, measurement={"samples": 2, "max_new_tokens": 5})
    probes = [Probe.from_pair(pair, "tone") for pair in read(few_pairs)[:2]]
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    tuned = get_peft_model(copy.deepcopy(model), LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")).eval()
    give_random_adapter(tuned)
    for side, loaded in (("before", model), ("after", tuned)):
        scores, replies = measure_model(loaded, tokenizer, probes, contract, side)
        assert scores[0].values["reward"] == pytest.approx(sum(r.reward or 0.0 for r in replies[:2]) / 2)
    assert len(seen) == 8 and {sample.text for sample, _ in seen[:4]} != {sample.text for sample, _ in seen[4:]}
    for sample, value in seen:
        ids, reply = sample.prompt_ids, sample.reply_ids
        with torch.no_grad():
            logps = model(torch.tensor([ids + reply])).logits[0].log_softmax(-1)
        found = [logps[len(ids) - 1 + place, token].item() for place, token in enumerate(reply)]
        assert value == pytest.approx(2 * sum(found) / len(found), rel=1e-4)


# --- the whole run


@pytest.fixture(scope="module")
def decided(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model with a larger head, so that it can prefer a token at all."""
    folder = tmp_path_factory.mktemp("decided")
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    model.lm_head.weight.data *= 30
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(llama).save_pretrained(folder)
    return folder


class Lines(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def a_contract(llama: Path, pairs: Path, function: Path, **training: Any) -> Contract:
    limits = [{"measure": "reward", "min_increase": 0}]
    return contract_of(
        model=str(llama),
        behaviours={"tone": {**TONE["tone"], "limits": limits}},
        data={"pairs": [str(pairs)], "heldout_fraction": 0.3},
        training={
            "objective": "grpo",
            "rewards": [{"kind": "function", "path": f"{function}:share"}],
            "learning_rate": 2e-2,
            "num_generations": 8,
            "per_device_train_batch_size": 4,
            "max_completion_length": 8,
            "lora_target_modules": "all-linear",
            "max_steps": 12,
            "save_steps": 3,
            "beta": 0.0,
            **training,
        },
        measurement={"samples": 4, "max_sampled_probes": 10, "max_new_tokens": 8, "resamples": 1000},
    )


@pytest.mark.parametrize("objective", ["grpo", "rloo"])
def test_the_held_out_reward_rises(decided: Path, few_pairs: Path, tmp_path: Path, objective: str) -> None:
    function = tmp_path / "rewards.py"
    function.write_text(E_SHARE)
    plan = planned(
        a_contract(
            decided, few_pairs, function, objective=objective, max_steps=25, learning_rate=0.1, num_generations=16
        ),
        tmp_path / "run",
    )
    verdict = run(plan, progress := Lines())
    (reward,) = (c for c in verdict.comparisons if c.measure == "reward")
    assert reward.difference.low is not None and reward.difference.low > 0 and verdict.passed, reward
    replies = plan.workspace.read_records(plan.workspace.replies("after"), lambda data: Reply(**data))
    assert reward.after.value == pytest.approx(sum(r.reward for r in replies) / len(replies))
    assert all(r.reward == pytest.approx(r.text.count("e") / max(1, len(r.text))) for r in replies)
    summary = plan.workspace.read_json(plan.workspace.training)
    assert summary["objective"] == objective and summary["reference"] == "none" and summary["step0_margin_nats"] is None
    assert summary["groups"] == 25 * 4 and 0 <= summary["groups_without_variance"] <= 100
    assert any("groups had replies that were all rewarded alike" in line for line in progress.lines)
    held_out = {probe.prompt for probe in plan.probes}
    assert held_out and not held_out & {pair.prompt for pair in plan.train}
    page = plan.workspace.report.read_text("utf-8")
    assert "Reward of the sampled replies" in page and write_report is not None


def test_a_run_goes_on_after_its_reward_was_mended(llama: Path, few_pairs: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    function = tmp_path / "rewards.py"
    function.write_text(E_SHARE)
    whole = planned(a_contract(llama, few_pairs, function), tmp_path / "whole")
    run(whole)
    counter = tmp_path / "calls"
    function.write_text(  # before training it is called once for each chunk of probes
        "from pathlib import Path\n" + E_SHARE.replace("    return", f"    p = Path({str(counter)!r})\n"
        "    p.write_text(p.read_text() + '.' if p.exists() else '.')\n"
        "    if len(p.read_text()) > 8:\n        return [float('nan')] * len(replies)\n    return")
    )  # fmt: skip
    broken = planned(a_contract(llama, few_pairs, function), tmp_path / "broken")
    with pytest.raises(StageError) as caught:
        run(broken)
    told = str(caught.value)
    assert "rewards.py:share returned nan" in told and "row " in told and "demeanor run --resume" in told
    assert "\n" not in told and any(broken.workspace.checkpoints.glob("checkpoint-*"))
    function.write_text(E_SHARE)
    again = planned(a_contract(llama, few_pairs, function), tmp_path / "broken")
    run(again, progress := Lines())
    assert any(line.startswith("resumed from checkpoint-") for line in progress.lines)
    one, two = (load_file(plan.workspace.adapter / "adapter_model.safetensors") for plan in (whole, again))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    logs = [plan.workspace.read_json(plan.workspace.training)["groups"] for plan in (whole, again)]
    assert logs[0] == logs[1] == 12 * 4


def test_a_finished_training_is_done_anew_for_another_reward(llama: Path, few_pairs: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    function = tmp_path / "rewards.py"

    def trained(text: str, folder: str) -> dict[str, torch.Tensor]:
        function.write_text(text)
        plan, lines = planned(a_contract(llama, few_pairs, function, max_steps=3), tmp_path / folder), Lines()
        run(plan, lines)
        assert not any(line.startswith("resumed from") for line in lines.lines)
        weights: dict[str, torch.Tensor] = load_file(plan.workspace.adapter / "adapter_model.safetensors")
        return weights

    other = E_SHARE.replace("'e'", "'a'")
    first, second, expected = trained(E_SHARE, "run"), trained(other, "run"), trained(other, "other")
    assert any(not torch.equal(value, second[name]) for name, value in first.items())
    assert all(torch.equal(value, second[name]) for name, value in expected.items())


def test_too_few_prompts_and_a_function_that_is_not_there_are_refused(
    llama: Path, few_pairs: Path, tmp_path: Path
) -> None:  # fmt: skip
    with pytest.raises(InputError, match="30 prompts are fewer than one step takes"):
        make(llama, few_pairs, tmp_path, per_device_train_batch_size=31)
    plan = planned(a_contract(llama, few_pairs, tmp_path / "none.py"), tmp_path / "run")
    with pytest.raises(InputError, match="cannot be loaded"):
        check_training(plan.source, plan.contract)
    assert not plan.workspace.folder.exists()
