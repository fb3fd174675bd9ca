"""What the pairs come to under the model: what does not fit or cannot be rendered, tokens, a training's work.

Work of one pass with a frozen base under an adapter, N parameters that multiply: a forward pass takes 2 N operations of
floating point a token and a backward pass through frozen weights 2 N (Kaplan et al. 2020, section 2.1: 2 N forward, 4 N
backward, of which half are the gradients of the weights, which an adapter does not need); the reference is one more
forward pass. Attention's own products are left out, and so is gradient checkpointing (2 N more).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from demeanor.audit.check import Check, Context, Found, Scope
from demeanor.contract import Contract, build_contract
from demeanor.model import ModelSource, config_of, end_of_turn_ids, load_tokenizer, positions_of
from demeanor.records import Estimate, PreferencePair
from demeanor.statistics import estimate_share
from demeanor.tokens import Refused, Tokenizer, make_tokenizer

PROMPT, CHOSEN, REJECTED, CUT, WHOLE = range(5)  # columns: tokens, tokens, tokens, turns, tokens before turns were cut
_KINDS = {  # by how the reason begins
    "too_long": "longer than max_length",
    "forged_turn": "a text spells",
    "boundary": "the prompt's tokens change",
}
_TOKENIZERS: dict[tuple[str, str | None], Tokenizer] = {}  # of this process


def _look(pairs: Sequence[PreferencePair], scope: Scope) -> dict[str, Any]:
    """tokens [pairs, 5] int32 (columns above; 0 where the pair is refused), reasons: place in the block -> why."""
    tokens, reasons = np.zeros((len(pairs), 5), np.int32), {}
    if scope.model is not None:
        contract = _contract(scope)
        tokenizer, limit = _tokenizer(scope.model, contract), max_length(contract, scope.model)
        for number, pair in enumerate(pairs):
            try:
                tokens[number] = _measured(pair, tokenizer, contract, limit)
            except Refused as reason:
                reasons[number] = str(reason)
    return {"tokens": tokens, "reasons": reasons}


def _measured(pair: PreferencePair, tokenizer: Tokenizer, contract: Contract, limit: int) -> tuple[int, ...]:
    system = contract.system_text(pair.id)
    taken = tokenizer.pair(pair, system, limit)
    sizes = [len(ids) for ids in (taken.prompt_ids, taken.chosen_ids, taken.rejected_ids)]
    whole = len(tokenizer.prompt(pair.prompt, system)) if taken.turns_cut else sizes[0]
    return (*sizes, taken.turns_cut, whole)


def _contract(scope: Scope) -> Contract:
    return scope.contract or build_contract({"data": {"pairs": ["-"]}})


def _tokenizer(model: ModelSource, contract: Contract) -> Tokenizer:
    key = (model.fingerprint, contract.chat_template)
    if key not in _TOKENIZERS:
        inner = load_tokenizer(model, contract)
        _TOKENIZERS[key] = make_tokenizer(inner, end_of_turn_ids(model, inner))
    return _TOKENIZERS[key]


def max_length(contract: Contract, model: ModelSource) -> int:
    """The contract's, or as many positions as the model has."""
    return min(contract.training.max_length, positions_of(model) or contract.training.max_length)


def num_multiplied(model: ModelSource) -> int:
    """Parameters that multiply at every token: all matrices, the input embedding only where it is the head too.

    Read from the headers of the safetensors files, without the weights.
    """
    total, has_head = 0, False
    for file in sorted(Path(model.base).glob("*.safetensors")):
        for name, shape in _shapes(file):
            is_embedding = "embed" in name or "wte" in name or "wpe" in name
            has_head |= "lm_head" in name or "embed_out" in name
            total += 0 if is_embedding or len(shape) < 2 else math.prod(shape)
    config = config_of(model)
    return total + (
        0 if has_head else config.get("vocab_size", 0) * (config.get("hidden_size") or config.get("n_embd", 0))
    )


def _shapes(file: Path) -> Iterable[tuple[str, list[int]]]:
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    return [(name, entry["shape"]) for name, entry in header.items() if name != "__metadata__"]


def _find(context: Context) -> Iterable[Found]:
    scope = context.scope
    if scope.model is None:
        yield Found(
            kind="needs_model",
            severity="informs",
            what="tokens, truncation and the template were not looked at: no model was named",
            measure="pairs that were tokenized",
            estimate=Estimate(None, None, None, 0, len(context.store)),
            remedy="give --model, or a contract with one",
        )
        return
    contract = _contract(scope)
    limit, confidence = max_length(contract, scope.model), scope.confidence
    tokens = context.column(_look, "tokens").reshape(-1, 5).astype(np.int64)
    refused = _refused(context)
    yield from _of_refused(context, refused, len(tokens))
    taken = np.setdiff1d(np.arange(len(tokens)), list(refused))
    yield from _boundary(context, refused, len(taken), _tokenizer(scope.model, contract))
    if not len(taken):
        return
    cut = np.flatnonzero(tokens[:, CUT])
    if len(cut):
        lost = int((tokens[cut, WHOLE] - tokens[cut, PROMPT]).sum())
        yield Found(
            kind="cut_prompts",
            severity="warns" if len(cut) / len(tokens) > context.limits["max_cut"] else "informs",
            what=f"{len(cut):,} prompts lose their oldest turns at max_length={limit}: "
            f"{tokens[cut, CUT].sum():,} turns, {lost:,} tokens "
            "(cut at the end instead, as TRL does, each would lose the end of a reply)",
            measure="share of the pairs",
            estimate=estimate_share(len(cut), len(tokens), confidence),
            remedy="raise training.max_length if the model has the positions, or shorten the prompts",
            pairs=cut,
        )
    if not _writes_end(_tokenizer(scope.model, contract)):
        yield Found(
            kind="no_end_of_turn",
            severity="informs",
            what="the model's template writes no end-of-turn token after a reply; it is added, or no stop is learned",
            measure="pairs whose replies get it",
            estimate=Estimate(1.0, None, None, len(taken)),
            remedy="nothing to do here; serve the model with the same template",
        )
    yield _training(context, contract, tokens[taken])


def _refused(context: Context) -> dict[int, str]:
    """Place in the store -> why the tokenizer's rules refuse the pair."""
    found: dict[int, str] = {}
    start = 0
    for block in context.seen[_look]:
        found |= {start + number: reason for number, reason in block["reasons"].items()}
        start += len(block["tokens"])
    return found


def _of_refused(context: Context, refused: dict[int, str], num_pairs: int) -> Iterable[Found]:
    for kind in _REMEDIES:
        places = [place for place, reason in refused.items() if _kind(reason) == kind]
        if places and kind != "boundary":
            reasons = Counter(refused[place] for place in places)
            said = "; ".join(f"{count:,}: {reason}" for reason, count in reasons.most_common(3))
            many = len(places) / num_pairs > context.limits["max_refused"]
            yield Found(
                kind=kind,
                severity="blocks" if many else "warns",
                what=f"{len(places):,} of {num_pairs:,} pairs cannot be trained on: {said}",
                measure="share of the pairs",
                estimate=estimate_share(len(places), num_pairs, context.scope.confidence),
                remedy=_REMEDIES[kind],
                pairs=places,
                notes={place: refused[place] for place in places[:5]},
            )


def _kind(reason: str) -> str:
    return next((kind for kind, begin in _KINDS.items() if reason.startswith(begin)), "template")


def _boundary(context: Context, refused: dict[int, str], num_taken: int, tokenizer: Tokenizer) -> Iterable[Found]:
    """Do the tokens of the whole conversation begin with those of its prompt? Elsewhere a loss over the reply's tokens
    would take in a piece of the prompt, or miss one of the reply. Always said: nothing else shows that it holds."""
    places = [place for place, reason in refused.items() if _kind(reason) == "boundary"]
    num = num_taken + len(places)  # other pairs were refused before it could be seen
    if not num:
        return
    what = f"{len(places):,} of {num:,} pairs cannot be trained on: the prompt has other tokens once a reply follows"
    if not places:
        end = tokenizer.inner.decode([tokenizer.end_ids[0]])
        what = f"prompt and reply part between two tokens in all {num:,} pairs, and each reply ends with one {end}"
    many = len(places) / num > context.limits["max_refused"]
    yield Found(
        kind="boundary",
        severity="blocks" if many else "warns" if places else "informs",
        what=what,
        measure="share of the pairs whose prompt's tokens change when a reply follows",
        estimate=estimate_share(len(places), num, context.scope.confidence),
        remedy=_REMEDIES["boundary"] if places else "none needed",
        pairs=places,
        notes={place: context.store[place].chosen for place in places[:5]},
    )


_REMEDIES = {
    "too_long": "raise training.max_length, or take out the pairs: a reply is never cut",
    "forged_turn": "take the token out of the text: it would end the turn, or begin another",
    "boundary": "take the blanks off the beginning of these replies, or set a chat_template whose header of a reply "
    "ends with a special token: its last token grows into the reply's first",
    "template": "set chat_template, or take out the pairs",
}


def _training(context: Context, contract: Contract, tokens: np.ndarray) -> Found:
    """What one training would compute. tokens: [pairs, 5] of those that can be trained on."""
    assert context.scope.model is not None
    batch, epochs = contract.training.per_device_train_batch_size, contract.training.num_train_epochs
    once = int(tokens[:, : REJECTED + 1].sum())
    twice = int((2 * tokens[:, PROMPT] + tokens[:, CHOSEN] + tokens[:, REJECTED]).sum())
    padded = padded_tokens(tokens, batch, context.scope.seed)
    size = num_multiplied(context.scope.model)
    passes = 4 * epochs + 2 * contract.training.needs_reference  # times N and tokens; the reference is computed once
    work, rate = passes * size * once, context.limits["tflops"] * 1e12
    longest = int((tokens[:, PROMPT] + tokens[:, [CHOSEN, REJECTED]].max(1)).max())
    hours = work / rate / 3600
    return Found(
        kind="training",
        severity="informs",
        what=f"{once:,} tokens a pass with each prompt once (twice: {twice:,}; padded in batches of {batch} as TRL "
        f"does: {padded:,}, {padded / once:.2g} times as many), longest {longest:,}; {size / 1e6:,.3g} M parameters "
        f"and {epochs:g} epochs make {work / 1e15:.3g} PFLOP, {_duration(hours)} at {rate / 1e12:g} TFLOP/s",
        measure="tokens a pair, each prompt once, mean",
        estimate=Estimate(once / len(tokens), None, None, len(tokens)),
        remedy="audit.budget.tflops is the rate that your machine sustains; a third of its peak is usual",
        details={"tokens": once, "tokens_prompt_twice": twice, "tokens_padded": padded, "flop": work, "hours": hours,
                 "longest": longest, "parameters": size},
    )  # fmt: skip


def padded_tokens(tokens: np.ndarray, batch: int, seed: int) -> int:
    """Tokens of a pass over chosen and rejected sequences that are padded to the longest of their batch, in a seeded
    random order."""
    longest = (tokens[:, PROMPT] + tokens[:, [CHOSEN, REJECTED]].max(1))[
        np.random.default_rng(seed).permutation(len(tokens))
    ]
    starts = np.arange(0, len(longest), batch)
    sizes = np.diff(np.append(starts, len(longest)))
    return int((2 * sizes * np.maximum.reduceat(longest, starts)).sum())


def _duration(hours: float) -> str:
    return f"{hours:.3g} hours" if hours >= 1 else f"{hours * 60:.2g} minutes" if hours * 60 >= 1 else "under a minute"


def _writes_end(tokenizer: Tokenizer) -> bool:
    turns = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello."}]
    text = str(tokenizer.inner.apply_chat_template(turns, tokenize=False))
    after = text.rpartition("Hello.")[2]
    return any(str(tokenizer.inner.decode([end])) in after for end in tokenizer.end_ids)


CHECK = Check(
    name="budget",
    about="what the model's tokenizer and template make of the pairs, and what a training would cost (needs a model)",
    kinds=("needs_model", *_REMEDIES, "cut_prompts", "no_end_of_turn", "training"),
    find=_find,
    looks=(_look,),
    limits={
        "max_refused": (0.05, "share of the pairs that may be refused for one kind of reason"),
        "max_cut": (0.05, "share of the prompts that may lose turns"),
        "tflops": (100, "10^12 floating-point operations a second that the machine sustains"),
    },
    bounds={"tflops": (0, math.inf)},
)
