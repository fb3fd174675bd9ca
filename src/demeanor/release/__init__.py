"""Adapter -> a merged model that plain transformers loads, released only when it gives the adapter's numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from demeanor.contract import Contract
from demeanor.errors import StageError
from demeanor.model import ModelSource
from demeanor.records import Probe
from demeanor.tokens import Tokenizer

__all__ = ["merge_adapter"]

# Largest mean difference of a token's log-probability over the probes' replies, nats. Merging adds the adapter to the
# weights before the product, not after it, which only reorders float32 sums; bfloat16 weights are rounded as well.
TOLERANCE_NATS = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.02}


def merge_adapter(
    aligned: Any,
    tokenizer: Tokenizer,
    probes: list[Probe],
    contract: Contract,
    out: Path,
    *,
    source: ModelSource,
    dtype: str = "auto",
    max_probes: int = 64,
) -> dict[str, Any]:
    """Merge, save to the folder `out`, load it again with plain transformers, and compare on the probes' replies.

    Args:
        aligned: the PEFT model with the trained adapter; it is merged in place.
        dtype: of the saved weights: float32, bfloat16, float16, or auto for that of the base model's files.
        max_probes: probes that are compared.

    Returns:
        `dtype`, `tolerance_nats`, `mean_difference_nats`, `worst_difference_nats` (of a token), `num_replies`.

    Raises:
        StageError: the mean difference exceeds the tolerance.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from demeanor.measure.likelihood import Scorer

    kind = _saved_dtype(source) if dtype == "auto" else dtype
    system = contract.system_text()
    count = min(max_probes, len(probes))
    compared = [probes[index * len(probes) // count] for index in range(count)]  # of every behaviour
    sequences = [_sequences(probe, tokenizer, system, contract.training.max_length) for probe in compared]
    prompts, replies = [prompt for prompt, _ in sequences], [texts for _, texts in sequences]
    wanted = Scorer(aligned).logps(prompts, replies)
    device = next(aligned.parameters()).device
    merged = aligned.merge_and_unload(safe_merge=True)
    merged.to(getattr(torch, kind)).save_pretrained(out)
    tokenizer.inner.save_pretrained(out)
    loaded = AutoModelForCausalLM.from_pretrained(
        out,
        dtype=torch.float32 if device.type == "cpu" else "auto",
        use_safetensors=True,
        trust_remote_code=contract.trust_remote_code,
    )
    found = Scorer(loaded.to(device).eval()).logps(prompts, replies)
    differences = [
        abs(a - b)
        for one, two in zip(wanted, found, strict=True)
        for left, right in zip(one, two, strict=True)
        for a, b in zip(left, right, strict=True)
    ]
    mean = sum(differences) / len(differences)
    if not mean <= TOLERANCE_NATS[kind]:
        raise StageError(
            f"the merged model differs from the adapter by {mean:.3g} nats a token on the probes "
            f"(at most {TOLERANCE_NATS[kind]:g} in {kind}): it is not released; "
            "--dtype float32 keeps the adapter's precision"
        )
    return {
        "dtype": kind,
        "tolerance_nats": TOLERANCE_NATS[kind],
        "mean_difference_nats": mean,
        "worst_difference_nats": max(differences),
        "num_replies": sum(map(len, replies)),
    }


def _sequences(
    probe: Probe, tokenizer: Tokenizer, system: str | None, max_length: int
) -> tuple[list[int], list[list[int]]]:
    """The probe's replies after its prompt; of a plain text, and of a prompt alone, all tokens after the first."""
    if not probe.prompt:
        texts = [tokenizer.text(text)[:max_length] for text in probe.violating + probe.safe]
        return texts[0][:1], [ids[1:] for ids in texts]
    prompt = tokenizer.prompt(probe.prompt, system)
    replies = [tokenizer.reply(probe.prompt, text, system) for text in probe.violating + probe.safe]
    return (prompt, replies) if replies else (prompt[:1], [prompt[1:]])


def _saved_dtype(source: ModelSource) -> str:
    """The precision of the base model's own weights."""
    from safetensors import safe_open

    names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
    with safe_open(sorted(source.base.glob("*.safetensors"))[0], framework="pt") as file:
        key = max(file.keys(), key=lambda name: len(file.get_slice(name).get_shape()))
        return names.get(file.get_slice(key).get_dtype(), "float32")
