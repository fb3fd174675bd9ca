"""Which part of the engine pays how much: a training step with all of them, and without each one in turn.

    python -m benchmarks.train_parts [--shapes 25m] [--batches 4 16] [--repeats 5]

All variants run in one process, in turns over the same batches (hh-rlhf pairs, LoRA r 16 on q_proj and v_proj, bfloat16
autocast): forward and backward pass through the engine, without trainer and optimiser. The table gives the median time
a pair, and how many per cent longer it takes without the part.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks import machine
from benchmarks.train_speed import HERE, SHAPES, Pair, real_pairs, sample
from demeanor.model import keep_freed_memory
from demeanor.train import elementwise, engine, native
from demeanor.train.dpo import PairCollator
from demeanor.train.head import TokenScores, score_tokens
from demeanor.train.kernels import KINDS, fuse

PAIRS = 48
TAKES = native.takes


def plain_head(
    hidden: torch.Tensor, head: torch.nn.Module, targets: torch.Tensor, *, figures: bool = True
) -> TokenScores:
    """The head as it is usually written: logits, log-softmax, and autograd keeps both."""
    logits = head(hidden).float()
    logps = torch.log_softmax(logits, dim=-1)
    probs = logps.detach().exp()
    return TokenScores(
        log_probs=logps.gather(1, targets[:, None])[:, 0],
        entropy=-(probs * logps.detach()).sum(dim=1),
        mean_logits=logits.detach().mean(dim=1),
        is_top1=logits.detach().argmax(dim=1) == targets,
        log_sum_sq_probs=probs.square().sum(dim=1).log(),
    )


class Variant:
    """A model under the engine, with some parts or without."""

    def __init__(self, shape: str, without: tuple[str, ...]) -> None:
        torch.manual_seed(0)
        config = LlamaConfig(**SHAPES[shape], max_position_embeddings=2048, pad_token_id=0)
        base = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        lora = LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        self.model = get_peft_model(base, lora)
        self.without = without
        fuse(base, torch.bfloat16, without)
        self.engine = engine.TreeEngine(base)

    def turn(self, batches: list[dict[str, torch.Tensor]]) -> float:
        """Seconds of one pass over the batches."""
        engine.score_tokens = plain_head if "lean head" in self.without else score_tokens  # type: ignore[assignment]
        native.takes = (lambda query: False) if "own attention kernel" in self.without else TAKES  # type: ignore[assignment]
        if "compiled arithmetic" in self.without:
            elementwise.compile_none()
        else:
            assert elementwise.compile_all() is None
        started = time.perf_counter()
        for batch in batches:
            labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
            with torch.autocast("cpu", torch.bfloat16):
                scores = self.engine.score(batch["input_ids"], batch["attention_mask"], labels)
            scores.log_probs.sum().backward()
        return time.perf_counter() - started


def measure(shape: str, batch: int, pairs: list[Pair], repeats: int) -> dict[str, float]:
    """Milliseconds a pair by what was left out."""
    chosen = sample(pairs, batch, PAIRS // batch)
    random.Random(1).shuffle(chosen)
    collate: Callable[..., dict[str, Any]] = PairCollator(0, None, None)
    batches = [collate(chosen[start : start + batch]) for start in range(0, len(chosen), batch)]
    parts = (*KINDS, "lean head", "compiled arithmetic", "own attention kernel")
    variants = {"": Variant(shape, ())}
    variants |= {part: Variant(shape, (part,)) for part in parts}
    variants["all of them"] = Variant(shape, parts)
    for variant in variants.values():
        variant.turn(batches)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, variant in variants.items():
            seconds[name].append(variant.turn(batches))
    return {name: round(1000 * statistics.median(values) / len(chosen), 2) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shapes", nargs="+", default=["25m"], choices=SHAPES)
    parser.add_argument("--batches", nargs="+", type=int, default=[4, 16])
    parser.add_argument("--pairs", type=Path, default=machine.HH)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "train_parts.json")
    options = parser.parse_args()
    keep_freed_memory()
    pairs = real_pairs(options.pairs)
    results: dict[str, Any] = {}
    for shape in options.shapes:
        for batch in options.batches:
            found = measure(shape, batch, pairs, options.repeats)
            results[f"{shape} batch {batch}"] = found
            print(f"{shape}, batch {batch}: {found['']} ms a pair with everything; without")
            for name, value in found.items():
                if name:
                    print(f"    {name:24}{value:>8.2f}{value / found[''] - 1:>+8.0%}")
    machine.write(options.out, {**results, "repeats": options.repeats})


if __name__ == "__main__":
    main()
