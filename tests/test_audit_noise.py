"""Label noise: planted flips are found and counted, clean sets are left alone, and a weak witness accuses nobody."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from demeanor.audit import Audit, Scope
from demeanor.audit.noise import estimate_flips
from demeanor.measure.margins import pair_margins
from demeanor.model import find_model
from demeanor.pairs import read_pairs
from demeanor.records import PreferencePair
from demeanor.starter import starter_contract, starter_file
from tests.audited import audited, write_pairs
from tests.conftest import make_model, shared


def flipped(source: Path, rate: float, folder: Path, seed: int = 0) -> tuple[Path, set[int]]:
    """The pairs of a file with a share of the labels the wrong way round, and which rows these are."""
    rng, rows, wrong = random.Random(seed), [], set()
    for number, pair in enumerate(read_pairs(source).pairs, start=1):
        chosen, rejected = pair.chosen, pair.rejected
        if rng.random() < rate:
            chosen, rejected = rejected, chosen
            wrong.add(number)
        rows.append({"prompt": pair.prompt[-1].content, "chosen": chosen, "rejected": rejected})
    return write_pairs(folder / "pairs.jsonl", rows), wrong


def accused(audit: Audit) -> set[int]:
    """Rows of the accused pairs; in these files every row is a pair."""
    return {
        int(place) + 1 for (_, kind), places in audit.flagged.items() if kind == "flipped_labels" for place in places
    }


def test_flipped_labels_of_the_starter_are_found(tmp_path: Path) -> None:
    """5 % flipped, at several seeds: 95 % are found, under 1 % of the others are accused, the interval holds."""
    hits = wrongs = false = held = 0
    for seed in range(4):
        file, wrong = flipped(starter_file("pairs.jsonl"), 0.05, tmp_path, seed)
        audit = audited(file, tmp_path, "noise")
        (finding,) = audit.findings
        found, rate = accused(audit), len(wrong) / 1299
        ranked = [item["row"] for item in finding.details["ranked"]]
        assert set(ranked) == found and set(ranked[:40]) <= wrong  # the first are the surest
        hits, wrongs, false = hits + len(found & wrong), wrongs + len(wrong), false + len(found - wrong)
        assert finding.severity == "warns"
        assert finding.estimate.low is not None and finding.estimate.high is not None
        held += finding.estimate.low <= rate <= finding.estimate.high
        assert [example.row for example in finding.examples] == ranked[:5]
    assert hits / wrongs >= 0.95
    assert false / (4 * 1299) < 0.01
    assert held == 4


def test_what_is_reached_on_polite_rude(tmp_path: Path) -> None:
    """A model that is right in 93 % of the pairs finds over half of 5 % flipped labels; their rate it knows better."""
    file, wrong = flipped(shared("data/polite-rude/pairs.json"), 0.05, tmp_path)
    audit = audited(file, tmp_path, "noise")
    found = accused(audit)
    (finding,) = audit.findings
    assert len(found & wrong) / len(wrong) > 0.5
    assert len(found & wrong) / len(found) > 0.7
    assert finding.estimate.low is not None and finding.estimate.high is not None
    assert finding.estimate.low <= len(wrong) / 1094 <= finding.estimate.high


@pytest.mark.parametrize("source", ["polite-rude", "starter"])
def test_clean_sets_are_left_alone(tmp_path: Path, source: str) -> None:
    file = starter_file("pairs.jsonl") if source == "starter" else shared("data/polite-rude/pairs.json")
    audit = audited(file, tmp_path, "noise")
    assert audit.findings[0].severity == "informs"
    assert len(accused(audit)) <= 0.01 * audit.num_pairs
    assert audit.findings[0].estimate.high is not None and audit.findings[0].estimate.high < 0.01


def test_a_weak_witness_says_that_it_cannot_tell(tmp_path: Path) -> None:
    """On hh-rlhf the small model is right in 61 %: the rate may be anything up to a quarter, and no pair is accused.
    Confident learning takes what the model does not know for noise."""
    audit = audited(shared("data/hh-rlhf/harmless-base.jsonl.gz"), tmp_path, "noise")
    (finding,) = audit.findings
    assert finding.severity == "informs" and not accused(audit)
    assert finding.details["accuracy"]["value"] == pytest.approx(0.613, abs=0.015)
    assert finding.estimate.low == 0 and (finding.estimate.high or 0) > 0.1
    assert "cannot tell" in finding.what
    assert finding.details["confident_learning_rate"] > 0.25


def test_random_labels_accuse_nobody(tmp_path: Path) -> None:
    file, _ = flipped(starter_file("pairs.jsonl"), 0.5, tmp_path)
    audit = audited(file, tmp_path, "noise")
    assert not accused(audit) and audit.findings[0].severity == "informs"
    assert audit.findings[0].estimate.low is not None and audit.findings[0].estimate.low < 0.05


@pytest.mark.parametrize(("rate", "scale"), [(0.0, 2.0), (0.03, 2.0), (0.1, 5.0), (0.2, 2.0)])
def test_the_interval_holds_the_rate(rate: float, scale: float) -> None:
    """Margins drawn from the model itself: 95 % intervals hold the rate about 95 % of the time."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(60):
        true = rng.normal(1, 1, 800)
        agrees = rng.random(800) < rate + (1 - 2 * rate) * expit(scale * true)
        found = estimate_flips(np.where(agrees, true, -true), 800, 0.95).rate
        assert found.low is not None and found.high is not None
        held += found.low <= rate <= found.high
    assert held >= 53


def test_fewer_prompts_make_a_wider_interval() -> None:
    margins = np.random.default_rng(0).normal(1.5, 1, 500)
    many, few = estimate_flips(margins, 500, 0.95).rate, estimate_flips(margins, 50, 0.95).rate
    assert few.high is not None and many.high is not None and few.high > many.high
    assert few.value == many.value


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_few_pairs_tell_nothing(tmp_path: Path, n: int) -> None:
    rows = [{"prompt": f"Q {k}?", "chosen": "good reply", "rejected": "bad reply"} for k in range(n)]
    (finding,) = audited(write_pairs(tmp_path / "pairs.jsonl", rows), tmp_path, "noise").findings
    assert (finding.kind, finding.estimate.value) == ("too_few", None)


def test_replies_that_are_all_the_same(tmp_path: Path) -> None:
    rows = [{"prompt": f"Q {k}?", "chosen": "???", "rejected": "..."} for k in range(100)]
    rows = [row if n % 2 else {**row, "chosen": "...", "rejected": "???"} for n, row in enumerate(rows)]
    audit = audited(write_pairs(tmp_path / "pairs.jsonl", rows), tmp_path, "noise")
    assert not accused(audit) and audit.findings[0].severity == "informs"


def knows(pairs: Sequence[PreferencePair]) -> list[float | None]:
    """A base model that always prefers the reply with fewer of the rude openings' words, and cannot score some."""
    return [
        None if n % 7 == 0 else (1.0 if "you" not in pair.chosen.lower()[:4] else -1.0) for n, pair in enumerate(pairs)
    ]


def ignorant(pairs: Sequence[PreferencePair]) -> list[float | None]:
    return [(-1.0) ** n for n in range(len(pairs))]


def test_the_base_model_must_contradict_as_well(tmp_path: Path) -> None:
    file, _ = flipped(starter_file("pairs.jsonl"), 0.05, tmp_path)
    alone, both = (audited(file, tmp_path, "noise", Scope(margins=m)) for m in (None, knows))
    assert accused(both) < accused(alone)
    assert "by the base model" in both.findings[0].what
    assert "base model's margin -1.00" in both.findings[0].examples[0].excerpt
    neither = audited(file, tmp_path, "noise", Scope(margins=ignorant))
    assert accused(neither) == accused(alone)
    assert "no second witness" in neither.findings[0].what


def test_a_tokenizer_without_a_template_is_no_obstacle(tmp_path: Path) -> None:
    """Without a contract that could name one."""
    model = find_model(str(make_model("gpt2", tmp_path)))
    found = pair_margins(model, None, list(read_pairs(starter_file("pairs.jsonl"), limit=2).pairs))
    assert all(value is not None and value != 0 for value in found)


def test_margins_are_the_models_own() -> None:
    """Turned round they change their sign; a pair that spells a special token has none."""
    from demeanor.contract import load_contract

    pairs = list(read_pairs(starter_file("pairs.jsonl"), limit=3).pairs)
    turned = [PreferencePair.make(pair.prompt, pair.rejected, pair.chosen) for pair in pairs]
    broken = replace(pairs[0], id="broken", chosen="Done.<|end|>")
    contract = load_contract(starter_contract())
    found = pair_margins(find_model("starter"), contract, [*pairs, *turned, broken])
    assert found[6] is None
    assert found[:3] == pytest.approx([-value for value in found[3:6] if value is not None], abs=1e-4)
    assert found[0] is not None and abs(found[0]) > 1e-3
