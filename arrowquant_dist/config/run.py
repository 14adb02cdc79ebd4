"""How to run it: sizes, engine, storage. Only the settings that change bytes count in a plan's fingerprint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, get_args

from arrowquant_dist.config.arguments import check_made, known_arguments
from arrowquant_dist.config.checks import (
    check_bool,
    check_choice,
    check_keys,
    check_number,
    check_options,
    check_text,
    check_whole,
    invalid,
    within,
)
from arrowquant_dist.config.choices import CompressionName, DirectWrites, EngineName
from arrowquant_dist.config.sizes import GIB, KIB, MIB, TIB, checked_size
from arrowquant_dist.config.storage import Storage, Transfer
from arrowquant_dist.displays import Displayed

MAX_TENSOR_PARALLEL = 1024
MAX_WORKERS = 100_000
MAX_SHARD_ATTEMPTS = 100
MAX_EXPANSION = 1_000_000_000


@known_arguments
@dataclass(frozen=True, slots=True, repr=False)
class RunConfig(Displayed):
    """How a run is carried out, never what its result is; sizes may be given as texts ("64MiB"), and are stored in
    bytes.

    block_bytes: size above which a layer (in the source's dtype) is cut into row blocks; a worker's memory is a small
        multiple of it. 64 KiB to 1 GiB, since no stored value may reach 2 GiB.
    shard_bytes: maximum number of source bytes that one worker takes at a time and writes as one part; only a single
        block, or a layer with one scale for the tensor, may be larger.
    tensor_parallel: number of ranks for which layers are also cut: where the parts of so many ranks begin along the
        first dimension, and those of each number that divides it, so that each rank reads its own rows alone; 1:
        nowhere.
    compression: compression of the parts, `zstd` or `none` (plain ranges for serving).
    engine: `inline` (threads), `ray`, or `auto`: ray where there is an address.
    address: address of a Ray cluster; None: that of the environment variable RAY_ADDRESS, if it is set.
    workers: number of workers; None: as many as there are CPUs.
    overwrite: replace what is at the target.
    repair: quantize the damaged shards of a finished dataset again.
    shard_attempts: maximum number of attempts at a shard whose worker dies, hangs or cannot reach its storage.
    shard_deadline: seconds without a finished row block after which a worker counts as hung; None: derived from the
        time that other shards took.
    direct_writes: how parts on local disk are written. `auto`: past the page cache (O_DIRECT) where that is no slower;
        `never`: always through it, for disks and file systems that do not take direct writes well.
    max_expansion: how many times the bytes of its files a source's layers may take in their own dtypes. Codes of 1 bit
        that are decoded to float32 take 32 times as much; a source that takes far more is likely made to fill a disk.
    transfer: how requests to object stores are split, timed and repeated.
    storage_options: fsspec's options for source and target; they may hold secrets, so they are in no repr, fingerprint
        or report.
    source_storage_options, target_storage_options: options for one of them, which are added to storage_options and win
        over them.

    Raises InvalidConfig, which names the field.
    """

    block_bytes: int = 64 * MIB
    shard_bytes: int = 512 * MIB
    tensor_parallel: int = 1
    compression: CompressionName = "zstd"
    engine: EngineName = "auto"
    address: str | None = None
    workers: int | None = None
    overwrite: bool = False
    repair: bool = False
    shard_attempts: int = 4
    shard_deadline: float | None = None
    direct_writes: DirectWrites = "auto"
    max_expansion: int = 64
    transfer: Transfer = field(default_factory=Transfer)
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)
    source_storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)
    target_storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)

    def __post_init__(self) -> None:
        self._set_size("block_bytes", 64 * KIB, GIB)
        self._set_size("shard_bytes", 64 * KIB, TIB)
        check_whole("tensor_parallel", self.tensor_parallel, 1, MAX_TENSOR_PARALLEL)
        check_choice("compression", self.compression, get_args(CompressionName))
        check_choice("engine", self.engine, get_args(EngineName))
        if self.address is not None:
            check_text("address", self.address)
            if self.engine == "inline":
                raise invalid(
                    "address", "is for Ray, but engine is inline; leave it out or choose engine ray"
                )
        if self.workers is not None:
            check_whole("workers", self.workers, 1, MAX_WORKERS)
        check_bool("overwrite", self.overwrite)
        check_bool("repair", self.repair)
        if self.repair and self.overwrite:
            raise invalid("repair", "keeps what is sound, and overwrite replaces all of it; choose one")
        check_whole("shard_attempts", self.shard_attempts, 1, MAX_SHARD_ATTEMPTS)
        if self.shard_deadline is not None:
            check_number("shard_deadline", self.shard_deadline, 0.1, 7 * 24 * 3600.0)
        check_choice("direct_writes", self.direct_writes, get_args(DirectWrites))
        check_whole("max_expansion", self.max_expansion, 1, MAX_EXPANSION)
        with within("transfer"):
            object.__setattr__(self, "transfer", Transfer.of(self.transfer))
        for name in STORAGE_OPTIONS:
            object.__setattr__(self, name, check_options(name, getattr(self, name)))

    def _summary(self) -> Mapping[str, object]:
        """The settings that differ from the defaults; options of storage are not among them, as they may be secret."""
        return _unusual(self, RunConfig())

    @property
    def source_storage(self) -> Storage:
        """How the source is reached."""
        return Storage({**self.storage_options, **self.source_storage_options}, self.transfer)

    @property
    def target_storage(self) -> Storage:
        """How the target is reached and written."""
        options = {**self.storage_options, **self.target_storage_options}
        return Storage(options, self.transfer, self.direct_writes)

    def replace(self, **changes: Any) -> RunConfig:
        """A copy with some fields changed. changes: new values by field; None leaves a field as it is."""
        given = {name: value for name, value in changes.items() if value is not None}
        check_keys(given, _NAMES, {})
        return replace(self, **given)

    def byte_settings(self) -> dict[str, Any]:
        """The settings that change the bytes at the target, and so belong to a plan and its fingerprint.

        tensor_parallel is among them only where it cuts anything, so that plans of releases without it are the same.
        """
        names = ("block_bytes", "shard_bytes", "compression")
        cut = {} if self.tensor_parallel == 1 else {"tensor_parallel": self.tensor_parallel}
        return {name: getattr(self, name) for name in names} | cut

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """A RunConfig from `values` by field name; any may be left out. Raises InvalidConfig, which names the key."""
        check_keys(values, _NAMES, {})
        return cls(**values)

    def _set_size(self, name: str, lowest: int, highest: int) -> None:
        object.__setattr__(self, name, checked_size(name, getattr(self, name), lowest, highest))


STORAGE_OPTIONS = ("storage_options", "source_storage_options", "target_storage_options")
_NAMES = tuple(f.name for f in fields(RunConfig))


def _unusual(settings: RunConfig | Transfer, usual: RunConfig | Transfer) -> dict[str, object]:
    """The fields of `settings` that are shown and differ from `usual`."""
    shown = [f.name for f in fields(settings) if f.repr]
    differing = [name for name in shown if getattr(settings, name) != getattr(usual, name)]
    values = {name: getattr(settings, name) for name in differing}
    return values | {
        name: _unusual(value, Transfer()) for name, value in values.items() if isinstance(value, Transfer)
    }


def check_run(run: Any) -> None:
    """Raises InvalidConfig unless `run` is a RunConfig."""
    check_made("run", run, RunConfig)
