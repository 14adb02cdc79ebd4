"""Checks and deletes a file as one step, among all processes that do it in this way.

A file system has no "delete this file if it is still that one". So whoever deletes a file locks the file itself first
(its inode, not its name), and checks that the name still leads to it. Another file can only take the name after the
present one was deleted, and whoever wants to delete it waits for the lock: nothing changes between check and
deletion. Creating a file needs no lock, since an existing file is never overwritten.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_WAIT_SECONDS = 10.0  # a lock is held for two system calls; a process that takes longer was stopped there
_PAUSE_SECONDS = 0.01
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)


@contextmanager
def locked_file(path: Path) -> Iterator[os.stat_result]:
    """Locks the file at `path`, so that nobody else who locks it deletes it meanwhile.

    Raises FileNotFoundError if there is none, TimeoutError (an OSError) if another process does not release it. On a
    file system without locks only the exclusion is lost: two processes that delete at once may not notice each other.
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
    """Opens the file for writing if allowed, since NFS gives no exclusive lock on a file opened for reading."""
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
                message = "another process holds the lock on this file and seems to be stopped; end it"
                raise TimeoutError(errno.ETIMEDOUT, message, str(path)) from error
            time.sleep(_PAUSE_SECONDS)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return
        else:
            return
