"""Safetensors as a container: a header, tensors without gaps, and an index if there are several files.

A header is a JSON object, {name: {dtype, shape, data_offsets}}, preceded by its length in 8 bytes. Readers view tensors
in place, so tensors start at multiples of 8 bytes as far as sizes allow: those that do not fill multiples of 8 bytes
come last, the widest dtypes first.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from arrowquant_dist.checkpoint.safetensors_header import (
    METADATA_KEY,
    TENSOR_ALIGNMENT,
    StoredTensor,
    header_of,
)
from arrowquant_dist.config.sizes import rounded_size
from arrowquant_dist.dtypes import BY_SAFETENSORS
from arrowquant_dist.errors import InvalidConfig, listed
from arrowquant_dist.export.files import OutputFile, shares_of
from arrowquant_dist.export.format import ExportDraft, Model, OutputFiles
from arrowquant_dist.export.tensors import LayerExport, OutputTensor
from arrowquant_dist.export_names import MARK_KEY

_MAX_HEADER_NBYTES = 100_000_000  # the limit of the reference reader


def safetensors_files(model: Model, draft: ExportDraft, mark: str, max_file_nbytes: int) -> OutputFiles:
    """Lays out the draft's layers in files of at most `max_file_nbytes` (a larger layer is alone), by the folders that
    the model's configs name: each folder has its own files and index, with the names that it knows."""
    by_folder: defaultdict[str, list[LayerExport]] = defaultdict(list)
    for layer in draft.layers:
        by_folder[model.component_of(layer.name).path].append(layer)
    weights: list[OutputFile] = []
    closing: dict[str, bytes] = {}
    for folder, layers in by_folder.items():
        stem = f"{folder}/{_stem(model, folder)}" if folder else _stem(model, folder)
        prefix = f"{folder.replace('/', '.')}." if folder else ""
        _refuse_twice(tensor.name for layer in layers for tensor in layer.tensors)
        _refuse_reserved(tensor.name.removeprefix(prefix) for layer in layers for tensor in layer.tensors)
        made = _files_of(_aligned(layers), stem, prefix, mark, max_file_nbytes, first=len(weights))
        weights += made
        if len(made) > 1:
            closing[f"{stem}.safetensors.index.json"] = _index(made, prefix)
    return OutputFiles(tuple(weights), closing)


def _refuse_twice(names: Iterable[str]) -> None:
    """Raises InvalidConfig if two tensors have the same name, even in different files: readers would take either."""
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise InvalidConfig(f"the output would have {listed(twice)} twice; rename one of them in the source")


def _refuse_reserved(names: Iterable[str]) -> None:
    """Raises InvalidConfig for a tensor whose name has another meaning in a header."""
    if METADATA_KEY in names:
        message = f"safetensors cannot have a tensor called {METADATA_KEY}"
        raise InvalidConfig(f"{message}; rename it in the source, or export as v1", layer=METADATA_KEY)


def _stem(model: Model, folder: str) -> str:
    """Returns the stem of the files' names. diffusers, recognized by its configs, has one of its own."""
    config = model.read(f"{folder}/config.json" if folder else "config.json")
    return "diffusion_pytorch_model" if config is not None and b'"_diffusers_version"' in config else "model"


def _files_of(
    layers: Sequence[LayerExport], stem: str, prefix: str, mark: str, most: int, first: int
) -> list[OutputFile]:
    shares = shares_of([_nbytes(layer) for layer in layers], most)
    files = []
    for number, share in enumerate(shares):
        several = f"-{number + 1:05d}-of-{len(shares):05d}" if len(shares) > 1 else ""
        path, own = f"{stem}{several}.safetensors", tuple(layers[index] for index in share)
        header = _header(own, prefix, mark)
        gaps = (b"",) * sum(len(layer.tensors) for layer in own)
        files.append(OutputFile(first + number, path, own, (header, *gaps)))
    return files


def _nbytes(layer: LayerExport) -> int:
    return sum(tensor.nbytes for tensor in layer.tensors)


def _aligned(layers: Iterable[LayerExport]) -> list[LayerExport]:
    """Returns first the layers that begin and end at multiples of 8 bytes with all tensors aligned, then the others."""
    fitting: list[LayerExport] = []
    others: list[LayerExport] = []
    for layer in layers:
        (fitting if _fits(layer.tensors) else others).append(layer)
    return [*fitting, *sorted(others, key=lambda layer: -max(map(_itemsize, layer.tensors)))]


def _fits(tensors: Sequence[OutputTensor]) -> bool:
    offset = 0
    for tensor in tensors:
        if offset % _itemsize(tensor):
            return False
        offset += tensor.nbytes
    return offset % TENSOR_ALIGNMENT == 0


def _itemsize(tensor: OutputTensor) -> int:
    return BY_SAFETENSORS[tensor.dtype].itemsize


def _header(layers: Iterable[LayerExport], prefix: str, mark: str) -> bytes:
    layers = [*layers]
    tensors = (
        StoredTensor(tensor.name.removeprefix(prefix), tensor.dtype, tensor.shape, tensor.nbytes)
        for layer in layers
        for tensor in layer.tensors
    )
    header = header_of(tensors, {"format": "pt", MARK_KEY: mark})
    nbytes = int.from_bytes(header[:8], "little")
    if nbytes > _MAX_HEADER_NBYTES:
        named = listed(layer.name for layer in layers)
        raise InvalidConfig(
            f"the header of a file would have {rounded_size(nbytes)} ({named}); lower --max-file-bytes"
        )
    return header


def _index(files: Sequence[OutputFile], prefix: str) -> bytes:
    """Returns model.safetensors.index.json: the file of each tensor, and the total size."""
    where = {
        tensor.name.removeprefix(prefix): file.path.rpartition("/")[2]
        for file in files
        for tensor in file.tensors
    }
    total = sum(tensor.nbytes for file in files for tensor in file.tensors)
    return _json({"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))})


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()
