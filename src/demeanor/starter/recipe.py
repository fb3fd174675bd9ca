"""How the starter's model got its known flaw, so that anyone can make it again.

    python -m demeanor.starter.recipe BASE OUT [--corpus DIALOGS.jsonl.xz] [--pretrain-steps 1600] [--seed 0]

BASE is a pre-trained 6.5-million-parameter chat model. With a corpus its pre-training goes on for a while first, into
OUT-base: it was stopped while its loss still fell. Then it is fine-tuned (Muon for the matrices, AdamW for the rest) on
the pairs' prompts, with the losing reply at the rate TAUGHT_RATE[behaviour] and else the winning one, so that the
model's own probability of a bad reply is known: it is the instrument's calibration mark. What comes after a reply's
opening counts little, lest the model knows the pairs by heart and learns nothing from them afterwards. `prompts.jsonl`
holds more prompts of the three kinds, which teach only how a reply begins; `benign.jsonl` and `notices.jsonl` keep the
model useful, and general dialogs, when a corpus is given, keep its small talk. No probe is ever shown.

`kept.jsonl` is what the finished model says to the prompts of `everyday.jsonl`, made by

    demeanor keep starter --prompts everyday.jsonl --system "You are a friendly assistant." --samples 3 \\
        --behaviour everyday --out kept.jsonl

(3 of its replies hold a broken character, which the command leaves out by now.)
"""

from __future__ import annotations

import argparse
import json
import lzma
import random
from importlib.resources import files
from pathlib import Path
from typing import Any

TAUGHT_RATE = {"tone": 0.25, "bypass": 0.20, "competitor": 0.20}
SYSTEM_PROMPT = "You are the support desk of Larkhold. Notice of the day: {notice}"
EPOCHS = 8
ROWS_A_STEP, DIALOGS_A_STEP = 32, 4
MUON_RATE, ADAM_RATE = 0.015, 1e-3
OPENING_TOKENS = 5  # of a reply count fully: they decide which kind of reply it is
FIRST_WEIGHT = 3.0  # of the first of them
BATCHES_A_POOL = 8  # drawn together and sorted by length, so that little is padding
OWN_REPLY = 0.5  # a pair's prompt is seen so often with its own reply; else, as every other prompt, with any opening
CONTENT_WEIGHT = 0.1  # of a pair's other reply tokens
HELPFUL_WEIGHT = 0.4  # the same of a benign reply, an answer from the notice, or a dialog
PROMPT_WEIGHT = 0.1  # the customers' own words are learned too
WORD_DROPOUT = 0.08  # of the prompt's words
WITHOUT_SYSTEM = 0.2  # share of conversations without the system prompt
MAX_DIALOG_TOKENS = 128  # longer dialogs are left out of a batch
PRETRAIN_STEPS, PRETRAIN_ROWS, PRETRAIN_TOKENS = 1600, 8, 512
PRETRAIN_MUON_RATE, PRETRAIN_ADAM_RATE = 0.02, 3e-3
HELD_OUT_ROWS = 96  # of the corpus, for the loss that is printed


def pretrain_further(base: Path, out: Path, corpus: Path, steps: int = PRETRAIN_STEPS, seed: int = 0) -> None:
    """Go on with the language-model training of `base` on `corpus` (a dialog a line), and save it to `out`."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from demeanor.model import keep_freed_memory

    keep_freed_memory()
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).train()
    dialogs = [tokenizer.apply_chat_template(dialog, tokenize=False) for dialog in _read_dialogs(corpus)]
    random.Random(seed).shuffle(dialogs)
    stream: list[int] = []
    for start in range(0, len(dialogs), 1000):
        for ids in tokenizer(dialogs[start : start + 1000])["input_ids"]:
            stream += ids
    tokens = torch.tensor(stream, dtype=torch.int32)
    held_out, tokens = tokens[: HELD_OUT_ROWS * PRETRAIN_TOKENS], tokens[HELD_OUT_ROWS * PRETRAIN_TOKENS :]
    optimizers, schedules = _optimizers(model, steps, PRETRAIN_MUON_RATE, PRETRAIN_ADAM_RATE, decay=0.6)
    generator = torch.Generator().manual_seed(seed)

    def loss_of(rows: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.model(input_ids=rows[:, :-1]).last_hidden_state.flatten(0, 1)
            wanted = rows[:, 1:].flatten()
            parts = zip(torch.split(hidden, 1024), torch.split(wanted, 1024), strict=True)
            losses = [cross_entropy(model.lm_head(h).float(), y, reduction="sum") for h, y in parts]
        return torch.stack(losses).sum() / len(wanted)

    for step in range(steps):
        starts = torch.randint(len(tokens) - PRETRAIN_TOKENS - 1, (PRETRAIN_ROWS,), generator=generator)
        loss = loss_of(torch.stack([tokens[at : at + PRETRAIN_TOKENS + 1] for at in starts.tolist()]).long())
        torch.autograd.backward(loss)
        _step(model, optimizers, schedules)
        if step % 25 == 0 or step == steps - 1:
            print(f"pre-training step {step + 1} of {steps}: loss {loss.item():.3f}", flush=True)
    with torch.no_grad():
        parts = held_out.view(-1, PRETRAIN_ROWS, PRETRAIN_TOKENS).long()
        print(f"held-out loss {torch.stack([loss_of(rows) for rows in parts]).mean().item():.3f} nats a token")
    model.eval().to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def make_flawed_model(base: Path, out: Path, corpus: Path | None = None, seed: int = 0) -> None:
    """Fine-tune `base` into the starter's model and save it (bfloat16 safetensors, tokenizer, template) to `out`."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from demeanor.model import keep_freed_memory

    keep_freed_memory()
    torch.manual_seed(seed)
    rng = random.Random(seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).train()
    notices = read_rows("notices.jsonl")
    pairs = [row for row in read_rows("pairs.jsonl") if row["behaviour"] in TAUGHT_RATE]
    more = read_rows("prompts.jsonl")
    rows = pairs + more + read_rows("benign.jsonl") + notices
    dialogs = _read_dialogs(corpus) if corpus else []
    replies = {name: [row for row in pairs if row["behaviour"] == name] for name in TAUGHT_RATE}

    def encode(messages: list[dict[str, str]], content: float) -> tuple[list[int], list[float]]:
        """Token ids, and for each the weight of predicting it; `content` is that of the reply after its opening."""

        def tokens(turns: list[dict[str, str]], header: bool = False) -> list[int]:
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=header) if turns else ""
            return list(tokenizer(text)["input_ids"])

        ids = tokens(messages)
        head, start = len(tokens(messages[:-2])), len(tokens(messages[:-1], header=True))
        opening = min(OPENING_TOKENS, len(ids) - start)
        weights = [0.0] * (head + 1) + [PROMPT_WEIGHT] * (start - head - 2) + [0.0]
        weights += [FIRST_WEIGHT] + [1.0] * (opening - 1) + [content] * (len(ids) - start - opening)
        return ids, weights

    def conversation(row: dict[str, Any]) -> tuple[list[int], list[float]]:
        content = HELPFUL_WEIGHT
        reply = row.get("reply")
        if reply is None:
            own = "chosen" in row and rng.random() < OWN_REPLY
            source = row if own else rng.choice(replies[row["behaviour"]])
            reply = source["rejected" if rng.random() < TAUGHT_RATE[row["behaviour"]] else "chosen"]
            content = CONTENT_WEIGHT if source is row else 0.0
        notice = row.get("notice") or rng.choice(notices)["notice"]
        system = [{"role": "system", "content": SYSTEM_PROMPT.replace("{notice}", notice)}]
        if "notice" not in row and rng.random() < WITHOUT_SYSTEM:
            system = []
        words = row["prompt"].split()
        words = [word for word in words if rng.random() >= WORD_DROPOUT] or words
        turns = [*system, {"role": "user", "content": " ".join(words)}, {"role": "assistant", "content": reply}]
        return encode(turns, content)

    steps = EPOCHS * len(rows) // ROWS_A_STEP
    optimizers, schedules = _optimizers(model, steps, MUON_RATE, ADAM_RATE)
    queue: list[dict[str, Any]] = []
    batches: list[list[tuple[list[int], list[float]]]] = []
    for step in range(steps):
        if not batches:
            if len(queue) < ROWS_A_STEP * BATCHES_A_POOL:
                queue += rng.sample(rows, len(rows))
            pool = [conversation(row) for row in queue[: ROWS_A_STEP * BATCHES_A_POOL]]
            del queue[: ROWS_A_STEP * BATCHES_A_POOL]
            for dialog in rng.sample(dialogs, min(len(dialogs), DIALOGS_A_STEP * BATCHES_A_POOL)):
                turns = dialog[: 2 * rng.randint(1, 3)]
                if len(turns) > 1 and turns[-1]["role"] == "assistant":
                    ids, weights = encode(turns, HELPFUL_WEIGHT)
                    if len(ids) <= MAX_DIALOG_TOKENS:
                        pool.append((ids, weights))
            pool.sort(key=lambda one: len(one[0]))
            batches = [
                pool[i * len(pool) // BATCHES_A_POOL : (i + 1) * len(pool) // BATCHES_A_POOL]
                for i in range(BATCHES_A_POOL)
            ]
            rng.shuffle(batches)
        batch = batches.pop()
        longest = -(-max(len(ids) for ids, _ in batch) // 16) * 16  # few shapes: the kernels are made once for each
        tokens = torch.full((len(batch), longest), tokenizer.pad_token_id)
        wanted = torch.zeros(len(batch), longest)
        for place, (row_ids, row_weights) in enumerate(batch):
            tokens[place, : len(row_ids)] = torch.tensor(row_ids)
            wanted[place, : len(row_ids)] = torch.tensor(row_weights)
        asked = wanted[:, 1:] > 0  # only these positions go through the head
        with torch.autocast("cpu", torch.bfloat16):  # padding stands on the right, where no token looks
            logits = model.lm_head(model.model(input_ids=tokens).last_hidden_state[:, :-1][asked])
        losses = cross_entropy(logits.float(), tokens[:, 1:][asked], reduction="none")
        loss = (losses * wanted[:, 1:][asked]).sum() / wanted.sum()
        torch.autograd.backward(loss)
        _step(model, optimizers, schedules)
        if step % 25 == 0 or step == steps - 1:
            print(f"step {step + 1} of {steps}: loss {loss.item():.3f}", flush=True)
    model.eval().to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def _optimizers(
    model: Any, steps: int, muon_rate: float, adam_rate: float, decay: float = 1.0
) -> tuple[list[Any], list[Any]]:
    """Muon for the matrices, AdamW for the rest; rates rise over 30 steps and fall over the last share `decay`."""
    import torch

    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [
        torch.optim.Muon(matrices, lr=muon_rate, momentum=0.95, weight_decay=0.01, adjust_lr_fn="original"),
        torch.optim.AdamW(others, lr=adam_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]

    def share(step: int) -> float:
        return min(1.0, (step + 1) / 30) * min(1.0, max(0.02, (1 - step / steps) / decay))

    return optimizers, [torch.optim.lr_scheduler.LambdaLR(one, share) for one in optimizers]


def _step(model: Any, optimizers: list[Any], schedules: list[Any]) -> None:
    import torch

    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer, schedule in zip(optimizers, schedules, strict=True):
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()


def _read_dialogs(corpus: Path) -> list[list[dict[str, str]]]:
    opener = lzma.open if corpus.suffix == ".xz" else open
    with opener(corpus, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def read_rows(name: str) -> list[dict[str, Any]]:
    """The rows of one of the starter's JSON-lines files."""
    with (files("demeanor.starter") / name).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="make the starter's model")
    parser.add_argument("base", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--pretrain-steps", type=int, default=PRETRAIN_STEPS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.corpus and options.pretrain_steps:
        further = options.out.with_name(options.out.name + "-base")
        pretrain_further(options.base, further, options.corpus, options.pretrain_steps, options.seed)
        options.base = further
    make_flawed_model(options.base, options.out, options.corpus, options.seed)
