"""The weights of a dataset as torch tensors, by name, by rows, as a stream, or into a module."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from arrowquant_dist.arena import Allocate, Slabs, fresh
from arrowquant_dist.config import Storage, Transfer, parse_size
from arrowquant_dist.config.checks import check_bool, check_options, check_whole, shown
from arrowquant_dist.config.run import MAX_WORKERS
from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.dataset.prefetch import Load, Stream, load_now
from arrowquant_dist.dataset.region import Region
from arrowquant_dist.dataset.together import alone
from arrowquant_dist.displays import Displayed
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.loader.lent import Lent
from arrowquant_dist.loader.loads import Loads
from arrowquant_dist.loader.names import choose
from arrowquant_dist.loader.opened import HEDGES, LoaderSettings, OpenDataset
from arrowquant_dist.loader.parts import Cut, Parallel
from arrowquant_dist.loader.slots import DECODED_DTYPES, LoadedKeys, Slots, copy_into, dtype_for
from arrowquant_dist.loader.stream import (
    Memory,
    Pairs,
    ProgressCallback,
    Told,
    WeightStream,
    check_progress,
    results,
    stream_type,
)
from arrowquant_dist.loader.whole import Destination, WholeLoads
from arrowquant_dist.location import Location, location
from arrowquant_dist.storage.uris import is_local

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class LoaderStats:
    """What a loader has read so far. nbytes_read: bytes requested from the store for weights. seconds: time that
    callers waited. peak_nbytes: most bytes in flight at a time, stored and decoded together. hedged: number of ranges
    requested a second time because the first answer was late."""

    nbytes_read: int
    seconds: float
    peak_nbytes: int
    hedged: int = 0


class WeightLoader(Displayed):
    """The weights of a V1 or V2 dataset as torch tensors, in the source's dtypes and in memory that the caller owns.

    The loader is a mapping by name (`loader[name]`, `in`, `len`, `keys()`) over every name of the source, tied names
    included. Iterating over it (`for name, tensor in loader`) gives pairs in storage order, read ahead; a tied name
    follows directly after the name it is stored under, as a tensor of its own.

    uri: the dataset, a string or a path object. memory_budget: bytes, or a string such as "2GiB"; limits the stored and
    decoded bytes in flight in all that this loader does at one time (freed memory that malloc keeps comes on top). A
    layer that does not fit alone raises MemoryBudgetExceeded. storage_options: options for fsspec. verify: whether to
    check the checksums of all that is read (CorruptWeights names layer, object and bytes). dequantize: False to get
    QuantizedTensors. dtype: dtype of floating-point layers, instead of the source's. workers: threads that read and
    decode; by default as many as CPUs that the process may use, or 8 if requests go over a network. transfer: settings
    of requests to an object store that differ from the defaults, with the keys of `run.transfer` in a config (on S3, a
    range that takes much longer than others is requested again: `hedges` at a time, 2 by default).

    A copy, a pickle and a forked child's loader open the dataset again, with the same settings and a budget of their
    own. A pickle contains the storage_options, secrets included: it is for other processes, not for keeping.

    Opening a dataset reads no weights. Raises NotFound, CorruptWeights, IncompleteDataset, InvalidConfig. Thread-safe.
    """

    def __init__(
        self,
        uri: Location,
        memory_budget: str | int = "2GiB",
        storage_options: Mapping[str, Any] | None = None,
        *,
        transfer: Transfer | Mapping[str, Any] | None = None,
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
            raise InvalidConfig("dtype can only be used with dequantize=True; leave one of them out")
        if workers is not None:
            check_whole("workers", workers, 1, MAX_WORKERS)
        limit = parse_size(memory_budget, "memory_budget")
        storage = Storage(
            {} if storage_options is None else check_options("storage_options", storage_options),
            _transfer({} if transfer is None else transfer),
        )
        self._start(LoaderSettings(place, storage, limit, verify, dequantize, name, workers))

    def _start(self, settings: LoaderSettings) -> None:
        opened = OpenDataset(settings, is_local=is_local(settings.uri))
        self._settings = replace(
            settings, uri=opened.dataset.uri
        )  # absolute, so that it can be opened again from another working directory
        self._opened = opened
        self._is_closed = False
        self._seconds = 0.0

    def __reduce__(self) -> tuple[Any, ...]:
        self._check_open()
        return _reopened, (self._settings,)

    def _summary(self) -> Mapping[str, object]:
        return {"uri": self._opened.dataset.uri, "layers": len(self)} | self._settings.summary()

    def __getitem__(self, name: str) -> Any:
        """Returns the whole layer. Raises UnknownLayer (a KeyError), which lists similar names."""
        return self.read(name)

    def __contains__(self, name: object) -> bool:
        dataset = self._opened.dataset
        return isinstance(name, str) and (name in dataset.layers or name in dataset.aliases)

    def __len__(self) -> int:
        return len(self._opened.dataset.layers) + len(self._opened.dataset.aliases)

    def keys(self) -> list[str]:
        """Returns every name of the source, in the order of iteration."""
        return [name for names in self._opened.names.values() for name in names]

    def layer(self, name: str) -> StoredLayer:
        """Returns what is stored under a name: shape, dtype and blocks. Reads no weights. Raises UnknownLayer."""
        self._check_name(name)
        return self._open().dataset.layer(name)

    @property
    def memory_nbytes(self) -> int:
        """The memory budget in bytes."""
        return self._settings.memory_nbytes

    def decoded_dtype(self, name: str) -> str:
        """Returns the dtype that a layer is decoded to unless the caller asks for another."""
        layer = self.layer(name)
        return (self._settings.dtype if layer.is_float else None) or layer.dtype

    def as_codes(self) -> WeightLoader:
        """Returns a loader of the same open dataset, within the same budget, that gives QuantizedTensors."""
        loader = WeightLoader.__new__(WeightLoader)
        loader._settings = replace(self._settings, dequantize=False, dtype=None)
        loader._opened = self._open()
        loader._is_closed = False
        loader._seconds = 0.0
        return loader

    def __iter__(self) -> Generator[tuple[str, Any]]:
        """Yields pairs of name and tensor. Leaving the loop early stops the threads."""
        return iter(self.stream())

    def stream(
        self,
        names: str | Iterable[str] | None = None,
        *,
        order: str = "given",
        rows: slice | None = None,
        columns: slice | None = None,
        parallel: Parallel | None = None,
        progress: ProgressCallback | None = None,
    ) -> WeightStream:
        """Returns an iterable, for `for` and `async for`, of pairs of name and tensor, read ahead.

        names: a name or a glob, or several of them; None for all layers. A layer that several of them match comes once.
        order: `given` for the order of `names` (storage order within a glob), or `arrival` for that in which tensors
        are ready. rows, columns, parallel: the part of each layer to read, as in `read`. progress: called by the
        iterating thread before each pair, with the bytes of tensors given so far, of all, and the name. Tensors belong
        to the caller, except with `.borrowed()`. Raises UnknownLayer if one of `names` matches nothing, InvalidConfig.
        """
        cut, kind = Cut(rows, columns, parallel), stream_type(order)
        check_progress(progress)
        chosen = choose(names, self.keys(), self._settings.uri)
        dataset = self._open().dataset
        is_whole = cut.is_whole and kind is Stream
        regions = {} if is_whole else {name: cut.region(dataset.layer(name), name) for name in chosen}

        def begin(memory: Memory) -> Pairs:
            loads = self._loads(memory.take)
            told = Told(progress, chosen, lambda name: loads.nbytes(cut.region(dataset.layer(name), name)))
            if is_whole:
                few = WholeLoads(loads).named(chosen)
            else:
                named = loads.named(regions)
                few = loads.batched(named) if kind is Stream else map(alone, named)
            return Pairs(self._begun(kind, loads.opened, few), self._timed, told, memory)

        return WeightStream(chosen, begin, self._lent)

    def read(
        self,
        name: str,
        rows: slice | None = None,
        columns: slice | None = None,
        *,
        parallel: Parallel | None = None,
    ) -> Any:
        """Returns a layer, or a part of it: `loader.read(name, rows, columns)` is `loader[name][rows, columns]`.

        name: the layer's name. rows, columns: slices with step 1 of the first and second dimension of its own shape
        (for fused experts, [experts, out, in], runs of experts and of outputs). parallel: takes one rank's share of
        that part (a TensorParallel, or a function of the name). Only the requested part is decoded. From an indexed,
        uncompressed dataset only those rows' bytes are requested (to verify, the whole 1 MiB chunks that they are in).

        With dequantize=False, columns that do not start at a group boundary get smaller groups with the same values.
        Raises InvalidConfig where such groups would have fewer than 8 columns.
        """
        loads = self._loads()
        region = self._region(name, Cut(rows, columns, parallel))
        with self._timed():
            return load_now(loads.one(region), loads.opened.budget)

    def read_into(
        self,
        name: str,
        tensor: torch.Tensor,
        rows: slice | None = None,
        columns: slice | None = None,
        *,
        parallel: Parallel | None = None,
    ) -> None:
        """Decodes a layer or a part of it into `tensor`, which has the shape of that part and any suitable dtype.

        name, rows, columns, parallel: as in `read`. A contiguous tensor in this machine's memory, pinned or not, is
        decoded into directly, without a second tensor of its size; for any other, the values are copied. Raises
        InvalidConfig for another shape or an incompatible dtype. An error while reading leaves it partly filled.
        """
        loads = self._loads()
        region = self._region(name, Cut(rows, columns, parallel))
        dtype = dtype_for(tensor, region)
        with self._timed():
            values = load_now(
                loads.into(region, tensor, dtype or loads.dtype(region.layer)), loads.opened.budget
            )
            if values is not tensor:
                _copy_into(tensor, values, name)

    def load_into(
        self, module: torch.nn.Module, *, strict: bool = True, progress: ProgressCallback | None = None
    ) -> LoadedKeys:
        """Fills the module's parameters and persistent buffers in place, one layer after another.

        module: the module to fill. Values are cast to their parameter's dtype and device; a parameter on the meta
        device is replaced by one of the source's dtype. Tied parameters stay tied, and one of their names is enough.
        Buffers outside the state dict are left alone; those on the meta device are filled if the dataset has them.
        Contiguous tensors in this machine's memory are decoded into directly. Hooks of `load_state_dict` are not run.

        strict: whether missing and unexpected names are errors. Those, incompatible shapes and dtypes (always), and
        names that share memory in the module but have different values in the dataset raise one ModelMismatch before
        anything is filled. An error while weights are read (CorruptWeights, StorageError) leaves the parameters filled
        until then as they are; load again. progress: called as in `stream`, after each tensor that was filled.
        """
        from arrowquant_dist.loader.ties import refuse_differences

        check_bool("strict", strict)
        check_progress(progress)
        slots = Slots(module)
        loads = self._loads(Slabs().take)
        opened = loads.opened
        layers = {name: opened.dataset.layer(name) for name in self.keys()}
        loaded = slots.compare(layers, strict=strict)

        def load(key: str) -> Load[torch.Tensor]:
            return loads.decoded(Region.whole(layers[key]), self._dtype_into(slots, key, layers[key]))

        def differ(first: str, second: str) -> bool:
            one, other = layers[first], layers[second]
            dtype = self._dtype_into(slots, first, one)
            return opened.differ(
                one, other, (dtype, dtype if one.is_float and other.is_float else other.dtype)
            )

        refuse_differences(slots, layers, differ, lambda key: load_now(load(key), opened.budget))
        places = [
            Destination(
                keys[0], slots.tensors[keys[0]], self._dtype_into(slots, keys[0], layers[keys[0]]), keys
            )
            for names in opened.names.values()
            if (keys := slots.keys_for(names))
        ]
        told = Told(
            progress, [place.name for place in places], lambda key: loads.nbytes(Region.whole(layers[key]))
        )
        stream = self._begun(Stream, opened, WholeLoads(loads).into(places))
        try:
            for keys, tensor in results(stream, self._timed):
                slots.fill(keys, tensor)
                told(keys[0])
        finally:
            stream.close()
            stream.pool.shutdown()  # otherwise a thread that is still decoding could write into the module later
        return loaded

    @property
    def stats(self) -> LoaderStats:
        """Statistics of what was read so far."""
        dataset = self._opened.dataset
        peak = self._opened.budget.peak + dataset.kept_nbytes
        return LoaderStats(dataset.nbytes_read, self._seconds, peak, dataset.transferred.hedged)

    def close(self) -> None:
        """Ends running iterations and their threads, and closes the files. The loader reads nothing afterwards."""
        self._is_closed = True
        if self._opened.is_of_this_process:
            self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> OpenDataset:
        """Returns the open dataset; a forked child opens its own instead of using its parent's."""
        self._check_open()
        if not self._opened.is_of_this_process:
            self._opened = OpenDataset(self._settings, is_local=is_local(self._settings.uri))
        return self._opened

    def _loads(self, allocate: Allocate = fresh) -> Loads:
        return Loads(self._open(), self._settings, allocate)

    def _lent(self) -> Lent:
        """Returns the memory for the tensors of a borrowed stream."""
        if not self._settings.dequantize:
            message = "only decoded tensors can be borrowed; leave out .borrowed() or dequantize=False"
            raise InvalidConfig(message, uri=self._settings.uri)
        return Lent(self._open().lender())

    def _region(self, name: str, cut: Cut) -> Region:
        self._check_name(name)
        return cut.region(self._opened.dataset.layer(name), name)

    def _check_name(self, name: object) -> None:
        if not isinstance(name, str):
            message = f"a layer's name has to be a string, not {shown(name)}; loader.keys() lists the names"
            raise InvalidConfig(message, uri=self._settings.uri)

    def _dtype_into(self, slots: Slots, key: str, layer: StoredLayer) -> str:
        """Returns the dtype that a layer is decoded to in order to fill the tensor of `key`."""
        wanted = slots.dtype(key) or self._settings.dtype if layer.is_float else None
        return wanted or layer.dtype

    @staticmethod
    def _begun(kind: type[Stream[Any]], opened: OpenDataset, loads: Iterable[Load[Any]]) -> Stream[Any]:
        return kind(loads, opened.budget, opened.workers)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds += time.perf_counter() - start

    def _check_open(self) -> None:
        if self._is_closed:
            raise InvalidConfig("this loader is closed; open a new one", uri=self._settings.uri)


def _reopened(settings: LoaderSettings) -> WeightLoader:
    loader = WeightLoader.__new__(WeightLoader)
    loader._start(settings)
    return loader


def _transfer(given: Transfer | Mapping[str, Any]) -> Transfer:
    return Transfer.of({"hedges": HEDGES, **given} if isinstance(given, Mapping) else given)


def _dtype_text(dtype: torch.dtype | str) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype_name(dtype: torch.dtype | str | None) -> str | None:
    if dtype is not None and _dtype_text(dtype) not in DECODED_DTYPES:
        raise InvalidConfig(f"dtype is {dtype}; choose one of {', '.join(DECODED_DTYPES)}")
    return None if dtype is None else _dtype_text(dtype)


def _copy_into(tensor: torch.Tensor, values: torch.Tensor, name: str) -> None:
    try:
        copy_into(tensor, values)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise InvalidConfig(
            f"its values cannot be copied into the tensor ({reason}); pass another", layer=name
        ) from error
