"""The checks of duplicates, conflicts and leakage: planted faults, clean sets, and what is in real sets."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demeanor.audit import Audit, Scope, audit_pairs
from demeanor.audit.conflicts import contradictions, fleiss_kappa
from demeanor.errors import InputError
from demeanor.pairs import PairStore, read_pairs
from demeanor.records import Finding
from tests.conftest import contract_of, shared

WORDS = [f"w{k}" for k in range(500)]
Row = dict[str, Any]


def text(rng: random.Random, least: int = 15) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(least, 40)))


def clean(num: int, seed: int = 0) -> list[Row]:
    rng = random.Random(seed)
    return [{"prompt": text(rng), "chosen": text(rng), "rejected": text(rng)} for _ in range(num)]


def altered(words: str, place: int) -> str:
    """One word is another, and other capitals and punctuation: a Jaccard index of .62 and more, at the end of .85."""
    parts = words.split()
    parts[place] = "another"
    return ", ".join(parts).upper()


def write(folder: Path, rows: Sequence[Row], name: str = "pairs.jsonl") -> str:
    file = folder / name
    file.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return str(file)


def audit(folder: Path, rows: Sequence[Row] | Path, check: str, **scope: Any) -> Audit:
    (folder / "store").mkdir(exist_ok=True)
    store = PairStore.collect([rows if isinstance(rows, Path) else write(folder, rows)], folder / "store")
    return audit_pairs(store, Scope(**scope), only=[check], workers=1)


def found(result: Audit, kind: str, group: str = "") -> Finding:
    return next(item for item in result.findings if (item.kind, item.group) == (kind, group))


def kinds(result: Audit) -> set[str]:
    return {finding.kind for finding in result.findings}


def flagged(result: Audit, kind: str) -> list[int]:
    (places,) = (places for (_, name), places in result.flagged.items() if name == kind)
    return places.tolist()


@pytest.mark.parametrize("check", ["duplicates", "conflicts", "leakage"])
def test_clean_pairs_raise_no_alarm(check: str, tmp_path: Path) -> None:
    exam = write(tmp_path, clean(300, seed=1), "exam.jsonl")
    assert audit(tmp_path, clean(1500), check, heldout=(exam,), benchmarks=(exam,)).findings == ()


def test_duplicates_of_every_kind_are_found(tmp_path: Path) -> None:
    rows = clean(600)
    same = [{**row, "prompt": f"  {row['prompt'].title()}\n"} for row in rows[:50]]
    near = [{key: altered(value, -1) for key, value in row.items()} for row in rows[100:150]]
    prompts = [{**row, "prompt": rows[200 + k]["prompt"]} for k, row in enumerate(clean(40, seed=4))]
    near_prompts = [{**row, "prompt": altered(rows[300 + k]["prompt"], 7)} for k, row in enumerate(clean(40, seed=5))]
    swapped = [{**row, "chosen": rows[400 + k]["rejected"]} for k, row in enumerate(clean(35, seed=6))]
    result = audit(tmp_path, [*rows, *same, *near, *prompts, *near_prompts, *swapped], "duplicates")
    assert flagged(result, "pairs_repeated") == list(range(600, 650))
    assert set(flagged(result, "prompts_repeated")) == {*range(600, 650), *range(700, 740)}
    assert flagged(result, "chosen_rejected_elsewhere") == list(range(780, 815))
    for kind, places in (
        ("pairs_nearly_repeated", range(650, 700)),
        ("prompts_nearly_repeated", [*range(650, 700), *range(740, 780)]),
    ):
        assert set(flagged(result, kind)) <= set(places)
        assert len(flagged(result, kind)) >= 0.9 * len(places)
    finding = found(result, "pairs_repeated")
    assert finding.severity == "warns" and finding.num_pairs == 50
    assert finding.estimate.value == pytest.approx(50 / 815) and finding.estimate.n == 815
    assert found(result, "prompts_repeated").severity == "informs"
    assert "90 prompts come more than once, at most 2 times" in found(result, "prompts_repeated").what


def test_pairs_of_one_long_prompt_are_not_near_unless_their_replies_are(tmp_path: Path) -> None:
    rng = random.Random(7)
    prompt = " ".join(rng.choices(WORDS, k=2000))
    rows = [{"prompt": prompt, "chosen": text(rng), "rejected": text(rng)} for _ in range(20)]
    rows.append({**rows[3], "prompt": prompt + " now"})
    rows.append({"prompt": prompt, "chosen": rows[5]["rejected"], "rejected": rows[5]["chosen"]})
    result = audit(tmp_path, rows, "duplicates")
    assert flagged(result, "pairs_nearly_repeated") == [20]


def test_a_ranking_is_no_reply_that_wins_and_loses_anywhere(tmp_path: Path) -> None:
    rows = clean(60)
    ranked = [
        {"prompt": row["prompt"], "chosen": row["rejected"], "rejected": "none of it at all"} for row in rows[:20]
    ]
    result = audit(tmp_path, rows + ranked, "duplicates")
    finding = found(result, "chosen_rejected_elsewhere")
    assert finding.severity == "informs" and finding.num_pairs == 20 and "20 pairs" in finding.what
    assert " 0 of them under another prompt" in finding.what
    assert audit(tmp_path, rows + ranked, "conflicts").findings == ()


def test_opposed_pairs_and_cycles_are_found(tmp_path: Path) -> None:
    rows = clean(400)
    opposed = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows[:8]]
    cycles = [
        {"prompt": row["prompt"].upper(), "chosen": win, "rejected": lose}
        for row in rows[50:54]
        for win, lose in ((row["rejected"], "a third reply"), ("a third reply", row["chosen"]))
    ]
    chains = [{"prompt": row["prompt"], "chosen": row["rejected"], "rejected": "the worst"} for row in rows[90:120]]
    result = audit(tmp_path, [*rows, *opposed, *cycles, *chains], "conflicts")
    assert kinds(result) == {"opposed", "cycles"}
    assert flagged(result, "opposed") == [*range(8), *range(400, 408)]
    assert flagged(result, "cycles") == [*range(50, 54), *range(408, 416)]
    assert {finding.severity for finding in result.findings} == {"warns"}
    worse = audit(tmp_path, [*rows[:50], *opposed], "conflicts")
    assert found(worse, "opposed").severity == "blocks" and worse.blocks
    assert found(worse, "opposed").estimate.value == pytest.approx(16 / 58)


def test_cycles_are_those_that_a_search_of_paths_finds() -> None:
    rng = np.random.default_rng(0)
    start, end = rng.integers(0, 60, (2, 90)).astype(np.uint64)
    start, end = start[start != end], end[start != end]
    edges = set(zip(start.tolist(), end.tolist(), strict=True))
    reach = {node: {b for a, b in edges if a == node} for node in range(60)}
    for _ in range(60):
        reach = {node: {*of, *(far for near in of for far in reach[near])} for node, of in reach.items()}
    opposed, cyclic = contradictions(start, end)
    assert cyclic.tolist() == [a in reach[b] for a, b in zip(start.tolist(), end.tolist(), strict=True)]
    assert opposed.tolist() == [(b, a) in edges for a, b in zip(start.tolist(), end.tolist(), strict=True)]
    assert 0 < opposed.sum() < cyclic.sum() < len(start)


def test_kappa_is_fleiss_of_the_table_in_both_orders() -> None:
    rng = np.random.default_rng(1)
    items, raters = 40, 5
    truth = rng.random((items, raters)) < 0.8  # who prefers the reply 2 k to 2 k + 1
    item, rater = (axis.ravel() for axis in np.indices((items, raters)))
    winners = (2 * item + ~truth.ravel()).astype(np.uint64)
    prompts, kappas, disputed = fleiss_kappa(
        item, winners, winners ^ np.uint64(1), rater.astype(np.uint64) + np.uint64(1)
    )
    counts = np.stack([truth.sum(1), raters - truth.sum(1)], axis=1)
    table = np.concatenate([counts, counts[:, ::-1]])  # Fleiss 1971, with as many judgements of each item
    observed = ((table**2).sum(1) - raters) / (raters * (raters - 1))
    expected = ((table.sum(0) / table.sum()) ** 2).sum()
    assert kappas.mean() == pytest.approx((observed.mean() - expected) / (1 - expected))
    assert len(prompts) == items and 0.2 < kappas.mean() < 0.6
    assert np.array_equal(disputed.reshape(items, raters)[:, 0], counts.min(1) > 0)


def test_annotators_disagreement_is_measured_where_they_are_named(tmp_path: Path) -> None:
    rng, rows = random.Random(2), []
    for row in clean(100):
        for worker in range(3):
            win, lose = ("chosen", "rejected") if rng.random() < 0.6 else ("rejected", "chosen")
            rows.append({"prompt": row["prompt"], "chosen": row[win], "rejected": row[lose], "worker_id": worker})
    result = audit(tmp_path, rows, "conflicts")
    finding = found(result, "annotators_disagree")
    assert finding.severity == "warns" and finding.estimate.n == 100
    low, value, high = finding.estimate.low, finding.estimate.value, finding.estimate.high
    assert low is not None and value is not None and high is not None
    assert low < 2 * (0.6**2 + 0.4**2) - 1 < high and low < value < high
    assert flagged(result, "annotators_disagree") == flagged(result, "opposed")
    agreed = [{**row, "rater": name} for row in clean(30) for name in "ab"]
    finding = found(audit(tmp_path, agreed, "conflicts"), "annotators_disagree")
    assert finding.severity == "informs" and finding.estimate.value == 1 and finding.num_pairs == 0
    assert audit(tmp_path, [{**row, "rater": "a"} for row in clean(30) * 2], "conflicts").findings == ()


def test_the_annotator_of_a_row_is_read_under_its_names(tmp_path: Path) -> None:
    names = ("annotator", "Annotator_ID", "worker_id", "rater", "labeler")
    for number, name in enumerate(names):
        file = write(tmp_path, [{**row, name: number} for row in clean(2)])
        assert [pair.annotator for pair in read_pairs(file).pairs] == [str(number)] * 2
    assert read_pairs(write(tmp_path, clean(1))).pairs[0].annotator is None


def leaky(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """(training, exam of 200): 20 prompts of the exam stand in the training, 20 nearly, 30 in passing."""
    rng, exam = random.Random(8), clean(200, seed=9)
    exact = [{**row, "prompt": exam[k]["prompt"].upper()} for k, row in enumerate(clean(20, seed=10))]
    near = [{**row, "prompt": altered(exam[20 + k]["prompt"], 7)} for k, row in enumerate(clean(20, seed=11))]
    passing = clean(30, seed=12)
    for k, row in enumerate(passing):
        words, field = exam[50 + k]["prompt"].split(), ("prompt", "chosen", "rejected")[k % 3]
        row[field] = f"{text(rng)} {' '.join(words[1:14])}, {row[field]}"
    for k, row in enumerate(passing[15:], start=15):  # prompts of 8 words, as a whole
        exam[50 + k]["prompt"] = " ".join(rng.choices(WORDS, k=8))
        row["chosen"] += f" -- {exam[50 + k]['prompt'].title()}!"
    return [*rows, *exact, *near, *passing], exam


@pytest.mark.parametrize("kind", ["heldout", "benchmark", "probes"])
def test_leaks_of_every_kind_are_found(kind: str, tmp_path: Path) -> None:
    rows, exam = leaky(clean(500))
    file = write(tmp_path, exam, "exam.jsonl")
    scope: dict[str, Any] = {"heldout": {"heldout": (file,)}, "benchmark": {"benchmarks": (file,)}}.get(kind) or {
        "contract": contract_of(behaviours={"tone": {"probes": file}})
    }
    result = audit(tmp_path, rows, "leakage", **scope)
    assert kinds(result) == {f"{kind}_exact", f"{kind}_near", f"{kind}_overlap"}
    assert flagged(result, f"{kind}_exact") == list(range(500, 520))
    assert set(flagged(result, f"{kind}_near")) <= set(range(520, 540))
    assert len(flagged(result, f"{kind}_near")) >= 17
    assert set(range(540, 570)) <= set(flagged(result, f"{kind}_overlap")) <= set(range(520, 570))
    finding = found(result, f"{kind}_exact", "exam.jsonl")
    assert finding.severity == "blocks" and finding.estimate.value == 20 / 200 and finding.estimate.n == 200
    assert found(result, f"{kind}_overlap", "exam.jsonl").severity == "warns"


def test_leaks_are_counted_for_each_file_and_found_by_several_processes(tmp_path: Path) -> None:
    rows, exam = leaky(clean(3000))
    one, two = write(tmp_path, exam[:10], "one.jsonl"), write(tmp_path, exam[5:100], "two.jsonl")
    (tmp_path / "store").mkdir()
    store = PairStore.collect([write(tmp_path, rows)], tmp_path / "store")
    alone, together = (
        audit_pairs(store, Scope(heldout=(one,), benchmarks=(two,)), only=["leakage"], workers=n) for n in (1, 2)
    )
    assert alone.to_json() == together.to_json()
    assert found(alone, "heldout_exact", "one.jsonl").estimate.n == 10
    assert found(alone, "heldout_exact", "one.jsonl").num_pairs == 10
    assert found(alone, "benchmark_exact", "two.jsonl").num_pairs == 15
    assert {finding.group for finding in alone.findings if finding.kind.endswith("overlap")} == {"two.jsonl"}


def test_a_leak_counts_in_every_file_that_holds_the_prompt(tmp_path: Path) -> None:
    rows, exam = leaky(clean(500))
    rows += [{**row, "prompt": rows[520 + k]["prompt"] + "!"} for k, row in enumerate(clean(20, seed=20))]
    one, two = (write(tmp_path, exam, name) for name in ("one.jsonl", "two.jsonl"))
    result = audit(tmp_path, rows, "leakage", heldout=(one,), benchmarks=(two,))
    for kind in ("exact", "near", "overlap"):
        assert flagged(result, f"heldout_{kind}") == flagged(result, f"benchmark_{kind}")
        assert found(result, f"heldout_{kind}", "one.jsonl").num_pairs == {"exact": 20, "near": 40}.get(kind, 30)


def test_what_many_prompts_of_an_exam_have_in_common_is_their_form(tmp_path: Path) -> None:
    form = "below is an instruction that describes a task write a reply that fits it and say nothing else:"
    rows = [{**row, "prompt": f"{form} {row['prompt']}"} for row in clean(200)]
    exam = [{"goal": f"{form} {row['prompt']}"} for row in clean(40, seed=5)]
    assert audit(tmp_path, rows, "leakage", benchmarks=(write(tmp_path, exam, "exam.jsonl"),)).findings == ()


def test_a_file_without_prompts_is_refused_in_any_process(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    store = PairStore.collect([write(tmp_path, clean(30))], tmp_path / "store")
    wrong = write(tmp_path, [{"number": 1}], "wrong.jsonl")
    for name, message in ((wrong, "holds no prompts.*prompt, goal"), (str(tmp_path / "none.csv"), "no such file")):
        for workers in (1, 2):
            with pytest.raises(InputError, match=message):
                audit_pairs(store, Scope(benchmarks=(name,)), only=["leakage"], workers=workers)


def test_polite_rude_has_25_repeated_prompts(tmp_path: Path) -> None:
    file = shared("data/polite-rude/pairs.json")
    duplicates = audit(tmp_path, file, "duplicates")
    repeated = found(duplicates, "prompts_repeated")
    assert repeated.num_pairs == 25 and repeated.estimate.n == 1094  # 6 of the 1,100 rows have equal replies
    assert "20 prompts come more than once, at most 4 times" in repeated.what
    assert kinds(duplicates) == {"prompts_repeated", "prompts_nearly_repeated"}
    assert audit(tmp_path, file, "conflicts").findings == ()


def test_hh_rlhf_holds_a_prompt_of_xstest(tmp_path: Path) -> None:
    file = shared("data/hh-rlhf/harmless-base.jsonl.gz")
    exams = tuple(str(shared(f"data/{name}")) for name in ("xstest/xstest_prompts.csv", "advbench/advbench.csv"))
    result = audit(tmp_path, file, "leakage", benchmarks=exams)
    exact, near = result.findings
    assert (exact.kind, exact.group, exact.num_pairs) == ("benchmark_exact", "xstest_prompts.csv", 1)
    assert (near.kind, near.group, near.num_pairs) == ("benchmark_near", "xstest_prompts.csv", 2)
    assert exact.estimate.n == near.estimate.n == 450 and exact.severity == near.severity == "warns"


def test_advbench_goals_among_the_pairs_are_found(tmp_path: Path) -> None:
    path = shared("data/advbench/advbench.csv")
    with path.open(encoding="utf-8", newline="") as file:
        goals = [row["goal"] for row in csv.DictReader(file)]
    rows = [{**row, "prompt": f"{goals[k]}."} for k, row in enumerate(clean(100))]
    result = audit(tmp_path, rows + clean(400, seed=2), "leakage", benchmarks=(str(path),))
    assert found(result, "benchmark_near", "advbench.csv").num_pairs == 100
    assert found(result, "benchmark_near", "advbench.csv").estimate.n == 520


def test_hh_rlhf_repeats_hardly_anything(tmp_path: Path) -> None:
    result = audit(tmp_path, shared("data/hh-rlhf/harmless-base.jsonl.gz"), "duplicates")
    counts = {finding.kind: (finding.severity, finding.num_pairs) for finding in result.findings}
    assert counts == {
        "prompts_repeated": ("informs", 2),
        "prompts_nearly_repeated": ("informs", 48),
        "chosen_rejected_elsewhere": ("informs", 26),
    }
