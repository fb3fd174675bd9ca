"""One contract, several trainings: every combination of the swept keys, each in a run folder of its own.

All combinations are checked before the first is run. Each is run in a process of its own,
`demeanor run --resume FOLDER`, so that none pays for another's memory, and one that fails, or is killed, leaves the
others alone. The model before training is measured once for all runs that measure it alike.

Beta, gamma, sft_weight and learning_rate mean another thing under each objective. So where the objective is swept, what
the contract's file says of them holds for the file's own objective; the others take their shipped defaults, unless the
key is swept too, or set on the command line.
"""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from demeanor.compare import check_shared, what_is_shared
from demeanor.contract import Contract, build_contract, load_contract, parse_contract, resolve_paths, unknown_to
from demeanor.errors import ContractError, DemeanorError, InputError, Interrupted, RunFolderError, one_line
from demeanor.objectives import OBJECTIVES
from demeanor.pipeline import require
from demeanor.plan import Plan, plan_run
from demeanor.progress import Progress
from demeanor.settings import Loader, apply_overrides, read_yaml
from demeanor.train import check_training
from demeanor.workspace import STAGES, Workspace, digest

OBJECTIVE = "training.objective"
TUNED = ("beta", "gamma", "sft_weight", "learning_rate")  # keys whose right value depends on the objective
_LONGEST_NAME = 120
_KEPT = re.compile(r"[\w.+-]+")  # of a value in a folder's name


@dataclass(frozen=True, slots=True)
class Axis:
    """A key of the contract with the values that it takes in turn, as they were typed."""

    key: str
    values: tuple[str, ...]

    @property
    def short(self) -> str:
        return self.key.removeprefix("training.")


@dataclass(frozen=True, slots=True)
class Base:
    """A contract that was read but not checked. `root`: where its relative paths start from."""

    data: dict[str, Any]
    node: yaml.Node | None
    where: str
    root: Path

    @classmethod
    def of_contract(cls, contract: Contract, where: str) -> Base:
        return cls(contract.model_dump(mode="json", exclude_unset=True), None, where, Path.cwd())

    @property
    def training(self) -> dict[str, Any]:
        section = self.data.get("training")
        return section if isinstance(section, dict) else {}

    def contract(self, overrides: tuple[str, ...], without: frozenset[str]) -> Contract:
        """The contract with `overrides`, and without these keys of its `training`. Raises ContractError."""
        data = dict(self.data)
        if without:
            data["training"] = {key: value for key, value in self.training.items() if key not in without}
        return resolve_paths(
            build_contract(apply_overrides(data, overrides), self.where, self.node, overrides), self.root
        )


@dataclass(frozen=True, slots=True)
class Combination:
    """One choice of the swept values. `without`: keys of the file's `training` that are another objective's."""

    name: str
    overrides: tuple[str, ...]
    without: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Planned:
    """A combination that was checked: nothing of it is written yet, unless it was run before."""

    name: str
    folder: Path
    contract: Contract
    finished: bool


@dataclass(frozen=True, slots=True)
class Swept:
    """What became of the runs: the folders of the finished ones, and why the others failed, by name."""

    finished: list[Path] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def read_base(path: Path) -> Base:
    """A contract's file. Raises ContractError when it is none."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        load_contract(path)  # says why
        raise
    data, node = read_yaml(text, str(path))
    if not isinstance(data, dict):
        parse_contract(text, str(path))  # says why
    return Base(data, node, str(path), path.parent)


def parse_axes(texts: Sequence[str]) -> list[Axis]:
    """`beta=0.05,0.1` of each text. A key without a dot is one of `training`; values are read as YAML.

    Raises:
        InputError: a text is no axis, or a key or value stands twice.
    """
    axes: list[Axis] = []
    for text in texts:
        key, equals, raw = (part.strip() for part in text.partition("="))
        where = f"--sweep {text}"
        try:
            node = yaml.compose(f"[{raw}]", Loader=Loader)
        except yaml.YAMLError:
            node = None
        if not equals or not all(key.split(".")) or not isinstance(node, yaml.SequenceNode) or not node.value:
            raise InputError("cannot be read", where=where, remedy="write it as key=value,value")
        values = [f"[{raw}]"[item.start_mark.index : item.end_mark.index] for item in node.value]
        axis = Axis(key if "." in key else f"training.{key}", tuple(values))
        if len(set(values)) < len(values):
            raise InputError("a value stands twice", where=where)
        if any(axis.key == other.key for other in axes):
            raise InputError(f"{axis.short} is swept twice", where=where, remedy="give all its values at once")
        axes.append(axis)
    return axes


def combine(base: Base, axes: Sequence[Axis], settings: tuple[str, ...] = ()) -> tuple[list[Combination], list[str]]:
    """The product of the axes, and lines for the user about what the file's settings hold for.

    A swept or set key that an objective does not take is left out for it, if another of the swept objectives takes it.

    Args:
        settings: `key=value` texts that hold for every combination.
    """
    given = {item.partition("=")[0].strip(): item for item in settings}
    for axis in axes:
        if axis.key in given:
            raise InputError(
                f"{axis.short} is swept and set", where=f"--set {given[axis.key]}", remedy="do one of them"
            )
    objectives = next((axis.values for axis in axes if axis.key == OBJECTIVE), ())
    own = str(base.training.get("objective", "dpo"))
    left_out: dict[str, list[str]] = {}
    taken_over: dict[str, list[str]] = {}
    combinations: dict[str, Combination] = {}
    for values in product(*(axis.values for axis in axes)):
        chosen = dict(zip((axis.key for axis in axes), values, strict=True))
        objective = chosen.get(OBJECTIVE)
        kept, without = list(settings), set()
        if objective is not None:
            for key in (*chosen, *given):
                if not takes(objective, key) and any(takes(other, key) for other in objectives):
                    left_out.setdefault(key.removeprefix("training."), []).append(objective)
                    chosen.pop(key, None)
                    kept = [item for item in kept if item is not given.get(key)]
            if objective != own:
                mine = {key for key in base.training if key in TUNED or not takes(objective, key)}
                without = {key for key in mine if f"training.{key}" not in chosen and f"training.{key}" not in given}
                for key in without:
                    taken_over.setdefault(key, []).append(objective)
        name = _name(chosen)
        overrides = (*kept, *(f"{key}={value}" for key, value in chosen.items()))
        known = combinations.setdefault(name, Combination(name, overrides, frozenset(without)))
        if known.overrides != overrides:
            raise InputError(f"two combinations would be called {name}", where="--sweep", remedy="sweep them apart")
    notes = []
    if taken_over:
        others = ", ".join(dict.fromkeys(name for names in taken_over.values() for name in names))
        notes.append(
            f"{', '.join(sorted(taken_over))} in the contract hold for {own}; {others} take their own defaults "
            "(--set and --sweep would win)"
        )
    for key, names in left_out.items():
        notes.append(f"{key} is left out for {', '.join(dict.fromkeys(names))}, which do not take it")
    return list(combinations.values()), notes


def takes(objective: str, key: str) -> bool:
    """Does the objective know this key of the contract? An objective that is not known takes all."""
    known, name = OBJECTIVES.get(objective), key.removeprefix("training.")
    if known is None:
        return True
    if name == "gamma":
        return known.gamma > 0
    return known.needs_reference if name == "reference" else name not in unknown_to(objective)


def plan_sweep(base: Base, combinations: Sequence[Combination], out: Path) -> tuple[list[Planned], list[str]]:
    """Check every combination as `run` checks a contract, without writing anything.

    Returns:
        The checked runs, and what the first of them said about the pairs.

    Raises:
        InputError: a combination is wrong, by its name, or not comparable with the first.
    """
    if out.is_file():
        raise RunFolderError("is a file, not a folder", where=str(out), remedy="give another --out")
    if Workspace(out).manifest_file.exists():
        raise RunFolderError("is a run folder", where=str(out), remedy="give a folder for the sweep's runs with --out")
    planned, shared = [], []
    notes: list[str] = []
    for combination in combinations:
        try:
            contract = base.contract(combination.overrides, combination.without)
            contract = contract.model_copy(update={"name": f"{contract.name}: {combination.name}"})
            plan = plan_run(contract, Workspace(out / combination.name))
            check_training(plan.source, plan.contract)
        except InputError as error:
            raise InputError(f"the combination {combination.name} is refused: {error}") from None
        planned.append(Planned(combination.name, plan.workspace.folder, plan.contract, _is_finished(plan)))
        pairs, probes = (digest([item.to_json() for item in items]) for items in (plan.train, plan.probes))
        shared.append(what_is_shared(plan.contract, plan.identity, pairs, probes))
        notes = notes or plan.notes
    check_shared([item.name for item in planned], shared)
    return planned, notes


def run_sweep(
    planned: Sequence[Planned],
    progress: Progress | None = None,
    start: Callable[[Path, Sequence[Path]], int] | None = None,
) -> Swept:
    """Run what is not finished, one after the other; a run that fails does not stop the others.

    Args:
        start: runs a run folder to its end, given those that are finished, and returns the exit code of `demeanor run`.

    Raises:
        Interrupted: by the user; what was done is kept.
    """
    progress, start = progress or Progress(), start or run_in_its_own_process
    swept = Swept()
    for number, item in enumerate(planned, 1):
        title = f"run {number} of {len(planned)}: {item.name}"
        if item.finished:
            progress.say(f"{title}: done before")
            swept.finished.append(item.folder)
            continue
        progress.say(title)
        try:
            with Workspace(item.folder).locked() as workspace:
                workspace.start(item.contract)
            code = start(item.folder, swept.finished)
        except Interrupted:
            raise
        except DemeanorError as error:
            swept.failed[item.name] = str(error)
            continue
        if code in (0, 1):
            swept.finished.append(item.folder)
        else:
            swept.failed[item.name] = f"{_ended(code)}; go on with: demeanor run --resume {item.folder}"
    return swept


def run_in_its_own_process(folder: Path, measured: Sequence[Path] = ()) -> int:
    """`demeanor run --resume FOLDER`, its messages on our standard error. Returns its exit code, -N killed by signal N.

    Args:
        measured: as `pipeline.run` takes it.

    Raises:
        Interrupted: we were asked to stop; the run was too, and has kept what was done.
    """
    asked = False
    # in a session of its own, so that one Ctrl-C reaches it once: a second one would cost it the step it is in
    command = [sys.executable, "-P", "-m", "demeanor", "run", "--resume", str(folder), "--json"]
    command += [word for other in measured for word in ("--measured-in", str(other))]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)

    def forward(number: int, frame: Any) -> None:
        nonlocal asked
        asked = True
        with contextlib.suppress(OSError):
            child.send_signal(signal.SIGINT)

    with _handled(forward):
        code = child.wait()
    if asked or code == Interrupted.exit_code:
        raise Interrupted("the sweep was interrupted; what was done is kept, the same command goes on with it")
    return code


@contextlib.contextmanager
def _handled(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Until the block ends, signals that ask to stop go to `handler`; only the main thread may ask for that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    old = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, before in old.items():
            signal.signal(number, before)


def _is_finished(plan: Plan) -> bool:
    try:
        require(plan.workspace, plan.contract, plan.identity, *(name for name in STAGES if name != "release"))
    except RunFolderError:
        return False
    return True


def _ended(code: int) -> str:
    if code < 0:
        return f"killed by signal {-code}"
    return f"{'its input was refused' if code == InputError.exit_code else 'it failed'} (its own message is above)"


def _name(chosen: dict[str, str]) -> str:
    """`objective-dpo_beta-0.05`: a folder's name."""
    parts = (f"{key.removeprefix('training.')}-{'-'.join(_KEPT.findall(value))}" for key, value in chosen.items())
    name = "_".join(parts)
    if len(name) > _LONGEST_NAME:
        raise ContractError(f"a run's name would be too long: {one_line(name, 60)}", where="--sweep")
    return name
