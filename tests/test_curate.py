"""The whole curation: what is dropped and why, nothing altered silently, no leakage, the same bytes every time."""

from __future__ import annotations

import json
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demeanor.curate import Settings, curate_pairs
from demeanor.curate.decisions import Decision
from demeanor.curate.mend import decided
from demeanor.curate.traits import traits_of
from demeanor.errors import InputError, PairsError, RunFolderError
from demeanor.pairs import PairStore, PairView, read_pairs
from demeanor.progress import Progress
from demeanor.records import PreferencePair
from tests.conftest import shared

HH = "data/hh-rlhf/harmless-base.jsonl.gz"
FILES = ("train.jsonl", "heldout.jsonl", "dropped.jsonl", "altered.jsonl", "curate.json")


def rows_to(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def words(rng: random.Random, count: int) -> str:
    return " ".join("".join(rng.choices("abcdefghij", k=6)) for _ in range(count))


def plain_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs that nothing is wrong with, as often longer as shorter."""
    rng, rows = random.Random(seed), []
    for number in range(count):
        one, other = words(rng, 12), words(rng, 8)
        chosen, rejected = (one, other) if number % 2 else (other, one)
        rows.append({"prompt": words(rng, 10), "chosen": chosen, "rejected": rejected, "behaviour": "tone"})
    return rows


def kept(folder: Path) -> list[PreferencePair]:
    sides = (folder / name for name in FILES[:2])
    return [pair for side in sides if side.stat().st_size for pair in read_pairs(side).pairs]


def shingles(text: str) -> set[tuple[str, ...]]:
    """Word 3-grams by plain sets, as the search defines them."""
    found = "".join(c if c.isalnum() else " " for c in text.casefold()).split()
    size = min(3, len(found))
    return {tuple(found[at : at + size]) for at in range(len(found) - size + 1)} if found else set()


def leaks(train: list[str], heldout: list[str], threshold: float = 0.5) -> int:
    """Held-out texts with a near-duplicate on the other side: each is compared with each that shares a shingle."""
    places: dict[tuple[str, ...], list[int]] = {}
    sets = [shingles(text) for text in train]
    for place, own in enumerate(sets):
        for item in own:
            places.setdefault(item, []).append(place)
    found = 0
    for text in heldout:
        own = shingles(text)
        others = {place for item in own for place in places.get(item, ())}
        found += any(len(own & sets[place]) >= threshold * len(own | sets[place]) for place in others)
    return found


@pytest.fixture(scope="module")
def hh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hh") / "curated"
    curate_pairs([shared(HH)], out, Settings(heldout=0.2))
    return out


def test_hh_rlhf_length_tells_nothing_any_more_on_either_side(hh: Path) -> None:
    about = json.loads((hh / "curate.json").read_text())
    before, train, heldout = (about["lengths"][side][0] for side in ("before", "train", "heldout"))
    assert before["longer_wins"]["value"] == pytest.approx(0.4478, abs=1e-4)
    for side in (train, heldout):
        assert side["longer_wins"]["low"] < 0.5 < side["longer_wins"]["high"]
        assert side["longer_wins"]["value"] == 0.5
    assert train["pairs"] + heldout["pairs"] >= 0.8 * before["pairs"]
    assert 0.16 * before["pairs"] < heldout["pairs"] <= 0.2 * before["pairs"]


def test_in_every_source_and_behaviour(tmp_path: Path) -> None:
    """Two sources with opposite habits, which cancel out when mixed, and two behaviours across them."""
    pairs = read_pairs(shared(HH)).pairs
    for name, swap in (("harmless", False), ("helpful", True)):
        rows = []
        for number, pair in enumerate(pairs[:1000] if swap else pairs[1000:]):
            sides = (pair.rejected, pair.chosen) if swap else (pair.chosen, pair.rejected)
            prompt = [turn.to_json() for turn in pair.prompt]
            rows.append({"prompt": prompt, "chosen": sides[0], "rejected": sides[1], "category": "ab"[number % 2]})
        rows_to(tmp_path / f"{name}.jsonl", rows)
    sources = [tmp_path / "harmless.jsonl", tmp_path / "helpful.jsonl"]
    curated = curate_pairs(sources, tmp_path / "out")
    before = {row.group: row.longer_wins for row in curated.lengths["before"]}
    assert before["source harmless.jsonl"].high < 0.5 < before["source helpful.jsonl"].low
    for side in ("train", "heldout"):
        rows = {row.group: row for row in curated.lengths[side]}
        assert set(rows) == {"all pairs", "source harmless.jsonl", "source helpful.jsonl", "behaviour a", "behaviour b"}
        assert all(row.longer_wins.value == 0.5 for row in rows.values())
    assert sum(curated.kept.values()) >= 0.8 * 1992
    again = curate_pairs([tmp_path / "out" / "train.jsonl"], tmp_path / "again", Settings(heldout=0))
    groups = {row.group for row in again.lengths["before"]}  # a curated row still knows where it is from
    assert {"source harmless.jsonl", "source helpful.jsonl"} < groups and again.dropped == {}


def test_no_held_out_prompt_of_hh_rlhf_has_a_near_duplicate_among_the_trained_ones(hh: Path) -> None:
    train, heldout = (read_pairs(hh / name).pairs for name in FILES[:2])
    for text in (lambda p: "\n".join(turn.content for turn in p.prompt), lambda p: p.prompt[-1].content):
        assert leaks([text(pair) for pair in train], [text(pair) for pair in heldout]) == 0
    everything = [pair.prompt[-1].content for pair in (*train, *heldout)]
    half = len(everything) // 2
    assert leaks(everything[:half], everything[half:]) > 5  # a split by rows would leak


def test_planted_near_duplicates_stay_together(tmp_path: Path) -> None:
    """Chains of prompts: each is near the next one only."""
    rng, rows = random.Random(3), plain_rows(400)
    for chain in range(40):
        text = words(rng, 14).split()
        for step in range(6):
            text[2 * step] = f"new{chain}x{step}"
            rows.append({**rows[chain], "prompt": " ".join(text), "chosen": words(rng, 9), "rejected": words(rng, 9)})
    rng.shuffle(rows)
    curate_pairs([rows_to(tmp_path / "pairs.jsonl", rows)], tmp_path / "out", Settings(heldout=0.3, balance="none"))
    train, heldout = (read_pairs(tmp_path / "out" / name).pairs for name in FILES[:2])
    chains = [
        {word.split("x")[0] for pair in side for word in pair.prompt[-1].content.split() if word.startswith("new")}
        for side in (train, heldout)
    ]
    assert not chains[0] & chains[1]
    assert len(chains[1]) > 5
    assert len(train) + len(heldout) == 640


def test_each_source_and_behaviour_is_held_out_in_its_share(tmp_path: Path) -> None:
    rows = plain_rows(600)
    for number, row in enumerate(rows):
        row["behaviour"] = "rare" if number % 10 == 0 else "tone"
    curated = curate_pairs([rows_to(tmp_path / "p.jsonl", rows)], tmp_path / "out", Settings(balance="none"))
    heldout = read_pairs(tmp_path / "out" / "heldout.jsonl").pairs
    assert curated.kept == {"train": 540, "heldout": 60}
    assert sum(pair.behaviour == "rare" for pair in heldout) == 6


def test_a_cluster_larger_than_the_held_out_share_is_trained_on(tmp_path: Path) -> None:
    rng, prompt = random.Random(1), words(random.Random(0), 12)
    giant = [{"prompt": f"{prompt} {n}", "chosen": words(rng, 9), "rejected": words(rng, 9)} for n in range(60)]
    rows = [{**row, "behaviour": None} for row in plain_rows(140)] + giant
    random.Random(5).shuffle(rows)
    for seed in range(5):
        settings = Settings(balance="none", seed=seed)
        curated = curate_pairs([rows_to(tmp_path / "p.jsonl", rows)], tmp_path / f"out{seed}", settings)
        heldout = read_pairs(tmp_path / f"out{seed}" / "heldout.jsonl").pairs
        assert curated.clusters["pairs of the largest"] == 60
        assert len(heldout) == 20
        assert not any(pair.prompt[-1].content.startswith(prompt) for pair in heldout)
    with pytest.raises(PairsError, match=r"largest cluster of similar prompts has 60 of 60.*--heldout 0"):
        curate_pairs([rows_to(tmp_path / "p.jsonl", giant)], tmp_path / "none")
    assert not (tmp_path / "none").exists()
    curate_pairs([tmp_path / "p.jsonl"], tmp_path / "all", Settings(heldout=0, balance="none"))
    assert len(kept(tmp_path / "all")) == 60


def test_the_same_input_and_seed_give_the_same_bytes_with_any_number_of_processes(tmp_path: Path) -> None:
    rows = plain_rows(700)
    rows += [{**row, "chosen": f"{row['chosen']} Write to ann{n}@example.com."} for n, row in enumerate(rows[:90])]
    rows += rows[100:140]
    file = rows_to(tmp_path / "pairs.jsonl", rows)
    for name, workers, seed in (("a", 1, 0), ("b", 2, 0), ("c", 1, 7)):
        curate_pairs([file], tmp_path / name, Settings(seed=seed), workers=workers)
    contents = [[(tmp_path / name / file).read_bytes() for file in FILES] for name in "abc"]
    assert contents[0] == contents[1]
    assert contents[0][0] != contents[2][0] and contents[0][1] != contents[2][1]
    curate_pairs([file], tmp_path / "a", Settings(seed=7))  # replaces what was there
    assert [(tmp_path / "a" / file).read_bytes() for file in FILES] == contents[2]


def test_every_row_is_accounted_for_and_what_is_kept_reads_back(tmp_path: Path) -> None:
    rows = [{**row, "attack": "roleplay", "confidence": 0.75} for row in plain_rows(80)]
    rows += [rows[3], {**rows[5], "prompt": f" {rows[5]['prompt'].upper()}"}]  # the same pair again
    long = words(random.Random(9), 60)
    rows += [{**rows[7], "chosen": f"{long} end"}, {**rows[7], "chosen": f"{long} stop"}]  # nearly so
    rows += [{"prompt": "Hi", "chosen": "", "rejected": "b"}, {"prompt": "Hi", "chosen": "c", "rejected": "c "}]
    settings = Settings(balance="none")
    curated = curate_pairs([rows_to(tmp_path / "p.jsonl", rows)], tmp_path / "out", settings)
    dropped = lines(tmp_path / "out" / "dropped.jsonl")
    told = {row["row"]: (row["source"], row["reason"], row["detail"]) for row in dropped}
    assert told == {
        81: ("p.jsonl", "exact duplicate", "of row 4 of p.jsonl"),
        82: ("p.jsonl", "exact duplicate", "of row 6 of p.jsonl"),
        84: ("p.jsonl", "near-duplicate", "of row 83 of p.jsonl"),
        85: ("p.jsonl", "empty reply", ""),
        86: ("p.jsonl", "chosen and rejected are identical", ""),
    }
    raw = dict(enumerate(rows, start=1))
    written = [row for name in FILES[:2] for row in lines(tmp_path / "out" / name)]
    assert {row["row"] for row in written} | set(told) == set(raw)
    assert len(written) + len(told) == len(raw) == 86
    assert all(row["chosen"] == raw[row["row"]]["chosen"] for row in written)
    again = kept(tmp_path / "out")
    assert [pair.id for pair in again] == [row["id"] for row in written]
    assert {(pair.behaviour, pair.attack, pair.confidence) for pair in again} == {("tone", "roleplay", 0.75)}
    assert curated.steps == {
        "read": 84, "review and private data": 84, "conflicts": 84, "duplicates": 81, "length balance": 81,
    }  # fmt: skip
    assert (tmp_path / "out" / "altered.jsonl").read_text() == ""


def private_rows() -> list[dict[str, Any]]:
    rows = plain_rows(60)
    rows[2]["chosen"] += " Mail ann@example.com or bob.b@example.org now."
    rows[4]["prompt"] += " My card is 4111 1111 1111 1111, thanks"
    rows[5]["rejected"] = "See https://example.com/help for more"
    rows[6] |= {"chosen": "Ask ann@example.com", "rejected": "Ask bob@example.com"}  # the same, once redacted
    return rows


def test_redaction_is_told_span_by_span(tmp_path: Path) -> None:
    rows = private_rows()
    settings = Settings(balance="none", heldout=0.1)
    curated = curate_pairs([rows_to(tmp_path / "p.jsonl", rows)], tmp_path / "out", settings)
    written = {row["row"]: row for name in FILES[:2] for row in lines(tmp_path / "out" / name)}
    assert written[3]["chosen"].endswith(" Mail [EMAIL] or [EMAIL] now.")
    assert written[5]["prompt"][0]["content"].endswith(" My card is [CARD], thanks")
    assert written[6]["rejected"] == rows[5]["rejected"]  # links stay, unless they are asked for
    assert 7 not in written
    altered = {row["row"]: row for row in lines(tmp_path / "out" / "altered.jsonl")}
    assert set(altered) == {3, 5} and curated.altered == {"redacted": 2}
    for number, row in altered.items():
        now, before = written[number], rows[number - 1]
        assert row["id_now"] == now["id"] != row["id"]
        (step,) = row["steps"]
        for change in step["changes"]:
            field = change["field"]
            old = before["prompt"] if field == "prompt.0" else before[field]
            new = now["prompt"][0]["content"] if field == "prompt.0" else now[field]
            assert new[slice(*change["after"])] == f"[{change['kind'].upper()}]"
            assert old[slice(*change["before"])] in ("ann@example.com", "bob.b@example.org", "4111 1111 1111 1111")
    everything = "".join((tmp_path / "out" / name).read_text() for name in FILES)
    assert "ann@" not in everything and "4111" not in everything
    assert {row["row"]: row["reason"] for row in lines(tmp_path / "out" / "dropped.jsonl")} == {
        7: "chosen and rejected are identical"
    }


def test_private_data_can_be_dropped_or_kept(tmp_path: Path) -> None:
    file = rows_to(tmp_path / "p.jsonl", private_rows())
    curate_pairs([file], tmp_path / "drop", Settings(balance="none", private="drop", kinds=("card", "link")))
    dropped = lines(tmp_path / "drop" / "dropped.jsonl")
    assert {row["row"]: row["reason"] for row in dropped} == {5: "private data", 6: "private data"}
    assert "4111" not in (tmp_path / "drop" / "dropped.jsonl").read_text()
    curate_pairs([file], tmp_path / "keep", Settings(balance="none", private="keep"))
    assert (tmp_path / "keep" / "dropped.jsonl").read_text() == (tmp_path / "keep" / "altered.jsonl").read_text() == ""
    assert any("ann@example.com" in pair.chosen for pair in kept(tmp_path / "keep"))


def test_conflicts_the_better_supported_side_stays(tmp_path: Path) -> None:
    rows = plain_rows(60)

    def labelled(prompt: str, *preferences: tuple[str, str] | tuple[str, str, float]) -> None:
        for better, worse, *sure in preferences:
            row = {"prompt": prompt, "chosen": better, "rejected": worse, "behaviour": "tone"}
            rows.append({**row, "confidence": sure[0]} if sure else row)

    labelled("Majority?", ("a one", "b two"), ("b two", "a one"), ("a one", "b two"))
    labelled("A draw?", ("a one", "b two"), ("b  two", "a one"))
    labelled("Sure?", ("a one", "b two", 0.6), ("b two", "a one", 0.9))
    labelled("A cycle?", ("a", "b"), ("a", "b"), ("b", "c"), ("b", "c"), ("c", "a"))
    labelled("An even cycle?", ("a", "b"), ("b", "c"), ("c", "a"), ("d", "a"))
    file = rows_to(tmp_path / "p.jsonl", rows)
    curate_pairs([file], tmp_path / "out", Settings(balance="none", heldout=0))
    asked = [
        (p.prompt[-1].content, p.chosen, p.rejected) for p in kept(tmp_path / "out") if "?" in p.prompt[-1].content
    ]
    assert asked == [
        ("Majority?", "a one", "b two"),
        ("Sure?", "b two", "a one"),
        ("A cycle?", "a", "b"),
        ("A cycle?", "b", "c"),
        ("An even cycle?", "d", "a"),
    ]
    conflicts = [row for row in lines(tmp_path / "out" / "dropped.jsonl") if row["reason"] == "conflict"]
    assert [row["detail"] for row in conflicts[:4]] == [
        "support 1 against 2", "support 1 against 1", "support 1 against 1", "support 0.6 against 0.9",
    ]  # fmt: skip
    assert len(conflicts) == 8
    curate_pairs([file], tmp_path / "drop", Settings(balance="none", heldout=0, conflicts="drop"))
    asked = [pair.prompt[-1].content for pair in kept(tmp_path / "drop") if "?" in pair.prompt[-1].content]
    assert asked == ["An even cycle?"]


@pytest.mark.parametrize("seed", range(20))
def test_no_cycle_is_left_in_any_graph_of_preferences_in_any_order(seed: int) -> None:
    from demeanor.curate.conflicts import weakest

    rng = np.random.default_rng(seed)
    edges = {(int(a), int(b)): float(rng.integers(1, 4)) for a, b in rng.integers(0, 6, (18, 2)) if a != b}
    dropped = weakest(edges)
    left = [edge for edge in edges if edge not in dropped]
    nodes = {node for edge in left for node in edge}
    while nodes:  # Kahn: a graph without cycles has a node that nothing beats
        free = nodes - {worse for better, worse in left if better in nodes}
        assert free
        nodes -= free
    shuffled = dict(rng.permutation(np.array(list(edges.items()), dtype=object)).tolist())
    assert set(weakest(shuffled)) == set(dropped)


def test_of_a_long_cycle_each_least_edge_goes_in_few_looks_at_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule is applied as it is written down, one round after another; here a round drops one edge of 600."""
    from demeanor.curate import conflicts

    rng, looks, connected = np.random.default_rng(0), [], conflicts._connected
    for number, size in ((40, 8), (600, 601)):
        edges = {(2**63 + a, 2**63 + (a + 1) % size): 1.0 + a for a in range(size)}
        for a, b in rng.integers(0, size, (number, 2)).tolist():
            if a != b and (2**63 + b, 2**63 + a) not in edges:
                edges[2**63 + a, 2**63 + b] = float(rng.random())
        left, expected = dict(edges), set()
        while cyclic := conflicts._on_cycles(left):
            labels = conflicts._connected(conflicts._ends(left))[:, 0]
            of = dict(zip(left, labels.tolist(), strict=True))
            for component in {of[edge] for edge in cyclic}:
                own = [edge for edge in cyclic if of[edge] == component]
                gone = {edge for edge in own if left[edge] == min(left[other] for other in own)}
                expected |= gone
                left = {edge: support for edge, support in left.items() if edge not in gone}
        looks.clear()
        with monkeypatch.context() as patch:
            patch.setattr(conflicts, "_connected", lambda *given: looks.append(len(given[0])) or connected(*given))
            assert set(conflicts.weakest(edges)) == expected
    assert len(looks) <= 12 and len(expected) > 300 and max(looks) <= len(edges)


def test_units_of_length(tmp_path: Path) -> None:
    """Few long words against many short ones: longer in characters, shorter in words."""
    rng = random.Random(0)
    few, many = "x" * 40, "a b c d e f"
    rows = [{"prompt": words(rng, 8), "chosen": f"{few} {n}", "rejected": f"{many} {n}"} for n in range(90)]
    file = rows_to(tmp_path / "p.jsonl", rows)
    (tmp_path / "store").mkdir()
    store = PairStore.collect([file], tmp_path / "store")
    assert (traits_of(store, "characters").difference == 40 - len(many)).all()
    assert (traits_of(store, "words").difference == 1 - 6).all()
    for unit in ("characters", "words"):
        with pytest.raises(PairsError, match=r"\(.*0 after length balance\) -- .* took them: --balance none"):
            curate_pairs([file], tmp_path / "out", Settings(balance=unit))
    with pytest.raises(InputError, match="--balance: tokens of which model"):
        Settings(balance="tokens")


def test_lengths_in_the_models_tokens(tmp_path: Path, llama: Path) -> None:
    from transformers import AutoTokenizer

    from demeanor.model import find_model

    store = PairStore.collect([rows_to(tmp_path / "p.jsonl", plain_rows(20))], tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(llama)
    expected = [
        len(tokenizer.encode(p.chosen, add_special_tokens=False))
        - len(tokenizer.encode(p.rejected, add_special_tokens=False))
        for p in store
    ]
    assert traits_of(store, "tokens", find_model(str(llama))).difference.tolist() == expected


def test_a_group_that_the_balance_takes_apart_is_named(tmp_path: Path) -> None:
    rows = plain_rows(200)
    for row in rows[:40]:
        row |= {"behaviour": "terse", "chosen": "No.", "rejected": f"No, {row['rejected']}"}
    curated = curate_pairs([rows_to(tmp_path / "p.jsonl", rows)], tmp_path / "out")
    assert curated.notes == ["behaviour terse: the length balance keeps 0 of 40 pairs"]


def test_what_cannot_be_done_is_refused_in_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    file = rows_to(tmp_path / "p.jsonl", plain_rows(30))
    with pytest.raises(InputError, match="--private: cannot be 'redacted'; did you mean redact"):
        Settings(private="redacted")
    with pytest.raises(InputError, match="--kind: no kind is called 'emial'"):
        Settings(kinds=("emial",))
    for name, value in (("near", 1.2), ("heldout", 1.0), ("heldout", -0.1)):
        with pytest.raises(InputError, match=f"--{name}: must lie between"):
            Settings(**{name: value})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(RunFolderError, match=r"holds thesis\.txt, which no curated set has"):
        curate_pairs([file], tmp_path / "mine")
    for out in (file, file / "below"):
        with pytest.raises(RunFolderError, match=r"cannot be written: .*is no folder -- give another --out"):
            curate_pairs([tmp_path / "absent.jsonl"], out)  # said before anything is read
    with pytest.raises(PairsError, match="no such file"):
        curate_pairs([tmp_path / "absent.jsonl"], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "p.jsonl"]
    curate_pairs([file], tmp_path / "out")
    there = {name: (tmp_path / "out" / name).read_bytes() for name in FILES}
    for source in (tmp_path / "out" / "train.jsonl", tmp_path / "out" / "..", tmp_path / "out"):
        with pytest.raises(RunFolderError, match=r"is read from --out, where .*train\.jsonl.* -- give another --out"):
            curate_pairs([file, source], tmp_path / "out", Settings(heldout=0))
    assert there == {name: (tmp_path / "out" / name).read_bytes() for name in FILES}
    before = (tmp_path / "out" / "train.jsonl").read_bytes()
    with pytest.raises(PairsError):
        curate_pairs([rows_to(tmp_path / "q.jsonl", plain_rows(1))], tmp_path / "out")
    assert (tmp_path / "out" / "train.jsonl").read_bytes() == before


def test_when_nothing_is_left_the_line_says_so(tmp_path: Path) -> None:
    rows = [{**row, "chosen": f"{row['chosen']} ann@example.com"} for row in plain_rows(30)]
    with pytest.raises(PairsError, match=r"\(0 after review and private data\) -- .* took them: --private keep"):
        curate_pairs([rows_to(tmp_path / "p.jsonl", rows)], tmp_path / "out", Settings(private="drop"))
    with pytest.raises(PairsError, match="the decisions drop all pairs"):
        store = PairStore.collect([tmp_path / "p.jsonl"], tmp_path)
        decided(store, {pair.id: Decision(pair.id, "drop") for pair in store}, Progress())


def test_when_none_is_left_to_hold_out_the_line_says_which_step_took_them(tmp_path: Path) -> None:
    file = rows_to(tmp_path / "p.jsonl", plain_rows(60))
    match = r"of the 1 that 0\.0001 of 60 pairs came to, the length balance leaves none -- give a larger --heldout"
    with pytest.raises(PairsError, match=match):
        curate_pairs([file], tmp_path / "out", Settings(heldout=0.0001))
    curated = curate_pairs([file], tmp_path / "out", Settings(heldout=0.0001, balance="none"))  # what it says helps
    assert curated.kept == {"train": 59, "heldout": 1}
    rows = [{**row, "prompt": f"{('what', 'how', 'why')[at % 3]} is it"} for at, row in enumerate(plain_rows(60))]
    file = rows_to(tmp_path / "p.jsonl", rows)
    with pytest.raises(PairsError, match=r"the smallest has 20 pairs, fits whole into 0\.1 of 60 .* larger --heldout"):
        curate_pairs([file], tmp_path / "out", Settings(heldout=0.1))
    assert curate_pairs([file], tmp_path / "out", Settings(heldout=0.4)).kept["heldout"] > 0


def test_a_shared_system_prompt_makes_no_cluster(tmp_path: Path) -> None:
    system = words(random.Random(2), 80)
    rows = [{**row, "system": system} for row in plain_rows(100)]
    curated = curate_pairs([rows_to(tmp_path / "p.jsonl", rows)], tmp_path / "out", Settings(balance="none"))
    assert curated.clusters == {"number": 100, "pairs of the largest": 1}
    assert curated.kept == {"train": 90, "heldout": 10}


def test_a_view_is_read_like_a_store(tmp_path: Path) -> None:
    store = PairStore.collect([rows_to(tmp_path / "p.jsonl", plain_rows(30))], tmp_path)
    other = PreferencePair.make(store[7].prompt, "other", "replies")
    view = PairView(store, np.array([2, 7, 8, 29]), {7: other, 9: other})
    expected = [store[2], other, store[8], store[29]]
    assert list(view) == view[:] == view.block(0, 4) == expected and len(view) == 4
    assert [view.block(*block) for block in view.blocks(3)] == [expected[:3], expected[3:]]
    assert view[-1] == store[29] and pickle.loads(pickle.dumps(view))[1] == other
    with pytest.raises(IndexError):
        view[4]


def test_the_command_shows_before_and_after_and_names_the_alternative(tmp_path: Path) -> None:
    rows = plain_rows(120)
    for row in rows[:30]:
        row["chosen"] = f"{row['chosen']} {words(random.Random(0), 20)} \x1b[2J"
        row["behaviour"] = "evil\x1b]0;x\x07"
    command = [sys.executable, "-m", "demeanor", "curate", str(rows_to(tmp_path / "p.jsonl", rows))]
    done = subprocess.run([*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, check=True)
    assert "\x1b" not in done.stdout and "behaviour evil⟨U+001B⟩" in done.stdout
    assert "120 rows → " in done.stdout and "training.objective: simpo or ipo" in done.stdout
    assert "before" in done.stdout and "50.0% [" in done.stdout
    told = subprocess.run(
        [*command, "--out", str(tmp_path / "out"), "--json"], capture_output=True, text=True, check=True
    )
    assert json.loads(told.stdout) == json.loads((tmp_path / "out" / "curate.json").read_text())
    assert str(tmp_path) not in told.stdout
    refused = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1


def test_pairs_of_one_long_prompt_are_not_all_compared_with_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have one form of 400 words and different questions and replies; every tenth repeats its neighbour."""
    from demeanor.audit import near
    from demeanor.curate import duplicates

    rng, form, compared = random.Random(5), words(random.Random(6), 400), []
    rows = [
        {"prompt": f"{form} {words(rng, 6)}", "chosen": words(rng, 20), "rejected": words(rng, 20)} for _ in range(500)
    ]
    for number in range(9, 500, 10):
        rows[number] = {**rows[number - 1], "prompt": rows[number]["prompt"]}
        rows[number]["chosen"] += " now"
    exact = near.exact_jaccard
    for module in (near, duplicates):
        monkeypatch.setattr(module, "exact_jaccard", lambda *given: compared.append(len(given[1])) or exact(*given))
    near_pairs = duplicates.near_pairs
    of_step: list[int] = []

    def counted(*given: Any) -> dict[int, int]:
        compared.clear()
        found = near_pairs(*given)
        of_step.append(sum(compared))
        return found

    monkeypatch.setattr("demeanor.curate.steps.near_pairs", counted)
    settings = Settings(balance="none", heldout=0)
    curated = curate_pairs([rows_to(tmp_path / "p.jsonl", rows)], tmp_path / "out", settings, workers=1)
    assert curated.dropped == {"near-duplicate": 50}
    assert [row["row"] for row in lines(tmp_path / "out" / "dropped.jsonl")] == list(range(10, 501, 10))
    assert 0 < of_step[0] < 40 * len(rows)  # all with all would be 125,000


def test_long_pairs_are_looked_at_and_written_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("demeanor.pairs.store.BLOCK_BYTES", 20_000)
    rng, rows = random.Random(8), plain_rows(30)
    rows += [{"prompt": words(rng, 9), "chosen": words(rng, 1500), "rejected": words(rng, 9)} for _ in range(10)]
    read, block = [], PairStore.block

    def watched(self: PairStore, start: int, stop: int) -> list[PreferencePair]:
        found = block(self, start, stop)
        read.append(sum(len(pair.chosen) for pair in found))
        return found

    monkeypatch.setattr(PairStore, "block", watched)
    settings = Settings(balance="none", heldout=0)
    curated = curate_pairs([rows_to(tmp_path / "p.jsonl", rows)], tmp_path / "out", settings, workers=1)
    assert curated.kept == {"train": 40, "heldout": 0} and len(kept(tmp_path / "out")) == 40
    assert 10_000 < max(read) < 20_000  # one long one, where all would be 105,000


def test_columns_that_no_pair_keeps_are_told_once(tmp_path: Path) -> None:
    rows = [{**row, "topic": "birds", "Category": "kept", "confidence": 0.9} for row in plain_rows(40)]
    rows = [{key: value for key, value in row.items() if key != "behaviour"} for row in rows]
    rows[3] |= {"meta": {"by": "ann"}, "note": None}
    rows[4]["id"] = "mine"
    rows.append({"prompt": "Hi", "chosen": "", "rejected": "no", "lost": "with its row"})
    file = rows_to(tmp_path / "p.jsonl", rows)
    command = [sys.executable, "-m", "demeanor", "curate", str(file), "--balance", "none", "--out"]
    done = subprocess.run([*command, str(tmp_path / "out")], capture_output=True, text=True, check=True)
    assert "columns that are not kept: id (1 rows), meta (1 rows), topic (40 rows)\n" in done.stdout
    about = json.loads((tmp_path / "out" / "curate.json").read_text())
    assert about["not_kept"] == {"id": 1, "meta": 1, "topic": 40}
    assert all(pair.behaviour == "kept" and pair.confidence == 0.9 for pair in kept(tmp_path / "out"))
    again = curate_pairs([tmp_path / "out" / "train.jsonl"], tmp_path / "again", Settings(heldout=0, balance="none"))
    assert again.not_kept == {}  # what curate itself writes is known
    many = [{**row, f"column {number}": 1} for number, row in enumerate(plain_rows(130))]
    curated = curate_pairs([rows_to(tmp_path / "q.jsonl", many)], tmp_path / "many", Settings(balance="none"))
    assert len(curated.not_kept) == 101 and curated.not_kept["other columns"] == 30  # names may not fill the memory


def test_of_a_crowd_of_near_duplicates_no_two_stay_and_each_dropped_one_has_its_like(tmp_path: Path) -> None:
    """150 pairs that differ from one by a few words: more than the search compares with each other at once."""
    rng, rows = random.Random(4), plain_rows(40)
    first = {"prompt": words(rng, 30), "chosen": words(rng, 60), "rejected": words(rng, 60)}
    for _ in range(150):
        row = dict(first)
        for side in row:
            text = row[side].split()
            for _ in range(rng.randrange(4)):
                text[rng.choice((0, -1))] = words(rng, 1)
            row[side] = " ".join(text)
        rows.append(row)
    rows.append({**first, "chosen": first["rejected"], "rejected": first["chosen"]})  # near none
    rows.append({**first, "chosen": words(rng, 60)})
    rng.shuffle(rows)
    settings = Settings(balance="none", conflicts="keep", heldout=0)
    curate_pairs([rows_to(tmp_path / "p.jsonl", rows)], tmp_path / "out", settings)
    stay = {row["row"] for row in lines(tmp_path / "out" / "train.jsonl")}

    def sets(number: int) -> tuple[set[Any], set[Any]]:
        row = rows[number - 1]
        marked = {(side, item) for side in ("chosen", "rejected") for item in shingles(row[side])}
        return shingles(row["prompt"]), marked

    def near(one: int, other: int) -> bool:
        return all(len(a & b) >= 0.8 * len(a | b) for a, b in zip(sets(one), sets(other), strict=True))

    assert not any(near(one, other) for one in stay for other in stay if one < other)
    dropped = lines(tmp_path / "out" / "dropped.jsonl")
    assert len(stay) + len(dropped) == 192 and 42 < len(stay) < 60
    for row in dropped:
        kept_row = int(row["detail"].split()[2])
        assert kept_row in stay and kept_row < row["row"]
        assert row["reason"] == "exact duplicate" or near(kept_row, row["row"])
