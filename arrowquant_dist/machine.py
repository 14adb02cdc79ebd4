"""What this process may use of its machine, and what it has used."""

from __future__ import annotations

import os
import platform
import resource
import sys
from pathlib import Path

_M_MMAP_THRESHOLD = -3  # malloc.h


def usable_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_nbytes() -> int:
    """Of the machine, or what its control group leaves to this process, if that is less."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found.append(int(Path(path).read_text("ascii")))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return min(found)


def processor_name() -> str:
    """What the kernel calls it; of systems that do not say, its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def status_nbytes(name: str) -> int:
    """Of this process, as Linux counts it. name: `VmRSS`, what is resident, or `VmHWM`, the most of it so far.

    Raises OSError or IndexError where the kernel does not say."""
    status = Path("/proc/self/status").read_text("ascii")
    return int(status.split(f"{name}:")[1].split(maxsplit=1)[0]) * 1024


def resident_nbytes() -> int | None:
    """What is resident of this process now; None where the system does not say."""
    try:
        return status_nbytes("VmRSS")
    except (OSError, IndexError):
        return None


def peak_memory_nbytes() -> int:
    """The process's largest resident set so far.

    Linux: what the kernel counts for this program; getrusage there begins with what its parent had when it forked.
    """
    try:
        return status_nbytes("VmHWM")
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def give_back_large_memory() -> None:
    """Has glibc give pieces of 1 MiB and more back to the system when they are freed, in this process from now on.

    By itself it learns from the sizes that are freed, up to 32 MiB, and keeps such pieces for each thread: an export
    with 256 MiB for two workers took 370 MiB, and takes 204 so, in the same time. A calibration of blocks of 3 MB took
    763 to 784 MiB, by the order in which two threads freed what, and takes 721 to 725 so, in 1 % more of CPU time.
    Ray's workers are told by their environment (engine/ray/cluster.py). Other systems' libraries know no such word, and
    are left alone.
    """
    import ctypes

    tell = getattr(ctypes.CDLL(None), "mallopt", None)
    if tell is not None:
        tell(_M_MMAP_THRESHOLD, 1 << 20)


def give_back_freed_memory() -> None:
    """Gives the system what the allocators of Arrow and glibc keep of freed memory, once much of it was freed.

    Of MiniLM's codes 14 to 20 MB stayed so after they were read, twice the size of those of 2 bits. Nothing changes in
    how either allocates from then on. Other systems' libraries know no such word, and are left alone.
    """
    import ctypes

    import pyarrow as pa

    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
