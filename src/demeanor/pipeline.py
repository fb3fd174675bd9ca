"""The journey: which stage reads what, what each depends on, and in which order they run.

    read -> before -> train -> after -> prove -> report        and, when asked, release

Each stage is skipped when the manifest says that it was done with the same inputs, so that it can be run again alone
and a killed run goes on where it stopped.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from demeanor.contract import Adaptive, Contract
from demeanor.errors import InputError, Interrupted, RunFolderError, StageError
from demeanor.judges import judge_digests, judge_identities
from demeanor.measure import Weights, measure_model
from demeanor.measure.tasks import task_scores, tasks_identity
from demeanor.model import load_model, load_reward_model
from demeanor.objectives import OBJECTIVES
from demeanor.plan import DEFAULT_BEHAVIOUR, Plan, prompt_inputs, read_inputs, recorded_identity
from demeanor.progress import Progress
from demeanor.prove import (
    Measured,
    fixed_limits,
    prove_contract,
    prove_no_regression,
    waivers_in_effect,
    weakened_limits,
)
from demeanor.records import SIDES, Message, Probe, Score, Verdict
from demeanor.release import merge_adapter
from demeanor.report import write_report
from demeanor.tokens import tokenize_pairs
from demeanor.train import check_training, train_adapter
from demeanor.train.reference import ids_digest
from demeanor.train.rewards import function_digests, reward_model_digests
from demeanor.workspace import Workspace, digest, file_sha256

_MEASURED = 2  # raised when a measure means something else: what was measured before is measured anew


def run(plan: Plan, progress: Progress | None = None, measured: Sequence[Path] = ()) -> Verdict:
    """All stages up to the report. Goes on where an earlier run of the same folder stopped.

    Args:
        measured: run folders; where one of them holds the measurement before training of the same model, probes,
            settings and seed, it is taken from there, because it would come out the same.

    Raises:
        StageError: a stage failed; what was done before is kept.
        Interrupted: stopped by the user; the same.
    """
    progress = progress or Progress()
    workspace = plan.workspace
    check_training(plan.source, plan.contract)
    workspace.start(plan.contract)
    with keeping_what_is_done(workspace):
        read_stage(plan, progress)
        for folder in measured:
            inputs = stage_inputs("before", workspace, plan.contract, plan.identity)
            if workspace.adopt("before", inputs, Workspace(folder)):
                progress.say(f"before training: as measured in {folder}, with the same model, probes and settings")
        measure_stage(plan, "before", progress)
        train_stage(plan, progress)
        measure_stage(plan, "after", progress)
        verdict = prove_stage(workspace, plan.contract, plan.identity, progress)
        report_stage(workspace, plan.contract, plan.identity, progress)
    return verdict


def read_stage(plan: Plan, progress: Progress) -> None:
    """Write the pairs, the probes and what was dropped."""
    workspace = plan.workspace

    def work() -> dict[str, Any]:
        workspace.write_records(workspace.train_pairs, plan.train)
        workspace.write_records(workspace.heldout_pairs, plan.heldout)
        workspace.write_records(workspace.probes, plan.probes)
        workspace.write_records(workspace.dropped, plan.dropped)
        workspace.write_lines(workspace.prompts, (rendered(plan, probe) for probe in plan.probes))
        return {"notes": plan.notes}

    outputs = (
        workspace.train_pairs, workspace.heldout_pairs, workspace.probes, workspace.dropped, workspace.prompts
    )  # fmt: skip
    _stage(plan, "read", work, outputs, progress)


def rendered(plan: Plan, probe: Probe) -> dict[str, Any]:
    """A probe's prompt as the model reads it, for the evidence: its text by the chat template, with the system prompt,
    and the digest of its token ids."""
    ids = plan.tokenizer.prompt(probe.prompt, plan.contract.system_text())
    return {
        "behaviour": probe.behaviour,
        "probe_id": probe.id,
        "text": plan.tokenizer.inner.decode(ids),
        "num_tokens": len(ids),
        "ids_sha256": ids_digest(ids).hex(),
    }


def train_stage(plan: Plan, progress: Progress) -> None:
    """Train the adapter."""
    workspace, contract = plan.workspace, plan.contract
    # a user's reward function may be mended in between: checkpoints stay good, a finished training does not; a reward
    # model is not mended but another one
    inputs = stage_inputs("train", workspace, contract, plan.identity)
    key = digest({name: value for name, value in inputs.items() if name != "functions"})
    done = workspace.manifest()["stages"].get("train", {})
    if not done.get("begun_again") and done.get("inputs", inputs).get("functions") != inputs["functions"]:
        shutil.rmtree(workspace.checkpoints, ignore_errors=True)  # the last one is the finished training

    def work() -> dict[str, Any]:
        measured = Measured(contract, plan.probes, stage_inputs("before", workspace, contract, plan.identity))
        workspace.fix_limits(key, fixed_limits(contract, measured))
        tokens, refused = tokenize_pairs(
            plan.train,
            plan.tokenizer,
            system=contract.system_text,
            max_length=contract.training.max_length,
        )
        if refused:
            raise StageError(f"{len(refused)} pairs can no longer be tokenized: {refused[0][1]}")
        if contract.training.recovery:
            from demeanor.train.recovery import recovery_pairs

            tokens += recovery_pairs(plan.train, plan.tokenizer, contract, say=progress.say)
        source_pairs = None
        if OBJECTIVES[contract.training.objective].online:
            from demeanor.train.sampling import Source

            source_pairs = Source(plan.tokenizer, plan.train)
        with progress.bar("train", 1000) as advance:
            shown = 0

            def step(done: int, total: int) -> None:
                nonlocal shown
                target = done * 1000 // total
                advance(target - shown, steps=f"{done}/{total}")
                shown = target

            def report(logs: dict[str, float]) -> None:
                figures = {
                    "loss": logs.get("loss"),
                    "logp chosen": logs.get("logps/chosen"),
                    "rejected": logs.get("logps/rejected"),
                    "margin": logs.get("rewards/margins"),
                    "reward": logs.get("reward"),
                    "accuracy": logs.get("accuracy"),  # these two of a reward model
                    "reward margin": logs.get("margin"),
                    "alike": logs.get("frac_reward_zero_std"),
                }
                advance(0, **{name: f"{value:.3g}" for name, value in figures.items() if value is not None})

            with workspace.writing(workspace.adapter) as out:
                summary = train_adapter(
                    plan.source,
                    plan.tokenizer.inner,
                    tokens,
                    contract,
                    checkpoints=workspace.checkpoints,
                    out=out,
                    key=key,
                    source_pairs=source_pairs,
                    advance=step,
                    referred=lambda done, total: advance(0, reference=f"{done}/{total}"),
                    report=report,
                    say=progress.say,
                )
        workspace.write_json(workspace.training, summary)
        return {"steps": summary["steps"], "num_pairs": summary["num_pairs"], "versions": _versions()}

    _stage(plan, "train", work, (workspace.adapter, workspace.training), progress)


def measure_stage(plan: Plan, side: str, progress: Progress) -> None:
    """Measure the probes under the base model (before) or with the adapter (after)."""
    workspace, contract = plan.workspace, plan.contract
    scores_file, replies_file = workspace.scores(side), workspace.replies(side)
    partial = workspace.partial(side, digest(stage_inputs(side, workspace, contract, plan.identity)))

    def work() -> dict[str, Any]:
        model = None
        if contract.measurement.server(side) is None:
            model = load_aligned(plan) if side == "after" else load_unaligned(plan)
            if side == "after" and plan.source.adapter is not None:  # the trained adapter took its place
                from demeanor.measure.depth import BEFORE

                model.load_adapter(plan.source.adapter, BEFORE)
        with progress.bar(f"measure {side}", len(plan.probes)) as advance:
            scores, replies = measure_model(
                model,
                plan.tokenizer,
                plan.probes,
                contract,
                side,
                partial=partial,
                advance=advance,
                say=progress.say,
                weights=weights_of(plan, side),
            )
        unanswered = sum(reply.fault is not None for reply in replies)
        if unanswered and unanswered == len(replies):
            raise StageError(f"the model gave none of {unanswered} replies: {replies[0].fault}")
        if unanswered:
            progress.say(
                f"{side}: {unanswered} of {len(replies)} prompts were not answered; their probes stay unscored"
                + (". Another timeout_s or retries in measurement.served asks again" if model is None else "")
            )
        scores = [*scores, *task_scores(model, plan.tokenizer.inner, contract, side)]
        workspace.write_records(scores_file, scores)
        workspace.write_records(replies_file, replies)
        partial.unlink(missing_ok=True)
        return {"replies": len(replies), "unanswered": unanswered}

    _stage(plan, side, work, (scores_file, replies_file), progress)


def prove_stage(workspace: Workspace, contract: Contract, identity: dict[str, str], progress: Progress) -> Verdict:
    """Compare the two sides and judge the limits. Needs the run folder alone, not the model.

    Raises:
        RunFolderError: the scores were made under other settings than the contract's.
    """
    require(workspace, contract, identity, "read", "before", "train", "after")
    inputs = stage_inputs("prove", workspace, contract, identity)

    def work() -> dict[str, Any]:
        before, after = (workspace.read_records(workspace.scores(side), Score.from_json) for side in SIDES)
        measured = _measured(workspace, contract, identity)
        verdict = prove_contract(before, after, contract, fixed=workspace.fixed_limits(), measured=measured)
        workspace.write_json(workspace.verdict, verdict.to_json())
        return {"passed": verdict.passed}

    progress.stage("prove", done=workspace.is_done("prove", inputs))
    workspace.stage("prove", inputs, work, workspace.verdict)
    return Verdict.from_json(workspace.read_json(workspace.verdict))


def prove_against(
    workspace: Workspace, contract: Contract, verdict: Verdict, accepted: Path, progress: Progress
) -> Verdict:
    """The verdict of `workspace`, and that no limit's measure is worse than in the run `accepted`; kept in its folder.

    Raises:
        InputError: the accepted run is not finished, or was not measured on the same probes in the same way.
    """
    other = Workspace.open(accepted)
    theirs = other.contract()
    require(other, theirs, recorded_identity(other), "read", "before", "train", "after")
    measured = [_comparable(space.manifest()["stages"]["after"]["inputs"]) for space in (workspace, other)]
    own = {"adapter", "probes", "model", "template", "demeanor"}  # may differ; the probes are compared one by one
    differing = sorted(k for k in measured[0].keys() | measured[1].keys() if measured[0].get(k) != measured[1].get(k))
    differing = [key for key in differing if key not in own]
    if differing:
        raise InputError(
            f"was not measured like {workspace}: it differs in {', '.join(differing)}",
            where=str(accepted),
            remedy="measure both in the same way",
        )
    if not other.verdict.exists() or not other.read_json(other.verdict)["passed"]:
        progress.say(f"{accepted} has no verdict that passed: it is taken as the accepted run because you say so")
    scores = [
        [space.read_records(space.scores(side), Score.from_json) for side in SIDES] for space in (other, workspace)
    ]
    name = other.folder.resolve().name
    accepted_scores, mine = ((side[0], side[1]) for side in scores)
    both = prove_no_regression(verdict, accepted_scores, mine, contract, name, theirs)
    workspace.write_json(workspace.regression, {"accepted": str(accepted), **both.to_json()})
    return both


def _comparable(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs of a measurement, without what names a served model: two releases have two names, often two places."""
    served = inputs.get("served")
    names = ("endpoint", "model", "key_env")
    return {**inputs, "served": served and {key: value for key, value in served.items() if key not in names}}


def report_stage(workspace: Workspace, contract: Contract, identity: dict[str, str], progress: Progress) -> None:
    """Write the page. Needs the run folder alone."""
    require(workspace, contract, identity, "read", "before", "train", "after", "prove")
    inputs = stage_inputs("report", workspace, contract, identity)
    progress.stage("report", done=workspace.is_done("report", inputs))
    workspace.stage("report", inputs, lambda: write_report(workspace), workspace.report)


def release_stage(plan: Plan, progress: Progress, dtype: str = "auto") -> dict[str, Any]:
    """Merge the adapter, and refuse when the merged model's numbers are not the adapter's.

    Raises:
        StageError: they differ by more than the stated tolerance; nothing is written to `model/`.
    """
    workspace = plan.workspace
    require(workspace, plan.contract, plan.identity, "read", "before", "train", "after", "prove")
    if OBJECTIVES[plan.contract.training.objective].trains_reward_model:
        raise InputError(
            "a reward model is not released: it replies to nobody",
            where=str(workspace),
            remedy=f"use it in another run: training.rewards: [{{kind: model, path: {workspace}}}]",
        )
    proven = bool(workspace.read_json(workspace.verdict)["passed"])

    def work() -> None:
        with workspace.writing(workspace.model) as out:
            parity = merge_adapter(
                load_aligned(plan), plan.tokenizer, plan.probes, plan.contract, out, source=plan.source, dtype=dtype
            )
        workspace.write_json(workspace.release, {"proven": proven, **parity})

    with keeping_what_is_done(workspace):
        _stage(plan, "release", work, (workspace.model, workspace.release), progress, dtype=dtype)
        report_stage(workspace, plan.contract, plan.identity, progress)
    return workspace.read_json(workspace.release)  # type: ignore[no-any-return]


def ask(
    plan: Plan, prompt: str, violating: tuple[str, ...], safe: tuple[str, ...], behaviour: str | None, seed: int
) -> dict[str, Any]:
    """One prompt to both models: a sampled reply of each, and probabilities before and after.

    Without `violating` and `safe`, the replies of the probe with the same prompt are used when there is one. Opening
    masses are given for the probe's behaviour, for `behaviour`, or else for every behaviour that states openings.

    Returns:
        `prompt`, `replies` {side: text}, `probabilities` [{what, unit (probability or nats), before, after}].
    """
    contract, messages = plan.contract, (Message("user", prompt),)
    if OBJECTIVES[contract.training.objective].trains_reward_model:
        raise InputError("a reward model replies to nobody", where=str(plan.workspace), remedy="ask a policy's run")
    if behaviour is not None and behaviour not in contract.promises:
        raise InputError(
            f"no behaviour {behaviour}", where="--behaviour", remedy=f"one of {', '.join(contract.promises)}"
        )
    require(plan.workspace, contract, plan.identity, "read", "train")
    known = [
        p
        for p in plan.probes
        if p.prompt and p.prompt[-1].content.strip() == prompt.strip() and behaviour in (None, p.behaviour)
    ]
    if known and not violating and not safe:
        violating, safe = known[0].violating, known[0].safe
    names = [behaviour] if behaviour else [known[0].behaviour] if known else list(contract.promises)
    names = names or [DEFAULT_BEHAVIOUR]
    probes = [Probe(f"ask-{name}", name, messages, violating, safe) for name in names]
    plain = {"prefill": (), "depth": False, "adaptive": Adaptive(), "served": {}}
    settings = contract.measurement.model_copy(update={"samples": 1, "max_sampled_probes": 1, "seed": seed, **plain})
    asked = contract.model_copy(update={"measurement": settings})
    scores: dict[str, list[Score]] = {}
    replies: dict[str, str] = {}
    for side in SIDES:
        model = load_aligned(plan) if side == "after" else load_unaligned(plan)
        scores[side], sampled = measure_model(model, plan.tokenizer, probes, asked, side)
        replies[side] = sampled[0].text
        del model  # one model in memory at a time
    rows = []
    for place, name in enumerate(names):
        for measure, what in _ASKED.items():
            values = {side: scores[side][place].values[measure] for side in SIDES}
            if values["before"] is None or (place and "opening" not in measure):
                continue
            about = f"{name}: {what}" if "opening" in measure else what
            rows.append({"what": about, "unit": "nats" if measure.endswith("logp") else "probability", **values})
            if measure == "violating_choice_probability":
                others = {side: 1.0 - (value or 0.0) for side, value in values.items()}
                rows.append({"what": "safe reply, of the two", "unit": "probability", **others})
    return {"prompt": prompt, "replies": replies, "probabilities": rows}


_ASKED = {
    "violating_opening_mass": "begins with a bad opening",
    "safe_opening_mass": "begins with a good opening",
    "violating_logp": "log p of the violating reply",
    "safe_logp": "log p of the safe reply",
    "violating_choice_probability": "violating reply, of the two",
}


def load_unaligned(plan: Plan) -> Any:
    """The model before training; a reward model with a head that has learned nothing."""
    if OBJECTIVES[plan.contract.training.objective].trains_reward_model:
        return load_reward_model(plan.source, plan.contract, plan.tokenizer.inner.pad_token_id)
    return load_model(plan.source, plan.contract, trees=True)


def load_aligned(plan: Plan) -> Any:
    """The base model with the trained adapter on it, not merged."""
    from peft import PeftModel

    plan.workspace.check_outputs("train")
    if OBJECTIVES[plan.contract.training.objective].trains_reward_model:
        base = load_unaligned(plan)
    else:
        base = load_model(plan.source, plan.contract, tuned=False, trees=True)
    return PeftModel.from_pretrained(base, plan.workspace.adapter).eval()


def weights_of(plan: Plan, side: str) -> Weights:
    """Which weights the model of a side has."""
    if side == "before":
        return Weights(plan.source, plan.source.adapter, plan.source.fingerprint)
    wrote = plan.workspace.manifest()["stages"]["train"]["outputs"]
    files = {name: sha256 for name, sha256 in wrote.items() if Path(name).parent.name == plan.workspace.adapter.name}
    return Weights(plan.source, plan.workspace.adapter, digest([plan.source.fingerprint, files]))


def stage_inputs(
    name: str, workspace: Workspace, contract: Contract, identity: dict[str, str], **more: Any
) -> dict[str, Any]:
    """All that the result of a stage depends on."""
    settings, promises = contract.measurement, contract.promises
    known = workspace.manifest()["stages"].get(name, {}).get("inputs", {})
    if name == "read":
        return read_inputs(workspace, contract, identity)
    if name == "train":
        own: dict[str, Any] = {
            "pairs": file_sha256(workspace.train_pairs),
            "training": contract.training.model_dump(mode="json"),
            "rewards": [reward.model_dump(mode="json") for reward in contract.rewards],
            "functions": function_digests(contract) if OBJECTIVES[contract.training.objective].online else {},
            "samples": settings.max_new_tokens if OBJECTIVES[contract.training.objective].online else None,
            "prompt": prompt_inputs(contract),
        }
        if OBJECTIVES[contract.training.objective].online:
            own |= reward_model_digests(contract, known)
            if any(reward.kind == "judge" for reward in contract.rewards):
                own["judges"] = judge_digests(contract, known.get("judges", {}))
    elif name in SIDES:
        own = {
            "version": _MEASURED,
            "judges": judge_identities(contract, known.get("judges", {})),
            "adapter": workspace.outputs_digest("train") if name == "after" else None,
            "probes": file_sha256(workspace.probes),
            "openings": {k: [p.violating_openings, p.safe_openings, p.violating_patterns] for k, p in promises.items()},
            "measurement": settings.model_dump(mode="json", exclude={"confidence", "resamples", "best_of", "served"}),
            "served": None if (served := settings.server(name)) is None else served.model_dump(mode="json"),
            "prompt": prompt_inputs(contract),
            "max_length": contract.training.max_length,
            "rewards": [reward.model_dump(mode="json") for reward in contract.rewards],
            "functions": function_digests(contract),
            "tasks": tasks_identity(contract, known.get("tasks", {})),
            **reward_model_digests(contract, known),
        }
        if OBJECTIVES[contract.training.objective].trains_reward_model:
            own["head"] = contract.training.seed
    elif name == "prove":
        fixed = workspace.fixed_limits()
        own = {
            "scores": workspace.outputs_digest(*SIDES),
            "limits": {k: [limit.model_dump(mode="json") for limit in p.limits] for k, p in promises.items()},
            "cards": {k: p.judge.model_dump(mode="json")["card"] for k, p in promises.items()},
            "fixed": digest(fixed),
            "waivers": waivers_in_effect(contract),
            "statistics": [settings.confidence, settings.resamples, settings.seed, settings.best_of],
            "beta": contract.training.reward_beta,
        }
        if any("measured" in item for item in fixed or ()):
            own["weakened"] = weakened_limits(fixed or (), contract, _measured(workspace, contract, identity))
    elif name == "report":
        own = {
            "results": workspace.outputs_digest("read", "before", "train", "after", "prove", "release"),
            "contract": digest(contract.model_dump(mode="json")),
        }
    else:
        own = {"adapter": workspace.outputs_digest("train"), "verdict": workspace.outputs_digest("prove")}
    return {**identity, **own, **more}


def _measured(workspace: Workspace, contract: Contract, identity: dict[str, str]) -> Measured:
    """How the limits of a measured run are measured."""
    probes = workspace.read_records(workspace.probes, Probe.from_json)
    return Measured(contract, probes, stage_inputs("after", workspace, contract, identity))


def require(workspace: Workspace, contract: Contract, identity: dict[str, str], *names: str) -> None:
    """Refuse evidence that was made under other settings than the contract's, or was altered since.

    Raises:
        RunFolderError: a stage was not done, or not with these settings.
    """
    for name in names:
        workspace.check_outputs(name)
        if not workspace.is_done(name, stage_inputs(name, workspace, contract, identity)):
            raise RunFolderError(
                f"the stage {name!r} was done with other settings than these",
                where=str(workspace),
                remedy=f"demeanor run --resume {workspace} does it again",
            )


def _versions() -> dict[str, str]:
    """Of Python and of the libraries that the numbers depend on."""
    import platform
    from importlib.metadata import version

    libraries = ("torch", "transformers", "trl", "peft", "accelerate")
    return {"python": platform.python_version(), **{name: version(name) for name in libraries}}


def _stage(
    plan: Plan,
    name: str,
    work: Callable[[], dict[str, Any] | None],
    outputs: tuple[Path, ...],
    progress: Progress,
    **more: Any,
) -> None:
    inputs = stage_inputs(name, plan.workspace, plan.contract, plan.identity, **more)
    progress.stage(name, done=plan.workspace.is_done(name, inputs))
    plan.workspace.stage(name, inputs, work, *outputs)


def _is_out_of_memory(error: RuntimeError) -> bool:
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text


@contextmanager
def keeping_what_is_done(workspace: Workspace) -> Iterator[None]:
    """Adds to a failure how to go on, so that nobody starts over."""
    hint = f"; what was done is kept, go on with: demeanor run --resume {workspace}"
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted("interrupted" + hint) from None
    except (Interrupted, StageError) as error:
        raise type(error)(str(error) + hint) from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _is_out_of_memory(error):
            raise
        need = "out of memory; a smaller per_device_train_batch_size, max_length or batch_size needs less"
        raise StageError(need + hint) from error
    except OSError as error:
        raise StageError(f"{error.strerror or error} {error.filename or ''}".rstrip() + hint) from error
