"""Looking at a file and deleting it as one step, among all processes that do it this way.

A file system has no "delete this file if it is still that one". Who deletes locks the file itself (its inode, not its
name) first, and looks whether the name still leads to it. Another file can only come to a name that was deleted before,
and whoever wants to delete this one waits for the lock: between looking and deleting nothing changes. Who creates needs
no lock, since nothing is created over a file that is there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_WAIT_SECONDS = 10.0  # for a process that is between two system calls; longer, and it was stopped there
_PAUSE_SECONDS = 0.01
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)


@contextmanager
def locked_file(path: Path) -> Iterator[os.stat_result]:
    """The file at `path`, which nobody else who locks it deletes meanwhile.

    FileNotFoundError where none is there. TimeoutError (an OSError) where another process does not let go of it. Where
    the file system has no locks only this is lost: two that delete at once may not see each other.
    """
    while True:
        descriptor = _opened(path)
        try:
            _lock(descriptor, path)
            stat = os.fstat(descriptor)
            if os.path.samestat(stat, path.stat()):
                yield stat
                return
        finally:
            os.close(descriptor)


def _opened(path: Path) -> int:
    """To write, where that may be done: NFS locks no file exclusively that was opened to read."""
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except PermissionError:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _lock(descriptor: int, path: Path) -> None:
    until = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > until:
                message = "another process that deletes this file does not go on; end it"
                raise TimeoutError(errno.ETIMEDOUT, message, str(path)) from error
            time.sleep(_PAUSE_SECONDS)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return
        else:
            return
