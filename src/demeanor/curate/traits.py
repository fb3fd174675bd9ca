"""What the steps need to know of each pair, as arrays: 50 bytes a pair beside the texts on disk."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import Any

import numpy as np

from demeanor.audit import Scope, look_at
from demeanor.audit.origins import joined, origins
from demeanor.contract import build_contract
from demeanor.model import ModelSource, load_tokenizer
from demeanor.pairs import PairStore
from demeanor.progress import Named, Progress
from demeanor.records import Estimate, PreferencePair, Record
from demeanor.statistics import estimate_share

UNITS = ("characters", "words", "tokens")


@dataclass(frozen=True)
class Traits:
    """Of each pair, in order. Texts are compared by 64-bit digests of their words; those of prompts ignore case."""

    prompt: np.ndarray  # uint64: all turns
    question: np.ndarray  # uint64: the last turn, the user's
    chosen: np.ndarray  # uint64
    rejected: np.ndarray  # uint64
    difference: np.ndarray  # int64: length of the chosen reply less that of the rejected one
    weight: np.ndarray  # float64: confidence in the label; 1 where it does not say
    sources: np.ndarray  # int64: which of `source_names`
    behaviours: np.ndarray  # int64: which of `behaviour_names`
    source_names: Sequence[str]
    behaviour_names: Sequence[str]

    def __len__(self) -> int:
        return len(self.difference)

    @property
    def strata(self) -> np.ndarray:
        """[pairs] int64: a number for each source and behaviour together."""
        return np.asarray(self.sources * len(self.behaviour_names) + self.behaviours)

    def groups(self) -> list[tuple[str, np.ndarray]]:
        """(name, mask): all pairs, then each source and each behaviour of several."""
        found = [("all pairs", np.ones(len(self), bool))]
        for what, names, of in (
            ("source", self.source_names, self.sources),
            ("behaviour", self.behaviour_names, self.behaviours),
        ):
            if len(names) > 1:
                found += [(f"{what} {name or '(none)'}", of == at) for at, name in enumerate(names)]
        return found


@dataclass(frozen=True, slots=True)
class Lengths(Record):
    """How length and label go together in a group of pairs.

    `longer_wins` is the share of the pairs whose chosen reply is the longer one, of those whose replies differ in
    length; `mean_difference` is chosen less rejected, over all of them.
    """

    group: str
    pairs: int
    longer_wins: Estimate
    mean_difference: float


def traits_of(
    pairs: PairStore,
    unit: str = "characters",
    model: ModelSource | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
) -> Traits:
    """Read all pairs once, on every core; `model` is needed for lengths in tokens."""
    look = partial(_look, unit, model)
    seen = look_at(pairs, [look, origins], Scope(), Named(progress or Progress(), f"lengths in {unit}"), workers)
    blocks, of = seen[look], joined(seen[origins])
    columns = {
        name: [block[name] for block in blocks] for name in (blocks[0] if blocks else _look(unit, None, (), Scope()))
    }
    arrays = {name: np.concatenate(column) if column else np.empty(0) for name, column in columns.items()}
    return Traits(
        **arrays,
        sources=of.sources.astype(np.int64),
        behaviours=of.behaviours.astype(np.int64),
        source_names=of.source_names,
        behaviour_names=of.behaviour_names,
    )


def lengths_of(traits: Traits, places: np.ndarray, confidence: float) -> list[Lengths]:
    """Of the pairs at `places`, each group that has some."""
    found = []
    for name, group in traits.groups():
        own = traits.difference[places][group[places]]
        longer = estimate_share(int((own > 0).sum()), int((own != 0).sum()), confidence)
        if own.size:
            found.append(Lengths(name, int(own.size), longer, round(float(own.mean()), 4)))
    return found


def text_digest(text: str) -> int:
    """64 bits of the text with its white space flattened."""
    flat = " ".join(text.split()).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(flat, digest_size=8).digest(), "little")


def _look(unit: str, model: ModelSource | None, pairs: Sequence[PreferencePair], scope: Scope) -> dict[str, Any]:
    measure = _measure(unit, model)
    texts = {
        "prompt": ["\x00".join(f"{turn.role} {turn.content}" for turn in pair.prompt).casefold() for pair in pairs],
        "question": [pair.prompt[-1].content.casefold() for pair in pairs],
        "chosen": [pair.chosen for pair in pairs],
        "rejected": [pair.rejected for pair in pairs],
    }
    columns: dict[str, Any] = {
        name: np.fromiter(map(text_digest, column), np.uint64, len(pairs)) for name, column in texts.items()
    }
    lengths = [measure(pair.chosen) - measure(pair.rejected) for pair in pairs]
    columns["difference"] = np.array(lengths, np.int64)
    columns["weight"] = np.array([1.0 if pair.confidence is None else pair.confidence for pair in pairs], np.float64)
    return columns


@functools.lru_cache(maxsize=2)
def _measure(unit: str, model: ModelSource | None) -> Callable[[str], int]:
    """How long a reply is."""
    if unit == "words":
        return lambda text: len(text.split())
    if unit != "tokens" or model is None:
        return len
    contract = build_contract({"data": {"pairs": ["-"]}, "chat_template": "plain"})  # of which no reply takes a token
    tokenizer = load_tokenizer(model, contract)
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])
