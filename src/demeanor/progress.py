"""What a stage tells the person who waits: headings, lines, a bar. The library is silent; the command line prints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[..., None]  # advance(done_now=1, **figures)


class Progress:
    """Silent. `cli/console.py` has the one that prints."""

    def stage(self, name: str, *, done: bool) -> None:
        """A stage begins, or was done before and is skipped."""

    def say(self, line: str) -> None:
        """One line for the user."""

    @contextmanager
    def bar(self, label: str, total: int | None) -> Iterator[Advance]:
        """A progress bar over `total` items, None where nobody knows; call what it yields with the number done and
        figures to show."""
        yield lambda done_now=1, **figures: None


class Named(Progress):
    """Passes all on to another, its bars under a name of their own."""

    def __init__(self, progress: Progress, label: str) -> None:
        self._progress, self._label = progress, label

    def stage(self, name: str, *, done: bool) -> None:
        self._progress.stage(name, done=done)

    def say(self, line: str) -> None:
        self._progress.say(line)

    @contextmanager
    def bar(self, label: str, total: int | None) -> Iterator[Advance]:
        with self._progress.bar(self._label, total) as advance:
            yield advance
