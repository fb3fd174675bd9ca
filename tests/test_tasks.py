"""Tasks of lm-evaluation-harness as collateral. Those that need the harness skip where it is not installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import contract_of

from demeanor.contract import Contract
from demeanor.errors import ContractError, InputError
from demeanor.measure import measure_model
from demeanor.measure.tasks import check_tasks, task_scores, tasks_identity
from demeanor.model import end_of_turn_ids, find_model, load_model, load_tokenizer
from demeanor.pairs.probes import read_probes
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
