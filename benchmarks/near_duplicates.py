"""Time and memory of the near-duplicate search beside datasketch's MinHashLSH used plainly, from texts to pairs.

    python -m benchmarks.near_duplicates [--sizes 2000 20000 170000] [--pairs FILE]

Texts of hh-rlhf's shape are made from real prompts and replies: of each a fresh text in which 40 % of the words are
drawn anew from all words, and in one of five cases an earlier text with 0 to 15 % of its words drawn anew. Both get the
same texts and the same shingles (sets of word 3-grams) and the same threshold. datasketch has 128 orders and answers
with candidates; ours has as many as its recall needs and checks every candidate. They take turns, each turn in a
process of its own; a process begins to measure when the texts are read and the libraries are loaded. At the smallest
size both are compared with the exact answer of all pairs (an inverted index over the shingles); there, texts with the
same set count as one. Linux only, for the memory.
Writes benchmarks/results/near_duplicates.json.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine

HERE = Path(__file__).parent
RIVALS = ("demeanor", "datasketch")
NUM_PERM = 128
N = 3
MAX_SECONDS = 400  # of a turn
CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def make_texts(source: Path, num: int, seed: int = 0) -> list[str]:
    from demeanor.pairs import read_pairs

    pairs = read_pairs(source).pairs
    real = [text.split() for pair in pairs for text in (pair.prompt[-1].content, pair.chosen, pair.rejected)]
    real = [words for words in real if words]
    pool = np.array([word for words in real for word in words])
    rng = np.random.default_rng(seed)
    texts: list[list[str]] = []
    for _ in range(num):
        again = bool(texts) and rng.random() < 0.2
        words = texts[rng.integers(len(texts))] if again else real[rng.integers(len(real))]
        changed = rng.random(len(words)) < (0.15 * rng.random() if again else 0.4)
        drawn = pool[rng.integers(len(pool), size=len(words))]
        texts.append([str(new) if change else old for old, new, change in zip(words, drawn, changed, strict=True)])
    return [" ".join(words) for words in texts]


def with_demeanor(texts: list[str], threshold: float) -> list[tuple[int, int]]:
    from demeanor.audit.near import near_duplicates, shingle

    pairs, _ = near_duplicates(shingle(texts, N), threshold)
    return list(map(tuple, pairs.tolist()))


def with_datasketch(texts: list[str], threshold: float) -> list[tuple[int, int]]:
    from datasketch import MinHash, MinHashLSH

    lsh = MinHashLSH(threshold=threshold, num_perm=NUM_PERM)
    pairs = []
    for number, text in enumerate(texts):
        hashed = MinHash(num_perm=NUM_PERM)
        hashed.update_batch([gram.encode() for gram in grams(text)])
        pairs += [(earlier, number) for earlier in lsh.query(hashed)]
        lsh.insert(number, hashed)
    return pairs


def grams(text: str) -> set[str]:
    words = re.findall(r"[^\W_]+", text.casefold())
    return {" ".join(words[i : i + N]) for i in range(max(1, len(words) - N + 1))} if words else set()


def all_pairs(texts: list[str], threshold: float) -> dict[tuple[int, int], float]:
    """The exact answer: what shares a shingle, counted."""
    sets = [grams(text) for text in texts]
    holders: dict[str, list[int]] = {}
    found: dict[tuple[int, int], float] = {}
    for number, of in enumerate(sets):
        common = Counter(earlier for gram in of for earlier in holders.get(gram, ()))
        for earlier, shared in common.items():
            value = shared / (len(of) + len(sets[earlier]) - shared)
            if value >= threshold:
                found[earlier, number] = value
        for gram in of:
            holders.setdefault(gram, []).append(number)
    return found


def work(task: dict[str, Any]) -> None:
    """One turn, in this process."""
    texts = json.loads(Path(task["texts"]).read_text())
    search = {"demeanor": with_demeanor, "datasketch": with_datasketch}[task["rival"]]
    search(texts[:3], task["threshold"])  # loads the libraries
    CLEAR.write_text("5")  # the high-water mark starts here
    before, started = resident_mib("VmRSS"), time.perf_counter()
    pairs = search(texts, task["threshold"])
    seconds = time.perf_counter() - started
    peak = resident_mib("VmHWM") - before
    Path(task["found"]).write_text(json.dumps(pairs))
    print(json.dumps({"seconds": round(seconds, 3), "peak_mib_above_texts": round(peak)}))


def resident_mib(name: str) -> float:
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name + ":"))


def collapsed(pairs: Iterable[tuple[int, int]], texts: list[str]) -> set[tuple[int, int]]:
    """Pairs of the firsts of texts with the same set, and each other of these with its first."""
    first: dict[frozenset[str], int] = {}
    of = [first.setdefault(frozenset(grams(text)), number) for number, text in enumerate(texts)]
    found = set()
    for pair in pairs:
        i, j = sorted(of[number] for number in pair)
        found |= {(i, j)} if i != j else {(i, number) for number in pair if number != i}
    return found


def contest(texts: list[str], threshold: float, turns: int, *, with_exact: bool) -> dict[str, Any]:
    results: dict[str, Any] = {rival: {"turns": []} for rival in RIVALS}
    exact = collapsed(all_pairs(texts, threshold), texts) if with_exact else None
    with tempfile.TemporaryDirectory() as folder:
        file, found = Path(folder) / "texts.json", Path(folder) / "found.json"
        file.write_text(json.dumps(texts))
        for _ in range(turns):
            for rival in RIVALS:
                task = {"texts": str(file), "found": str(found), "rival": rival, "threshold": threshold}
                command = [sys.executable, "-m", "benchmarks.near_duplicates", "--work", json.dumps(task)]
                try:
                    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=MAX_SECONDS)
                except subprocess.TimeoutExpired:
                    results[rival]["turns"].append({"seconds": None, "stopped_after": MAX_SECONDS})
                    continue
                results[rival]["turns"].append(json.loads(done.stdout))
                pairs = collapsed(json.loads(found.read_text()), texts)
                results[rival]["pairs"] = len(pairs)
                if exact is not None:
                    hits = len(pairs & exact)
                    results[rival] |= {"recall": round(hits / len(exact), 4), "precision": round(hits / len(pairs), 4)}
    medians = {}
    for rival in RIVALS:
        times = [turn["seconds"] for turn in results[rival]["turns"]]
        medians[rival] = None if None in times else float(np.median(times))
        results[rival]["median_seconds"] = medians[rival]
    ours, theirs = medians["demeanor"], medians["datasketch"]
    results["datasketch_seconds_per_ours"] = round(theirs / ours, 2) if ours and theirs else None
    if exact is not None:
        results["exact_pairs"] = len(exact)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", nargs="+", type=int, default=[2_000, 20_000, 170_000])
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--pairs", type=Path, default=machine.HH)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "near_duplicates.json")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(json.loads(options.work))
        return
    if not options.pairs.exists():
        raise SystemExit(f"{options.pairs}: no such file; give --pairs")
    kept = json.loads(options.out.read_text()) if options.out.exists() else {}
    for size in options.sizes:
        texts = make_texts(options.pairs, size)
        turns = options.turns if size < 100_000 else 1
        result = contest(texts, options.threshold, turns, with_exact=size == min(options.sizes))
        print(f"{size:,} texts: {json.dumps(result)}", flush=True)
        about = machine.describe()
        about["versions"] |= {name: importlib.metadata.version(name) for name in ("datasketch", "numpy", "scipy")}
        words = round(sum(len(text.split()) for text in texts) / size, 1)
        kept[f"{size} texts"] = {
            **result, "threshold": options.threshold, "words_a_text": words, "seed": 0, "machine": about,
        }  # fmt: skip
        machine.write(options.out, kept, with_machine=False)


if __name__ == "__main__":
    main()
