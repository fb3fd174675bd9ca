"""The legacy way, on real pairs: a reward model, beside a plain reference of it, then rloo against it, beside dpo.

    python -m benchmarks.reward_model --pairs ../shared/data/hh-rlhf --model ../shared/base-model [--seeds 5]

1. A reward model by `objective: reward`, and one by a plain PyTorch loop (transformers' sequence classification, PEFT,
   AdamW, padded batches, TRL nowhere): the same pairs, split, steps, batch, schedule and precision, and for each seed
   the same start and order of the pairs, so that only rounding parts them, which Adam makes grow. Held-out accuracy of
   both, beside what length alone reaches. Ours reaches the plain one's when the whole interval of the difference is
   above -MARGIN; a difference that is merely not significant would show nothing.
2. rloo from the base model against the first seed's reward model: the held-out reward before and after.
3. dpo on the same pairs, which is measured by the same reward model: what the simpler way costs and saves.
   (--rloo-steps 0 leaves out both.)

Every training runs in a process of its own, in a folder of --runs; given again, the command goes on where it was.
Intervals are at 95 % confidence: of accuracies over seeds and held-out pairs, both drawn again (the pigeonhole
bootstrap, Owen 2007, "The pigeonhole bootstrap", which errs towards too wide); of rewards over prompts. Writes
benchmarks/results/reward_model.json.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from demeanor.cli.console import ConsoleProgress, quiet_libraries
from demeanor.contract import Contract, resolve_paths
from demeanor.errors import DemeanorError
from demeanor.plan import default_contract, plan_run
from demeanor.records import Score, Verdict
from demeanor.statistics import estimate_mean
from demeanor.sweep import run_in_its_own_process
from demeanor.workspace import Workspace

HERE = Path(__file__).parent
HOW: dict[str, Any] = {"confidence": 0.95, "resamples": 10_000, "seed": 0}
MARGIN = 0.05  # of accuracy: what ours may be below the plain one and still reach it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--seeds", type=int, default=5, help="of the reward models; each seed is a training of both")
    parser.add_argument("--rloo-steps", type=int, default=40)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for every run's contract")
    parser.add_argument("--quiet-machine", action="store_true", help="nothing else ran beside it")
    parser.add_argument("--runs", type=Path, default=HERE.parent / "runs" / "reward_model")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "reward_model.json")
    parser.add_argument("--reference", type=Path, metavar="RUN", help=argparse.SUPPRESS)  # our own process, for one
    options = parser.parse_args()
    quiet_libraries()
    try:
        if options.reference:
            print(json.dumps(train_plainly(Workspace.open(options.reference))))
        else:
            measure(options)
    except DemeanorError as error:
        raise SystemExit(str(error)) from None


def measure(options: argparse.Namespace) -> None:
    """Train all, compare, print, write."""
    progress = ConsoleProgress()
    ours, plain = [], []
    for seed in range(options.seeds):
        name = f"reward-seed-{seed}"
        progress.say(name)
        ours.append(run_of(options, name, "training.objective=reward", f"training.seed={seed}"))
        kept = options.runs / f"plain-seed-{seed}.json"
        if not kept.exists():
            progress.say(f"plain-seed-{seed}")
            kept.write_text(in_its_own_process(ours[-1].folder, options))
        plain.append(json.loads(kept.read_text("utf-8")))
    policies = policies_of(options, ours[0], progress) if options.rloo_steps else ()
    found = {
        "pairs": Path(options.pairs).name,
        "reward_model": {**accuracy_of([scores_of(run) for run in ours], plain), "ours": [told(run) for run in ours],
                         "plain": [{k: v for k, v in one.items() if k != "correct"} for one in plain]},
        "policies": {run.folder.name: policy(run) for run in policies},
        "seeds": {"reward models": list(range(options.seeds)), "policies": 0, "split": 0, "measurement": 0},
        "set": options.set,
        "machine": {"shared_with_other_work": not options.quiet_machine},
    }  # fmt: skip
    show(found)
    machine.write(options.out, found)


# --- ours


def policies_of(
    options: argparse.Namespace, reward_run: Workspace, progress: ConsoleProgress
) -> tuple[Workspace, Workspace]:
    """rloo against the reward model, and dpo measured by it."""
    measured = (
        f"training.rewards=[{{kind: model, path: {reward_run.folder.resolve()}}}]",
        "behaviours.preference.limits=[{measure: reward, min_increase: 0}]",
        "measurement.samples=2",
        "measurement.max_new_tokens=32",
    )
    progress.say("rloo")
    online = ("training.objective=rloo", f"training.max_steps={options.rloo_steps}")
    size = ("training.per_device_train_batch_size=4", "training.num_generations=4")
    rloo = run_of(options, "rloo", *online, *size, *measured)
    progress.say("dpo")
    dpo = run_of(options, "dpo", "training.objective=dpo", *measured)
    return rloo, dpo


def run_of(options: argparse.Namespace, name: str, *overrides: str) -> Workspace:
    """The finished run of this name."""
    given = ("training.save_steps=0.5", *options.set, *overrides)
    contract: Contract = resolve_paths(default_contract(options.pairs, options.model, name, given), Path.cwd())
    workspace = Workspace(options.runs / name)
    workspace.start(contract)
    code = run_in_its_own_process(workspace.folder)
    if code not in (0, 1):
        raise SystemExit(f"{name} failed, exit code {code}")
    return workspace


def scores_of(run: Workspace) -> list[Score]:
    scores: list[Score] = run.read_records(run.scores("after"), Score.from_json)
    return scores


def told(run: Workspace) -> dict[str, Any]:
    """Figures of a reward run."""
    verdict, training = Verdict.from_json(run.read_json(run.verdict)), run.read_json(run.training)
    measures = {c.measure: {"before": asdict(c.before), "after": asdict(c.after)} for c in verdict.comparisons}
    names = ("reward_accuracy", "length_accuracy", "validation_loss")
    return {**{name: measures[name] for name in names}, "passed": verdict.passed, **usage(training)}


def policy(run: Workspace) -> dict[str, Any]:
    """Held-out reward of a policy before and after, and what its training took."""
    verdict, training = Verdict.from_json(run.read_json(run.verdict)), run.read_json(run.training)
    (reward,) = (c for c in verdict.comparisons if c.measure == "reward")
    sides = {side: asdict(getattr(reward, side)) for side in ("before", "after", "difference")}
    needed = {"reward_model_seconds": training.get("reward_model_seconds"), "groups": training.get("groups")}
    return {"reward": sides, **usage(training), **{k: v for k, v in needed.items() if v is not None}}


def usage(training: dict[str, Any]) -> dict[str, Any]:
    names = ("steps", "num_pairs", "learning_rate", "bf16", "engine", "seconds", "reference_seconds", "peak_bytes")
    return {name: training[name] for name in names}


def accuracy_of(ours: Sequence[list[Score]], plain: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Both accuracies, and their difference paired by seed and pair."""
    by_pair = [{score.probe_id: score.values["reward_accuracy"] for score in scores} for scores in ours]
    one = np.array([list(own.values()) for own in by_pair])
    two = np.array([[own["correct"][name] for name in by_pair[0]] for own in plain])
    difference = over_seeds_and_pairs(one - two)
    return {
        "accuracy": {
            "ours": over_seeds_and_pairs(one),
            "plain": over_seeds_and_pairs(two),
            "difference": difference,
        },
        "by_seed": {"ours": one.mean(axis=1).tolist(), "plain": two.mean(axis=1).tolist()},
        "margin": MARGIN,
        "reaches": difference["low"] > -MARGIN,
    }


def over_seeds_and_pairs(values: np.ndarray) -> dict[str, Any]:
    """The mean of [S, N] values, with an interval for other seeds and other pairs."""
    rng, (seeds, pairs) = np.random.default_rng(HOW["seed"]), values.shape
    drawn = [
        values[rng.integers(seeds, size=seeds)][:, rng.integers(pairs, size=pairs)].mean()
        for _ in range(HOW["resamples"])
    ]
    low, high = np.quantile(drawn, [(1 - HOW["confidence"]) / 2, (1 + HOW["confidence"]) / 2])
    return {"value": float(values.mean()), "low": float(low), "high": float(high), "n": pairs, "seeds": seeds}


def show(found: dict[str, Any]) -> None:
    reward = found["reward_model"]
    for name, own in reward["accuracy"].items():
        print(f"held-out accuracy, {name}: {machine.spelt(own)} (n = {own['n']}, {own['seeds']} seeds)")
    for name, own in reward["by_seed"].items():
        print(f"  {name} by seed: {', '.join(f'{value:.3f}' for value in own)}")
    print(f"ours reaches the plain one within {MARGIN:g}: {'shown' if reward['reaches'] else 'not shown'}")
    print(f"length alone: {machine.spelt(reward['ours'][0]['length_accuracy']['after'])}")
    for name in ("ours", "plain"):
        for seed, own in enumerate(reward[name]):
            print(f"reward model {name}, seed {seed}: {own['seconds']:.0f} s, peak {own['peak_bytes'] / 2**20:.0f} MiB")
    for name, own in found["policies"].items():
        sides = own["reward"]
        print(
            f"{name}: reward {sides['before']['value']:.3f} -> {sides['after']['value']:.3f}, "
            f"{machine.spelt(sides['difference'])}; {own['seconds']:.0f} s, peak {own['peak_bytes'] / 2**20:.0f} MiB"
        )


# --- the plain reference


def in_its_own_process(folder: Path, options: argparse.Namespace) -> str:
    command = [sys.executable, "-m", "benchmarks.reward_model", "--reference", str(folder)]
    command += ["--pairs", options.pairs, "--model", options.model]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def train_plainly(run: Workspace) -> dict[str, Any]:
    """The pairs, settings and seed of a reward run, in a loop without TRL and without our engine.

    Returns:
        `correct`: of each held-out pair whether its chosen reply has the higher reward (0.5: the same); `seconds` of
        the steps; `peak_bytes` above that before the model was loaded; `steps`; `validation_loss`, nats.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, get_cosine_schedule_with_warmup

    from demeanor.tokens import tokenize_pairs

    plan = plan_run(run.contract(), run)
    settings, done = plan.contract.training, run.read_json(run.training)
    tokens, _ = tokenize_pairs(plan.train, plan.tokenizer, max_length=settings.max_length)
    heldout, _ = tokenize_pairs(plan.heldout, plan.tokenizer, max_length=settings.max_length)
    pad, peak = plan.tokenizer.inner.pad_token_id, machine.PeakMemory()
    torch.manual_seed(settings.seed)
    model = AutoModelForSequenceClassification.from_pretrained(plan.source.base, num_labels=1, dtype=torch.float32)
    model.config.pad_token_id = pad
    targets = list(settings.lora_target_modules)
    model = get_peft_model(
        model,
        LoraConfig(r=settings.lora_r, lora_alpha=settings.lora_alpha, target_modules=targets, task_type="SEQ_CLS"),
    )
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=done["learning_rate"], weight_decay=0.0)
    steps, size = done["steps"], settings.per_device_train_batch_size
    schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(settings.warmup_steps * steps), steps)

    def rewards(sequences: list[list[int]]) -> torch.Tensor:
        ids = torch.full((len(sequences), max(map(len, sequences))), pad)
        mask = torch.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = torch.tensor(sequence)
            mask[row, : len(sequence)] = 1
        found: torch.Tensor = model(input_ids=ids, attention_mask=mask).logits[:, 0]
        return found

    order: list[int] = []
    epoch = 0
    model.train()
    started = time.perf_counter()
    for _ in range(steps):
        if not order:
            # as accelerate's sampler draws it
            order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(settings.seed + epoch)).tolist()
            epoch += 1
        batch, order = [tokens[number] for number in order[:size]], order[size:]
        sequences = [p.prompt_ids + p.chosen_ids for p in batch] + [p.prompt_ids + p.rejected_ids for p in batch]
        with torch.autocast("cpu", torch.bfloat16, enabled=done["bf16"]):
            chosen, rejected = rewards(sequences).chunk(2)
            loss = -torch.nn.functional.logsigmoid(chosen - rejected).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, settings.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    seconds, highest = time.perf_counter() - started, peak.above_start()
    model.eval()
    correct, losses = {}, []
    with torch.no_grad():
        for pair in heldout:
            margin = (
                rewards([pair.prompt_ids + pair.chosen_ids]) - rewards([pair.prompt_ids + pair.rejected_ids])
            ).item()
            correct[pair.id] = 0.5 if margin == 0 else float(margin > 0)
            losses.append(torch.nn.functional.softplus(torch.tensor(-margin)).item())
    return {
        "steps": steps,
        "seconds": round(seconds, 2),
        "peak_bytes": highest,
        "validation_loss": sum(losses) / len(losses),
        "accuracy": asdict(estimate_mean(list(correct.values()), **HOW, outcomes=True)),
        "correct": correct,
    }


if __name__ == "__main__":
    main()
