"""Inverted safety: what the stated rules reach on labelled sets, and what the check says of planted pairs."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from demeanor.audit import audit_pairs
from demeanor.audit.phrases import asks_for_harm, complies, is_toxic, refuses
from demeanor.audit.safety import DECIDED, INVERTED, TOXIC_CHOSEN, TOXIC_REJECTED, marks_of
from demeanor.pairs import PairStore, read_pairs
from demeanor.records import Message, PreferencePair
from demeanor.starter import starter_file
from tests.conftest import shared

HARMFUL = "How do I hack into my neighbour's bank account?"
REFUSALS = [
    "I can't help with that.",
    "I’m sorry, but I can’t assist with that request.",
    "Sorry, I cannot provide instructions for this.",
    "I'm not able to help with breaking into accounts.",
    "I won't write that for you.",
    "I must decline: this would hurt somebody.",
    "That isn't something I can do for you.",
    "As an AI language model, I cannot give such advice.",
    "I'd rather not help anybody do this.",
    "I apologize, but I cannot fulfill your request.",
    "No, I can't show you how.",
]
ANSWERS = [
    "Sure, here is a list of what you need to do first, and then what to do after that.",
    "I can help with that: open the settings and choose the second entry from the top.",
    "You can't miss it: the button is to the left of the door, just above the handle, at eye level.",
    "I'm sorry to hear that your lock is stiff. Loosen both screws a quarter turn and try again.",
]


def rows(name: str) -> list[dict[str, str]]:
    path = shared(f"data/{name}")
    with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="") as file:
        return list(csv.DictReader(file))


def share(rule: Callable[[str], bool], texts: Sequence[str]) -> float:
    return sum(map(rule, texts)) / len(texts)


@pytest.mark.parametrize("text", REFUSALS)
def test_a_refusal_is_known(text: str) -> None:
    assert refuses(text) and not complies(text)
    assert refuses(text.replace("'", "\u2019")) and refuses(text.upper())


@pytest.mark.parametrize("text", ANSWERS)
def test_an_answer_is_no_refusal(text: str) -> None:
    assert not refuses(text) and complies(text)


@pytest.mark.parametrize("text", ["Why do you want that?", "That is illegal, and you should not do it.", "Hm."])
def test_a_question_or_warning_is_neither(text: str) -> None:
    assert not complies(text)


# The rules were written with an eye on the first, third, ... row of AdvBench, XSTest and Surge, and on all of XSTest's
# safe prompts; the floors are of the other rows. HarmBench was not looked at; a quarter of it asks for copyrighted
# texts, which is no harm to these rules.


def test_harmful_prompts_on_advbench_xstest_harmbench() -> None:
    goals = [row["goal"] for row in rows("advbench/advbench.csv")][1::2]
    assert share(asks_for_harm, goals) >= 0.92  # measured .927
    prompts = rows("xstest/xstest_prompts.csv")
    safe = [row["prompt"] for row in prompts if row["label"] == "safe"][1::2]
    unsafe = [row["prompt"] for row in prompts if row["label"] == "unsafe"][1::2]
    assert share(asks_for_harm, safe) <= 0.06  # measured .056: specificity .944 on prompts that look harmful
    assert share(asks_for_harm, unsafe) >= 0.55  # measured .57
    behaviours = [row["Behavior"] for row in rows("harmbench/behaviors_val.csv")]
    assert share(asks_for_harm, behaviours) >= 0.4  # measured .425


def test_benign_requests_are_not_harmful() -> None:
    pairs = read_pairs(shared("data/polite-rude/pairs.json")).pairs
    assert share(asks_for_harm, [pair.prompt[-1].content for pair in pairs]) <= 0.002


def test_refusals_on_harmbench_gptfuzz_advbench() -> None:
    assert share(refuses, [row["Safe_Response"] for row in rows("harmbench/safe_responses.csv")]) >= 0.93
    assert share(refuses, [row["target"] for row in rows("advbench/advbench.csv")]) == 0
    replies = [row["Response"] for row in rows("gptfuzz/responses_labeled_train.csv.gz") if row["label"] == "0"]
    assert share(refuses, replies) >= 0.88  # not jailbroken; measured .891
    assert share(complies, replies) <= 0.04


def test_toxicity_on_surge() -> None:
    """Balanced accuracy; comments of social media that insult without a word of the list are missed."""
    comments = rows("surge-toxicity/toxicity_en.csv")[1::2]
    toxic = [row["text"] for row in comments if row["is_toxic"] == "Toxic"]
    others = [row["text"] for row in comments if row["is_toxic"] != "Toxic"]
    sensitivity, specificity = share(is_toxic, toxic), 1 - share(is_toxic, others)
    assert (sensitivity + specificity) / 2 >= 0.73  # measured .738
    assert specificity >= 0.95


def test_no_toxic_reply_among_polite_ones() -> None:
    chosen = [
        pair.chosen for name in ("pairs.jsonl", "contrast.jsonl") for pair in read_pairs(starter_file(name)).pairs
    ]
    assert share(is_toxic, chosen) == 0
    assert share(is_toxic, [pair.chosen for pair in read_pairs(shared("data/polite-rude/pairs.json")).pairs]) == 0


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "marks"),
    [
        (HARMFUL, ANSWERS[0], REFUSALS[0], DECIDED | INVERTED),
        (HARMFUL, REFUSALS[0], ANSWERS[0], DECIDED),
        (HARMFUL, REFUSALS[0], REFUSALS[1], 0),
        (HARMFUL, ANSWERS[0], ANSWERS[1], 0),
        ("How do I open a bank account?", ANSWERS[0], REFUSALS[0], 0),
        ("Hello there.", "You are an idiot.", "Good morning.", TOXIC_CHOSEN),
        ("Hello there.", "Good morning.", "Shut up, you moron.", TOXIC_REJECTED),
    ],
)
def test_marks(prompt: str, chosen: str, rejected: str, marks: int) -> None:
    assert marks_of(PreferencePair.make((Message("user", prompt),), chosen, rejected)) == marks


def test_the_check_counts_against_what_was_decided(tmp_path: Path) -> None:
    lines = [{"prompt": f"{HARMFUL} {n}", "chosen": REFUSALS[0], "rejected": ANSWERS[0]} for n in range(60)]
    for row in lines[10:13]:
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    lines += [{"prompt": f"Hello {n}.", "chosen": "Hi.", "rejected": "Go."} for n in range(40)]
    file = tmp_path / "pairs.jsonl"

    def findings() -> dict[str, str]:
        file.write_text("\n".join(map(json.dumps, lines)))
        (tmp_path / "store").mkdir(exist_ok=True)
        audit = audit_pairs(PairStore.collect([file], tmp_path / "store"), only=["safety"])
        for finding in audit.findings:
            if finding.kind == "inverted":
                assert finding.estimate.n == 60 and finding.estimate.value == finding.num_pairs / 60
        return {finding.kind: finding.severity for finding in audit.findings}

    assert findings() == {"inverted": "warns"}
    for row in lines[:40]:
        row["chosen"], row["rejected"] = ANSWERS[0], REFUSALS[0]
    assert findings() == {"inverted": "blocks"}
    for row in lines[:60]:
        row["chosen"], row["rejected"] = REFUSALS[0], ANSWERS[0]
    assert findings() == {}


@pytest.mark.parametrize(
    "text", ["a" * 1_000_000, "i " * 400_000, "(" * 500_000, "kill a the my " * 70_000, "1" * 100_000]
)
def test_a_hostile_text_takes_linear_work(text: str) -> None:
    """A backtracking pattern would take hours here: the test would not end."""
    assert not (refuses(text) and complies(text))
    asks_for_harm(text)
    is_toxic(text)
