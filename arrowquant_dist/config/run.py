"""How to run it: sizes, engine, storage. Only what changes bytes counts in a plan's fingerprint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from arrowquant_dist.config.checks import (
    check_bool,
    check_choice,
    check_keys,
    check_mapping,
    check_text,
    check_whole,
    invalid,
    shown,
)

COMPRESSIONS = ("zstd", "none")
ENGINES = ("auto", "inline", "ray")
MAX_WORKERS = 100_000
KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
_UNITS: dict[str, int] = {
    "": 1,
    "b": 1,
    **{f"{prefix}ib": 1 << 10 * (power + 1) for power, prefix in enumerate("kmgt")},
    **{f"{prefix}b": 1000 ** (power + 1) for power, prefix in enumerate("kmgt")},
}


def parse_size(text: str | int, key: str = "size") -> int:
    """Bytes: 1048576, "64MiB", "2GB" (1000s), "1.5 GiB". Raises InvalidConfig naming `key`."""
    if isinstance(text, int) and not isinstance(text, bool):
        if text < 0:
            raise invalid(key, f"must not be negative, not {shown(text)}")
        return text
    match = (
        re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([a-z]*)", text.strip().lower())
        if isinstance(text, str)
        else None
    )
    if match is None or match[2] not in _UNITS:
        raise invalid(key, f"must be a size such as 64MiB, 2GB or a number of bytes, not {shown(text)}")
    whole, _, fraction = match[1].partition(".")
    unit = _UNITS[match[2]]
    return int(whole) * unit + (int(fraction) * unit // 10 ** len(fraction) if fraction else 0)


@dataclass(frozen=True, slots=True)
class RunConfig:
    """How a run goes, never what comes out; sizes may be given as texts ("64MiB"), and are stored in bytes.

    block_bytes: a layer larger than this (in the source's dtype) is cut into row blocks; a worker's memory is
    a small multiple. 64 KiB to 1 GiB, since no stored value may reach 2 GiB.
    shard_bytes: source bytes that one worker takes at a time and writes as one part; at most, unless one
    block or one per-tensor layer has more.
    compression: of the parts, `zstd` or `none` (plain ranges for serving).
    engine: `inline` (threads), `ray`, or `auto`: ray where there is an address. workers: how many, None: as
    many as there are CPUs. overwrite: replace what is at the target.
    storage_options: fsspec's, for source and target; source_storage_options and target_storage_options come
    on top for one of them. They may hold secrets, so they are in no repr, fingerprint or report.

    Raises InvalidConfig, which names the field.
    """

    block_bytes: int = 64 * MIB
    shard_bytes: int = 512 * MIB
    compression: str = "zstd"
    engine: str = "auto"
    address: str | None = None
    workers: int | None = None
    overwrite: bool = False
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)
    source_storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)
    target_storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)

    def __post_init__(self) -> None:
        self._set_size("block_bytes", 64 * KIB, GIB)
        self._set_size("shard_bytes", 64 * KIB, TIB)
        check_choice("compression", self.compression, COMPRESSIONS)
        check_choice("engine", self.engine, ENGINES)
        if self.address is not None:
            check_text("address", self.address)
            if self.engine == "inline":
                raise invalid("address", "is Ray's, and engine is inline; leave it out or choose engine ray")
        if self.workers is not None:
            check_whole("workers", self.workers, 1, MAX_WORKERS)
        check_bool("overwrite", self.overwrite)
        for name in _OPTIONS:
            object.__setattr__(self, name, dict(check_mapping(name, getattr(self, name))))

    @property
    def options_of_source(self) -> dict[str, Any]:
        return {**self.storage_options, **self.source_storage_options}

    @property
    def options_of_target(self) -> dict[str, Any]:
        return {**self.storage_options, **self.target_storage_options}

    def replace(self, **changes: Any) -> RunConfig:
        """A copy with the fields that are given; None leaves a field as it is, like a flag not typed."""
        given = {name: value for name, value in changes.items() if value is not None}
        check_keys(given, _NAMES, {})
        return replace(self, **given)

    def byte_settings(self) -> dict[str, Any]:
        """What changes the bytes at the target, and so belongs to a plan and its fingerprint."""
        return {name: getattr(self, name) for name in ("block_bytes", "shard_bytes", "compression")}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """Keys may be left out. Raises InvalidConfig, which names the key."""
        check_keys(values, _NAMES, {})
        return cls(**values)

    def _set_size(self, name: str, lowest: int, highest: int) -> None:
        nbytes = parse_size(getattr(self, name), name)
        if not lowest <= nbytes <= highest:
            limits = f"from {_size_text(lowest)} to {_size_text(highest)}"
            raise invalid(name, f"must be {limits}, not {shown(getattr(self, name))}")
        object.__setattr__(self, name, nbytes)


_OPTIONS = ("storage_options", "source_storage_options", "target_storage_options")
_NAMES = tuple(f.name for f in fields(RunConfig))


def _size_text(nbytes: int) -> str:
    unit = max((unit for unit in (KIB, MIB, GIB, TIB) if nbytes % unit == 0), default=1)
    names = {1: "bytes", KIB: "KiB", MIB: "MiB", GIB: "GiB", TIB: "TiB"}
    return f"{nbytes // unit} {names[unit]}"
