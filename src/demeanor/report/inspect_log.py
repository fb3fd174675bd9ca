"""The evidence of a run as logs of inspect-ai, one a side, for whoever reads evaluations there (`inspect view`).

A probe's reply is a sample: the prompt is its input, the probe's safe replies are its target, samples of one probe are
epochs. Replies whose first n tokens were put into the model's mouth are a sample of their own, ID/prefill-n, whose
input ends with that text. The score `judge` is the judgement, with what the judge had to say; a reply that nobody
judged has none. The probe's measures are the sample's score `measures`, those that could not be computed left out and
named in the metadata. Probes of which no reply was sampled have one sample without an output.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from demeanor.contract import Contract
from demeanor.errors import InputError
from demeanor.records import SIDES, Probe, Reply, Score, content_id
from demeanor.workspace import Workspace


def write_inspect_logs(workspace: Workspace, folder: Path) -> list[Path]:
    """Write `before.eval` and `after.eval` to `folder`, as far as the sides were measured.

    Raises:
        InputError: inspect-ai is not installed, no side was measured, or the folder cannot be written.
    """
    if importlib.util.find_spec("inspect_ai") is None:
        raise InputError("inspect-ai is not installed", where="--inspect-log", remedy="pip install 'demeanor[inspect]'")
    from inspect_ai.log import write_eval_log

    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for side in SIDES:
            if workspace.scores(side).exists():
                written.append(folder / f"{side}.eval")
                write_eval_log(_log(workspace, side), str(written[-1]))
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", where=str(folder)) from None
    if not written:
        raise InputError("nothing was measured yet", where=str(workspace), remedy="demeanor measure")
    return written


def _log(workspace: Workspace, side: str) -> Any:
    from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalSpec
    from inspect_ai.model import GenerateConfig

    contract = workspace.contract()
    probes = workspace.read_records(workspace.probes, Probe.from_json)
    scores = workspace.read_records(workspace.scores(side), Score.from_json)
    replies = workspace.read_records(workspace.replies(side), Reply.from_json)
    entry = workspace.manifest()["stages"][side]
    settings = contract.measurement
    served = settings.server(side)
    name = served.model if served else contract.model if side == "before" else f"{contract.model}+{contract.name}"
    return EvalLog(
        status="success",
        eval=EvalSpec(
            eval_id=content_id(entry["inputs_sha256"], side),
            run_id=content_id(entry["inputs_sha256"]),
            created=entry["finished"].replace("Z", "+00:00"),
            task=f"{contract.name}, {side}",
            dataset=EvalDataset(name=workspace.probes.name, samples=len(probes)),
            model=f"demeanor/{name}",
            model_generate_config=GenerateConfig(
                temperature=settings.temperature, max_tokens=settings.max_new_tokens, seed=settings.seed, top_p=1.0
            ),
            config=EvalConfig(epochs=max(1, settings.samples)),
            metadata={"side": side, "inputs": entry["inputs"], "system_prompt": contract.system_text()},
        ),
        samples=_samples(contract, probes, scores, replies),
    )


def _samples(contract: Contract, probes: list[Probe], scores: list[Score], replies: list[Reply]) -> list[Any]:
    from inspect_ai.log import EvalSample
    from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser, ModelOutput
    from inspect_ai.scorer import Score as InspectScore

    from demeanor.tokens import with_system

    kinds = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}
    measured = {(score.behaviour, score.probe_id): score for score in scores}
    drawn: dict[tuple[str, str], list[Reply]] = {}
    for reply in replies:
        drawn.setdefault((reply.behaviour, reply.probe_id), []).append(reply)
    samples = []
    for probe in probes:
        key = probe.behaviour, probe.id
        values = measured[key].values if key in measured else {}
        turns = [kinds[turn.role](content=turn.content) for turn in with_system(probe.prompt, contract.system_text())]
        for reply in drawn.get(key) or [None]:  # type: ignore[list-item]
            known = {name: value for name, value in values.items() if value is not None}
            found = {"measures": InspectScore(value=known)} if known else {}
            metadata: dict[str, Any] = {
                "behaviour": probe.behaviour,
                "attack": probe.attack,
                "cluster": probe.cluster,
                "not_computed": [name for name, value in values.items() if value is None],
            }
            output = ModelOutput()
            if reply is not None and reply.fault is None:
                output = ModelOutput.from_content(f"demeanor/{contract.model}", reply.text[len(reply.forced) :])
                metadata["num_tokens"] = reply.num_tokens
            if reply is not None and reply.fault is not None:
                metadata["fault"] = reply.fault
            if reply is not None and reply.judgement is not None:
                judge = contract.promises[probe.behaviour].judge.title
                why = json.dumps(reply.why, ensure_ascii=False) if reply.why else None
                found["judge"] = InspectScore(
                    value=reply.judgement, answer=reply.text, explanation=why, metadata={"judge": judge}
                )
            elif reply is not None and reply.why:
                metadata["unscored"] = reply.why
            given, name = turns, f"{probe.behaviour}/{probe.id}"
            if reply is not None and reply.prefill:
                given, name = [*turns, ChatMessageAssistant(content=reply.forced)], f"{name}/prefill-{reply.prefill}"
                metadata |= {"prefill_tokens": reply.prefill, "prefill": reply.forced}
            messages = given if output.empty else [*given, ChatMessageAssistant(content=output.completion)]
            samples.append(
                EvalSample(
                    id=name,
                    epoch=1 if reply is None else reply.sample + 1,
                    input=given,
                    target=list(probe.safe),
                    messages=messages,
                    output=output,
                    scores=found,
                    metadata=metadata,
                )
            )
    return samples
