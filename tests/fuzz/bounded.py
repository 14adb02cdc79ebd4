"""Runs one hostile input in a process of its own, with a memory limit, and reports how it ended."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import CHECKOUT

MAX_RESIDENT_NBYTES = 1_500_000_000
_SECONDS = 120  # only a process that never ends takes that long, even on a busy machine
_CODE = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
from arrowquant_dist.cli import main
try:
    main()
finally:
    # getrusage counts what the process had before exec, which is the tests' own.
    peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
    sys.stderr.write(f"\\npeak={peak}\\n")
"""


@dataclass(frozen=True, slots=True)
class Ended:
    """How the process ended.

    returncode: negative if a signal ended it. output, error: its stdout and stderr. peak_nbytes: its largest resident
    memory.
    """

    returncode: int
    output: str
    error: str
    peak_nbytes: int

    @property
    def is_one_sentence(self) -> bool:
        """Whether the input was refused as bad, in one line and within the limits."""
        lines = self.error.splitlines()
        return (
            self.returncode == 2
            and len(lines) == 1
            and len(lines[0]) < 2000
            and "Traceback" not in self.error
            and self.peak_nbytes < MAX_RESIDENT_NBYTES
        )


def arrowquant(*arguments: str, cwd: Path) -> Ended:
    """Runs the program as a user would."""
    done = subprocess.run(
        [sys.executable, "-c", _CODE, *arguments],
        check=False,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        env={"PYTHONPATH": str(CHECKOUT), "PATH": "/usr/bin:/bin", "HOME": str(cwd)},
    )
    error, _, peak = done.stderr.rpartition("\npeak=")
    return Ended(done.returncode, done.stdout, error.strip(), int(peak or 0))
