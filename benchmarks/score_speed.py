"""Log-probabilities of candidates that share a prompt: ours against lm-evaluation-harness, same items, same process.

    pip install 'demeanor[lm-eval]'
    python -m benchmarks.score_speed [--models starter 25m] [--prompts 24] [--candidates 10] [--repeats 3]

An item is a prompt of the hh-rlhf pairs (../shared; those of 100 to 400 tokens) with so many candidates: the first 3 to
20 tokens of replies of other pairs (answers as multiple choice has them), or whole replies of 10 to 60. Both get the
same token ids, the same model in float32 on the same cores, and take turns; lm-eval with HFLM at the batch size that
is fastest for it here. Prints the table and writes it, with the largest difference of a log-probability, the machine,
the load before and after, the versions and the seed, to benchmarks/results/score_speed.json.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.train_speed import SHAPES, real_pairs

HERE = Path(__file__).parent
SEED = 0
PROMPT_TOKENS = (100, 400)
CANDIDATES = {"short": (3, 20), "whole": (10, 60)}  # tokens
BATCHES = (8, 32)  # tried for lm-eval
Item = tuple[list[int], list[list[int]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", default=["starter", "25m"])
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--candidates", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "score_speed.json")
    options = parser.parse_args()
    started_with = os.getloadavg()[0]
    found = {
        f"{name}, {kind} candidates": contest(name, items(options.prompts, options.candidates, kind), options.repeats)
        for name in options.models
        for kind in CANDIDATES
    }
    load = [started_with, os.getloadavg()[0]]
    about = {
        "load": load,
        "lm_eval": importlib.metadata.version("lm-eval"),
        "seed": SEED,
    }
    machine.write(options.out, {"models": found, **about})


def items(num: int, candidates: int, kind: str) -> list[Item]:
    rng = random.Random(SEED)
    pairs = real_pairs(machine.HH)
    prompts = [p["prompt_ids"] for p in pairs if PROMPT_TOKENS[0] <= len(p["prompt_ids"]) <= PROMPT_TOKENS[1]]
    replies = [p[side] for p in pairs for side in ("chosen_ids", "rejected_ids")]
    least, most = CANDIDATES[kind]
    if kind == "short":
        replies = [reply[: rng.randint(least, most)] for reply in replies]
    replies = [reply for reply in replies if least <= len(reply) <= most]
    return [(prompt, rng.sample(replies, candidates)) for prompt in rng.sample(prompts, num)]


def contest(name: str, chosen: list[Item], repeats: int) -> dict[str, Any]:
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    from demeanor.measure.likelihood import Scorer
    from demeanor.model import find_model

    source = find_model("starter")
    if name in SHAPES:
        torch.manual_seed(SEED)
        model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPES[name], max_position_embeddings=2048))
    else:
        model = AutoModelForCausalLM.from_pretrained(find_model(name).base, dtype=torch.float32)
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(source.base)
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=BATCHES[0], max_length=1024)
    requests = [(("", ""), prompt, reply) for prompt, replies in chosen for reply in replies]

    def theirs(batch: int) -> list[float]:
        found = harness._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=batch)
        return [logp for logp, _ in found]

    def ours() -> list[float]:
        found = Scorer(model).logps([prompt for prompt, _ in chosen], [replies for _, replies in chosen])
        return [sum(path) for paths in found for path in paths]

    rivals: dict[str, Callable[[], list[float]]] = {"ours": ours}
    rivals |= {f"lm-eval, batch {batch}": lambda batch=batch: theirs(batch) for batch in BATCHES}  # type: ignore[misc]
    seconds: dict[str, list[float]] = {rival: [] for rival in rivals}
    answers: dict[str, list[float]] = {}
    for turn in range(repeats + 1):  # the first one warms up
        for rival, work in rivals.items():
            started = time.perf_counter()
            answers[rival] = work()
            if turn:
                seconds[rival].append(time.perf_counter() - started)
    best = min((rival for rival in rivals if rival != "ours"), key=lambda rival: statistics.median(seconds[rival]))
    apart = max(abs(a - b) for a, b in zip(answers["ours"], answers[best], strict=True))
    tokens = sum(len(prompt) + sum(map(len, replies)) for prompt, replies in chosen)
    repeated = sum(len(prompt) + len(reply) for prompt, replies in chosen for reply in replies)
    print(f"{name}: {len(chosen)} prompts, {len(requests)} candidates, {repeated / tokens:.2f} tokens a distinct one")
    for rival in rivals:
        print(f"  {rival:18} {statistics.median(seconds[rival]):7.2f} s  "
              f"{statistics.median(seconds[rival]) / statistics.median(seconds['ours']):5.2f}x")  # fmt: skip
    print(f"  largest difference {apart:.2g} nats")
    return {"seconds": seconds, "largest_difference_nats": apart, "tokens": tokens, "tokens_repeated": repeated,
            "times_faster": statistics.median(seconds[best]) / statistics.median(seconds["ours"])}  # fmt: skip


if __name__ == "__main__":
    main()
