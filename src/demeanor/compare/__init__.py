"""Finished runs -> one comparison: proof, collateral damage, time, memory and cost of each, and which to take.

Only runs over the same model, training pairs, probes, limits and measurement can be compared; what else of the training
differs is what the comparison is about.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demeanor.compare.choose import RULE, Choice, choose
from demeanor.compare.results import RunResult, Usage, damages_of, proofs_of
from demeanor.contract import Contract
from demeanor.errors import InputError, one_line
from demeanor.objectives import OBJECTIVES
from demeanor.pipeline import require
from demeanor.plan import prompt_inputs, recorded_identity
from demeanor.records import Record, Verdict
from demeanor.workspace import Workspace, digest

__all__ = ["RunsCompared", "check_shared", "compare_runs", "what_is_shared", "write_comparison"]


@dataclass(frozen=True, slots=True)
class RunsCompared(Record):
    """The runs side by side. `notes` say what limits the comparison; `price_per_hour` is that of a core or GPU."""

    name: str
    model: str
    num_pairs: int | None
    num_probes: int
    confidence: float
    runs: tuple[RunResult, ...]
    choice: Choice
    notes: tuple[str, ...]
    price_per_hour: float | None

    def money(self, run: RunResult) -> float | None:
        hours = run.usage.hours
        return None if hours is None or self.price_per_hour is None else hours * self.price_per_hour

    def to_json(self) -> dict[str, Any]:
        runs = [{**run.to_json(), "money": self.money(run)} for run in self.runs]
        return {**Record.to_json(self), "runs": runs, "choice": self.choice.to_json(), "rule": RULE}


def compare_runs(
    folders: Sequence[str | Path], overrides: tuple[str, ...] = (), price_per_hour: float | None = None
) -> RunsCompared:
    """Compare the runs in these folders.

    Args:
        folders: of finished runs.
        overrides: `key=value` texts that win over each run's contract, which its evidence must agree with.
        price_per_hour: of one core, or of one accelerator.

    Raises:
        RunFolderError: a run is not finished, or was altered.
        InputError: the runs do not share what they must; it says which and what.
    """
    if len({Path(folder).resolve() for folder in folders}) < len(folders):
        raise InputError("a run stands twice", remedy="name each run once")
    spaces = [Workspace.open(folder) for folder in folders]
    contracts, shared = [], []
    for workspace in spaces:
        contract, identity = workspace.contract(overrides), recorded_identity(workspace)
        require(workspace, contract, identity, "read", "before", "train", "after", "prove")
        read = workspace.manifest()["stages"]["read"]["outputs"]
        files = [read[str(file.relative_to(workspace.folder))] for file in (workspace.train_pairs, workspace.probes)]
        contracts.append(contract)
        shared.append(what_is_shared(contract, identity, *files))
    check_shared([str(workspace) for workspace in spaces], shared)
    verdicts = [Verdict.from_json(workspace.read_json(workspace.verdict)) for workspace in spaces]
    trainings = [workspace.read_json(workspace.training) for workspace in spaces]
    usages = _usages(trainings)
    settings = _differing([_settings(*both) for both in zip(contracts, trainings, strict=True)])
    runs = tuple(
        RunResult(
            name=name,
            folder=str(workspace),
            objective=contract.training.objective,
            settings=own,
            passed=verdict.passed,
            num_passed=sum(limit.passed for limit in verdict.limits),
            num_limits=len(verdict.limits),
            proofs=proofs_of(verdict, contract.collateral),
            damages=damages_of(verdict, contract),
            usage=usage,
        )
        for name, workspace, contract, verdict, usage, own in zip(
            _names(folders), spaces, contracts, verdicts, usages, settings, strict=True
        )
    )
    with spaces[0].probes.open("rb") as file:
        num_probes = sum(1 for _ in file)
    return RunsCompared(
        name=contracts[0].name.removesuffix(f": {Path(folders[0]).name}"),  # a sweep puts the combination there
        model=contracts[0].model,
        num_pairs=trainings[0].get("num_pairs"),
        num_probes=num_probes,
        confidence=verdicts[0].confidence,
        runs=runs,
        choice=choose(runs),
        notes=tuple(_notes(spaces, usages)),
        price_per_hour=price_per_hour,
    )


def write_comparison(compared: RunsCompared, folder: str | Path) -> Workspace:
    """Write compare.json and compare.html into `folder`.

    Raises:
        InputError: it cannot be written.
    """
    from demeanor.compare.page import page_of

    workspace = Workspace(folder)
    try:
        workspace.write_json(workspace.compared, compared.to_json())
        workspace.write_text(workspace.compared_page, page_of(compared))
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror or one_line(error)}", where=str(folder)) from None
    return workspace


def what_is_shared(contract: Contract, identity: dict[str, str], pairs: str, probes: str) -> dict[str, Any]:
    """What runs must have in common to be compared, each by its name for the user.

    Args:
        identity: of the model, as in `plan.Plan.identity`.
        pairs: digest of the training pairs.
        probes: digest of the probes.
    """
    promises = contract.promises
    measured = {k: [p.violating_openings, p.safe_openings, p.violating_patterns] for k, p in promises.items()}
    limits = {k: [limit.id(k) for limit in p.limits] for k, p in promises.items()}
    return {
        "the model": identity["model"],
        "the chat template": identity["template"],
        "the version of Demeanor": identity["demeanor"],
        "what is trained": "a reward model"
        if OBJECTIVES[contract.training.objective].trains_reward_model
        else "a policy",
        "the training pairs": pairs,
        "the probes": probes,
        "the system prompt and its transient values": digest(prompt_inputs(contract)),
        "what is collateral": sorted(contract.collateral),
        "the openings and patterns": digest(measured),
        "the judges and their cards": digest({k: p.judge.model_dump(mode="json") for k, p in promises.items()}),
        "the limits": digest(limits),
        **{f"measurement.{key}": value for key, value in contract.measurement.model_dump(mode="json").items()},
    }


def check_shared(names: Sequence[str], shared: Sequence[dict[str, Any]]) -> None:
    """Raises InputError that names the first run which does not share something with the first of all, and what."""
    for name, own in zip(names[1:], shared[1:], strict=True):
        differing = [key for key, value in own.items() if value != shared[0][key]]
        if differing:
            shown = ("measurement.", "what is trained")
            told = [f"{k} ({own[k]}, not {shared[0][k]})" if k.startswith(shown) else k for k in differing]
            raise InputError(
                f"cannot be compared with {names[0]}: it differs in {', '.join(told)}",
                where=name,
                remedy="compare runs over the same model, pairs, probes, limits and measurement",
            )


def _names(folders: Sequence[str | Path]) -> list[str]:
    """The folders' own names, or their whole paths when two have the same."""
    names = [Path(folder).resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _settings(contract: Contract, training: dict[str, Any]) -> dict[str, Any]:
    """The settings of the training in effect."""
    asked = contract.training.model_dump(mode="json")
    return {key: training.get(key, value) if value is None else value for key, value in asked.items()}


def _differing(settings: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each run's settings those that not all runs have alike."""
    keys = dict.fromkeys(key for own in settings for key in own)
    differing = [key for key in keys if any(own.get(key) != settings[0].get(key) for own in settings)]
    return [{key: own.get(key) for key in differing} for own in settings]


def _usages(trainings: Iterable[dict[str, Any]]) -> list[Usage]:
    """What each training took; every run that precomputes the reference is charged with the longest that one took, and
    every run with the training of the reward models that it needs."""
    trainings = list(trainings)
    stored = [one for one in trainings if one.get("reference") == "precomputed"]
    longest = max((one.get("reference_seconds") or 0.0 for one in stored), default=0.0)
    usages = []
    for one in trainings:
        device = one.get("device") or {}
        usages.append(
            Usage(
                training_seconds=one.get("seconds"),
                reference_seconds=one.get("reference_seconds"),
                charged_seconds=(longest if one in stored else 0.0) + (one.get("reward_model_seconds") or 0.0),
                reward_model_seconds=one.get("reward_model_seconds"),
                peak_bytes=one.get("peak_bytes"),
                device=device.get("kind"),
                name=device.get("name"),
                count=device.get("count"),
            )
        )
    return usages


def _notes(spaces: Sequence[Workspace], usages: Sequence[Usage]) -> list[str]:
    """What makes time, memory or cost not comparable."""
    notes = []
    if len({(usage.device, usage.name, usage.count) for usage in usages}) > 1:
        notes.append("The runs were trained on different machines: their times, memory and cost cannot be compared.")
    versions = [workspace.manifest()["stages"]["train"].get("versions", {}) for workspace in spaces]
    names = dict.fromkeys(name for own in versions for name in own)
    differing = [name for name in names if len({own.get(name) for own in versions}) > 1]
    if differing:
        notes.append(f"The runs were trained with different versions of {', '.join(differing)}.")
    spent = [
        usage.reference_seconds or 0.0
        for usage in usages
        if usage.charged_seconds > (usage.reward_model_seconds or 0.0)
    ]
    if spent and min(spent) < max(spent):
        notes.append(
            "The reference is computed once and kept for later runs; every run that needs one is charged with the "
            "longest time that one of these runs spent on it. Its memory is counted only where it was computed."
        )
    return notes
