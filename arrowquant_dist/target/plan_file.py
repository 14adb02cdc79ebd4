"""run/plan.arrow as the target needs it: whose plan it is, of which run, and which files it copies."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Self

import pyarrow as pa

from arrowquant_dist.errors import CorruptWeights

FINGERPRINT_KEY = b"arrowquant.fingerprint"
SIDECARS_KEY = b"arrowquant.sidecars"
RUN_KEY = b"arrowquant.run"  # the id of the run that wrote the plan


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """Whose run it is. fingerprint: of its plan. run_id: of the run, so that equal plans of two runs are told apart."""

    fingerprint: str
    run_id: bytes | None


@dataclass(frozen=True, slots=True, eq=False)
class PlannedRun:
    """The plan at a target, as it was found. sidecars: paths of the files that its run copies from the source."""

    table: pa.Table
    identity: RunIdentity
    sidecars: frozenset[str]

    @classmethod
    def of(cls, table: pa.Table) -> Self:
        """table: with the run's id, as `read_plan_file` returns it."""
        identity = RunIdentity(fingerprint_of(table), run_of(table))
        return cls(table, identity, frozenset(sidecars_of(table)))


def with_run_id(plan_table: pa.Table, run_id: bytes) -> pa.Table:
    return plan_table.replace_schema_metadata({**(plan_table.schema.metadata or {}), RUN_KEY: run_id})


def plan_file(table: pa.Table) -> bytes:
    """The plan as an Arrow IPC file. Equal plans and ids give equal bytes."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def read_plan_file(data: bytes, uri: str) -> pa.Table:
    """The inverse of `plan_file`, with buffers that were checked. uri: for errors. CorruptWeights where it is damaged.

    What the columns say is for `plan.plan_from_table` to check.
    """
    try:
        # as in dataset.bare: no Python object for a thread of Arrow's
        options = pa.ipc.IpcReadOptions(use_threads=False)
        table = pa.ipc.open_file(pa.BufferReader(data), options=options).read_all()
        table.validate(full=True)
        fingerprint_of(table)
        sidecars_of(table)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:  # ValueError: no UTF-8 too
        message = f"the plan of the run is damaged ({error}); fetch it again, or start anew with --overwrite"
        raise CorruptWeights(message, uri=uri) from error
    return table


def fingerprint_of(table: pa.Table) -> str:
    """From the schema's metadata. KeyError, ValueError, TypeError."""
    fingerprint = json.loads((table.schema.metadata or {})[FINGERPRINT_KEY])
    if not isinstance(fingerprint, str):
        raise TypeError("its fingerprint is no text")
    return fingerprint


def run_of(table: pa.Table) -> bytes | None:
    run: bytes | None = (table.schema.metadata or {}).get(RUN_KEY)
    return run


def sidecars_of(table: pa.Table) -> set[str]:
    """Paths of the files that the plan's run copies from the source. ValueError."""
    paths: Any = json.loads((table.schema.metadata or {}).get(SIDECARS_KEY, b"[]"))
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise ValueError("its sidecars are no list of paths")
    return set(paths)
