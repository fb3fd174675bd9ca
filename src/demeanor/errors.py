"""One error tree.

DemeanorError              every error of ours; carries the exit code of the command line
|- InputError        (2)   the user's input is wrong: one line that says what, where and the remedy
|  |- ContractError        a key or value of the contract
|  |- PairsError           a file of pairs or probes
|  |- ModelError           a model, tokenizer or chat template
|  '- RunFolderError       a run folder that is missing, read-only, or was altered
|- StageError        (3)   a stage failed: what was kept, and how to resume
'- Interrupted     (130)   stopped by the user; the same
"""

from __future__ import annotations


class DemeanorError(Exception):
    """Base of every error raised on purpose. `str(error)` is what the user sees, without a traceback."""

    exit_code = 3


class InputError(DemeanorError):
    """The user's input is wrong.

    Args:
        what: what is wrong.
        where: the file, line, key or row, when there is one.
        remedy: what to do about it.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        self.what, self.where, self.remedy = what, where, remedy
        super().__init__((f"{where}: " if where else "") + what + (f" -- {remedy}" if remedy else ""))


class ContractError(InputError):
    """A key or value of the contract is wrong."""


class PairsError(InputError):
    """A file of pairs or probes cannot be used."""


class ModelError(InputError):
    """A model, tokenizer or chat template cannot be used."""


class RunFolderError(InputError):
    """A run folder is missing, cannot be written, or holds a file that was altered."""


class StageError(DemeanorError):
    """A stage failed on good input; the message says what was kept and how to resume."""

    exit_code = 3


class Interrupted(DemeanorError):
    """The user stopped the run; the message says what was kept and how to resume."""

    exit_code = 130


def one_line(text: object, limit: int = 300) -> str:
    """`text` on one line, cut at `limit` characters, for error messages."""
    flat = " ".join(str(text).split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"
