"""Does the training teach what the exam asks? Pairs that hold prompts of held-out, probe or benchmark files.

A pair holds a prompt exactly (but for capitals and white space), nearly (Jaccard index of word 3-grams of the whole
prompts), or in passing: an n-gram of it stands somewhere in the pair's turns or replies. n is 13, as is usual for
contamination (Brown et al. 2020, Language Models are Few-Shot Learners, appendix C, which takes n from 8 to 13 by the
length of the texts); of a prompt of 8 to 12 words it is the whole prompt; a shorter one is only looked for exactly and
nearly. What is mostly a form that many prompts share is not looked for. Prompts that an exam and a training share are
counted under the first of the three that they fall under.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from demeanor.audit.asked import Asked, AskedFile, asked_files, read_asked
from demeanor.audit.check import Check, Context, Found, Scope
from demeanor.audit.near import clusters, near_duplicates
from demeanor.audit.shingles import Shingles, ngrams
from demeanor.audit.texts import digests, prompt_shingles, prompt_text
from demeanor.pairs.files import source_name
from demeanor.records import PreferencePair
from demeanor.statistics import estimate_share

_WHAT = {"heldout": "held-out prompts", "probes": "probes", "benchmark": "benchmark prompts"}
_HOW = {"exact": "stand in the pairs", "near": "stand in the pairs in nearly the same words",
        "overlap": "share a run of words with a pair"}  # fmt: skip


def overlaps(pairs: Sequence[PreferencePair], scope: Scope) -> dict[str, Any]:
    """A look: which pairs hold n-grams of the asked prompts, and which prompts that are.

    Returns:
        pairs [pairs, files] bool, prompts [k] int64: places in `Asked`.
    """
    files = tuple(asked_files(scope))
    if not files:
        return {"pairs": np.zeros((len(pairs), 0), bool), "prompts": np.empty(0, np.int64)}
    asked = read_asked(files)
    held, prompts = np.zeros((len(pairs), len(files)), bool), np.zeros(len(asked), bool)
    if asked.grams:
        texts = [text for pair in pairs for text in (prompt_text(pair.prompt), pair.chosen, pair.rejected)]
        for size, (text, _, grams) in ngrams(texts, asked.grams).items():
            sought, (owner, gram) = asked.grams[size], asked.owners[size]
            place = np.minimum(np.searchsorted(sought, grams), len(sought) - 1)
            hits = sought[place] == grams
            found = np.unique(np.stack([text[hits] // 3, place[hits]], axis=1), axis=0)  # (pair, n-gram)
            in_files = np.zeros((len(sought), len(files)), bool)
            in_files[gram, asked.file[owner]] = True
            np.logical_or.at(held, found[:, 0], in_files[found[:, 1]])
            seen = np.zeros(len(sought), bool)
            seen[found[:, 1]] = True
            prompts[owner[seen[gram]]] = True
    return {"pairs": held, "prompts": np.flatnonzero(prompts)}


def _ready(scope: Scope) -> None:
    if files := tuple(asked_files(scope)):
        read_asked(files)


def _find(context: Context) -> Iterable[Found]:
    files = tuple(asked_files(context.scope))
    if not files or not len(context.store):
        return
    asked, prompt = read_asked(files), context.column(digests, "prompt")
    exact_asked = np.isin(asked.digests, prompt)
    shingles = Shingles.join(context.seen[prompt_shingles])
    links, _ = near_duplicates(shingles, context.limits["near"], seed=context.scope.seed, other=asked.shingles)
    overlapping = context.column(overlaps, "pairs")
    in_passing = np.zeros(len(asked), bool)
    for block in context.seen[overlaps]:
        in_passing[block["prompts"]] = True
    near_asked, near_files = _spread(asked, shingles, links)
    for number, file in enumerate(files):
        own = asked.file == number
        exact = np.isin(prompt, asked.digests[own])
        near_pairs = near_files[:, number] & ~exact
        yield from _of_file(
            context,
            file,
            int(own.sum()),
            {
                "exact": (exact_asked & own, exact),
                "near": (near_asked & ~exact_asked & own, near_pairs),
                "overlap": (
                    in_passing & ~near_asked & ~exact_asked & own,
                    overlapping[:, number] & ~near_pairs & ~exact,
                ),
            },
        )


def _spread(asked: Asked, shingles: Shingles, links: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which prompts [prompts] bool are linked, and which pairs to which files [pairs, files] bool.

    A link is one of all prompts with the same shingles, on both sides.
    """
    exam, own = (clusters(len(of), near_duplicates(of, 1.0)[0]) for of in (asked.shingles, shingles))
    in_files = np.zeros((len(asked), len(asked.files)), bool)
    in_files[exam, asked.file] = True
    held = np.zeros((len(shingles), len(asked.files)), bool)
    np.logical_or.at(held, own[links[:, 0]], in_files[exam[links[:, 1]]])
    return np.isin(exam, exam[links[:, 1]]), held[own]


def _of_file(
    context: Context, file: AskedFile, num: int, found: dict[str, tuple[np.ndarray, np.ndarray]]
) -> Iterable[Found]:
    confidence, limits = context.scope.confidence, context.limits
    most = {"exact": limits["max_exact"], "near": limits["max_near"], "overlap": 1.0}
    for kind, (asked, pairs) in found.items():
        hits = int(asked.sum())
        if not hits and not pairs.any():
            continue
        what = f"{hits:,} of {num:,} {_WHAT[file.kind]} {_HOW[kind]} (pairs: {int(pairs.sum()):,})"
        if not hits:
            what = f"{int(pairs.sum()):,} more pairs share a run of words with those {_WHAT[file.kind]}"
        grave = hits / num > most[kind]
        yield Found(
            kind=f"{file.kind}_{kind}",
            severity="blocks" if grave else "warns",
            what=what,
            measure=f"share of the {_WHAT[file.kind]}",
            estimate=estimate_share(hits, num, confidence),
            remedy="take these pairs out of the training, or these prompts out of the exam: what was taught proves "
            "nothing about what was not",
            group=source_name(file.name),
            pairs=np.flatnonzero(pairs),
        )


CHECK = Check(
    name="leakage",
    about="prompts of held-out pairs, probes and benchmarks that the pairs would teach",
    kinds=tuple(f"{file}_{how}" for file in _WHAT for how in _HOW),
    find=_find,
    looks=(digests, prompt_shingles, overlaps),
    limits={
        "near": (0.5, "Jaccard index of word 3-grams from which prompts are near-duplicates"),
        "max_exact": (0.01, "share of a file's prompts that the pairs may hold exactly"),
        "max_near": (
            0.05,
            "share of a file's prompts that the pairs may hold nearly; most are other questions of one form",
        ),
    },
    bounds={"near": (0, 1)},
    ready=_ready,
)
