"""Finished runs side by side: what is refused, what the records and the page say, and which run is recommended."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import contract_of, make_model
from test_cli import Command, demeanor  # noqa: F401 -- a fixture
from test_journey import few_pairs, small_contract  # noqa: F401 -- a fixture
from test_report import HOSTILE, Tags, text_of

from demeanor.compare import check_shared, compare_runs, what_is_shared, write_comparison
from demeanor.compare.choose import choose
from demeanor.compare.page import page_of, view_of
from demeanor.compare.plot import LINE, Point, plot_points
from demeanor.compare.results import ALLOWED, Damage, Proof, RunResult, Usage, damages_of
from demeanor.contract import build_contract
from demeanor.errors import InputError, RunFolderError
from demeanor.pipeline import run
from demeanor.plan import plan_run
from demeanor.records import Comparison, Estimate, Verdict
from demeanor.workspace import Workspace


def with_collateral(model: Path, pairs: Path, **changes: Any) -> Any:
    """A contract that a small random model can keep: everything is measured, one limit on each side."""
    data = small_contract(model, pairs).model_dump(mode="json", exclude_unset=True)
    limit = {"measure": "safe_logp_per_token", "min_increase": -40}
    data["collateral"] = {"benign": {"violating_openings": ["I can't"], "limits": [limit]}}
    rows = [json.loads(line) for line in pairs.read_text("utf-8").splitlines()]
    probes = pairs.with_name("benign.jsonl")
    probes.write_text(
        "".join(
            json.dumps({"prompt": f"Is {n} fine?", "chosen": r["chosen"], "rejected": r["rejected"]}) + "\n"
            for n, r in enumerate(rows[:6])
        ),
        "utf-8",
    )
    data["collateral"]["benign"]["probes"] = str(probes)
    for key, value in changes.items():
        section, _, name = key.partition("_")
        data.setdefault(section, {})[name] = value
    return build_contract(data)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, few_pairs: Path) -> list[Path]:  # noqa: F811
    """Finished runs: dpo, the same with another beta, and one with other pairs and another measuring seed."""
    folder = tmp_path_factory.mktemp("compare")
    model = make_model("llama", folder / "model")
    changes: dict[str, dict[str, Any]] = {
        "dpo": {},
        "strong": {"training_beta": 0.5},
        "other": {"data_max_pairs": 25, "measurement_seed": 1},
    }
    for name, own in changes.items():
        run(plan_run(with_collateral(model, few_pairs, **own), Workspace(folder / name)))
    return [folder / name for name in changes]


# what is compared


def test_the_records_are_those_of_the_verdicts(folders: list[Path]) -> None:
    compared = compare_runs(folders[:2], price_per_hour=2.0)
    assert [one.name for one in compared.runs] == ["dpo", "strong"]
    assert [one.settings for one in compared.runs] == [{"beta": 0.1}, {"beta": 0.5}]
    for folder, result in zip(folders, compared.runs, strict=False):
        workspace = Workspace(folder)
        verdict = Verdict.from_json(workspace.read_json(workspace.verdict))
        own = {(c.behaviour, c.measure): c for c in verdict.comparisons}
        assert (result.passed, result.num_limits) == (verdict.passed, 2)
        (proof,) = result.proofs
        assert proof.behaviour == "tone" and proof.limit == 0.5
        assert proof.bad == own["tone", "violating_opening_mass"] and proof.good == own["tone", "safe_opening_mass"]
        bad, good = result.damages
        assert bad.comparison == own["benign", "violating_opening_mass"] and not bad.stated
        assert good.comparison == own["benign", "safe_logp_per_token"] and (good.allowed, good.stated) == (40.0, True)
        assert good.used.value == pytest.approx(-(good.comparison.difference.value or 0.0) / 40)
        training = workspace.read_json(workspace.training)
        usage = result.usage
        assert usage.training_seconds == training["seconds"] > 0
        assert usage.count == training["device"]["count"] >= 1 and usage.device == "cpu"
        assert usage.hours == pytest.approx((usage.training_seconds + usage.charged_seconds) * usage.count / 3600)
        assert compared.money(result) == pytest.approx(2.0 * (usage.hours or 0.0))
    spent = [one.usage.reference_seconds for one in compared.runs]
    assert {one.usage.charged_seconds for one in compared.runs} == {max(spent)}  # the second found it kept


def test_runs_that_do_not_share_what_they_must_are_refused_by_name(folders: list[Path]) -> None:
    with pytest.raises(InputError) as error:
        compare_runs([folders[0], folders[2]])
    assert str(error.value).startswith(str(folders[2]))
    assert "the training pairs" in str(error.value) and "measurement.seed (1, not 0)" in str(error.value)
    assert "the model" not in str(error.value).partition(" -- ")[0]
    with pytest.raises(InputError, match="stands twice"):
        compare_runs([folders[0], folders[0]])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"identity": {"model": "b", "template": "t", "demeanor": "1"}}, "the model"),
        ({"identity": {"model": "a", "template": "t", "demeanor": "2"}}, "the version of Demeanor"),
        ({"pairs": "other"}, "the training pairs"),
        ({"probes": "other"}, "the probes"),
        ({"system_prompt": "Be kind."}, "the system prompt and its transient values"),
        ({"behaviours": {"tone": {"violating_openings": ["Read"]}}}, "the openings and patterns"),
        ({"behaviours": {"tone": {"judge": "refusal"}}}, "the judges and their cards"),
        ({"behaviours": {"tone": {"limits": [{"measure": "safe_logp", "min": 0}]}}}, "the limits"),
        ({"measurement": {"temperature": 0.5}}, "measurement.temperature (0.5, not 1.0)"),
        ({"training": {"beta": 5, "seed": 3, "learning_rate": 0.1}}, ""),
    ],
)
def test_each_thing_that_must_be_shared_is_named_alone(changes: dict[str, Any], named: str) -> None:
    def shared(identity: dict[str, str] | None = None, pairs: str = "p", probes: str = "q", **sections: Any) -> Any:
        identity = identity or {"model": "a", "template": "t", "demeanor": "1"}
        return what_is_shared(contract_of(**{"behaviours": {"tone": {}}, **sections}), identity, pairs, probes)

    both = [shared(), shared(**changes)]
    if not named:
        check_shared(["one", "two"], both)
        return
    with pytest.raises(InputError) as error:
        check_shared(["one", "two"], both)
    assert str(error.value).partition(" -- ")[0] == f"two: cannot be compared with one: it differs in {named}"


def test_an_unfinished_run_is_named_with_how_to_finish_it(
    folders: list[Path],
    tmp_path: Path,
    demeanor: Command,  # noqa: F811
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folders[1], copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["stages"]["prove"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    code, _, err = demeanor("compare", folders[0], copy, "--out", tmp_path / "out")
    assert code == 2 and err.count("\n") == 1 and f"demeanor run --resume {copy}" in err
    assert not (tmp_path / "out").exists()
    (copy / "scores" / "after.jsonl").write_text("{}\n")
    with pytest.raises(RunFolderError, match=r"after\.jsonl: was altered"):
        compare_runs([folders[0], copy])


def test_the_command_writes_both_files_and_says_the_rule(
    folders: list[Path],
    tmp_path: Path,
    demeanor: Command,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, out, err = demeanor("compare", *folders[:2], "--out", tmp_path, "--price-per-hour", "0.5")
    passed = [Workspace(folder).read_json(folder / "verdict.json")["passed"] for folder in folders[:2]]
    assert code == (0 if any(passed) else 1)
    assert "strong" in out and "Rule: Of the runs that hold all their limits" in out and "compare.html" in err
    stored = json.loads((tmp_path / "compare.json").read_text())
    assert json.loads(demeanor("compare", *folders[:2], "--out", tmp_path, "--price-per-hour", "0.5", "--json")[1]) == (
        stored
    )
    assert stored["runs"][0]["usage"]["hours_of"] == "core hours" and stored["runs"][0]["money"] > 0
    assert demeanor("compare", folders[0])[0] == 2
    assert demeanor("compare", *folders[:2], "--price-per-hour", "-1")[0] == 2


# which is taken


def run_of(
    name: str,
    used: tuple[float, float, float] | None = (0.2, 0.1, 0.3),
    *,
    seconds: float | None = 100.0,
    bad: float = 0.003,
    passed: bool = True,
    peak: int | None = 2**29,
    behaviours: tuple[str, ...] = ("tone",),
) -> RunResult:
    """A run as `compare_runs` makes it."""

    def around(value: float, width: float = 0.2) -> Estimate:
        return Estimate(value, value * (1 - width), value * (1 + width), 70)

    proofs = tuple(
        Proof(
            behaviour,
            Comparison(behaviour, "violating_opening_mass", around(0.24), around(bad / (1 + 3 * place)), around(-0.2)),
            Comparison(behaviour, "safe_opening_mass", around(0.6), around(0.8), around(0.2)),
            0.01,
        )
        for place, behaviour in enumerate(behaviours)
    )
    damages: tuple[Damage, ...] = ()
    if used is not None:
        change = Estimate(*(0.05 * end for end in used), 70)
        moved = Comparison("benign", "violating_opening_mass", around(0.2), around(0.2 + 0.05 * used[0]), change)
        damages = (Damage(moved, 0.05, True, Estimate(*used, 70)),)
    usage = Usage(seconds, 10.0, 10.0, peak, "cpu", "Some processor", 2)
    return RunResult(
        name, f"runs/{name}", "dpo", {"beta": 0.1}, passed, 11 if passed else 7, 11, proofs, damages, usage
    )


def test_of_those_that_passed_the_least_damage_wins() -> None:
    worst_is_cheapest = [
        run_of("a", (0.9, 0.8, 1.0), seconds=1),
        run_of("b", (0.2, 0.1, 0.3), seconds=9),
        run_of("c", (-1.0, -1.1, -0.9), seconds=1, passed=False),
    ]
    choice = choose(worst_is_cheapest)
    assert choice.run == "b" and choice.equal == ("b",) and "least collateral damage" in choice.reason


def test_intervals_that_overlap_count_as_equal_and_the_cheaper_wins() -> None:
    runs = [
        run_of("a", (0.1, 0.0, 0.3), seconds=50),
        run_of("b", (0.4, 0.3, 0.5), seconds=20),
        run_of("c", (0.9, 0.8, 1)),
    ]
    choice = choose(runs)
    assert choice.run == "b" and choice.equal == ("a", "b") and "cost the least" in choice.reason
    apart = [runs[0], replace(runs[1], damages=run_of("b", (0.41, 0.31, 0.5)).damages)]
    assert choose(apart).run == "a"


def test_what_is_not_known_is_worse_than_anything() -> None:
    unknown = run_of("a")
    (damage,) = unknown.damages
    none = Estimate(None, None, None, 0, 70)
    unknown = replace(unknown, damages=(damage, replace(damage, used=none)))
    assert unknown.worst_damage is not None and unknown.worst_damage.used.value is None
    assert choose([unknown, run_of("b", (0.9, 0.8, 1.0))]).run == "b"
    assert choose([run_of("a", seconds=None), run_of("b")]).run == "b"


def test_none_passed_is_said() -> None:
    choice = choose([run_of("a", passed=False), run_of("b", passed=False)])
    assert choice.run is None and "none holds all its limits; a holds the most, 7 of 11" in choice.reason
    without = [replace(one, num_limits=0, num_passed=0) for one in (run_of("a", passed=False),)]
    assert "states no limit" in choose(without).reason


def test_without_collateral_the_cheapest_is_taken_and_it_is_said() -> None:
    choice = choose([run_of("a", None), run_of("b", None, seconds=5)])
    assert choice.run == "b" and "names nothing collateral" in choice.reason


@pytest.mark.parametrize(
    ("measure", "limit", "before", "difference", "used"),
    [
        ("violating_opening_mass", {"max_increase": 0.04}, 0.2, (0.01, -0.01, 0.03), (0.25, -0.25, 0.75)),
        ("violating_opening_mass", {"max": 0.3}, 0.2, (0.01, 0.0, 0.02), (0.1, 0.0, 0.2)),
        ("safe_logp_per_token", {"min_increase": -0.5}, -4.2, (-0.1, -0.2, 0.05), (0.2, -0.1, 0.4)),
        ("safe_logp_per_token", {"min_increase": 0.1}, -4.2, (-0.1, -0.2, 0.05), (0.2, -0.1, 0.4)),  # no room: ALLOWED
        ("safe_sampled_rate", {"min": 0.8}, 0.9, (-0.05, -0.1, 0.0), (0.5, 0.0, 1.0)),
    ],
)
def test_damage_is_a_share_of_what_the_limit_allows(
    measure: str,
    limit: dict[str, float],
    before: float,
    difference: tuple[float, float, float],
    used: tuple[float, float, float],
) -> None:
    contract = contract_of(collateral={"benign": {"limits": [{"measure": measure, **limit}]}})
    side = Estimate(before, None, None, 9)
    comparison = Comparison("benign", measure, side, side, Estimate(*difference, 9))
    verdict = Verdict(True, (), (comparison,), 0.95, 0)
    (damage,) = damages_of(verdict, contract)
    assert (damage.used.value, damage.used.low, damage.used.high) == pytest.approx(used)
    assert damage.stated == (limit != {"min_increase": 0.1}) and (damage.stated or damage.allowed == ALLOWED["nats"])
    (missing,) = damages_of(replace(verdict, comparisons=()), contract)
    assert missing.used.value is None


# the page


def compared_of(runs: list[RunResult]) -> Any:
    from demeanor.compare import RunsCompared

    choice = choose(runs)
    return RunsCompared("larkhold", "starter", 1359, 350, 0.95, tuple(runs), choice, ("A note.",), 0.04)


def test_the_page_says_it_all_and_loads_nothing(tmp_path: Path) -> None:
    names = ("tone", "bypass", "competitor")
    runs = [run_of("dpo", behaviours=names), run_of("orpo", (3.0, 2.0, 4.0), bad=0.04, passed=False, peak=None)]
    workspace = write_comparison(compared_of(runs), tmp_path)
    page = workspace.compared_page.read_text("utf-8")
    text = text_of(page)
    assert (
        text.index("✓ dpo")
        < text.index("dpo is recommended: it is the only run that holds all its limits")
        < text.index("Run by run")
    )
    assert "24.0 % → 0.30 %" in text and "[0.24, 0.36 %]" in text and "24.0 % → 0.07 %" in text
    assert "benign, bad reply: +1.0 points" in text.replace("\u00a0", " ") and "20 % of allowed" in text
    assert "not measured" in text and "0.5 GiB" in text and "A note." in text
    assert "0.061 core hours price 0.0024" in text and "The price is at 0.04 an hour of one." in text
    tags = Tags(page).seen
    assert {tag for tag, _ in tags}.isdisjoint({"script", "img", "link", "iframe", "a"})
    assert not re.search(r"https?://", page.replace("http://www.w3.org/2000/svg", ""))
    assert page == page_of(compared_of(runs))


def test_hostile_names_stay_text() -> None:
    runs = [run_of(f"{bad}{number}") for number, bad in enumerate(HOSTILE)]
    page = page_of(compared_of(runs))
    assert not {tag for tag, _ in Tags(page).seen} & {"script", "img", "a"}
    assert "<svg onload" not in page and "49" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.S).split("{{7*7}}")[0]


def texts_of(svg: str) -> list[tuple[str, float]]:
    """(text, y) of every text of a plot, `translate`s added up for texts that stand directly in a mark's group."""
    return [
        (text, float(y))
        for y, text in re.findall(r"<(?:\w+:)?text[^>]*translate\([^,]*,([-\d.]+)\)[^>]*>([^<]*)<", svg)
    ]


@pytest.mark.parametrize("num_runs", [2, 10])
def test_every_run_has_one_label_and_none_covers_another(num_runs: int) -> None:
    points = [  # all nearly in the same place
        Point(
            f"run-{n}", n > 0, n == 1, Estimate(0.2, 0.1, 0.3, 9), Estimate(0.003 + 1e-5 * n, 0.002, 0.005, 9), (1e-4,)
        )
        for n in range(num_runs)
    ]
    svg = str(plot_points(points, [0.01], 0.24, "about"))
    labels = {text: y for text, y in texts_of(svg) if "run-" in text}
    assert set(labels) == {f"{'✓' if n else '✗'} run-{n}" for n in range(num_runs)}
    places = sorted(labels.values())
    assert all(b - a >= LINE - 0.1 for a, b in pairwise(places))
    assert places[0] >= 0 and places[-1] <= 345
    told = dict(texts_of(svg))
    assert told["limit 1.0\u00a0%"] > told["before 24.0\u00a0%"] and "1 %" in told and "10 %" in told


def test_points_without_numbers_are_left_out_and_zero_has_a_place() -> None:
    known = Estimate(0.2, 0.1, 0.3, 9)
    none = Estimate(None, None, None, 0)
    assert (
        plot_points([Point("a", True, True, none, known), Point("b", True, False, known, none)], [], None, "") is None
    )
    svg = str(plot_points([Point("a", True, True, known, Estimate(0.0, 0.0, 0.05, 9))], [0.01], None, ""))
    assert "✓ a" in svg and "NaN" not in svg


def test_settings_are_told_as_they_would_be_typed_and_not_where_there_are_none(folders: list[Path]) -> None:
    compared = compare_runs(folders[:2])
    rewards = [{"kind": "model", "name": "", "weight": 1.0, "min": None, "path": "runs/rm"}]
    runs = tuple(
        replace(one, settings={"rewards": own, "max_steps": None, "beta": 0.1})
        for one, own in zip(compared.runs, ([], rewards), strict=True)
    )
    told = [row.settings for row in view_of(replace(compared, runs=runs)).rows]
    assert told == ["beta 0.1", "rewards kind model weight 1 path runs/rm, beta 0.1"]
