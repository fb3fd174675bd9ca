"""Sampled replies: seeded, batched, plain sampling at a stated temperature (no top-k, no top-p)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from demeanor.contract import Contract
from demeanor.errors import StageError
from demeanor.records import Probe
from demeanor.tokens import Tokenizer
from demeanor.train.rewards import reply_of


def room(model: Any) -> int:
    """Positions that the model has."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30)


def say_cut(
    model: Any, tokenizer: Tokenizer, sampled: list[Probe], contract: Contract, say: Callable[[str], None]
) -> None:
    """One line, if some of the sampled probes' prompts leave the model's positions too few for a whole reply."""
    most, places, system = contract.measurement.max_new_tokens, room(model), contract.system_text()
    forced = max(contract.measurement.prefill, default=0)
    cut = sum(len(tokenizer.prompt(probe.prompt, system)) + forced + most > places for probe in sampled)
    if cut:
        after = f", with {forced} tokens forced," if forced else ""
        say(
            f"{cut:,} of {len(sampled):,} sampled prompts{after} leave fewer than max_new_tokens={most} of the model's "
            f"{places:,} positions: their replies end there"
        )


class _Finite(LogitsProcessor):
    """Stops before a draw from what is no distribution (on an accelerator the draw itself would end the process)."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not bool((scores < float("inf")).all()):  # not a number, or infinite
            raise StageError(
                "the model gives logits that are not finite: nothing can be sampled; its weights are damaged"
            )
        return scores


@torch.inference_mode()
def sample_replies(
    model: Any,
    tokenizer: Tokenizer,
    prompts: list[list[int]],
    *,
    samples: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
) -> list[list[tuple[str, list[int]]]]:
    """`samples` replies a prompt as (text, token ids with the end of turn); the same seed and batch give the same.

    A prompt that leaves the model's positions fewer than `max_new_tokens` is sampled alone, up to the last of them; one
    that leaves none has no reply.
    """
    found: list[list[tuple[str, list[int]]]] = [[] for _ in prompts]
    if not samples:
        return found
    torch.manual_seed(seed)
    left = [room(model) - len(ids) for ids in prompts]
    together = [place for place, most in enumerate(left) if most >= max_new_tokens]
    for places in (together, *([place] for place, most in enumerate(left) if 0 < most < max_new_tokens)):
        if places:
            most = min(max_new_tokens, *(left[place] for place in places))
            drawn = _drawn(model, tokenizer, [prompts[place] for place in places], samples, temperature, most)
            for place, own in zip(places, drawn, strict=True):
                found[place] = own
    return found


def _drawn(
    model: Any, tokenizer: Tokenizer, prompts: list[list[int]], samples: int, temperature: float, max_new_tokens: int
) -> list[list[tuple[str, list[int]]]]:
    inner = tokenizer.inner
    device = next(model.parameters()).device
    longest = max(map(len, prompts))
    input_ids = torch.full((len(prompts), longest), inner.pad_token_id)
    attention_mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(prompts):  # padded on the left, so that all replies start together
        input_ids[row, longest - len(ids) :] = torch.tensor(ids)
        attention_mask[row, longest - len(ids) :] = 1
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    kept = base.generation_config
    # the model's own settings (a repetition penalty, say) would fill whatever a call leaves open
    base.generation_config = GenerationConfig(eos_token_id=tokenizer.end_ids, pad_token_id=inner.pad_token_id)
    try:
        output = model.generate(
            input_ids=input_ids.to(device),
            attention_mask=attention_mask.to(device),
            logits_processor=LogitsProcessorList([_Finite()]),
            do_sample=True,
            temperature=temperature,
            top_k=0,
            top_p=1.0,
            num_return_sequences=samples,
            max_new_tokens=max_new_tokens,
        )[:, longest:].tolist()
    finally:
        base.generation_config = kept
    replies: list[tuple[str, list[int]]] = []
    for ids in output:
        reply, text = reply_of(ids, inner, tokenizer.end_ids)
        replies.append((text, reply))
    return [replies[row * samples : (row + 1) * samples] for row in range(len(prompts))]
