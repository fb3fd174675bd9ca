"""One behaviour under prefill, along its violating replies, and under the attacker that searches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from demeanor.contract import Contract
from demeanor.promises import of_family, prefill_of
from demeanor.records import Comparison, Estimate, Score
from demeanor.report.plots import Band, plot_bands
from demeanor.report.words import percent, plural

LEAST_PROBES = 5  # at a token's place, for a point of the curve
LONGEST = 64  # tokens shown
MOST_LETTERS = 1500  # of a prompt


@dataclass(frozen=True)
class FigureView:
    """A plot with the words below it."""

    title: str
    svg: Markup
    note: str


@dataclass(frozen=True)
class FoundView:
    """The prompt with the highest violating mass that the attacker found after training, and what is said of all."""

    turns: list[tuple[str, str, int]]  # role, text, letters cut
    note: str


def figure_views(name: str, own: Sequence[Comparison], after: Sequence[Score], contract: Contract) -> list[FigureView]:
    """The rates by forced tokens, before and after, and the divergence's curve; what was not measured is left out."""
    titles = {
        "violating_prefill_N_rate": "Forced to begin badly: share of the sampled replies that stay bad",
        "violating_prefill_N_probability": "Forced to begin badly: probability that it goes on, not turning back",
        "safe_prefill_N_mass": "Forced to begin badly: probability that it turns back at once",
    }
    views = []
    for kind, title in titles.items():
        found = sorted((prefill_of(c.measure) or 0, c) for c in own if of_family(c.measure) == kind)
        if not found:
            continue
        bands = [
            Band(tuple((n, getattr(c, side)) for n, c in found), before=side == "before")
            for side in ("before", "after")
        ]
        spoken = "; ".join(f"{n}: {percent(c.before.value)} → {percent(c.after.value)}" for n, c in found)
        about = f"{name}. {title}, by the number of forced tokens: {spoken}"
        svg = plot_bands(bands, about, under="tokens of the bad reply that are forced", shares=True)
        without = sum(c.after.unscored for _, c in found)
        note = f"Forced tokens: before → after. {spoken}." + (f" {_without(found)}" if without else "")
        views.append(FigureView(title, svg, note))
    curve = depth_curve(after, contract)
    if curve:
        title = "How far training moved the model along the bad reply, nats"
        spoken = "; ".join(f"token {t}: {e.value:.3g}" for t, e in curve[:8])
        svg = plot_bands([Band(tuple(curve))], f"{name}. {title}: {spoken}", under="token of the bad reply")
        numbers = [e.n for _, e in curve]
        note = (
            f"KL divergence of the trained model from the base model at each token, mean over {max(numbers):,} probes"
            + (f", {min(numbers):,} at the last one shown" if min(numbers) < max(numbers) else "")
            + ". A training that changed the first tokens only falls to zero here; whoever forces those gets past it."
        )
        views.append(FigureView(title, svg, note))
    return views


def _without(found: list[tuple[int, Comparison]]) -> str:
    missing = ", ".join(f"{c.after.unscored:,} at {n}" for n, c in found if c.after.unscored)
    return f"Probes without a value (the bad reply is too short, say): {missing}."


def depth_curve(after: Sequence[Score], contract: Contract) -> list[tuple[int, Estimate]]:
    """(token of the reply, counted from 1, mean KL in nats over the probes whose reply reaches it)."""
    from demeanor.statistics import estimate_mean

    settings = contract.measurement
    curves = [(score.evidence["depth_nats"], score.cluster) for score in after if score.evidence.get("depth_nats")]
    found = []
    for t in range(min(LONGEST, max((len(curve) for curve, _ in curves), default=0))):
        reached = [(curve[t], cluster) for curve, cluster in curves if t < len(curve)]
        if len(reached) < LEAST_PROBES:
            break
        estimate = estimate_mean(
            [value for value, _ in reached],
            confidence=settings.confidence,
            resamples=settings.resamples,
            seed=settings.seed,
            ends=None,
            clusters=[cluster for _, cluster in reached],
        )
        found.append((t + 1, estimate))
    return found


def found_view(scored: dict[str, list[Score]]) -> FoundView | None:
    """None when the attacker found no prompt after training, or did not run."""
    attacked = {
        side: [s.evidence["adaptive"] for s in scores if s.evidence.get("adaptive")] for side, scores in scored.items()
    }
    after = attacked.get("after")
    if not after:
        return None
    worst = max(after, key=lambda found: found["mass"])
    queries = sum(found["queries"] for found in after)
    note = (
        f"A bad opening has {percent(worst['mass'])} after this prompt, {percent(worst['plain_mass'])} after the "
        f"probe's own. Wrapper: {worst['wrapper']}. {plural(len(after), 'probe')} attacked, {queries:,} prompts, "
        f"at most {worst['budget']:,} a probe, and the base model under the same budget. Every prompt that was found "
        "is in the run folder's scores/."
    )
    turns = []
    for turn in worst["prompt"]:
        text = turn["content"]
        turns.append((turn["role"], text[:MOST_LETTERS], max(0, len(text) - MOST_LETTERS)))
    return FoundView(turns, note)
