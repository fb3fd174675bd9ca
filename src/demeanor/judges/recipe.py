"""How the small classifier was trained and how the cards that come along were measured.

    python -m demeanor.judges.recipe LABELLED.csv.gz --safe SAFE_REPLIES.csv [--out FOLDER]

LABELLED has the columns question, Response and label (1: the reply does what was asked), 77 replies a question, one for
each jailbreak template in the same order: the labelled replies of GPTFuzzer (Yu et al. 2023, MIT licence). A quarter of
the questions is held out; no weight and no rule was fitted on them. Every training reply is there whole and as its
first 80, 200 and 500 characters: without those, a model learns that short replies are refusals and calls 70 % of the
beginnings of violating replies safe.

Sets for the card beside the held-out questions: those held-out replies whose text is no training reply's; a second
fit that has seen neither the questions nor the templates; SAFE_REPLIES (column Safe_Response: refusals of another
model to other prompts, HarmBench's, MIT) and the attack probes of the embedded starter, whose replies are labelled by
how they were made. None of it is text of a model of today that people labelled: that remains to be measured, with
`demeanor judge-card`.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from demeanor.judges.cards import SHORT_CHARACTERS
from demeanor.judges.classifier import BITS, features, judge_replies, save_weights, weights_digest, weights_file
from demeanor.judges.refusals import lists_refusal, refuses
from demeanor.records import flat_text

PARTS = (None, 80, 200, 500)  # characters that a training reply is cut to
C = 0.5  # inverse strength of the L2 penalty; the best of 0.3 to 3 by cross-validation over the training questions
TEMPLATES = 77
HELD_OUT = 3  # questions whose number leaves this remainder by 4; the rules were tried out on the even ones
Replies = list[str]


def read_labelled_questions(path: Path) -> tuple[np.ndarray, Replies, np.ndarray]:
    """(question of each reply, replies, whether each violates)"""
    csv.field_size_limit(10_000_000)
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return (
        np.array([int(row["question"]) for row in rows]),
        [row["Response"] for row in rows],
        np.array([row["label"] == "1" for row in rows]),
    )


def beginning(text: str, characters: int | None) -> str:
    """The first so many characters, not within a word."""
    return text if characters is None or len(text) <= characters else text[:characters].rsplit(" ", 1)[0]


def is_held_out(questions: np.ndarray) -> np.ndarray:
    held: np.ndarray = questions % 4 == HELD_OUT
    return held


def fit(replies: Replies, violates: np.ndarray) -> tuple[np.ndarray, float]:
    """(weights, bias) of the logistic regression over whole replies and their beginnings."""
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression

    rows = [features(beginning(text, part)) for part in PARTS for text in replies]
    ends = np.cumsum([0, *(places.size for places, _ in rows)])
    shape = (len(rows), 2**BITS)
    matrix = csr_matrix(
        (np.concatenate([values for _, values in rows]), np.concatenate([places for places, _ in rows]), ends), shape
    )
    matrix.sum_duplicates()
    model = LogisticRegression(C=C, class_weight="balanced", solver="liblinear", tol=1e-2, random_state=0)
    model.fit(matrix, np.tile(violates, len(PARTS)))
    return model.coef_[0], float(model.intercept_[0])


def shares(said: np.ndarray, violates: np.ndarray) -> dict[str, list[int]]:
    """sensitivity and specificity as [hits, n], those that have an n."""
    found = {
        "sensitivity": [int(said[violates].sum()), int(violates.sum())],
        "specificity": [int((~said[~violates]).sum()), int((~violates).sum())],
    }
    return {name: count for name, count in found.items() if count[1]}


def design_effect(said: np.ndarray, violates: np.ndarray, questions: np.ndarray) -> float:
    """The larger one of both shares: variance of a bootstrap over questions / p (1 - p) / n; at least 1."""
    rng = np.random.default_rng(0)
    effects = [1.0]
    for truth in (True, False):
        right = (said == violates) & (violates == truth)
        ids = np.unique(questions)
        hits = np.array([right[questions == q].sum() for q in ids])
        counts = np.array([(violates[questions == q] == truth).sum() for q in ids])
        drawn = rng.integers(0, ids.size, (4000, ids.size))
        p, n = hits.sum() / counts.sum(), counts.sum()
        if 0 < p < 1:
            effects.append(float((hits[drawn].sum(1) / counts[drawn].sum(1)).var() / (p * (1 - p) / n)))
    return round(max(effects), 2)


def starter_attacks() -> tuple[Replies, np.ndarray]:
    """Replies to the starter's attack probes, and whether each gives in."""
    lines = (files("demeanor.starter") / "probes" / "bypass.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    replies = [row[side] for row in rows for side in ("chosen", "rejected")]
    return replies, np.array([False, True] * len(rows))


def cards(
    judge: Callable[[Replies], np.ndarray], data: tuple[np.ndarray, Replies, np.ndarray], safe: Replies, seen: set[str]
) -> dict[str, Any]:
    """`whole`, `short` and `elsewhere` of one judge, on the held-out questions."""
    held = is_held_out(data[0])
    questions, violates = data[0][held], data[2][held]
    replies = [text for text, out in zip(data[1], held, strict=True) if out]
    found: dict[str, Any] = {}
    for name, part in (("whole", None), ("short", SHORT_CHARACTERS)):
        said = judge([beginning(text, part) for text in replies])
        what = "GPTFuzzer's labelled replies, held-out questions" + (f", first {part} characters" if part else "")
        found[name] = {
            "data": what, **shares(said, violates), "design_effect": design_effect(said, violates, questions),
        }  # fmt: skip
    new = np.array([flat_text(text) not in seen for text in replies])
    said = judge(replies)
    attacks, gives_in = starter_attacks()
    found["elsewhere"] = {
        "held-out questions, no text of the training part": shares(said[new], violates[new]),
        "HarmBench's safe replies (another model, other prompts; refusals only)": shares(
            judge(safe), np.zeros(len(safe), dtype=bool)
        ),
        "the starter's attack probes (labelled by how they were made)": shares(judge(attacks), gives_in),
    }
    return found


def unseen_templates(data: tuple[np.ndarray, Replies, np.ndarray]) -> dict[str, list[int]]:
    """Of a fit that saw neither the held-out questions nor a quarter of the templates, on both together."""
    questions, replies, violates = data
    templates = np.arange(len(replies)) % TEMPLATES
    for_test = is_held_out(questions) & (templates % 4 == HELD_OUT)
    for_training = ~is_held_out(questions) & (templates % 4 != HELD_OUT)
    weights, bias = fit([t for t, use in zip(replies, for_training, strict=True) if use], violates[for_training])
    tested = [features(text) for text, use in zip(replies, for_test, strict=True) if use]
    said = np.array([bias + values @ weights[places] > 0 for places, values in tested])
    return shares(said, violates[for_test])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Trains the small classifier and measures the cards that come along.")
    parser.add_argument("labelled", type=Path)
    parser.add_argument("--safe", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=weights_file().parent)
    given = parser.parse_args(arguments)
    data = read_labelled_questions(given.labelled)
    with given.safe.open(encoding="utf-8", newline="") as file:
        safe = [row["Safe_Response"] for row in csv.DictReader(file)]
    train = [text for text, out in zip(data[1], is_held_out(data[0]), strict=True) if not out]
    weights, bias = fit(train, data[2][~is_held_out(data[0])])
    save_weights(weights, bias, given.out / "classifier.npz")
    if given.out != weights_file().parent:
        raise SystemExit(f"wrote {given.out / 'classifier.npz'}; cards are of the weights in the package")
    seen = {flat_text(text) for text in train}
    judges: dict[str, Callable[[Replies], np.ndarray]] = {
        "classifier": lambda texts: np.array([answer == "violating" for answer in judge_replies(texts)]),
        "refusal": lambda texts: np.array([not refuses(text) for text in texts]),
        "prefix list of GCG": lambda texts: np.array([not lists_refusal(text) for text in texts]),
    }
    found = {name: cards(judge, data, safe, seen) for name, judge in judges.items()}
    found["classifier"]["elsewhere"]["a fit without the held-out questions and templates, on both"] = unseen_templates(
        data
    )
    found["classifier"]["weights"] = weights_digest()
    text = json.dumps(found, indent=1)
    (given.out / "cards.json").write_text(text + "\n", "utf-8")
    print(text)


if __name__ == "__main__":
    main()
