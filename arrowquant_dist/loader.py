"""Weights back from a dataset: by name, by rows, as a stream under a memory budget, or into a module."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

import numpy as np

from arrowquant_dist.config import Storage, parse_size
from arrowquant_dist.dataset.assemble import Assembler, Rows
from arrowquant_dist.dataset.dataset import Dataset
from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.dataset.prefetch import Budget, Load, Stream, load_now
from arrowquant_dist.errors import InvalidConfig, MemoryBudgetExceeded, ModelMismatch
from arrowquant_dist.storage.uris import is_local
from arrowquant_dist.tensor import QuantizedTensor

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

REMOTE_WORKERS = 8
DECODED_DTYPES = ("float32", "float16", "bfloat16", "float64")


@dataclass(frozen=True, slots=True)
class LoaderStats:
    """What a loader did so far. nbytes_read: asked of the store for weights. seconds: that callers waited.
    peak_nbytes: the most that was in flight, stored and decoded bytes together."""

    nbytes_read: int
    seconds: float
    peak_nbytes: int


class LoadedKeys(NamedTuple):
    """Names that `load_into` left alone: of the module without weights, of the dataset without a place."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class WeightLoader:
    """The weights of a V1 or V2 dataset as torch tensors, in the source's dtype and the caller's own memory.

    A mapping by name (`loader[name]`, `in`, `len`, `keys()`) over every name of the source, tied ones too.
    Iterating gives pairs, `for name, tensor in loader`, in storage order and read ahead; a tied name comes
    right after the one it is stored under, as a tensor of its own.

    memory_budget: bytes or text as "2GiB"; bounds what is in flight, stored and decoded bytes together, of
    all that this loader does at a time (what malloc keeps of freed memory comes on top). A layer that does
    not fit alone raises MemoryBudgetExceeded. verify: checksums of all that is read (CorruptWeights names
    layer, object and bytes). dequantize=False gives QuantizedTensors. dtype: of floating-point layers,
    instead of the source's. workers: threads that read and decode, by default as many as there are CPUs, and
    8 where requests go over a network.

    Opening reads no weights. Raises NotFound, CorruptWeights, IncompleteDataset, InvalidConfig. Thread-safe.
    """

    def __init__(
        self,
        uri: str,
        memory_budget: str | int = "2GiB",
        storage_options: Mapping[str, Any] | None = None,
        *,
        verify: bool = True,
        dequantize: bool = True,
        dtype: torch.dtype | str | None = None,
        workers: int | None = None,
    ) -> None:
        self._dtype = _dtype_name(dtype)
        if self._dtype is not None and not dequantize:
            raise InvalidConfig("dtype goes with dequantize=True only; leave one of them out")
        if workers is None:
            workers = os.cpu_count() or 1 if is_local(uri) else REMOTE_WORKERS
        if workers < 1:
            raise InvalidConfig(f"workers is {workers}; at least 1 is needed")
        limit = parse_size(memory_budget, "memory_budget")
        self._dataset = Dataset.open(uri, Storage(storage_options or {}))
        kept = self._dataset.kept_nbytes
        if kept > limit:
            message = (
                f"decoding a row group of it takes {kept} bytes, and memory_budget is {limit}; raise it, or "
                "write the file with a row group per layer"
            )
            raise MemoryBudgetExceeded(message, uri=self._dataset.uri)
        # Layers of an open row group come one after another; several threads would reopen it over and over.
        self._workers = 1 if kept else workers
        self._budget = Budget(limit - kept)
        self._assembler = Assembler(self._dataset, self._workers, limit - kept, verify)
        self._is_quantized = not dequantize
        self._is_closed = False
        self._seconds = 0.0
        self._names = _names_by_layer(self._dataset)

    def __getitem__(self, name: str) -> Any:
        """The whole layer. UnknownLayer (a KeyError) has the nearest names."""
        return self.read(name)

    def __contains__(self, name: object) -> bool:
        return name in self._dataset.layers or name in self._dataset.aliases

    def __len__(self) -> int:
        return len(self._dataset.layers) + len(self._dataset.aliases)

    def keys(self) -> list[str]:
        """Every name of the source, in the order of iteration."""
        return [name for names in self._names.values() for name in names]

    def __iter__(self) -> Generator[tuple[str, Any]]:
        """Pairs of name and tensor. Leaving the loop early stops the threads."""
        loads = [load for names in self._names.values() for load in self._named_loads(names)]
        for pairs in self._stream(loads):
            while pairs:
                yield pairs.pop(0)

    def read(self, name: str, rows: slice | None = None) -> Any:
        """A layer, or rows of it: a slice, step 1, of the first dimension of the layer's own shape.

        Of fused experts, [experts, out, in], that is a run of experts. An indexed, uncompressed dataset is
        asked for those rows' bytes alone (and, to verify them, for what completes their 1 MiB chunks).
        """
        self._check_open()
        with self._timed():
            return load_now(self._load(_rows(self._dataset.layer(name), rows)), self._budget)

    def load_into(self, module: torch.nn.Module, *, strict: bool = True) -> LoadedKeys:
        """Fills the module's parameters and persistent buffers, in place, one layer after another.

        A tensor is cast to its parameter's dtype and device; a parameter on the meta device is replaced by
        one of the source's dtype. Tied parameters stay tied, and one name of them is enough. Names that are
        missing or left over, unless strict is False, and shapes that differ, always, raise one ModelMismatch
        before anything is read. Hooks of `load_state_dict` are not run. Buffers that the module's state dict
        leaves out are left alone, on the meta device filled if the dataset has them.
        """
        slots = _Slots(module)
        loaded = slots.compare({name: self._dataset.layer(name).shape for name in self.keys()}, strict=strict)
        loads: list[Load[tuple[list[str], torch.Tensor]]] = []
        for stored, names in self._names.items():
            keys = slots.keys_for(names)
            if keys:
                layer = self._dataset.layers[stored]
                dtype = slots.dtype(keys[0]) or self._dtype if layer.is_float else None
                load = self._decoded(_rows(layer, None), dtype or layer.dtype)
                loads.append(load.then(partial(_pair, keys)))
        for keys, tensor in self._stream(loads):
            slots.fill(keys, tensor)
        return loaded

    @property
    def stats(self) -> LoaderStats:
        peak = self._budget.peak + self._dataset.kept_nbytes
        return LoaderStats(self._dataset.nbytes_read, self._seconds, peak)

    def close(self) -> None:
        """Ends running iterations and their threads. The loader reads nothing after."""
        self._is_closed = True
        for stream in [*self._budget.streams]:
            stream.close()
            stream.pool.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _named_loads(self, names: Sequence[str]) -> list[Load[list[tuple[str, Any]]]]:
        """One load that gives every name a tensor of its own; or one each, where their sum would not fit."""
        load = self._load(_rows(self._dataset.layer(names[0]), None))
        extra = load.result_nbytes * (len(names) - 1)
        if load.peak_nbytes + extra > self._budget.limit_nbytes:
            return [load.then(partial(_named, [name])) for name in names]
        return [load.then(partial(_named, names), extra)]

    def _load(self, rows: Rows) -> Load[Any]:
        if self._is_quantized:
            return self._assembler.quantized(rows)
        return self._decoded(rows, (self._dtype if rows.layer.is_float else None) or rows.layer.dtype)

    def _decoded(self, rows: Rows, dtype: str) -> Load[torch.Tensor]:
        return self._assembler.values(rows, dtype).then(lambda values: _torch(values, dtype))

    def _stream(self, loads: Sequence[Load[T]]) -> Generator[T]:
        self._check_open()
        results = iter(Stream(loads, self._budget, self._workers))
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
            raise InvalidConfig("this loader is closed; open another", uri=self._dataset.uri)


class _Slots:
    """Where a module keeps its tensors, by the keys of its state dict. Several keys may share one tensor.

    Buffers outside the state dict (not persistent) are computed by the module, from what its config says, and
    more exactly than a checkpoint of another age may hold them: such a name is expected, never missing, and
    taken only where the module has nothing, on the meta device.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        import torch

        self._module = module
        state = module.state_dict(keep_vars=True).items()
        self._tensors = {key: value for key, value in state if isinstance(value, torch.Tensor)}
        buffers = module.named_buffers(remove_duplicate=False)
        computed = {name: buffer for name, buffer in buffers if name not in self._tensors}
        self._computed = {name for name, buffer in computed.items() if not buffer.is_meta}
        self._optional = {name for name in computed if name not in self._computed}
        self._tensors.update((name, computed[name]) for name in self._optional)
        self._tied: dict[int, list[str]] = {}
        for key, value in self._tensors.items():
            self._tied.setdefault(id(value), []).append(key)

    def compare(self, shapes: Mapping[str, tuple[int, ...]], *, strict: bool) -> LoadedKeys:
        """shapes: of every name of the dataset. Raises ModelMismatch with all that does not go together."""
        missing = [
            key
            for key, value in self._tensors.items()
            if key not in self._optional and not any(k in shapes for k in self._tied[id(value)])
        ]
        unexpected = [name for name in shapes if name not in self._tensors and name not in self._computed]
        problems = [
            f"{name!r} has shape {list(shape)}, the module's {list(self._tensors[name].shape)}"
            for name, shape in shapes.items()
            if name in self._tensors and tuple(self._tensors[name].shape) != shape
        ]
        if strict and missing:
            problems.append(f"missing from the dataset: {', '.join(missing)}")
        if strict and unexpected:
            problems.append(f"not in the module: {', '.join(unexpected)}")
        if problems:
            hint = "load into the model it came from, or pass strict=False for names that differ"
            kind = type(self._module).__name__
            raise ModelMismatch(f"{kind} does not go with the dataset; {'; '.join(problems)}; {hint}")
        return LoadedKeys(missing, unexpected)

    def keys_for(self, names: Sequence[str]) -> list[str]:
        """One key for each tensor that has any of `names`."""
        found = {id(self._tensors[name]): name for name in reversed(names) if name in self._tensors}
        return [name for name in names if name in found.values()]

    def dtype(self, key: str) -> str | None:
        """What to decode to for the key's tensor: its own dtype, None on meta or where that is no such."""
        tensor = self._tensors[key]
        name = _dtype_text(tensor.dtype)
        return name if not tensor.is_meta and name in DECODED_DTYPES else None

    def fill(self, keys: Sequence[str], tensor: torch.Tensor) -> None:
        import torch

        is_taken = False
        for key in keys:
            old = self._tensors[key]
            if not old.is_meta:
                with torch.no_grad():
                    old.copy_(tensor)
                continue
            self._replace(old, tensor.clone() if is_taken else tensor)
            is_taken = True

    def _replace(self, old: torch.Tensor, tensor: torch.Tensor) -> None:
        """Puts `tensor` in the place of a meta tensor, under every key that it has."""
        import torch

        new = tensor
        if isinstance(old, torch.nn.Parameter):
            new = torch.nn.Parameter(tensor, requires_grad=old.requires_grad and tensor.is_floating_point())
        for key in self._tied[id(old)]:
            owner, _, leaf = key.rpartition(".")
            setattr(self._module.get_submodule(owner), leaf, new)


def _names_by_layer(dataset: Dataset) -> dict[str, list[str]]:
    """{stored name: it and its aliases}, in storage order."""
    names = {stored: [stored] for stored in dataset.layers}
    for alias, stored in dataset.aliases.items():
        names[stored].append(alias)
    return names


def _rows(layer: StoredLayer, rows: slice | None) -> Rows:
    """`rows` of the layer's first dimension, all where None, as rows of the matrix that it is stored as."""
    if rows is None:
        return Rows(layer, 0, layer.rows, layer.shape)
    if not isinstance(rows, slice) or rows.step not in {None, 1}:
        raise InvalidConfig(f"rows is {rows!r}; give a slice with step 1", layer=layer.name)
    if not layer.shape:
        raise InvalidConfig("a scalar has no rows; read it whole", layer=layer.name)
    start, stop, _ = rows.indices(layer.shape[0])
    stop = max(start, stop)
    inner = math.prod(layer.shape[1 : layer.row_dims])
    return Rows(layer, start * inner, stop * inner, (stop - start, *layer.shape[1:]))


def _dtype_text(dtype: torch.dtype | str) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype_name(dtype: torch.dtype | str | None) -> str | None:
    if dtype is not None and _dtype_text(dtype) not in DECODED_DTYPES:
        raise InvalidConfig(f"dtype is {dtype}; one of {', '.join(DECODED_DTYPES)} is possible")
    return None if dtype is None else _dtype_text(dtype)


def _torch(values: np.ndarray, dtype: str) -> torch.Tensor:
    """`values`, the numpy bits of `dtype`, as a tensor of that dtype over the same memory."""
    import torch

    if dtype == "bfloat16":
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    tensor = torch.from_numpy(values)
    return tensor.view(getattr(torch, dtype)) if dtype.startswith(("float8", "float4")) else tensor


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
