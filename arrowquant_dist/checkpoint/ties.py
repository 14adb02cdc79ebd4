"""Finds tied weights that a file stores twice, by their names and bytes.

torch files share storages and so record ties themselves. safetensors files cannot: their writers either drop one of
the two tensors or write both. Copies are searched for only among the few names that models tie (embeddings and output
heads), by content, whatever config.json says: it tells what the model's code will do, the bytes tell what is there.
This is the only place where planning reads weights: 128 KiB of each candidate, and all of the candidates that agree
so far.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

import xxhash

from arrowquant_dist.checkpoint.reader import SourceReader
from arrowquant_dist.checkpoint.table import Layer
from arrowquant_dist.dtypes import DTYPES

_CHUNK_NBYTES = 8 << 20
_SAMPLE_NBYTES = 64 << 10
_TIED_NAMES = re.compile(
    r"(?:.*\.)?(?:lm_head|shared_head\.head|lm_head\.decoder|predictions|predictions\.decoder|embed_tokens|shared|wte"
    r"|word_embeddings|tok_embeddings|embed_in|embed_out)\.(?:weight|bias)|output\.weight"
)


def find_ties(layers: Iterable[Layer], reader: SourceReader) -> dict[str, str]:
    """{name: stored name} of layers that repeat an earlier one byte for byte. Takes 8 MiB of memory."""
    groups: dict[tuple[str, tuple[int, ...]], list[Layer]] = defaultdict(list)
    for layer in layers:
        if layer.encoding.may_be_a_copy and layer.nbytes and _TIED_NAMES.fullmatch(layer.name):
            groups[layer.dtype, layer.shape].append(layer)
    ties: dict[str, str] = {}
    for group in groups.values():
        for alike in _repeated(group, lambda layer: _digest(reader, layer, _ends(layer))):
            for same in _repeated(alike, lambda layer: _digest(reader, layer, _chunks(layer))):
                ties.update({layer.name: same[0].name for layer in same[1:]})
    return ties


def _repeated(layers: Sequence[Layer], digest: Callable[[Layer], bytes]) -> list[list[Layer]]:
    """Groups of layers with equal digests; a layer that is alone is not read."""
    if len(layers) < 2:
        return []
    by_digest: dict[bytes, list[Layer]] = defaultdict(list)
    for layer in layers:
        by_digest[digest(layer)].append(layer)
    return [alike for alike in by_digest.values() if len(alike) > 1]


def _digest(reader: SourceReader, layer: Layer, ranges: Iterable[tuple[int, int]]) -> bytes:
    state = xxhash.xxh3_128()
    for start, stop in ranges:
        state.update(reader.read([(layer, start, stop)])[0].data)
    return bytes(state.digest())


def _ends(layer: Layer) -> Iterator[tuple[int, int]]:
    count = _SAMPLE_NBYTES // DTYPES[layer.dtype].itemsize
    yield 0, min(count, layer.num_params)
    yield max(0, layer.num_params - count), layer.num_params


def _chunks(layer: Layer) -> Iterator[tuple[int, int]]:
    step = _CHUNK_NBYTES // DTYPES[layer.dtype].itemsize
    for start in range(0, layer.num_params, step):
        yield start, min(start + step, layer.num_params)
