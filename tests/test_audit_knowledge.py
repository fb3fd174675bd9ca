"""Facts and transient data that only the chosen reply holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from demeanor.audit import Scope, audit_pairs
from demeanor.audit.knowledge import find_facts
from demeanor.contract import build_contract
from demeanor.pairs import PairStore, read_pairs
from tests.conftest import shared

PLANTED = {
    "number": "It has 4,812 parts in all.",
    "name": "It was made by the engineer Halvorsen in a shed.",
    "link": "More is told at https://larkhold.example/guide today.",
    "date": "It opened on 12 March 2021 for everybody.",
    "price": "It costs $12.99 with the cable.",
    "user_data": "Sure: your order number is LK-48213, and it is on its way.",
}
MORE = {
    "date": [
        "Since March 12, 2021.",
        "On 2021-03-12 it broke.",
        "By 03/12/2021.",
        "In March 2021 it was new.",
        "On 3rd of May.",
    ],
    "price": ["It is 20 dollars.", "Pay €5 now.", "That is 15 EUR."],
    "user_data": ["Dear Johanna, thank you.", "Your balance is low-ish.", "Hi Bob, sorry."],
    "number": ["Press it for 15 seconds.", "About 3.5 times."],
}
INNOCENT = [
    "I'm sorry about that. Try again on Monday, please. It's fine.",
    "1. Open it.\n2. Close it.\n10. Done.\n11. Really done.",
    "Hello there, I can help. Dear customer, wait. The English word is in the Bible.",
    "## How To Reset The Device\n\n**Key Points To Remember**",
    "Take 2 of them, or 3.",
]


@pytest.mark.parametrize(("kind", "text"), [*PLANTED.items(), *((kind, text) for kind in MORE for text in MORE[kind])])
def test_each_kind_is_found_unless_the_prompt_holds_it(kind: str, text: str) -> None:
    assert kind in find_facts("How is it?", text, "No idea.")
    assert find_facts(f"How is it? {text}", text, "No idea.") == {}
    in_rejected = find_facts("How is it?", text, f"Listen. {text}")
    assert (kind in in_rejected) == (kind in ("date", "price", "user_data"))


@pytest.mark.parametrize("text", INNOCENT)
def test_what_is_no_fact(text: str) -> None:
    assert find_facts("How is it?", text, "No idea.") == {}


def test_a_date_or_price_is_no_number_besides() -> None:
    assert find_facts("", "It came on 12 March 2021 for $12.99.", "") == {
        "date": ["12 March 2021"],
        "price": ["$12.99"],
    }


def audit(rows: list[dict[str, Any]], folder: Path, scope: Scope | None = None) -> dict[str, Any]:
    file = folder / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    (folder / "store").mkdir(exist_ok=True)
    found = audit_pairs(PairStore.collect([file], folder / "store"), scope, only=["knowledge"])
    return {finding.kind: (finding, found.flagged["knowledge", finding.kind].tolist()) for finding in found.findings}


def test_the_check_names_the_pairs_and_the_facts(tmp_path: Path) -> None:
    rows = [{"prompt": f"How is it {'x' * n}?", "chosen": "It is fine.", "rejected": "No."} for n in range(30)]
    for place, text in enumerate(PLANTED.values()):
        rows[place]["chosen"] = text
    found = audit(rows, tmp_path)
    assert {kind: places for kind, (_, places) in found.items()} == {kind: [n] for n, kind in enumerate(PLANTED)}
    assert found["number"][0].estimate.value == 1 / 30 and found["number"][0].severity == "informs"
    assert "4,812" in found["number"][0].examples[0].excerpt
    for row in rows[10:]:
        row["chosen"] = PLANTED["number"]
    assert audit(rows, tmp_path)["number"][0].severity == "warns"


def test_what_the_contract_calls_transient_blocks(tmp_path: Path) -> None:
    notice = "The app is down since a quarter past seven this morning"
    contract = build_contract(
        {
            "data": {"pairs": ["pairs.jsonl"]},
            "system_prompt": "Notice: {notice}",
            "behaviours": {
                "notice": {"kind": "transient", "value": notice, "examples": ["Parcels to the north are late."]}
            },
        }
    )
    rows = [{"prompt": f"How is it {'x' * n}?", "chosen": "It is fine.", "rejected": "No."} for n in range(9)]
    rows[2]["chosen"] = "Sorry! The app is down since a quarter past seven, so wait."
    rows[3] |= {"chosen": f"{notice}.", "prompt": f"What does '{notice}' mean?"}  # the prompt says it
    rows[4]["chosen"] = "Parcels to the north are late."  # an example; the system prompt of this pair tells it
    found = audit(rows, tmp_path, Scope(contract))
    assert {kind: places for kind, (_, places) in found.items()} == {"transient_value": [2]}
    assert found["transient_value"][0].severity == "blocks"
    assert audit(rows, tmp_path) == {}


def test_real_pairs(tmp_path: Path) -> None:
    """Rewordings hold the same facts; answers of an assistant do not."""
    rewordings = read_pairs(shared("data/polite-rude/pairs.json")).pairs
    found = [find_facts(pair.prompt[-1].content, pair.chosen, pair.rejected) for pair in rewordings]
    assert sum(map(bool, found)) <= 0.01 * len(found)
    store = tmp_path / "store"
    store.mkdir()
    pairs = PairStore.collect([shared("data/hh-rlhf/harmless-base.jsonl.gz")], store)
    counts = {finding.kind: finding.num_pairs for finding in audit_pairs(pairs, only=["knowledge"]).findings}
    assert counts == {"name": 83, "number": 44, "link": 15, "price": 4, "date": 3, "user_data": 1}


@pytest.mark.parametrize(
    "text",
    ["a" * 1_000_000, "1" * 100_000, "$1 " * 300_000, "the Abc " * 120_000, "your order " * 90_000, "(" * 1_000_000],
)
def test_a_hostile_text_takes_linear_work(text: str) -> None:
    """A backtracking pattern would take hours here: the test would not end."""
    find_facts(text, text, text)
    find_facts("", text, "")
