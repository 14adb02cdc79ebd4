"""Checks a source's layers before a plan is made. The readers check what they read; this is the last check before
weights are read, where a wrong layer table would otherwise surface in the middle of a run."""

from __future__ import annotations

from collections.abc import Iterable

from arrowquant_dist.checkpoint.table import Checkpoint, Layer
from arrowquant_dist.config.sizes import rounded_size
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.errors import InvalidCheckpoint, listed
from arrowquant_dist.storage.uris import redact

MAX_NAME_NBYTES = 1 << 16
_MAX_INT64 = (1 << 63) - 1
_FREE_NBYTES = 256 << 20  # decoded size that is allowed whatever the size of the files


def check_checkpoint(checkpoint: Checkpoint) -> None:
    """Raises InvalidCheckpoint, naming layer and file, if the layer table is inconsistent."""
    if not checkpoint.layers:
        raise InvalidCheckpoint("holds no layers; is this the model's folder?", uri=redact(checkpoint.uri))
    sizes = {file.uri: file.nbytes for file in checkpoint.files}
    for layer in checkpoint.layers:
        _check_name(layer)
        _check_values(layer)
        layer.encoding.check(layer, sizes)
    _check_unique(checkpoint.layers)
    _check_aliases(checkpoint)


def check_expansion(checkpoint: Checkpoint, max_expansion: int) -> None:
    """Raises InvalidCheckpoint, naming the largest layers, if all layers, decoded to the source's dtypes, take more
    than `max_expansion` times the bytes of the source's files.

    Codes of 1 bit expand to 32 times their size as float32, and some of them may be compressed in the file. Beyond
    that, files claim more than they hold: views of a storage with strides of 0, runs of equal values, gigabytes of
    zeros.
    """
    source_nbytes = sum(file.nbytes for file in checkpoint.files)
    layers_nbytes = sum(layer.source_nbytes for layer in checkpoint.layers)
    if layers_nbytes > max_expansion * source_nbytes + _FREE_NBYTES:
        largest = sorted(checkpoint.layers, key=lambda layer: -layer.source_nbytes)
        message = (
            f"its layers take {rounded_size(layers_nbytes)}, more than {max_expansion} times the "
            f"{rounded_size(source_nbytes)} of its files; "
            f"the largest are {listed(layer.name for layer in largest)}; raise max_expansion under 'run:' in the "
            "config if you trust the source"
        )
        raise InvalidCheckpoint(message, uri=redact(checkpoint.uri))


def _check_name(layer: Layer) -> None:
    if not layer.name:
        raise InvalidCheckpoint("a layer has no name", uri=redact(layer.uri))
    try:
        nbytes = len(layer.name.encode())
    except UnicodeEncodeError as error:
        raise InvalidCheckpoint(
            f"the layer name {layer.name!a} is not Unicode", uri=redact(layer.uri)
        ) from error
    if nbytes > MAX_NAME_NBYTES:
        message = f"a layer name has {nbytes} bytes, more than the {MAX_NAME_NBYTES} allowed"
        raise InvalidCheckpoint(message, layer=layer.name[:100], uri=redact(layer.uri))


def _check_values(layer: Layer) -> None:
    if layer.dtype not in DTYPES:
        known = ", ".join(DTYPES)
        raise _wrong(
            layer, f"the dtype {layer.dtype!r} is not supported; convert the layer to one of {known}"
        )
    if layer.shape and min(layer.shape) < 0:
        raise _wrong(layer, f"the shape {list(layer.shape)} has a negative dimension")
    if layer.source_nbytes > _MAX_INT64:
        raise _wrong(layer, f"the shape {list(layer.shape)} stands for more bytes than any file can hold")


def _check_unique(layers: Iterable[Layer]) -> None:
    seen: dict[str, Layer] = {}
    for layer in layers:
        first = seen.setdefault(layer.name, layer)
        if first is not layer:
            raise _wrong(layer, f"is stored twice, also in {redact(first.uri)}; keep one of them")


def _check_aliases(checkpoint: Checkpoint) -> None:
    if not checkpoint.aliases:
        return
    names = {layer.name for layer in checkpoint.layers}
    for alias, stored in checkpoint.aliases.items():
        if alias in names or stored not in names:
            message = f"is tied to {stored!r}, " + (
                "but stored too" if alias in names else "which is not a layer"
            )
            raise InvalidCheckpoint(message, layer=alias, uri=redact(checkpoint.uri))


def _wrong(layer: Layer, message: str) -> InvalidCheckpoint:
    return InvalidCheckpoint(message, layer=layer.name, uri=redact(layer.uri))
