"""`python -m tests.fuzz.worker FOLDER`: runs the cases that stdin names, one per line, and reports how each ended.

Many cases share a process; peak memory is measured for each. Its parent notices if a case ends the process or takes too
long (campaign.py).
"""

from __future__ import annotations

import faulthandler
import json
import resource
import shutil
import sys
import traceback
import warnings
from pathlib import Path

ADDRESS_SPACE_NBYTES = 24 << 30  # far above what a case needs; larger requests fail in this process


def main(folder: Path) -> None:
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_NBYTES, ADDRESS_SPACE_NBYTES))
    warnings.simplefilter("ignore")
    out = sys.stdout
    sys.stdout = sys.stderr
    from tests.fuzz.cases import CASES

    for line in sys.stdin:
        kind, seed = line.split()
        place = folder / "case"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
        before = _cpu_seconds()
        try:
            ended = CASES[kind](int(seed), place)
        except BaseException:  # noqa: BLE001 - whatever it is, the campaign counts it
            ended = f"FAILED {traceback.format_exc()}"
        spent = {"peak_nbytes": _peak_nbytes(), "cpu_seconds": _cpu_seconds() - before}
        out.write(json.dumps({"ended": ended, **spent}) + "\n")
        out.flush()


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _peak_nbytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]))
