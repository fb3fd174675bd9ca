"""Tasks of lm-evaluation-harness as collateral. Those that need the harness skip where it is not installed."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import contract_of

from demeanor.contract import Contract
from demeanor.errors import ContractError, InputError, StageError
from demeanor.measure import measure_model
from demeanor.measure.tasks import check_tasks, task_scores, tasks_identity
from demeanor.model import end_of_turn_ids, find_model, load_model, load_tokenizer
from demeanor.pairs.probes import read_probes
from demeanor.prove import prove_contract
from demeanor.tokens import make_tokenizer

SENTENCES = [
    ("The cats sleep here.", "The cats sleeps here."),
    ("She has seen it.", "She has saw it."),
    ("There is a dog outside.", "There are a dog outside."),
    ("These books are old.", "These book are old."),
    ("He likes himself.", "He likes herself."),
    ("I can help you with that.", "I can helps you with that."),
]
# the sentences as the harness's own BLiMP tasks give them: no context, and no blank before them
TASK = """\
task: sentences
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {data}}}}}
output_type: multiple_choice
validation_split: validation
doc_to_text: ""
doc_to_target: 0
doc_to_choice: "{{{{[sentence_good, sentence_bad]}}}}"
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""


def of(tasks: Any, **more: Any) -> Contract:
    return contract_of(collateral={"capability": {"tasks": tasks, **more}})


def test_names_alone_or_with_settings() -> None:
    assert of("arc_easy").collateral["capability"].tasks == of(["arc_easy"]).collateral["capability"].tasks
    tasks = of({"names": ["a", "b"], "limit": 100, "metric": "acc_norm"}).collateral["capability"].tasks
    assert tasks is not None and (tasks.names, tasks.limit, tasks.metric) == (("a", "b"), 100, "acc_norm")


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"probes": "x.jsonl"}, "leave this out"),
        ({"violating_openings": ["No"]}, "leave this out"),
        ({"limits": [{"measure": "safe_logp", "min": 0}]}, "task_accuracy"),
    ],
)
def test_tasks_stand_alone(more: dict[str, Any], what: str) -> None:
    with pytest.raises(ContractError, match=what):
        of("arc_easy", **more)
    with pytest.raises(ContractError, match="nothing else has"):
        contract_of(collateral={"x": {"limits": [{"measure": "task_accuracy", "min": 0}]}})
    with pytest.raises(ContractError, match="belongs to collateral"):
        contract_of(behaviours={"x": {"tasks": "arc_easy"}})


def test_without_the_harness_the_plan_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"not installed -- pip install 'demeanor\[lm-eval\]'"):
        check_tasks(of("arc_easy"))
    check_tasks(contract_of())
    # a verdict can be judged again on a machine without it
    contract = of("arc_easy")
    known = tasks_identity(contract, {"capability": [None, "0.4.13", None]})
    assert known["capability"][1] == "0.4.13"


def fake_harness(monkeypatch: pytest.MonkeyPatch, items: list[dict[str, Any]]) -> list[Any]:
    """lm_eval that logs these items of a task called sums, whatever the model; returns the models that it is given."""
    given: list[Any] = []

    def simple_evaluate(**settings: Any) -> dict[str, Any]:
        given.append(settings["model"])
        return {"samples": {"sums": items}}

    for name, attributes in {
        "lm_eval": {"simple_evaluate": simple_evaluate},
        "lm_eval.models.huggingface": {"HFLM": lambda **settings: settings["pretrained"]},
        "lm_eval.tasks": {"TaskManager": lambda **settings: None},
    }.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**attributes))
    return given


def items_of(filters: dict[str, list[float]]) -> list[dict[str, Any]]:
    return [
        {"doc_id": place, "filter": name, "metrics": ["exact_match"], "exact_match": value}
        for name, values in filters.items()
        for place, value in enumerate(values)
    ]


def test_of_several_filters_one_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_harness(monkeypatch, items_of({"strict-match": [0, 1, 0], "flexible-extract": [1, 1, 0]}))
    for metric, values in {
        "exact_match": [0, 1, 0],
        "exact_match,strict-match": [0, 1, 0],
        "exact_match,flexible-extract": [1, 1, 0],
    }.items():
        contract = of({"names": ["sums"], "metric": metric})
        before, after = (task_scores("a model", None, contract, side) for side in ("before", "after"))
        assert [(score.probe_id, score.values["task_accuracy"]) for score in before] == [
            (f"sums:{place}", value) for place, value in enumerate(values)
        ]
        found = prove_contract(before, after, contract).comparisons[0]  # raises where a side names a probe twice
        assert (found.measure, found.before.n) == ("task_accuracy", 3)
    with pytest.raises(StageError, match="no filter best; it has strict-match, flexible-extract"):
        task_scores("a model", None, of({"names": ["sums"], "metric": "exact_match,best"}), "before")
    with pytest.raises(StageError, match="no metric acc an item; it has exact_match"):
        task_scores("a model", None, of("sums"), "before")


def test_two_items_of_one_id_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_harness(monkeypatch, [*items_of({"none": [0, 1]}), *items_of({"none": [1]})])
    with pytest.raises(StageError, match="the task sums gives 3 items 2 ids"):
        task_scores("a model", None, of({"names": ["sums"], "metric": "exact_match"}), "before")


def test_a_served_model_has_no_task_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    given = fake_harness(monkeypatch, items_of({"none": [0, 1]}))
    contract = of({"names": ["sums"], "metric": "exact_match"})
    scores = task_scores(None, None, contract, "before")
    assert given == ["dummy"]  # never HFLM around None
    assert [(score.probe_id, score.values) for score in scores] == [
        ("sums:0", {"task_accuracy": None}), ("sums:1", {"task_accuracy": None}),
    ]  # fmt: skip


def test_the_scores_of_a_task_are_the_harness_s_own_and_those_of_minimal_pairs(tmp_path: Path) -> None:
    """Items one by one; and the sentences' log-probabilities are the same where each measures them alone."""
    pytest.importorskip("lm_eval", reason="needs the extra lm-eval")
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    data = tmp_path / "sentences.jsonl"
    rows = [{"sentence_good": good, "sentence_bad": bad} for good, bad in SENTENCES]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "sentences.yaml").write_text(TASK.format(data=data), "utf-8")
    settings = {"names": ["sentences"], "folder": str(tmp_path / "tasks")}
    contract = contract_of(
        collateral={"capability": {"tasks": settings}, "grammar": {"probes": str(data)}}, measurement={"samples": 0}
    )
    with pytest.raises(InputError, match=r"no task in .* is called sentence"):
        check_tasks(of({**settings, "names": ["sentence"]}))
    check_tasks(contract)
    source = find_model("starter")
    inner, model = load_tokenizer(source, contract), load_model(source, contract, trees=True)
    scores = task_scores(model, inner, contract, "before")
    assert [score.probe_id for score in scores] == [f"sentences:{place}" for place in range(len(SENTENCES))]

    probes = list(read_probes(data, "grammar").probes)
    ours, _ = measure_model(model, make_tokenizer(inner, end_of_turn_ids(source, inner)), probes, contract, "before")
    assert [s.values["task_accuracy"] for s in scores] == [s.values["minimal_pair_accuracy"] for s in ours]
    found = lm_eval.simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=inner), tasks=["sentences"], bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False),
    )  # fmt: skip
    for item, score in zip(found["samples"]["sentences"], ours, strict=True):
        for (theirs, _), name in zip(item["filtered_resps"], ("good", "bad"), strict=True):
            assert score.values[f"{name}_sentence_logp"] == pytest.approx(theirs, abs=1e-4 * abs(theirs))
    again = contract_of(collateral={"capability": {"tasks": {**settings, "limit": 2}}})
    assert len(task_scores(model, inner, again, "after")) == 2
    unknown = task_scores(None, None, again, "after")  # the harness's own names of the items, without a model
    assert [(score.probe_id, score.values["task_accuracy"]) for score in unknown] == [
        ("sentences:0", None), ("sentences:1", None),
    ]  # fmt: skip
