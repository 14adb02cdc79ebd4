"""Standard streams that are closed, full, or go away: the work is done, or one line says why not.

A process that was started with a standard descriptor closed gets its number for the next file that it opens, and what
anybody prints ends up in there. So missing ones are opened to nowhere before anything else is.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading

from arrowquant_dist.progress.unheard import silence

_STREAMS = ("stdin", "stdout", "stderr")
# What writing to a stream may end with: a disk that is full or over its quota, a terminal or reader that is gone.
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF, errno.EPIPE, errno.ENXIO)


def fill_missing() -> None:
    """Gives the process three standard descriptors and Python its three streams, to nowhere where there was none."""
    for descriptor in range(len(_STREAMS)):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened == descriptor:
                os.set_inheritable(descriptor, True)  # noqa: FBT003 - by place alone
            else:
                os.dup2(opened, descriptor)
                os.close(opened)
    for name in _STREAMS:
        if getattr(sys, name) is None:
            nowhere = open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8")  # noqa: SIM115, PTH123
            setattr(sys, name, nowhere)
            setattr(sys, f"__{name}__", nowhere)


def end_with_terminal() -> None:
    """A terminal that disappears (SIGHUP) interrupts as Ctrl-C does, unless that is ignored, as under nohup."""
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, signal.default_int_handler)


def is_of_output(error: OSError) -> bool:
    """Whether it is a standard stream that cannot be written. Those of files have a name, or are our own errors."""
    return error.filename is None and error.errno in _UNWRITABLE


def give_up_output(error: OSError) -> None:
    """Says in one line that results were not written, quietly where who read them has had enough."""
    silence(sys.stdout)
    if error.errno != errno.EPIPE:
        reason = error.strerror or type(error).__name__
        say(
            f"error: cannot write the output ({reason}); the work itself is done. Send the output somewhere else"
        )


def say(line: str) -> None:
    """A line on stderr, for whoever still hears."""
    try:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    except OSError:
        silence(sys.stderr)
