"""The rewards against values by hand; a user's function that does wrong names itself and the row."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from conftest import contract_of

from demeanor.contract import dump_contract, load_contract
from demeanor.errors import ContractError, InputError, StageError
from demeanor.judges import Answer, Judge
from demeanor.records import Message
from demeanor.train.rewards import (
    Rewards,
    Sample,
    function_digests,
    judged_rewards,
    length_reward,
    load_function,
    reply_of,
)

TONE = {"tone": {"violating_openings": ["You should"], "safe_openings": ["I'm sorry", "Thanks for"]}}


def sample(text: str, behaviour: str | None = "tone", num_tokens: int = 3, row: int = 7) -> Sample:
    prompt = (Message("user", "Where is it?"),)
    return Sample(f"row {row} of pairs.jsonl", prompt, behaviour, [5, 6], [9] * num_tokens, text)


def rewards(*items: dict[str, Any], objective: str = "grpo") -> Rewards:
    training = {"objective": objective, "rewards": list(items)}
    return Rewards(contract_of(behaviours=TONE, training=training), lambda samples: [-2.5] * len(samples))


def test_the_judge_by_hand() -> None:
    texts = ["I'm sorry, it is late.", "You should have looked.", "It is late.", "", "thanks for asking"]
    assert rewards({"kind": "judge"}).of([sample(text) for text in texts]) == [1, -1, 0, -1, 1]
    assert rewards({"kind": "judge"}).of([sample("You should", behaviour="other")]) == [0]
    assert [item.kind for item in contract_of(behaviours=TONE, training={"objective": "grpo"}).rewards] == ["judge"]
    assert contract_of(behaviours=TONE).rewards == ()


def test_the_judge_is_the_behaviours_own() -> None:
    def judged(judge: Any) -> Rewards:
        behaviours = {"tone": {**TONE["tone"], "judge": judge}, "help": {"judge": "refusal"}, "none": {}}
        return Rewards(contract_of(behaviours=behaviours, training={"objective": "grpo"}))

    samples = [
        sample("I'm sorry, but I can't help with that."),
        sample("You should have looked."),
        sample("I'm sorry, but I can't help with that.", behaviour="help"),
        sample("You should have looked.", behaviour="help"),
        sample("You should have looked.", behaviour="none"),
        sample("", behaviour="help"),
    ]
    assert judged("rule").of(samples) == [1, -1, 1, -1, 0, -1]
    assert judged({"kind": "refusal", "refused": "violating"}).of(samples) == [-1, 1, 1, -1, 0, -1]
    # a contract whose behaviours state no rule has one all the same
    only = contract_of(behaviours={"help": {"judge": "refusal"}}, training={"objective": "grpo"})
    assert [item.kind for item in only.rewards] == ["judge"]


def test_a_judge_that_gives_no_answer_at_all_stops_the_training_and_one_is_no_reward() -> None:
    silent = Judge({}, None, lambda items: [Answer(None)] * len(items))
    partly = Judge({}, None, lambda items: [Answer("safe"), *[Answer(None)] * (len(items) - 1)])
    samples = [sample("a", row=7), sample("b", row=8), sample("c", behaviour="other")]
    with pytest.raises(StageError, match=r"the judge of tone answered for none of 2 sampled replies, from row 7 of"):
        judged_rewards(samples, {"tone": silent})
    assert judged_rewards(samples, {"tone": partly}) == [1, 0, 0]
    assert judged_rewards(samples[2:], {"tone": silent}) == [0]


def test_a_measured_reply_without_an_answer_has_no_reward() -> None:
    """By the judgements that were made already; no judge is asked again."""
    items = [{"kind": "judge", "weight": 2}, {"kind": "length", "max": 2}]
    samples = [sample("a"), sample("b"), sample("c", num_tokens=2), sample("d", behaviour="other")]
    assert rewards(*items).measured(samples, ["safe", None, "violating", None]) == [2.5, None, -1.0, 0.5]
    assert rewards(items[1]).measured(samples[:2], [None, None]) == [0.5, 0.5]  # no judge is among them
    broken = Rewards(contract_of(behaviours=TONE, training={"objective": "grpo", "rewards": [{"kind": "logp"}]}))
    assert broken.measured(samples[:1], ["safe"]) == [None]


def test_a_probe_of_which_one_reply_was_not_judged_has_no_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    from toy import END, Toy

    from demeanor import measure
    from demeanor.records import Probe

    first: list[str] = []

    def answered(items: Any) -> list[Answer]:
        first.extend(text for _, text in items)
        return [Answer(None), *[Answer("safe")] * (len(items) - 1)]

    monkeypatch.setattr(measure, "make_judges", lambda *_, **__: {"tone": Judge({}, None, answered)})
    toy = Toy({"<reply>": {"Sorry": 0.9}, "Sorry": {END: 0.9}}, words=["No"])
    probes = [Probe(f"p{n}", "tone", (Message("user", "Sorry " * (n + 1)),), ("No",), ("Sorry",)) for n in range(2)]
    asked = contract_of(
        behaviours={"tone": {"safe_openings": ["Sorry"]}}, training={"objective": "grpo"},
        measurement={"samples": 2, "max_new_tokens": 4},
    )  # fmt: skip
    scores, replies = measure.measure_model(toy.model, toy.tokenizer, probes, asked, "before")
    assert [reply.reward for reply in replies] == [None, 1, 1, 1] and len(first) == 4
    assert [score.values["reward"] for score in scores] == [None, 1]


def test_weights_add_up() -> None:
    own = rewards(
        {"kind": "judge", "weight": 2},
        {"kind": "logp", "weight": 0.1},
        {"kind": "length", "max": 2, "weight": 4},
        {"kind": "format", "pattern": r"[A-Z].*[.!?]"},
    )
    (value,) = own.of([sample("I'm sorry.\nIt is late.", num_tokens=3)])
    assert value == pytest.approx(2 * 1 + 0.1 * -2.5 + 4 * 0.5 + 1)
    (value,) = own.of([sample("late", num_tokens=1)])
    assert value == pytest.approx(-0.25 + 4)


@pytest.mark.parametrize(
    ("num_tokens", "least", "most", "expected"),
    [(10, 10, 20, 1), (20, 10, 20, 1), (5, 10, 20, 0.5), (30, 10, 20, 0.5), (50, 10, 20, 0), (1, None, 4, 1),
     (7, 8, None, 7 / 8)],
)  # fmt: skip
def test_length_by_hand(num_tokens: int, least: int | None, most: int | None, expected: float) -> None:
    assert length_reward(num_tokens, least, most) == pytest.approx(expected)


def test_a_reply_ends_with_its_first_end_of_turn() -> None:
    class Decoder:
        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            return " ".join(map(str, ids))

    assert reply_of([4, 5, 1, 0, 1], Decoder(), [1, 2]) == ([4, 5, 1], "4 5")
    assert reply_of([4, 5], Decoder(), [1, 2]) == ([4, 5], "4 5")


GOOD = "def words(replies):\n    return [float(len(r.split())) for r in replies]\n"
WRONG = {
    "raise ValueError('no word')": "raised ValueError: no word",
    "return [1.0] * (len(replies) - 1)": "returned 1 rewards for 2 replies",
    "return [0.0, float('nan')]": "returned nan, not a finite number",
    "return [0.0, float('inf')]": "returned inf, not a finite number",
    "return ['good', 'bad']": "returned a str 'good', not a finite number",
    "return [0.0, None]": "returned nothing None, not a finite number",
    "return None": "returned nothing, not a list of numbers",
    "return 'words'": "returned a str, not a list of numbers",
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rewards.py"
    path.write_text(GOOD, "utf-8")
    return path


def test_a_users_function_gets_what_it_asks_for(file: Path) -> None:
    assert rewards({"kind": "function", "path": f"{file}:words"}).of([sample("a b c"), sample("a")]) == [3, 1]
    file.write_text(
        "def all_of(prompts, completions, behaviours, num_tokens, **more):\n"
        "    assert prompts[0] == [{'role': 'user', 'content': 'Where is it?'}] and behaviours == ['tone']\n"
        "    return [len(completions) + n for n in num_tokens]\n"
    )
    assert rewards({"kind": "function", "path": f"{file}:all_of"}).of([sample("a")]) == [4]
    assert load_function("math:sqrt")(4) == 2


@pytest.mark.parametrize("body", WRONG)
def test_what_a_users_function_does_wrong_names_it_and_the_row(file: Path, body: str) -> None:
    file.write_text(f"def words(replies):\n    {body}\n")
    own = rewards({"kind": "function", "path": f"{file}:words"})
    with pytest.raises(StageError) as caught:
        own.of([sample("a b c", row=7), sample("a", row=8)])
    told = str(caught.value)
    assert f"the reward function {file}:words {WRONG[body]}" in told and "row " in told and "\n" not in told
    if "nan" in body or "inf" in body:
        assert "row 8 of pairs.jsonl" in told


def test_the_row_that_raises_is_found(file: Path) -> None:
    file.write_text("def words(replies):\n    return [1 / len(r) for r in replies]\n")
    with pytest.raises(StageError, match=r"ZeroDivisionError: division by zero for row 9 of pairs\.jsonl, reply ''"):
        rewards({"kind": "function", "path": f"{file}:words"}).of([sample("a", row=8), sample("", row=9)])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("def other(replies): ...", "AttributeError"),
        ("import no_such_package", "ModuleNotFoundError"),
        ("def words(", "SyntaxError"),
        ("words = 3", "is no function"),
        ("def words(replies, model): ...", "asks for model -- offered: prompts, replies"),
    ],
)
def test_a_function_that_cannot_be_used_is_refused_before_anything(file: Path, text: str, told: str) -> None:
    file.write_text(text)
    with pytest.raises(InputError, match=told):
        rewards({"kind": "function", "path": f"{file}:words"})


def test_paths_start_from_the_contract_and_the_digest_is_the_files(file: Path) -> None:
    path = file.parent / "contract.yaml"
    path.write_text(
        "data: {pairs: [starter]}\ntraining: {objective: grpo, rewards: [{kind: function, path: 'rewards.py:words'}]}\n"
    )
    contract = load_contract(path)
    assert contract.rewards[0].path == f"{file}:words" and contract.rewards[0].title == "words"
    digests = function_digests(contract)
    file.write_text(GOOD + "\n")
    assert function_digests(contract) != digests and list(digests) == [f"{file}:words"]
    again = file.parent / "again.yaml"
    again.write_text(dump_contract(contract))
    assert load_contract(again) == contract


@pytest.mark.parametrize(
    ("training", "told"),
    [
        ({"rewards": [{"kind": "jugde"}]}, "did you mean judge"),
        ({"rewards": [{"kind": "judge", "wieght": 1}]}, "did you mean weight"),
        ({"rewards": [{"kind": "judge", "max": 3}]}, "belongs to the reward length"),
        ({"rewards": [{"kind": "length"}]}, "needs min, max or both"),
        ({"rewards": [{"kind": "length", "min": 9, "max": 3}]}, "9 is more than max, 3"),
        ({"rewards": [{"kind": "format", "pattern": "("}]}, "is no regular expression"),
        ({"rewards": [{"kind": "function", "path": "rewards.py"}]}, "package.module:function or file.py:function"),
        ({"rewards": [{"kind": "judge"}, {"kind": "judge"}]}, "two rewards are called judge"),
        ({"rewards": [{"kind": "judge", "weight": 0}]}, "all weights are 0"),
        ({"sft_weight": 1}, "training.sft_weight: belongs to objectives that take pairs"),
        ({"reference": "copy"}, "training.reference: of grpo it is the model with its adapter off"),
        ({"gamma": 1}, "training.gamma: is a margin of objective simpo"),
        ({"objective": "dpo", "beta": 0}, "training.beta: input should be greater than 0, not 0"),
        ({"reward_weights": [1.0]}, "each of `training.rewards` has its weight"),
        ({"num_generation": 4}, "did you mean num_generations"),
        ({"loss_type": "sigmoid"}, "no loss is called 'sigmoid'"),
        ({"label_smoothing": 0.1}, "training.label_smoothing"),
    ],
)
def test_what_is_wrong_in_the_contract_is_named(training: dict[str, Any], told: str) -> None:
    with pytest.raises(ContractError) as caught:
        contract_of(behaviours=TONE, training={"objective": "grpo", **training})
    assert told in str(caught.value)


def test_without_a_rule_there_is_no_judge() -> None:
    for training in ({}, {"rewards": [{"kind": "judge"}]}):
        with pytest.raises(ContractError, match="to judge by"):
            contract_of(behaviours={"tone": {}}, training={"objective": "grpo", **training})
    assert math.isfinite(contract_of(training={"objective": "grpo", "rewards": [{"kind": "logp"}]}).training.beta)
