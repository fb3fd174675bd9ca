"""Openings over all token sequences that spell them: bytes of tokens, exact sums on a small chain, stated bounds."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tokenizers
import torch
from conftest import contract_of
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from demeanor.measure import openings as rules
from demeanor.measure.likelihood import Scorer
from demeanor.measure.openings import Opening, Spellings, make_spellings
from demeanor.model import find_model, load_model
from demeanor.starter import starter_file

TEXTS = [b"a", b"b", b"ab", b"aba", b"bab", b"ba", b"c", b"abc", None]  # the last ends the turn


class Chain(torch.nn.Module):
    """A model whose next token depends on the last one alone, by a table [last, next] of logits."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(table)
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=len(table), hidden_size=1))
        self.num_tokens = 0

    def forward(self, input_ids: torch.Tensor, logits_to_keep: torch.Tensor | None = None, **_: Any) -> Any:
        self.num_tokens += input_ids.numel()
        logits = self.table[input_ids]
        return SimpleNamespace(logits=logits if logits_to_keep is None else logits[:, logits_to_keep])


def exact(table: torch.Tensor, last: int, text: bytes) -> float:
    """The probability that the bytes that follow `last` begin with `text`: summed over all tokens, by recursion."""
    shares = torch.softmax(table.double(), -1).tolist()

    @cache
    def begins(token: int, rest: bytes) -> float:
        total = 0.0
        for number, spelt in enumerate(TEXTS):
            if spelt is None:
                continue
            if spelt.startswith(rest):
                total += shares[token][number]
            elif rest.startswith(spelt):
                total += shares[token][number] * begins(number, rest[len(spelt) :])
        return total

    return begins(last, text)


@pytest.mark.parametrize("seed", range(5))
def test_the_mass_is_the_closed_form(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(seed)
    table = 2 * torch.randn(len(TEXTS), len(TEXTS))
    spellings = Spellings(TEXTS)
    asked = [spellings.opening(tokens) for tokens in ([2], [3, 6], [0, 1, 0, 1], [4])]
    monkeypatch.setattr(rules, "ENOUGH", 0.0)
    monkeypatch.setattr(rules, "SMALL", 0.0)
    monkeypatch.setattr(rules, "MOST", 10_000)
    ((_, masses),) = Scorer(Chain(table), spellings).measure([[6]], [[]], [asked])
    for opening, mass in zip(asked, masses, strict=True):
        assert mass.left_out == 0
        assert mass.found == pytest.approx(exact(table, 6, opening.text or b""), abs=1e-6)
        (canonical,) = Scorer(Chain(table)).logps([[6]], [[list(opening.tokens)]])
        assert mass.found > math.exp(sum(canonical[0])) + 1e-6  # the other splits do count here


@pytest.mark.parametrize(("enough", "most"), [(0.3, 64), (0.01, 64), (0.0, 1), (0.0, 3)])
def test_what_is_left_out_is_bounded(enough: float, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    table = torch.randn(len(TEXTS), len(TEXTS))
    monkeypatch.setattr(rules, "ENOUGH", enough)
    monkeypatch.setattr(rules, "MOST", most)
    opening = Spellings(TEXTS).opening([0, 1, 0, 1, 0, 1])
    ((_, (mass,)),) = Scorer(Chain(table), Spellings(TEXTS)).measure([[6]], [[]], [[opening]])
    truth = exact(table, 6, b"ababab")
    assert mass.left_out is not None and mass.left_out > 0
    assert mass.found < truth - 1e-6
    assert truth <= mass.found + mass.left_out + 1e-6


def test_without_spellings_only_its_own_tokens_count() -> None:
    torch.manual_seed(2)
    table = torch.randn(len(TEXTS), len(TEXTS))
    ((_, (mass,)),) = Scorer(Chain(table)).measure([[6]], [[]], [[Opening((3, 6))]])
    shares = torch.log_softmax(table, -1)
    assert mass.left_out is None
    assert math.log(mass.found) == pytest.approx((shares[6, 3] + shares[3, 6]).item(), abs=1e-6)


HARD = [
    "You should have",
    " Straße 12",
    "naïve café",
    "你好，世界",
    "👩‍👩‍👧 ok\n\n\ttab",
    "a\u0300\u202e",
    "<|user",
    "\x00\x7f",
]


@pytest.mark.parametrize("text", HARD)
def test_tokens_of_the_starter_spell_any_text(text: str) -> None:
    inner = AutoTokenizer.from_pretrained(starter_file("model"))
    spellings = make_spellings(inner, len(inner))
    assert spellings is not None
    ids = inner(text, add_special_tokens=False)["input_ids"]
    assert b"".join(spellings.texts[token] or b"?" for token in ids) == text.encode()
    assert [spellings.texts[token] for token in inner.all_special_ids] == [None] * len(inner.all_special_ids)


@pytest.mark.parametrize("text", HARD)
def test_tokens_of_sentencepiece_spell_any_text(text: str) -> None:
    """As Llama 2 and Gemma have them: a bar for the space, a token for each byte of unknown letters."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)] + ["\u2581", "Y", "o", "u", "Yo", "You", "\u2581s", "hould"]
    vocabulary = {piece: number for number, piece in enumerate(["<unk>", *pieces])}
    model = tokenizers.models.BPE(vocabulary, [("Y", "o"), ("Yo", "u")], unk_token="<unk>", byte_fallback=True)
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = tokenizers.normalizers.Replace(" ", "\u2581")
    steps = tokenizers.decoders
    backend.decoder = steps.Sequence([steps.Replace("\u2581", " "), steps.ByteFallback(), steps.Fuse()])
    inner = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    spellings = make_spellings(inner, len(inner))
    assert spellings is not None
    ids = inner(text, add_special_tokens=False)["input_ids"]
    assert b"".join(spellings.texts[token] or b"?" for token in ids) == text.encode()


def test_wordpiece_has_no_bytes() -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    backend.decoder = tokenizers.decoders.WordPiece()
    assert make_spellings(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]"), 3) is None


def test_a_tokens_beyond_the_models_vocabulary_are_left_out() -> None:
    inner = AutoTokenizer.from_pretrained(starter_file("model"))
    spellings = make_spellings(inner, 300)
    assert spellings is not None and len(spellings.texts) == 300


def test_a_real_model_gives_what_plain_passes_give(llama: Path) -> None:
    """Every beginning gone into by one plain forward pass each, over the whole vocabulary: the same sum."""
    model = load_model(find_model(str(llama)), contract_of(), trees=True)
    inner = AutoTokenizer.from_pretrained(llama)
    spellings = make_spellings(inner, model.config.vocab_size)
    assert spellings is not None
    prompt = inner("How do I open it?", add_special_tokens=False)["input_ids"]
    asked = [spellings.opening(inner(t, add_special_tokens=False)["input_ids"]) for t in ("Sure", "You should", "I")]
    ((_, masses),) = Scorer(model, spellings).measure([prompt], [[]], [asked])

    def begins(said: list[int], rest: bytes, mass: float) -> tuple[float, float]:
        """(found, left out) after the tokens `said`."""
        if mass <= rules.SMALL:
            return 0.0, mass
        with torch.no_grad():
            shares = torch.softmax(model(torch.tensor([prompt + said])).logits[0, -1].double(), -1).tolist()
        found, left = 0.0, 0.0
        for token, spelt in enumerate(spellings.texts):
            if spelt and spelt.startswith(rest):
                found += mass * shares[token]
            elif spelt and rest.startswith(spelt):
                more = begins([*said, token], rest[len(spelt) :], mass * shares[token])
                found, left = found + more[0], left + more[1]
        return found, left

    for opening, mass in zip(asked, masses, strict=True):
        found, left = begins([], opening.text or b"", 1.0)
        assert mass.left_out is not None
        assert mass.found <= (found + left) * (1 + 1e-4)
        assert found <= (mass.found + mass.left_out) * (1 + 1e-4)
        if opening.text == b"I":  # one byte: nothing is left out
            assert mass.left_out == 0 and mass.found == pytest.approx(found, rel=1e-4)
