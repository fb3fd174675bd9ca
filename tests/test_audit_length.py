"""Length: real figures, planted bias, sources that pull apart, and no certainty that the pairs do not give."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from demeanor.audit import Scope
from demeanor.audit.by_prompt import area_by_prompt, folds_by_prompt, mean_by_prompt, share_by_prompt
from demeanor.errors import InputError
from demeanor.model import find_model
from demeanor.statistics import estimate_share
from tests.audited import audited, write_pairs
from tests.conftest import shared


def biased(folder: Path, n: int, share: float, *, name: str = "pairs.jsonl", **more: str) -> Path:
    """`n` pairs of which `share` have the longer reply chosen."""
    rng = random.Random(0)
    rows = []
    for number in range(n):
        short, long = "word " * rng.randint(1, 20), "word " * rng.randint(21, 40)
        chosen, rejected = (long, short) if number < share * n else (short, long)
        rows.append({"prompt": f"Question {name} {number}?", "chosen": chosen, "rejected": rejected, **more})
    return write_pairs(folder / name, rows)


def test_the_real_figure_of_hh_rlhf(tmp_path: Path) -> None:
    """1,992 pairs: 887 longer, 11 as long. The shorter reply wins a little more often, which does not warn."""
    (finding,) = audited([shared("data/hh-rlhf/harmless-base.jsonl.gz")], tmp_path, "length").findings
    assert (finding.kind, finding.severity) == ("shorter_wins", "informs")
    assert finding.estimate.value == pytest.approx((887 + 11 / 2) / 1992)
    assert finding.estimate.low is not None and finding.estimate.low > 0.42
    assert finding.estimate.high is not None and finding.estimate.high < 0.48
    words = finding.details["units"]["words"]
    assert words["longer_wins"]["value"] == pytest.approx(0.441, abs=0.0005)
    assert words["longer_wins"]["high"] < 0.5
    difference = finding.details["units"]["characters"]["difference"]
    assert difference["value"] == pytest.approx(-41.7, abs=0.05) and difference["high"] < -20
    area = finding.details["units"]["characters"]["area_under_curve"]
    assert area["value"] == pytest.approx(0.4376, abs=0.0005)
    assert area["low"] < area["value"] < area["high"] < 0.5
    assert "887 of 1,992" in finding.what and "as long in 11" in finding.what
    assert sum(finding.details["histogram"]["counts"]) == 1992


def test_polite_and_rude_replies_are_of_like_length(tmp_path: Path) -> None:
    (finding,) = audited([shared("data/polite-rude/pairs.json")], tmp_path, "length").findings
    assert finding.severity == "informs"
    assert finding.estimate.low is not None and finding.estimate.high is not None
    assert finding.estimate.low < 0.5 < finding.estimate.high


@pytest.mark.parametrize(
    ("share", "kind", "severity"),
    [
        (0.9, "longer_wins", "blocks"),
        (0.7, "longer_wins", "warns"),
        (0.5, "longer_wins", "informs"),
        (0.3, "shorter_wins", "warns"),
        (0.1, "shorter_wins", "blocks"),
    ],
)
def test_planted_bias(tmp_path: Path, share: float, kind: str, severity: str) -> None:
    audit = audited([biased(tmp_path, 300, share)], tmp_path, "length")
    (finding,) = audit.findings
    assert (finding.kind, finding.severity) == (kind, severity)
    assert finding.estimate.value == pytest.approx(share)
    assert audit.blocks == (severity == "blocks")


def test_limits_move_the_severity(tmp_path: Path) -> None:
    file = biased(tmp_path, 300, 0.7)
    scope = Scope(limits={"length": {"block_longer_wins": 0.65}})
    assert audited([file], tmp_path, "length", scope).findings[0].severity == "blocks"
    scope = Scope(limits={"length": {"max_longer_wins": 0.72}})
    assert audited([file], tmp_path, "length", scope).findings[0].severity == "informs"
    with pytest.raises(InputError, match="max_longer"):
        audited([file], tmp_path, "length", Scope(limits={"length": {"max_longer": 0.72}}))


def test_sources_that_cancel_out_are_told_apart(tmp_path: Path) -> None:
    files = [
        biased(tmp_path, 200, share, name=f"{name}.jsonl") for name, share in (("helpful", 0.7), ("harmless", 0.3))
    ]
    audit = audited(files, tmp_path, "length")
    found = {(finding.kind, finding.group): finding for finding in audit.findings}
    assert found["longer_wins", ""].estimate.value == pytest.approx(0.5)
    assert found["longer_wins", ""].severity == "informs"
    assert found["longer_wins", "source helpful.jsonl"].severity == "warns"
    assert found["shorter_wins", "source harmless.jsonl"].severity == "warns"
    opposed = found["opposed_sources", ""]
    assert opposed.severity == "warns"
    assert opposed.estimate.value == pytest.approx(0.4)
    assert opposed.estimate.low is not None and 0.2 < opposed.estimate.low < 0.4


def test_each_source_is_told_as_fully_as_the_whole(tmp_path: Path) -> None:
    """How often, by how much, and the area under the curve, against a count of all (chosen, rejected)."""
    files = [biased(tmp_path, 60, share, name=f"{name}.jsonl") for name, share in (("up", 0.7), ("down", 0.3))]
    details = audited(files, tmp_path, "length").findings[-1].details
    assert len(details["groups"]) == len(details["table"]["rows"]) == 2
    for file, group, row in zip(files, details["groups"], details["table"]["rows"], strict=True):
        pairs = [json.loads(line) for line in file.read_text().splitlines()]
        chosen, rejected = (np.array([len(pair[side]) for pair in pairs]) for side in ("chosen", "rejected"))
        longer = int((chosen > rejected).sum())
        assert (group["group"], group["n"], group["longer"], group["shorter"]) == (
            f"source {file.name}", 60, longer, 60 - longer,
        )  # fmt: skip
        assert group["difference"]["value"] == pytest.approx((chosen - rejected).mean())
        assert group["difference"]["low"] < group["difference"]["value"] < group["difference"]["high"]
        assert group["median_difference"] == np.median(chosen - rejected)
        higher, equal = chosen[:, None] > rejected, chosen[:, None] == rejected
        area = group["area_under_curve"]
        assert area["value"] == pytest.approx((higher + equal / 2).mean())
        assert area["low"] < area["value"] < area["high"]
        said = f"{area['value']:.2f} [{area['low']:.2f}, {area['high']:.2f}]"
        assert row[:4] == [f"source {file.name}", "60", str(longer), str(60 - longer)] and said in row
        assert row[-1].startswith(f"{(chosen - rejected).mean():+.1f} [")


def test_a_row_says_itself_where_it_is_from(tmp_path: Path) -> None:
    """Parts of a set in one file: a column `source` tells more than the file's name, unless each row has its own."""
    parts = [
        biased(tmp_path, 200, share, name=name, source=name[:-6])
        for name, share in (("a.jsonl", 0.8), ("b.jsonl", 0.2))
    ]
    rows = [json.loads(line) for part in parts for line in part.read_text().splitlines()]
    one = write_pairs(tmp_path / "one.jsonl", rows)
    (opposed,) = (found for found in audited(one, tmp_path, "length").findings if found.kind == "opposed_sources")
    assert "the longer reply wins in a (0.80), the shorter in b (0.20)" in opposed.what
    many = write_pairs(tmp_path / "many.jsonl", [{**row, "source": f"page {n}"} for n, row in enumerate(rows)])
    assert {found.group for found in audited(many, tmp_path, "length").findings} == {""}


def test_behaviours_that_cancel_out_are_told_apart(tmp_path: Path) -> None:
    files = [
        biased(tmp_path, 200, share, name=f"{name}.jsonl", behaviour=name) for name, share in (("a", 0.8), ("b", 0.2))
    ]
    kinds = {finding.kind for finding in audited(files, tmp_path, "length").findings}
    assert {"opposed_behaviours", "opposed_sources"} <= kinds


def test_many_balanced_sources_raise_no_alarm(tmp_path: Path) -> None:
    rng, files = random.Random(1), []
    for number in range(40):
        rows = []
        for row in range(40):
            replies = ["word " * rng.randint(1, 30), "word " * rng.randint(1, 30) + "x"]
            chosen, rejected = rng.sample(replies, 2)
            rows.append({"prompt": f"Question {number} {row}?", "chosen": chosen, "rejected": rejected})
        files.append(write_pairs(tmp_path / f"source-{number}.jsonl", rows))
    assert [finding.group for finding in audited(files, tmp_path, "length").findings] == [""]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_few_pairs_prove_nothing(tmp_path: Path, n: int) -> None:
    (finding,) = audited([biased(tmp_path, n, 1.0)], tmp_path, "length").findings
    assert finding.severity == "informs"
    assert finding.estimate.low is not None and finding.estimate.low < 0.5


def test_replies_of_one_length_are_balanced(tmp_path: Path) -> None:
    rows = [{"prompt": f"Q {n}?", "chosen": "good", "rejected": "evil"} for n in range(30)]
    (finding,) = audited([write_pairs(tmp_path / "pairs.jsonl", rows)], tmp_path, "length").findings
    assert finding.estimate.value == 0.5
    assert finding.severity == "informs"
    assert finding.details["units"]["words"]["area_under_curve"]["value"] == 0.5


def test_tokens_of_the_model_decide_when_it_is_given(tmp_path: Path) -> None:
    """Chosen has fewer characters and, spelt out oddly, more tokens."""
    rows = [
        {"prompt": f"Q {n}?", "chosen": "zqx vkj wqz", "rejected": "the weather is very nice today"} for n in range(40)
    ]
    file = write_pairs(tmp_path / "pairs.jsonl", rows)
    (by_characters,) = audited([file], tmp_path, "length").findings
    (by_tokens,) = audited([file], tmp_path, "length", Scope(model=find_model("starter"))).findings
    assert (by_characters.kind, by_tokens.kind) == ("shorter_wins", "longer_wins")
    assert by_tokens.measure.endswith("by tokens")
    assert by_tokens.details["units"]["tokens"]["mean_length"]["rejected"] == pytest.approx(6, abs=2)


def test_the_share_of_single_prompts_has_the_exact_interval() -> None:
    hits = np.array([1.0] * 30 + [0.0] * 10)
    assert share_by_prompt(hits, np.arange(40), 0.95) == estimate_share(30, 40, 0.95)


def test_pairs_of_one_prompt_count_as_one_draw() -> None:
    """40 pairs of 10 prompts that agree within each prompt say as much as 10 pairs, give or take the last draw."""
    hits, prompts = np.repeat([1.0] * 7 + [0.0] * 3, 4), np.repeat(np.arange(10), 4)
    found, ten = share_by_prompt(hits, prompts, 0.95), estimate_share(7, 10, 0.95)
    assert found.n == 40 and found.value == ten.value
    assert found.low == pytest.approx(ten.low, abs=0.03) and found.high == pytest.approx(ten.high, abs=0.03)
    assert share_by_prompt(np.ones(40), prompts, 0.95).low == estimate_share(10, 10, 0.95).low


def test_the_interval_over_prompts_covers_the_truth() -> None:
    """400 times 60 prompts, each with one to five pairs that tend to agree."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        prompts = np.repeat(np.arange(60), rng.integers(1, 6, 60))
        chance = np.repeat(rng.beta(0.6, 0.4, 60), np.bincount(prompts))
        found = share_by_prompt((rng.random(prompts.size) < chance).astype(float), prompts, 0.95)
        held += (found.low or 0) <= 0.6 <= (found.high or 1)
    assert 0.92 <= held / 400 <= 0.99


def test_the_interval_of_a_mean_covers_the_truth() -> None:
    """400 times 60 prompts with one to five values that share their prompt's own effect."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        prompts = np.repeat(np.arange(60), rng.integers(1, 6, 60))
        found = mean_by_prompt(rng.normal(size=60)[prompts] + rng.normal(size=prompts.size) + 3, prompts, 0.95)
        held += (found.low or 0) <= 3 <= (found.high or 0)
    assert 0.92 <= held / 400 <= 0.98
    assert mean_by_prompt(np.ones(4), np.arange(4), 0.95).low is None


def test_the_area_is_that_of_all_replies_against_all() -> None:
    rng = np.random.default_rng(0)
    chosen, rejected = rng.integers(0, 9, 50), rng.integers(0, 7, 50)
    wins = (chosen[:, None] > rejected).mean() + (chosen[:, None] == rejected).mean() / 2
    found = area_by_prompt(chosen, rejected, np.arange(50), 0.95)
    assert found.value == pytest.approx(wins)
    assert found.low is not None and found.high is not None and found.low < wins < found.high


def test_the_interval_of_the_area_covers_the_truth() -> None:
    rng, held, true = np.random.default_rng(0), 0, 0.6382
    for _ in range(400):  # normal scores, half a deviation apart: Phi(0.5 / sqrt 2)
        found = area_by_prompt(rng.normal(0.5, 1, 80), rng.normal(0, 1, 80), np.arange(80), 0.95)
        held += (found.low or 0) <= true <= (found.high or 1)
    assert 0.92 <= held / 400 <= 0.98


def test_folds_keep_a_prompt_together_and_are_of_like_size() -> None:
    prompts = np.random.default_rng(0).integers(0, 300, 1000)
    folds = folds_by_prompt(prompts, 0)
    assert all(np.unique(folds[prompts == prompt]).size == 1 for prompt in np.unique(prompts))
    assert np.bincount(folds).min() > 150 and np.bincount(folds).size == 5
    assert (folds == folds_by_prompt(prompts, 0)).all() and (folds != folds_by_prompt(prompts, 1)).any()
