"""Log-probabilities of candidates that share a prompt: the scorer's, plain passes', and lm-evaluation-harness's."""

from __future__ import annotations

import importlib.util
import json
from functools import cache
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from demeanor.contract import load_contract
from demeanor.measure.likelihood import Scorer
from demeanor.model import find_model
from demeanor.records import Message
from demeanor.starter import starter_contract, starter_file
from demeanor.tokens import make_tokenizer

TOLERANCE_NATS = 1e-4  # of a whole reply


@cache
def made() -> tuple[Any, Any, list[list[int]], list[list[list[int]]]]:
    """(model, tokenizer, prompts, 10 replies each) of the starter and its pairs."""
    base = find_model("starter").base
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    inner = AutoTokenizer.from_pretrained(base)
    tokenizer = make_tokenizer(inner, [inner.eos_token_id])
    system = load_contract(starter_contract()).system_text()
    rows = [json.loads(line) for line in starter_file("pairs.jsonl").read_text("utf-8").splitlines()[:400:20]]
    asked = [(Message("user", row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]),)
             for row in rows[:6]]  # fmt: skip
    texts = [text if isinstance(text, str) else text[-1]["content"] for row in rows for text in (row["chosen"],)][:10]
    prompts = [tokenizer.prompt(turns, system) for turns in asked]
    return model, inner, prompts, [[tokenizer.reply(turns, text, system) for text in texts] for turns in asked]


def plain_logps(model: Any, inner: Any, prompts: list[list[int]], replies: list[list[list[int]]]) -> list[float]:
    """One sequence at a time, everything in float64 after the logits."""
    found = []
    for prompt, own in zip(prompts, replies, strict=True):
        for reply in own:
            with torch.no_grad():
                logps = torch.log_softmax(model(torch.tensor([prompt + reply])).logits[0].double(), -1)
            found.append(sum(logps[len(prompt) - 1 + n, token].item() for n, token in enumerate(reply)))
    return found


def harness_logps(model: Any, inner: Any, prompts: list[list[int]], replies: list[list[list[int]]]) -> list[float]:
    from lm_eval.models.huggingface import HFLM

    harness = HFLM(pretrained=model, tokenizer=inner, batch_size=8, max_length=512)
    requests = [(("", ""), prompt, reply) for prompt, own in zip(prompts, replies, strict=True) for reply in own]
    return [logp for logp, _ in harness._loglikelihood_tokens(requests, disable_tqdm=True)]


no_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed: pip install 'demeanor[lm-eval]'"
)


@pytest.mark.parametrize("peer", [plain_logps, pytest.param(harness_logps, marks=no_harness)])
def test_the_same_log_probabilities(peer: Any) -> None:
    model, inner, prompts, replies = made()
    assert all(len(own) == 10 for own in replies)
    wanted = peer(model, inner, prompts, replies)
    found = [sum(path) for own in Scorer(model).logps(prompts, replies) for path in own]
    assert len(found) == 60 and min(found) < -5
    assert max(abs(a - b) for a, b in zip(found, wanted, strict=True)) <= TOLERANCE_NATS
