"""What happens between training steps: checkpoints that are whole, live figures, a stop after a step.

Only transformers' trainer is known here; what touches TRL is in `on_trees.py` and the files of the trainers.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

COMPLETE = "complete.json"  # written into a checkpoint last; one without it was cut short and is not resumed from


def last_checkpoint(checkpoints: Path, key: str) -> Path | None:
    """The newest complete checkpoint of a training with the inputs `key`; all others are removed."""
    good: dict[int, Path] = {}
    for folder in checkpoints.glob("checkpoint-*"):
        try:
            marker = json.loads((folder / COMPLETE).read_text("utf-8"))
        except (OSError, ValueError):
            marker = {}
        if marker.get("key") == key:
            good[int(marker["step"])] = folder
        else:
            shutil.rmtree(folder)
    return good[max(good)] if good else None


def seconds_until(checkpoint: Path) -> float:
    """What the steps before a complete checkpoint took."""
    return float(json.loads((checkpoint / COMPLETE).read_text("utf-8")).get("seconds", 0.0))


class MarkComplete(TrainerCallback):
    """Writes the marker into each checkpoint once all else of it is on disk, with the seconds that led to it."""

    def __init__(self, key: str) -> None:
        self.key, self.seconds_before, self.started = key, 0.0, time.perf_counter()

    def seconds(self) -> float:
        """Since training began; with `seconds_before`, those of the steps before a checkpoint it was resumed from."""
        return self.seconds_before + time.perf_counter() - self.started

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.started = time.perf_counter()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        aside = folder / f".{COMPLETE}"
        aside.write_text(json.dumps({"key": self.key, "step": state.global_step, "seconds": self.seconds()}), "utf-8")
        aside.replace(folder / COMPLETE)


class WholeWindows(TrainerCallback):
    """Puts off checkpoints, and a stop, to the end of a window of steps that share their samples: a training that is
    resumed samples anew. Must stand after `Watch`.

    Args:
        window: steps.
    """

    def __init__(self, window: int) -> None:
        self.window, self.owed = window, False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.owed = self.owed or control.should_save
        inside = state.global_step % self.window != 0 and state.global_step < state.max_steps
        control.should_save = self.owed and not inside
        if inside:
            control.should_training_stop = False
        self.owed = self.owed and inside


class Watch(TrainerCallback):
    """Reports each step and each log, warns once of likelihood displacement, and stops after a step when asked.

    Args:
        beta: rewards are divided by it to give changes of log p in nats.
        sft_weight: what holds the chosen replies up already.
        advance: called with the number of steps done, then of all.
        report: called with each log's figures.
        say: called with a warning.
        stop: asked after each step; True saves a checkpoint and ends the training.
    """

    PATIENCE = 5  # logs in a row before the warning

    def __init__(
        self,
        beta: float,
        sft_weight: float,
        advance: Callable[[int, int], None],
        report: Callable[[dict[str, float]], None],
        say: Callable[[str], None],
        stop: Callable[[], bool],
    ) -> None:
        self.beta, self.advance, self.report, self.say, self.stop = beta, advance, report, say, stop
        self.sft_weight, self.falling, self.warned = sft_weight, 0, False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.advance(state.global_step, state.max_steps)
        if self.stop() and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if not logs or not {"rewards/chosen", "reward", "margin"} & logs.keys():
            return
        self.report(logs)
        if "rewards/chosen" not in logs:
            return
        change = float(logs["rewards/chosen"]) / self.beta
        self.falling = self.falling + 1 if change < -1.0 and float(logs["rewards/margins"]) > 0 else 0
        if self.falling == self.PATIENCE and not self.warned:
            self.warned = True
            remedy = "a larger" if self.sft_weight else "0.1 to 1 of"
            self.say(
                f"the chosen replies become less likely as a whole (now {change:+.1f} nats) while the margin grows: "
                f"likelihood displacement; {remedy} training.sft_weight holds them up"
            )
