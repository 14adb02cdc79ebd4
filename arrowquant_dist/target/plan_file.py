"""run/plan.arrow as the target needs it: the identity of the run, and the files that the run copies.

It is an Arrow IPC file with a seal before its footer, where Arrow's readers do not look: the digest of all other
bytes. Arrow trusts what it reads (a flipped bit in a buffer's offset has crashed the process), so a sealed file is
passed to Arrow only if the digest matches. Files of releases before the seal are validated as far as Arrow can.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Self

import pyarrow as pa
import xxhash

from arrowquant_dist.errors import CorruptWeights
from arrowquant_dist.strict_json import parse_json

FINGERPRINT_KEY = b"arrowquant.fingerprint"
SIDECARS_KEY = b"arrowquant.sidecars"
RUN_KEY = b"arrowquant.run"  # the id of the run that wrote the plan
_SEAL = b"aqd-xxh3"  # on both sides of the digest, so that damage to one cannot make the file look unsealed
_TAIL_NBYTES = 10  # of an Arrow file: the footer's length and the magic
_RUN_ID = re.compile(rb'"([0-9a-f]{32})"')


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """The identity of a run. fingerprint: that of its plan. run_id: the id of the run, which distinguishes two runs
    with equal plans."""

    fingerprint: str
    run_id: bytes | None

    @property
    def name(self) -> str:
        """The run's id as 32 hexadecimal digits, as used in manifests, commits, reports and object names.

        If the plan has no id, as in the first release, or a damaged one: a hash of the fingerprint and what there is
        of the id.
        """
        found = _RUN_ID.fullmatch(self.run_id or b"")
        return (
            found[1].decode()
            if found
            else xxhash.xxh3_128_hexdigest(self.fingerprint.encode() + (self.run_id or b""))
        )


@dataclass(frozen=True, slots=True, eq=False)
class PlannedRun:
    """The plan found at a target. sidecars: paths of the files that its run copies from the source."""

    table: pa.Table
    identity: RunIdentity
    sidecars: frozenset[str]

    @classmethod
    def of(cls, table: pa.Table) -> Self:
        """table: a plan with the run's id, as `read_plan_file` returns it."""
        identity = RunIdentity(fingerprint_of(table), run_of(table))
        return cls(table, identity, frozenset(sidecars_of(table)))


def with_run_id(plan_table: pa.Table, run_id: bytes) -> pa.Table:
    return plan_table.replace_schema_metadata({**(plan_table.schema.metadata or {}), RUN_KEY: run_id})


def plan_file(table: pa.Table) -> bytes:
    """The plan as a sealed Arrow IPC file. Equal plans and ids give equal bytes."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return _sealed(bytes(sink.getvalue()))


def read_plan_file(data: bytes, uri: str) -> pa.Table:
    """The inverse of `plan_file`, with validated buffers. uri: for errors. Raises CorruptWeights if it is damaged.

    The content of the columns is checked by `plan.plan_from_table`.
    """
    try:
        _check_seal(data)
        # as in dataset.bare: Arrow's threads must not get a Python object
        options = pa.ipc.IpcReadOptions(use_threads=False)
        table = pa.ipc.open_file(pa.BufferReader(data), options=options).read_all()
        table.validate(full=True)
        fingerprint_of(table)
        sidecars_of(table)
    except (
        pa.ArrowException,
        OSError,
        ValueError,
        KeyError,
        TypeError,
    ) as error:  # ValueError: bad UTF-8 too
        message = f"the plan of the run is damaged ({error}); fetch it again, or start over with --overwrite"
        raise CorruptWeights(message, uri=uri) from error
    return table


def _sealed(data: bytes) -> bytes:
    footer = _footer_start(data)
    return data[:footer] + _seal_of(data[:footer], data[footer:]) + data[footer:]


def _check_seal(data: bytes) -> None:
    """Raises ValueError if a sealed file is not what was written."""
    if _SEAL not in data:
        return
    footer = _footer_start(data)
    seal = max(footer - len(_seal_of(b"", b"")), 0)
    if data[seal:footer] != _seal_of(data[:seal], data[footer:]):
        raise ValueError("its bytes are not those that were written")


def _seal_of(*parts: bytes) -> bytes:
    state = xxhash.xxh3_128()
    for part in parts:
        state.update(part)
    return _SEAL + bytes(state.digest()) + _SEAL


def _footer_start(data: bytes) -> int:
    length = int.from_bytes(data[-_TAIL_NBYTES : -_TAIL_NBYTES + 4], "little")
    return max(len(data) - _TAIL_NBYTES - length, 0)


def fingerprint_of(table: pa.Table) -> str:
    """The fingerprint in the schema's metadata. Raises KeyError, ValueError and TypeError."""
    fingerprint = parse_json((table.schema.metadata or {})[FINGERPRINT_KEY])
    if not isinstance(fingerprint, str):
        raise TypeError("its fingerprint is not a string")
    return fingerprint


def run_of(table: pa.Table) -> bytes | None:
    run: bytes | None = (table.schema.metadata or {}).get(RUN_KEY)
    return run


def sidecars_of(table: pa.Table) -> set[str]:
    """Paths of the files that the plan's run copies from the source. Raises ValueError."""
    paths: Any = parse_json((table.schema.metadata or {}).get(SIDECARS_KEY, b"[]"))
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise ValueError("its sidecars are not a list of paths")
    return set(paths)
