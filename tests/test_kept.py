"""Likelihoods that earlier runs kept: found by content, never those of another model, checked, and never in the way."""

from __future__ import annotations

import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import contract_of

from demeanor.measure.kept import KeptLikelihoods
from demeanor.measure.likelihood import Scorer
from demeanor.measure.openings import Opening, make_spellings
from demeanor.model import find_model, load_model

PROMPTS = [[5, 6, 7, n] for n in range(8, 14)]
REPLIES = [[[20 + n, 21, 1], [30, 31, 32, n, 1]] for n in range(6)]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEMEANOR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Bench:
    """Scorers of one model that keep under `weights`, with the number of tokens that the model was given."""

    def __init__(self, folder: Path) -> None:
        self.model = load_model(find_model(str(folder)), contract_of(), trees=True)
        self.tokens, self.said = 0, []  # type: ignore[var-annotated]
        self.model.register_forward_pre_hook(self._count, with_kwargs=True)
        from transformers import AutoTokenizer

        self.spellings = make_spellings(AutoTokenizer.from_pretrained(folder), self.model.config.vocab_size)
        assert self.spellings is not None
        self.openings = [[self.spellings.opening([40, 41]), Opening((9, 9, 9))] for _ in PROMPTS]

    def _count(self, module: Any, args: Any, given: Any) -> None:
        self.tokens += given["input_ids"].numel()

    def measure(self, weights: str = "w", dtype: str = "float32", check: bool = False) -> tuple[Any, int]:
        """(likelihoods, tokens that the model computed)"""
        before = self.tokens
        kept = KeptLikelihoods(weights, dtype=dtype, device="cpu")
        scorer = Scorer(self.model, self.spellings, kept, say=self.said.append)
        if check:
            scorer.check_kept(PROMPTS, REPLIES, self.openings)
        return scorer.measure(PROMPTS, REPLIES, self.openings), self.tokens - before


@pytest.fixture
def bench(llama: Path, cache: Path) -> Bench:
    return Bench(llama)


def assert_same(one: Any, two: Any) -> None:
    for (logps, masses), (other_logps, other_masses) in zip(one, two, strict=True):
        for path, other in zip(logps, other_logps, strict=True):
            assert path == pytest.approx(other, abs=1e-5)
        for mass, other_mass in zip(masses, other_masses, strict=True):
            assert mass.found == pytest.approx(other_mass.found, rel=1e-4)
            assert (mass.left_out is None) == (other_mass.left_out is None)
            assert (mass.left_out or 0.0) == pytest.approx(other_mass.left_out or 0.0, rel=1e-4)


def test_a_second_run_computes_nothing(bench: Bench) -> None:
    first, computed = bench.measure()
    again, more = bench.measure()
    assert computed > 0 and more == 0
    assert again == first  # to the last bit
    plain = Scorer(bench.model, bench.spellings).measure(PROMPTS, REPLIES, bench.openings)
    assert_same(again, plain)


def test_what_is_new_is_computed_together_with_what_it_stood_beside(bench: Bench) -> None:
    _, computed = bench.measure()
    REPLIES[2].append([77, 78, 1])
    try:
        found, more = bench.measure()
        wanted = Scorer(bench.model, bench.spellings).measure(PROMPTS, REPLIES, bench.openings)
    finally:
        REPLIES[2].pop()
    assert more > computed
    assert_same(found, wanted)
    assert bench.measure()[1] == 0


def test_a_run_that_finds_a_part_says_what_the_next_run_will_find(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute, calls = Scorer._compute, []

    def rounded_otherwise(self: Scorer, asked: Any) -> Any:
        """As in rows of other company, only more."""
        calls.append(1e-3 * len(calls))
        return [
            (
                [[value - calls[-1] for value in path] for path in logps],
                [replace(mass, found=mass.found * (1 - calls[-1])) for mass in masses],
            )
            for logps, masses in compute(self, asked)
        ]

    monkeypatch.setattr(Scorer, "_compute", rounded_otherwise)
    before, _ = bench.measure()
    monkeypatch.setattr(bench, "openings", [[*own, Opening((9, 8))] for own in bench.openings])
    found, more = bench.measure()
    assert more > 0 and len(calls) == 2
    assert [masses[:2] for _, masses in found] == [masses for _, masses in before]
    assert bench.measure() == (found, 0)


@pytest.mark.parametrize("change", [{"weights": "other"}, {"dtype": "bfloat16"}])
def test_another_model_or_precision_finds_nothing(bench: Bench, change: dict[str, str]) -> None:
    _, computed = bench.measure()
    _, more = bench.measure(**change)
    assert more == computed


def test_a_check_costs_a_few_prompts_and_accepts_what_is_true(bench: Bench) -> None:
    bench.measure()
    _, checked = bench.measure(check=True)
    _, all_of_it = bench.measure(weights="new")
    assert 0 < checked <= all_of_it and bench.said == []
    assert bench.measure()[1] == 0


@pytest.mark.parametrize("rows", ["length(chosen) = 8", "length(chosen) > 8"])
def test_false_numbers_are_found_out_and_all_is_computed_anew(bench: Bench, cache: Path, rows: str) -> None:
    """Both kinds: the mass of an opening (two numbers), the log-probabilities of a reply (three or more)."""
    first, _ = bench.measure()
    (file,) = cache.glob("likelihoods-*.sqlite")
    with sqlite3.connect(file) as table:
        for key, blob in table.execute(f"select pair, chosen from logps where {rows}").fetchall():
            changed = np.frombuffer(blob, dtype=np.float32) - np.float32([0.3] + [0] * (len(blob) // 4 - 1))
            table.execute("update logps set chosen = ? where pair = ?", (np.float32(changed).tobytes(), key))
    table.close()
    found, _ = bench.measure(check=True)
    assert_same(found, first)
    assert len(bench.said) == 1 and "disagrees with the model: computed anew" in bench.said[0]


def test_a_full_disk_costs_the_cache_and_not_the_run(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from demeanor.errors import StageError

    def full(*_: Any) -> None:
        raise StageError("no room")

    monkeypatch.setattr(KeptLikelihoods, "keep", full)
    found, _ = bench.measure()
    assert_same(found, Scorer(bench.model, bench.spellings).measure(PROMPTS, REPLIES, bench.openings))
    assert bench.said == ["likelihoods: not kept for later runs; no room"]


def test_weights_of_both_sides_have_their_own_digest(llama: Path, tmp_path: Path) -> None:
    """The adapter's files are part of what the numbers are kept under."""
    from types import SimpleNamespace

    from demeanor.pipeline import weights_of
    from demeanor.workspace import Workspace, file_sha256

    digests = set()
    for content in (b"one", b"two", b"one"):
        workspace = Workspace(tmp_path / f"{content.decode()}")
        shutil.rmtree(workspace.folder, ignore_errors=True)
        file = workspace.adapter / "adapter_model.safetensors"
        file.parent.mkdir(parents=True)
        file.write_bytes(content)
        outputs = {str(file.relative_to(workspace.folder)): file_sha256(file), "training.json": "changes"}
        workspace.write_json(
            workspace.manifest_file, {"format": 1, "stages": {"train": {"inputs": {}, "outputs": outputs}}}
        )
        plan = SimpleNamespace(source=find_model(str(llama)), workspace=workspace)
        digests |= {weights_of(plan, side).digest for side in ("before", "after")}  # type: ignore[arg-type]
    assert len(digests) == 3  # the base's, and one for each adapter


def test_memory_that_does_not_suffice_halves_the_rows(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    replies = [[[n % 97, *reply] for reply in own] for n, own in enumerate(REPLIES * 80)]
    wanted = Scorer(bench.model).logps(PROMPTS * 80, replies)
    scorer = Scorer(bench.model, row_tokens=8192)
    whole, sizes = Scorer._row, []  # type: ignore[var-annotated]

    def small(self: Scorer, row: Any, asked: Any) -> Any:
        sizes.append(len(row))
        if len(row) > 100:
            raise torch.OutOfMemoryError("no")
        return whole(self, row, asked)

    monkeypatch.setattr("demeanor.measure.likelihood.ROW_TOKENS", 256)
    monkeypatch.setattr(Scorer, "_row", small)
    found = scorer.logps(PROMPTS * 80, replies)
    assert max(sizes) > 100 and scorer.row_tokens is not None and scorer.row_tokens <= 128
    flat = [[value for own in all_of_it for path in own for value in path] for all_of_it in (found, wanted)]
    assert flat[0] == pytest.approx(flat[1], abs=1e-5)


@pytest.mark.parametrize(
    ("free", "vocabulary", "tokens"), [(None, 8192, 1024), (130 << 30, 32_000, 8192), (2 << 30, 152_000, 1024)]
)
def test_the_rows_follow_the_memory_that_is_free(free: int | None, vocabulary: int, tokens: int) -> None:
    from types import SimpleNamespace

    from demeanor.measure.likelihood import row_tokens

    config = SimpleNamespace(vocab_size=vocabulary, hidden_size=2048)
    assert row_tokens(config, 2, free) == tokens


def test_what_is_no_number_late_in_a_run_is_none_and_is_not_kept(cache: Path) -> None:
    """A model that is damaged behind one word, which the prompt that is tried first does not hold."""
    from toy import END, Toy

    from demeanor.measure import Weights, measure_model
    from demeanor.records import Message, Probe

    toy = Toy({"fine": {"Sure": 0.5, "No": 0.25}, "bad": {"Sure": 0.5}, "Sure": {END: 0.5}, "No": {END: 0.5}})
    toy.tokenizer.inner.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %} <end>{% endif %} {% endfor %}"
    )

    def damage(module: Any, given: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        after_bad = given[0].argmax(dim=-1, keepdim=True) == toy.words.index("bad")
        return (given[0].masked_fill(after_bad, torch.nan),)

    toy.model.lm_head.register_forward_pre_hook(damage)
    words = ["fine", "fine fine", "fine bad", "bad fine"]
    probes = [Probe(w, "tone", (Message("user", w),), ("Sure",), ("No",)) for w in words]
    asked = contract_of(
        behaviours={"tone": {"violating_openings": ["Sure"], "safe_openings": ["No"]}}, measurement={"samples": 0}
    )
    weights = Weights(None, None, "w")  # type: ignore[arg-type]
    for _ in range(2):  # computed, and found
        scores, _ = measure_model(toy.model, toy.tokenizer, probes, asked, "before", weights=weights)
        for score in scores:
            likelihoods = {name: score.values[name] for name in ("violating_opening_mass", "safe_opening_mass",
                           "violating_logp", "violating_choice_probability")}  # fmt: skip
            if score.probe_id == "fine bad":
                assert set(likelihoods.values()) == {None}
            else:
                assert likelihoods["violating_opening_mass"] == pytest.approx(0.5, rel=1e-4)
    (file,) = cache.glob("likelihoods-*.sqlite")
    with sqlite3.connect(file) as table:
        rows = [np.frombuffer(blob, np.float32) for (blob,) in table.execute("select chosen from logps")]
    table.close()
    assert len(rows) == 12 and all(np.isfinite(row).all() for row in rows)  # of three probes


def test_a_mass_that_is_no_number_stays_none_along_its_own_tokenization() -> None:
    """Where no token after the prompt ends the opening, only the way on is no number."""
    from demeanor.measure.openings import Search, Spellings

    spellings = Spellings([b"ab", b"cd"])
    search = Search(spellings.opening([0, 1]), spellings)
    search.learn_first([np.array([np.nan]), np.array([-0.5])])
    assert np.isnan(search.mass().found)
