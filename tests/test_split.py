"""The split into training and held-out pairs: no leak, seeded, and independent of what else is in the file."""

from __future__ import annotations

import random

import pytest

from demeanor.contract import Data
from demeanor.curate import split_pairs
from demeanor.records import Message, PreferencePair


def pair(prompt: str, chosen: str = "good", *earlier: Message) -> PreferencePair:
    return PreferencePair.make((*earlier, Message("user", prompt)), chosen, "bad")


def many(count: int, start: int = 0) -> list[PreferencePair]:
    return [pair(f"Question {number} about my device?") for number in range(start, start + count)]


def data(fraction: float = 0.1, most: int = 10**9, seed: int = 0) -> Data:
    return Data(pairs=("pairs.jsonl",), heldout_fraction=fraction, max_heldout=most, seed=seed)


def ids(pairs: list[PreferencePair]) -> set[str]:
    return {item.id for item in pairs}


def test_every_pair_is_on_exactly_one_side_in_the_order_of_the_file() -> None:
    pairs = many(500)
    train, heldout = split_pairs(pairs, data())
    assert train == [item for item in pairs if item.id in ids(train)]
    assert heldout == [item for item in pairs if item.id in ids(heldout)]
    assert len(train) + len(heldout) == 500
    assert train and heldout


def test_no_prompt_is_on_both_sides() -> None:
    """However it is written, and whatever was said before it."""
    earlier = (Message("user", "Hi."), Message("assistant", "Hello."))
    pairs = []
    for number in range(300):
        prompt = f"Is the Straße {number} watched?"
        pairs += [pair(prompt, "a"), pair(prompt, "b"), pair(f"  {prompt.upper()} \n", "c")]
        pairs += [pair(prompt.replace(" ", "\t\u00a0"), "d"), pair(prompt.lower(), "e", *earlier)]
        pairs += [pair(prompt, "f", Message("system", f"Today is day {number}."))]
    train, heldout = split_pairs(pairs, data(0.5))
    numbers = [{item.prompt[-1].content.split()[3] for item in side} for side in (train, heldout)]
    assert not numbers[0] & numbers[1]
    assert len(heldout) == 6 * len(numbers[1])
    assert 0.4 < len(numbers[1]) / 300 < 0.6


def test_the_order_of_the_file_does_not_matter() -> None:
    pairs = many(400) + [pair(f"Question {n} about my device?", "other") for n in range(0, 400, 3)]
    shuffled = random.Random(1).sample(pairs, len(pairs))
    for most in (10**9, 25):
        assert ids(split_pairs(pairs, data(most=most))[1]) == ids(split_pairs(shuffled, data(most=most))[1])


def test_the_seed_decides() -> None:
    pairs = many(400)
    assert split_pairs(pairs, data(seed=3)) == split_pairs(pairs, data(seed=3))
    assert split_pairs(pairs, data(seed=3)) != split_pairs(pairs, data(seed=4))


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.5, 0.9])
def test_about_the_asked_share_of_the_prompts_is_held_out(fraction: float) -> None:
    rng = random.Random(2)
    pairs = [pair(f"{rng.random()} {rng.random()}") for _ in range(2000)]
    deviation = (2000 * fraction * (1 - fraction)) ** 0.5
    assert abs(len(split_pairs(pairs, data(fraction))[1]) - 2000 * fraction) < 4 * deviation


def test_fraction_zero_holds_nothing_out() -> None:
    pairs = many(50)
    assert split_pairs(pairs, data(0.0)) == (pairs, [])
    assert split_pairs([], data()) == ([], [])


@pytest.mark.parametrize("most", [0, 1, 7, 50])
def test_at_most_max_heldout_are_held_out_whole_prompts(most: int) -> None:
    pairs = [pair(f"Question {number}?", f"reply {reply}") for number in range(200) for reply in range(1 + number % 3)]
    train, heldout = split_pairs(pairs, data(0.5, most))
    assert len(heldout) <= most
    assert len(heldout) >= most - 2  # the next prompt, of up to three pairs, did not fit
    assert not {item.prompt for item in train} & {item.prompt for item in heldout}


def test_a_prompt_with_too_many_pairs_does_not_keep_the_others_from_being_held_out() -> None:
    for number in range(20):  # whichever place its hash has
        giant = [pair(f"Giant {number}", f"reply {reply}") for reply in range(60)]
        train, heldout = split_pairs(giant + many(300), data(0.5, 50))
        assert len(heldout) == 50
        assert set(giant) <= set(train)


def test_only_one_giant_prompt_stays_whole() -> None:
    giant = [pair("The same?", f"reply {reply}") for reply in range(300)]
    sides = {len(split_pairs(giant, data(0.5, seed=seed))[1]) for seed in range(20)}
    assert sides == {0, 300}
    assert all(split_pairs(giant, data(0.5, 200, seed))[1] == [] for seed in range(20))


def test_new_pairs_move_no_other_pair() -> None:
    old, new = many(500), many(700, start=500)
    train, heldout = split_pairs(old, data())
    more_train, more_heldout = split_pairs(new + old, data())
    assert ids(train) <= ids(more_train)
    assert ids(heldout) <= ids(more_heldout)


def test_where_max_heldout_binds_new_pairs_only_send_pairs_back_to_training() -> None:
    """So a model that was trained on the old training pairs has still seen none of the old pairs now held out."""
    sent_back = 0
    for seed in range(60):
        old, new = many(100), many(10, start=100)
        old += [pair(item.prompt[0].content, f"reply {n}") for place, item in enumerate(old) for n in range(place % 5)]
        train, heldout = split_pairs(old, data(0.5, 40, seed))
        more_train, more_heldout = split_pairs(new + old, data(0.5, 40, seed))
        assert 36 <= len(more_heldout) <= 40
        assert ids(train) <= ids(more_train)
        sent_back += len(ids(heldout) & ids(more_train))
    assert sent_back
