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
    """What a loader did so far. nbytes_read: asked of the store for weights. seconds: that callers waited.
    peak_nbytes: the most that was in flight, stored and decoded bytes together. hedged: ranges that were asked for a
    second time, since the first answer was late."""

    nbytes_read: int
    seconds: float
    peak_nbytes: int
    hedged: int = 0


class WeightLoader(Displayed):
    """The weights of a V1 or V2 dataset as torch tensors, in the source's dtype and the caller's own memory.

    A mapping by name (`loader[name]`, `in`, `len`, `keys()`) over every name of the source, tied ones too.
    Iterating gives pairs, `for name, tensor in loader`, in storage order and read ahead; a tied name comes
    right after the one it is stored under, as a tensor of its own.

    uri: a text or a path object. memory_budget: bytes or text as "2GiB"; bounds what is in flight, stored and decoded
    bytes together, of all that this loader does at a time (what malloc keeps of freed memory comes on top). A layer
    that does not fit alone raises MemoryBudgetExceeded. verify: checksums of all that is read (CorruptWeights names
    layer, object and bytes). dequantize=False gives QuantizedTensors. dtype: of floating-point layers,
    instead of the source's. workers: threads that read and decode, by default as many as there are CPUs that
    the process may use, and 8 where requests go over a network. transfer: how requests to an object store go,
    a mapping of what is to be other than usual, with the keys that `run.transfer` of a config has (of
    S3, a range that takes much longer than its like is asked for again: `hedges` at a time, 2 unless told otherwise).

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
            raise InvalidConfig("dtype goes with dequantize=True only; leave one of them out")
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
        )  # whatever directory the next one is opened in
        self._opened = opened
        self._is_closed = False
        self._seconds = 0.0

    def __reduce__(self) -> tuple[Any, ...]:
        self._check_open()
        return _reopened, (self._settings,)

    def _summary(self) -> Mapping[str, object]:
        return {"uri": self._opened.dataset.uri, "layers": len(self)} | self._settings.summary()

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
        self._check_name(name)
        return self._open().dataset.layer(name)

    @property
    def memory_nbytes(self) -> int:
        """The memory budget."""
        return self._settings.memory_nbytes

    def decoded_dtype(self, name: str) -> str:
        """What a layer is decoded to where nothing else is asked for."""
        layer = self.layer(name)
        return (self._settings.dtype if layer.is_float else None) or layer.dtype

    def as_codes(self) -> WeightLoader:
        """A loader of the same open dataset, within the same budget, that gives QuantizedTensors."""
        loader = WeightLoader.__new__(WeightLoader)
        loader._settings = replace(self._settings, dequantize=False, dtype=None)
        loader._opened = self._open()
        loader._is_closed = False
        loader._seconds = 0.0
        return loader

    def __iter__(self) -> Generator[tuple[str, Any]]:
        """Pairs of name and tensor. Leaving the loop early stops the threads."""
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
        """Pairs of name and tensor of some layers, read ahead, for `for` and `async for`.

        names: a name or glob, or several; all layers where None. What several of them say comes once. order: `given`,
        as `names` has them (storage order within a glob), or `arrival`, as they are ready. rows, columns, parallel: as
        `read` has them, of each layer. progress: called with the bytes of the tensors given so far, those of all, and
        the name, before each pair, by the thread that iterates. Tensors are the caller's own, but those of
        `stream(…).borrowed()`. Raises UnknownLayer where one of `names` matches nothing, InvalidConfig.
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
        """A layer, or a part of it: `loader.read(name, rows, columns)` is `loader[name][rows, columns]`.

        rows, columns: slices, step 1, of the first and second dimension of the layer's own shape (of fused experts,
        [experts, out, in]: a run of experts, and of outputs). parallel: one rank's part of that (TensorParallel, or a
        function of the name). Only what is asked for is decoded. An indexed, uncompressed dataset is asked for those
        rows' bytes alone (and, to verify them, for what completes their 1 MiB chunks).

        With dequantize=False, columns that do not begin with a group get smaller groups, of the same values;
        InvalidConfig where these would have fewer than 8 columns.
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
        """As `read` (rows, columns, parallel), decoded, into `tensor`, which has that shape, and its own dtype.

        A contiguous tensor of this machine's memory, pinned or not, is decoded into directly, without another one of
        its size; any other is copied to. Raises InvalidConfig for other shapes and dtypes that do not go together. What
        fails while it is read leaves the tensor with some of the values.
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
        """Fills the module's parameters and persistent buffers, in place, one layer after another.

        A tensor is cast to its parameter's dtype and device; a parameter on the meta device is replaced by
        one of the source's dtype. Tied parameters stay tied, and one name of them is enough. Names that are
        missing or left over, unless strict is False, and always shapes and dtypes that do not go together,
        and names that share memory in the module and have other values in the dataset, raise one
        ModelMismatch before anything is filled. What fails while weights are read (CorruptWeights,
        StorageError) leaves what was filled before; load again then. Hooks of `load_state_dict` are not run.
        Buffers that the module's state dict leaves out are left alone, on the meta device filled if the
        dataset has them. Contiguous tensors of this machine's memory are decoded into directly. progress: as
        `stream` has it, after each place that was filled.
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
            stream.pool.shutdown()  # a thread that still decodes would write into the module after this
        return loaded

    @property
    def stats(self) -> LoaderStats:
        """What was read so far."""
        dataset = self._opened.dataset
        peak = self._opened.budget.peak + dataset.kept_nbytes
        return LoaderStats(dataset.nbytes_read, self._seconds, peak, dataset.transferred.hedged)

    def close(self) -> None:
        """Ends running iterations and their threads, and closes its files. The loader reads nothing after."""
        self._is_closed = True
        if self._opened.is_of_this_process:
            self._opened.close()

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

    def _loads(self, allocate: Allocate = fresh) -> Loads:
        return Loads(self._open(), self._settings, allocate)

    def _lent(self) -> Lent:
        """What a borrowed stream's tensors have their values in."""
        if not self._settings.dequantize:
            message = "only decoded tensors are lent; leave .borrowed() out, or dequantize=False"
            raise InvalidConfig(message, uri=self._settings.uri)
        return Lent(self._open().lender())

    def _region(self, name: str, cut: Cut) -> Region:
        self._check_name(name)
        return cut.region(self._opened.dataset.layer(name), name)

    def _check_name(self, name: object) -> None:
        if not isinstance(name, str):
            message = (
                f"a layer is asked for by its name, a text, not {shown(name)}; loader.keys() has the names"
            )
            raise InvalidConfig(message, uri=self._settings.uri)

    def _dtype_into(self, slots: Slots, key: str, layer: StoredLayer) -> str:
        """What a layer is decoded to that fills the key's tensor."""
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
            raise InvalidConfig("this loader is closed; open another", uri=self._settings.uri)


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
        raise InvalidConfig(f"dtype is {dtype}; one of {', '.join(DECODED_DTYPES)} is possible")
    return None if dtype is None else _dtype_text(dtype)


def _copy_into(tensor: torch.Tensor, values: torch.Tensor, name: str) -> None:
    try:
        copy_into(tensor, values)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise InvalidConfig(f"the tensor does not take it ({reason}); give another", layer=name) from error
