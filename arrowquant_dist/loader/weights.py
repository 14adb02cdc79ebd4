"""The weights of a dataset as torch tensors, by name, by rows, as a stream, or into a module."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

from arrowquant_dist.config import Storage, parse_size
from arrowquant_dist.config.checks import check_bool, check_options, check_whole, shown
from arrowquant_dist.config.run import MAX_WORKERS
from arrowquant_dist.dataset.assemble import Rows
from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.dataset.prefetch import Load, Stream, load_now
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.loader.opened import LoaderSettings, OpenDataset, rows_of
from arrowquant_dist.loader.slots import DECODED_DTYPES, LoadedKeys, Slots
from arrowquant_dist.loader.tensors import as_tensor
from arrowquant_dist.location import Location, location
from arrowquant_dist.storage.uris import is_local
from arrowquant_dist.tensor import QuantizedTensor

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LoaderStats:
    """What a loader did so far. nbytes_read: asked of the store for weights. seconds: that callers waited.
    peak_nbytes: the most that was in flight, stored and decoded bytes together."""

    nbytes_read: int
    seconds: float
    peak_nbytes: int


class WeightLoader:
    """The weights of a V1 or V2 dataset as torch tensors, in the source's dtype and the caller's own memory.

    A mapping by name (`loader[name]`, `in`, `len`, `keys()`) over every name of the source, tied ones too.
    Iterating gives pairs, `for name, tensor in loader`, in storage order and read ahead; a tied name comes
    right after the one it is stored under, as a tensor of its own.

    uri: a text or a path object. memory_budget: bytes or text as "2GiB"; bounds what is in flight, stored and decoded
    bytes together, of all that this loader does at a time (what malloc keeps of freed memory comes on top). A layer
    that does not fit alone raises MemoryBudgetExceeded. verify: checksums of all that is read (CorruptWeights names
    layer, object and bytes). dequantize=False gives QuantizedTensors. dtype: of floating-point layers,
    instead of the source's. workers: threads that read and decode, by default as many as there are CPUs, and
    8 where requests go over a network.

    A copy, a pickle and a forked child's loader open the dataset anew, with the same settings and a budget of their
    own. A pickle holds the storage_options, secrets among them: it is for other processes, not to be kept.

    Opening reads no weights. Raises NotFound, CorruptWeights, IncompleteDataset, InvalidConfig. Thread-safe.
    """

    def __init__(
        self,
        uri: Location,
        memory_budget: str | int = "2GiB",
        storage_options: Mapping[str, Any] | None = None,
        *,
        verify: bool = True,
        dequantize: bool = True,
        dtype: torch.dtype | str | None = None,
        workers: int | None = None,
    ) -> None:
        place = location(uri, "uri")
        check_bool("verify", verify)
        check_bool("dequantize", dequantize)
        name = _dtype_name(dtype)
        if name is not None and not dequantize:
            raise InvalidConfig("dtype goes with dequantize=True only; leave one of them out")
        if workers is not None:
            check_whole("workers", workers, 1, MAX_WORKERS)
        limit = parse_size(memory_budget, "memory_budget")
        storage = Storage(
            {} if storage_options is None else check_options("storage_options", storage_options)
        )
        self._start(LoaderSettings(place, storage, limit, verify, dequantize, name, workers))

    def _start(self, settings: LoaderSettings) -> None:
        opened = OpenDataset(settings, is_local=is_local(settings.uri))
        self._settings = replace(
            settings, uri=opened.dataset.uri
        )  # whatever directory the next one is opened in
        self._opened = opened
        self._is_closed = False
        self._seconds = 0.0

    def __reduce__(self) -> tuple[Any, ...]:
        self._check_open()
        return _reopened, (self._settings,)

    def __repr__(self) -> str:
        return f"WeightLoader({self._settings.uri!r}, {len(self)} layers)"

    def __getitem__(self, name: str) -> Any:
        """The whole layer. UnknownLayer (a KeyError) has the nearest names."""
        return self.read(name)

    def __contains__(self, name: object) -> bool:
        dataset = self._opened.dataset
        return isinstance(name, str) and (name in dataset.layers or name in dataset.aliases)

    def __len__(self) -> int:
        return len(self._opened.dataset.layers) + len(self._opened.dataset.aliases)

    def keys(self) -> list[str]:
        """Every name of the source, in the order of iteration."""
        return [name for names in self._opened.names.values() for name in names]

    def layer(self, name: str) -> StoredLayer:
        """What is stored under a name: its shape, its dtype, its blocks. Reads nothing; UnknownLayer as `read`."""
        return self._open().dataset.layer(name)

    @property
    def memory_nbytes(self) -> int:
        """The memory budget."""
        return self._settings.memory_nbytes

    def __iter__(self) -> Generator[tuple[str, Any]]:
        """Pairs of name and tensor. Leaving the loop early stops the threads."""
        opened = self._open()
        loads = [load for names in opened.names.values() for load in self._named_loads(opened, names)]
        for pairs in self._stream(opened, loads):
            while pairs:
                yield pairs.pop(0)

    def read(self, name: str, rows: slice | None = None) -> Any:
        """A layer, or rows of it: a slice, step 1, of the first dimension of the layer's own shape.

        Of fused experts, [experts, out, in], that is a run of experts. An indexed, uncompressed dataset is
        asked for those rows' bytes alone (and, to verify them, for what completes their 1 MiB chunks).
        """
        if not isinstance(name, str):
            message = (
                f"a layer is asked for by its name, a text, not {shown(name)}; loader.keys() has the names"
            )
            raise InvalidConfig(message, uri=self._settings.uri)
        opened = self._open()
        with self._timed():
            return load_now(self._load(opened, rows_of(opened.dataset.layer(name), rows)), opened.budget)

    def load_into(self, module: torch.nn.Module, *, strict: bool = True) -> LoadedKeys:
        """Fills the module's parameters and persistent buffers, in place, one layer after another.

        A tensor is cast to its parameter's dtype and device; a parameter on the meta device is replaced by
        one of the source's dtype. Tied parameters stay tied, and one name of them is enough. Names that are
        missing or left over, unless strict is False, and always shapes and dtypes that do not go together,
        and names that share memory in the module and have other values in the dataset, raise one
        ModelMismatch before anything is filled. What fails while weights are read (CorruptWeights,
        StorageError) leaves what was filled before; load again then. Hooks of `load_state_dict` are not run.
        Buffers that the module's state dict leaves out are left alone, on the meta device filled if the
        dataset has them.
        """
        from arrowquant_dist.loader.ties import refuse_differences

        check_bool("strict", strict)
        slots = Slots(module)
        opened = self._open()
        layers = {name: opened.dataset.layer(name) for name in self.keys()}
        loaded = slots.compare(layers, strict=strict)

        def load(key: str) -> Load[torch.Tensor]:
            return self._decoded(
                opened, rows_of(layers[key], None), self._dtype_into(slots, key, layers[key])
            )

        def differ(first: str, second: str) -> bool:
            one, other = layers[first], layers[second]
            dtype = self._dtype_into(slots, first, one)
            return opened.differ(
                one, other, (dtype, dtype if one.is_float and other.is_float else other.dtype)
            )

        refuse_differences(slots, layers, differ, lambda key: load_now(load(key), opened.budget))
        found = [keys for names in opened.names.values() if (keys := slots.keys_for(names))]
        loads = [load(keys[0]).then(partial(_pair, keys)) for keys in found]
        for keys, tensor in self._stream(opened, loads):
            slots.fill(keys, tensor)
        return loaded

    @property
    def stats(self) -> LoaderStats:
        dataset = self._opened.dataset
        peak = self._opened.budget.peak + dataset.kept_nbytes
        return LoaderStats(dataset.nbytes_read, self._seconds, peak)

    def close(self) -> None:
        """Ends running iterations and their threads. The loader reads nothing after."""
        self._is_closed = True
        if self._opened.is_of_this_process:
            for stream in [*self._opened.budget.streams]:
                stream.close()
                stream.pool.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> OpenDataset:
        """What to read from: in a forked child another one than its parent has."""
        self._check_open()
        if not self._opened.is_of_this_process:
            self._opened = OpenDataset(self._settings, is_local=is_local(self._settings.uri))
        return self._opened

    def _named_loads(self, opened: OpenDataset, names: Sequence[str]) -> list[Load[list[tuple[str, Any]]]]:
        """One load that gives every name a tensor of its own; or one each, where their sum would not fit."""
        load = self._load(opened, rows_of(opened.dataset.layer(names[0]), None))
        extra = load.result_nbytes * (len(names) - 1)
        if load.peak_nbytes + extra > opened.budget.limit_nbytes:
            return [load.then(partial(_named, [name])) for name in names]
        return [load.then(partial(_named, names), extra)]

    def _load(self, opened: OpenDataset, rows: Rows) -> Load[Any]:
        if not self._settings.dequantize:
            return opened.assembler.quantized(rows)
        dtype = (self._settings.dtype if rows.layer.is_float else None) or rows.layer.dtype
        return self._decoded(opened, rows, dtype)

    def _dtype_into(self, slots: Slots, key: str, layer: StoredLayer) -> str:
        """What a layer is decoded to that fills the key's tensor."""
        wanted = slots.dtype(key) or self._settings.dtype if layer.is_float else None
        return wanted or layer.dtype

    @staticmethod
    def _decoded(opened: OpenDataset, rows: Rows, dtype: str) -> Load[torch.Tensor]:
        return opened.assembler.values(rows, dtype).then(lambda values: as_tensor(values, dtype))

    def _stream(self, opened: OpenDataset, loads: Sequence[Load[T]]) -> Generator[T]:
        results = iter(Stream(loads, opened.budget, opened.workers))
        try:
            while True:
                with self._timed():
                    result = next(results, None)
                if result is None:
                    return
                yield result
                del result  # or the next one would be read while this one is still held here
        finally:
            results.close()

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds += time.perf_counter() - start

    def _check_open(self) -> None:
        if self._is_closed:
            raise InvalidConfig("this loader is closed; open another", uri=self._settings.uri)


def _reopened(settings: LoaderSettings) -> WeightLoader:
    loader = WeightLoader.__new__(WeightLoader)
    loader._start(settings)
    return loader


def _dtype_text(dtype: torch.dtype | str) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype_name(dtype: torch.dtype | str | None) -> str | None:
    if dtype is not None and _dtype_text(dtype) not in DECODED_DTYPES:
        raise InvalidConfig(f"dtype is {dtype}; one of {', '.join(DECODED_DTYPES)} is possible")
    return None if dtype is None else _dtype_text(dtype)


def _named(names: Sequence[str], value: Any) -> list[tuple[str, Any]]:
    """The value under its first name, copies of it under the others."""
    return [(names[0], value), *((name, _copy(value)) for name in names[1:])]


def _pair(keys: list[str], tensor: torch.Tensor) -> tuple[list[str], torch.Tensor]:
    return keys, tensor


def _copy(value: Any) -> Any:
    if not isinstance(value, QuantizedTensor):
        return value.clone()
    arrays = {name: getattr(value, name).copy() for name in ("codes", "scales", "zero_points")}
    return replace(value, **arrays)
