"""What a limit needs and the probes cannot give, said before hours are spent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from demeanor.attack_settings import is_over
from demeanor.contract import Contract, Limit
from demeanor.promises import is_counted, is_sampled, is_share, over_words
from demeanor.records import Probe


def power_notes(contract: Contract, probes: Sequence[Probe]) -> list[str]:
    """One line a limit that so few probes cannot show.

    For counted outcomes that is exact: what even a run without any violation cannot show. For exact probabilities it
    rests on the assumption that the line states, and says how rare the kinds of prompt are that no probe need be of.
    Of nats, tokens and rewards nothing is known before the run. Clusters of probes count as their effective number.
    """
    from demeanor.significance import (
        MASS_SHARE,
        MASS_VARIATION,
        probes_for_mass,
        probes_for_power,
        probes_for_share,
        share_unseen,
    )

    settings, notes = contract.measurement, []
    for name, promise in contract.promises.items():
        for limit in promise.limits:
            own = [probe for probe in probes if probe.behaviour == name and is_over(limit.over, probe)]
            sampled = is_sampled(limit.measure)
            sizes = Counter(probe.cluster or probe.id for probe in own).values()
            num = sum(sizes) ** 2 // sum(size**2 for size in sizes) if own else 0
            if sampled:  # at most so many of the probes that were given, and of each family that was made
                drawn = Counter(probe.attack if probe.wraps else None for probe in own)
                num = min(num, sum(min(count, settings.max_sampled_probes) for count in drawn.values()))
            if limit.measure == "violating_adaptive_mass":
                num = min(num, settings.adaptive.max_probes)
            if not num or (sampled and not settings.samples):
                continue
            confidence = limit.confidence or settings.confidence
            rule = f"{over_words(limit.measure, limit.over)} {limit.rule} at {100 * confidence:g} % confidence"
            room = _room(limit)
            if is_counted(limit.measure) and room is not None:
                allowed, best = room
                need = probes_for_share(allowed, confidence)
                if need is None:
                    notes.append(f"{name}: no number of probes can show {rule}")
                elif num < need:
                    more = probes_for_power(allowed, confidence, allowed / 2)
                    half = f" (some {more:,} if half of what is allowed occurs)" if more else ""
                    notes.append(f"{name}: {num:,} probes cannot show {rule}, {best}: you need {need:,}{half}")
            elif is_share(limit.measure) and limit.kind == "max":
                need = probes_for_mass(confidence)
                if num < need:
                    notes.append(
                        f"{name}: {num:,} probes are few for {rule}: you need {need:,} where the mean is "
                        f"{MASS_SHARE:g} of the limit and the standard deviation {MASS_VARIATION:g} times the mean"
                    )
                rare = 100 * share_unseen(num, confidence)
                notes.append(
                    f"{name}: whatever {num:,} probes show of {rule}, of kinds of prompt rarer than {rare:.2g} % they "
                    "show nothing"
                )
    return notes


def _room(limit: Limit) -> tuple[float, str] | None:
    """The share that may occur at most, and in which best case that is all that matters; None: not known."""
    if limit.kind == "max":
        return limit.bound, "even if none violates" if limit.measure.startswith("violating") else "even at 0"
    if limit.kind == "min":
        return 1.0 - limit.bound, "even if all do"
    if limit.kind == "within":
        return limit.bound, "even if nothing changes"
    if limit.kind == "max_increase" and limit.bound > 0:
        return limit.bound, "if nothing changes"
    if limit.kind == "min_increase" and limit.bound < 0:
        return -limit.bound, "if nothing changes"
    return None
