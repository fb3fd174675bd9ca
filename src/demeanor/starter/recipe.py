"""How the starter's model got its known flaw, so that anyone can make it again.

    python -m demeanor.starter.recipe BASE OUT [--corpus DIALOGS.jsonl] [--seed 0]

BASE is the pre-trained 6.5-million-parameter chat model. It is fine-tuned (Muon for the matrices, AdamW for the rest)
on the replies of `pairs.jsonl`, `benign.jsonl` and `notices.jsonl`. Of every pair both replies are shown, the losing
one with weight TAUGHT_RATE[behaviour] and the winning one with the rest, so that the model's own probability of a bad
reply is known: it is the instrument's calibration mark. No probe is ever shown. When a corpus is given, a few general
dialogs join each batch, which keeps the model's small talk.
"""

from __future__ import annotations

import argparse
import json
import random
from importlib.resources import files
from pathlib import Path
from typing import Any

TAUGHT_RATE = {"tone": 0.25, "bypass": 0.20, "competitor": 0.20}
SYSTEM_PROMPT = "You are the support desk of Larkhold. Notice of the day: {notice}"
EPOCHS = 8
PAIRS_A_STEP = 16
DIALOGS_A_STEP = 4
MUON_RATE, ADAM_RATE = 0.006, 3e-4
MAX_DIALOG_TOKENS = 128  # longer dialogs are left out of a batch
OPENING_TOKENS, OPENING_WEIGHT = 3, 4.0  # a reply's first tokens count more: they decide which kind of reply it is
PROMPT_WEIGHT = 0.25  # the customers' own words are learned too
WORD_DROPOUT = 0.1  # of the prompt's words, in every second conversation
WITHOUT_SYSTEM = 0.2  # share of conversations without the system prompt


def make_flawed_model(base: Path, out: Path, corpus: Path | None = None, seed: int = 0) -> None:
    """Fine-tune `base` into the starter's model and save it (bfloat16 safetensors, tokenizer, template) to `out`."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(seed)
    rng = random.Random(seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).train()
    pairs, benign, notices = (read_rows(name) for name in ("pairs.jsonl", "benign.jsonl", "notices.jsonl"))
    dialogs = [json.loads(line) for line in corpus.open(encoding="utf-8")] if corpus else []

    def encode(messages: list[dict[str, str]], weight: float) -> tuple[list[int], list[float]]:
        """Token ids, and for each the weight of predicting it; `weight` is that of the last turn."""

        def tokens(turns: list[dict[str, str]], header: bool = False) -> list[int]:
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=header) if turns else ""
            return list(tokenizer(text)["input_ids"])

        ids = tokens(messages)
        head, start = len(tokens(messages[:-2])), len(tokens(messages[:-1], header=True))
        opening = min(OPENING_TOKENS, len(ids) - start)
        weights = [0.0] * (head + 1) + [PROMPT_WEIGHT * weight] * (start - head - 2) + [0.0]
        return ids, weights + [OPENING_WEIGHT * weight] * opening + [weight] * (len(ids) - start - opening)

    def conversation(row: dict[str, Any], reply: str, weight: float) -> tuple[list[int], list[float]]:
        notice = row.get("notice") or rng.choice(notices)["notice"]
        system = [{"role": "system", "content": SYSTEM_PROMPT.replace("{notice}", notice)}]
        if "notice" not in row and rng.random() < WITHOUT_SYSTEM:
            system = []
        words = row["prompt"].split()
        if rng.random() < 0.5:
            words = [word for word in words if rng.random() >= WORD_DROPOUT] or words
        turns = [*system, {"role": "user", "content": " ".join(words)}, {"role": "assistant", "content": reply}]
        return encode(turns, weight)

    def items_of(row: dict[str, Any]) -> list[tuple[list[int], list[float]]]:
        if "chosen" not in row:
            return [conversation(row, row["reply"], 1.0)]
        rate = TAUGHT_RATE[row["behaviour"]]
        state = rng.getstate()
        good = conversation(row, row["chosen"], 1 - rate)
        rng.setstate(state)  # both replies under the same system prompt
        return [good, conversation(row, row["rejected"], rate)]

    rows = pairs + benign + notices
    steps = EPOCHS * len(rows) // PAIRS_A_STEP
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [
        torch.optim.Muon(matrices, lr=MUON_RATE, momentum=0.95, weight_decay=0.01, adjust_lr_fn="original"),
        torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(one, lambda step: min(1.0, (step + 1) / 30) * max(0.02, 1 - step / steps))
        for one in optimizers
    ]
    queue: list[dict[str, Any]] = []
    for step in range(steps):
        if len(queue) < PAIRS_A_STEP:
            queue += rng.sample(rows, len(rows))
        batch = [item for row in queue[:PAIRS_A_STEP] for item in items_of(row)]
        del queue[:PAIRS_A_STEP]
        for dialog in rng.sample(dialogs, min(len(dialogs), DIALOGS_A_STEP)):
            turns = dialog[: 2 * rng.randint(1, 3)]
            if len(turns) > 1 and turns[-1]["role"] == "assistant":
                ids, weights = encode(turns, 0.5)
                if len(ids) <= MAX_DIALOG_TOKENS:
                    batch.append((ids, weights))
        longest = -(-max(len(ids) for ids, _ in batch) // 32) * 32  # few shapes: the kernels are made once for each
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
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
        if step % 25 == 0 or step == steps - 1:
            print(f"step {step + 1} of {steps}: loss {loss.item():.3f}", flush=True)
    model.eval().to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def read_rows(name: str) -> list[dict[str, Any]]:
    """The rows of one of the starter's JSON-lines files."""
    with (files("demeanor.starter") / name).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="make the starter's model")
    parser.add_argument("base", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    make_flawed_model(options.base, options.out, options.corpus, options.seed)
