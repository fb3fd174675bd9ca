"""Prefix trees: layout, mask, and the same log-probabilities as one sequence at a time."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from conftest import contract_of, make_model

from demeanor.measure.likelihood import Scorer, choice_probability
from demeanor.model import find_model, load_model
from demeanor.train.tree import plan_rows


def random_groups(rng: random.Random) -> list[list[list[int]]]:
    """Groups of sequences with many shared beginnings, some of them the whole of another sequence."""
    trunks = [[rng.randrange(3) for _ in range(rng.randint(1, 30))] for _ in range(3)]
    groups = []
    for _ in range(rng.randint(1, 6)):
        prompt = rng.choice(trunks)[: rng.randint(1, 30)] + [rng.randrange(4) for _ in range(rng.randint(0, 8))]
        groups.append([prompt + [rng.randrange(4) for _ in range(rng.randint(1, 9))] for _ in range(rng.randint(1, 4))])
    return groups


@pytest.mark.parametrize("min_shared", [1, 5, 16])
def test_rows_hold_every_sequence_and_each_token_sees_its_path(min_shared: int) -> None:
    rng = random.Random(0)
    for _ in range(60):
        groups = random_groups(rng)
        rows = plan_rows(groups, rng.choice([20, 60, 10_000]), min_shared)
        members = [member for row in rows for member in row.members]
        assert sorted(members) == [(g, i) for g, group in enumerate(groups) for i in range(len(group))]
        for row in rows:
            sees = row.mask(torch.float32)[0, 0] == 0
            for (group, item), path in zip(row.members, row.paths, strict=True):
                assert row.tokens[path].tolist() == groups[group][item]
                assert row.positions[path].tolist() == list(range(len(path)))
                for place, number in enumerate(path):  # exactly its own path, in whatever company it lies
                    assert set(sees[number].nonzero()[:, 0].tolist()) == set(path[: place + 1].tolist())


def test_with_min_shared_1_no_beginning_is_laid_out_twice() -> None:
    rng = random.Random(1)
    for _ in range(60):
        groups = random_groups(rng)
        (row,) = plan_rows(groups, 10_000, 1)
        assert len(row) == len({tuple(seq[: n + 1]) for group in groups for seq in group for n in range(len(seq))})


def test_rows_keep_the_budget_are_full_and_never_part_a_group() -> None:
    rng = random.Random(2)
    prompt = [0] * 40
    groups = [[prompt + [n] * 5, prompt + [n] * 7] for n in range(1, 30)]  # one tree of 40 + 29 * 12 tokens
    groups += [[[n] + [40 + rng.randrange(9)] * rng.randint(2, 60)] for n in range(31, 60)]
    rows = plan_rows(groups, 100)
    for row in rows:
        assert len(row) <= 100
        for group in {group for group, _ in row.members}:
            assert sum(group == other for other, _ in row.members) == len(groups[group])
    assert sum(len(row) < 60 for row in rows) <= 1
    (long,) = plan_rows([[[1] * 150, [2] * 150]], 100)  # a group that fits nowhere has a row of its own
    assert len(long) == 300


def test_an_empty_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        plan_rows([[[1], []]], 10)


def test_same_numbers_as_one_sequence_at_a_time(family_model: tuple[str, Path]) -> None:
    family, folder = family_model
    contract = contract_of(chat_template="plain")
    model = load_model(find_model(str(folder)), contract, trees=True)
    rng = random.Random(2)
    prompts = [[rng.randrange(2, 8192) for _ in range(size)] for size in (1, 30, 7, 120, 2)]
    replies = [[[rng.randrange(2, 8192) for _ in range(rng.randint(1, 12))] for _ in range(4)] for _ in prompts]
    for options in replies:
        options.append([options[0][0], 5, 6])  # shares its first token with another
    scorer = Scorer(model)
    found = scorer.logps(prompts, replies)
    assert scorer.uses_trees, scorer.padded_because
    for prompt, options, got in zip(prompts, replies, found, strict=True):
        for reply, values in zip(options, got, strict=True):
            with torch.no_grad():
                logits = model(torch.tensor([prompt + reply])).logits[0].double()
            logps = torch.log_softmax(logits, -1)
            wanted = [logps[len(prompt) - 1 + n, token].item() for n, token in enumerate(reply)]
            assert values == pytest.approx(wanted, rel=1e-5, abs=1e-5), family


def test_probes_without_tokens_are_refused() -> None:
    for prompt, options in (([], [[1]]), ([1], [[]])):
        with pytest.raises(ValueError, match="at least one token"):
            Scorer(torch.nn.Linear(1, 1)).logps([prompt], [options])


def test_a_sliding_window_shorter_than_the_text_is_scored_plainly(tmp_path: Path) -> None:
    folder = make_model("mistral-window", tmp_path / "m")
    model = load_model(find_model(str(folder)), contract_of(), trees=True)
    rng = random.Random(3)
    prompt = [rng.randrange(2, 8192) for _ in range(20)]
    reply = [rng.randrange(2, 8192) for _ in range(6)]
    (values,) = Scorer(model).logps([prompt], [[reply]])
    with torch.no_grad():
        logps = torch.log_softmax(model(torch.tensor([prompt + reply])).logits[0].double(), -1)
    wanted = [logps[len(prompt) - 1 + n, token].item() for n, token in enumerate(reply)]
    assert values[0] == pytest.approx(wanted, abs=1e-4)


def test_choice_probability_is_safe_at_extremes() -> None:
    assert choice_probability([-1000.0], [-1000.0]) == 0.5
    assert choice_probability([-2000.0], [-10.0]) == 0.0
    assert choice_probability([-1.0, -1.0], [-1.0]) == pytest.approx(2 / 3)
