"""Standard streams that are closed, full, or disappear: the work is still done, or one line says why it is not.

If a process is started with a standard descriptor closed, the next file that it opens gets that number, and everything
that is printed ends up in that file. So missing descriptors are opened on the null device before anything else is.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import signal
import sys
import threading

from arrowquant_dist.progress.unheard import silence

_STREAMS = ("stdin", "stdout", "stderr")
# Errors of writing to a stream: a disk that is full or over its quota, a terminal or reader that is gone.
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF, errno.EPIPE, errno.ENXIO)

_SPELLED_OUT = "arrowquant-spelled-out"
_IN_ASCII = {
    "…": "~",
    "─": "-",
    "━": "-",
    "╸": "-",
    "╺": "-",
    "–": "-",
    "−": "-",
    "×": "x",
    "·": "*",
    "→": "->",
    "≥": ">=",
    "≤": "<=",
    "\xa0": " ",
}


def fill_missing() -> None:
    """Opens those of the three standard descriptors, and of Python's streams, that are missing, on the null device."""
    for descriptor in range(len(_STREAMS)):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened == descriptor:
                os.set_inheritable(descriptor, True)  # noqa: FBT003 - positional only
            else:
                os.dup2(opened, descriptor)
                os.close(opened)
    for name in _STREAMS:
        if getattr(sys, name) is None:
            nowhere = open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8")  # noqa: SIM115, PTH123
            setattr(sys, name, nowhere)
            setattr(sys, f"__{name}__", nowhere)


def spell_out() -> None:
    """Lets stdout and stderr write what their encoding lacks. Signs of our own, such as the lines of a table, get
    replacements that take no more columns than they do, so that everything still fits; other characters are escaped."""
    codecs.register_error(_SPELLED_OUT, _spelled_out)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_SPELLED_OUT)


def _spelled_out(error: UnicodeError) -> tuple[str, int]:
    """A replacement for the first character that could not be encoded, and the position behind it. One of two
    characters replaces the space that follows as well."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character, end = error.object[error.start], error.start + 1
    spelled = _IN_ASCII.get(character)
    if spelled is None:
        return character.encode("ascii", "backslashreplace").decode("ascii"), end
    is_followed = len(spelled) > 1 and error.object[end : end + 1] == " "
    return spelled, end + is_followed


def end_with_terminal() -> None:
    """Makes a terminal that disappears (SIGHUP) interrupt as Ctrl-C does, unless SIGHUP is ignored, as under nohup."""
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, signal.default_int_handler)


def is_of_output(error: OSError) -> bool:
    """Whether the error is that a standard stream cannot be written. Errors of files have a file name, or are
    ArrowQuantErrors."""
    return error.filename is None and error.errno in _UNWRITABLE


def give_up_output(error: OSError) -> None:
    """Says in one line that the results were not written; says nothing if it is the reader who closed the pipe."""
    silence(sys.stdout)
    if error.errno != errno.EPIPE:
        reason = error.strerror or type(error).__name__
        say(
            f"error: cannot write the output ({reason}); the work itself is done. Send the output somewhere else"
        )


def say(line: str) -> None:
    """Writes a line to stderr, if it can still be written."""
    try:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    except OSError:
        silence(sys.stderr)
