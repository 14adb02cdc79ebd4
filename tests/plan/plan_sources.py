"""Made-up checkpoints for plans: only layer tables, since a plan never looks at weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import count

from hypothesis import strategies as st

from arrowquant_dist.checkpoint.table import Checkpoint, Layer, SourceFile
from arrowquant_dist.config import LayerOverride, QuantizationConfig, RunConfig
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.encodings.affine import Affine
from arrowquant_dist.encodings.awq import Awq, AwqRows
from arrowquant_dist.encodings.dataset import DATASET_ROWS
from arrowquant_dist.encodings.float8 import Float8Blocks
from arrowquant_dist.encodings.gptq import LESS_ONE, PLAIN, Gptq
from arrowquant_dist.encodings.int8 import Int8
from arrowquant_dist.encodings.llm_int8 import LlmInt8
from arrowquant_dist.encodings.microscaled import Microscaled
from arrowquant_dist.encodings.nvfp4 import Nvfp4
from arrowquant_dist.encodings.packed import PackedInts
from arrowquant_dist.encodings.place import Place
from arrowquant_dist.encodings.raw import RAW
from arrowquant_dist.encodings.row_pairs import Nvfp4RowPairs
from arrowquant_dist.encodings.strided import Strided
from arrowquant_dist.encodings.transposed import TransposedMicroscaled

URI = "s3://bucket/model"


def checkpoint(
    layers: Mapping[str, tuple[int, ...]], dtype: str = "float32", *, aliases: Mapping[str, str] | None = None
) -> Checkpoint:
    """A checkpoint of one file with layers of these shapes, one after the other."""
    return of_layers(raw_layers((name, shape, dtype) for name, shape in layers.items()), aliases)


def raw_layers(
    described: Iterable[tuple[str, tuple[int, ...], str]], uri: str = f"{URI}/a.safetensors"
) -> list[Layer]:
    layers: list[Layer] = []
    for name, shape, dtype in described:
        offset = layers[-1].offset + layers[-1].nbytes if layers else 100
        layers.append(Layer(name, shape, dtype, uri, offset, math.prod(shape) * DTYPES[dtype].itemsize))
    return layers


def of_layers(layers: Iterable[Layer], aliases: Mapping[str, str] | None = None) -> Checkpoint:
    layers = tuple(layers)
    ends: dict[str, int] = {}
    for layer in layers:
        ends[layer.uri] = max(ends.get(layer.uri, 0), layer.offset + layer.nbytes)
    files = tuple(SourceFile(uri, nbytes, "v1") for uri, nbytes in ends.items())
    return Checkpoint(URI, "safetensors", layers, files, dict(aliases or {}), ("config.json",))


_SHAPES = st.one_of(
    st.just(()),
    st.lists(st.integers(0, 100_000), min_size=1, max_size=1),
    st.lists(st.integers(1, 3_000), min_size=2, max_size=2),
    st.lists(st.integers(0, 60), min_size=2, max_size=4),
).map(tuple)
_NAMES = st.text("abé.0 \"\n'{}", min_size=1, max_size=8) | st.sampled_from(
    ["model.embed_tokens.weight", "layers.0.mlp.experts.w1", "lm_head.weight"]
)

_SIZES = st.integers(0, 1 << 40)
PLACES = st.builds(
    Place,
    st.sampled_from([f"{URI}/a.safetensors", f"{URI}/scales.safetensors", "/data/é.bin"]),
    _SIZES,
    st.sampled_from(sorted(DTYPES)),
    st.lists(_SIZES, max_size=3).map(tuple),
)
_BLOCKS = st.tuples(_SIZES, _SIZES)
ENCODINGS = st.one_of(
    st.just(RAW),
    st.just(DATASET_ROWS),
    st.builds(Strided, st.lists(_SIZES, max_size=3).map(tuple)),
    st.builds(Float8Blocks, st.sampled_from(["float8_e4m3fn", "float8_e5m2"]), _BLOCKS, PLACES),
    st.builds(Int8, _BLOCKS, PLACES, st.none() | PLACES, st.none() | PLACES),
    st.builds(
        PackedInts, st.sampled_from([2, 4, 8]), _BLOCKS, PLACES, st.none() | PLACES, st.none() | PLACES
    ),
    st.builds(Microscaled, PLACES),
    st.builds(TransposedMicroscaled, PLACES),
    st.builds(Gptq, _SIZES, _SIZES, PLACES, PLACES, st.sampled_from([LESS_ONE, PLAIN]), st.none() | PLACES),
    st.builds(Awq, _SIZES, PLACES, PLACES),
    st.builds(AwqRows, _SIZES, PLACES, PLACES),
    st.builds(Affine, _SIZES, _SIZES, PLACES, PLACES),
    st.builds(LlmInt8, PLACES),
    st.builds(Nvfp4, st.sampled_from([16, 32]), PLACES, st.none() | PLACES, st.none() | PLACES),
    st.builds(Nvfp4RowPairs, st.sampled_from([16, 32]), PLACES, st.none() | PLACES, st.none() | PLACES),
)  # an encoding of any kind, with any numbers
_SMALL = Place(f"{URI}/a.safetensors", 0, "float32", (1,))
ENCODED = st.sampled_from(
    [RAW, RAW, RAW, DATASET_ROWS, Strided((1, 2)), Int8((1, 2), _SMALL, None, None), Microscaled(_SMALL)]
)  # an encoding whose parts are in the file


@st.composite
def checkpoints(draw: st.DrawFn) -> Checkpoint:
    """Checkpoints with a few layers of any shape and dtype in two files, some of them encoded."""
    names = draw(st.lists(_NAMES, min_size=1, max_size=8, unique=True))
    described = [(name, draw(_SHAPES), draw(st.sampled_from(sorted(DTYPES)))) for name in names]
    middle = draw(st.integers(0, len(described)))
    layers = [
        *raw_layers(described[:middle]),
        *raw_layers(described[middle:], f"{URI}/b.safetensors"),
    ]
    layers = [replace(layer, encoding=draw(ENCODED)) for layer in layers]
    alias = next(f"alias {i}" for i in count() if f"alias {i}" not in names)
    return of_layers(layers, {alias: names[0]} if draw(st.booleans()) else {})


CONFIGS = st.builds(
    QuantizationConfig,
    quant_type=st.sampled_from(["int8", "int4", "int3", "int2", "fp16"]),
    per_channel=st.booleans(),
    group_size=st.sampled_from([0, 1, 7, 128, 1 << 20]),
    symmetric=st.booleans(),
    scale_dtype=st.sampled_from(["float32", "bfloat16"]),
    mixed_precision_layers=st.sampled_from([(), ("embed", "lm_head"), ("/[ab]$/",)]),
    non_finite=st.sampled_from(["error", "keep"]),
    overrides=st.sampled_from([(), (LayerOverride("*", quant_type="fp16"),)]),
)
RUNS = st.builds(
    RunConfig,
    block_bytes=st.sampled_from([64 << 10, 100_000, 64 << 20]),
    shard_bytes=st.sampled_from([64 << 10, 1 << 20, 512 << 20]),
    compression=st.sampled_from(["zstd", "none"]),
)
