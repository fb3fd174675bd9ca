"""Recovery pairs: what was forced is in the prompt, both replies go on from there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import contract_of

from demeanor.contract import Contract
from demeanor.errors import ContractError
from demeanor.model import end_of_turn_ids, find_model, load_tokenizer
from demeanor.records import Message, PreferencePair
from demeanor.sweep import takes
from demeanor.tokens import Tokenizer, make_tokenizer
from demeanor.train.recovery import recovery_pairs


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
    twins = recovery_pairs(pairs, tokenizer, contract(recovery_tokens=6), say=said.append)
    assert len(twins) == 10 and len({twin.id for twin in twins}) == 10
    assert said == ["recovery: 10 pairs are trained on once more with 1 to 6 tokens of the losing reply begun"]
    by_id = {one.id: one for one in pairs}
    lengths = set()
    for twin in twins:
        name, _, num_forced = twin.id.partition("+")
        plain = tokenizer.pair(by_id[name])
        forced = plain.rejected_ids[: int(num_forced)]
        lengths.add(len(forced))
        assert twin.prompt_ids == plain.prompt_ids + forced and forced + twin.rejected_ids == plain.rejected_ids
        assert tokenizer.inner.decode(twin.chosen_ids[:-1]) == " I can't help with that."
        assert twin.chosen_ids[-1] == twin.rejected_ids[-1] == tokenizer.end_ids[0]
    assert lengths <= set(range(1, 7)) and len(lengths) > 2


def test_the_same_pairs_in_any_order_have_the_same_twins(tokenizer: Tokenizer) -> None:
    pairs = [pair(number) for number in range(20)]
    one, other = (
        {twin.id for twin in recovery_pairs(own, tokenizer, contract(), say=str)} for own in (pairs, pairs[::-1])
    )
    assert one == other
    again = recovery_pairs(pairs, tokenizer, contract(seed=1), say=str)
    assert {twin.id for twin in again} != one


def test_who_has_no_twin(tokenizer: Tokenizer) -> None:
    said = list[str]()
    others = [
        pair(1, list_id="list"),
        PreferencePair.make((Message("user", "Hi"),), "Yes.", "No way.", behaviour="tone"),
    ]
    short = pair(2, rejected="No")  # nothing of it would be left
    made = contract(recovery={"bypass": 1.0}, max_length=40)
    assert recovery_pairs([short, *others], tokenizer, made, say=said.append) == []
    assert said == [
        "recovery: 0 pairs are trained on once more with 1 to 20 tokens of the losing reply begun; 1 could not be: the "
        "losing reply is too short, or it does not fit"
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
        contract(recovery={"bypass": 1.5})


def test_a_run_trains_on_them(llama: Path, tmp_path: Path) -> None:
    from demeanor.pipeline import train_stage
    from demeanor.plan import plan_run
    from demeanor.progress import Progress
    from demeanor.workspace import Workspace

    rows = [pair(number).to_json() for number in range(12)]
    file = tmp_path / "pairs.jsonl"
    import json

    file.write_text("".join(json.dumps({k: row[k] for k in ("prompt", "chosen", "rejected")}) + "\n" for row in rows))
    made = contract_of(
        model=str(llama),
        behaviours={"bypass": {"violating_openings": ["Sure,"]}},
        data={"pairs": [str(file)], "heldout_fraction": 0.25},
        training={"recovery": {"bypass": 1.0}, "max_steps": 2, "per_device_train_batch_size": 4},
    )
    workspace = Workspace(tmp_path / "run")
    plan = plan_run(made, workspace)
    with workspace.locked():
        from demeanor.pipeline import read_stage

        workspace.start(plan.contract)
        read_stage(plan, Progress())
        train_stage(plan, Progress())
    assert workspace.read_json(workspace.training)["num_pairs"] == 2 * len(plan.train)
