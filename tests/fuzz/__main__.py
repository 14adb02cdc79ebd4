"""`python -m tests.fuzz`: runs hostile and odd inputs in large numbers and counts how they ended. Exit code 1 if one
broke a claim."""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.fuzz.campaign import Result, run_cases

COUNTS = {"safetensors": 5000, "datasets": 500, "pickles": 200}
_SHOWN_CHARS = 3000


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    for kind, count in COUNTS.items():
        parser.add_argument(f"--{kind}", type=int, default=count, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="of the first case of each kind")
    parser.add_argument("--processes", type=int, default=2, metavar="N")
    parser.add_argument("--each", action="store_true", help="a line for every case")
    given = parser.parse_args()
    cases = itertools.chain.from_iterable(
        [(kind, seed) for seed in range(given.seed, given.seed + getattr(given, kind))] for kind in COUNTS
    )
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for result in run_cases(cases, Path(folder), given.processes):
            results.append(result)
            if result.is_failure or given.each:
                head = f"{result.kind} {result.seed} {result.cpu_seconds:.1f} s"
                _say(f"{head}: {result.ended[:_SHOWN_CHARS]}")
    _say(summary(results))
    return int(any(result.is_failure for result in results))


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def summary(results: list[Result]) -> str:
    """The counts of each ending, and the largest time and memory of a case."""
    lines = []
    for kind in COUNTS:
        of_kind = [result for result in results if result.kind == kind]
        if of_kind:
            counts = Counter(result.ended.split()[0] for result in of_kind)
            peak = max(result.peak_nbytes for result in of_kind) / 1e6
            longest = max(of_kind, key=lambda result: result.cpu_seconds)
            lines.append(
                f"{kind}: {len(of_kind)} cases, {dict(sorted(counts.items()))}, peak {peak:.0f} MB, "
                f"longest {longest.cpu_seconds:.1f} s (seed {longest.seed})"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
