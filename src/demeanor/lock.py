"""One writer at a time: a lock on a file, which the kernel frees when the process that holds it dies, however it dies.

Where there are no such locks (Windows, some network file systems) nothing is locked.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from demeanor.errors import RunFolderError


class Lock:
    """The lock on `file`, which is there only while somebody holds it, or after he was killed."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._handle: int | None = None

    def take(self) -> None:
        """Nothing happens when it is held already.

        Raises:
            RunFolderError: another process holds it.
            OSError: the file cannot be made.
        """
        try:
            import fcntl
        except ImportError:
            return
        while self._handle is None:
            handle = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                raise RunFolderError(
                    "another command is writing into it",
                    where=str(self.file.parent),
                    remedy="wait until it ends, or give another --out",
                ) from None
            except OSError:  # a file system without locks
                pass
            if os.fstat(handle).st_nlink:
                self._handle = handle
            else:  # its last holder removed it between our two steps; a third process may have made a new one
                os.close(handle)

    def free(self) -> None:
        """Nothing happens when it is not held."""
        if self._handle is not None:
            with contextlib.suppress(OSError):  # somebody took the folder away
                self.file.unlink()
            os.close(self._handle)
            self._handle = None
