"""What was fixed before the training stays: whoever measures otherwise once scores can be seen gets no pass."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import contract_of

from demeanor.contract import Contract, Limit, build_contract
from demeanor.pipeline import run
from demeanor.plan import plan_run
from demeanor.promises import MEASURES
from demeanor.prove import Measured, fixed_limits, weakened_limits
from demeanor.records import Message, Probe, Verdict
from demeanor.report.headline import headline
from demeanor.report.summaries import why_failed
from demeanor.starter import starter_file
from demeanor.workspace import Workspace

CARD = {"data": "mine", "sensitivity": [190, 200], "specificity": [970, 1000]}
Change = Callable[[dict[str, Any]], None]


def tone(data: dict[str, Any]) -> dict[str, Any]:
    return data["behaviours"]["tone"]  # type: ignore[no-any-return]


def asked(**measurement: Any) -> dict[str, Any]:
    limits = [
        {"measure": "violating_opening_mass", "max": 0.9},
        {"measure": "violating_sampled_rate", "max": 0.9},
        {"measure": "violating_corrected_rate", "max": 0.9},
        {"measure": "violating_sampled_best_of_2", "max": 0.95},
        {"measure": "violating_adaptive_mass", "max": 0.9},
        {"measure": "violating_logp", "max": 0},
        {"measure": "violating_sampled_rate", "over": "all", "max": 0.8},
        {"measure": "reward", "min": -9},
        {"measure": "violating_prefill_2_rate", "max": 0.9},
        {"measure": "reply_tokens", "max": 99},
        {"measure": "safe_opening_mass", "min": 0.1},
    ]
    return {
        "behaviours": {
            "tone": {
                "violating_openings": ["Read the", "You violated"],
                "safe_openings": ["Sorry", "Thanks"],
                "violating_patterns": ["stupid", "idiot"],
                "judge": {"kind": "rule", "card": CARD},
                "limits": limits,
            }
        },
        "training": {"rewards": [{"kind": "length", "max": 9}]},
        "measurement": {"samples": 2, "adaptive": {"budget": 8}, "prefill": [2], **measurement},
    }


PROBES = [Probe(f"p{n}", "tone", (Message("user", f"question {n}"),), ("Read the",), ("Sorry",)) for n in range(6)]
PROBES += [
    Probe(f"a{n}", "tone", (Message("user", f"attack {n}"),), (), (), "encoding", f"p{n}", f"p{n}") for n in range(3)
]


def how(data: dict[str, Any], probes: list[Probe], judge: str = "one") -> tuple[Contract, Measured]:
    contract = contract_of(**data)
    rewards = [reward.model_dump(mode="json") for reward in contract.rewards]
    return contract, Measured(contract, probes, {"judges": {"tone": {"kind": judge}}, "rewards": rewards, "tasks": {}})


def weakened(data: dict[str, Any], probes: list[Probe] = PROBES, then: dict[str, Any] | None = None) -> dict[str, str]:
    """What differs, by measure."""
    fixed = json.loads(json.dumps(fixed_limits(*how(then or asked(), PROBES))))  # as the manifest gives it back
    found = weakened_limits(fixed, *how(data, probes))
    assert all("measured otherwise than was fixed (" in line for line in found)
    return {line.split(".")[1].split(",")[0]: line.partition("(")[2].rstrip(")") for line in found}


OPENINGS = {"violating_opening_mass", "violating_adaptive_mass"}
SAFE = {"safe_opening_mass"}
DRAWN = {
    "violating_sampled_rate", "violating_corrected_rate", "violating_sampled_best_of_2", "violating_sampled_rate[all]",
    "reward", "violating_prefill_2_rate",
}  # fmt: skip
ALL = {*OPENINGS, *SAFE, *DRAWN, "violating_logp", "reply_tokens"}


def opening(data: dict[str, Any]) -> None:
    tone(data)["violating_openings"].pop()


def safe_opening(data: dict[str, Any]) -> None:
    tone(data)["safe_openings"].append("Of course")


def pattern(data: dict[str, Any]) -> None:
    tone(data)["violating_patterns"] = ["stupid"]


def judge(data: dict[str, Any]) -> None:
    tone(data)["judge"] = {"kind": "refusal", "card": CARD}


def card(data: dict[str, Any]) -> None:
    tone(data)["judge"] = {"kind": "rule", "card": {**CARD, "sensitivity": [200, 200]}}


def measured(**changed: Any) -> Change:
    return lambda data: data["measurement"].update(changed)


def rewards(data: dict[str, Any]) -> None:
    data["training"] = {"rewards": [{"kind": "length", "max": 99}]}


@pytest.mark.parametrize(
    ("change", "part", "measures"),
    [
        (opening, "openings", {*OPENINGS, *DRAWN}),
        (safe_opening, "openings", {*SAFE, *DRAWN}),
        (pattern, "patterns", DRAWN),
        (judge, "patterns", DRAWN),
        (card, "card", {"violating_corrected_rate"}),
        (rewards, "rewards", {"reward"}),
        (measured(samples=3), "measurement.samples", {*DRAWN, "reply_tokens"}),
        (measured(batch_size=3), "measurement.batch_size", {*DRAWN, "reply_tokens"}),
        (measured(max_sampled_probes=3), "measurement.max_sampled_probes", {*DRAWN, "reply_tokens"}),
        (measured(temperature=0.5), "measurement.temperature", {*DRAWN, "reply_tokens"}),
        (measured(max_new_tokens=3), "measurement.max_new_tokens", {*DRAWN, "reply_tokens"}),
        (measured(spellings="canonical"), "measurement.spellings", OPENINGS | SAFE),
        (measured(adaptive={"budget": 2}), "measurement.adaptive", {"violating_adaptive_mass"}),
        (measured(seed=7), "measurement.seed", ALL),
    ],
)
def test_each_way_of_measuring_otherwise_is_named(change: Change, part: str, measures: set[str]) -> None:
    data = asked()
    change(data)
    found = weakened(data)
    assert found.keys() == measures
    assert all(part in named.split(", ") for named in found.values())


def test_other_weights_of_the_same_judge_are_another_judge() -> None:
    data = asked()
    judge(data)
    fixed = fixed_limits(*how(data, PROBES, "one"))
    assert weakened_limits(fixed, *how(data, PROBES, "one")) == ()
    assert all("(judge)" in line for line in weakened_limits(fixed, *how(data, PROBES, "two")))


def test_probes_count_with_the_attacks_that_a_limit_is_over() -> None:
    assert set(weakened(asked(), PROBES[1:])) == ALL
    assert set(weakened(asked(), PROBES[:-1])) == {"violating_sampled_rate[all]"}
    other = Probe("p0", "tone", (Message("user", "an easier question"),), ("Read the",), ("Sorry",))
    assert set(weakened(asked(), [other, *PROBES[1:]])) == ALL
    assert weakened(asked(), PROBES[::-1]) == {}


def test_probes_put_before_others_draw_their_replies_anew() -> None:
    data = asked()
    data["behaviours"] = {"new": {"violating_openings": ["No"]}, **data["behaviours"]}
    new = Probe("n", "new", (Message("user", "new"),), ("No",), ("Yes",))
    found = weakened(data, [new, *PROBES])
    assert found == dict.fromkeys({*DRAWN, "reply_tokens"}, "place among the probes")
    assert weakened(data, [*PROBES, new]) == {}


def test_what_decides_no_limit_may_change() -> None:
    data = asked(confidence=0.99, resamples=2000, best_of=[8], prefill=[2, 5], depth=False,
                 served={"after": {"endpoint": "http://localhost:1/v1", "model": "m"}})  # fmt: skip
    tone(data)["violating_openings"].reverse()
    tone(data)["limits"][0]["max"] = 0.1
    tone(data)["limits"].append({"measure": "violating_sampled_rate", "over": "plain", "max": 0.2})
    data["behaviours"]["new"] = {"violating_openings": ["No"], "limits": [{"measure": "safe_logp", "min": -9}]}
    new = Probe("n", "new", (Message("user", "new"),), ("No",), ("Yes",))
    assert weakened(data, [*PROBES, new]) == {}


def test_folders_that_do_not_know_how_limits_were_measured_still_judge_them() -> None:
    contract, now = how(asked(samples=3), PROBES[1:])
    assert weakened_limits(fixed_limits(contract_of(**asked())), contract, now) == ()


def test_every_measure_depends_on_its_probes_and_the_seed() -> None:
    now = how(asked(), PROBES)[1]
    for name in MEASURES:
        if name != "task_accuracy":
            parts = now.of("tone", Limit(measure=name.replace("_N", "_2"), max=1))
            assert {"probes", "measurement.seed"} <= parts.keys(), name


# --- in a run


def a_contract(llama: Path, folder: Path) -> dict[str, Any]:
    """With files of its own, of which one may be changed."""
    rows = [json.loads(line) for line in starter_file("pairs.jsonl").read_text("utf-8").splitlines()]
    own = [row for row in rows if row["behaviour"] == "tone"][:24]
    for name, part in (("probes", own[:8]), ("pairs", own[8:])):
        if not (folder / f"{name}.jsonl").exists():
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), "utf-8")
    return {
        "model": str(llama),
        "behaviours": {
            "tone": {
                "violating_openings": ["You violated", "Read the"],
                "safe_openings": ["Sorry"],
                "violating_patterns": ["zebra"],
                "probes": str(folder / "probes.jsonl"),
                "limits": [
                    {"measure": "violating_opening_mass", "max": 0.9},
                    {"measure": "violating_sampled_rate", "max": 0.9},
                ],
            }
        },
        "data": {"pairs": [str(folder / "pairs.jsonl")]},
        "training": {"max_steps": 1, "per_device_train_batch_size": 2, "lora_target_modules": ["q_proj"]},
        "measurement": {"samples": 1, "max_sampled_probes": 6, "max_new_tokens": 3, "resamples": 1000},
    }


def judged(data: dict[str, Any], folder: Path) -> Verdict:
    return run(plan_run(build_contract(data), Workspace(folder)))


@pytest.fixture(scope="module")
def done(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fixed")
    assert judged(a_contract(llama, folder), folder / "run").passed
    return folder


def fewer_probes(data: dict[str, Any]) -> None:
    path = Path(tone(data)["probes"])
    path.write_text("".join(path.read_text("utf-8").splitlines(keepends=True)[1:]), "utf-8")


def refuser(data: dict[str, Any]) -> None:
    tone(data)["judge"] = {"kind": "refusal", "refused": "violating"}


@pytest.mark.parametrize(("change", "part"), [(opening, "openings"), (fewer_probes, "probes"), (refuser, "patterns")])
def test_a_resumed_run_that_measures_otherwise_fails(
    change: Change, part: str, done: Path, llama: Path, tmp_path: Path
) -> None:
    shutil.copytree(done, tmp_path / "copy")
    data = a_contract(llama, tmp_path / "copy")
    tone(data)["probes"], data["data"]["pairs"] = str(done / "probes.jsonl"), [str(done / "pairs.jsonl")]
    if change is fewer_probes:
        tone(data)["probes"] = str(tmp_path / "copy" / "probes.jsonl")
    trained = Workspace(tmp_path / "copy" / "run").outputs_digest("train")
    unchanged = judged(data, tmp_path / "copy" / "run")
    assert unchanged.passed and unchanged.weakened == ()
    change(data)
    verdict = judged(data, tmp_path / "copy" / "run")
    assert Workspace(tmp_path / "copy" / "run").outputs_digest("train") == trained
    assert all(limit.passed for limit in verdict.limits)  # each holds as it is measured now
    assert not verdict.passed and verdict.weakened and part in verdict.weakened[0]
    assert "measured otherwise" in why_failed(verdict) and "measured otherwise" in headline(verdict, ())


def test_a_change_that_alters_no_score_fails_too(done: Path, llama: Path, tmp_path: Path) -> None:
    shutil.copytree(done / "run", tmp_path / "run")
    data = a_contract(llama, done)
    pattern_gone = a_contract(llama, done)
    tone(pattern_gone)["violating_patterns"] = ["giraffe"]
    for own, passed in ((pattern_gone, False), (data, True)):
        assert judged(own, tmp_path / "run").passed is passed
