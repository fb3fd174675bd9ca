"""Prefix trees: layout, mask, and the same log-probabilities as one sequence at a time."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import contract_of, make_model

from demeanor.measure.likelihood import Scorer, choice_probability
from demeanor.model import find_model, load_model
from demeanor.train.tree import build_tree, pack_rows


def random_case(rng: random.Random) -> tuple[list[int], list[list[int]]]:
    prefix = [rng.randrange(5) for _ in range(rng.randint(1, 9))]
    replies = [[rng.randrange(3) for _ in range(rng.randint(1, 6))] for _ in range(rng.randint(1, 5))]
    return prefix, replies


def ancestors(parents: list[int], place: int) -> set[int]:
    seen = set()
    while place >= 0:
        seen.add(place)
        place = parents[place]
    return seen


def test_layout_of_random_trees() -> None:
    rng = random.Random(0)
    for _ in range(200):
        prefix, replies = random_case(rng)
        tree = build_tree(prefix, replies)
        for reply, path in zip(replies, tree.paths, strict=True):
            assert [tree.tokens[place] for place in path] == reply
            assert tree.parents[path[0]] == len(prefix) - 1
            assert all(tree.parents[b] == a for a, b in pairwise(path))
        assert all(parent < place for place, parent in enumerate(tree.parents))
        assert all(tree.positions[p] == len(ancestors(tree.parents, p)) - 1 for p in range(len(tree)))
        distinct = {tuple(reply[: n + 1]) for reply in replies for n in range(len(reply))}
        assert len(tree) == len(prefix) + len(distinct)


def test_mask_is_the_path_and_rows_do_not_mix() -> None:
    rng = random.Random(1)
    trees = [build_tree(*random_case(rng)) for _ in range(7)]
    (row,) = pack_rows(trees, 10_000)
    sees = row.mask(torch.float32)[0, 0] == 0
    for tree, offset in zip(row.trees, row.offsets, strict=True):
        for place in range(len(tree)):
            expected = {offset + other for other in ancestors(tree.parents, place)}
            assert set(sees[offset + place].nonzero()[:, 0].tolist()) == expected


def test_rows_keep_the_budget_and_the_order() -> None:
    trees = [build_tree([1] * size, [[2]]) for size in (5, 5, 30, 1, 1, 1)]
    rows = pack_rows(trees, 13)
    assert [tree for row in rows for tree in row.trees] == trees
    assert [len(row.trees) for row in rows] == [2, 1, 3]


def test_empty_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        build_tree([], [[1]])
    with pytest.raises(ValueError, match="at least one token"):
        build_tree([1], [[]])


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
