"""Does a training on pairs whose longer reply mostly wins make replies longer, and one on the curated pairs not?

    python -m benchmarks.length_taught [--prompts 1000] [--steps 150]

The starter's model answers prompts several times; of each prompt the longest and the shortest reply make a pair, and
the longer one wins in 90 % of them, whatever it says: the pairs teach length and nothing else. `demeanor curate`
balances them. Three trainings of equal options and steps, each a `demeanor run` of its own:

    unbalanced        all pairs
    unbalanced, few   as many of them as the curated set has, at random: fewer pairs alone do not mend it
    curated           what curate keeps

Measured on held-out prompts, before and after: the length of sampled replies, tokens, paired by prompt. Prints the
table and writes it, with the machine, the versions and the seeds, to benchmarks/results/length_taught.json.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from benchmarks import machine
from demeanor.contract import Contract
from demeanor.measure.sample import sample_replies
from demeanor.model import end_of_turn_ids, find_model, load_model, load_tokenizer
from demeanor.pairs import read_pairs
from demeanor.records import Estimate
from demeanor.starter import starter_file
from demeanor.statistics import estimate_share
from demeanor.tokens import make_tokenizer

HERE = Path(__file__).parent
LONGER_WINS = 0.9
REPLIES = 6  # of a prompt
NUM_PROBES = 150
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "length_taught.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = sampled_pairs(options.prompts + NUM_PROBES)
        probes, rows = rows[:NUM_PROBES], rows[NUM_PROBES:]
        flipped = set(random.Random(SEED).sample(range(len(rows)), round((1 - LONGER_WINS) * len(rows))))
        arms = {"unbalanced": [_flipped(row) if place in flipped else row for place, row in enumerate(rows)]}
        write(folder / "probes.jsonl", probes)
        write(folder / "unbalanced.jsonl", arms["unbalanced"])
        curate = ["curate", str(folder / "unbalanced.jsonl"), "--out", str(folder / "curated"), "--heldout", "0"]
        subprocess.run([sys.executable, "-m", "demeanor", *curate], check=True)
        kept = read_pairs(folder / "curated" / "train.jsonl").pairs
        curated = [{"prompt": p.prompt[-1].content, "chosen": p.chosen, "rejected": p.rejected} for p in kept]
        few = random.Random(SEED + 1)  # SEED itself would draw the flipped ones again
        arms["unbalanced, few"] = few.sample(arms["unbalanced"], len(curated))
        arms["curated"] = curated
        results = {arm: trained(folder, arm, rows, options.steps) for arm, rows in arms.items()}
    print(f"{'pairs':18} {'n':>5}  {'longer wins':>22}  {'reply tokens before → after':>28}  difference")
    for arm, result in results.items():
        share, after, change = (Estimate(**result[key]) for key in ("longer_wins", "after", "difference"))
        print(
            f"{arm:18} {share.n:5}  {share.value:.3f} [{share.low:.3f}, {share.high:.3f}]  "
            f"{result['before']['value']:12.2f} → {after.value:.2f}  "
            f"{change.value:+.2f} [{change.low:+.2f}, {change.high:+.2f}]"
        )
    machine.write(options.out, {"arms": results, "seed": SEED, "steps": options.steps})


def sampled_pairs(num: int) -> list[dict[str, str]]:
    """The longest reply against the shortest of REPLIES sampled ones, of so many of the starter's prompts."""
    contract = Contract.model_validate({"data": {"pairs": ["starter"]}})
    source = find_model("starter")
    inner = load_tokenizer(source, contract)
    tokenizer = make_tokenizer(inner, end_of_turn_ids(source, inner))
    model = load_model(source, contract)
    prompts = list(dict.fromkeys(pair.prompt for pair in read_pairs(starter_file("pairs.jsonl")).pairs))
    random.Random(SEED).shuffle(prompts)
    rows = []
    for start in range(0, len(prompts), 32):
        chunk = prompts[start : start + 32]
        ids = [tokenizer.prompt(prompt, None) for prompt in chunk]
        drawn = sample_replies(
            model, tokenizer, ids, samples=REPLIES, temperature=1.0, max_new_tokens=96, seed=SEED + start
        )
        for prompt, replies in zip(chunk, drawn, strict=True):
            texts = sorted({text.strip() for text, _ in replies if text.strip()}, key=len)
            if len(texts) > 1 and len(texts[-1]) > len(texts[0]):
                rows.append({"prompt": prompt[-1].content, "chosen": texts[-1], "rejected": texts[0]})
        if len(rows) >= num:
            break
    return rows[:num]


def trained(folder: Path, arm: str, rows: list[dict[str, str]], steps: int) -> dict[str, Any]:
    """One `demeanor run` on the pairs; the length of the replies to the held-out prompts before and after."""
    name = arm.replace(", ", "-")
    write(folder / f"{name}.jsonl", rows)
    contract = {
        "name": name,
        "behaviours": {"length": {"about": "no limit: a measurement", "probes": "probes.jsonl"}},
        "data": {"pairs": f"{name}.jsonl", "heldout_fraction": 0},
        "training": {"learning_rate": 3e-4, "per_device_train_batch_size": 4, "max_steps": steps, "max_length": 256},
        "measurement": {"samples": 8, "temperature": 1.0, "max_new_tokens": 128, "max_sampled_probes": NUM_PROBES},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(contract))
    run = [sys.executable, "-m", "demeanor", "run", str(folder / f"{name}.yaml"), "--out", str(folder / "runs" / name)]
    done = subprocess.run([*run, "--json"], stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{arm}: the run did not finish")
    verdict = json.loads((folder / "runs" / name / "verdict.json").read_text())
    (found,) = (item for item in verdict["comparisons"] if item["measure"] == "reply_tokens")
    longer = sum(len(row["chosen"]) > len(row["rejected"]) for row in rows)
    share = estimate_share(longer, len(rows), 0.95).to_json()
    return {"longer_wins": share, **{key: found[key] for key in ("before", "after", "difference")}}


def write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _flipped(row: dict[str, str]) -> dict[str, str]:
    return {**row, "chosen": row["rejected"], "rejected": row["chosen"]}


if __name__ == "__main__":
    main()
