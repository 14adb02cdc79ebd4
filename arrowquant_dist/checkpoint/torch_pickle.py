"""PyTorch `.bin` / `.pt` / `.pth` files: names, shapes and places of the tensors, loaded only through weights_only.

torch loads a rebuilt archive (see torch_zip.py) without memory for values: tensors have shapes and strides, and the
record that each comes from is found by torch_private.py, or by public names alone in torch_storages.py. No value is
read. torch is imported inside the functions.
"""

from __future__ import annotations

import pickle
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from arrowquant_dist.checkpoint import torch_private, torch_storages
from arrowquant_dist.checkpoint.pickle_calls import SAVE_AGAIN
from arrowquant_dist.checkpoint.pickle_scan import check_pickle
from arrowquant_dist.checkpoint.state_dicts import find_state_dict, left_out_note
from arrowquant_dist.checkpoint.table import Layer
from arrowquant_dist.checkpoint.torch_zip import TorchArchive, read_archive
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.encodings.raw import RAW
from arrowquant_dist.encodings.strided import Strided, is_contiguous, view_extent
from arrowquant_dist.errors import InvalidCheckpoint, counted
from arrowquant_dist.storage.base import ByteRange, ObjectInfo, Store

_LOAD_LOCK = threading.Lock()  # fake mode and torch's unpickler keep state outside of the thread's own
# torch's unpickler passes on whatever error a damaged pickle causes in Python.
_TORCH_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
    Warning,  # if the caller turns warnings into errors
    pickle.PickleError,
    struct.error,
)


@dataclass(frozen=True, slots=True)
class _View:
    """A tensor as the pickle describes it. storage: key of its record. offset, strides: in values."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    storage: str
    offset: int
    strides: tuple[int, ...]

    @property
    def identity(self) -> tuple[Any, ...]:
        return self.storage, self.offset, self.shape, self.strides, self.dtype


def read_layers(store: Store, info: ObjectInfo) -> tuple[list[Layer], dict[str, str], list[str]]:
    """The layers of one file in file order, {name: stored name} of tied ones, and notes. Raises InvalidCheckpoint."""
    uri = store.url(info.path)
    archive = read_archive(store, info)
    check_pickle(archive.pickle, uri)
    layers: list[Layer] = []
    aliases: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    views, left_out = _load_views(archive, uri)
    for view in views:
        stored = first.setdefault(view.identity, view.name)
        if stored != view.name and 0 not in view.shape:
            aliases[view.name] = stored
        else:
            layers.append(_layer(view, archive.storages[view.storage], uri))
    return sorted(layers, key=lambda layer: layer.offset), aliases, left_out_note(info.path or uri, left_out)


def _layer(view: _View, record: ByteRange, uri: str) -> Layer:
    itemsize = DTYPES[view.dtype].itemsize
    nbytes = view_extent(view.shape, view.strides) * itemsize
    start = view.offset * itemsize
    if nbytes and not 0 <= start <= start + nbytes <= record.nbytes:
        _refuse(
            f"its values go beyond its storage of {counted(record.nbytes, 'byte')}; download the file again",
            uri,
            view.name,
        )
    contiguous = nbytes == 0 or is_contiguous(view.shape, view.strides)
    encoding = RAW if contiguous else Strided(view.strides)
    offset = record.start + start if nbytes else record.start
    layer = Layer(view.name, view.shape, view.dtype, uri, offset, nbytes, encoding)
    if not contiguous and layer.source_nbytes > max(record.nbytes, 1 << 30):
        _refuse("it repeats its storage over a GiB of values; save it contiguous", uri, view.name)
    return layer


def _load_views(archive: TorchArchive, uri: str) -> tuple[list[_View], Sequence[str]]:
    """All tensors of the state dict, in its order, and what else the file holds."""
    way = torch_private if torch_private.is_there() else torch_storages
    try:
        with _LOAD_LOCK, way.loaded(archive) as (loaded, key_of):
            state = find_state_dict(loaded, uri)
            views = [_view(name, value, key_of(value), uri) for name, value in state.tensors.items()]
            return views, state.left_out
    except InvalidCheckpoint:
        raise
    except _TORCH_ERRORS as error:
        text = str(error).partition("WeightsUnpickler error:")
        reason = (text[2] or text[0]).strip().split("\n", 1)[0][:300]
        raise InvalidCheckpoint(
            f"torch's weights_only does not load it ({reason}); {SAVE_AGAIN}", uri=uri
        ) from error


def _view(name: str, tensor: Any, key: str | None, uri: str) -> _View:
    import torch

    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout != torch.strided or dtype not in DTYPES:
        _refuse(f"{dtype} values ({tensor.layout}) are not supported; convert the tensor", uri, name)
    if tensor.is_neg() or tensor.is_conj():
        _refuse("it is a lazy negation or conjugate; save it after .resolve_neg().resolve_conj()", uri, name)
    if key is None:
        _refuse(f"it has no values in the file; {SAVE_AGAIN}", uri, name)
    return _View(name, tuple(tensor.shape), dtype, key, tensor.storage_offset(), tuple(tensor.stride()))


def _refuse(message: str, uri: str, layer: str | None = None) -> NoReturn:
    raise InvalidCheckpoint(message, uri=uri, layer=layer)
