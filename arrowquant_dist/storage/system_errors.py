"""Translates the operating system's errors, with a next step."""

from __future__ import annotations

import errno

from arrowquant_dist.errors import CutObject, StorageError, counted

_FULL = "free some space and run the same command again, finished work is kept"
_HINTS = {
    errno.ENOSPC: f"the disk is full; {_FULL}",
    errno.EDQUOT: f"the disk quota is full; {_FULL}",
    errno.EFBIG: "the file is larger than this system allows; raise the limit (ulimit -f), or choose smaller files",
    errno.EACCES: "permission denied; check the owner and the mode",
    errno.EPERM: "permission denied; check the owner and the mode",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.ENAMETOOLONG: "a name is longer than this system allows; choose a shorter one",
    errno.ENOTSUP: "the file system does not support this; choose another place",
    errno.EMFILE: "too many open files; raise `ulimit -n`",
}


def storage_error(error: OSError, url: str, byte_range: tuple[int, int] | None = None) -> StorageError:
    """The operating system's error as a StorageError, with a next step."""
    hint = _HINTS.get(error.errno or 0, "look at the cause and run the same command again")
    return StorageError(f"{hint} ({error.strerror or error})", uri=url, byte_range=byte_range)


def short_read(url: str, start: int, wanted: int, got: int) -> CutObject:
    return CutObject(ends_early(wanted - got), uri=url, byte_range=(start, start + wanted))


def ends_early(nbytes: int) -> str:
    """nbytes: number of missing bytes."""
    missing = counted(nbytes, "byte")
    return (
        f"the object ends {missing} too early; it was cut or replaced since it was listed, so fetch it again"
    )
