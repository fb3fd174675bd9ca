"""Ranked lists: rows -> pairs, what each pair counts in the loss, one batch and one tree for a list."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from conftest import contract_of
from peft import LoraConfig
from test_engine import LOSSES as ALL_LOSSES
from test_engine import (
    SMALL,
    SORTING,
    Ids,
    Maker,
    PlainTrainer,
    batch_of,
    gradients_of,
    make,
    num_rows,
    pair,
    step,
    text,
    tiny,
    tokenizer,
)
from test_objectives import FREE, trl_loss

from demeanor.contract import build_contract
from demeanor.curate import loss_weights, one_of_each_list, split_pairs
from demeanor.errors import ContractError, InputError, PairsError
from demeanor.objectives import OBJECTIVES, Replies
from demeanor.pairs import PairStore, ReadResult, read_pairs
from demeanor.plan import Plan, plan_run
from demeanor.records import Message, PreferencePair
from demeanor.tokens import TokenizedPair
from demeanor.train import engine, tokens_at_a_time
from demeanor.train.dpo import PairTrainer, make_arguments, make_trainer
from demeanor.train.kto import labelled_rows
from demeanor.train.lists import ListSampler
from demeanor.workspace import Workspace

__all__ = ["make"]  # the fixture
TURN = {"role": "user", "content": "Hi"}
ALL_OF_THREE = [("Hello.", "Yes?"), ("Hello.", "What?"), ("Yes?", "What?")]
LOSSES = [name for name in ALL_LOSSES if name not in SORTING]


def read(tmp_path: Path, *rows: Any, **options: Any) -> ReadResult:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return read_pairs(path, **options)


def texts(result: ReadResult) -> list[tuple[str, str]]:
    return [(pair.chosen, pair.rejected) for pair in result.pairs]


# --- rows


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "replies": ["Hello.", "Yes?", "What?"]},
        {"question": "Hi", "responses": ["What?", "Hello.", "Yes?"], "scores": [-3, "1.5", 0]},
        {"prompt": [TURN], "completions": ["Yes?", "Hello.", "What?"], "ranks": [1, 0, 2]},
        {"query": "Hi", "candidates": ["Yes?", "Hello.", "What?"], "rewards": [0.1, 0.2, -0.3]},
        {"instruction": "Hi", "models": ["a", "b", "c"], "completions": [
            {"model": "a", "response": "What?", "overall_score": 2.0, "critique": "x"},
            {"model": "b", "response": "Hello.", "overall_score": 9.5, "critique": "x"},
            {"model": "c", "response": "Yes?", "overall_score": 5.0, "critique": "x"}]},
        {"prompt": "\n\nHuman: Hi\n\nAssistant: ", "num_responses": 3, "answers": [
            {"answer": " What?", "model": "a", "rank": 3.0}, {"answer": "Hello.", "model": "b", "rank": 1.0},
            {"answer": "Yes?", "model": "c", "rank": 2.0}]},
        {"messages": [TURN], "replies": [{"text": "Yes?", "role": "assistant", "rank": 1},
                                        {"text": "Hello.", "role": "assistant", "rank": 0},
                                        {"text": "What?", "role": "assistant", "rank": 2}]},
        {"prompt": [TURN], "replies": [[{"role": "assistant", "content": t}] for t in ("Hello.", "Yes?", "What?")]},
        {"conversations": [{"from": "human", "value": "Hi"}],
         "replies": [{"from": "gpt", "value": t} for t in ("Hello.", "Yes?", "What?")]},
    ],
)  # fmt: skip
def test_every_shape_of_a_list_gives_the_same_pairs(row: dict[str, Any], tmp_path: Path) -> None:
    result = read(tmp_path, row)
    assert (result.shape, result.num_rows, result.num_lists, result.num_ties) == ("ranked lists", 1, 1, 0)
    assert texts(result) == ALL_OF_THREE
    assert {tuple((turn.role, turn.content) for turn in pair.prompt) for pair in result.pairs} == {(("user", "Hi"),)}
    assert len({pair.list_id for pair in result.pairs}) == 1 and result.pairs[0].list_id
    assert [pair.weight for pair in result.pairs] == [1.0] * 3
    assert texts(read(tmp_path, row, ranked="best")) == ALL_OF_THREE[:2]
    assert PreferencePair.from_json(json.loads(json.dumps(result.pairs[0].to_json()))) == result.pairs[0]


def test_a_tie_is_no_pair_and_is_counted(tmp_path: Path) -> None:
    row = {"prompt": "Hi", "replies": ["a", "b", "c", "d"], "scores": [2, 1, 2, 1]}
    result = read(tmp_path, row)
    assert texts(result) == [("a", "b"), ("a", "d"), ("c", "b"), ("c", "d")] and result.num_ties == 2
    assert result.summary() == "1 of 1 rows usable (ranked lists), 4 pairs made of them, 2 ties left out"
    best = read(tmp_path, {**row, "scores": [2, 1, 2, 0]}, ranked="best")  # a and c are both the best
    assert texts(best) == [("a", "b"), ("a", "d"), ("c", "b"), ("c", "d")] and best.num_ties == 1


def test_what_a_list_cannot_give_is_counted_under_its_reason(tmp_path: Path) -> None:
    good = {"prompt": "Hi", "replies": ["Hello.", "What?"]}
    rows = {
        "fewer than two replies": {**good, "replies": ["Hello."]},
        "all replies are tied": {**good, "scores": [1, 1.0]},
        "one reply at two ranks": {"prompt": "Hi", "replies": ["Hello.", "What?", "Hello. "]},
        "ranks or scores do not fit the replies": {**good, "ranks": [1]},
        "empty prompt": {**good, "prompt": " "},
        "reply is not the assistant's": {**good, "replies": ["Hello.", TURN]},
    }
    more = [{**good, "scores": [1, math.nan]}, {**good, "scores": [1, True]}, {**good, "scores": [1, "N/A"]}]
    partly = {"prompt": "Hi", "replies": ["Hello.", "", "What?"]}
    twice = {"prompt": "Hi", "replies": ["Hello.", "Hello.", "What?"], "ranks": [1, 1, 2]}
    result = read(tmp_path, good, *rows.values(), *more, partly, twice)
    assert [row.reason for row in result.dropped] == [
        *rows, *["ranks or scores do not fit the replies"] * 3, "empty reply"
    ]  # fmt: skip
    assert [pair.row for pair in result.pairs] == [1, 11, 12] and result.num_rows == 12 and result.num_lists == 3
    assert texts(result) == [("Hello.", "What?")] * 3


@pytest.mark.parametrize(
    "row",
    [
        {
            "prompt": "Hi",
            "completions": ["step one", "step two"],
            "labels": [True, False],
        },  # TRL's stepwise supervision
        {"replies": ["Hello.", "What?"]},
        {"prompt": "Hi", "replies": [1, 2]},
        {"prompt": "Hi", "replies": []},
    ],
)
def test_what_is_no_ranked_list_is_not_read_as_one(row: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(PairsError, match="no recognisable shape"):
        read(tmp_path, row)
    both = {"prompt": "Hi", "chosen": "Hello.", "rejected": "What?", "completions": ["x", "y"]}
    assert read(tmp_path, both).shape == "TRL prompt/chosen/rejected"


def test_by_gap_a_pair_weighs_what_the_scores_or_ranks_differ(tmp_path: Path) -> None:
    scored = {"prompt": "Hi", "replies": ["a", "b", "c"], "scores": [9, 8.5, 1], "ranks": [1, 2, 3]}
    assert [p.weight for p in read(tmp_path, scored, ranked_weights="gap").pairs] == [0.5, 8.0, 7.5]
    ranks = {"prompt": "Hi", "replies": ["a", "b", "c"], "ranks": [1, 3, 7]}
    assert [p.weight for p in read(tmp_path, ranks, ranked_weights="gap").pairs] == [2.0, 6.0, 4.0]
    in_order = {"prompt": "Hi", "replies": ["a", "b", "c"]}
    assert [p.weight for p in read(tmp_path, in_order, ranked_weights="gap").pairs] == [1.0, 2.0, 1.0]


def test_the_limit_counts_rows(tmp_path: Path) -> None:
    rows = [{"prompt": f"Hi {n}", "replies": ["a", "b", "c"]} for n in range(5)]
    result = read(tmp_path, *rows, limit=2)
    assert (result.num_rows, len(result.pairs), len({pair.list_id for pair in result.pairs})) == (2, 6, 2)


def test_a_store_counts_the_rows_of_lists(tmp_path: Path) -> None:
    rows = [{"prompt": f"Hi {n}", "replies": ["a", "", "c"] if n else ["a", "b", "c"]} for n in range(4)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    store = PairStore.collect([path], tmp_path)
    assert list(store) == list(read_pairs(path).pairs) and len(store) == 6
    assert store.sources == {"rows.jsonl": 4} and store.dropped == {"empty reply": 3}


# --- what a pair counts, and which side it is on


def made_of(*sizes: int, weight: float = 1.0) -> list[PreferencePair]:
    """The pairs of lists of so many pairs each; 0: a pair of its own."""
    pairs = []
    for number, size in enumerate(sizes):
        prompt = (Message("user", f"Question {number}?"),)
        for place in range(max(1, size)):
            more = {"list_id": f"list {number}", "weight": weight} if size else {}
            pairs.append(PreferencePair.make(prompt, "yes", f"no {place}", **more))
    return pairs


def test_a_list_counts_as_one_pair_however_many_are_left_of_it() -> None:
    pairs = made_of(6, 0, 3, 1)
    weights = loss_weights(pairs)
    assert sum(weights) == pytest.approx(len(pairs))  # mean 1
    assert [weights[0] * 6, weights[7] * 3, weights[10]] == pytest.approx([weights[6]] * 3)
    left = loss_weights(pairs[4:])
    assert left[0] * 2 == pytest.approx(left[2])
    gaps = [PreferencePair.make(p.prompt, p.chosen, p.rejected, list_id="x", weight=n + 1.0)
            for n, p in enumerate(pairs[:3])]  # fmt: skip
    assert loss_weights([*gaps, pairs[6]]) == pytest.approx([2 * share for share in (1 / 6, 2 / 6, 3 / 6, 1)])


def test_where_all_weigh_the_same_each_is_exactly_1() -> None:
    for pairs in (made_of(0, 0), made_of(6, 6, 6), made_of(3, 3, weight=0.3), made_of(1, 0)):
        assert loss_weights(pairs) == [1.0] * len(pairs)


def test_a_list_is_on_one_side_and_counts_once_against_max_heldout() -> None:
    pairs = made_of(*[6] * 100)
    data = build_contract({"data": {"pairs": "x", "heldout_fraction": 0.3, "max_heldout": 20}}).data
    train, heldout = split_pairs(pairs, data)
    sides = [{pair.list_id for pair in side} for side in (train, heldout)]
    assert not sides[0] & sides[1] and len(sides[1]) == 20 and len(heldout) == 120
    kept, others = one_of_each_list(heldout, 0)
    assert len(kept) == 20 == len({pair.list_id for pair in kept}) and len(others) == 100
    assert one_of_each_list(list(reversed(heldout)), 0)[0] == list(reversed(kept))
    assert len({pair.rejected for pair in kept}) > 1  # not always the first
    assert one_of_each_list(made_of(0, 0), 0) == (made_of(0, 0), [])


# --- the loss

WEIGHTS = [0.25, 0.25, 2.0, 0.5, 1.0, 0.25, 2.0, 1.75]


def brief() -> list[Ids]:
    """Short replies: the rounding of long sums would hide a small fault."""
    rng = random.Random(8)
    prompts = [text(rng, 30), text(rng, 20)]
    return [pair(prompts[n % 2] + text(rng, n), text(rng, 1 + n), text(rng, 9 - n)) for n in range(8)]


def weighted(rows: list[Ids], weights: list[float]) -> list[Any]:
    return [{**row, "weight": weight} for row, weight in zip(rows, weights, strict=True)]


def by_hand(
    make: Maker, loss: list[str], factors: list[float], **options: Any
) -> tuple[float, dict[str, torch.Tensor]]:
    """sum of w l / B, pair by pair from TRL's own trainer, which sees one pair at a time; SFT by its tokens."""
    trl = make(PlainTrainer, brief(), loss_type=loss, loss_weights=factors, **options)
    rows = list(trl.train_dataset)
    num_chosen = sum(len(row["chosen_ids"]) for row in rows)
    trl.model.train()
    trl.model.zero_grad()
    total = 0.0
    for row, weight in zip(rows, WEIGHTS, strict=True):
        trl.loss_weights = [
            factor * weight * (len(row["chosen_ids"]) / num_chosen if kind == "sft" else 1 / len(rows))
            for kind, factor in zip(loss, factors, strict=True)
        ]
        value = trl.compute_loss(trl.model, trl.data_collator([row]))
        value.backward()
        total += value.item()
    return total, gradients_of(trl.model)


def same(found: Any, total: float, gradients: dict[str, torch.Tensor]) -> None:
    assert found.loss == pytest.approx(total, rel=1e-5)
    assert gradients.keys() == found.gradients.keys()
    for name, expected in gradients.items():
        assert (found.gradients[name] - expected).norm() <= 1e-5 * expected.norm(), name


@pytest.mark.parametrize("loss", LOSSES)
def test_the_weights_reach_every_loss_of_trl(make: Maker, loss: str) -> None:
    options: dict[str, Any] = {
        "label_smoothing": 0.1,
        "beta": 0.3,
        "discopop_tau": 0.5,
    }  # steeper ones blow rounding up
    total, gradients = by_hand(make, [loss], [1.0], **options)
    plain = step(make(PlainTrainer, brief(), loss_type=[loss], **options))
    assert abs(plain.loss - total) > 1e-4 * abs(total)  # they make a difference
    for trees, budget, precomputed in ((False, None, False), (True, None, True), (True, SMALL, False)):
        options["precompute_ref_log_probs"] = precomputed
        rows = weighted(brief(), WEIGHTS)
        trainer = make(PairTrainer, rows, budget=budget, ours={"trees": trees}, loss_type=[loss], **options)
        assert (trainer.engine is not None) == trees and (budget is None or num_rows(trainer) > 1)
        found = step(trainer)
        same(found, total, gradients)
        for name, value in plain.logs.items():  # figures are of the pairs as they are
            if name.split("/")[0] in ("rewards", "logps", "logits", "entropy", "mean_token_accuracy", "num_tokens"):
                assert found.logs[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name


@pytest.mark.parametrize(
    "options",
    [
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
        {"loss_type": ["ipo", "bco_pair", "sft"], "loss_weights": [0.7, 0.2, 0.3], "ld_alpha": 0.4},
        {"loss_type": ["sigmoid"], "loss_weights": [1.0], "use_weighting": True},
    ],
    ids=str,
)
def test_the_weights_reach_combined_losses(make: Maker, options: dict[str, Any]) -> None:
    loss, factors = options.pop("loss_type"), options.pop("loss_weights")
    total, gradients = by_hand(make, loss, factors, **options)
    for ours, budget in (({}, None), ({}, SMALL), ({"trees": False}, None)):
        rows = weighted(brief(), WEIGHTS)
        trainer = make(PairTrainer, rows, budget=budget, ours=ours, loss_type=loss, loss_weights=factors, **options)
        assert (trainer.engine is None) == bool(ours)
        same(step(trainer), total, gradients)


def test_several_processes_call_the_loss_equally_often_and_get_the_same(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    total, gradients = by_hand(make, ["sigmoid", "sft"], [1.0, 0.5])
    options: dict[str, Any] = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}
    for weights in (WEIGHTS, [1.0] * 8):
        trainer = make(PairTrainer, weighted(brief(), weights), **options)
        alone = step(trainer)
        calls = []
        mean_loss = PairTrainer._mean_loss

        def counted(self: Any, *args: Any, calls: list[int] = calls, mean_loss: Any = mean_loss) -> Any:
            calls.append(1)
            return mean_loss(self, *args)

        with monkeypatch.context() as patch:
            patch.setattr(PairTrainer, "_mean_loss", counted)
            patch.setattr(type(trainer.accelerator), "num_processes", property(lambda self: 2))
            together = step(trainer)
        assert len(calls) == 8
        assert together.loss == pytest.approx(alone.loss, rel=1e-6)
        if weights is WEIGHTS:
            same(together, total, gradients)


def test_a_mixture_of_experts_adds_its_own_loss_once(make: Maker) -> None:
    sizes = {"num_local_experts": 2, "num_experts_per_tok": 1, "output_router_logits": True}
    found = {}
    for weights in (WEIGHTS, [1.0] * 8):
        trainer = make(PairTrainer, weighted(brief(), weights), tiny("mixtral", **sizes), targets=["q_proj"])
        assert trainer.engine is None and trainer.aux_loss_enabled
        with_aux = step(trainer)
        trainer.router_aux_loss_coef = 0.0
        found[weights[0]] = with_aux.logs["aux_loss"], (with_aux.loss - step(trainer).loss)
    assert found[0.25][0] > 0 and found[0.25] == pytest.approx(found[1.0], rel=1e-3)


@pytest.mark.parametrize("name", FREE)
@pytest.mark.parametrize("budget", [None, SMALL])
def test_the_weights_reach_the_objectives_without_a_reference(make: Maker, name: str, budget: int | None) -> None:
    objective = OBJECTIVES[name]
    options = {"beta": objective.beta, "loss_type": ["sft"], "loss_weights": [objective.sft_weight]}
    given = {"objective": objective, "gamma": objective.gamma}
    rows = weighted(brief(), WEIGHTS)
    found = step(make(PairTrainer, rows, ours=given, budget=budget, precompute_ref_log_probs=True, **options))

    plain = make(PlainTrainer, brief(), tiny("llama"))
    batch = batch_of(plain)
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    plain.model.train()
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    logps = plain.model(**inputs, labels=labels, fused_lm_head=True, use_cache=False).log_probs
    mask = batch["completion_mask"][:, 1:]
    sums, weights = (logps * mask).sum(dim=1), torch.tensor(WEIGHTS)
    replies = Replies(*sums.chunk(2), *mask.sum(dim=1).chunk(2))
    expected = (weights * trl_loss(name, replies, objective.beta, objective.gamma)).mean()
    expected = expected - objective.sft_weight * (weights * replies.chosen).sum() / replies.chosen_tokens.sum()
    expected.backward()
    same(found, expected.item(), gradients_of(plain.model))


@pytest.mark.parametrize("budget", [None, SMALL])
def test_weights_of_1_change_no_bit(make: Maker, budget: int | None) -> None:
    options: dict[str, Any] = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5], "budget": budget}
    ones, none = (step(make(PairTrainer, rows, **options)) for rows in (weighted(brief(), [1.0] * 8), brief()))
    assert ones.loss == none.loss and ones.logs == none.logs
    assert all(torch.equal(ones.gradients[name], value) for name, value in none.gradients.items())


def test_the_evaluation_is_weighted_too(make: Maker) -> None:
    rows = weighted(brief(), WEIGHTS)
    options: dict[str, Any] = {"heldout": rows, "per_device_eval_batch_size": 8}
    trainer = make(PairTrainer, rows, **options)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(step(trainer).loss, rel=1e-5)


# --- one batch, one tree


def pairs_of_list(prompt: list[int], replies: list[list[int]], name: str) -> list[TokenizedPair]:
    return [
        TokenizedPair(f"{name} {one} {two}", prompt, replies[one], replies[two], list_id=name)
        for one in range(len(replies))
        for two in range(one + 1, len(replies))
    ]


@pytest.mark.parametrize("sizes", [(40, 33, 25, 60), (3, 2, 5, 1), (700, 800, 600, 900)])
def test_a_list_costs_its_prompt_once_and_each_reply_once(
    make: Maker, sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(0)
    prompt, replies = text(rng, 50), [text(rng, size) for size in sizes]
    listed = pairs_of_list(prompt, replies, "a")
    rows = [pair(p.prompt_ids, p.chosen_ids, p.rejected_ids) for p in listed]
    model = tiny("llama", max_position_embeddings=1024)
    trainer = make(PairTrainer, rows, model, precompute_ref_log_probs=True)
    assert len(rows) == 6 and trainer.engine is not None
    batch = batch_of(trainer)
    (row,) = trainer.engine.plan(batch["input_ids"], batch["attention_mask"]).rows
    assert len(row) == 50 + sum(sizes)
    scored: list[int] = []
    plain = engine.score_tokens

    def counted(hidden: torch.Tensor, *rest: Any, **more: Any) -> Any:
        scored.append(len(hidden))
        return plain(hidden, *rest, **more)

    monkeypatch.setattr(engine, "score_tokens", counted)
    ours = step(trainer)
    assert max(scored) < sum(sizes) + 128  # rounded up; the head sees no reply twice either
    trl = step(make(PlainTrainer, rows, tiny("llama", max_position_embeddings=1024)))
    torch.testing.assert_close(ours.token_logps, trl.token_logps, rtol=1e-5, atol=1e-5)
    if max(sizes) < 100:  # sums of hundreds of logps differ by their rounding
        same(ours, trl.loss, trl.gradients)


def test_memory_is_estimated_for_a_whole_list() -> None:
    replies = [[n] * 900 for n in range(4)]
    listed = pairs_of_list([9] * 100, replies, "a")
    assert tokens_at_a_time(listed, 8, trees=True) == 100 + 4 * 900
    alone = [TokenizedPair(p.id, p.prompt_ids, p.chosen_ids, p.rejected_ids) for p in listed]
    assert tokens_at_a_time(alone, 8, trees=True) == 2048


@pytest.mark.parametrize("batch_size", [1, 4, 6, 8, 13])
def test_a_batch_holds_whole_lists_where_they_fit(batch_size: int) -> None:
    rng = random.Random(1)
    list_of = [name for name in range(60) for _ in range(rng.choice([1, 1, 3, 6, 10]))]
    rng.shuffle(list_of)
    sampler = ListSampler(list_of, batch_size, seed=5)
    batches = sampler.batches()
    assert sorted(n for batch in batches for n in batch) == list(range(len(list_of))) and len(sampler) == len(list_of)
    assert list(sampler) == [n for batch in batches for n in batch]
    assert all(len(batch) == batch_size for batch in batches[:-1])  # as the loader will cut them
    pieces: dict[int, int] = {}
    for batch in batches:
        for name in {list_of[n] for n in batch}:
            pieces[name] = pieces.get(name, 0) + 1
    fit = [name for name in pieces if list_of.count(name) <= batch_size]
    assert sum(pieces[name] == 1 for name in fit) >= 0.9 * len(fit)
    assert sampler.num_whole() == sum(count == 1 for count in pieces.values())
    alone = [list_of[batch[0]] for batch in batches if len({list_of[n] for n in batch}) == 1]
    assert all(alone.count(name) >= list_of.count(name) // batch_size for name in set(pieces) - set(fit))


def test_lists_that_divide_the_batch_are_all_whole_in_another_order_each_epoch() -> None:
    list_of = [name for name in range(20) for _ in range(6)]
    sampler, again = (ListSampler(list_of, 12, seed=3) for _ in range(2))
    first = list(sampler)
    assert sampler.num_whole() == 20 and list(again) == first
    again.set_epoch(1)
    assert again.num_whole() == 20 and list(again) != first
    assert ListSampler(list_of, 8, seed=3).num_whole() == 15  # three of four
    assert list(ListSampler(list_of, 12, seed=4)) != first


def some_lists(num: int = 12) -> list[TokenizedPair]:
    rng = random.Random(3)
    found: list[TokenizedPair] = []
    for number in range(num):
        replies = [text(rng, 4) for _ in range(rng.choice([2, 3, 4]))]
        found += pairs_of_list(text(rng, 20), replies, f"list {number}")
    return found


def trainer_of(pairs: list[TokenizedPair], folder: Path, said: list[str] | None = None, **options: Any) -> Any:
    contract = contract_of(
        training={"per_device_train_batch_size": 6, "num_train_epochs": 2, "save_steps": 3, **options}
    )
    return make_trainer(
        contract,
        make_arguments(contract, folder, learning_rate=1e-2, use_cpu=True, bf16=False),
        tokenizer(),
        pairs,
        model=tiny("llama"),
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
        say=lambda line: said.append(line) if said is not None else None,
    )


def test_a_training_on_lists_weighs_and_groups_them_and_resumes_exactly(tmp_path: Path) -> None:
    pairs, said = some_lists(), []
    trainer = trainer_of(pairs, tmp_path / "whole", said)
    weights = torch.tensor(trainer.train_dataset["weight"])
    assert weights.tolist() == pytest.approx(loss_weights(pairs)) and weights.max() / weights.min() == pytest.approx(6)
    assert any(line.startswith("ranked lists: ") and "of 12 have all their pairs in one batch" in line for line in said)
    seen: list[list[int]] = []
    collate = trainer.data_collator.torch_call

    def collated(rows: list[dict[str, Any]]) -> Any:
        seen.append([row["prompt_ids"] for row in rows])
        assert all(row["weight"] > 0 for row in rows)
        return collate(rows)

    trainer.data_collator.torch_call = collated
    trainer.train()
    prompts = sum(len({tuple(ids) for ids in batch}) for batch in seen[-trainer.state.global_step :])
    assert sum(map(len, seen[-trainer.state.global_step :])) == 2 * len(pairs) and prompts < 1.5 * 2 * 12
    checkpoints = sorted((tmp_path / "whole").glob("checkpoint-*"))
    assert trainer.state.max_steps == trainer.state.global_step and len(checkpoints) == 2  # save_total_limit
    for checkpoint in checkpoints:
        again = trainer_of(pairs, tmp_path / f"again {checkpoint.name}")
        again.train(resume_from_checkpoint=str(checkpoint))
        assert again.state.global_step == trainer.state.global_step
        for (name, expected), value in zip(trainer.model.named_parameters(), again.model.parameters(), strict=True):
            assert torch.equal(expected, value), (checkpoint, name)


def test_pairs_alone_are_trained_on_as_before(tmp_path: Path) -> None:
    pairs = [TokenizedPair(p.id, p.prompt_ids, p.chosen_ids, p.rejected_ids) for p in some_lists()]
    trainer = trainer_of(pairs, tmp_path)
    assert trainer.lists is None and "weight" not in trainer.train_dataset.column_names
    assert not isinstance(trainer._get_train_sampler(), ListSampler)
    of_lists = trainer_of(some_lists(), tmp_path)
    assert isinstance(of_lists._get_train_sampler(), ListSampler)
    sequential = trainer_of(some_lists(), tmp_path, train_sampling_strategy="sequential")
    assert isinstance(sequential._get_train_sampler(), torch.utils.data.SequentialSampler)


def test_kto_takes_each_reply_of_a_list_once() -> None:
    pairs = pairs_of_list([5, 6], [[7, 2], [8, 2], [9, 2]], "a")[:2]  # the best against the others
    rows = labelled_rows([*pairs, TokenizedPair("x", [5, 6], [7, 2], [4, 2])], 8, seed=0)
    found = sorted((row["completion_ids"], row["label"]) for row in rows)
    assert found == [([4, 2], False), ([7, 2], True), ([7, 2], True), ([8, 2], False), ([9, 2], False)]


# --- in the contract


def contract(**sections: Any) -> Any:
    data = {"pairs": "x", **sections.pop("data", {})}
    return build_contract({"data": data, **sections})


def test_the_default_is_all_pairs_and_under_kto_the_best_against_the_others() -> None:
    assert contract().ranked == "all" and contract(data={"ranked": "best"}).ranked == "best"
    assert contract(training={"objective": "kto"}).ranked == "best"
    for data, told in (
        ({"ranked": "all"}, "data.ranked: kto would take a reply between two others as good and as bad: write best"),
        ({"ranked_weights": "gap"}, "data.ranked_weights: belongs to objectives that take pairs"),
    ):
        with pytest.raises(ContractError) as caught:
            contract(data=data, training={"objective": "kto"})
        assert told in str(caught.value)


def plan_of(tmp_path: Path, model: Path, **training: Any) -> Plan:
    rng = random.Random(0)
    words = ["red", "green", "blue", "black", "white", "brown", "pink", "grey"]
    rows = [
        {
            "prompt": f"Which colour is number {n}?",
            "replies": rng.sample(words, rng.choice([2, 4])),
            "behaviour": "tone",
        }
        for n in range(40)
    ]
    path = tmp_path / "lists.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    data = {"pairs": [str(path)], "heldout_fraction": 0.25}
    made = contract_of(model=str(model), behaviours={"tone": {}}, data=data, training=training)
    return plan_run(made, Workspace(tmp_path / "run"))


def test_a_plan_says_what_lists_give_and_holds_one_pair_of_a_list_out(llama: Path, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, llama)
    train, probes = {pair.list_id for pair in plan.train}, plan.probes
    assert len(probes) == len({probe.prompt for probe in probes}) and len(train) + len(probes) == 40
    notes = "\n".join(plan.notes)
    assert "40 of 40 rows usable (ranked lists), " in notes
    assert f"{len(train)} ranked lists count as one pair each, shared evenly among their pairs" in notes
    left_out = [row for row in plan.dropped if row.reason == "another pair of its held-out list is a probe"]
    assert left_out and f"{len(left_out)} others are left out" in notes


@pytest.mark.parametrize(
    ("training", "why"),
    [
        ({"objective": "aot"}, "aot sorts the pairs of a batch"),
        ({"loss_type": ["sigmoid", "aot_unpaired"]}, "aot_unpaired sorts the pairs of a batch"),
        ({"use_weighting": True, "sft_weight": 1.0}, "use_weighting multiplies the SFT term of the whole batch"),
    ],
)
def test_a_loss_that_cannot_be_weighted_is_refused(
    llama: Path, tmp_path: Path, training: dict[str, Any], why: str
) -> None:
    with pytest.raises(InputError) as caught:
        plan_of(tmp_path, llama, **training)
    assert f"the pairs of ranked lists cannot be weighted: {why}" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_transformers_still_calls_its_default_order_random() -> None:
    assert hf.TrainingArguments.__dataclass_fields__["train_sampling_strategy"].default == "random"
