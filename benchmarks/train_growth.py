"""What a training costs as the work grows: more pairs, a second run over the same pairs, one very long row.

    python -m benchmarks.train_growth [--sizes 200 2000]

Each training is a process of its own with Demeanor's defaults (arithmetic compiled at every size) on a 25-million
Llama shape (LoRA r 16 on q_proj and v_proj, bfloat16, batch 8): time a pair and peak memory by number of pairs, and of
the smallest number in as many steps as the largest takes, because memory settles within some dozens of steps; the
seconds that the reference takes in a second training with another beta; and the peak memory of a step over one pair of
4,096 tokens with a vocabulary of 32,000.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.train_speed import HERE, SHAPES, real_pairs

LONG_TOKENS, LONG_VOCABULARY = 4096, 32_000


def work(job: dict[str, Any]) -> dict[str, Any]:
    """One training in this process."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from demeanor.contract import build_contract
    from demeanor.model import find_model, load_tokenizer
    from demeanor.tokens import TokenizedPair
    from demeanor.train import train_adapter

    folder = Path(job["folder"])
    model = folder / f"model-{job['vocabulary']}"
    if not model.exists():
        torch.manual_seed(0)
        shape = {**SHAPES["25m"], "vocab_size": job["vocabulary"]}
        LlamaForCausalLM(LlamaConfig(**shape, max_position_embeddings=8192, pad_token_id=0)).save_pretrained(model)
        load_tokenizer(find_model("starter"), build_contract({"data": {"pairs": "-"}})).save_pretrained(model)
    training = {
        "per_device_train_batch_size": 8,
        "beta": job["beta"],
        "bf16": True,
        "max_length": LONG_TOKENS,
        "compile": True,
        "num_train_epochs": job["epochs"],
    }
    contract = build_contract({"model": str(model), "data": {"pairs": "-"}, "training": training})
    source = find_model(str(model))
    pairs = [TokenizedPair(str(n), **row) for n, row in enumerate(json.loads(Path(job["pairs"]).read_text()))]
    lines: list[str] = []
    marks: list[tuple[int, float]] = []

    def advance(done: int, total: int) -> None:
        marks.append((done, time.perf_counter()))

    from demeanor.model import load_model

    weights = sum(p.numel() * p.element_size() for p in load_model(source, contract).parameters())
    memory = machine.PeakMemory()
    with tempfile.TemporaryDirectory(dir=folder) as out:
        summary = train_adapter(
            source, load_tokenizer(source, contract), pairs, contract, checkpoints=Path(out) / "checkpoints",
            out=Path(out) / "adapter", key="benchmark", advance=advance, say=lines.append,
        )  # fmt: skip
    steps = [after - before for (_, before), (_, after) in pairwise(marks)]
    return {
        "pairs": len(pairs),
        "ms_a_pair": round(1000 * sum(steps) / max(1, len(steps)) / 8, 1),
        "training_seconds": summary["seconds"],
        "reference_seconds": summary["reference_seconds"],
        "reference": next((line for line in lines if line.startswith("reference:")), ""),
        "peak_mib_above_weights": round((memory.above_start() - weights) / 2**20),
    }


def run(
    folder: Path, pairs: list[dict[str, list[int]]], *, beta: float = 0.1, vocabulary: int = 8192, epochs: float = 1.0
) -> Any:
    file = folder / "pairs.json"
    file.write_text(json.dumps(pairs))
    job = {"folder": str(folder), "pairs": str(file), "beta": beta, "vocabulary": vocabulary, "epochs": epochs}
    environment = {**os.environ, "DEMEANOR_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "benchmarks.train_growth", "--work", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"a training failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", nargs="+", type=int, default=[200, 2000])
    parser.add_argument("--pairs", type=Path, default=machine.HH)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "train_growth.json")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        print(json.dumps(work(json.loads(options.work))))
        return
    everything = real_pairs(options.pairs)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size in options.sizes:
            chosen = [everything[i * len(everything) // size] for i in range(min(size, len(everything)))]
            results[f"{len(chosen)} pairs"] = run(folder, chosen)
            if size == options.sizes[0]:  # as many steps as the largest size has: what grows with steps is not pairs
                epochs = options.sizes[-1] / size
                results[f"{len(chosen)} pairs, {epochs:g} epochs"] = run(folder, chosen, epochs=epochs)
        results["the same with another beta"] = run(folder, chosen, beta=0.3)
        row = {"prompt_ids": [5] * (LONG_TOKENS - 200), "chosen_ids": [6] * 200, "rejected_ids": [7] * 200}
        results[f"one pair of {LONG_TOKENS} tokens, vocabulary {LONG_VOCABULARY}"] = run(
            folder, [row], vocabulary=LONG_VOCABULARY
        )
    print(f"{'':52}{'ms a pair':>10}{'training s':>12}{'reference s':>13}{'peak above weights MiB':>24}")
    for title, found in results.items():
        print(
            f"{title:52}{found['ms_a_pair'] or '-':>10}{found['training_seconds']:>12}{found['reference_seconds']:>13}"
            f"{found['peak_mib_above_weights']:>24}\n    {found['reference']}"
        )
    machine.write(options.out, results)


if __name__ == "__main__":
    main()
