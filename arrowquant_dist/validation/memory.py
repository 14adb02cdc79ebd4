"""Measures the memory of processes that hold all weights, each in a process of its own (resident.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from arrowquant_dist.config import Storage
from arrowquant_dist.machine import memory_nbytes
from arrowquant_dist.report import text
from arrowquant_dist.validation import resident
from arrowquant_dist.validation.figures import MemoryUse, Resident

_SHARE = 0.5  # largest share of the machine's memory that the kept weights may take
_LAST_WORDS = 300  # characters shown of a process's last line of errors


@dataclass(frozen=True, slots=True)
class Kept:
    """Weights for processes to load and keep. decoded_nbytes: size of all decoded values. ways: the forms in which they
    are kept, SOURCE, VALUES or CODES of resident.py, each in a process of its own."""

    name: str
    uri: str
    storage: Storage
    file_nbytes: int
    decoded_nbytes: int
    ways: tuple[str, ...]


def source_kept(uri: str, storage: Storage, file_nbytes: int, decoded_nbytes: int) -> Kept:
    return Kept("source", uri, storage, file_nbytes, decoded_nbytes, (resident.SOURCE,))


def dataset_kept(name: str, uri: str, storage: Storage, file_nbytes: int, decoded_nbytes: int) -> Kept:
    return Kept(name, uri, storage, file_nbytes, decoded_nbytes, (resident.VALUES, resident.CODES))


def measured_memory(kept: Sequence[Kept]) -> tuple[MemoryUse, ...]:
    """Memory use for each of `kept`, measured one after the other, or the reason why it could not be measured."""
    reasons = [_why_not(one) for one in kept]
    asked = [(one, way) for one, reason in zip(kept, reasons, strict=True) if not reason for way in one.ways]
    said = iter(_said([_question(*each) for each in asked]))
    return tuple(
        MemoryUse(one.name, one.file_nbytes, None, None, reason)
        if reason
        else _use(one, [next(said) for _ in one.ways])
        for one, reason in zip(kept, reasons, strict=True)
    )


def _use(one: Kept, said: Sequence[dict[str, Any]]) -> MemoryUse:
    """said: answer for each of its ways: {peak_nbytes, kept_nbytes} or {error}."""
    each = [None if "error" in found else Resident(**found) for found in said]
    reasons = dict.fromkeys(str(found["error"]) for found in said if "error" in found)
    return MemoryUse(
        one.name, one.file_nbytes, each[0], each[1] if len(each) > 1 else None, "; ".join(reasons)
    )


def _why_not(one: Kept) -> str:
    """Why memory cannot be measured here; empty if it can."""
    if not resident.can_measure():
        return "this system does not report resident memory"
    if one.decoded_nbytes > _SHARE * memory_nbytes():
        has = text.nbytes(memory_nbytes())
        return f"all values take {text.nbytes(one.decoded_nbytes)}, more than half of this machine's {has}"
    try:
        json.dumps(dict(one.storage.options))
    except TypeError:
        return "its storage options are not plain values, so they cannot be passed to another process"
    return ""


def _question(one: Kept, way: str) -> dict[str, Any]:
    storage = one.storage
    options, transfer = dict(storage.options), asdict(storage.transfer)
    return {"uri": one.uri, "what": way, "storage_options": options, "transfer": transfer}


def _said(questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The answers of resident.py to the questions, in their order."""
    if not questions:
        return []
    package = str(Path(__file__).parents[2])  # the child imports the same package as this process
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(  # noqa: S603 - a fixed command line, without outside input
        [sys.executable, "-P", "-m", resident.__name__],
        input=json.dumps(questions),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it printed no error"])[-1]
        return [{"error": f"the process ended with exit code {done.returncode}: {last[:_LAST_WORDS]}"}] * len(
            questions
        )
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers
