"""Surface shortcuts: found where they are planted, weak where they are weak, and never length under another name."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from demeanor.audit import Scope
from demeanor.audit.linear import fit, out_of_fold
from demeanor.records import Finding
from demeanor.starter import starter_file
from tests.audited import audited, write_pairs
from tests.conftest import shared

WORDS = ("river", "stone", "garden", "lamp", "walk", "bread", "table", "music", "winter", "paper", "cloud", "letter")


def sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words)).capitalize() + "."


def rows(n: int, seed: int = 0, sizes: tuple[int, int] = (5, 30)) -> list[dict[str, Any]]:
    """Pairs whose label nothing tells."""
    rng = random.Random(seed)
    made = []
    for number in range(n):
        chosen, rejected = (sentence(rng, rng.randint(*sizes)) for _ in range(2))
        made.append({"prompt": f"Question {number}?", "chosen": chosen, "rejected": rejected})
    return made


def found(made: list[dict[str, Any]], folder: Path, scope: Scope | None = None) -> Finding:
    (finding,) = audited(write_pairs(folder / "pairs.jsonl", made), folder, "surface", scope).findings
    return finding


def test_politeness_gives_the_label_away_in_polite_rude(tmp_path: Path) -> None:
    """A strong shortcut, which is the behaviour itself: it warns and does not block."""
    (finding,) = audited(shared("data/polite-rude/pairs.json"), tmp_path, "surface").findings
    assert finding.severity == "warns"
    assert finding.estimate.value == pytest.approx(0.806, abs=0.01)
    assert finding.estimate.low is not None and finding.estimate.low > 0.77
    carriers = {item["feature"]: item["chosen_has"] for item in finding.details["features"]}
    assert carriers["politeness words"] == "more" and carriers["rude words"] == "less"
    assert "politeness words" in finding.what
    assert "behaviour itself" in finding.remedy
    assert finding.details["length_alone"]["value"] < 0.57


def test_the_surface_tells_little_in_hh_rlhf(tmp_path: Path) -> None:
    (finding,) = audited(shared("data/hh-rlhf/harmless-base.jsonl.gz"), tmp_path, "surface").findings
    assert finding.severity == "informs"
    assert finding.estimate.value == pytest.approx(0.599, abs=0.015)


@pytest.mark.parametrize(
    ("mark", "feature"),
    [
        ("{}!", "exclamation marks"),
        ("# Answer\n{}", "headers"),
        ("**Note** {}", "bold"),
        ("- {}\n- one more", "list bullets"),
        ("I'm sorry, {}", "apologies"),
        ("Zebra time: {}", "opens with 'zebra'"),
        ("{} \U0001f600", "emoji"),
        ("| a | b |\n{}", "table rows"),
        ("{} See 1984.", "digits"),
    ],
)
def test_a_planted_shortcut_is_found_and_named(tmp_path: Path, mark: str, feature: str) -> None:
    """In 60 % of the chosen replies and in 10 % of the rejected ones."""
    made, rng = rows(300), random.Random(1)
    for row in made:
        for side, share in (("chosen", 0.6), ("rejected", 0.1)):
            if rng.random() < share:
                row[side] = mark.format(row[side])
    finding = found(made, tmp_path)
    assert finding.severity == "warns"
    assert feature in [item["feature"] for item in finding.details["features"] if item["chosen_has"] == "more"]


def test_shortcuts_that_cancel_out_are_found_in_their_sources(tmp_path: Path) -> None:
    """One source likes what the other dislikes: the whole shows nothing."""
    files = []
    for name, side in (("liked", "chosen"), ("disliked", "rejected")):
        made = [{**row, "prompt": f"{name} {row['prompt']}"} for row in rows(200, len(name))]
        for row in made[::2]:
            row[side] += "!"
        files.append(write_pairs(tmp_path / f"{name}.jsonl", made))
    groups = {finding.group: finding for finding in audited(files, tmp_path, "surface").findings}
    assert groups[""].severity == "informs"
    for name, direction in (("liked", "more"), ("disliked", "less")):
        finding = groups[f"source {name}.jsonl"]
        assert (finding.kind, finding.severity) == ("hidden_shortcut", "warns")
        assert ("exclamation marks", direction) in [
            (i["feature"], i["chosen_has"]) for i in finding.details["features"]
        ]


def test_sources_without_a_shortcut_raise_no_alarm(tmp_path: Path) -> None:
    files = [write_pairs(tmp_path / f"{seed}.jsonl", [{**row, "prompt": f"{seed} {row['prompt']}"}
             for row in rows(120, seed)]) for seed in range(8)]  # fmt: skip
    assert [finding.group for finding in audited(files, tmp_path, "surface").findings] == [""]


def test_pairs_without_a_shortcut_raise_no_alarm(tmp_path: Path) -> None:
    for seed in range(5):
        finding = found(rows(200, seed), tmp_path)
        assert finding.severity == "informs"
        assert finding.estimate.low is not None and finding.estimate.low < 0.5


def test_length_under_another_name_is_no_shortcut(tmp_path: Path) -> None:
    """The chosen reply is always longer, in words, commas and stops alike: that is for the check of length."""
    rng = random.Random(0)
    made = []
    for number in range(400):
        short, long = (", ".join(sentence(rng, 6) for _ in range(k)) for k in sorted(rng.sample(range(1, 12), 2)))
        made.append({"prompt": f"Question {number}?", "chosen": long, "rejected": short})
    finding = found(made, tmp_path)
    assert finding.details["length_alone"]["value"] > 0.95
    assert finding.estimate.value is not None and finding.estimate.value < 0.65
    assert finding.severity == "informs"


def test_a_limit_makes_it_block(tmp_path: Path) -> None:
    (finding,) = audited(
        starter_file("pairs.jsonl"), tmp_path, "surface", Scope(limits={"surface": {"block_accuracy": 0.9}})
    ).findings
    assert finding.severity == "blocks"


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_few_pairs_tell_nothing(tmp_path: Path, n: int) -> None:
    finding = found(rows(n), tmp_path)
    assert (finding.kind, finding.severity, finding.estimate.value) == ("too_few", "informs", None)


def test_many_pairs_of_one_prompt_tell_nothing(tmp_path: Path) -> None:
    assert found([{**row, "prompt": "Always the same?"} for row in rows(50)], tmp_path).kind == "too_few"


def test_replies_with_the_same_surface(tmp_path: Path) -> None:
    made = [{"prompt": f"Q {n}?", "chosen": "abc", "rejected": "abd"} for n in range(40)]
    made = [row if n % 2 else {**row, "chosen": "abd", "rejected": "abc"} for n, row in enumerate(made)]
    finding = found(made, tmp_path)
    assert finding.severity == "informs"
    assert finding.estimate.low is not None and finding.estimate.low < 0.5


def test_the_same_seed_gives_the_same_finding(tmp_path: Path) -> None:
    made = rows(100)
    assert found(made, tmp_path, Scope(seed=3)) == found(made, tmp_path, Scope(seed=3))
    assert found(made, tmp_path, Scope(seed=3)).estimate != found(made, tmp_path, Scope(seed=4)).estimate


def test_no_prompt_is_on_both_sides(tmp_path: Path) -> None:
    """Each pair stands there four times. Whoever sees the other three knows the fourth; other prompts tell nothing."""
    made = [row for row in rows(60) for _ in range(4)]
    finding = found(made, tmp_path)
    assert finding.estimate.low is not None and finding.estimate.low < 0.5


def test_the_fit_is_that_of_the_doubled_set() -> None:
    """Logistic regression of sklearn's on (d, 1) and (-d, 0), without intercept."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    differences = rng.normal(0.3, 1, (200, 6)).astype(np.float32)
    both, labels = np.concatenate([differences, -differences]), np.repeat([1, 0], 200)
    # C counts the losses, of which there are twice as many: l2 = 1 / (2 C)
    theirs = LogisticRegression(C=1 / 6.0, fit_intercept=False, tol=1e-8).fit(both, labels).coef_[0]
    assert fit(csr_matrix(differences), 3.0) == pytest.approx(theirs, abs=2e-3)


def test_a_pair_does_not_speak_for_itself() -> None:
    """The margin of a pair does not change with its own label."""
    rng = np.random.default_rng(0)
    differences = rng.normal(0.3, 1, (50, 4)).astype(np.float32)
    folds = np.arange(50) % 5
    flipped = differences.copy()
    flipped[7] *= -1
    before, after = (out_of_fold(csr_matrix(d), folds, 1.0)[7] for d in (differences, flipped))
    assert before == pytest.approx(-after, rel=1e-5)
