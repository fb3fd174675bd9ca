"""How many pairs a second a DPO training does, side by side with TRL.

    python -m benchmarks.train_speed [--shapes 25m 135m] [--batches 4 16] [--data pairs|brand-voice] [--repeats 3]

Rivals, all LoRA r 16 on q_proj and v_proj under bfloat16 autocast with the same pairs, tokens and seeds:

    a     TRL as the classic recipe writes it: a frozen reference copy, default options (it checkpoints), random order
    c     TRL with a precomputed reference and without checkpointing, random order
    g     c with batches of pairs of like length, grouped over the whole data set
    ours  Demeanor's defaults: prefix-tree engine, precomputed reference, random order, arithmetic compiled where the
          whole set is large enough
    simpo, orpo              TRL's experimental trainers as a, without a reference copy: default options, random order
    simpo-c, orpo-c          the same as c: without checkpointing
    simpo-ours, orpo-ours    the same objectives on the prefix-tree engine

What a trainer does to the logits costs most where the vocabulary is large for the model. For 100 weights in its layers
the head has 17 in the 25m shape, 27 in 135m and 1b, 8 in 8b, 2.5 in 320m (as 1.9 in Mistral 7B).

Every contender is a process of its own that waits for its turn: they take turns (a c g ours, a c g ours, ...) over the
same steps. Before and after each turn the machine's matrix rate is probed; a turn in which it sagged is thrown away and
done again. The pairs are a sample of the whole set that keeps its lengths: equally spaced groups of the set sorted by
length.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import machine

HERE = Path(__file__).parent
SHAPES: dict[str, dict[str, Any]] = {
    "25m": {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8,
            "num_key_value_heads": 8, "vocab_size": 8192, "tie_word_embeddings": True},
    "135m": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
             "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True},
    "320m": {"hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 15,
             "num_key_value_heads": 5, "vocab_size": 8192, "tie_word_embeddings": True},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False},
}  # fmt: skip
RIVALS = ("a", "c", "g", "ours")
FREE = ("simpo", "orpo")  # objectives without a reference: TRL's experimental trainers, and "simpo-ours", "orpo-ours"
SAG = 0.85  # a turn counts when the matrix rate beside it is at least so much of the best seen
MAX_LENGTH = 1024
Pair = dict[str, list[int]]


# ---------------------------------------------------------------- data


def real_pairs(path: Path) -> list[Pair]:
    """The usable hh-rlhf pairs as token ids of the starter's tokenizer."""
    from demeanor.contract import Contract
    from demeanor.model import end_of_turn_ids, find_model, load_tokenizer
    from demeanor.pairs import read_pairs
    from demeanor.tokens import Tokenizer, tokenize_pairs

    contract = Contract.model_validate({"data": {"pairs": [str(path)]}})
    source = find_model("starter")
    pairs = read_pairs(str(path)).pairs
    inner = load_tokenizer(source, contract)
    tokenizer = Tokenizer(inner, end_of_turn_ids(source, inner))
    tokens, _ = tokenize_pairs(pairs, tokenizer, max_length=MAX_LENGTH)
    return [{"prompt_ids": t.prompt_ids, "chosen_ids": t.chosen_ids, "rejected_ids": t.rejected_ids} for t in tokens]


def brand_voice_pairs(num: int = 400, seed: int = 0) -> list[Pair]:
    """A system prompt of 1,000 tokens over short pairs: prompts of about 60 tokens, replies of about 40."""
    rng = random.Random(seed)

    def words(mean: int) -> list[int]:
        return [rng.randrange(10, 8000) for _ in range(max(4, round(rng.gauss(mean, mean / 4))))]

    system = [rng.randrange(10, 8000) for _ in range(1000)]
    return [{"prompt_ids": system + words(60), "chosen_ids": words(40), "rejected_ids": words(40)} for _ in range(num)]


def sample(pairs: list[Pair], batch: int, steps: int, seed: int = 0) -> list[Pair]:
    """`steps` batches of pairs of like length, equally spaced over the whole set sorted by length."""
    ordered = sorted(pairs, key=padded_length)
    groups = [ordered[start : start + batch] for start in range(0, len(ordered) - batch + 1, batch)]
    step = len(groups) / steps
    chosen = [groups[int((number + 0.5) * step)] for number in range(steps)]
    random.Random(seed).shuffle(chosen)
    return [pair for group in chosen for pair in group]


def padded_length(pair: Pair) -> int:
    return len(pair["prompt_ids"]) + max(len(pair["chosen_ids"]), len(pair["rejected_ids"]))


def count_tokens(pairs: list[Pair], batch: int, rival: str) -> dict[str, float]:
    """Tokens a pair that go through the trunk in one training forward pass: distinct ones, computed ones, padding."""
    from demeanor.train.engine import ROW_BUDGET
    from demeanor.train.tree import plan_rows

    batches = [pairs[start : start + batch] for start in range(0, len(pairs), batch)]
    groups = [[(p["prompt_ids"] + p["chosen_ids"], p["prompt_ids"] + p["rejected_ids"]) for p in b] for b in batches]
    distinct = sum(len(row) for g in groups for row in plan_rows(g, 1 << 30, 1))
    real = sum(len(one) + len(two) for g in groups for one, two in g)
    if rival.endswith("ours"):
        computed = sum(len(row) for g in groups for row in plan_rows(g, ROW_BUDGET))
        padding = 0
    else:
        computed = sum(2 * len(b) * max(map(padded_length, b)) for b in batches)
        padding = computed - real
    return {name: round(value / len(pairs), 1) for name, value in
            (("distinct", distinct), ("computed", computed), ("padding", padding))}  # fmt: skip


def gflop_of_pair(pairs: list[Pair], shape: dict[str, Any]) -> float:
    """Arithmetic that a training step needs at least for a pair: its distinct tokens forward and backward.

    Frozen weights take 2 operations forward and 2 backward for each weight and token (no weight gradient); the head
    sees the reply tokens only; attention takes 4 d operations forward and 8 d backward for each visible pair of tokens
    and layer. The reference takes the forward part once more.
    """
    hidden, layers = shape["hidden_size"], shape["num_hidden_layers"]
    key_value = hidden * shape["num_key_value_heads"] // shape["num_attention_heads"]
    weights = layers * (2 * hidden * hidden + 2 * hidden * key_value + 3 * hidden * shape["intermediate_size"])
    total = 0.0
    for pair in pairs:
        prompt, replies = len(pair["prompt_ids"]), [len(pair["chosen_ids"]), len(pair["rejected_ids"])]
        tokens = prompt + sum(replies)
        seen = prompt**2 / 2 + sum(n * prompt + n * n / 2 for n in replies)
        total += 4 * tokens * weights + 4 * sum(replies) * hidden * shape["vocab_size"] + 12 * seen * hidden * layers
    return total / len(pairs) / 1e9


# ---------------------------------------------------------------- one contender


def work(job: dict[str, Any]) -> None:
    """A contender's process: set up, then for each line on stdin run one turn and answer with one line of JSON."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, TrainerCallback
    from trl import DPOConfig, DPOTrainer
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    from demeanor.model import find_model, keep_freed_memory
    from demeanor.objectives import OBJECTIVES
    from demeanor.train import elementwise
    from demeanor.train.dpo import PairCollator, PairTrainer

    answers = sys.stdout
    sys.stdout = sys.stderr
    rival, batch, steps, turns = job["rival"], job["batch"], job["steps"], job["turns"]
    ours = rival.endswith("ours")
    name = rival.partition("-")[0]
    free = name in FREE
    objective = OBJECTIVES[name if free else "dpo"]
    pairs: list[Pair] = json.loads(Path(job["pairs"]).read_text())
    if rival != "g":
        random.Random(1).shuffle(pairs)
    cuda = torch.cuda.is_available()
    if ours and not cuda:
        keep_freed_memory()
    config = LlamaConfig(**SHAPES[job["shape"]], max_position_embeddings=2048, pad_token_id=0)
    dtype = torch.bfloat16 if cuda else torch.float32

    def build() -> Any:
        torch.manual_seed(0)
        with torch.device("cuda" if cuda else "cpu"):
            return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()

    policy = build()
    reference = build() if rival == "a" else None
    memory = machine.PeakMemory()
    options: dict[str, Any] = {}
    if rival not in ("a", *FREE):
        options["gradient_checkpointing"] = False
    if ours or rival in ("c", "g"):
        options["precompute_ref_log_probs"] = True
    if ours and free:
        options |= {"beta": objective.beta, "loss_type": ["sft"], "loss_weights": [objective.sft_weight]}
    configuration: Any = DPOConfig
    if rival in ("simpo", "simpo-c"):
        configuration = CPOConfig
        options |= {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": objective.beta, "simpo_gamma": objective.gamma}
    elif rival in ("orpo", "orpo-c"):
        configuration = ORPOConfig
        options |= {"beta": objective.beta}
    folder = tempfile.mkdtemp()
    arguments = configuration(
        output_dir=folder, max_length=MAX_LENGTH if free and not ours else None,
        per_device_train_batch_size=batch, max_steps=steps * turns,
        learning_rate=1e-4, bf16=True, use_cpu=not cuda, report_to="none", save_strategy="no", disable_tqdm=True,
        seed=0, **options,
    )  # fmt: skip
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")

    class InOrder:
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    class Theirs(InOrder, DPOTrainer):  # type: ignore[misc]
        pass

    class Ours(InOrder, PairTrainer):  # type: ignore[misc]
        pass

    def tokenize_row(self: Any, feature: Any, model: Any = None) -> dict[str, list[int]]:
        """What TRL's experimental trainers make of a row of texts, from the same token ids."""
        row = {"prompt_input_ids": feature["prompt_ids"], "prompt_attention_mask": [1] * len(feature["prompt_ids"])}
        for side in ("chosen", "rejected"):
            ids = feature["prompt_ids"] + feature[f"{side}_ids"]
            row |= {f"{side}_input_ids": ids, f"{side}_attention_mask": [1] * len(ids)}
            row[f"{side}_labels"] = [-100] * len(feature["prompt_ids"]) + feature[f"{side}_ids"]
        return row

    theirs = {
        "simpo": type("TheirSimPO", (InOrder, CPOTrainer), {"tokenize_row": tokenize_row}),
        "orpo": type("TheirORPO", (InOrder, ORPOTrainer), {"tokenize_row": tokenize_row}),
    }.get(name, Theirs)

    class Turns(TrainerCallback):
        started = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % steps == 0:
                sys.stdin.readline()
                self.started = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % steps == 0:
                if cuda:
                    torch.cuda.synchronize()
                seconds = time.perf_counter() - self.started
                answer = {"seconds": seconds, "peak_bytes": memory.above_start()}
                print(json.dumps(answer), file=answers, flush=True)

    set_up: dict[str, Any] = {
        "model": policy, "args": arguments, "train_dataset": Dataset.from_list(pairs),
        "processing_class": AutoTokenizer.from_pretrained(find_model("starter").base), "peft_config": lora,
        "callbacks": [Turns()],
    }  # fmt: skip
    if free and not ours:  # they ask for texts too
        texts = Dataset.from_list([{**pair, "prompt": "a", "chosen": "b", "rejected": "c"} for pair in pairs])
        set_up["train_dataset"] = texts
    else:
        set_up["ref_model"] = reference
    answer: dict[str, Any] = {"reference_seconds": 0.0, "compile_seconds": 0.0}
    print(json.dumps({"ready": True}), file=answers, flush=True)
    sys.stdin.readline()
    if ours:
        collator = PairCollator(0, None, None)
        if job["compiled"]:
            started = time.perf_counter()
            assert elementwise.compile_all() is None
            answer["compile_seconds"] = round(time.perf_counter() - started, 2)
        own = {"objective": objective, "gamma": objective.gamma, "say": lambda line: print(line)}
        trainer: Any = Ours(**set_up, data_collator=collator, **own)
        answer["engine"] = "tree" if trainer.engine else "padded"
    else:
        trainer = theirs(**set_up)
    if rival in (
        "c",
        "g",
        "ours",
    ):  # a second pass, which finds all kernels made, in an order that no cache knows but with equal batches
        backwards = Dataset.from_list(pairs[::-1])
        started = time.perf_counter()
        trainer._precompute_ref_logps(backwards, "train", batch)
        answer["reference_seconds"] = time.perf_counter() - started
    print(json.dumps(answer), file=answers, flush=True)
    trainer.train()


class Contender:
    """The parent's end of a contender's process."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        command = [sys.executable, "-m", "benchmarks.train_speed", "--work", json.dumps(job)]
        log = Path(job["pairs"]).with_name(f"{job['rival']}.log").open("w")
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=HERE.parent
        )
        self.hear()
        self.seconds: list[float] = []
        self.peak = 0
        self.set_up: dict[str, Any] = {}

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            log = Path(self.job["pairs"]).with_name(f"{self.job['rival']}.log").read_text()
            raise RuntimeError(f"{self.job['rival']} ended early:\n{log[-3000:]}")
        found: dict[str, Any] = json.loads(line)
        return found

    def turn(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self.hear()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


# ---------------------------------------------------------------- the contest


def contest(shape: str, batch: int, pairs: list[Pair], rivals: list[str], steps: int, repeats: int) -> dict[str, Any]:
    """All rivals over the same pairs, in turns. Returns figures by rival."""
    import torch

    from demeanor.train.elementwise import worth_compiling

    chosen = sample(pairs, batch, steps)
    passes = 2 * sum(len(p["prompt_ids"]) + len(p["chosen_ids"]) + len(p["rejected_ids"]) for p in pairs)
    compiled = worth_compiling(
        SHAPES[shape]["num_hidden_layers"], SHAPES[shape]["hidden_size"], passes,
        "cuda" if torch.cuda.is_available() else "cpu",
    )  # fmt: skip
    extra = 9  # turns that may be thrown away
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pairs.json"
        file.write_text(json.dumps(chosen))
        jobs = [
            {"shape": shape, "batch": batch, "rival": rival, "pairs": str(file), "steps": steps, "compiled": compiled,
             "turns": 1 + repeats + extra} for rival in rivals
        ]  # fmt: skip
        contenders = [Contender(job) for job in jobs]
        try:
            for one in contenders:
                one.set_up = one.turn()
                one.turn()  # the first turn warms up
            best, thrown = 0.0, 0
            rates: list[float] = []
            for _ in range(repeats + extra):
                if all(len(one.seconds) >= repeats for one in contenders):
                    break
                for one in contenders:
                    if len(one.seconds) >= repeats:
                        continue
                    before = machine.matrix_rate(torch.bfloat16)
                    found = one.turn()
                    after = machine.matrix_rate(torch.bfloat16)
                    rates += [before, after]
                    best = max(best, before, after)
                    if min(before, after) < SAG * best:
                        thrown += 1
                        continue
                    one.seconds.append(found["seconds"])
                    one.peak = found["peak_bytes"]
        finally:
            for one in contenders:
                one.end()
    result: dict[str, Any] = {"matrix_gflops": round(best), "thrown_away": thrown, "rivals": {}}
    num = steps * batch
    for one in contenders:
        if len(one.seconds) < repeats:
            raise RuntimeError(
                f"only {len(one.seconds)} quiet turns of {repeats}; try again when the machine is quieter"
            )
        rival = one.job["rival"]
        step = statistics.median(one.seconds) / num
        reference = one.set_up["reference_seconds"] / num
        mine = list(chosen)
        if rival != "g":
            random.Random(1).shuffle(mine)
        result["rivals"][rival] = {
            "pairs_a_second": round(1 / step, 3),
            "with_reference_1_epoch": round(1 / (step + reference), 3),
            "with_reference_2_epochs": round(1 / (step + reference / 2), 3),
            "turn_seconds": [round(value, 3) for value in one.seconds],
            "reference_seconds_a_pair": round(reference, 4),
            "compile_seconds": one.set_up["compile_seconds"],
            "peak_mib_above_weights": round(one.peak / 2**20),
            "tokens_a_pair": count_tokens(mine, batch, rival),
        }
    gflop = gflop_of_pair(chosen, SHAPES[shape])
    result["gflop_a_pair"] = round(gflop, 1)
    result["limit_pairs_a_second"] = round(best / gflop, 2)
    return result


def table(name: str, batch: int, result: dict[str, Any]) -> str:
    """The figures of one contest for a terminal."""
    best = {name: result["rivals"].get(f"{name}-ours") for name in FREE}
    limit = result["limit_pairs_a_second"]
    lines = [
        f"{name}, batch {batch}: {result['gflop_a_pair']} GFLOP a pair at least, {result['matrix_gflops']} GFLOP/s, "
        f"limit {limit} pairs/s; {result['thrown_away']} turns thrown away",
        f"{'':12}{'steps alone':>24}{'with reference, 1 epoch':>26}{'2 epochs':>18}{'share of':>10}{'peak above':>12}"
        f"{'tokens a pair':>28}",
        f"{'':12}{'pairs/s':>16}{'ours':>8}{'pairs/s':>18}{'ours':>8}{'pairs/s':>10}{'ours':>8}{'limit':>10}"
        f"{'weights MiB':>12}{'distinct computed padding':>28}",
    ]
    for rival, found in result["rivals"].items():
        cells = []
        for key, width in (("pairs_a_second", 16), ("with_reference_1_epoch", 18), ("with_reference_2_epochs", 10)):
            ours = best.get(rival.removesuffix("-c"), result["rivals"].get("ours"))
            ratio = f"{ours[key] / found[key]:.1f}x" if ours and not rival.endswith("ours") else ""
            cells.append(f"{found[key]:>{width}.2f}{ratio:>8}")
        tokens = found["tokens_a_pair"]
        share = found["pairs_a_second"] / limit
        lines.append(
            f"{rival:12}{''.join(cells)}{share:>10.0%}{found['peak_mib_above_weights']:>12}"
            f"{tokens['distinct']:>11.0f}{tokens['computed']:>9.0f}{tokens['padding']:>8.0f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shapes", nargs="+", default=["25m", "135m"], choices=SHAPES)
    parser.add_argument("--batches", nargs="+", type=int, default=[4, 16])
    parser.add_argument(
        "--rivals",
        nargs="+",
        default=list(RIVALS),
        choices=[*RIVALS, *FREE, *(f"{name}-{kind}" for name in FREE for kind in ("c", "ours"))],
    )
    parser.add_argument("--data", default="pairs", choices=["pairs", "brand-voice"])
    parser.add_argument("--pairs", type=Path, default=machine.HH)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, help="optimiser steps a turn (default: 32 pairs, at least 4 steps)")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "train_speed.json")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(json.loads(options.work))
        return
    if options.data == "pairs" and not options.pairs.exists():
        raise SystemExit(f"{options.pairs}: no such file; give --pairs, or --data brand-voice which needs none")
    pairs = real_pairs(options.pairs) if options.data == "pairs" else brand_voice_pairs()
    kept = json.loads(options.out.read_text()) if options.out.exists() else {}
    for shape in options.shapes:
        for batch in options.batches:
            steps = options.steps or max(4, 32 // batch)
            result = contest(shape, batch, pairs, options.rivals, steps, options.repeats)
            print(table(f"{shape} {options.data}", batch, result), flush=True)
            kept[f"{shape} {options.data} batch {batch}"] = {**result, "steps": steps, "repeats": options.repeats,
                                                           "machine": machine.describe(), "seed": 0}  # fmt: skip
            machine.write(options.out, kept, with_machine=False)


if __name__ == "__main__":
    main()
