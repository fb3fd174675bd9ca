"""What the training should leave as it was: grammar, plain texts, and what is said to neutral prompts.

    minimal_pair_accuracy   log p(good sentence) > log p(bad sentence), a tie counts half: whole sentences, without a
                            chat template (Warstadt et al. 2020, BLiMP, section 4)
    text_logp_per_token     log p(text) / its tokens; exp(-it) is the text's perplexity
    neutral_kl              1/T sum over t of KL(after(. | x, y_<t) || before(. | x, y_<t)), over the T next tokens of a
                            plain text, or of a dialog's last reply

Sentences and texts stand after one token (`Tokenizer.text`) and have no end-of-turn token: a plain text does not end a
turn. The divergence is exact: over the whole vocabulary, in float32. It has a loop of its own, and not the scorer's
trees, because it needs the whole distribution of both models at each place and not the probability of one token.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from demeanor.contract import Contract
from demeanor.records import Probe, Score
from demeanor.tokens import Tokenizer

if TYPE_CHECKING:
    from demeanor.measure.likelihood import Scorer

ROW_BUDGET = 1024  # tokens of a padded batch: the logits of both models are in memory
CHUNK = 256  # places whose distributions are compared at a time
BEFORE = "before"  # the name of an adapter that a tuned model came with


def add_neutral(
    scores: Sequence[Score],
    model: Any,
    scorer: Scorer,
    tokenizer: Tokenizer,
    chunk: Sequence[Probe],
    contract: Contract,
    side: str,
) -> list[Score]:
    """The scores of the chunk's conversations, with the divergence of dialogs added, and those of its plain texts.

    Args:
        scores: of the probes of the chunk that have a prompt.
        model: what `scorer` scores with; after the training a PEFT model, whose adapter can be switched off.

    Returns:
        One score a probe, in the order of the chunk.
    """
    from demeanor.measure import finite

    limit, system = contract.training.max_length, contract.system_text()
    plain = [probe for probe in chunk if not probe.prompt]
    texts = {p.id: [tokenizer.text(text)[:limit] for text in p.safe + p.violating] for p in plain}
    found = scorer.logps([texts[p.id][0][:1] for p in plain], [[ids[1:] for ids in texts[p.id]] for p in plain])
    values: dict[tuple[str, str], dict[str, float | None]] = {}
    for probe, logps in zip(plain, found, strict=True):
        totals = [sum(path) for path in logps]
        if probe.violating:
            good, bad = totals
            both = math.isfinite(good) and math.isfinite(bad)
            better = (0.5 if good == bad else float(good > bad)) if both else None
            own: dict[str, float | None] = {
                "minimal_pair_accuracy": better,
                "good_sentence_logp": good,
                "bad_sentence_logp": bad,
            }
        else:
            own = {"text_logp_per_token": totals[0] / len(logps[0])}
        values[probe.behaviour, probe.id] = own
    files = {name for name, promise in contract.promises.items() if promise.probes}  # else replies labelled one by one
    neutral = [p for p in chunk if p.safe and not p.violating and (not p.prompt or p.behaviour in files)]
    sequences = []
    for probe in neutral:
        if not probe.prompt:
            sequences.append((texts[probe.id][0][:1], texts[probe.id][0][1:]))
        else:
            prompt = tokenizer.prompt(probe.prompt, system)
            sequences.append((prompt, tokenizer.reply(probe.prompt, probe.safe[0], system)))
    kls: Sequence[float | None] = [0.0] * len(neutral) if side == "before" else mean_kl(model, sequences)
    for probe, kl in zip(neutral, kls, strict=True):
        values.setdefault((probe.behaviour, probe.id), {})["neutral_kl"] = kl
    known = {(score.behaviour, score.probe_id): score for score in scores}
    result = []
    for probe in chunk:
        key = (probe.behaviour, probe.id)
        old = known[key].values if key in known else {}
        merged = finite({**old, **values.get(key, {})})
        result.append(Score(probe.id, probe.behaviour, side, probe.attack, merged, probe.cluster))
    return result


@torch.inference_mode()
def mean_kl(model: Any, sequences: Sequence[tuple[list[int], list[int]]]) -> list[float | None]:
    """KL(after || before), nats a token, mean over the tokens of each continuation; None without a model before.

    Args:
        model: a PEFT model: after with its adapter on, before with it off (or, of a model that was tuned already, with
            the adapter that it came with).
        sequences: (prompt, continuation) as token ids, either with one token at least.
    """
    if not hasattr(model, "disable_adapter"):
        return [None] * len(sequences)
    model.eval()
    device = next(model.parameters()).device
    result: list[float | None] = [None] * len(sequences)
    order = sorted(range(len(sequences)), key=lambda place: -len(sequences[place][0]) - len(sequences[place][1]))
    while order:
        longest = sum(map(len, sequences[order[0]])) - 1
        size = max(1, ROW_BUDGET // longest)
        batch, order = order[:size], order[size:]
        # padded on the right: what comes after a token does not reach it
        input_ids = torch.zeros((len(batch), longest), dtype=torch.long)
        attention_mask = torch.zeros_like(input_ids)
        for row, place in enumerate(batch):
            ids = (sequences[place][0] + sequences[place][1])[:-1]
            input_ids[row, : len(ids)] = torch.tensor(ids)
            attention_mask[row, : len(ids)] = 1
        given = {"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device), "use_cache": False}
        after = model(**given).logits
        with before_training(model):
            before = model(**given).logits
        for row, place in enumerate(batch):
            prompt, continuation = sequences[place]
            start, end = len(prompt) - 1, len(prompt) + len(continuation) - 1
            parts = [_kl(after[row, s : min(s + CHUNK, end)], before[row, s : min(s + CHUNK, end)])
                     for s in range(start, end, CHUNK)]  # fmt: skip
            result[place] = sum(parts) / len(continuation)
    return result


def _kl(after: torch.Tensor, before: torch.Tensor) -> float:
    """Sum over the places [places, vocabulary]."""
    log_after, log_before = (torch.log_softmax(logits.float(), dim=-1) for logits in (after, before))
    differences = torch.where(log_after.isneginf(), 0.0, log_after - log_before)  # 0 log 0 = 0
    return float((log_after.exp() * differences).sum())


@contextmanager
def before_training(model: Any) -> Iterator[None]:
    """The model as it was: its adapter off, or the one on that it came with."""
    if BEFORE not in model.peft_config:
        with model.disable_adapter():
            yield
        return
    active = model.active_adapter
    model.set_adapter(BEFORE)
    try:
        yield
    finally:
        model.set_adapter(active)
