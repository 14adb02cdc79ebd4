"""What this process may use of its machine, and what it has used."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path


def usable_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory_nbytes() -> int:
    """The process's largest resident set so far.

    Linux: what the kernel counts for this program; getrusage there begins with what its parent had when it forked.
    """
    try:
        status = Path("/proc/self/status").read_text("ascii")
        return int(status.split("VmHWM:")[1].split(maxsplit=1)[0]) * 1024
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
