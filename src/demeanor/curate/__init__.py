"""Pairs -> training pairs and held-out pairs worth training on: each step may drop pairs, and says which and why.

    review    what a person decided about single pairs: out, swapped, edited             decisions.py, mend.py
    private   private data redacted, or its pairs out                                    redact.py, mend.py
    conflicts the weaker side of contradicting preferences out                           conflicts.py
    duplicates the same pair again, word for word or nearly so, out                      duplicates.py
    split     held-out clusters of prompts, whole, a share of each source and behaviour  split.py
    balance   within each side, source and behaviour, length tells nothing any more      balance.py

Conflicts come before duplicates: a label that three people gave outweighs the opposite one of one. Balance comes after
the split, so that it holds on both sides. The pairs stay on disk; in memory are arrays and, while duplicates are looked
for, shingles. The same input, settings and seed give the same bytes, however many processes work.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from demeanor.audit.private import persons_finder
from demeanor.curate.by_prompt import split_pairs
from demeanor.curate.decisions import decisions_in_words
from demeanor.curate.lists import loss_weights, one_of_each_list
from demeanor.curate.mend import mend
from demeanor.curate.settings import Settings
from demeanor.curate.steps import LENGTH, Sides, choose
from demeanor.curate.traits import Lengths, Traits, lengths_of, traits_of
from demeanor.curate.write import write_curated
from demeanor.pairs import PairStore
from demeanor.pairs.files import source_names
from demeanor.progress import Progress
from demeanor.workspace import Workspace, file_sha256

__all__ = ["Curated", "Settings", "curate_pairs", "loss_weights", "one_of_each_list", "split_pairs"]

FEW_KEPT = 0.5  # a source or behaviour that keeps less of its pairs through the balance is named


@dataclass(frozen=True)
class Curated:
    """What became of the pairs; the same is in curate.json.

    Attributes:
        steps: pairs that are left after each step, in order.
        dropped: reason -> number of rows.
        altered: how -> number of kept pairs.
        not_kept: column that no reader knows -> number of usable rows that hold something there; no file here has it.
        kept: "train" and "heldout" -> number of pairs.
        clusters: of prompts: how many there are, and how many pairs the largest has.
        lengths: "before", "train" and "heldout" -> how length and label went together.
    """

    settings: dict[str, Any]
    sources: list[dict[str, Any]]
    rows: int
    pairs_sha256: str  # of the usable pairs, as they were read
    steps: dict[str, int]
    dropped: dict[str, int]
    altered: dict[str, int]
    not_kept: dict[str, int]
    kept: dict[str, int]
    clusters: dict[str, int]
    lengths: dict[str, list[Lengths]]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        lengths = {side: [row.to_json() for row in rows] for side, rows in self.lengths.items()}
        return {**vars(self), "lengths": lengths}


def curate_pairs(
    sources: Sequence[str | Path],
    out: str | Path,
    settings: Settings | None = None,
    *,
    split: str = "train",
    limit: int | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
) -> Curated:
    """Curate the pairs of `sources` into the folder `out`: train, heldout, dropped and altered rows, and curate.json.

    Args:
        split: of a data set that has several.
        limit: read at most so many rows of each source.
        workers: processes; by default one a core, and none beside this one for a small set.

    Raises:
        PairsError: a source cannot be read, or no pair is left on a side that should have some.
        RunFolderError: `out` cannot be written, or holds something else, or a source.
        InputError: the decisions cannot be read, or persons are to be found and Presidio is not there.
    """
    settings, progress = settings or Settings(), progress or Progress()
    decisions = settings.read_decisions()
    if settings.private != "keep" and "person" in settings.kinds:
        persons_finder()  # before the pairs are read
    Workspace(out).check_curated(sources)  # before the work, not after it
    with tempfile.TemporaryDirectory(prefix="demeanor-") as folder:
        store = PairStore.collect(sources, Path(folder), split=split, limit=limit, progress=progress)
        mended = mend(store, decisions, settings.private, settings.kinds, progress, workers)
        before = traits_of(store, settings.unit, settings.model, progress, workers)
        same = not (mended.steps or mended.reasons)
        traits = before if same else traits_of(mended.pairs, settings.unit, settings.model, progress, workers)
        sides = choose(mended, traits, settings, progress, workers)
        altered = Counter(
            step.how for place in mended.pairs.places[sides.kept] for step in mended.steps.get(int(place), ())
        )
        reasons = Counter([*mended.reasons.values(), *(reason for reason, _ in sides.dropped.values())])
        notes = [decisions_in_words(decisions, mended.used)] if decisions else []
        curated = Curated(
            settings={**settings.to_json(), "split": split, "limit": limit},
            sources=[_source(store, *named) for named in zip(sources, source_names(sources), strict=True)],
            rows=sum(store.sources.values()),
            pairs_sha256=file_sha256(store.file),
            steps={"read": len(store), **sides.steps},
            dropped=dict(sorted((store.dropped + reasons).items())),
            altered=dict(sorted(altered.items())),
            not_kept=dict(sorted(store.unread.items())),
            kept={"train": len(sides.train), "heldout": len(sides.heldout)},
            clusters={"number": sides.num_clusters, "pairs of the largest": sides.largest_cluster},
            lengths={
                "before": lengths_of(before, np.arange(len(before)), settings.confidence),
                "train": lengths_of(traits, sides.train, settings.confidence),
                "heldout": lengths_of(traits, sides.heldout, settings.confidence),
            },
            notes=[*notes, *_few_kept(traits, sides)],
        )
        with Workspace(out).curating() as workspace:
            write_curated(workspace, store, mended, sides, settings, curated.to_json())
    return curated


def _source(store: PairStore, source: str | Path, name: str) -> dict[str, Any]:
    """What was read, without where it lies on this machine; the digest of a file."""
    path = Path(source).expanduser()
    return {"name": name, "shape": store.shapes[name], "sha256": file_sha256(path) if path.is_file() else None}


def _few_kept(traits: Traits, sides: Sides) -> list[str]:
    """A line for each group that lost most of its pairs to the balance."""
    lost = np.zeros(len(traits), bool)
    lost[[place for place, (reason, _) in sides.dropped.items() if reason == LENGTH]] = True
    kept = np.zeros(len(traits), bool)
    kept[sides.kept] = True
    notes = []
    for name, group in traits.groups():
        left, out = int((group & kept).sum()), int((group & lost).sum())
        if left < FEW_KEPT * (left + out):
            notes.append(f"{name}: the length balance keeps {left:,} of {left + out:,} pairs")
    return notes
