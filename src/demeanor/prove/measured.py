"""What a limit measures, by name and digest: fixed with the limit, so that it stays the same once scores can be seen.

Only what decides the limit's own measure counts, so that another behaviour, measure or stricter limit can be added.
Not in it: how sure one wants to be (confidence, resamples), what only decides memory and time, which server a side's
replies are asked of (`measurement.served`), and what a new training begins with (prompts, pairs, max_length): there
the limits are fixed anew. `batch_size` and the number of probes before a behaviour's own decide what is drawn: a batch
is sampled from one seed, that of its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from demeanor.attack_settings import is_over
from demeanor.contract import Contract, Limit
from demeanor.judges import identity_digest
from demeanor.judges.cards import card_of
from demeanor.objectives import OBJECTIVES
from demeanor.promises import is_of_openings, is_sampled
from demeanor.records import Probe, content_id

_SAMPLING = ("samples", "max_sampled_probes", "temperature", "max_new_tokens", "sampled_by", "batch_size")
_UNJUDGED = ("reply_tokens", "repetitive_sampled_rate")  # of sampled replies, whatever they say


@dataclass(frozen=True)
class Measured:
    """How a contract's limits are measured.

    Args:
        probes: of all behaviours, as planned, with the attacks that were made of them.
        inputs: what a measuring stage depends on (`pipeline.stage_inputs`), of which the judges, tasks, functions and
            reward models are taken.
    """

    contract: Contract
    probes: Sequence[Probe]
    inputs: Mapping[str, Any]

    def of(self, name: str, limit: Limit) -> dict[str, str]:
        """The digest of each thing that decides the limit's measure of the behaviour `name`."""
        return {part: content_id(value) for part, value in self._parts(name, limit).items()}

    def _parts(self, name: str, limit: Limit) -> dict[str, Any]:
        promise, settings, measure = self.contract.promises[name], self.contract.measurement, limit.measure
        parts: dict[str, Any] = {"measurement.seed": settings.seed}  # of the bootstrap too
        if promise.tasks is not None:
            return {**parts, "tasks": self.inputs["tasks"].get(name)}
        own = [probe for probe in self.probes if probe.behaviour == name and is_over(limit.over, probe)]
        # `unseen` is the training's; it decides only what a limit over seen or unseen attacks is over
        parts["probes"] = sorted(content_id({**probe.to_json(), "unseen": None}) for probe in own)
        sampled = is_sampled(measure)
        judged, by_rule = sampled and measure not in _UNJUDGED, promise.judge.kind == "rule"
        openings = {"violating": sorted(promise.violating_openings), "safe": sorted(promise.safe_openings)}
        if is_of_openings(measure):
            side = measure.partition("_")[0]
            parts["openings"] = openings.get(side) or openings
            parts["measurement.spellings"] = settings.spellings
        elif judged and by_rule:
            parts["openings"] = openings
        if measure == "violating_adaptive_mass":
            parts["measurement.adaptive"] = settings.adaptive.model_dump(mode="json")
        if sampled:
            parts |= {f"measurement.{key}": getattr(settings, key) for key in _SAMPLING}
            before = next((place for place, probe in enumerate(self.probes) if probe.behaviour == name), None)
            parts["place among the probes"] = before
        if judged:
            parts["patterns" if by_rule else "judge"] = (
                sorted(promise.violating_patterns)
                if by_rule
                else identity_digest(self.inputs["judges"].get(name) or {})
            )
        if measure == "violating_corrected_rate":
            card = card_of(promise.judge, settings.max_new_tokens)
            parts["card"] = None if card is None else card.model_dump(mode="json")
        if measure == "reward" and not OBJECTIVES[self.contract.training.objective].online:  # there they are trained on
            parts["rewards"] = [self.inputs.get(key) for key in ("rewards", "functions", "reward_models")]
        return parts
