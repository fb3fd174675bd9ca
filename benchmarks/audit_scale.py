"""Time and peak memory of `demeanor audit` and `demeanor curate` from 2,000 to 170,000 pairs.

    python -m benchmarks.audit_scale [--sizes 2000 20000 170000]

The pairs are hh-rlhf's (../shared), drawn again with replacement and altered: in each a share of the words, the same
in prompt and replies, is replaced by other words of the set, so that most copies are no duplicates and some still are.
Each command is a process of its own; its peak memory is that of all its processes together, looked at 20 times a
second (what processes share is counted once: proportional set size). Prints the table and writes it, with the machine,
the versions and the seed, to benchmarks/results/audit_scale.json.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks import machine
from demeanor.pairs import read_rows

HERE = Path(__file__).parent
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2_000, 20_000, 60_000, 170_000])
    parser.add_argument("--out", type=Path, default=HERE / "results" / "audit_scale.json")
    options = parser.parse_args()
    found: list[dict[str, Any]] = []
    print(f"{'pairs':>8}  {'MB':>6}  {'command':8}  {'seconds':>8}  {'ms a pair':>9}  {'peak MiB':>8}")
    with tempfile.TemporaryDirectory() as name:
        for size in options.sizes:
            file = Path(name) / f"pairs-{size}.jsonl"
            with file.open("w") as out:
                out.writelines(json.dumps(row) + "\n" for row in altered(size))
            for command in ("audit", "curate"):
                arguments = [command, str(file), "--out", str(Path(name) / f"{command}-{size}")]
                seconds, peak = measure([sys.executable, "-m", "demeanor", *arguments])
                megabytes = file.stat().st_size / 1e6
                found.append({"pairs": size, "megabytes": round(megabytes, 1), "command": command,
                              "seconds": round(seconds, 1), "peak_mib": round(peak / 2**20)})  # fmt: skip
                print(f"{size:8,}  {megabytes:6.0f}  {command:8}  {seconds:8.1f}  {1e3 * seconds / size:9.2f}  "
                      f"{peak / 2**20:8.0f}", flush=True)  # fmt: skip
    machine.write(options.out, {"results": found, "seed": SEED})


def altered(size: int) -> Iterator[dict[str, str]]:
    """Rows of the real shape; the first are the real ones."""
    rows = [row for _, row in read_rows(machine.HH)]
    words = re.findall(r"[A-Za-z]{3,}", " ".join(row["chosen"] for row in rows))
    rng = random.Random(SEED)
    yield from rows[:size]
    for _ in range(size - len(rows)):
        row = rng.choice(rows)
        share, known = rng.choice((0.02, 0.1, 0.3, 0.3, 0.5)), {}

        def other(found: re.Match[str], share: float = share, known: dict[str, str] = known) -> str:
            word = found[0]
            if word in ("Human", "Assistant"):
                return word
            if word not in known:  # the same in prompt and replies, so that the prompts stay the same
                known[word] = rng.choice(words) if rng.random() < share else word
            return known[word]

        yield {side: re.sub(r"[A-Za-z]{3,}", other, row[side]) for side in ("chosen", "rejected")}


def measure(command: list[str]) -> tuple[float, int]:
    """(seconds, peak bytes of the process and its children)."""
    started, peak = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                own = [watched, *watched.children(recursive=True)]
                peak = max(peak, sum(item.memory_full_info().pss for item in own))
            except psutil.Error:
                pass
            time.sleep(0.05)
        told = process.stderr.read() if process.stderr else ""
    if process.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}\n{told[-2000:]}")
    return time.perf_counter() - started, peak


if __name__ == "__main__":
    main()
