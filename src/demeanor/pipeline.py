"""The journey: which stage reads what, what each depends on, and in which order they run.

    read -> before -> train -> after -> prove -> report        and, when asked, release

Each stage is skipped when the manifest says that it was done with the same inputs, so that it can be run again alone
and a killed run goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from demeanor import __version__
from demeanor.errors import Interrupted, StageError
from demeanor.measure import measure_model
from demeanor.model import load_model
from demeanor.plan import Plan, prompt_inputs
from demeanor.progress import Progress
from demeanor.prove import prove_contract
from demeanor.records import SIDES, Message, Probe, Score, Verdict
from demeanor.release import merge_adapter
from demeanor.report import write_report
from demeanor.tokens import tokenize_pairs
from demeanor.train import train_adapter
from demeanor.workspace import Workspace, digest, file_sha256


def run(plan: Plan, progress: Progress | None = None) -> Verdict:
    """All stages up to the report. Goes on where an earlier run of the same folder stopped.

    Raises:
        StageError: a stage failed; what was done before is kept.
        Interrupted: stopped by the user; the same.
    """
    progress = progress or Progress()
    workspace = plan.workspace
    workspace.start(plan.contract)
    with keeping_what_is_done(workspace):
        read_stage(plan, progress)
        measure_stage(plan, "before", progress)
        train_stage(plan, progress)
        measure_stage(plan, "after", progress)
        verdict = prove_stage(plan, progress)
        report_stage(workspace, progress)
    return verdict


def read_stage(plan: Plan, progress: Progress) -> None:
    """Write the pairs, the probes and what was dropped."""
    workspace = plan.workspace

    def work() -> dict[str, Any]:
        workspace.write_records(workspace.train_pairs, plan.train)
        workspace.write_records(workspace.heldout_pairs, plan.heldout)
        workspace.write_records(workspace.probes, plan.probes)
        workspace.write_records(workspace.dropped, plan.dropped)
        return {"notes": plan.notes}

    outputs = (workspace.train_pairs, workspace.heldout_pairs, workspace.probes, workspace.dropped)
    _stage(plan, "read", plan.read_inputs, work, outputs, progress)


def train_stage(plan: Plan, progress: Progress) -> None:
    """Train the adapter."""
    workspace, contract = plan.workspace, plan.contract
    inputs = {
        "model": plan.source.fingerprint,
        "pairs": file_sha256(workspace.train_pairs),
        "training": contract.training.model_dump(mode="json"),
        "prompt": prompt_inputs(contract),
        "demeanor": __version__,
    }

    def work() -> dict[str, Any]:
        tokens, refused = tokenize_pairs(
            plan.train,
            plan.tokenizer,
            system=contract.system_text,
            max_length=contract.training.max_length,
        )
        if refused:
            raise StageError(f"{len(refused)} pairs can no longer be tokenized: {refused[0][1]}")
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
                    key=digest(inputs),
                    advance=step,
                    report=report,
                    say=progress.say,
                )
        workspace.write_json(workspace.training, summary)
        return {"steps": summary["steps"], "num_pairs": summary["num_pairs"], "versions": _versions()}

    _stage(plan, "train", inputs, work, (workspace.adapter, workspace.training), progress)


def measure_stage(plan: Plan, side: str, progress: Progress) -> None:
    """Measure the probes under the base model (before) or with the adapter (after)."""
    workspace, contract = plan.workspace, plan.contract
    scores_file, replies_file, partial = workspace.scores(side), workspace.replies(side), workspace.partial(side)
    inputs = {
        "model": plan.source.fingerprint,
        "adapter": workspace.outputs_digest("train") if side == "after" else None,
        "probes": file_sha256(workspace.probes),
        "openings": {
            k: [p.violating_openings, p.safe_openings, p.violating_patterns] for k, p in contract.promises.items()
        },
        "measurement": contract.measurement.model_dump(mode="json", exclude={"confidence", "resamples"}),
        "prompt": prompt_inputs(contract),
        "demeanor": __version__,
    }

    def work() -> None:
        # a partial file belongs to one set of inputs
        mine = partial.with_name(f"{side}.{digest(inputs)}.partial.jsonl")
        for stale in partial.parent.glob(f"{side}.*.partial.jsonl"):
            if stale != mine:
                stale.unlink()
        model = load_aligned(plan) if side == "after" else load_model(plan.source, contract, trees=True)
        with progress.bar(f"measure {side}", len(plan.probes)) as advance:
            scores, replies = measure_model(
                model, plan.tokenizer, plan.probes, contract, side, partial=mine, advance=advance, say=progress.say
            )
        workspace.write_records(scores_file, scores)
        workspace.write_records(replies_file, replies)
        mine.unlink(missing_ok=True)

    _stage(plan, side, inputs, work, (scores_file, replies_file), progress)


def prove_stage(plan: Plan, progress: Progress) -> Verdict:
    """Compare the two sides and judge the limits."""
    workspace, contract = plan.workspace, plan.contract
    before, after = (workspace.read_records(workspace.scores(side), Score.from_json) for side in SIDES)
    inputs = {
        "scores": workspace.outputs_digest(*SIDES),
        "limits": {k: [limit.model_dump(mode="json") for limit in p.limits] for k, p in contract.promises.items()},
        "statistics": [contract.measurement.confidence, contract.measurement.resamples, contract.measurement.seed],
        "beta": contract.training.beta,
        "demeanor": __version__,
    }

    def work() -> dict[str, Any]:
        verdict = prove_contract(before, after, contract)
        workspace.write_json(workspace.verdict, verdict.to_json())
        return {"passed": verdict.passed}

    _stage(plan, "prove", inputs, work, (workspace.verdict,), progress)
    return Verdict.from_json(workspace.read_json(workspace.verdict))


def report_stage(workspace: Workspace, progress: Progress) -> Path:
    """Write the page."""
    workspace.check_outputs("prove")
    inputs = {
        "results": workspace.outputs_digest("read", "before", "train", "after", "prove", "release"),
        "contract": file_sha256(workspace.contract_file),
        "demeanor": __version__,
    }
    progress.stage("report", done=workspace.is_done("report", inputs))
    workspace.stage("report", inputs, lambda: write_report(workspace), workspace.report)
    return Path(workspace.report)


def release_stage(plan: Plan, progress: Progress, dtype: str = "auto") -> dict[str, Any]:
    """Merge the adapter, and refuse when the merged model's numbers are not the adapter's.

    Raises:
        StageError: they differ by more than the stated tolerance; nothing is written to `model/`.
    """
    workspace = plan.workspace
    for name in ("train", "after"):
        workspace.check_outputs(name)
    inputs = {
        "model": plan.source.fingerprint,
        "adapter": workspace.outputs_digest("train"),
        "dtype": dtype,
        "demeanor": __version__,
    }

    def work() -> None:
        with workspace.writing(workspace.model) as out:
            parity = merge_adapter(
                load_aligned(plan), plan.tokenizer, plan.probes, plan.contract, out, source=plan.source, dtype=dtype
            )
        workspace.write_json(workspace.release, parity)

    with keeping_what_is_done(workspace):
        _stage(plan, "release", inputs, work, (workspace.model, workspace.release), progress)
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
    known = [
        p for p in plan.probes if p.prompt[-1].content.strip() == prompt.strip() and behaviour in (None, p.behaviour)
    ]
    if known and not violating and not safe:
        violating, safe = known[0].violating, known[0].safe
    names = [behaviour] if behaviour else [known[0].behaviour] if known else list(contract.promises)
    names = [name for name in names if name in contract.promises] or [""]
    probes = [Probe(f"ask-{name}", name, messages, violating, safe) for name in names]
    settings = contract.measurement.model_copy(update={"samples": 1, "max_sampled_probes": 1, "seed": seed})
    asked = contract.model_copy(update={"measurement": settings})
    scores: dict[str, list[Score]] = {}
    replies: dict[str, str] = {}
    for side in SIDES:
        model = load_aligned(plan) if side == "after" else load_model(plan.source, contract, trees=True)
        scores[side], sampled = measure_model(model, plan.tokenizer, probes, asked, side)
        replies[side] = sampled[0].text
    rows = []
    for place, name in enumerate(names):
        for measure, what in _ASKED.items():
            values = {side: scores[side][place].values[measure] for side in SIDES}
            if values["before"] is None or (place and "opening" not in measure):
                continue
            about = f"{name}: {what}" if "opening" in measure else what
            rows.append({"what": about, "unit": "nats" if measure.endswith("logp") else "probability", **values})
    return {"prompt": prompt, "replies": replies, "probabilities": rows}


_ASKED = {
    "violating_opening_mass": "begins with a bad opening",
    "safe_opening_mass": "begins with a good opening",
    "violating_logp": "log p of the violating reply",
    "safe_logp": "log p of the safe reply",
    "violating_choice_probability": "violating reply, of the two",
}


def load_aligned(plan: Plan) -> Any:
    """The base model with the trained adapter on it, not merged."""
    from peft import PeftModel

    base = load_model(plan.source, plan.contract, tuned=False, trees=True)
    return PeftModel.from_pretrained(base, plan.workspace.adapter).eval()


def _versions() -> dict[str, str]:
    """Of Python and of the libraries that the numbers depend on."""
    import platform
    from importlib.metadata import version

    libraries = ("torch", "transformers", "trl", "peft", "accelerate")
    return {"python": platform.python_version(), **{name: version(name) for name in libraries}}


def _stage(
    plan: Plan,
    name: str,
    inputs: dict[str, Any],
    work: Callable[[], dict[str, Any] | None],
    outputs: tuple[Path, ...],
    progress: Progress,
) -> None:
    done = plan.workspace.is_done(name, inputs)
    progress.stage(name, done=done)
    if not done:
        plan.workspace.stage(name, inputs, work, *outputs)


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
    except OSError as error:
        raise StageError(f"{error.strerror or error} {error.filename or ''}".rstrip() + hint) from error
