"""What is measured beyond the plain probes: under prefill attacks, along the reply, and by an attacker that searches.

`measure/__init__.py` measures a chunk of probes, then asks this for further values of the same scores, and further
replies. What each means is in `prefill.py`, `depth.py` and `adaptive.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from demeanor.contract import Contract, Promise
from demeanor.judges import Judge
from demeanor.measure import finite
from demeanor.measure.adaptive import Attacker
from demeanor.measure.depth import depth_of
from demeanor.measure.likelihood import Scorer
from demeanor.measure.prefill import prefill_likelihoods, prefill_rates, prefill_replies
from demeanor.measure.sample import room
from demeanor.records import Probe, Reply, Score, content_id
from demeanor.tokens import Tokenizer

Chosen = set[tuple[str, str]]  # (behaviour, id) of probes


class Deeper:
    """The further measures that the contract asks for.

    Args:
        model: a PEFT model on the side `after`, where the depth is measured.
        sampled: probes whose replies are sampled.
        attacked: probes that the attacker attacks.
    """

    def __init__(
        self,
        model: Any,
        scorer: Scorer,
        tokenizer: Tokenizer,
        contract: Contract,
        side: str,
        judges: dict[str, Judge],
        *,
        sampled: Chosen,
        attacked: Chosen,
    ) -> None:
        self.model, self.scorer, self.tokenizer, self.contract = model, scorer, tokenizer, contract
        self.side, self.judges, self.sampled, self.attacked = side, judges, sampled, attacked
        settings = contract.measurement
        self.depth = settings.depth and side == "after" and hasattr(model, "disable_adapter")
        self.attacker: Attacker | None = None
        if attacked:
            places = room(scorer.model)
            self.attacker = Attacker(scorer, tokenizer, settings.adaptive, contract.system_text(), places)

    def measure(
        self, chunk: list[Probe], start: int, scores: list[Score], show: Callable[[str], None] = lambda figure: None
    ) -> tuple[list[Score], list[Reply]]:
        """The chunk's scores with further values, and further replies.

        Args:
            start: where the chunk begins among all probes; seeds the sampling.
            show: called with how far the attacker is.
        """
        replies: list[Reply] = []
        if self.contract.measurement.prefill:
            scores, replies = self._prefill(chunk, start, scores)
        if self.depth:
            found = depth_of(self.model, self.scorer, self.tokenizer, chunk, self.contract)
            scores = [
                _with(score, values, depth_nats=curve) if curve else _with(score, values)
                for score, (values, curve) in zip(scores, found, strict=True)
            ]
        if self.attacker is not None:
            scores = [self._attacked(probe, score, show) for probe, score in zip(chunk, scores, strict=True)]
        return scores, replies

    def _prefill(self, chunk: list[Probe], start: int, scores: list[Score]) -> tuple[list[Score], list[Reply]]:
        likelihoods = prefill_likelihoods(self.scorer, self.tokenizer, chunk, self.contract)
        drawn = [probe for probe in chunk if (probe.behaviour, probe.id) in self.sampled]
        replies = prefill_replies(self.model, self.tokenizer, drawn, self.contract, self.side, start, self.judges)
        known = []
        for probe, score, values in zip(chunk, scores, likelihoods, strict=True):
            rates = prefill_rates(replies, probe, self.contract) if probe in drawn else {}
            known.append(_with(score, values | rates))
        return known, replies

    def _attacked(self, probe: Probe, score: Score, show: Callable[[str], None]) -> Score:
        if self.attacker is None or (probe.behaviour, probe.id) not in self.attacked:
            return score
        budget = self.contract.measurement.adaptive.budget
        promise = self.contract.promises.get(probe.behaviour, Promise())
        found = self.attacker.attack(
            probe.prompt,
            promise.violating_openings,
            seed=int(content_id(self.contract.measurement.seed, "adaptive", probe.behaviour, probe.id), 16),
            advance=lambda queries: show(f"{probe.behaviour} {queries}/{budget}"),
        )
        if found is None:
            return _with(score, {"violating_adaptive_mass": None})
        return _with(score, {"violating_adaptive_mass": found.mass}, adaptive=found.to_json())


def _with(score: Score, values: dict[str, float | None], **evidence: Any) -> Score:
    return replace(score, values=score.values | finite(values), evidence=score.evidence | evidence)
