"""Recovery pairs: what was forced is in the prompt, both replies go on from there."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import contract_of

from demeanor.contract import Contract
from demeanor.errors import ContractError
from demeanor.model import end_of_turn_ids, find_model, load_tokenizer
from demeanor.pipeline import run
from demeanor.plan import plan_run
from demeanor.progress import Progress
from demeanor.records import Message, PreferencePair
from demeanor.sweep import takes
from demeanor.tokens import Tokenizer, make_tokenizer
from demeanor.train.recovery import recovery_pairs
from demeanor.workspace import Workspace


def pair(number: int, rejected: str = "Sure, take the thin card and push it along the frame.", **more: Any) -> Any:
    prompt = (Message("user", f"How do I open door {number}?"),)
    return PreferencePair.make(prompt, "I can't help with that.", rejected, behaviour="bypass", **more)


def contract(**training: Any) -> Contract:
    behaviours = {"bypass": {"violating_openings": ["Sure,"]}, "tone": {"violating_openings": ["You"]}}
    return contract_of(model="starter", behaviours=behaviours, training={"recovery": {"bypass": 0.5}, **training})


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    source = find_model("starter")
    inner = load_tokenizer(source, contract())
    return make_tokenizer(inner, end_of_turn_ids(source, inner))


def test_both_replies_go_on_from_what_was_forced(tokenizer: Tokenizer) -> None:
    pairs, said = [pair(number) for number in range(20)], list[str]()
    found = recovery_pairs(pairs, tokenizer, contract(recovery_tokens=6), say=said.append)
    assert len(found) == 10 and len({one.id for one in found}) == 10
    assert said == ["recovery: 10 more pairs, with 1 to 6 tokens of the losing reply begun"]
    by_id = {one.id: one for one in pairs}
    lengths = set()
    for one in found:
        name, _, num_forced = one.id.partition("+")
        plain = tokenizer.pair(by_id[name])
        forced = plain.rejected_ids[: int(num_forced)]
        lengths.add(len(forced))
        assert one.prompt_ids == plain.prompt_ids + forced
        assert len(one.rejected_ids) <= 5 and plain.rejected_ids[len(forced) :][:5] == one.rejected_ids
        assert len(one.chosen_ids) == 5
        assert " I can't help with that.".startswith(tokenizer.inner.decode(one.chosen_ids))
    assert lengths <= set(range(1, 7)) and len(lengths) > 2


def test_they_may_keep_whole_replies(tokenizer: Tokenizer) -> None:
    (one,) = recovery_pairs([pair(1)], tokenizer, contract(recovery={"bypass": 1}, recovery_reply_tokens=1000), say=str)
    assert tokenizer.inner.decode(one.chosen_ids[:-1]) == " I can't help with that."
    assert one.chosen_ids[-1] == one.rejected_ids[-1] == tokenizer.end_ids[0]


@pytest.mark.parametrize(("many", "of_a_pair"), [(1, {1}), (1.5, {1, 2}), (2, {2}), (4, {4})])
def test_several_of_a_pair_are_begun_to_different_lengths(
    tokenizer: Tokenizer, many: float, of_a_pair: set[int]
) -> None:
    found = recovery_pairs([pair(n) for n in range(20)], tokenizer, contract(recovery={"bypass": many}), say=str)
    assert len(found) == 20 * many and len({one.id for one in found}) == len(found)
    assert set(Counter(one.id.partition("+")[0] for one in found).values()) == of_a_pair


def test_the_same_pairs_in_any_order_have_the_same_recovery_pairs(tokenizer: Tokenizer) -> None:
    pairs = [pair(number) for number in range(20)]
    first, second = (
        {one.id for one in recovery_pairs(own, tokenizer, contract(), say=str)} for own in (pairs, pairs[::-1])
    )
    assert first == second
    again = recovery_pairs(pairs, tokenizer, contract(seed=1), say=str)
    assert {one.id for one in again} != first


def test_who_has_none(tokenizer: Tokenizer) -> None:
    said = list[str]()
    others = [
        pair(1, list_id="list"),
        PreferencePair.make((Message("user", "Hi"),), "Yes.", "No way.", behaviour="tone"),
    ]
    short = pair(2, rejected="No")  # nothing of it would be left
    made = contract(recovery={"bypass": 1}, max_length=40)
    assert recovery_pairs([short, *others], tokenizer, made, say=said.append) == []
    assert said == [
        "recovery: 0 more pairs, with 1 to 20 tokens of the losing reply begun; 1 pair has none: the losing reply is "
        "too short, or it does not fit"
    ]
    whole = tokenizer.pair(pair(3))
    fitting = len(whole.prompt_ids) + len(whole.rejected_ids)
    made = contract(recovery={"bypass": 1.0}, recovery_tokens=1, max_length=fitting)
    assert len(recovery_pairs([pair(3)], tokenizer, made, say=str)) == 1


@pytest.mark.parametrize("objective", ["kto", "grpo", "rloo", "reward"])
def test_objectives_without_pairs_refuse_it(objective: str) -> None:
    with pytest.raises(ContractError, match=rf"training.recovery: .*takes policies.*; {objective} is none"):
        contract(objective=objective)
    assert not takes(objective, "training.recovery") and takes("simpo", "training.recovery")


def test_a_behaviour_that_is_none_is_refused() -> None:
    with pytest.raises(ContractError, match="no behaviour is called 'bypas'; did you mean bypass"):
        contract(recovery={"bypas": 0.5})
    with pytest.raises(ContractError, match="recovery"):
        contract(recovery={"bypass": 4.5})


def test_a_run_trains_on_them_and_its_page_says_so(llama: Path, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    rows = [pair(number).to_json() for number in range(12)]
    file.write_text("".join(json.dumps({k: row[k] for k in ("prompt", "chosen", "rejected")}) + "\n" for row in rows))
    made = contract_of(
        model=str(llama),
        behaviours={"bypass": {"violating_openings": ["Sure,"]}},
        data={"pairs": [str(file)], "heldout_fraction": 0.25},
        training={"recovery": {"bypass": 1.0}, "max_steps": 2, "per_device_train_batch_size": 4},
        measurement={"samples": 0},
    )
    workspace = Workspace(tmp_path / "run")
    plan = plan_run(made, workspace)
    with workspace.locked():
        run(plan, Progress())
    num = len(plan.train)
    assert workspace.read_json(workspace.training)["num_pairs"] == 2 * num
    assert f"<dd>{num} and {num} recovery pairs</dd>" in workspace.report.read_text("utf-8")
