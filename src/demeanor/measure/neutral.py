"""What the training should leave as it was: grammar, plain texts, and what is said to neutral prompts.

    minimal_pair_accuracy   log p(good sentence) > log p(bad sentence), a tie counts half: whole sentences, without a
                            chat template (Warstadt et al. 2020, BLiMP, section 4)
    text_logp_per_token     log p(text) / its tokens; exp(-it) is the text's perplexity
    neutral_kl              1/T sum over t of KL(after(. | x, y_<t) || before(. | x, y_<t)), over the T next tokens of a
                            plain text, or of a dialog's last reply

Sentences and texts stand after one token (`Tokenizer.text`) and have no end-of-turn token: a plain text does not end a
turn. The divergence is exact: over the whole vocabulary, in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from demeanor.contract import Contract
from demeanor.measure.depth import as_before
from demeanor.records import Probe, Score
from demeanor.tokens import Tokenizer

if TYPE_CHECKING:
    from demeanor.measure.likelihood import Scorer


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
    kls: Sequence[float | None] = [0.0] * len(neutral) if side == "before" else mean_kl(model, scorer, sequences)
    for probe, kl in zip(neutral, kls, strict=True):
        values.setdefault((probe.behaviour, probe.id), {})["neutral_kl"] = kl
    known = {(score.behaviour, score.probe_id): score for score in scores}
    result = []
    for probe in chunk:
        key = (probe.behaviour, probe.id)
        score = known[key] if key in known else Score.of(probe, side, {})
        result.append(replace(score, values=finite({**score.values, **values.get(key, {})})))
    return result


def mean_kl(model: Any, scorer: Scorer, sequences: Sequence[tuple[list[int], list[int]]]) -> list[float | None]:
    """KL(after || before), nats a token, mean over the tokens of each continuation; None without a model before.

    Args:
        model: the PEFT model that `scorer` scores, its trained adapter on.
        sequences: (prompt, continuation) as token ids, either with one token at least.
    """
    if not hasattr(model, "disable_adapter"):
        return [None] * len(sequences)
    prompts, continuations = [prompt for prompt, _ in sequences], [[ids] for _, ids in sequences]
    found = scorer.divergences(prompts, continuations, lambda: as_before(model))
    return [sum(curve) / len(curve) for (curve,) in found]
