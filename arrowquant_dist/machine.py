"""What this process may use of its machine, and how much memory it has used."""

from __future__ import annotations

import os
import platform
import resource
import sys
from pathlib import Path

_M_MMAP_THRESHOLD = -3  # malloc.h


def usable_cpus() -> int:
    """Number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_nbytes() -> int:
    """Memory of the machine in bytes, or the limit of this process's control group where that is less."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found.append(int(Path(path).read_text("ascii")))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return min(found)


def processor_name() -> str:
    """The kernel's name of the processor; its architecture on systems that give no name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def status_nbytes(name: str) -> int:
    """A size of this process in bytes, as Linux counts it. name: `VmRSS`, the resident memory, or `VmHWM`, its peak.

    Raises OSError or IndexError where the kernel does not report it."""
    status = Path("/proc/self/status").read_text("ascii")
    return int(status.split(f"{name}:")[1].split(maxsplit=1)[0]) * 1024


def resident_nbytes() -> int | None:
    """Resident memory of this process in bytes; None where the system does not report it."""
    try:
        return status_nbytes("VmRSS")
    except (OSError, IndexError):
        return None


def peak_memory_nbytes() -> int:
    """The largest resident set of this process so far, in bytes.

    On Linux this is the kernel's count for this program; getrusage's starts from what the parent had when it forked.
    """
    try:
        return status_nbytes("VmHWM")
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def give_back_large_memory() -> None:
    """Makes glibc return pieces of 1 MiB and more to the system when they are freed, in this process from now on.

    By default glibc adapts its threshold to the sizes that are freed, up to 32 MiB, and keeps such pieces for each
    thread: an export with 256 MiB for two workers took 370 MiB, and takes 204 this way, in the same time. A calibration
    of blocks of 3 MB took 763 to 784 MiB, depending on the order in which two threads freed memory, and takes 721 to
    725 this way, for 1 % more CPU time. Ray's workers get the setting by their environment (engine/ray/cluster.py).
    Systems whose C library has no such function are left alone.
    """
    import ctypes

    tell = getattr(ctypes.CDLL(None), "mallopt", None)
    if tell is not None:
        tell(_M_MMAP_THRESHOLD, 1 << 20)


def give_back_freed_memory() -> None:
    """Returns to the system the freed memory that the allocators of Arrow and glibc keep. To be called once much was
    freed.

    After MiniLM's codes were read, 14 to 20 MB stayed allocated, twice the size of its 2-bit codes. The call does not
    change how the allocators work afterwards. Systems whose C library has no such function are left alone.
    """
    import ctypes

    import pyarrow as pa

    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
