"""The shapes: every reader on real files and on small ones, the reasons, the ids."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest

import demeanor.pairs
from demeanor.errors import PairsError
from demeanor.pairs import ReadResult, read_pairs
from demeanor.pairs.columns import canonical
from demeanor.pairs.reasons import REASONS
from demeanor.pairs.shapes import READERS, SHAPES, find_reader
from demeanor.records import Message, PreferencePair

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
USER = [{"role": "user", "content": "Hi"}]
GOOD = [{"role": "assistant", "content": "Hello."}]
BAD = [{"role": "assistant", "content": "What?"}]


def shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is absent")
    return path


def read(tmp_path: Path, *rows: Any, **options: Any) -> ReadResult:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return read_pairs(path, **options)


def texts(pair: PreferencePair) -> tuple[list[tuple[str, str]], str, str]:
    return [(turn.role, turn.content) for turn in pair.prompt], pair.chosen, pair.rejected


def counts(result: ReadResult) -> dict[str, int]:
    reasons = [row.reason for row in result.dropped]
    return {reason: reasons.count(reason) for reason in reasons}


def test_more_pairs_than_memory_may_take_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("demeanor.pairs.read.MAX_PAIRS", 20)
    rows = [{"prompt": f"{number}?", "chosen": "Yes.", "rejected": "No."} for number in range(30)]
    assert len(read(tmp_path, *rows[:20]).pairs) == len(read(tmp_path, *rows, limit=20).pairs) == 20
    with pytest.raises(PairsError, match=r"rows.jsonl: more than 20 rows are more than memory may take -- .*max_pairs"):
        read(tmp_path, *rows)
    with pytest.raises(PairsError, match="more than 20 rows"):  # dropped rows are held, too
        read(tmp_path, *rows[:5], *[{"prompt": "Why?", "chosen": "", "rejected": "No."}] * 20)


# ---- the real files


def test_hh_rlhf() -> None:
    result = read_pairs(shared("hh-rlhf/harmless-base.jsonl.gz"))
    assert (result.num_rows, len(result.pairs), result.source) == (2000, 1992, "harmless-base.jsonl.gz")
    assert counts(result) == {"prompts differ": 4, "empty reply": 4}
    assert [row.row for row in result.dropped] == [87, 517, 926, 1104, 1255, 1689, 1951, 1953]
    assert result.summary() == (
        "1,992 of 2,000 rows usable (hh-rlhf transcripts); dropped: 4 prompts differ, 4 empty reply"
    )
    first = result.pairs[0]
    assert [turn.role for turn in first.prompt] == ["user", "assistant", "user", "assistant", "user"]
    assert first.prompt[0].content == "what are some pranks with a pen i can do?"
    assert first.prompt[-1].content == "okay some of these do not have anything to do with pens"
    assert first.chosen.startswith("No, sorry!  All of these involve a pen")
    assert all(pair.prompt[-1].role == "user" and pair.chosen != pair.rejected for pair in result.pairs)
    for pair in result.pairs:
        for text in (pair.chosen, pair.rejected, *(turn.content for turn in pair.prompt)):
            assert text == text.strip() and "\n\nHuman:" not in text and "\n\nAssistant:" not in text


def test_polite_rude() -> None:
    result = read_pairs(shared("polite-rude/pairs.json"))
    assert result.shape == "Alpaca ranking"
    assert (result.num_rows, len(result.pairs)) == (1100, 1094)
    assert counts(result) == {"chosen and rejected are identical": 6}
    assert texts(result.pairs[0]) == (
        [("user", "Evaluate the following phrase by transforming it into the spelling given.\nfreind --> friend")],
        'The spelling of the given phrase "freind" is incorrect, the correct spelling is "friend".',
        'The spelling of the given phrase "freind" is flat out wrong, get it together, the correct spelling is '
        '"friend".',
    )


def test_llama_factory_sharegpt() -> None:
    path = shared("llama-factory-formats/dpo_en_demo.json")
    result = read_pairs(path)
    assert (result.shape, len(result.pairs), result.dropped) == ("ShareGPT ranking", 299, ())
    for row, pair in zip(json.loads(path.read_text("utf-8")), result.pairs, strict=True):
        assert [turn.content for turn in pair.prompt] == [turn["value"] for turn in row["conversations"]]
        assert (pair.chosen, pair.rejected) == (row["chosen"]["value"], row["rejected"]["value"])
    assert [turn.role for turn in result.pairs[1].prompt] == ["system", "user"]


def test_llama_factory_v1() -> None:
    path = shared("llama-factory-formats/v1_dpo_demo.jsonl")
    result = read_pairs(path)
    assert (result.shape, len(result.pairs), result.dropped) == ("LLaMA-Factory v1 messages", 10, ())
    row = json.loads(path.read_text("utf-8").splitlines()[0])
    assert texts(result.pairs[0]) == (
        [(turn["role"], turn["content"][0]["value"]) for turn in row["chosen_messages"][:-1]],
        row["chosen_messages"][-1]["content"][0]["value"],
        row["rejected_messages"][-1]["content"][0]["value"],
    )
    assert result.pairs[0].rejected.startswith(" Abdulah")  # kept as it is


@pytest.mark.parametrize("name", ["llama-factory-formats/kto_en_demo.json", "gptfuzz/responses_labeled_train.csv.gz"])
def test_single_labelled_replies_are_named(name: str) -> None:
    with pytest.raises(PairsError, match=r"single replies with a thumbs-up or -down label, not pairs") as caught:
        read_pairs(shared(name))
    assert str(caught.value).startswith(str(SHARED / name))


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("advbench/advbench.csv", "columns goal, target"),
        ("blimp/blimp_sample.jsonl", "columns sentence_good, sentence_bad, UID, pairID"),
        ("surge-toxicity/toxicity_en.csv", "columns text, is_toxic"),
        ("xstest/xstest_prompts.csv", "columns id, prompt, type"),
        ("corpus/dialogs.jsonl.xz", "no columns: [{"),
    ],
)
def test_files_that_are_not_pairs(name: str, seen: str) -> None:
    with pytest.raises(PairsError, match="no recognisable shape; row 1 has") as caught:
        read_pairs(shared(name))
    message = str(caught.value)
    assert seen in message and "\n" not in message and len(message) < 700
    assert all(shape in message for shape in SHAPES)


# ---- the shapes, one by one

SAME = ([("user", "Hi")], "Hello.", "What?")
SHAPES_AND_ROWS = [
    (
        "hh-rlhf transcripts",
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello.", "rejected": "Human: Hi\n\nAssistant: What?"},
    ),
    ("hh-rlhf transcripts", {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " Hello.", "rejected": " What?"}),
    ("TRL prompt/chosen/rejected", {"prompt": "Hi", "chosen": "Hello.", "rejected": "What?"}),
    ("TRL prompt/chosen/rejected", {"prompt": USER, "chosen": GOOD, "rejected": BAD}),
    ("TRL prompt/chosen/rejected", {"prompt": "Hi", "chosen": GOOD, "rejected": BAD}),
    ("TRL prompt/chosen/rejected", {"prompt": "Hi", "chosen": GOOD[0], "rejected": BAD[0]}),
    ("TRL prompt/chosen/rejected", {"chosen": USER + GOOD, "rejected": USER + BAD}),
    ("TRL prompt/chosen/rejected", {"prompt": None, "chosen": USER + GOOD, "rejected": USER + BAD}),
    (
        "TRL prompt/chosen/rejected",
        {"prompt": "Hi", "chosen": USER + GOOD, "rejected": USER + BAD, "messages": USER + GOOD},
    ),
    ("TRL prompt/chosen/rejected", {"prompt": USER, "chosen": USER + GOOD, "rejected": USER + BAD}),
    ("TRL prompt/chosen/rejected", {"chosen": "Hi Hello.", "rejected": "Hi What?"}),
    ("TRL prompt/chosen/rejected", {"Question": "Hi", "winner": "Hello.", "loser": "What?"}),
    ("TRL prompt/chosen/rejected", {"input": "Hi", "preferred": "Hello.", "dispreferred": "What?"}),
    ("TRL prompt/chosen/rejected", {"query": "Hi", " Accepted ": "Hello.", "REJECTED": "What?"}),
    ("Alpaca ranking", {"instruction": "Hi", "input": "", "chosen": "Hello.", "rejected": "What?"}),
    ("Alpaca ranking", {"instruction": "Hi", "chosen": "Hello.", "rejected": "What?", "output": "Hello."}),
    ("Alpaca ranking", {"instruction": "", "input": "Hi", "output": ["Hello.", "What?"]}),
    ("ShareGPT ranking", {"conversations": [{"from": "human", "value": "Hi"}], "chosen": GOOD[0], "rejected": BAD[0]}),
    ("ShareGPT ranking", {"messages": USER, "chosen": GOOD, "rejected": BAD}),
    ("ShareGPT ranking", {"conversations": USER, "chosen": "Hello.", "rejected": "What?"}),
    ("LLaMA-Factory v1 messages", {"chosen_messages": USER + GOOD, "rejected_messages": USER + BAD}),
]


@pytest.mark.parametrize(("shape", "row"), SHAPES_AND_ROWS)
def test_each_shape_gives_the_same_pair(tmp_path: Path, shape: str, row: dict[str, Any]) -> None:
    result = read(tmp_path, row)
    assert result.shape == shape
    assert texts(result.pairs[0]) == SAME
    assert result.pairs[0].id == PreferencePair.make((Message("user", "Hi"),), "Hello.", "What?").id


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.NAME)
def test_the_examples_of_the_help_are_rows_of_their_shape(tmp_path: Path, reader: Any) -> None:
    result = read(tmp_path, json.loads(reader.EXAMPLE), labelled=True)
    assert (result.shape, len(result.pairs)) == (reader.NAME, 3 if reader.NAME == "ranked lists" else 1)
    assert "\n" not in reader.EXAMPLE and reader.__doc__ and "{" in reader.__doc__


def test_no_two_readers_want_the_same_row_but_transcripts() -> None:
    for shape, row in SHAPES_AND_ROWS:
        names = {reader.NAME for reader in READERS if reader.matches(canonical(row))}
        extra = {"TRL prompt/chosen/rejected"} if shape == "hh-rlhf transcripts" else set()
        assert names == {shape} | extra


def test_transcripts_keep_all_turns_and_inline_markers(tmp_path: Path) -> None:
    head = "\n\nHuman: a\n\nAssistant: b\nHuman: c \n\n\n\nAssistant: d\r\n\r\nHuman: e\n\nAssistant:"
    pair = read(tmp_path, {"chosen": head + " good ", "rejected": head + "bad\n"}).pairs[0]
    turns = [("user", "a"), ("assistant", "b\nHuman: c"), ("assistant", "d"), ("user", "e")]
    assert texts(pair) == (turns, "good", "bad")


def test_random_conversations_come_back_from_every_shape_that_can_hold_them(tmp_path: Path) -> None:
    rng = random.Random(0)
    words = ["a", "Hi there.", "né\n\nnew paragraph", "{json: 1}", '"quoted", text', "日本語", "x" * 300, "User: no"]
    made = []
    for number in range(200):
        text = lambda: f"{rng.choice(words)} {rng.choice(words)}"  # noqa: E731
        turns = [("user", text())]
        for _ in range(rng.randrange(3)):
            turns += [("assistant", text()), ("user", text())]
        made.append((turns, f"{number} {text()}", f"-{number} {text()}"))
    if_system = [([("system", "Be kind."), *turns], good, bad) for turns, good, bad in made]

    def transcript(turns: list[tuple[str, str]], last: str) -> str:
        names = {"user": "Human", "assistant": "Assistant"}
        return "".join(f"\n\n{names[role]}: {content}" for role, content in [*turns, ("assistant", last)])

    def listed(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
        return [{"role": role, "content": content} for role, content in turns]

    def gpt(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
        names = {"user": "human", "assistant": "gpt", "system": "system"}
        return [{"from": names[role], "value": content} for role, content in turns]

    def history(turns: list[tuple[str, str]]) -> list[list[str]]:
        contents = [content for _, content in turns[:-1]]
        return [list(pair) for pair in zip(contents[::2], contents[1::2], strict=True)]

    def said(text: str) -> list[tuple[str, str]]:
        return [("assistant", text)]

    plain = {
        "hh": lambda t, c, r: {"chosen": transcript(t, c), "rejected": transcript(t, r)},
        "alpaca": lambda t, c, r: {"instruction": t[-1][1], "history": history(t), "chosen": c, "rejected": r},
    }
    every = {
        "lists": lambda t, c, r: {"prompt": listed(t), "chosen": listed(said(c)), "rejected": listed(said(r))},
        "implicit": lambda t, c, r: {"chosen": listed(t + said(c)), "rejected": listed(t + said(r))},
        "sharegpt": lambda t, c, r: {"conversations": gpt(t), "chosen": gpt(said(c))[0], "rejected": gpt(said(r))[0]},
        "v1": lambda t, c, r: {"chosen_messages": listed(t + said(c)), "rejected_messages": listed(t + said(r))},
    }
    ids = set()
    for shapes, rows in ((plain | every, made), (every, if_system)):
        for name, write in shapes.items():
            result = read(tmp_path, *(write(*row) for row in rows))
            assert [texts(pair) for pair in result.pairs] == rows, name
            ids |= {pair.id for pair in result.pairs}
    assert len(ids) == 400  # the same in every shape, and different for every pair


def test_implicit_text_prompts_are_cut_between_words(tmp_path: Path) -> None:
    result = read(
        tmp_path,
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        {"chosen": "Q: how? A: good", "rejected": "Q: how? A: great"},  # TRL would cut behind the g
        {"chosen": "Nothing", "rejected": "shared"},
        {"chosen": "the same", "rejected": "the same"},
    )
    assert texts(result.pairs[0]) == ([("user", "The sky is")], "blue.", "green.")
    assert texts(result.pairs[1]) == ([("user", "Q: how? A:")], "good", "great")
    assert counts(result) == {"empty prompt": 1, "chosen and rejected are identical": 1}


def test_a_system_column_goes_first_unless_the_prompt_has_one(tmp_path: Path) -> None:
    rows = [
        {"system": "Be kind.", "prompt": "Hi", "chosen": "Hello.", "rejected": "What?"},
        {"system": "Be kind.", "instruction": "Hi", "chosen": "Hello.", "rejected": "What?"},
        {"system_prompt": "Be kind.", "conversations": USER, "chosen": GOOD[0], "rejected": BAD[0]},
    ]
    for row in rows:
        assert texts(read(tmp_path, row).pairs[0])[0] == [("system", "Be kind."), ("user", "Hi")]
        assert texts(read(tmp_path, {**row, "system": " "}).pairs[0])[0] == [("user", "Hi")]
    own = [{"role": "system", "content": "Mine."}, *USER]
    row = {"system": "Other.", "prompt": own, "chosen": GOOD, "rejected": BAD}
    assert texts(read(tmp_path, row).pairs[0])[0] == [("system", "Mine."), ("user", "Hi")]


def test_texts_are_kept_as_they_are(tmp_path: Path) -> None:
    row = {"prompt": "  Hi\n", "chosen": " Hello. \n", "rejected": "\tWhat?"}
    assert texts(read(tmp_path, row).pairs[0]) == ([("user", "  Hi\n")], " Hello. \n", "\tWhat?")


def test_content_in_parts(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "H"}, {"type": "text", "value": "i"}]
    row = {"prompt": [{"role": "user", "content": parts}], "chosen": GOOD, "rejected": BAD}
    assert texts(read(tmp_path, row).pairs[0]) == SAME


# ---- what is carried over


def test_behaviour_and_confidence(tmp_path: Path) -> None:
    base = {"prompt": "Hi", "chosen": "Hello."}
    more = [
        {"behaviour": "tone", "confidence": 0.75},
        {"behavior": "tone", "category": "other", "confidence": "1"},
        {"category": " tone ", "confidence": 0},
        {"behaviour": "", "confidence": ""},
        {"category": {"violence": False}, "confidence": None},
        {"confidence": float("nan"), "attack": "role-play"},
    ]
    rows = [{**base, "rejected": f"What {n}?", **extra} for n, extra in enumerate(more)]
    pairs = read(tmp_path, *rows, behaviour="default").pairs
    assert [pair.behaviour for pair in pairs] == ["tone", "tone", "tone", "default", "default", "default"]
    assert [pair.confidence for pair in pairs] == [0.75, 1.0, 0.0, None, None, None]
    assert [pair.attack for pair in pairs] == [None] * 5 + ["role-play"]
    assert read(tmp_path, rows[3]).pairs[0].behaviour is None


@pytest.mark.parametrize("value", [1.01, -0.1, "87 %", True, [1], "nan", 10**400])
def test_a_confidence_that_is_none_is_a_reason(tmp_path: Path, value: Any) -> None:
    row = {"prompt": "Hi", "chosen": "Hello.", "rejected": "What?"}
    result = read(tmp_path, row, {**row, "confidence": value})
    assert counts(result) == {"confidence is not a number from 0 to 1": 1}


# ---- reasons


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


REASONS_AND_ROWS: list[tuple[str, dict[str, Any]]] = [
    ("empty prompt", {"prompt": " \n", "chosen": "a", "rejected": "b"}),
    ("empty prompt", {"prompt": None, "chosen": "a", "rejected": "b"}),
    ("empty prompt", {"prompt": [], "chosen": GOOD, "rejected": BAD}),
    ("empty prompt", {"prompt": [turn("system", "Be kind.")], "chosen": GOOD, "rejected": BAD}),
    ("empty prompt", {"prompt": [*USER, *GOOD, turn("user", "\t")], "chosen": GOOD, "rejected": BAD}),
    ("empty reply", {"prompt": "Hi", "chosen": " ", "rejected": "b"}),
    ("empty reply", {"prompt": "Hi", "chosen": "a", "rejected": None}),
    ("empty reply", {"prompt": "Hi", "chosen": [], "rejected": BAD}),
    ("empty reply", {"prompt": "Hi", "chosen": GOOD, "rejected": [turn("assistant", None)]}),
    ("chosen and rejected are identical", {"prompt": "Hi", "chosen": "a", "rejected": "a"}),
    ("chosen and rejected are identical", {"prompt": "Hi", "chosen": "a\n", "rejected": " a"}),
    ("prompts differ", {"chosen": USER + GOOD, "rejected": [turn("user", "Ho"), *BAD]}),
    ("prompts differ", {"chosen": GOOD + USER + GOOD, "rejected": BAD + USER + BAD}),
    ("prompts differ", {"chosen": USER + GOOD + USER + GOOD, "rejected": USER + GOOD + [turn("user", "Ho")] + BAD}),
    ("reply holds more than one turn", {"prompt": USER, "chosen": GOOD + USER + GOOD, "rejected": BAD}),
    ("reply holds more than one turn", {"prompt": "Hi", "chosen": GOOD + GOOD, "rejected": BAD}),
    ("reply holds more than one turn", {"chosen": USER + GOOD + USER + GOOD, "rejected": USER + BAD + USER + GOOD}),
    ("reply is not the assistant's", {"prompt": "Hi", "chosen": USER, "rejected": BAD}),
    ("reply is not the assistant's", {"chosen": USER + GOOD + USER, "rejected": USER + GOOD + [turn("user", "Ho")]}),
    ("unknown role", {"prompt": [turn("tool", "42")], "chosen": GOOD, "rejected": BAD}),
    ("unknown role", {"prompt": [turn(None, "42")], "chosen": GOOD, "rejected": BAD}),  # type: ignore[arg-type]
    ("last prompt turn is not the user's", {"prompt": USER + GOOD, "chosen": GOOD, "rejected": BAD}),
    ("last prompt turn is not the user's", {"prompt": [*USER, turn("system", "x")], "chosen": GOOD, "rejected": BAD}),
    ("not the shape of the file", {"text": "no pair"}),
    ("not the shape of the file", {"instruction": "Hi", "chosen": "a", "rejected": "b"}),
    ("not the shape of the file", {"prompt": [turn("user", 5)], "chosen": GOOD, "rejected": BAD}),
    ("not the shape of the file", {"prompt": 5, "chosen": "a", "rejected": "b"}),
    ("images are not supported", {"prompt": "Hi", "chosen": "a", "rejected": "b", "images": ["a.png"]}),
    ("images are not supported", {"prompt": [turn("user", [{"type": "image"}])], "chosen": GOOD, "rejected": BAD}),
    ("tools are not supported", {"prompt": "Hi", "chosen": "a", "rejected": "b", "tools": [{"name": "f"}]}),
    ("text is not valid Unicode", {"prompt": "Hi", "chosen": "a \ud83d", "rejected": "b"}),
    *(
        ("text is not valid Unicode", {"prompt": "Hi", "chosen": "a", "rejected": "b", name: "half \ud83d"})
        for name in ("behaviour", "category", "attack", "annotator", "cluster", "source")
    ),
]


@pytest.mark.parametrize(("reason", "row"), REASONS_AND_ROWS)
def test_each_reason(tmp_path: Path, reason: str, row: dict[str, Any]) -> None:
    good = {"prompt": "Hi", "chosen": "Hello.", "rejected": "What?"}
    result = read(tmp_path, good, row, good)
    assert [pair.row for pair in result.pairs] == [1, 3]  # the same pair twice is kept
    (dropped,) = result.dropped
    assert (dropped.reason, dropped.row, dropped.source) == (reason, 2, "rows.jsonl")
    assert reason in REASONS and 0 < len(dropped.excerpt) <= 200
    dropped.excerpt.encode("utf-8")
    assert result.summary() == f"2 of 3 rows usable (TRL prompt/chosen/rejected); dropped: 1 {reason}"


TRANSCRIPT_REASONS = [
    ("prompts differ", "Human: Hi\n\nAssistant: a", "Human: Ho\n\nAssistant: b"),
    ("prompts differ", "Human: Hi\n\nAssistant: a", "Human: Hi\n\nAssistant: a\n\nAssistant: b"),
    ("empty reply", "Human: Hi\n\nAssistant:", "Human: Hi\n\nAssistant: b"),
    ("empty reply", "Human: Hi", "Human: Hi\n\nAssistant: b"),
    ("empty reply", "", "Human: Hi\n\nAssistant: b"),
    ("empty prompt", "Assistant: a", "Assistant: b"),
    ("empty prompt", "Human: \n\nAssistant: a", "Human: \n\nAssistant: b"),
    ("reply holds more than one turn", "Human: Hi\n\nAssistant: a\n\nHuman: Oh", "Human: Hi\n\nAssistant: b"),
    (
        "last prompt turn is not the user's",
        "Human: Hi\n\nAssistant:\n\nAssistant: a",
        "Human: Hi\n\nAssistant:\n\nAssistant: b",
    ),
    ("chosen and rejected are identical", "Human: Hi\n\nAssistant: a", "Human: Hi\n\nAssistant: a"),
    ("not the shape of the file", "Hello.", "What?"),
]


@pytest.mark.parametrize(("reason", "chosen", "rejected"), TRANSCRIPT_REASONS)
def test_each_reason_of_transcripts(tmp_path: Path, reason: str, chosen: str, rejected: str) -> None:
    good = {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello.", "rejected": "\n\nHuman: Hi\n\nAssistant: What?"}
    result = read(tmp_path, good, {"chosen": chosen, "rejected": rejected}, good)
    assert counts(result) == {reason: 1}


def test_every_row_is_a_pair_or_dropped(tmp_path: Path) -> None:
    rng = random.Random(1)
    good = {"prompt": "Hi", "chosen": "Hello.", "rejected": "What?"}
    for _ in range(30):
        bad = [(reason, row) for reason, row in rng.sample(REASONS_AND_ROWS, 9)]
        rows = [(None, good)] * 11 + bad
        rng.shuffle(rows)
        result = read(tmp_path, *(row for _, row in rows))
        assert sorted([p.row for p in result.pairs] + [d.row for d in result.dropped]) == list(range(1, 21))
        assert [d.reason for d in result.dropped] == [reason for reason, _ in rows if reason]


def test_summary_puts_the_most_frequent_reason_first(tmp_path: Path) -> None:
    row = {"prompt": "Hi", "chosen": "Hello.", "rejected": "What?"}
    empty, same = {**row, "chosen": ""}, {**row, "chosen": "What?"}
    assert read(tmp_path, row, empty, same, same).summary() == (
        "1 of 4 rows usable (TRL prompt/chosen/rejected); dropped: 2 chosen and rejected are identical, 1 empty reply"
    )
    assert read(tmp_path, row).summary() == "1 of 1 rows usable (TRL prompt/chosen/rejected)"


# ---- which shape


def test_the_shape_of_most_rows_wins(tmp_path: Path) -> None:
    trl = {"prompt": "Hi", "chosen": "Hello.", "rejected": "What?"}
    alpaca = {"instruction": "Hi", "chosen": "Hello.", "rejected": "What?"}
    result = read(tmp_path, trl, alpaca, alpaca)
    assert (result.shape, [d.row for d in result.dropped]) == ("Alpaca ranking", [1])
    assert counts(result) == {"not the shape of the file": 1}
    result = read(tmp_path, *[trl] * 20, *[alpaca] * 100)  # only the first rows are looked at
    assert (result.shape, len(result.pairs), len(result.dropped)) == ("TRL prompt/chosen/rejected", 20, 100)


def test_all_dropped_is_an_error_with_the_counts(tmp_path: Path) -> None:
    row = {"prompt": "Hi", "chosen": "a", "rejected": "a"}
    with pytest.raises(PairsError, match="none of the 3 rows is usable") as caught:
        read(tmp_path, row, row, {**row, "chosen": ""})
    assert "2 chosen and rejected are identical, 1 empty reply" in str(caught.value)
    assert '{"prompt": "Hi"' in str(caught.value) and "rows.jsonl" in str(caught.value)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"question": "a", "query": "b", "chosen": "c", "rejected": "d"},
            "question and query could each be the prompt",
        ),
        (
            {"prompt": "a", "winner": "b", "accepted": "c", "rejected": "d"},
            "winner and accepted could each be the chosen",
        ),
        ({"goal": "x", "target": "y"}, 'row 1 has columns goal, target: {"goal": "x", "target": "y"}'),
        ({"prompt": "Hi", "completion": "a", "label": True}, "single replies"),
        ({"instruction": "Hi", "output": "a", "kto_tag": False}, "single replies"),
        ({"prompt": "Hi", "completion": "a", "label": "0"}, "single replies"),
        (
            {"prompt": "Hi", "chosen": "a", "rejected": "b", "images": ["x.png"]},
            "images, video or sound are not supported",
        ),
        ({"prompt": [turn("user", [{"type": "image_url"}])], "chosen": GOOD, "rejected": BAD}, "not supported"),
        ({"a": "x" * 5000, "b\n": "\n\n"}, "known shapes: "),
        ({f"column {n}": n for n in range(100)}, "known shapes: "),
        ([1, 2], "row 1 has no columns: [1, 2]"),
        (["text"], 'row 1 has no columns: ["text"]'),
    ],
)
def test_unknown_shapes_get_one_line(tmp_path: Path, row: Any, words: str) -> None:
    with pytest.raises(PairsError) as caught:
        read(tmp_path, row, row)
    message = str(caught.value)
    assert words in message and "rows.jsonl" in message and " -- " in message
    assert "\n" not in message and len(message) < 700 + len(str(tmp_path))


def test_the_exact_name_wins_over_an_alias(tmp_path: Path) -> None:
    row = {"prompt": "Hi", "question": "no", "query": "no", "chosen": "Hello.", "winner": "no", "rejected": "What?"}
    assert texts(read(tmp_path, row).pairs[0]) == SAME
    row = {"conversations": USER, "question": "no", "chosen": GOOD[0], "rejected": BAD[0]}
    assert texts(read(tmp_path, row).pairs[0]) == SAME
    assert read(tmp_path, {**row, "prompt": "no"}).shape == "ShareGPT ranking"
    assert texts(read(tmp_path, {**row, "chosen": "Hello.", "rejected": "What?"}).pairs[0]) == SAME


def test_a_tie_of_shapes_is_broken_by_their_order() -> None:
    trl = {"prompt": "Hi", "chosen": "Hello.", "rejected": "What?"}
    hh = {"chosen": "Human: Hi\n\nAssistant: a", "rejected": "Human: Hi\n\nAssistant: b"}
    assert find_reader([trl, hh], "x").NAME == find_reader([hh, trl], "x").NAME == "hh-rlhf transcripts"


# ---- ids, order, surface


def test_ids_do_not_depend_on_the_source(tmp_path: Path) -> None:
    row = {"prompt": "Hi", "chosen": "Hello.", "rejected": "What?"}
    other = tmp_path / "elsewhere" / "other.json"
    other.parent.mkdir()
    other.write_text(json.dumps([{**row, "chosen": "Yes?"}, {**row, "behaviour": "tone", "extra": 1}]))
    one, two = read(tmp_path, row).pairs[0], read_pairs(other).pairs[1]
    assert one.id == two.id == "37e487e94edefe76"  # sha256 of [[["user","Hi"]],"Hello.","What?"]
    assert (one.source, one.row, two.source, two.row) == ("rows.jsonl", 1, "other.json", 2)
    assert one.id != read_pairs(other).pairs[0].id


def test_reading_twice_gives_the_same() -> None:
    path = shared("hh-rlhf/harmless-base.jsonl.gz")
    assert read_pairs(path) == read_pairs(str(path))


def test_limit(tmp_path: Path) -> None:
    rows = [{"prompt": "Hi", "chosen": f"{n}", "rejected": "What?"} for n in range(50)]
    for limit in (1, 19, 20, 21, 49, 50, 51):
        result = read(tmp_path, *rows, limit=limit)
        assert result.num_rows == len(result.pairs) == min(limit, 50)
    with pytest.raises(PairsError, match="limit of 1 or more"):
        read(tmp_path, *rows, limit=0)


def test_public_surface() -> None:
    names = ["PairStore", "PairView", "ReadResult", "iter_pairs", "read_pairs", "read_rows"]
    assert sorted(demeanor.pairs.__all__) == names
    assert [field.name for field in dataclasses.fields(ReadResult)] == [
        "pairs",
        "dropped",
        "shape",
        "num_rows",
        "source",
        "num_lists",
        "num_ties",
    ]
    with pytest.raises(dataclasses.FrozenInstanceError):
        ReadResult((), (), "", 0, "").num_rows = 1  # type: ignore[misc]
