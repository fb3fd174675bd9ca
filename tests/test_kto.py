"""KTO on single labelled replies: TRL's own numbers, the order of the batches, the readers, the measures."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import contract_of
from datasets import Dataset
from peft import LoraConfig
from test_engine import DATA, gradients_of, mixed, randomise, same_gradients, tiny, tokenizer
from trl import KTOConfig, KTOTrainer
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from demeanor.contract import build_contract
from demeanor.errors import ContractError, PairsError
from demeanor.pairs import read_pairs
from demeanor.prove import joint_values
from demeanor.records import Probe, Score
from demeanor.tokens import TokenizedPair
from demeanor.train import kto
from demeanor.train.kto import ReplyTrainer, label_weights, labelled_rows
from demeanor.train.on_trees import check_step0

SIZE = 16  # replies of a batch: those of eight pairs


class PlainTrainer(KTOTrainer):
    """TRL's own, over replies that are token ids already."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset


def tokenized(rows: list[dict[str, list[int]]]) -> list[TokenizedPair]:
    return [TokenizedPair(str(n), *(row[key] for key in ("prompt_ids", "chosen_ids", "rejected_ids")))
            for n, row in enumerate(rows)]  # fmt: skip


def trainer_of(
    cls: type[KTOTrainer], rows: list[dict[str, Any]], folder: Path, *, budget: int | None = None, **options: Any
) -> Any:
    config = KTOConfig(
        output_dir=str(folder), max_length=None, report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True,
        **{"per_device_train_batch_size": SIZE, "gradient_checkpointing": False, "bf16": False, "logging_steps": 1,
           "learning_rate": 1e-2, **options},
    )  # fmt: skip
    trainer = cls(
        model=tiny("llama"),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
        data_collator=DataCollatorForUnpairedPreference(pad_token_id=0),
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    if cls is ReplyTrainer:
        assert trainer.engine is not None
        trainer.engine.row_budget = budget or trainer.engine.row_budget
    randomise(trainer.model)  # policy and reference differ
    return trainer


def step(trainer: Any) -> tuple[float, dict[str, torch.Tensor], dict[str, float]]:
    trainer.current_gradient_accumulation_steps = 1
    trainer.state.global_step = 1
    trainer.model.train()
    loss = trainer.training_step(trainer.model, trainer.data_collator(list(trainer.train_dataset))).item()
    trainer.log({})
    return loss, gradients_of(trainer.model), trainer.state.log_history[-1]


@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
@pytest.mark.parametrize("precompute", [True, False])
@pytest.mark.parametrize("budget", [None, 150])
@pytest.mark.parametrize("data", ["mixed", "alike", "system"])
def test_a_step_is_trls(data: str, budget: int | None, precompute: bool, loss_type: str, tmp_path: Path) -> None:
    rows = labelled_rows(tokenized(DATA[data]()), SIZE, seed=1)[: SIZE - 3]  # more good ones than bad
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.8}
    options = {"precompute_ref_log_probs": precompute, "loss_type": loss_type, **weights}
    passes = []
    ours = trainer_of(ReplyTrainer, rows, tmp_path, budget=budget, **options)
    compute = ours.compute_loss
    ours.compute_loss = lambda *args, **more: (passes.append(1), compute(*args, **more))[1]
    found = step(ours)
    assert (len(passes) > 1) == (budget is not None and precompute and loss_type == "kto")
    expected = step(trainer_of(PlainTrainer, rows, tmp_path, **options))
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    same_gradients(found[1], expected[1])
    for name, value in expected[2].items():
        if name.startswith(("rewards", "logps", "logits", "kl", "entropy")):
            assert found[2][name] == pytest.approx(value, rel=2e-4, abs=1e-5), name
    assert loss_type != "kto" or data != "mixed" or expected[2]["kl"] > 0  # elsewhere the estimate is below 0


@pytest.mark.parametrize("budget", [None, 150])
def test_before_the_first_step_nothing_has_moved(budget: int | None, tmp_path: Path) -> None:
    rows = labelled_rows(tokenized(mixed()), SIZE, seed=1)
    trainer = trainer_of(ReplyTrainer, rows, tmp_path, budget=budget, precompute_ref_log_probs=True)
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    assert check_step0(trainer, bf16=False) == 0.0
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    loss = trainer.training_step(trainer.model, trainer.data_collator(list(trainer.train_dataset))).item()
    trainer.log({})
    assert loss == pytest.approx(0.5, rel=1e-6)  # 1 - s(0)
    logs = trainer.state.log_history[-1]
    assert logs["rewards/chosen"] == logs["rewards/rejected"] == logs["kl"] == 0.0


@pytest.mark.parametrize("label", [True, False])
def test_the_gradient_raises_a_good_reply_and_lowers_a_bad_one(label: bool, tmp_path: Path) -> None:
    pairs = tokenized(mixed())
    single = [TokenizedPair(p.id, p.prompt_ids, *((p.chosen_ids, []) if label else ([], p.chosen_ids))) for p in pairs]
    trainer = trainer_of(ReplyTrainer, labelled_rows(single, SIZE, seed=1), tmp_path, precompute_ref_log_probs=True)
    batch = trainer._collate(list(trainer.train_dataset))
    before = trainer._token_logps(trainer.model, batch).sum().item()
    _, gradients, _ = step(trainer)
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if name in gradients:
                parameter -= 0.05 * gradients[name]
    after = trainer._token_logps(trainer.model, batch).sum().item()
    assert (after > before) == label


def test_batches_hold_the_replies_of_a_prompt_and_mismatch_them() -> None:
    pairs = [TokenizedPair(str(n), [n, 5], [n, 6, 2], [n, 7, 7, 2]) for n in range(20)]
    rows = labelled_rows(pairs, SIZE, seed=1)
    assert rows == labelled_rows(pairs, SIZE, seed=1) != labelled_rows(pairs, SIZE, seed=2)
    given = [
        (p.prompt_ids, ids, label) for p in pairs for ids, label in ((p.chosen_ids, True), (p.rejected_ids, False))
    ]
    assert sorted(given) == sorted((row["prompt_ids"], row["completion_ids"], row["label"]) for row in rows)
    own = {tuple(p.prompt_ids): (p.chosen_ids, p.rejected_ids) for p in pairs}
    for start in range(0, len(rows), SIZE):
        batch = rows[start : start + SIZE]
        counts = Counter(tuple(row["prompt_ids"]) for row in batch)
        assert set(counts.values()) == {2}
        # what the KL is estimated on: the batch's replies, each once, none after its own prompt
        assert sorted(row["KL_completion_ids"] for row in batch) == sorted(row["completion_ids"] for row in batch)
        assert all(row["KL_completion_ids"] not in own[tuple(row["prompt_ids"])] for row in batch)
    odd = labelled_rows([*pairs[:1], TokenizedPair("x", [9], [7, 2], [])], 2, seed=1)
    assert len(odd) == 3 and odd[2]["KL_completion_ids"] != odd[2]["completion_ids"]  # alone in its batch


def test_weights_give_both_labels_the_same_total() -> None:
    assert label_weights(50, 50) == (1.0, 1.0)
    assert label_weights(100, 25) == (1.0, 4.0)
    assert label_weights(10, 30) == (3.0, 1.0)
    assert label_weights(0, 9) == label_weights(9, 0) == (1.0, 1.0)


def test_pairs_are_split_and_an_imbalance_is_weighed_and_both_are_said(tmp_path: Path) -> None:
    pairs = tokenized(mixed())
    bad = [TokenizedPair(f"bad {p.id}", p.prompt_ids, [], p.rejected_ids) for p in pairs[:4]]

    def made(**training: Any) -> tuple[Any, list[str]]:
        lines: list[str] = []
        contract = contract_of(training={"objective": "kto", "per_device_train_batch_size": 4, **training})
        arguments = kto.make_arguments(contract, tmp_path, bf16=False, use_cpu=True, gradient_checkpointing=False)
        adapter = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        more = {"model": tiny("llama"), "peft_config": adapter, "say": lines.append}
        return kto.make_trainer(contract, arguments, tokenizer(), [*pairs, *bad], **more), lines

    trainer, lines = made()
    assert lines[:2] == [
        "kto: 8 good and 12 bad replies, 8 pairs split into two each",
        "kto: good replies weigh 1.5 and bad ones 1, so that both count the same",
    ]
    assert (trainer.desirable_weight, trainer.undesirable_weight, len(trainer.train_dataset)) == (1.5, 1.0, 20)
    trainer, lines = made(desirable_weight=0.7)
    assert (trainer.desirable_weight, trainer.undesirable_weight) == (0.7, 1.0) and "weigh" not in "".join(lines)


# --- reading


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "completion": "Hello.", "label": True},
        {"prompt": "Hi", "response": "Hello.", "label": "thumbs up"},
        {"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Hello."}],
         "label": 1},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}], "label": "true"},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}], "kto_tag": True},
        {"instruction": "Hi", "input": "", "output": "Hello.", "kto_tag": True},
    ],
)  # fmt: skip
def test_every_shape_of_a_labelled_reply(row: dict[str, Any], tmp_path: Path) -> None:
    import json

    bad = {**row, "label" if "label" in row else "kto_tag": False}
    path = tmp_path / "replies.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(bad) + "\n", "utf-8")
    result = read_pairs(path, labelled=True)
    assert [(p.prompt[-1].content, p.chosen, p.rejected) for p in result.pairs] == [
        ("Hi", "Hello.", ""), ("Hi", "", "Hello.")
    ]  # fmt: skip
    good, bad_probe = (Probe.from_pair(p, "x") for p in result.pairs)
    assert (good.safe, good.violating, bad_probe.safe, bad_probe.violating) == (("Hello.",), (), (), ("Hello.",))
    with pytest.raises(PairsError, match=r"single replies are what `training.objective: kto` takes"):
        read_pairs(path)


def test_labelled_rows_that_cannot_be_used_are_dropped_with_the_reason(tmp_path: Path) -> None:
    import json

    rows = [
        {"prompt": "Hi", "completion": "Hello.", "label": True},
        {"prompt": "Hi", "completion": " ", "label": True},
        {"prompt": "", "completion": "Hello.", "label": False},
        {"prompt": "Hi", "completion": "Hello.", "label": "perhaps"},
        {"prompt": "Hi", "chosen": "Hello.", "rejected": "No."},
    ]
    path = tmp_path / "replies.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    result = read_pairs(path, labelled=True)
    assert len(result.pairs) == 1
    assert [(row.row, row.reason) for row in result.dropped] == [
        (2, "empty reply"), (3, "empty prompt"), (4, "not the shape of the file"), (5, "not the shape of the file")
    ]  # fmt: skip


# --- measuring and the contract


def score(side: str, **values: float | None) -> Score:
    return Score("p", "x", side, None, {"safe_tokens": None, "violating_tokens": None, **values})


def test_a_reply_alone_is_held_against_a_reward_of_0() -> None:
    good = joint_values(score("before", safe_logp=-9.0, safe_tokens=3.0, violating_logp=None),
                        score("after", safe_logp=-5.0, safe_tokens=3.0, violating_logp=None), 0.5)  # fmt: skip
    assert good["reward_accuracy"] == 1.0 and good["length_accuracy"] is good["displaced_share"] is None
    assert good["validation_loss"] == pytest.approx(math.log1p(math.exp(-2.0)))
    bad = joint_values(score("before", violating_logp=-9.0, violating_tokens=3.0, safe_logp=None),
                       score("after", violating_logp=-5.0, violating_tokens=3.0, safe_logp=None), 0.5)  # fmt: skip
    assert bad["reward_accuracy"] == 0.0
    assert bad["validation_loss"] == pytest.approx(math.log1p(math.exp(2.0)))
    half = {"violating_tokens": 3.0, "safe_logp": -1.0, "safe_tokens": 2.0}
    lost = joint_values(score("before", violating_logp=None, **half), score("after", violating_logp=-5.0, **half), 0.5)
    assert set(lost.values()) == {None}  # of a pair whose one side could not be computed nothing is claimed


@pytest.mark.parametrize(
    ("training", "told"),
    [
        ({"sft_weight": 1.0}, "training.sft_weight: belongs to objectives that take pairs"),
        ({"gamma": 1.0}, "training.gamma: is a margin of objective simpo"),
        ({"per_device_train_batch_size": 1}, "it needs 2 replies or more"),
        ({"loss_type": "hinge"}, "no loss is called 'hinge'"),
        ({"label_smoothing": 0.1}, "training.label_smoothing: means nothing to objective kto"),
        ({"desirable_weight": "much"}, "training.desirable_weight: must be float"),
    ],
)
def test_what_kto_does_not_take_is_refused(training: dict[str, Any], told: str) -> None:
    with pytest.raises(ContractError) as caught:
        build_contract({"data": {"pairs": "starter"}, "training": {"objective": "kto", **training}})
    assert told in str(caught.value)
