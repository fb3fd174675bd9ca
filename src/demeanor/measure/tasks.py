"""Tasks of lm-evaluation-harness as probes: one score an item, before and after alike, so that they are paired.

The harness (Gao et al., EleutherAI; the extra `lm-eval`) finds the data, makes the prompts and scores them; it is given
the model as it is loaded here. Its own tasks fetch their data from the Hub; those of a folder may lie on the disk.
"""

from __future__ import annotations

import importlib.util
import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

from demeanor.contract import Contract
from demeanor.errors import InputError, StageError, one_line
from demeanor.promises import Tasks
from demeanor.records import Score
from demeanor.workspace import digest, file_sha256

MEASURE = "task_accuracy"


def check_tasks(contract: Contract) -> None:
    """Are the harness and all the tasks there?

    Raises:
        InputError: one is not.
    """
    for name, tasks in named_tasks(contract).items():
        where = f"collateral.{name}.tasks"
        if importlib.util.find_spec("lm_eval") is None:
            remedy = "pip install 'demeanor[lm-eval]'"
            raise InputError("lm-evaluation-harness is not installed", where=where, remedy=remedy)
        manager = _manager(tasks, where)
        for task in tasks.names:
            if task not in manager.all_tasks:
                place = f"in {tasks.folder}" if tasks.folder else "of lm-evaluation-harness"
                raise InputError(f"no task {place} is called {task}", where=where, remedy="check its name")


def task_scores(model: Any, tokenizer: Any, contract: Contract, side: str) -> list[Score]:
    """The score of every item of every task. An item without a number has the score None, and so has every item where
    a server stands in for the model (None), since its likelihoods are not known.

    A task with several filters (ways to read the answer out of a reply) logs an item once for each: the one that the
    metric names counts (NAME,FILTER), else the first.

    Raises:
        StageError: the harness fails, a task has no such metric or filter, or gives two items one id.
    """
    scores: list[Score] = []
    for name, tasks in named_tasks(contract).items():
        import lm_eval

        try:
            found = lm_eval.simple_evaluate(
                model=_harnessed(model, tokenizer, contract.measurement.batch_size),
                tasks=list(tasks.names),
                task_manager=_manager(tasks, name),
                num_fewshot=tasks.num_fewshot,
                limit=tasks.limit,
                bootstrap_iters=0,
                log_samples=True,
            )
        except Exception as error:  # whatever a task's code or the network raises
            raise StageError(f"{name}: lm-evaluation-harness failed: {one_line(error, 200)}") from error
        for task, items in found["samples"].items():
            values = _values(items, tasks.metric, f"{name}: the task {task}")
            scores += [
                Score(f"{task}:{item}", name, side, None, {MEASURE: None if model is None else value})
                for item, value in values.items()
            ]
    return scores


def _harnessed(model: Any, tokenizer: Any, batch_size: int) -> Any:
    """The model for the harness; without one the harness's own that answers at random, which names the items."""
    if model is None:
        return "dummy"
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)


def _values(items: list[dict[str, Any]], metric: str, task: str) -> dict[Any, float | None]:
    """The metric of each item, by its id."""
    metric, _, wanted = metric.partition(",")
    filters = list(dict.fromkeys(item.get("filter") for item in items))
    if wanted and wanted not in filters:
        raise StageError(f"{task} has no filter {wanted}; it has {', '.join(map(str, filters))}")
    items = [item for item in items if item.get("filter") == (wanted or filters[0])]
    if not any(isinstance(item.get(metric), int | float) for item in items):
        known = ", ".join(sorted({name for item in items for name in item.get("metrics", ())}))
        raise StageError(f"{task} has no metric {metric} an item; it has {known}")
    values = {item["doc_id"]: _number(item.get(metric)) for item in items}
    if len(values) < len(items):
        raise StageError(f"{task} gives {len(items):,} items {len(values):,} ids: they cannot be paired")
    return values


def tasks_identity(contract: Contract, known: dict[str, Any]) -> dict[str, Any]:
    """What the scores depend on besides the model: the settings, the harness's version, a folder's files. What is gone
    (the harness on another machine, the folder) counts as what is `known`."""
    found = {}
    for name, tasks in named_tasks(contract).items():
        old = known.get(name) or [None, None, None]
        folder = Path(tasks.folder) if tasks.folder else None
        files = None
        if folder is not None and folder.is_dir():
            files = [(str(file.relative_to(folder)), file) for file in sorted(folder.rglob("*")) if file.is_file()]
        found[name] = [
            tasks.model_dump(mode="json"),
            version("lm_eval") if importlib.util.find_spec("lm_eval") else old[1],
            old[2] if files is None else digest([(place, file_sha256(file)) for place, file in files]),
        ]
    return found


def named_tasks(contract: Contract) -> dict[str, Tasks]:
    return {name: promise.tasks for name, promise in contract.collateral.items() if promise.tasks is not None}


def _manager(tasks: Tasks, where: str) -> Any:
    from lm_eval.tasks import TaskManager

    if tasks.folder is not None and not Path(tasks.folder).is_dir():
        raise InputError("no such folder of tasks", where=f"{where}: {tasks.folder}")
    # its own 14,000 take half a minute to list
    return TaskManager(include_path=tasks.folder, include_defaults=tasks.folder is None)


def _number(value: Any) -> float | None:
    number = float(value) if isinstance(value, int | float) else None
    return number if number is not None and math.isfinite(number) and 0 <= number <= 1 else None
