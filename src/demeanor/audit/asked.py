"""Files of prompts that no training pair may hold: held-out pairs, probes, benchmarks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

import numpy as np

from demeanor.audit.check import Scope
from demeanor.audit.shingles import Shingles, ngrams, offsets_of, shingle
from demeanor.audit.texts import digest, prompt_key, prompt_text
from demeanor.errors import InputError, PairsError
from demeanor.pairs import iter_pairs, read_rows
from demeanor.pairs.columns import first_text
from demeanor.pairs.probes import DIALOGS, PROMPTS, kind_of, probe_path, read_probes
from demeanor.records import DroppedRow, Message

COLUMNS = (  # of a file that holds prompts and no pairs; the first that a row has
    "prompt", "goal", "question", "query", "instruction", "behavior", "behaviour", "text", "input", "user",
)  # fmt: skip
SHORTEST, LONGEST = 8, 13  # words of the n-grams that are looked for
MAX_FORM = 10  # a run of SHORTEST words that stands in the prompts more often is their form, and leaks nothing
_BLOCK = 2_000


@dataclass(frozen=True)
class AskedFile:
    """`kind` is heldout, probes or benchmark; `name` what the user calls it."""

    kind: str
    name: str


@dataclass(frozen=True)
class Asked:
    """All prompts of all files, as arrays."""

    files: tuple[AskedFile, ...]
    file: np.ndarray  # [prompts] int64: which of `files`
    digests: np.ndarray  # [prompts] uint64
    shingles: Shingles
    grams: dict[int, np.ndarray]  # size -> the n-grams of that size that are looked for, rising [k] uint64
    owners: dict[int, tuple[np.ndarray, np.ndarray]]  # size -> which prompt holds which of them, by gram

    def __len__(self) -> int:
        return len(self.file)


def asked_files(scope: Scope) -> list[AskedFile]:
    promises = scope.contract.promises if scope.contract else {}
    # minimal pairs and plain texts are no prompts
    named = [promise.probes for promise in promises.values() if promise.probes]
    probes = [name for name in named if _holds_prompts(name)]
    kinds = (("heldout", scope.heldout), ("probes", probes), ("benchmark", scope.benchmarks))
    return list(dict.fromkeys(AskedFile(kind, name) for kind, names in kinds for name in names))


@lru_cache(maxsize=64)
def _holds_prompts(name: str) -> bool:
    return kind_of(probe_path(name)) in (None, PROMPTS, DIALOGS)


@lru_cache(maxsize=1)
def read_asked(files: tuple[AskedFile, ...]) -> Asked:
    """Read all files; once in each process.

    The n-grams that give a prompt away are all those of LONGEST words, or the whole of a prompt from SHORTEST words on,
    but none that is form for more than a half.

    Raises:
        InputError: a file cannot be read, or holds no prompts.
    """
    of, keys, blocks, forms = [], [], [], []
    runs: dict[int, list[tuple[np.ndarray, ...]]] = {size: [] for size in range(SHORTEST, LONGEST + 1)}
    num = num_words = 0
    for number, file in enumerate(files):
        prompts = _prompts(file.name)
        while block := list(islice(prompts, _BLOCK)):
            texts = [prompt_text(prompt) for prompt in block]
            found = ngrams(texts, (1, *range(SHORTEST, LONGEST + 1)))
            forms.append((found[SHORTEST][1] + num_words, found[SHORTEST][2]))
            for size in range(SHORTEST, LONGEST + 1):
                text, word, grams = found[size]
                kept = ~np.isin(text, found[size + 1][0]) if size < LONGEST else slice(None)
                runs[size].append((text[kept] + num, word[kept] + num_words, grams[kept]))
            keys.append(digest(map(prompt_key, block)))
            blocks.append(shingle(texts))
            of.append(np.full(len(block), number))
            num, num_words = num + len(block), num_words + len(found[1][0])
    begins, grams = (np.concatenate(column) for column in zip(*forms, strict=True))
    before = offsets_of(_is_form(begins, grams, num_words))  # words of a form before each word
    sought, owners = {}, {}
    for size, parts in runs.items():
        text, word, grams = map(np.concatenate, zip(*parts, strict=True))
        own = 2 * (before[word + size] - before[word]) <= size
        if own.any():
            sought[size], which = np.unique(grams[own], return_inverse=True)
            owners[size] = (text[own], which)
    return Asked(files, np.concatenate(of), np.concatenate(keys), Shingles.join(blocks), sought, owners)


def _is_form(words: np.ndarray, grams: np.ndarray, num_words: int) -> np.ndarray:
    """[num_words] bool: the word is in a run of SHORTEST words, each `grams` beginning at `words`, that stands in the
    prompts more than MAX_FORM times.
    """
    _, which, counts = np.unique(grams, return_inverse=True, return_counts=True)
    begins = words[counts[which] > MAX_FORM]
    steps = np.bincount(begins, minlength=num_words + 1) - np.bincount(begins + SHORTEST, minlength=num_words + 1)
    return np.asarray(np.cumsum(steps)[:-1] > 0)


def _prompts(name: str) -> Iterator[tuple[Message, ...]]:
    """The prompts of pairs of any shape, or of a file with a column of prompts."""
    if kind_of(probe_path(name)) == DIALOGS:
        yield from (probe.prompt for probe in read_probes(name, "").probes)
        return
    name = str(probe_path(name))
    try:
        rows = iter_pairs(name, labelled=True)
    except PairsError as error:
        yield from _column(name, error)
        return
    for row in rows:
        if not isinstance(row, DroppedRow):
            yield row.prompt


def _column(name: str, error: PairsError) -> Iterator[tuple[Message, ...]]:
    num = 0
    for _, row in read_rows(name):
        text = first_text(row, COLUMNS)
        if text is not None:
            num += 1
            yield (Message("user", text),)
    if not num:
        remedy = f"give pairs, or a table or JSON lines with a column called {', '.join(COLUMNS)}"
        raise InputError("holds no prompts", where=name, remedy=remedy) from error
