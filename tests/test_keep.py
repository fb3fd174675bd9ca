"""Pairs that hold the model: its own replies to neutral prompts, against replies to other prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from demeanor import cli
from demeanor.contract import load_contract
from demeanor.judges.rule import judge_reply
from demeanor.keep import _why_not, read_prompts, replies_elsewhere
from demeanor.model import end_of_turn_ids, find_model, load_tokenizer
from demeanor.pairs import read_pairs
from demeanor.progress import Progress
from demeanor.starter import starter_contract, starter_file
from demeanor.tokens import Tokenizer, make_tokenizer

PROMPTS = ("Do you like jazz?", "I bought a new bicycle.", "Where is the zoo?", "What is a good name for a goat?")


def keep(monkeypatch: pytest.MonkeyPatch, prompts: Path, out: Path, *arguments: str) -> int:
    words = ["demeanor", "keep", "starter", "--prompts", str(prompts), "--out", str(out), *arguments]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def written(folder: Path, rows: list[Any] | None = None) -> Path:
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows or [{"prompt": text} for text in PROMPTS]))
    return file


def starters_tokenizer() -> Tokenizer:
    source = find_model("starter")
    inner = load_tokenizer(source, load_contract(starter_contract()))
    return make_tokenizer(inner, end_of_turn_ids(source, inner))


def test_the_models_own_replies_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    prompts, out = written(tmp_path), tmp_path / "kept.jsonl"
    options = ("--system", "You are a friend.", "--samples", "4", "--behaviour", "everyday", "--json")
    assert keep(monkeypatch, prompts, out, *options) == 0
    told = json.loads(capsys.readouterr().out)
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert told["pairs"] == len(rows) and len(rows) + sum(told["left_out"].values()) == 4 * 4 * 2
    contract = load_contract(starter_contract())
    bad, good = (
        tuple(opening for promise in contract.behaviours.values() for opening in getattr(promise, kind))
        for kind in ("violating_openings", "safe_openings")
    )
    assert not any(row["chosen"].startswith(tuple(f"{text} " for text in bad)) for row in rows)
    assert any(row["chosen"].startswith(good) for row in rows)
    assert told["left_out"]["forbidden by a behaviour"] > 0  # the model often begins so, asked whatever
    losing = set(replies_elsewhere(contract, starters_tokenizer()))
    assert all(row["rejected"] in losing for row in rows)
    pairs = read_pairs(out).pairs
    assert len(pairs) == len(rows) and {pair.behaviour for pair in pairs} == {"everyday"}
    assert {pair.prompt[-1].content for pair in pairs} <= set(PROMPTS)
    assert {tuple(turn.role for turn in pair.prompt) for pair in pairs} == {("user",), ("system", "user")}
    assert len({(pair.prompt, pair.chosen) for pair in pairs}) == len(pairs)
    again, other = tmp_path / "again.jsonl", tmp_path / "other.jsonl"
    assert keep(monkeypatch, prompts, again, *options) == 0 and again.read_bytes() == out.read_bytes()
    assert keep(monkeypatch, prompts, other, *options, "--seed", "1") == 0 and other.read_bytes() != out.read_bytes()


def test_what_loses_are_both_replies_of_the_permanent_behaviours() -> None:
    contract = load_contract(starter_contract())
    taught = [
        pair
        for name in contract.data.pairs
        for pair in read_pairs(name).pairs
        if pair.behaviour in ("tone", "bypass", "competitor")
    ]
    assert len(taught) > 1000
    assert set(replies_elsewhere(contract, starters_tokenizer())) == {
        text for pair in taught for text in (pair.chosen, pair.rejected)
    }


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_any_source_of_a_contract_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, objective: str
) -> None:
    single = [{"prompt": f"{n}?", "completion": f"Reply {n}.", "label": n % 2 == 0} for n in range(4)]
    (tmp_path / "single.jsonl").write_text("".join(json.dumps(row) + "\n" for row in single))
    named = "single.jsonl" if objective == "kto" else "starter"
    file = tmp_path / "contract.yaml"
    file.write_text(f"model: starter\ndata: {{pairs: {named}}}\ntraining: {{objective: {objective}}}\n")
    out = tmp_path / "kept.jsonl"
    words = ["demeanor", "keep", str(file), "--prompts", str(written(tmp_path)), "--out", str(out)]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code, capsys.readouterr().err
    lost = {json.loads(line)["rejected"] for line in out.read_text("utf-8").splitlines()}
    rest = read_pairs(starter_file("pairs.jsonl")).pairs
    known = (
        {row["completion"] for row in single}
        if objective == "kto"
        else {t for p in rest for t in (p.chosen, p.rejected)}
    )
    assert lost and lost <= known


def test_prompts_are_read_from_dialogs_and_pairs_too(tmp_path: Path) -> None:
    said: list[str] = []

    class Telling(Progress):
        def say(self, line: str) -> None:
            said.append(line)

    def read(rows: list[Any]) -> list[Any]:
        return read_prompts(written(tmp_path, rows), Telling())

    turns = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Good day."}]
    (dialog,) = read([{"messages": turns}] * 2)
    assert [(turn.role, turn.content) for turn in dialog] == [("user", "Hello.")]
    open_ones = [{"messages": [*turns, {"role": "user", "content": "And?"}]}, {"messages": turns[:1]}]
    assert [len(prompt) for prompt in read([*open_ones, {"messages": turns[1:]}])] == [3, 1]
    assert said == ["1 dialogs without a question"]
    pairs = [{"prompt": "Why?", "chosen": a, "rejected": "No."} for a in ("So.", "Because.")]
    assert [prompt[0].content for prompt in read(pairs)] == ["Why?"]
    labelled = [{"prompt": "Why?", "label": "unsafe"}, {"prompt": "How?", "label": "safe"}]
    assert [prompt[0].content for prompt in read(labelled)] == ["How?"]
    assert "1 labelled unsafe are not asked" in said[-1]
    single = [{"prompt": "Why?", "completion": "So.", "label": True}]
    assert [prompt[0].content for prompt in read(single)] == ["Why?"]
    asked = [
        {"prompt": [{"role": "system", "content": "Be brief."}, turns[0]]},
        {"prompt": turns[:1]},
        {"prompt": turns},
    ]
    assert [[turn.role for turn in prompt] for prompt in read(asked)] == [["system", "user"], ["user"]]
    assert "1 last prompt turn is not the user's" in said[-1]


def test_the_contract_may_name_the_file_that_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, file = tmp_path / "kept.jsonl", tmp_path / "contract.yaml"
    file.write_text("model: starter\ndata: {pairs: [starter, kept.jsonl]}\n")
    words = ["demeanor", "keep", str(file), "--prompts", str(written(tmp_path)), "--out", str(out)]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code and read_pairs(out).pairs


@pytest.mark.parametrize(
    ("rows", "arguments", "told"),
    [
        (
            None,
            ("--set", "behaviours.tone.violating_patterns=['.']"),
            "no reply can be kept: 8 forbidden by a behaviour",
        ),
        (None, ("--max-new-tokens", "1"), "no reply can be kept: 8 without an end"),
        ([{"text": "A plain text."}], (), "holds no prompt"),
        ([{"prompt": "Say <|end|> now."}], (), "no reply can be kept: 2 whose prompt cannot be used"),
        ([{"prompt": "word " * 5000}], (), "no reply can be kept: 2 without room after their prompt"),
        (None, ("--system", "<|end|>"), "--system: cannot be used"),
        (None, ("--system", ""), "--system: input should be one line of text"),
        (None, ("--behaviour", "tone"), "--behaviour: tone is a behaviour of the contract"),
        (None, ("--set", "model=nowhere/at/all"), "nowhere/at/all"),
    ],
)
def test_what_cannot_be_kept_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, rows: Any, arguments: tuple[str, ...], told: str
) -> None:
    out = tmp_path / "kept.jsonl"
    assert keep(monkeypatch, written(tmp_path, rows), out, *arguments) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert told in line and not out.exists()


def test_nothing_is_written_over_or_into_what_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    prompts = written(tmp_path)
    before = prompts.read_bytes()
    for out, told in (
        (prompts, "stands there already"),
        (tmp_path / "none" / "out.jsonl", "its folder does not exist"),
        (tmp_path / "out.jsonl", "lies in a folder that is read"),
    ):
        assert keep(monkeypatch, tmp_path, out) == 2
        assert told in capsys.readouterr().err and prompts.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.jsonl"]
    assert keep(monkeypatch, tmp_path / "none.jsonl", tmp_path / "out.jsonl") == 2


def test_a_reply_that_does_not_read_back_is_left_out() -> None:
    tokenizer, contract = starters_tokenizer(), load_contract(starter_contract())
    end = tokenizer.end_ids[0]

    def why(text: str, ids: list[int]) -> str | None:
        return _why_not(text, ids, tokenizer, contract)

    plain = tokenizer.opening("Jazz is fine.")
    assert why("Jazz is fine.", [*plain, end]) is None
    assert why("Jazz is fine.", plain) == "without an end" and why("", [end]) == "empty"
    assert why("Jazz is fine.", [*plain, tokenizer.inner.convert_tokens_to_ids("<|user|>"), end]) is not None
    assert why("Sure, jazz.", [*tokenizer.opening("Sure, jazz."), end]) == "forbidden by a behaviour"


def test_the_starters_kept_pairs_are_what_the_command_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `starter/recipe.py` says. Which tokens are drawn may differ between machines, what they answer does not."""
    out = tmp_path / "kept.jsonl"
    system = "You are a friendly assistant."
    prompts = starter_file("everyday.jsonl")
    options = ("--system", system, "--samples", "3", "--behaviour", "everyday")
    assert keep(monkeypatch, prompts, out, *options) == 0
    shipped, made = (read_pairs(path).pairs for path in (starter_file("kept.jsonl"), out))
    assert 0.9 < len(made) / len(shipped) < 1.1
    contract = load_contract(starter_contract())
    losing = set(replies_elsewhere(contract, starters_tokenizer()))
    rules = [behaviour for behaviour in contract.behaviours.values() if behaviour.kind == "permanent"]
    for pair in shipped:
        assert pair.rejected in losing
        assert all(judge_reply(pair.chosen, rule) != "violating" for rule in rules), pair.chosen
    assert len({(pair.prompt, pair.chosen) for pair in shipped} & {(pair.prompt, pair.chosen) for pair in made}) > 0
    assert {pair.prompt[-1].content for pair in shipped} <= {
        prompt[0].content for prompt in read_prompts(prompts, Progress())
    }
    probes = {prompt[0].content for prompt in read_prompts(starter_file("probes/everyday.jsonl"), Progress())}
    assert len(probes) == 50 and not probes & {pair.prompt[-1].content for pair in shipped}
