"""How objects are reached: fsspec's options; how requests over a network are split, timed and repeated; and how files
of this machine are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from arrowquant_dist.config.arguments import known_arguments
from arrowquant_dist.config.checks import (
    check_bool,
    check_keys,
    check_number,
    check_whole,
    invalid,
    kind_of,
)
from arrowquant_dist.config.choices import DirectWrites
from arrowquant_dist.config.sizes import KIB, MIB, checked_size, is_size

_SIZES = {"range_bytes": 64 * KIB, "upload_bytes": 5 * MIB}  # and the lowest value of each


@known_arguments
@dataclass(frozen=True, slots=True)
class Transfer:
    """How requests to an object store are split, timed and repeated. It has no effect on local paths.

    range_bytes: size of the ranges that a longer read is split into, which are read side by side.
    upload_bytes: size of a part of a multipart upload; 5 MiB is the lowest that S3 takes.
    parts_in_flight: maximum number of parts of one upload to S3 that are sent at a time; a writer keeps these in
        memory, and the part that is being filled.
    requests: maximum number of requests in flight at a time for one open store.
    connect_timeout: seconds within which a connection must be established.
    request_timeout: seconds without a byte after which a request is given up; a request that sends a body may take 4 s
        more for each MiB of it.
    retries: how often a request is repeated that failed in a way that may pass (time-out, reset, truncated response,
        429, 5xx).
    backoff: seconds before the first repetition. Waits double up to 30 s, and each takes between half and all of its
        time at random: by default 31 to 62 s altogether, in which a server may restart.
    read_twice: read every range twice, and accept it when both answers are equal. Over https the connection notices a
        wrong byte; over plain http nothing else would.
    hedges: maximum number of second requests at a time, on S3 alone, for ranges that take three times as long as 95 of
        100 like them (before eight of them are known, a quarter of request_timeout): the first answer counts. Each
        takes `range_bytes` of memory while it runs. 0: none.

    Raises InvalidConfig, which names the field.
    """

    range_bytes: int = 8 * MIB
    upload_bytes: int = 16 * MIB
    parts_in_flight: int = 2
    requests: int = 8
    connect_timeout: float = 10.0
    request_timeout: float = 60.0
    retries: int = 8
    backoff: float = 0.25
    read_twice: bool = False
    hedges: int = 0

    def __post_init__(self) -> None:
        for name, lowest in _SIZES.items():
            object.__setattr__(self, name, checked_size(name, getattr(self, name), lowest, 512 * MIB))
        check_bool("read_twice", self.read_twice)
        check_whole("parts_in_flight", self.parts_in_flight, 1, 64)
        check_whole("requests", self.requests, 1, 256)
        check_whole("retries", self.retries, 0, 100)
        check_whole("hedges", self.hedges, 0, 64)
        for name, lowest_seconds in (("connect_timeout", 0.05), ("request_timeout", 0.05), ("backoff", 0.0)):
            check_number(name, getattr(self, name), lowest_seconds, 3600.0)

    @classmethod
    def of(cls, value: Transfer | Mapping[str, Any]) -> Transfer:
        """`value`, or the Transfer of a mapping whose keys may be left out. Raises InvalidConfig."""
        if isinstance(value, Transfer):
            return value
        if not isinstance(value, Mapping):
            raise invalid("transfer", f"must be a mapping of keys to values, not {kind_of(value)}")
        check_keys(value, [f.name for f in fields(cls)], {})
        for (
            name,
            given,
        ) in value.items():  # a text may be a misplaced storage option, so it is not shown
            if isinstance(given, str) and (name not in _SIZES or not is_size(given)):
                raise invalid(name, "must be a number, not a string")
        return cls(**value)


@dataclass(frozen=True, slots=True)
class Storage:
    """How a source or target is reached. options: fsspec's storage_options; they may hold secrets, so they are in no
    repr. transfer: settings of requests. direct_writes: how local files are written, `auto` (past the page cache where
    that is no slower) or `never`."""

    options: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)
    transfer: Transfer = field(default_factory=Transfer)
    direct_writes: DirectWrites = "auto"


DEFAULT_STORAGE = Storage()


def check_storage(storage: Any) -> None:
    """Raises InvalidConfig unless `storage` is a Storage; its value is not shown, since it may hold secrets."""
    if not isinstance(storage, Storage):
        raise invalid("storage", f"must be a Storage, not {kind_of(storage)}; pass Storage({{…options}})")
